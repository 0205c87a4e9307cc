//! Which streams from other brokers are live: one for each sender and lane.
//!
//! A newer stream ends the one it replaces, which is often one whose connection died unnoticed. A sender of an earlier
//! boot of the same directory is no restart but a copy: it is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use timberline_proto::error::{ApiError, Reason};
use tokio::sync::Notify;
use uuid::Uuid;

use super::hello::{Hello, LaneId};

/// All live streams. Bounded by the brokers that the handler lets in, times lanes.
#[derive(Default)]
pub(super) struct Sessions {
    brokers: Mutex<BTreeMap<i32, Incarnation>>,
}

/// The streams of one boot of one directory.
struct Incarnation {
    directory: Uuid,
    boot: u64,
    lanes: BTreeMap<LaneId, Arc<Notify>>,
}

impl Incarnation {
    fn end(&self) {
        for ended in self.lanes.values() {
            ended.notify_one();
        }
    }
}

/// A live stream, until it is dropped.
pub(super) struct Session {
    sessions: Arc<Sessions>,
    broker_id: i32,
    lane: LaneId,
    /// Rung when another took its place.
    pub(super) replaced: Arc<Notify>,
}

impl Sessions {
    /// Enters a stream whose hello was accepted.
    ///
    /// # Errors
    /// `DUPLICATE_BROKER` for an earlier boot of a directory that is connected.
    pub(super) fn begin(self: &Arc<Self>, hello: &Hello) -> Result<Session, ApiError> {
        let mut brokers = self.brokers.lock();
        let incarnation = brokers
            .entry(hello.broker_id)
            .or_insert_with(|| Incarnation {
                directory: hello.directory,
                boot: hello.boot,
                lanes: BTreeMap::new(),
            });
        let same_directory = incarnation.directory == hello.directory;
        if same_directory && hello.boot < incarnation.boot {
            return Err(ApiError::new(
                Reason::DuplicateBroker,
                format!(
                    "broker {} is connected from boot {} of this data directory, this is boot {}: one of them runs on a copy",
                    hello.broker_id, incarnation.boot, hello.boot
                ),
            ));
        }
        if !same_directory || hello.boot > incarnation.boot {
            incarnation.end();
            *incarnation = Incarnation {
                directory: hello.directory,
                boot: hello.boot,
                lanes: BTreeMap::new(),
            };
        }
        let replaced = Arc::new(Notify::new());
        if let Some(older) = incarnation.lanes.insert(hello.lane, Arc::clone(&replaced)) {
            older.notify_one();
        }
        Ok(Session {
            sessions: Arc::clone(self),
            broker_id: hello.broker_id,
            lane: hello.lane,
            replaced,
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut brokers = self.sessions.brokers.lock();
        let Some(incarnation) = brokers.get_mut(&self.broker_id) else {
            return;
        };
        let mine = incarnation
            .lanes
            .get(&self.lane)
            .is_some_and(|ended| Arc::ptr_eq(ended, &self.replaced));
        if mine {
            incarnation.lanes.remove(&self.lane);
        }
        if incarnation.lanes.is_empty() {
            brokers.remove(&self.broker_id);
        }
    }
}
