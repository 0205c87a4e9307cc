//! Records to bytes and back.

use std::sync::Arc;

use thiserror::Error;

use super::{Committed, MemberRecord, Record, assignor_code};
use crate::groups::assign::Assignor;
use crate::groups::limits::PARTITIONS_MAX;
use crate::groups::parts::{Parts, TopicId, Tp};

/// The encoding of this program.
const VERSION: u8 = 1;
/// Set in the kind of a record that is part of an image.
const IN_IMAGE: u8 = 0x80;

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Malformed {
    #[error("a record of groups ends early")]
    Short,
    #[error("a record of groups is of version {0}, this program knows {VERSION}")]
    Version(u8),
    #[error("a record of groups is of the unknown kind {0}")]
    Kind(u8),
    #[error("a record of groups has a wrong {0}")]
    Field(&'static str),
}

type Result<T> = std::result::Result<T, Malformed>;

impl Record {
    /// The bytes, and in them whether it is part of an image.
    pub(crate) fn encode(&self, in_image: bool) -> Vec<u8> {
        let mut out = Writer(vec![VERSION]);
        let kind = self.kind() | if in_image { IN_IMAGE } else { 0 };
        out.0.push(kind);
        match self {
            Record::Group {
                group,
                epoch,
                assignor,
                empty_since_ms,
            } => {
                out.text(group);
                out.signed(*epoch);
                out.number(assignor_code(*assignor));
                out.optional(*empty_since_ms);
            }
            Record::Member { group, member } => {
                out.text(group);
                out.member(member);
            }
            Record::MemberGone { group, member } => {
                out.text(group);
                out.text(member);
            }
            Record::Grant {
                group,
                member,
                epoch,
                added,
                removed,
            } => {
                out.text(group);
                out.text(member);
                out.signed(*epoch);
                out.parts(added);
                out.parts(removed);
            }
            Record::Offset {
                group,
                tp,
                committed,
            } => {
                out.text(group);
                out.topic(tp.topic);
                out.number(tp.partition.into());
                out.signed(committed.offset);
                out.optional(committed.leader_epoch.map(i64::from));
                out.signed(committed.at_ms);
                out.text(&committed.metadata);
            }
            Record::OffsetGone {
                group,
                topic,
                partition,
            } => {
                out.text(group);
                out.topic(*topic);
                out.optional(partition.map(i64::from));
            }
            Record::GroupGone { group } => out.text(group),
            Record::Revision(revision) => out.number(*revision),
            Record::Mark | Record::ImageBegin | Record::ImageEnd => {}
        }
        out.0
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Group { .. } => 1,
            Record::Member { .. } => 2,
            Record::MemberGone { .. } => 3,
            Record::Grant { .. } => 4,
            Record::Offset { .. } => 5,
            Record::OffsetGone { .. } => 6,
            Record::GroupGone { .. } => 7,
            Record::Revision(_) => 8,
            Record::Mark => 9,
            Record::ImageBegin => 10,
            Record::ImageEnd => 11,
        }
    }

    /// The record, and whether it is part of an image.
    ///
    /// # Errors
    /// [`Malformed`]; never more memory than the bytes are long.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Record, bool)> {
        let [version, kind, rest @ ..] = bytes else {
            return Err(Malformed::Short);
        };
        if *version != VERSION {
            return Err(Malformed::Version(*version));
        }
        let mut input = Reader(rest);
        let record = match kind & !IN_IMAGE {
            1 => Record::Group {
                group: input.text()?,
                epoch: input.signed()?,
                assignor: input.assignor()?,
                empty_since_ms: input.optional()?,
            },
            2 => Record::Member {
                group: input.text()?,
                member: Box::new(input.member()?),
            },
            3 => Record::MemberGone {
                group: input.text()?,
                member: input.text()?,
            },
            4 => Record::Grant {
                group: input.text()?,
                member: input.text()?,
                epoch: input.signed()?,
                added: input.parts()?,
                removed: input.parts()?,
            },
            5 => Record::Offset {
                group: input.text()?,
                tp: Tp {
                    topic: input.topic()?,
                    partition: input.partition()?,
                },
                committed: input.committed()?,
            },
            6 => Record::OffsetGone {
                group: input.text()?,
                topic: input.topic()?,
                partition: match input.optional()? {
                    None => None,
                    Some(number) => Some(partition(number)?),
                },
            },
            7 => Record::GroupGone {
                group: input.text()?,
            },
            8 => Record::Revision(input.number()?),
            9 => Record::Mark,
            10 => Record::ImageBegin,
            11 => Record::ImageEnd,
            unknown => return Err(Malformed::Kind(unknown)),
        };
        Ok((record, kind & IN_IMAGE != 0))
    }
}

