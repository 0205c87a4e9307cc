//! Messages coming in: checked here, so that nothing a peer sends can bring the library down.

use raft::StateRole;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use timberline_storage::EntryKind;

use super::Group;
use crate::bugs::Bug;
use crate::log_store::LogStore;
use crate::membership::ConfigEntry;
use crate::message::{Append, AppendReply, Body, Candidacy, Envelope, VoteReply};

/// What the library puts into a vote request that a leader asked for.
const TRANSFER: &[u8] = b"CampaignTransfer";
/// Frames in one message that are accepted.
pub const FRAMES_MAX: usize = 4096;
/// Terms and indexes beyond this are no real ones; sums of them stay in range.
const NUMBER_MAX: u64 = 1 << 62;

/// Why a message was not stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// It is for another replica, or of another group.
    #[error("it is addressed to another replica or group")]
    Misaddressed,
    /// No replica of ours sends such a thing.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// There is no space for its entries; the leader sends them again.
    #[error("no space for its entries")]
    NoSpace,
    /// The group has stopped.
    #[error("the group has stopped")]
    Stopped,
}

impl<S: LogStore> Group<S> {
    /// Takes a message in. Its effects come with the next turn.
    ///
    /// # Errors
    /// [`Dropped`]: nothing changed.
    pub fn step(&mut self, envelope: Envelope) -> Result<(), Dropped> {
        if self.stopped.is_some() {
            return Err(Dropped::Stopped);
        }
        let Envelope {
            group,
            from,
            to,
            term,
            body,
        } = envelope;
        if group != self.options.tag || to != self.options.node || from == to || from == 0 {
            return Err(Dropped::Misaddressed);
        }
        if term == 0 || term > NUMBER_MAX {
            return Err(Dropped::Malformed("term"));
        }
        let is_answer = matches!(body, Body::AppendReply(_) | Body::BeatReply { .. });
        let refusal = match &body {
            Body::PreVoteReply(reply) => Some(*reply),
            _ => None,
        };
        let mut message = Message::default();
        message.from = from;
        message.to = to;
        message.term = term;
        self.fill(&mut message, body)?;
        if is_answer && self.is_leader() && self.raw.raft.prs().get(from).is_some() {
            self.heard.insert(from, self.awake_ticks);
        }
        if self.is_leader() || from == self.raw.raft.leader_id {
            self.wake();
        }
        if let Some(refusal) = refusal {
            self.hear_of_commit(term, &refusal);
        }
        self.mistake(&mut message);
        let of = self.reign();
        self.contained("stepping", |group| {
            match group.raw.step(message) {
                Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => {}
                Err(error) => return Err(error.to_string()),
            }
            group.guard_progress(from);
            Ok(())
        });
        self.wake_unless_same(of);
        Ok(())
    }

