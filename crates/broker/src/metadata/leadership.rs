//! Who leads, who is in sync, who lives: soft state, as calls and the planner see it. It is never in the metadata log.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, ready};
use timberline_proto::error::{ApiError, Reason};
use uuid::Uuid;

use super::table::Table;
use crate::partition::Directory;

/// What this broker knows of leaders and brokers, and the one way to move a leadership.
pub(crate) trait Leadership: Send + Sync {
    /// Term and broker of the leader that is known with the highest term; `None` when none is known now.
    fn leader_of(&self, topic: Uuid, partition: i32) -> Option<(u64, i32)>;

    /// Brokers whose replica is in sync, the leader's included; empty when that is not known.
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

/// One broker that leads what it hosts.
pub(crate) struct Alone {
    pub(crate) broker: i32,
    pub(crate) directory: Arc<Directory>,
}

impl Leadership for Alone {
    fn leader_of(&self, topic: Uuid, partition: i32) -> Option<(u64, i32)> {
        let handle = self.directory.by_id(topic)?;
        let hosted = handle.partition(partition).ok()?;
        let term = u64::try_from(hosted.leader_epoch()).unwrap_or(0);
        Some((term, self.broker))
    }

    fn in_sync(&self, topic: Uuid, partition: i32) -> Vec<i32> {
        let leader = self.leader_of(topic, partition);
        leader.map(|(_, broker)| broker).into_iter().collect()
    }

    fn live_brokers(&self) -> BTreeSet<i32> {
        BTreeSet::from([self.broker])
    }

    fn controller(&self) -> Option<i32> {
        Some(self.broker)
    }

    fn transfer(
        &self,
        topic: Uuid,
        partition: i32,
        to: i32,
    ) -> BoxFuture<'_, Result<(), ApiError>> {
        let result = match self.leader_of(topic, partition) {
            Some((_, leader)) if leader == to => Ok(()),
            Some(_) => Err(ApiError::new(
                Reason::NotInSync,
                format!("broker {to} has no replica of the partition that is in sync"),
            )
            .with("broker_id", to)),
            None => Err(ApiError::new(
                Reason::NoLeader,
                format!("no leader is known for partition {partition}"),
            )),
        };
        ready(result).boxed()
    }
}
