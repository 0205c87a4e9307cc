//! Snapshots: what a leader offers, and how a follower takes one in.
//!
//! No data passes here. A leader's offer goes out as a value; segments are shipped and staged beside the group. When
//! they are whole and on stable storage, [`Group::install`] makes them the log and tells the library, in one step, so
//! that neither ever sees the other's log. From there on it is like an append: what the answer promises waits until
//! the log says that it is durable.

use raft::SnapshotStatus;
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Group, Output, SnapshotOffer};
use crate::log_store::{LogStore, Staged};
use crate::membership::ConfigEntry;
use crate::message::{NodeId, SnapshotMark};
use crate::raft_storage;

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotInstalled<T> {
    /// Its leader was replaced and the new one is not known yet: try again. What it holds is committed, and still of
    /// use.
    #[error("no leader is known")]
    NoLeader(T),
    /// What it holds is committed here already, or this replica leads. It is dropped.
    #[error("it is of no use any more")]
    Stale,
    /// Its membership does not name this replica, or is not one: the library would drop it.
    #[error("its membership does not name this replica")]
    Foreign,
    /// The group has stopped.
    #[error("the group has stopped")]
    Stopped,
}

impl<S: LogStore> Group<S> {
    /// A leader's message becomes an offer.
    pub(super) fn offer(&mut self, message: &Message, out: &mut Output) {
        let metadata = message.get_snapshot().get_metadata();
        let mark = self.log().boundary();
        match mark.filter(|mark| (mark.index, mark.term) == (metadata.index, metadata.term)) {
            Some(mark) => out.snapshots.push(SnapshotOffer {
                to: message.to,
                term: message.term,
                mark,
            }),
            // Another file was sealed in between: the next one will do.
            None => self
                .raw
                .report_snapshot(message.to, SnapshotStatus::Failure),
        }
    }

    /// Shipping a snapshot to a follower has ended. `ok`: it has it, as installed now or because the receiver calls it
    /// [`NotInstalled::Stale`]; the leader goes on behind it. Otherwise it failed, and is offered again after a beat.
    pub fn snapshot_sent(&mut self, node: NodeId, ok: bool) {
        self.wake();
        self.contained("reporting a snapshot", |group| {
            let status = match ok {
                true => SnapshotStatus::Finish,
                false => SnapshotStatus::Failure,
            };
            group.raw.report_snapshot(node, status);
            Ok(())
        });
    }

    /// Makes a staged snapshot the log, and this replica a follower that has it. `from` and `term` are the leader
    /// that offered it; if it was replaced meanwhile, the present one is answered. The answer comes with the turn
    /// after which the log says that it is durable.
    ///
    /// # Errors
    /// [`NotInstalled`]; nothing is changed.
    pub fn install(
        &mut self,
        from: NodeId,
        term: u64,
        staged: S::Staged,
    ) -> Result<(), NotInstalled<S::Staged>> {
        if self.stopped.is_some() {
            return Err(NotInstalled::Stopped);
        }
        let mark = staged.mark();
        let Some(entry) = self.names_me(&mark) else {
            return Err(NotInstalled::Foreign);
        };
        let raft = &self.raw.raft;
        if mark.index <= raft.raft_log.committed || raft.state == StateRole::Leader {
            return Err(NotInstalled::Stale);
        }
        let (node, leader, now) = (self.options.node, raft.leader_id, raft.term);
        let (from, term) = match term >= now && mark.term <= term {
            true => (from, term),
            false if leader != 0 && mark.term <= now => (leader, now),
            false => return Err(NotInstalled::NoLeader(staged)),
        };
        if from == 0 || from == node {
            return Err(NotInstalled::Stale);
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (from, node, term);
        message.set_snapshot(raft_storage::snapshot(&mark, &entry.result));
        self.wake();
        self.contained("installing a snapshot", |group| {
            group.take_in(message, &mark, entry, staged)
        });
        match self.stopped {
            None => Ok(()),
            Some(_) => Err(NotInstalled::Stopped),
        }
    }

    fn names_me(&self, mark: &SnapshotMark) -> Option<ConfigEntry> {
        let entry = ConfigEntry::decode(&mark.membership).ok()?;
        let me = self.options.node;
        entry.result.broker_of(me).map(|_| entry)
    }

    fn take_in(
        &mut self,
        message: Message,
        mark: &SnapshotMark,
        entry: ConfigEntry,
        staged: S::Staged,
    ) -> Result<(), String> {
        let before = self.raw.raft.raft_log.committed;
        // The library first: it compares the snapshot with the log of before.
        self.raw.step(message).map_err(|error| error.to_string())?;
        if self.raw.raft.snap().is_none() {
            // The log has these entries: the library has raised its commit index, and that is all.
            return match self.raw.raft.raft_log.committed >= mark.index {
                true => Ok(()),
                false => Err("raft refuses a snapshot that was checked".into()),
            };
        }
        self.log()
            .install(staged)
            .map_err(|error| error.to_string())?;
        let store = self.raw.raft.mut_store();
        store.configs.clear();
        self.incoming.clear();
        self.cut(before);
        self.membership = entry.result;
        self.revision = self.revision.max(entry.revision);
        self.timeout = (0, 0);
        Ok(())
    }
}
