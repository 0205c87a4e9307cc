//! Who leads, who is in sync, who lives: soft state, as calls and the planner see it. It is never in the metadata log.

use std::collections::{BTreeSet, HashMap};

use futures::future::BoxFuture;
use timberline_proto::error::ApiError;
use uuid::Uuid;

use super::table::Table;

/// What this broker knows of leaders and brokers, and the one way to move a leadership.
pub(crate) trait Leadership: Send + Sync {
    /// Term and broker of the leader that is known with the highest term; `None` when none is known now.
    fn leader_of(&self, topic: Uuid, partition: i32) -> Option<(u64, i32)>;

    /// Brokers whose replica is in sync, the leader's included; only the leader until it has said more, empty without one.
    fn in_sync(&self, topic: Uuid, partition: i32) -> Vec<i32>;

    /// Brokers that are connected, this one included.
    fn live_brokers(&self) -> BTreeSet<i32>;

    /// The broker that leads the metadata group, if it is known.
    fn controller(&self) -> Option<i32>;

    /// Hands a partition to the replica on `to`; done when that one leads.
    ///
    /// # Errors
    /// `NOT_LEADER` or `NO_LEADER` when nobody here can hand it over; `NOT_IN_SYNC`; `TIMEOUT`.
    fn transfer(&self, topic: Uuid, partition: i32, to: i32)
    -> BoxFuture<'_, Result<(), ApiError>>;
}

/// The leaders of all partitions that have one.
pub(crate) fn leaders(table: &Table, leadership: &dyn Leadership) -> HashMap<(Uuid, i32), i32> {
    let partitions = table.partitions();
    let known = partitions.filter_map(|(topic, number, _)| {
        let (_, broker) = leadership.leader_of(topic.id, number)?;
        Some(((topic.id, number), broker))
    });
    known.collect()
}
