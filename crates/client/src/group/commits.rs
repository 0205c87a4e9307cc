//! Commits on their way, without I/O: one request at a time; what comes meanwhile collects, newest position per partition.
//!
//! So commits of a partition never overtake each other, however often they are sent again. Every call gets one answer: the first
//! error among its partitions, or that all were committed.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use timberline_proto::error::{ApiError, Reason};

use super::committer::Reply;
use super::core::Tp;
use crate::backoff::Backoff;
use crate::error::Error;

/// What is to be committed for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: i64,
    pub(crate) metadata: String,
    pub(crate) rewind: bool,
}

struct Item {
    entry: Entry,
    /// Who waits for it.
    calls: Vec<u64>,
}

struct Call {
    left: usize,
    failed: Option<Error>,
    reply: Reply,
    deadline: Instant,
}

pub(crate) struct Commits {
    queued: BTreeMap<Tp, Item>,
    under_way: Option<BTreeMap<Tp, Item>>,
    calls: HashMap<u64, Call>,
    next_call: u64,
    /// What the group has, as far as this member knows.
    committed: HashMap<Tp, i64>,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Commits {
    pub(crate) fn new(backoff: Backoff) -> Commits {
        Commits {
            queued: BTreeMap::new(),
            under_way: None,
            calls: HashMap::new(),
            next_call: 0,
            committed: HashMap::new(),
            backoff,
            not_before: None,
        }
    }

    /// What the group is known to have committed.
    pub(crate) fn committed(&self, tp: &Tp) -> Option<i64> {
        self.committed.get(tp).copied()
    }

    /// What the group has, heard of elsewhere; `None`: nothing is known.
    pub(crate) fn know(&mut self, tp: Tp, offset: Option<i64>) {
        match offset {
            Some(offset) => self.committed.insert(tp, offset),
            None => self.committed.remove(&tp),
        };
    }

    /// Commits without anybody who waits.
    pub(crate) fn add(&mut self, entries: impl IntoIterator<Item = (Tp, Entry)>) {
        for (tp, entry) in entries {
            self.queue(tp, entry, None);
        }
    }

    /// Commits for a caller, who hears of it by the deadline.
    pub(crate) fn call(&mut self, mut entries: Vec<(Tp, Entry)>, reply: Reply, deadline: Instant) {
        entries.retain(|(tp, entry)| !self.is_known(tp, entry));
        if entries.is_empty() {
            return reply.send(Ok(()));
        }
        let id = self.next_call;
        self.next_call += 1;
        let call = Call {
            left: entries.len(),
            failed: None,
            reply,
            deadline,
        };
        self.calls.insert(id, call);
        for (tp, entry) in entries {
            self.queue(tp, entry, Some(id));
        }
    }

    /// The group stands there, and nothing else is on its way.
    fn is_known(&self, tp: &Tp, entry: &Entry) -> bool {
        let same = self.committed(tp) == Some(entry.offset);
        same && entry.metadata.is_empty() && self.is_clear(std::iter::once(tp))
    }

    fn queue(&mut self, tp: Tp, entry: Entry, call: Option<u64>) {
        match self.queued.get_mut(&tp) {
            Some(item) => {
                // Who went back and forth went back: the first of both may be what the group has.
                let rewind = entry.rewind || item.entry.rewind;
                item.entry = Entry { rewind, ..entry };
                item.calls.extend(call);
            }
            None => {
                let calls = call.into_iter().collect();
                self.queued.insert(tp, Item { entry, calls });
            }
        }
    }

    /// Whether nothing of these waits or is under way.
    pub(crate) fn is_clear<'a>(&self, mut parts: impl Iterator<Item = &'a Tp>) -> bool {
        let under_way = self.under_way.as_ref();
        parts.all(|tp| {
            !self.queued.contains_key(tp) && under_way.is_none_or(|one| !one.contains_key(tp))
        })
    }

    /// The moment at which there is something to do, while there is somebody to send to or not.
    pub(crate) fn next_wake(&self, can_send: bool) -> Option<Instant> {
        let deadline = self.calls.values().map(|call| call.deadline).min();
        let waits = can_send && self.under_way.is_none() && !self.queued.is_empty();
        let retry = self.not_before.filter(|_| waits);
        deadline.into_iter().chain(retry).min()
    }

