//! A turn: everything that follows from proposals, messages, ticks and finished syncs since the last one.

use raft::eraftpb::{Entry, Message, MessageType};
use timberline_storage::{EntryKind, Error, HardState};

use super::propose::conf_change;
use super::{Group, Output, Stage};
use crate::bugs::Bug;
use crate::log_store::LogStore;
use crate::membership::ConfigEntry;
use crate::raft_storage::conf_state;

impl<S: LogStore> Group<S> {
    /// Works off what is ready: hard state and entries go to the log, messages and reads to `out`. Returns whether the
    /// commit index rose.
    pub fn turn(&mut self, now_ms: i64, out: &mut Output) -> bool {
        let before = self.committed;
        self.contained("working", |group| {
            loop {
                group.settle(out);
                if !group.raw.has_ready() {
                    break;
                }
                group.work(now_ms, out)?;
            }
            if group.is_leader() && group.has_bug(Bug::CommitOldTerm) {
                let majority = group.raw.raft.mut_prs().maximal_committed_index().0;
                group.raw.raft.raft_log.commit_to(majority);
            }
            group.note_commit();
            let wanted = group.raw.raft.raft_log.store.boundary_wanted.take();
            out.close_after = out.close_after.max(wanted);
            group.incoming.clear();
            group.retime();
            Ok(())
        });
        self.committed > before
    }

    /// Lets go what is durable.
    fn settle(&mut self, out: &mut Output) {
        if self.stages.is_empty() && self.term_waits.is_empty() {
            return;
        }
        let durable = self.log().durability();
        let (mut number, mut applied) = (0, None);
        let mut free = Vec::new();
        while let Some(stage) = self.stages.front() {
            let written = stage.last_index.is_none_or(|last| last <= durable.index)
                || self.is_leader() && self.has_bug(Bug::CountUnsynced);
            if !written || stage.hard_version > durable.hard_version {
                break;
            }
            number = stage.number;
            applied = stage.snapshot.or(applied);
            if let Some(stage) = self.stages.pop_front() {
                free.extend(stage.messages);
            }
        }
        // The library first: a vote may be answered before this function ends.
        if number > 0 {
            self.raw.on_persist_ready(number);
        }
        if let Some(index) = applied {
            self.raw.advance_apply_to(index);
        }
        for message in free {
            if !self.is_overtaken(&message) {
                self.post(message, out);
            }
        }
        if !self.term_waits.is_empty() {
            for (version, reply) in std::mem::take(&mut self.term_waits) {
                if version <= durable.hard_version {
                    self.post(reply, out);
                } else {
                    self.term_waits.push((version, reply));
                }
            }
        }
    }

    fn work(&mut self, now_ms: i64, out: &mut Output) -> Result<(), String> {
        let mut ready = self.raw.ready();
        let number = ready.number();
        if let Some(hard) = ready.hs()
            && (hard.term, hard.vote) != self.hard
        {
            self.hard = (hard.term, hard.vote);
            let hard = HardState {
                term: hard.term,
                vote: hard.vote,
                // It rides along; the log knows it better.
                commit: 0,
            };
            self.hard_version = self.log().set_hard_state(hard);
        }
        let entries = ready.take_entries();
        let installed = Some(ready.snapshot().get_metadata().index).filter(|&index| index > 0);
        let last_index = entries.last().map(|entry| entry.index).or(installed);
        for entry in &entries {
            self.write(entry, now_ms)?;
        }
        let store = self.raw.raft.mut_store();
        store.last_index = store.log.last_index();
        let mut messages = ready.take_messages();
        messages.append(&mut ready.take_persisted_messages());
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        let mut waiting = Vec::new();
        let term_is_durable = self.has_bug(Bug::SpeakEarly)
            || self.log().durability().hard_version >= self.hard_version;
        for message in messages {
            if self.is_overtaken(&message) {
                continue;
            }
            match self.promise(&message) {
                Promise::Nothing => self.post(message, out),
                Promise::Term if term_is_durable => self.post(message, out),
                Promise::Term => self.term_waits.push((self.hard_version, message)),
                Promise::All => waiting.push(message),
            }
        }
        self.stages.push_back(Stage {
            number,
            last_index,
            snapshot: installed,
            hard_version: self.hard_version,
            messages: waiting,
        });
        if let Some(last) = committed.last().map(|entry| entry.index) {
            for entry in committed {
                self.apply(entry.index)?;
            }
            self.raw.advance_apply_to(last);
            self.resign_if_removed();
        }
        Ok(())
    }

    /// An acceptance for a leader that was deposed before the turn: what it accepts may be gone again by its end.
    fn is_overtaken(&self, message: &Message) -> bool {
        message.term < self.raw.raft.term
            && message.get_msg_type() == MessageType::MsgAppendResponse
            && !message.reject
    }

