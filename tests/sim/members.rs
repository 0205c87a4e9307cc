//! Membership: learners join, get a vote, lose it, leave; several changes at once go through a joint configuration.

use timberline_consensus::{Change, Member, Membership, NodeId};

use crate::checker::{Check, ensure};
use crate::world::World;

/// Entries that a learner may be behind when it gets a vote.
const NEAR: u64 = 30;
/// Voters at most.
const VOTERS_MAX: usize = 5;

impl World {
    /// One step of one group's membership, as management would order it.
    pub(crate) fn change_members(&mut self, group: usize) -> Check {
        let Some((broker, node)) = self.leader(group) else {
            return Ok(());
        };
        let now_ms = self.clock(broker);
        let Some(running) = self.brokers[broker].running.as_ref() else {
            return Ok(());
        };
        let leader = &running.replicas[&node].group;
        let members = leader.membership().clone();
        if members.is_joint() || members.voters.is_empty() {
            return Ok(());
        }
        let last = leader.view().last_index;
        let peers = leader.peers();
        let near = |n: NodeId| peers.iter().any(|p| p.node == n && p.matched + NEAR > last);
        let ready: Vec<Member> = members
            .learners
            .iter()
            .copied()
            .filter(|m| near(m.node))
            .collect();
        let Some(changes) = self.next_changes(group, &members, &ready)? else {
            return Ok(());
        };
        let revision = self.groups[group].revision + 1;
        let Some(running) = self.brokers[broker].running.as_mut() else {
            return Ok(());
        };
        let Some(replica) = running.replicas.get_mut(&node) else {
            return Ok(());
        };
        let outcome = replica
            .group
            .propose_membership(revision, changes.clone(), now_ms);
        let now = self.now;
        self.trace
            .note(now, ("members", node, outcome.is_ok()), || {
                format!("  n{node} proposes {changes:?} of {members:?}: {outcome:?}")
            });
        match outcome {
            Ok(_) => self.groups[group].revision = revision,
            Err(why) => self.refused(broker, node, why)?,
        }
        self.mark(broker, node);
        Ok(())
    }

    fn next_changes(
        &mut self,
        group: usize,
        members: &Membership,
        ready: &[Member],
    ) -> Check<Option<Vec<Change>>> {
        let founders = self.profile.groups[group].brokers.len();
        let least = founders.clamp(1, 2);
        let (voters, learners) = (&members.voters, &members.learners);
        let learner = (!ready.is_empty()).then(|| self.rng.pick(ready));
        let voter = self.rng.pick(voters);
        Ok(match self.rng.weighted(&[30, 30, 20, 10, 10, 10]) {
            // Give a learner its vote.
            0 if voters.len() < VOTERS_MAX => learner.map(|l| vec![Change::AddVoter(l)]),
            // A learner takes a voter's place.
            1 => learner.map(|l| {
                let out = match self.rng.chance(50) {
                    true => Change::Remove(voter.node),
                    false => Change::AddLearner(voter),
                };
                vec![Change::AddVoter(l), out]
            }),
            2 if learners.len() < 2 => self
                .newcomer(group, members)?
                .map(|m| vec![Change::AddLearner(m)]),
            3 if voters.len() > least => Some(vec![Change::AddLearner(voter)]),
            4 if voters.len() > founders.max(least) => Some(vec![Change::Remove(voter.node)]),
            5 if learners.len() > 1 => {
                let gone = self.rng.pick(learners);
                Some(vec![Change::Remove(gone.node)])
            }
            _ => None,
        })
    }

    /// A replica that begins at nothing, on a broker that has none of the group.
    fn newcomer(&mut self, group: usize, members: &Membership) -> Check<Option<Member>> {
        if self.profile.groups[group].trims {
            return Ok(None);
        }
        let member = |node: NodeId, broker: usize| Member {
            node,
            broker: broker as i32,
        };
        // One that was made and never joined.
        let waiting = self.replicas.iter().find(|(node, place)| {
            place.group == group
                && !place.joined
                && !members.members().iter().any(|m| m.node == **node)
        });
        if let Some((&node, place)) = waiting {
            return Ok(Some(member(node, place.broker)));
        }
        let taken: Vec<usize> = self
            .replicas
            .values()
            .filter(|p| p.group == group)
            .map(|p| p.broker)
            .collect();
        let free: Vec<usize> = (0..self.brokers.len())
            .filter(|b| !taken.contains(b) && self.brokers[*b].works())
            .collect();
        if free.is_empty() {
            return Ok(None);
        }
        let broker = self.rng.pick(&free);
        let node = self.place(group, broker);
        if let Err(why) = self.make(broker, node) {
            let at = &self.brokers[broker];
            ensure!(at.disk.crashed() || at.write_failed(), "{why}");
            return Ok(None);
        }
        self.open_replica(broker, node)?;
        self.stats.replicas_added += 1;
        Ok(Some(member(node, broker)))
    }
}
