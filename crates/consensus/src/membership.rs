//! Who belongs to a group, and how that changes (Raft section 4.3, joint consensus).
//!
//! A configuration entry carries the changes *and* the membership that results, so that whoever reads the log needs no
//! history: the newest entry says it all. It also carries the metadata's revision that asked for it.

use bytes::Bytes;

use crate::error::Malformed;
use crate::message::NodeId;

/// Version of the encoding.
const VERSION: u8 = 1;
/// Most members of one group, in all roles together; a bound for decoding.
pub const MEMBERS_MAX: usize = 64;

/// A replica and the broker that hosts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The replica.
    pub node: NodeId,
    /// Its broker.
    pub broker: i32,
}

/// The members of a group, each list in the order in which successors stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those whose majority commits; while a change is under way the incoming ones.
    pub voters: Vec<Member>,
    /// The voters before the change, whose majority is needed too while it is under way; else empty.
    pub outgoing: Vec<Member>,
    /// Replicas that follow without a vote.
    pub learners: Vec<Member>,
    /// Outgoing voters that become learners when the change ends.
    pub learners_next: Vec<Member>,
}

impl Membership {
    /// These voters and nobody else.
    pub fn of_voters(voters: Vec<Member>) -> Membership {
        Membership {
            voters,
            ..Membership::default()
        }
    }

    /// Whether a change of voters is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Everybody, each once.
    pub fn members(&self) -> Vec<Member> {
        let mut all: Vec<Member> = Vec::new();
        let lists = [&self.voters, &self.outgoing, &self.learners];
        for member in lists.into_iter().flatten() {
            if !all.contains(member) {
                all.push(*member);
            }
        }
        all
    }

    /// The broker of a member.
    pub fn broker_of(&self, node: NodeId) -> Option<i32> {
        let lists = [&self.voters, &self.outgoing, &self.learners];
        let mut members = lists.into_iter().flatten();
        let member = members.find(|member| member.node == node);
        member.map(|member| member.broker)
    }

    /// Whether the replica has a vote now.
    pub fn is_voter(&self, node: NodeId) -> bool {
        let mut voters = self.voters.iter().chain(&self.outgoing);
        voters.any(|member| member.node == node)
    }
}

/// One change of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Give it a vote, whether or not it is there.
    AddVoter(Member),
    /// Let it follow without a vote; a voter loses its vote.
    AddLearner(Member),
    /// It is no member any more.
    Remove(NodeId),
}

/// A configuration entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Revision of the metadata that asked for it; a lower one than the last is refused.
    pub revision: u64,
    /// What changes; empty: the joint configuration ends.
    pub changes: Vec<Change>,
    /// The members once the entry is applied.
    pub result: Membership,
}

impl ConfigEntry {
    /// The first entry of a group: its founding members.
    pub fn founding(voters: Vec<Member>) -> ConfigEntry {
        ConfigEntry {
            revision: 0,
            changes: voters.iter().copied().map(Change::AddVoter).collect(),
            result: Membership::of_voters(voters),
        }
    }

    /// The entry's payload.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.push(self.changes.len() as u8);
        for change in &self.changes {
            let (kind, member) = match *change {
                Change::AddVoter(member) => (1, member),
                Change::AddLearner(member) => (2, member),
                Change::Remove(node) => (3, Member { node, broker: 0 }),
            };
            out.push(kind);
            put_member(&mut out, member);
        }
        let result = &self.result;
        for list in [
            &result.voters,
            &result.outgoing,
            &result.learners,
            &result.learners_next,
        ] {
            out.push(list.len() as u8);
            for member in list {
                put_member(&mut out, *member);
            }
        }
        out.into()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<ConfigEntry, Malformed> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return Err(Malformed("version of a configuration entry"));
        }
        let revision = u64::from_le_bytes(reader.take()?);
        let mut changes = Vec::new();
        for _ in 0..reader.count()? {
            let (kind, member) = (reader.u8()?, reader.member()?);
            changes.push(match kind {
                1 => Change::AddVoter(member),
                2 => Change::AddLearner(member),
                3 => Change::Remove(member.node),
                _ => return Err(Malformed("kind of a membership change")),
            });
        }
        let result = Membership {
            voters: reader.members()?,
            outgoing: reader.members()?,
            learners: reader.members()?,
            learners_next: reader.members()?,
        };
        if !reader.0.is_empty() {
            return Err(Malformed("bytes behind a configuration entry"));
        }
        Ok(ConfigEntry {
            revision,
            changes,
            result,
        })
    }
}

fn put_member(out: &mut Vec<u8>, member: Member) {
    out.extend_from_slice(&member.node.to_le_bytes());
    out.extend_from_slice(&member.broker.to_le_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed("short configuration entry"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take::<1>()?[0])
    }

    fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::from(self.u8()?);
        if count > MEMBERS_MAX {
            return Err(Malformed("too many members"));
        }
        Ok(count)
    }

    fn member(&mut self) -> Result<Member, Malformed> {
        let node = u64::from_le_bytes(self.take()?);
        if node == 0 {
            return Err(Malformed("member 0"));
        }
        Ok(Member {
            node,
            broker: i32::from_le_bytes(self.take()?),
        })
    }

    fn members(&mut self) -> Result<Vec<Member>, Malformed> {
        (0..self.count()?).map(|_| self.member()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64) -> Member {
        Member {
            node,
            broker: node as i32 * 10,
        }
    }

    fn sample() -> ConfigEntry {
        ConfigEntry {
            revision: 77,
            changes: vec![
                Change::AddVoter(member(4)),
                Change::AddLearner(member(5)),
                Change::Remove(1),
            ],
            result: Membership {
                voters: vec![member(2), member(3), member(4)],
                outgoing: vec![member(1), member(2), member(3)],
                learners: vec![member(5)],
                learners_next: vec![],
            },
        }
    }

    #[test]
    fn an_entry_comes_back() {
        for entry in [sample(), ConfigEntry::founding(vec![member(1), member(2)])] {
            assert_eq!(ConfigEntry::decode(&entry.encode()), Ok(entry));
        }
    }

    #[test]
    fn truncated_and_changed_bytes_are_refused_or_another_entry() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(ConfigEntry::decode(&bytes[..len]).is_err());
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(ConfigEntry::decode(&longer).is_err());
        for at in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[at] ^= 0xff;
            // No panic and no unbounded allocation is what counts here.
            let _ = ConfigEntry::decode(&bad);
        }
    }

    #[test]
    fn members_are_listed_once() {
        let members = sample().result.members();
        assert_eq!(
            members,
            [member(2), member(3), member(4), member(1), member(5)]
        );
        assert_eq!(sample().result.broker_of(1), Some(10));
        assert!(sample().result.is_voter(1));
        assert!(!sample().result.is_voter(5));
    }
}
