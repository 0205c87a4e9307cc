//! Who led when: a leader is one that speaks as such, or has committed something in its term.

use std::collections::BTreeMap;

use timberline_consensus::NodeId;

use super::{Check, ensure};

/// By group and term: the leader, and the life of its broker that it was elected in.
#[derive(Debug, Default)]
pub(super) struct Leaders(BTreeMap<(usize, u64), (NodeId, u64)>);

impl Leaders {
    /// INV-7. A leader that restarts has to be elected again, in another term.
    pub(super) fn leads(&mut self, group: usize, term: u64, node: NodeId, life: u64) -> Check {
        let (first, of) = *self.0.entry((group, term)).or_insert((node, life));
        ensure!(
            (first, of) == (node, life),
            "g{group}: n{first} (life {of}) and n{node} (life {life}) lead in term {term} (INV-7)"
        );
        Ok(())
    }
}