    /// Writes one entry, unless the log has it: a leader's proposals are written first.
    fn write(&mut self, entry: &Entry, now_ms: i64) -> Result<(), String> {
        let (index, term) = (entry.index, entry.term);
        let last = self.log().last_index();
        if index <= last {
            if self.log().term_at(index) == Some(term) {
                return Ok(());
            }
            self.log()
                .truncate_after(index - 1)
                .map_err(|error| format!("cutting entries behind {}: {error}", index - 1))?;
            self.cut(index - 1);
        }
        let failed = |error| format!("appending entry {index}: {error}");
        let Some(frame) = self.incoming.remove(&(index, term)) else {
            if term != self.elected {
                return Err(format!("entry {index} came without its payload"));
            }
            let noop = bytes::Bytes::new();
            let written = self
                .log()
                .append_internal(term, EntryKind::Noop, noop, now_ms);
            return self.note_space(written).map(drop).map_err(failed);
        };
        let written = self.log().append_frame(&frame);
        self.note_space(written).map_err(failed)?;
        if frame.header.kind == EntryKind::Config {
            let store = self.raw.raft.mut_store();
            store.configs.insert(index, frame.payload);
        }
        Ok(())
    }

    /// Remembers whether it is only space that is missing.
    fn note_space<T>(&mut self, written: Result<T, Error>) -> Result<T, Error> {
        self.no_space = matches!(written, Err(Error::StorageFull { .. }));
        written
    }

    /// [`promise`], or a mistake.
    fn promise(&self, message: &Message) -> Promise {
        match message.get_msg_type() {
            MessageType::MsgAppendResponse if self.has_bug(Bug::AcceptEarly) => Promise::Nothing,
            MessageType::MsgRequestVoteResponse if self.has_bug(Bug::VoteEarly) => Promise::Nothing,
            _ => promise(message),
        }
    }

    /// Entries behind `index` are gone: nobody waits for them, nobody is told of them.
    pub(super) fn cut(&mut self, index: u64) {
        self.raw.raft.mut_store().configs.split_off(&(index + 1));
        if self.has_bug(Bug::TellCut) {
            for stage in &mut self.stages {
                stage.last_index = stage.last_index.map(|last| last.min(index));
            }
            return;
        }
        for stage in &mut self.stages {
            stage.last_index = stage.last_index.map(|last| last.min(index));
            stage.messages.retain(|message| {
                message.get_msg_type() != MessageType::MsgAppendResponse
                    || message.reject
                    || message.index <= index
            });
        }
    }

    /// Applies a committed entry: only configurations concern the group itself.
    fn apply(&mut self, index: u64) -> Result<(), String> {
        let Some(payload) = self.raw.raft.mut_store().configs.remove(&index) else {
            return Ok(());
        };
        let entry = ConfigEntry::decode(&payload).map_err(|error| error.to_string())?;
        let founding = self.membership.voters.is_empty() && entry.changes.len() > 1;
        let applied = if founding {
            // From nobody to the founders: the library wants them one by one.
            let mut last = Err(raft::Error::ProposalDropped);
            for change in &entry.changes {
                last = self.raw.apply_conf_change(&conf_change(&[*change]));
            }
            last
        } else {
            self.raw.apply_conf_change(&conf_change(&entry.changes))
        };
        if self.has_bug(Bug::IgnoreOutgoing) {
            if entry.result.is_joint() {
                let _ = self.raw.apply_conf_change(&conf_change(&[]));
            }
            self.membership = entry.result;
            return Ok(());
        }
        let state = applied.map_err(|error| format!("membership at {index}: {error}"))?;
        if sorted(&state) != sorted(&conf_state(&entry.result)) {
            return Err(format!(
                "membership at {index} is {:?} in the log and {state:?} in raft",
                entry.result
            ));
        }
        tracing::debug!(node = self.options.node, index, members = ?entry.result, "membership");
        self.membership = entry.result;
        self.revision = self.revision.max(entry.revision);
        // Ranks have changed.
        self.timeout = (0, 0);
        Ok(())
    }

    /// A leader without a vote in the applied membership has done its part.
    fn resign_if_removed(&mut self) {
        let node = self.options.node;
        if self.is_leader() && !self.membership.is_voter(node) {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
    }

    /// The high watermark follows the commit index, which may be ahead of this replica's own sync. Only once the log
    /// has what the library has: before, other entries may stand there.
    fn note_commit(&mut self) {
        let mut committed = self.raw.raft.raft_log.committed;
        if self.has_bug(Bug::CommitAll) {
            committed = self.raw.raft.raft_log.last_index();
        }
        if committed > self.committed {
            self.log().commit_to(committed);
            self.committed = committed;
        }
    }
}

/// What a message promises, and so must wait for.
enum Promise {
    /// Nothing that a crash could take back.
    Nothing,
    /// The term of its sender.
    Term,
    /// Hard state and entries up to now.
    All,
}

fn promise(message: &Message) -> Promise {
    match message.get_msg_type() {
        MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => Promise::Nothing,
        // A leader that was voted for by others is in a durable term; a sole voter elects itself before.
        MessageType::MsgAppend
        | MessageType::MsgHeartbeat
        | MessageType::MsgTimeoutNow
        | MessageType::MsgSnapshot
        | MessageType::MsgHeartbeatResponse => Promise::Term,
        MessageType::MsgAppendResponse if message.reject => Promise::Term,
        _ => Promise::All,
    }
}

fn sorted(state: &raft::eraftpb::ConfState) -> [Vec<u64>; 4] {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    [
        sorted(state.get_voters()),
        sorted(state.get_voters_outgoing()),
        sorted(state.get_learners()),
        sorted(state.get_learners_next()),
    ]
}