    /// What to send now, if anything; the answer comes by [`answered`](Self::answered) or [`failed`](Self::failed).
    pub(crate) fn next_request(&mut self, now: Instant) -> Option<Vec<(Tp, Entry)>> {
        let waits = self.not_before.is_some_and(|at| at > now);
        if waits || self.under_way.is_some() || self.queued.is_empty() {
            return None;
        }
        let items = std::mem::take(&mut self.queued);
        let request = items.iter().map(|(tp, item)| (*tp, item.entry.clone()));
        let request = request.collect();
        self.under_way = Some(items);
        Some(request)
    }

    /// The request was answered, item by item.
    pub(crate) fn answered(&mut self, results: Vec<(Tp, Option<ApiError>)>) {
        self.backoff.reset();
        self.not_before = None;
        let mut items = self.under_way.take().unwrap_or_default();
        for (tp, error) in results {
            let Some(item) = items.remove(&tp) else {
                continue;
            };
            match error {
                None => {
                    self.committed.insert(tp, item.entry.offset);
                    self.settle(item, None);
                }
                Some(error) => {
                    if error.reason == Some(Reason::CommitBehind) {
                        let known = error.metadata.get("committed_offset");
                        let known = known.and_then(|offset| offset.parse().ok());
                        self.know(tp, known);
                    }
                    self.settle(item, Some(error.into()));
                }
            }
        }
        for (_, item) in items {
            let message = "a commit was answered in part".to_owned();
            self.settle(item, Some(Error::Protocol { message }));
        }
    }

    /// The request failed as a whole.
    pub(crate) fn failed(&mut self, now: Instant, error: &Error) {
        let items = self.under_way.take().unwrap_or_default();
        if !error.is_retriable() {
            for (_, item) in items {
                self.settle(item, Some(error.clone()));
            }
            return;
        }
        self.not_before = Some(now + self.backoff.next_exact());
        for (tp, older) in items {
            match self.queued.get_mut(&tp) {
                Some(newer) => {
                    newer.entry.rewind |= older.entry.rewind;
                    newer.calls.extend(older.calls);
                }
                None => {
                    self.queued.insert(tp, older);
                }
            }
        }
    }

