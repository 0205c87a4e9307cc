//! Envelopes to wire messages and back. The way back trusts nothing (INV-11): counts are bounded before anything is
//! decoded, headers and payloads must pass their checksums, so that what a shard appends is what the leader sent.

use bytes::Bytes;
use prost::Message;
use timberline_consensus::{
    Append, AppendReply, Body, Candidacy, Envelope, Frame, Mismatch, SnapshotMark, VoteReply,
};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, raft_message::Body as Wire};
use timberline_storage::{FRAME_HEADER_LEN, FrameHeader};

use super::limits::{BATCH_FRAMES, BATCH_LEADERSHIPS, BATCH_MESSAGES, SHARDS_MAX};

// Field numbers of `peer.proto` that the bounds are counted by.
const BATCH_MESSAGE: u64 = 1;
const BATCH_LEADERSHIP: u64 = 2;
const MESSAGE_APPEND: u64 = 9;
const APPEND_FRAME: u64 = 4;

/// Bytes of a beat among others, see `PeerBatch.beats`, and the kinds that there are.
const BEAT_LEN: usize = 1 + 5 * 8;
const BEAT: u8 = 0;
const BEAT_REPLY: u8 = 1;
const BEAT_QUIESCE: u8 = 2;
const BEAT_QUIESCED: u8 = 3;

pub(super) fn malformed(why: impl Into<String>) -> ApiError {
    ApiError::new(Reason::MalformedMessage, why)
}

/// `None` for beats, which go together.
fn message_to_wire(envelope: Envelope) -> Option<pb::RaftMessage> {
    let body = match envelope.body {
        Body::PreVote(candidacy) => Wire::PreVote(candidacy_to_wire(candidacy)),
        Body::PreVoteReply(reply) => Wire::PreVoteReply(vote_to_wire(reply)),
        Body::Vote(candidacy) => Wire::Vote(candidacy_to_wire(candidacy)),
        Body::VoteReply(reply) => Wire::VoteReply(vote_to_wire(reply)),
        Body::Append(append) => Wire::Append(pb::Append {
            prev_index: append.prev_index,
            prev_term: append.prev_term,
            commit: append.commit,
            frames: append
                .frames
                .into_iter()
                .map(|frame| pb::Frame {
                    header: Bytes::copy_from_slice(&frame.header.encode()),
                    payload: frame.payload,
                })
                .collect(),
        }),
        Body::AppendReply(reply) => Wire::AppendReply(pb::AppendReply {
            index: reply.index,
            refused: reply.refused.map(|mismatch| pb::Mismatch {
                hint: mismatch.hint,
                hint_term: mismatch.hint_term,
            }),
            commit: reply.commit,
        }),
        Body::Beat { .. } | Body::BeatReply { .. } => return None,
        Body::TimeoutNow => Wire::TimeoutNow(pb::TimeoutNow {}),
        Body::Snapshot(mark) => Wire::Snapshot(pb::SnapshotMark {
            index: mark.index,
            term: mark.term,
            membership: mark.membership,
        }),
    };
    Some(pb::RaftMessage {
        group: envelope.group,
        from: envelope.from,
        to: envelope.to,
        term: envelope.term,
        body: Some(body),
    })
}

/// Which of a broker's shards said that they are alive.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ShardBeats {
    /// How many the broker has.
    shards: u16,
    /// A bit for each.
    alive: [u8; SHARDS_MAX as usize / 8],
}

impl ShardBeats {
    pub(crate) fn is_empty(&self) -> bool {
        self.alive.iter().all(|byte| *byte == 0)
    }

    pub(crate) fn shards(&self) -> usize {
        self.shards.into()
    }

    /// Those that are alive, by number.
    pub(crate) fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.shards()).filter(|shard| self.alive[shard / 8] & (1 << (shard % 8)) != 0)
    }

    /// One of `shards` is alive.
    pub(super) fn set(&mut self, shard: u16, shards: u16) {
        self.shards = shards;
        if let Some(byte) = self.alive.get_mut(usize::from(shard / 8)) {
            *byte |= 1 << (shard % 8);
        }
    }

    /// Those that said so later, too.
    pub(crate) fn add(&mut self, later: &ShardBeats) {
        self.shards = later.shards;
        for (byte, later) in self.alive.iter_mut().zip(later.alive) {
            *byte |= later;
        }
    }

    fn to_wire(self) -> Bytes {
        let len = match self.is_empty() {
            true => 0,
            false => self.shards().div_ceil(8),
        };
        Bytes::copy_from_slice(&self.alive[..len])
    }

    /// # Errors
    /// `MALFORMED_MESSAGE`: shards that the sender can't have.
    fn from_wire(shards: u32, alive: &[u8]) -> Result<ShardBeats, ApiError> {
        let mut beats = ShardBeats::default();
        let shards = u16::try_from(shards).ok().filter(|n| *n <= SHARDS_MAX);
        let (Some(shards), true) = (shards, alive.len() <= beats.alive.len()) else {
            return Err(malformed("beats of too many shards"));
        };
        beats.alive[..alive.len()].copy_from_slice(alive);
        let last = beats.alive.iter().rposition(|byte| *byte != 0);
        beats.shards = shards;
        if last.is_some_and(|last| {
            last * 8 + beats.alive[last].ilog2() as usize >= usize::from(shards)
        }) {
            return Err(malformed("a beat of a shard that there is not"));
        }
        Ok(beats)
    }
}