    /// What planted mistakes make of a message before the library sees it.
    fn mistake(&mut self, message: &mut Message) {
        let raft = &self.raw.raft;
        let (last, own, term) = (raft.raft_log.last_index(), raft.id, raft.term);
        match message.get_msg_type() {
            MessageType::MsgRequestVote
                if self.has_bug(Bug::VoteTwice) && message.term == term && raft.vote != own =>
            {
                self.raw.raft.vote = 0;
                self.raw.raft.leader_id = 0;
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if self.has_bug(Bug::VoteForShorter) =>
            {
                (message.index, message.log_term) = (last, message.term);
            }
            MessageType::MsgAppend if self.has_bug(Bug::CutByOldAppend) => self.cut_by(message),
            MessageType::MsgTimeoutNow
                if self.has_bug(Bug::CrownSuccessor)
                    && message.term == term
                    && raft.promotable() =>
            {
                self.contained("taking over", |group| {
                    group.raw.raft.become_candidate();
                    group.raw.raft.become_leader();
                    Ok(())
                });
            }
            _ => {}
        }
    }

    /// The log ends where an old message ends.
    fn cut_by(&mut self, message: &Message) {
        let log = &self.raw.raft.raft_log;
        let entries = message.get_entries();
        let known = entries.iter().all(|e| log.match_term(e.index, e.term));
        let end = message.index + entries.len() as u64;
        let settled = log.last_index() == self.log().last_index();
        let cuts = message.term == self.term() && known && settled && !self.is_leader();
        if cuts && !entries.is_empty() && message.index >= log.committed && end < log.last_index() {
            let entries = entries.to_vec();
            self.contained("cutting", |group| {
                let cut = group.log().truncate_after(end);
                cut.map_err(|error| error.to_string())?;
                group.cut(end);
                group.raw.raft.mut_store().last_index = end;
                group.raw.raft.raft_log.persisted = group.raw.raft.raft_log.persisted.min(end);
                group.raw.raft.raft_log.append(&entries);
                Ok(())
            });
        }
    }

    fn fill(&mut self, message: &mut Message, body: Body) -> Result<(), Dropped> {
        let last = self.raw.raft.raft_log.last_index();
        match body {
            Body::PreVote(candidacy) => {
                message.set_msg_type(MessageType::MsgRequestPreVote);
                candidacy_of(message, &candidacy)?;
            }
            Body::Vote(candidacy) => {
                message.set_msg_type(MessageType::MsgRequestVote);
                candidacy_of(message, &candidacy)?;
            }
            Body::PreVoteReply(reply) => {
                message.set_msg_type(MessageType::MsgRequestPreVoteResponse);
                reply_of(message, &reply)?;
            }
            Body::VoteReply(reply) => {
                message.set_msg_type(MessageType::MsgRequestVoteResponse);
                reply_of(message, &reply)?;
            }
            Body::Append(append) => self.append_of(message, append)?,
            Body::AppendReply(reply) => {
                // One that was late finds a leader that lost its unsynced tail and leads no more: nobody counts it.
                let leads = self.is_leader() && message.term == self.term();
                let sent = if leads { last } else { NUMBER_MAX };
                append_reply_of(message, &reply, sent)?;
                message.commit = message.commit.min(last);
            }
            Body::Beat { commit, .. } => {
                message.set_msg_type(MessageType::MsgHeartbeat);
                // A leader names what this replica acknowledged. What is missing of that was lost here (INV-6).
                if commit > last {
                    self.stop(format!(
                        "the leader was told of entries up to {commit}, the log ends at {last}: it lost what it acknowledged"
                    ));
                    return Err(Dropped::Stopped);
                }
                message.commit = commit;
            }
            Body::BeatReply { commit, .. } => {
                message.set_msg_type(MessageType::MsgHeartbeatResponse);
                message.commit = commit.min(last);
            }
            Body::TimeoutNow => message.set_msg_type(MessageType::MsgTimeoutNow),
            Body::Snapshot(_) => return Err(Dropped::Malformed("snapshots go beside this way")),
        }
        Ok(())
    }

    fn append_of(&mut self, message: &mut Message, append: Append) -> Result<(), Dropped> {
        let Append {
            prev_index,
            prev_term,
            commit,
            frames,
        } = append;
        if prev_index > NUMBER_MAX || prev_term > message.term || frames.len() > FRAMES_MAX {
            return Err(Dropped::Malformed("append"));
        }
        let (mut index, mut term) = (prev_index, prev_term);
        let mut entries = Vec::with_capacity(frames.len());
        let mut new_bytes = 0;
        let last = self.raw.raft.raft_log.last_index();
        for frame in &frames {
            let header = &frame.header;
            let follows = header.index == index + 1
                && header.term >= term
                && header.term <= message.term
                && header.payload_len as usize == frame.payload.len();
            if !follows {
                return Err(Dropped::Malformed("frames that do not follow each other"));
            }
            (index, term) = (header.index, header.term);
            if index > last {
                new_bytes += frame.payload.len() as u64;
            }
            let mut entry = Entry::default();
            (entry.index, entry.term) = (index, term);
            if header.kind == EntryKind::Config {
                ConfigEntry::decode(&frame.payload)
                    .map_err(|_| Dropped::Malformed("configuration entry"))?;
                entry.set_entry_type(EntryType::EntryConfChangeV2);
            }
            entries.push(entry);
        }
        // An entry can't be given back once the library has it.
        // With what was stepped before and is not written yet.
        let waiting: usize = self.incoming.values().map(|f| f.payload.len()).sum();
        if new_bytes > 0 && self.log().reserve(new_bytes + waiting as u64).is_err() {
            return Err(Dropped::NoSpace);
        }
        message.set_msg_type(MessageType::MsgAppend);
        message.index = prev_index;
        message.log_term = prev_term;
        message.commit = commit;
        message.set_entries(entries.into());
        for frame in frames {
            let key = (frame.header.index, frame.header.term);
            self.incoming.insert(key, frame);
        }
        Ok(())
    }

    /// A refusal tells what is committed, and that stays true whatever its term. The library drops one of a lower term, which a
    /// replica that was removed may keep for ever: those who don't know that it was ask it again and again.
    fn hear_of_commit(&mut self, term: u64, reply: &VoteReply) {
        let raft = &self.raw.raft;
        let stands = matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate);
        let index = reply.commit;
        if reply.granted || term >= raft.term || !stands || index > raft.raft_log.last_index() {
            return;
        }
        self.contained("hearing of a commit", |group| {
            let raft = &mut group.raw.raft;
            if raft.raft_log.maybe_commit(index, reply.commit_term) {
                // What is committed may be a membership: it is applied before anybody is asked again.
                raft.become_follower(raft.term, 0);
            }
            Ok(())
        });
    }

    /// The library may set the next index at or below what is matched while it probes; later versions don't.
    fn guard_progress(&mut self, from: u64) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(from)
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
    }
}

fn candidacy_of(message: &mut Message, candidacy: &Candidacy) -> Result<(), Dropped> {
    if candidacy.last_term > message.term || candidacy.last_index > NUMBER_MAX {
        return Err(Dropped::Malformed("candidacy"));
    }
    message.index = candidacy.last_index;
    message.log_term = candidacy.last_term;
    message.commit = candidacy.commit;
    message.commit_term = candidacy.commit_term;
    if candidacy.transfer {
        message.context = TRANSFER.into();
    }
    Ok(())
}

fn reply_of(message: &mut Message, reply: &VoteReply) -> Result<(), Dropped> {
    if reply.commit > NUMBER_MAX || reply.commit_term > NUMBER_MAX {
        return Err(Dropped::Malformed("vote"));
    }
    message.reject = !reply.granted;
    message.commit = reply.commit;
    message.commit_term = reply.commit_term;
    Ok(())
}

fn append_reply_of(message: &mut Message, reply: &AppendReply, sent: u64) -> Result<(), Dropped> {
    message.set_msg_type(MessageType::MsgAppendResponse);
    message.index = reply.index;
    message.commit = reply.commit;
    match reply.refused {
        None if reply.index > sent => {
            return Err(Dropped::Malformed("more acknowledged than was sent"));
        }
        None => {}
        Some(mismatch) => {
            if mismatch.hint > NUMBER_MAX || reply.index > NUMBER_MAX {
                return Err(Dropped::Malformed("refusal"));
            }
            message.reject = true;
            message.reject_hint = mismatch.hint;
            message.log_term = mismatch.hint_term;
        }
    }
    Ok(())
}

/// Whether a vote request was asked for by the leader.
pub(super) fn is_transfer(message: &Message) -> bool {
    message.context.as_ref() == TRANSFER
}