fn partition(number: i64) -> Result<u32> {
    let number = u32::try_from(number).ok();
    let number = number.filter(|number| *number < PARTITIONS_MAX);
    number.ok_or(Malformed::Field("partition"))
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)) as u64);
    }

    fn optional(&mut self, value: Option<i64>) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            self.signed(value);
        }
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn optional_text(&mut self, text: Option<&str>) {
        self.0.push(u8::from(text.is_some()));
        if let Some(text) = text {
            self.text(text);
        }
    }

    fn topic(&mut self, topic: TopicId) {
        self.0.extend_from_slice(&topic.0.to_be_bytes());
    }

    /// Numbers as differences: a run costs a byte each.
    fn parts(&mut self, parts: &Parts) {
        self.number(parts.topics().count() as u64);
        for (topic, numbers) in parts.topics() {
            self.topic(topic);
            self.number(numbers.len() as u64);
            let mut before = 0;
            for number in numbers {
                self.number(u64::from(number - before));
                before = *number;
            }
        }
    }

    fn member(&mut self, member: &MemberRecord) {
        self.text(&member.id);
        self.optional_text(member.instance.as_deref());
        self.text(&member.client_id);
        self.text(&member.rack);
        self.number(member.topics.len() as u64);
        for topic in &member.topics {
            self.text(topic);
        }
        self.optional_text(member.pattern.as_deref());
        self.signed(member.session_ms);
        self.signed(member.rebalance_ms);
        self.signed(member.poll_ms);
        self.signed(member.epoch);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Field("number"))
    }

    fn signed(&mut self) -> Result<i64> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Field("flag")),
        }
    }

    fn optional(&mut self) -> Result<Option<i64>> {
        Ok(match self.flag()? {
            true => Some(self.signed()?),
            false => None,
        })
    }

    fn str(&mut self) -> Result<&'a str> {
        let len = usize::try_from(self.number()?).map_err(|_| Malformed::Short)?;
        let bytes = self.bytes(len)?;
        std::str::from_utf8(bytes).map_err(|_| Malformed::Field("text"))
    }

    fn text(&mut self) -> Result<Arc<str>> {
        self.str().map(Arc::from)
    }

    fn topic(&mut self) -> Result<TopicId> {
        let bytes = self.bytes(16)?.try_into().map_err(|_| Malformed::Short)?;
        Ok(TopicId(u128::from_be_bytes(bytes)))
    }

    fn partition(&mut self) -> Result<u32> {
        let number = i64::try_from(self.number()?);
        partition(number.map_err(|_| Malformed::Field("partition"))?)
    }

    fn assignor(&mut self) -> Result<Assignor> {
        let code = self.number()?;
        let mut all = Assignor::ALL.into_iter();
        let known = all.find(|assignor| assignor_code(*assignor) == code);
        known.ok_or(Malformed::Field("assignor"))
    }

    fn parts(&mut self) -> Result<Parts> {
        let mut parts = Parts::default();
        for _ in 0..self.number()? {
            let topic = self.topic()?;
            let mut at = 0_u64;
            for _ in 0..self.number()? {
                at = at.saturating_add(self.number()?);
                let partition = partition(i64::try_from(at).unwrap_or(i64::MAX))?;
                parts.insert(Tp { topic, partition });
            }
        }
        Ok(parts)
    }

    fn committed(&mut self) -> Result<Committed> {
        Ok(Committed {
            offset: self.signed()?,
            leader_epoch: match self.optional()? {
                None => None,
                Some(epoch) => {
                    Some(i32::try_from(epoch).map_err(|_| Malformed::Field("leader epoch"))?)
                }
            },
            at_ms: self.signed()?,
            metadata: self.str()?.into(),
        })
    }

    fn member(&mut self) -> Result<MemberRecord> {
        Ok(MemberRecord {
            id: self.text()?,
            instance: match self.flag()? {
                true => Some(self.text()?),
                false => None,
            },
            client_id: self.text()?,
            rack: self.text()?,
            topics: {
                let mut topics = Vec::new();
                for _ in 0..self.number()? {
                    topics.push(self.str()?.to_owned());
                }
                topics
            },
            pattern: match self.flag()? {
                true => Some(self.str()?.to_owned()),
                false => None,
            },
            session_ms: self.signed()?,
            rebalance_ms: self.signed()?,
            poll_ms: self.signed()?,
            epoch: self.signed()?,
        })
    }
}