/// A batch as it goes out; payloads go by reference, beats and their answers behind all others.
pub(super) fn to_wire(
    envelopes: Vec<Envelope>,
    leaderships: Vec<pb::Leadership>,
    shard_beats: ShardBeats,
) -> pb::PeerBatch {
    let mut beats = Vec::new();
    let mut messages = Vec::with_capacity(envelopes.len());
    for envelope in envelopes {
        match envelope.body {
            Body::Beat { commit, quiesce } => {
                let kind = if quiesce { BEAT_QUIESCE } else { BEAT };
                push_beat(&mut beats, kind, &envelope, commit);
            }
            Body::BeatReply { commit, quiesced } => {
                let kind = if quiesced { BEAT_QUIESCED } else { BEAT_REPLY };
                push_beat(&mut beats, kind, &envelope, commit);
            }
            _ => messages.extend(message_to_wire(envelope)),
        }
    }
    pb::PeerBatch {
        messages,
        leaderships,
        beats: beats.into(),
        shards: shard_beats.shards.into(),
        shard_beats: shard_beats.to_wire(),
    }
}

fn push_beat(beats: &mut Vec<u8>, kind: u8, envelope: &Envelope, commit: u64) {
    beats.push(kind);
    let Envelope {
        group,
        from,
        to,
        term,
        ..
    } = *envelope;
    for number in [group, from, to, term, commit] {
        beats.extend_from_slice(&number.to_le_bytes());
    }
}

/// Beats that travelled together.
///
/// # Errors
/// `MALFORMED_MESSAGE`: bytes that are no beats, or too many.
fn read_beats(bytes: &[u8], envelopes: &mut Vec<Envelope>) -> Result<(), ApiError> {
    let beats = bytes.chunks_exact(BEAT_LEN);
    if !beats.remainder().is_empty() || beats.len() > BATCH_MESSAGES {
        return Err(malformed(format!("{} bytes of beats", bytes.len())));
    }
    envelopes.reserve(beats.len());
    for beat in beats {
        let (kind, numbers) = (beat[0], &beat[1..]);
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&numbers[at * 8..][..8]);
            u64::from_le_bytes(bytes)
        };
        let [group, from, to, term, commit] = std::array::from_fn(number);
        if from == 0 || to == 0 {
            return Err(malformed("a beat from or to nobody"));
        }
        let body = match kind {
            BEAT | BEAT_QUIESCE => Body::Beat {
                commit,
                quiesce: kind == BEAT_QUIESCE,
            },
            BEAT_REPLY | BEAT_QUIESCED => Body::BeatReply {
                commit,
                quiesced: kind == BEAT_QUIESCED,
            },
            _ => return Err(malformed("a beat of an unknown kind")),
        };
        envelopes.push(Envelope {
            group,
            from,
            to,
            term,
            body,
        });
    }
    Ok(())
}

/// The envelope that a message holds.
///
/// # Errors
/// `MALFORMED_MESSAGE`: no body, nobody as sender or receiver, a frame that is not whole or not next.
pub(super) fn from_wire(message: pb::RaftMessage) -> Result<Envelope, ApiError> {
    if message.from == 0 || message.to == 0 {
        return Err(malformed("a message from or to nobody"));
    }
    let body = match message
        .body
        .ok_or_else(|| malformed("a message without a body, or of an unknown kind"))?
    {
        Wire::PreVote(candidacy) => Body::PreVote(candidacy_from_wire(&candidacy)),
        Wire::PreVoteReply(reply) => Body::PreVoteReply(vote_from_wire(&reply)),
        Wire::Vote(candidacy) => Body::Vote(candidacy_from_wire(&candidacy)),
        Wire::VoteReply(reply) => Body::VoteReply(vote_from_wire(&reply)),
        Wire::Append(append) => Body::Append(append_from_wire(append)?),
        Wire::AppendReply(reply) => Body::AppendReply(AppendReply {
            index: reply.index,
            refused: reply.refused.map(|mismatch| Mismatch {
                hint: mismatch.hint,
                hint_term: mismatch.hint_term,
            }),
            commit: reply.commit,
        }),
        Wire::TimeoutNow(_) => Body::TimeoutNow,
        Wire::Snapshot(mark) => Body::Snapshot(SnapshotMark {
            index: mark.index,
            term: mark.term,
            membership: mark.membership,
        }),
    };
    Ok(Envelope {
        group: message.group,
        from: message.from,
        to: message.to,
        term: message.term,
        body,
    })
}

