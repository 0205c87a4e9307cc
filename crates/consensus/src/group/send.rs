//! Messages going out: from the library's form to ours, with the payload that the library never had.

use raft::eraftpb::{Message, MessageType};

use super::step::is_transfer;
use super::{Group, MESSAGE_BYTES_MAX, Output};
use crate::bugs::Bug;
use crate::log_store::{Frames, LogStore};
use crate::message::{Append, AppendReply, Body, Candidacy, Envelope, Frame, Mismatch, VoteReply};

impl<S: LogStore> Group<S> {
    pub(super) fn post(&mut self, message: Message, out: &mut Output) {
        // What a leader counts on when it lets a removed member go.
        let kept = |group: &Self| message.commit.min(group.log().durability().commit);
        let body = match message.get_msg_type() {
            MessageType::MsgAppend => return self.post_append(&message, out),
            MessageType::MsgAppendResponse => Body::AppendReply(AppendReply {
                index: match self.has_bug(Bug::AcceptAll) && !message.reject {
                    true => self.log().durability().index,
                    false => message.index,
                },
                refused: message.reject.then_some(Mismatch {
                    hint: message.reject_hint,
                    hint_term: message.log_term,
                }),
                commit: kept(self),
            }),
            MessageType::MsgRequestVote => Body::Vote(candidacy(&message)),
            MessageType::MsgRequestPreVote => Body::PreVote(candidacy(&message)),
            MessageType::MsgRequestVoteResponse => Body::VoteReply(vote_reply(&message)),
            MessageType::MsgRequestPreVoteResponse => Body::PreVoteReply(vote_reply(&message)),
            MessageType::MsgHeartbeat => Body::Beat {
                commit: message.commit,
                quiesce: false,
            },
            MessageType::MsgHeartbeatResponse => Body::BeatReply {
                commit: kept(self),
                quiesced: false,
            },
            MessageType::MsgTimeoutNow => Body::TimeoutNow,
            MessageType::MsgSnapshot => return self.offer(&message, out),
            // Forwarded proposals and reads, which nobody here makes.
            _ => return,
        };
        out.messages.push(self.envelope(&message, body));
    }

    fn envelope(&self, message: &Message, body: Body) -> Envelope {
        Envelope {
            group: self.options.tag,
            from: self.options.node,
            to: message.to,
            term: message.term,
            body,
        }
    }

    /// Entries with their payload, in messages of bounded size.
    fn post_append(&mut self, message: &Message, out: &mut Output) {
        let mut prev = (message.index, message.log_term);
        let entries = message.get_entries();
        if entries.is_empty() {
            let body = append(prev, message.commit, Vec::new());
            return out.messages.push(self.envelope(message, body));
        }
        if entries[0].index != message.index + 1 {
            // The library joins entries to an empty append that waits, also when that is of another place since the
            // follower is probed again. Its next answer brings them.
            return self.unreachable(message.to);
        }
        let last = message.index + entries.len() as u64;
        while prev.0 < last {
            let frames = match self.log().frames(prev.0 + 1, last, MESSAGE_BYTES_MAX) {
                Ok(Frames::Ready(frames)) => frames,
                Ok(Frames::Cold(cold)) => {
                    out.cold.push((message.to, cold));
                    return self.unreachable(message.to);
                }
                Err(error) => {
                    tracing::error!(node = self.options.node, to = message.to, %error, "entries can't be read");
                    return self.unreachable(message.to);
                }
            };
            let first = (prev.0 - message.index) as usize;
            let mut same = frames.iter().zip(&entries[first..]);
            let fits = same.clone().count() == frames.len()
                && same.all(|(frame, entry)| {
                    (frame.header.index, frame.header.term) == (entry.index, entry.term)
                });
            let Some(end) = frames.last().map(|f| (f.header.index, f.header.term)) else {
                return;
            };
            if !fits {
                // The log went on under another leader meanwhile; the message is of no use any more.
                return;
            }
            let body = append(prev, message.commit, frames);
            out.messages.push(self.envelope(message, body));
            prev = end;
        }
    }
}

fn append(prev: (u64, u64), commit: u64, frames: Vec<Frame>) -> Body {
    Body::Append(Append {
        prev_index: prev.0,
        prev_term: prev.1,
        commit,
        frames,
    })
}

fn candidacy(message: &Message) -> Candidacy {
    Candidacy {
        last_index: message.index,
        last_term: message.log_term,
        commit: message.commit,
        commit_term: message.commit_term,
        transfer: is_transfer(message),
    }
}

fn vote_reply(message: &Message) -> VoteReply {
    VoteReply {
        granted: !message.reject,
        commit: message.commit,
        commit_term: message.commit_term,
    }
}
