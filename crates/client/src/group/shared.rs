//! What a group's consumer and its driver share: changes of what is read, and whether the application asks for records.
//!
//! The reader belongs to the application's side alone. The driver puts what is to change into the mailbox, and the consumer looks
//! there before it hands anything out; so nothing of a partition comes out once the driver knows that its stop was seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::committer::Reply;
use super::core::Tp;
use super::types::{OffsetCommit, TopicPartition};
use crate::consumer::reader::Begin;
use crate::error::{Error, Result};

/// What the application's side asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Commit {
        items: Vec<OffsetCommit>,
        reply: Reply,
    },
    Subscribe {
        topics: Vec<String>,
        pattern: Option<String>,
    },
    /// The stops with this ticket were seen.
    Stopped(u64),
    /// Become a member again, after the membership ended.
    JoinAgain,
    /// Leave; nothing is read any more.
    Close { reply: oneshot::Sender<Result<()>> },
}

pub(crate) type Commands = mpsc::UnboundedSender<Command>;

/// What is to change about one partition: first it is stopped, then it is started.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) stop: Option<TopicPartition>,
    pub(crate) start: Option<(Begin, Option<Error>)>,
}

/// Bounded by the partitions that the member was told of.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) changes: BTreeMap<Tp, Change>,
    /// To be answered once the changes are made.
    pub(crate) tickets: Vec<u64>,
    /// The membership is over.
    pub(crate) ended: Option<Error>,
}

#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    full: AtomicBool,
    /// Wakes whoever waits for a record.
    pub(crate) wake: Notify,
    pub(crate) polls: Polls,
}

impl Mailbox {
    pub(crate) fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.mail.lock());
        self.full.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// What is in it, if there is anything.
    pub(crate) fn take(&self) -> Option<Mail> {
        if !self.full.load(Ordering::Acquire) || !self.full.swap(false, Ordering::AcqRel) {
            return None;
        }
        Some(std::mem::take(&mut self.mail.lock()))
    }
}

/// Whether the application asks for records.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    /// Written by one task only.
    count: AtomicU64,
    waiting: AtomicBool,
}

impl Polls {
    /// The application asks. Returns what says that it waits, for as long as it does.
    pub(crate) fn begin(&self) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.store(true, Ordering::Relaxed);
        Waiting(self)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// As long as it lives the application waits for a record.
pub(crate) struct Waiting<'a>(&'a Polls);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.store(false, Ordering::Relaxed);
    }
}