fn append_from_wire(append: pb::Append) -> Result<Append, ApiError> {
    let mut frames = Vec::with_capacity(append.frames.len());
    let mut index = append.prev_index;
    for frame in append.frames {
        if frame.header.len() != FRAME_HEADER_LEN {
            return Err(malformed(format!(
                "a frame's header of {} bytes",
                frame.header.len()
            )));
        }
        let header = FrameHeader::decode(&frame.header)
            .map_err(|fault| malformed(format!("a frame's header: {fault}")))?;
        header
            .check_payload(&frame.payload)
            .map_err(|fault| malformed(format!("entry {}: {fault}", header.index)))?;
        index = index.checked_add(1).unwrap_or(0);
        if header.index != index {
            return Err(malformed(format!(
                "entry {} where {index} is next",
                header.index
            )));
        }
        frames.push(Frame {
            header,
            payload: frame.payload,
        });
    }
    Ok(Append {
        prev_index: append.prev_index,
        prev_term: append.prev_term,
        commit: append.commit,
        frames,
    })
}

fn candidacy_to_wire(candidacy: Candidacy) -> pb::Candidacy {
    pb::Candidacy {
        last_index: candidacy.last_index,
        last_term: candidacy.last_term,
        commit: candidacy.commit,
        commit_term: candidacy.commit_term,
        transfer: candidacy.transfer,
    }
}

fn candidacy_from_wire(candidacy: &pb::Candidacy) -> Candidacy {
    Candidacy {
        last_index: candidacy.last_index,
        last_term: candidacy.last_term,
        commit: candidacy.commit,
        commit_term: candidacy.commit_term,
        transfer: candidacy.transfer,
    }
}

fn vote_to_wire(reply: VoteReply) -> pb::VoteReply {
    pb::VoteReply {
        granted: reply.granted,
        commit: reply.commit,
        commit_term: reply.commit_term,
    }
}

fn vote_from_wire(reply: &pb::VoteReply) -> VoteReply {
    VoteReply {
        granted: reply.granted,
        commit: reply.commit,
        commit_term: reply.commit_term,
    }
}

/// What a batch held.
#[derive(Debug, PartialEq)]
pub(super) struct Received {
    pub(super) messages: Vec<Envelope>,
    pub(super) leaderships: Vec<pb::Leadership>,
    pub(super) shard_beats: ShardBeats,
}

/// Reads an encoded batch.
///
/// # Errors
/// `MALFORMED_MESSAGE`: bytes that are no batch, more items than are allowed, or an item that [`from_wire`] refuses.
/// Nothing of the batch is used then.
pub(super) fn read_batch(bytes: Bytes) -> Result<Received, ApiError> {
    check_counts(&bytes)?;
    let batch = pb::PeerBatch::decode(bytes).map_err(|error| malformed(error.to_string()))?;
    if let Some(odd) = batch.leaderships.iter().find(|l| l.topic_id.len() != 16) {
        let length = odd.topic_id.len();
        return Err(malformed(format!("a topic id of {length} bytes")));
    }
    let messages = batch.messages.into_iter().map(from_wire);
    let mut messages: Vec<Envelope> = messages.collect::<Result<_, _>>()?;
    read_beats(&batch.beats, &mut messages)?;
    let shard_beats = ShardBeats::from_wire(batch.shards, &batch.shard_beats)?;
    Ok(Received {
        messages,
        shard_beats,
        leaderships: batch.leaderships,
    })
}

/// Bounds the items of an encoded batch. A decoder makes an item of some hundred bytes out of two: it must not see what
/// is not counted.
fn check_counts(batch: &[u8]) -> Result<(), ApiError> {
    let (mut messages, mut leaderships, mut frames) = (0, 0, 0);
    each_field(batch, &mut |field, bytes| {
        match field {
            BATCH_MESSAGE => {
                count(&mut messages, BATCH_MESSAGES, "messages")?;
                each_field(bytes, &mut |field, bytes| {
                    if field != MESSAGE_APPEND {
                        return Ok(());
                    }
                    each_field(bytes, &mut |field, _| {
                        if field == APPEND_FRAME {
                            count(&mut frames, BATCH_FRAMES, "frames")?;
                        }
                        Ok(())
                    })
                })?;
            }
            BATCH_LEADERSHIP => count(&mut leaderships, BATCH_LEADERSHIPS, "leaderships")?,
            _ => {}
        }
        Ok(())
    })
}

fn count(so_far: &mut usize, bound: usize, what: &str) -> Result<(), ApiError> {
    *so_far += 1;
    if *so_far > bound {
        return Err(malformed(format!("a batch of more than {bound} {what}")));
    }
    Ok(())
}

type Visit<'a> = dyn FnMut(u64, &[u8]) -> Result<(), ApiError> + 'a;

/// Calls `visit` with number and bytes of each length-delimited field of an encoded message.
fn each_field(mut bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), ApiError> {
    let cut = || malformed("a message that ends inside a field");
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let length = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).map_err(|_| cut())?,
            5 => 4,
            // Groups are not of proto3; we write none.
            _ => return Err(malformed("a field of an unknown wire type")),
        };
        let (field, rest) = bytes.split_at_checked(length).ok_or_else(cut)?;
        if key & 7 == 2 {
            visit(key >> 3, field)?;
        }
        bytes = rest;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, ApiError> {
    prost::encoding::decode_varint(bytes).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
