//! Membership: the payload of the last config entry, opaque here, and the entry's index.
//!
//! It is kept as of the committed place, with the config entries behind that apart: a truncation drops those. It is
//! not derived data, since the entry's file may go; it is saved with seals and checkpoints.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::codec::{Malformed, Put, Reader};

/// Longest payload of a config entry, bytes.
pub const CONFIG_LEN_MAX: usize = 64 << 10;
/// Config entries that may be uncommitted at a time. Raft has one, or a few after changes of the leader.
pub(crate) const CONFIGS_UNCOMMITTED_MAX: usize = 1024;

/// A config entry's index and payload; `(0, empty)` before any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) index: u64,
    pub(crate) payload: Bytes,
}

impl Membership {
    /// Nothing at all before the first config entry; otherwise the index, then the payload to the end.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.index > 0 {
            out.u64(self.index);
            out.raw(&self.payload);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Membership, Malformed> {
        if bytes.is_empty() {
            return Ok(Membership::default());
        }
        let mut reader = Reader::new(bytes);
        let index = reader.u64()?;
        if index == 0 {
            return Err(Malformed("membership of no entry"));
        }
        Ok(Membership {
            index,
            payload: Bytes::copy_from_slice(reader.rest()),
        })
    }
}

/// The memberships of a log: the committed one, and config entries behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memberships {
    pub(crate) committed: Membership,
    uncommitted: VecDeque<Membership>,
}

impl Memberships {
    pub(crate) fn new(committed: Membership) -> Memberships {
        Memberships {
            committed,
            uncommitted: VecDeque::new(),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.uncommitted.len() < CONFIGS_UNCOMMITTED_MAX
    }

    /// A config entry is appended.
    pub(crate) fn push(&mut self, index: u64, payload: Bytes) {
        self.uncommitted.push_back(Membership { index, payload });
    }

    /// Entries up to the index are committed. Gives whether that makes another membership the committed one.
    pub(crate) fn commit(&mut self, index: u64) -> bool {
        let before = self.committed.index;
        while self.uncommitted.front().is_some_and(|m| m.index <= index) {
            if let Some(membership) = self.uncommitted.pop_front() {
                self.committed = membership;
            }
        }
        self.committed.index != before
    }

    /// Entries behind the index are gone.
    pub(crate) fn cut(&mut self, index: u64) {
        while self.uncommitted.back().is_some_and(|m| m.index > index) {
            self.uncommitted.pop_back();
        }
    }

    /// Of the newest config entry.
    pub(crate) fn last(&self) -> &Membership {
        self.uncommitted.back().unwrap_or(&self.committed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_one_follows_the_commit_and_the_last_one_the_log() {
        let mut all = Memberships::default();
        assert_eq!(*all.last(), Membership::default());
        for index in [3, 7, 9] {
            all.push(index, Bytes::from(format!("as of {index}")));
        }
        all.commit(7);
        assert_eq!((all.committed.index, all.last().index), (7, 9));
        all.cut(8);
        assert_eq!((all.committed.index, all.last().index), (7, 7));
        assert_eq!(all.last().payload, "as of 7");
    }

    #[test]
    fn an_encoded_one_comes_back() {
        for (index, payload) in [(0, ""), (4, ""), (5, "voters")] {
            let payload = Bytes::from_static(payload.as_bytes());
            let one = Membership { index, payload };
            assert_eq!(Membership::decode(&one.encode()), Ok(one));
        }
        assert!(Membership::decode(&[1, 2]).is_err());
        assert!(Membership::decode(&[0; 9]).is_err());
    }
}