    /// These are not this member's any more.
    pub(crate) fn forget<'a>(&mut self, parts: impl IntoIterator<Item = &'a Tp>, why: &Error) {
        for tp in parts {
            self.committed.remove(tp);
            let under_way = self.under_way.as_mut().and_then(|items| items.remove(tp));
            let queued = self.queued.remove(tp);
            for item in under_way.into_iter().chain(queued) {
                self.settle(item, Some(why.clone()));
            }
        }
    }

    fn settle(&mut self, item: Item, error: Option<Error>) {
        for id in item.calls {
            let Some(call) = self.calls.get_mut(&id) else {
                continue;
            };
            call.left -= 1;
            if call.failed.is_none() {
                call.failed.clone_from(&error);
            }
            if call.left == 0
                && let Some(call) = self.calls.remove(&id)
            {
                call.reply.send(call.failed.map_or(Ok(()), Err));
            }
        }
    }

    /// Answers the calls whose time is over; what they asked for goes on.
    pub(crate) fn expire(&mut self, now: Instant, timed_out: &Error) {
        let late = self.calls.iter().filter(|(_, call)| call.deadline <= now);
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(call) = self.calls.remove(&id) {
                call.reply.send(Err(timed_out.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::error::Result;
    use crate::types::TopicId;

    fn tp(partition: i32) -> Tp {
        Tp {
            topic: TopicId([1; 16]),
            partition,
        }
    }

    fn entry(offset: i64) -> Entry {
        Entry {
            offset,
            metadata: String::new(),
            rewind: false,
        }
    }

    struct Test {
        commits: Commits,
        now: Instant,
    }

    impl Test {
        fn new() -> Test {
            let backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
            Test {
                commits: Commits::new(backoff),
                now: Instant::now(),
            }
        }

        fn call(&mut self, entries: &[(i32, i64)]) -> oneshot::Receiver<Result<()>> {
            let (reply, answer) = Reply::new(Arc::new(AtomicUsize::new(1)));
            let entries = entries.iter().map(|(at, offset)| (tp(*at), entry(*offset)));
            let deadline = self.now + Duration::from_secs(5);
            self.commits.call(entries.collect(), reply, deadline);
            answer
        }

        fn request(&mut self) -> Vec<(i32, i64)> {
            let request = self.commits.next_request(self.now).unwrap_or_default();
            let pair = |(tp, entry): (Tp, Entry)| (tp.partition, entry.offset);
            request.into_iter().map(pair).collect()
        }
    }

    #[test]
    fn one_is_under_way_and_the_newest_of_the_others_follows() {
        let mut test = Test::new();
        let mut first = test.call(&[(0, 5), (1, 7)]);
        assert_eq!(test.request(), [(0, 5), (1, 7)]);
        let mut second = test.call(&[(0, 6)]);
        let mut third = test.call(&[(0, 9)]);
        assert!(test.request().is_empty());
        assert!(!test.commits.is_clear([tp(0)].iter()));
        assert!(test.commits.is_clear([tp(2)].iter()));
        let refused = ApiError::new(Reason::NotAssigned, "gone");
        test.commits
            .answered(vec![(tp(0), None), (tp(1), Some(refused))]);
        assert_eq!(
            first.try_recv().unwrap().unwrap_err().reason(),
            Some(Reason::NotAssigned)
        );
        assert_eq!(test.commits.committed(&tp(0)), Some(5));
        assert!(second.try_recv().is_err());
        assert_eq!(test.request(), [(0, 9)]);
        test.commits.answered(vec![(tp(0), None)]);
        assert_eq!(second.try_recv().unwrap(), Ok(()));
        assert_eq!(third.try_recv().unwrap(), Ok(()));
        assert!(test.commits.is_clear([tp(0), tp(1)].iter()));
    }

    #[test]
    fn what_may_be_tried_again_is_and_newer_positions_replace_it() {
        let mut test = Test::new();
        let mut first = test.call(&[(0, 5), (1, 7)]);
        assert_eq!(test.request().len(), 2);
        let mut second = test.call(&[(0, 6)]);
        let lost = Error::Transport {
            address: "here".to_owned(),
            message: "gone".to_owned(),
        };
        test.commits.failed(test.now, &lost);
        assert!(test.request().is_empty());
        test.now = test.commits.next_wake(true).unwrap();
        assert_eq!(test.request(), [(0, 6), (1, 7)]);
        test.commits.answered(vec![(tp(0), None), (tp(1), None)]);
        assert_eq!(first.try_recv().unwrap(), Ok(()));
        assert_eq!(second.try_recv().unwrap(), Ok(()));
        let fenced: Error = ApiError::new(Reason::MemberFenced, "out").into();
        let mut third = test.call(&[(0, 8)]);
        assert_eq!(test.request().len(), 1);
        test.commits.failed(test.now, &fenced);
        assert_eq!(third.try_recv().unwrap(), Err(fenced));
        // What the group knows is not sent.
        assert_eq!(test.call(&[(0, 6)]).try_recv().unwrap(), Ok(()));
        assert!(test.request().is_empty());
        assert_eq!(test.commits.committed(&tp(0)), Some(6));
    }

    #[test]
    fn who_waits_is_told_when_the_partition_goes_or_the_time_is_over() {
        let mut test = Test::new();
        let mut first = test.call(&[(0, 5)]);
        assert_eq!(test.request().len(), 1);
        let mut second = test.call(&[(0, 6), (1, 2)]);
        let why: Error = ApiError::new(Reason::MemberFenced, "out").into();
        test.commits.forget(&[tp(0)], &why);
        assert_eq!(first.try_recv().unwrap(), Err(why.clone()));
        assert!(test.commits.is_clear([tp(0)].iter()));
        // Answered late: nobody minds.
        test.commits.answered(vec![(tp(0), None)]);
        assert_eq!(test.commits.committed(&tp(0)), None);
        assert!(second.try_recv().is_err());
        let late = Error::Timeout {
            what: "a commit".to_owned(),
            after: Duration::from_secs(5),
        };
        test.commits
            .expire(test.now + Duration::from_secs(5), &late);
        assert_eq!(second.try_recv().unwrap(), Err(late));
        assert_eq!(test.request(), [(1, 2)]);
    }

    #[test]
    fn a_step_back_on_purpose_stays_one_until_it_is_taken() {
        let mut test = Test::new();
        let back = Entry {
            rewind: true,
            ..entry(3)
        };
        test.commits.add([(tp(0), back)]);
        test.commits.add([(tp(0), entry(4))]);
        let request = test.commits.next_request(test.now).unwrap();
        assert!(request[0].1.rewind && request[0].1.offset == 4);
        let behind = ApiError::new(Reason::CommitBehind, "behind").with("committed_offset", 9);
        test.commits.answered(vec![(tp(0), Some(behind))]);
        assert_eq!(test.commits.committed(&tp(0)), Some(9));
    }
}
