//! The loop of one shard.

use std::collections::HashMap;
use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_storage::ReplicaId;

use super::Work;
use super::inbox::{Burst, Inbox};
use super::writer::Writer;
use crate::ack::Wakes;
use crate::metrics::Metrics;
use crate::{clock, errors};

/// Buffers for a burst larger than this are not kept for the next.
const BURST_KEPT: usize = 4096;

pub(super) struct Shard {
    inbox: Arc<Inbox>,
    /// One for each replica that this shard owns.
    writers: HashMap<ReplicaId, Writer>,
    metrics: Arc<Metrics>,
    /// Streams with new answers, woken at the end of the burst.
    wakes: Wakes,
    now_ms: i64,
}

impl Shard {
    pub(super) fn new(inbox: Arc<Inbox>, metrics: Arc<Metrics>) -> Shard {
        Shard {
            inbox,
            writers: HashMap::new(),
            metrics,
            wakes: Wakes::default(),
            now_ms: 0,
        }
    }

    pub(super) fn run(mut self) {
        let mut burst = Burst::default();
        loop {
            self.inbox.take(&mut burst);
            // The leader's time never goes back within a shard; the log sees to it across restarts.
            self.now_ms = clock::now_ms().max(self.now_ms);
            for (replica, index) in burst.durable.drain() {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.durable(index, &self.metrics, &mut self.wakes);
                }
            }
            for work in burst.work.drain(..) {
                self.perform(work);
            }
            if let Some(why) = burst.poisoned.take() {
                let error = ApiError::new(Reason::StoragePoisoned, why);
                self.fail_pending(&error);
            }
            self.wakes.wake();
            if burst.stop {
                self.fail_pending(&errors::draining());
                self.wakes.wake();
                return;
            }
            if burst.work.capacity() > BURST_KEPT {
                burst.work = Vec::new();
            }
        }
    }

    fn perform(&mut self, work: Work) {
        let Shard {
            writers,
            metrics,
            wakes,
            now_ms,
            ..
        } = self;
        match work {
            Work::Batch {
                batch,
                log_append_time,
                ticket,
            } => match writers.get_mut(&ticket.partition().replica) {
                Some(writer) => {
                    writer.write(batch, log_append_time, ticket, *now_ms, metrics, wakes)
                }
                None => {
                    let error = crate::metadata::plan::unknown_topic(ticket.partition().topic);
                    ticket.complete(Err(Box::new(error)), metrics, wakes);
                }
            },
            Work::Command {
                replica,
                payload,
                reply,
            } => match writers.get_mut(&replica) {
                Some(writer) => writer.command(payload, reply, *now_ms),
                None => drop(reply),
            },
            Work::Trim {
                replica,
                before,
                reply,
            } => match writers.get_mut(&replica) {
                Some(writer) => writer.trim(before, reply, *now_ms),
                None => drop(reply),
            },
            Work::Adopt {
                group,
                partition,
                on_commit,
            } => {
                let replica = partition.replica;
                writers.insert(replica, Writer::new(group, partition, on_commit));
            }
            Work::Release { replica, then } => {
                if let Some(mut writer) = writers.remove(&replica) {
                    let error = crate::metadata::plan::unknown_topic(writer.topic());
                    writer.fail_pending(&error, metrics, wakes);
                }
                then();
            }
            Work::Barrier(done) => drop(done),
            Work::Housekeep => {
                for writer in writers.values_mut() {
                    writer.housekeep(*now_ms);
                }
            }
        }
    }

    fn fail_pending(&mut self, error: &ApiError) {
        for writer in self.writers.values_mut() {
            writer.fail_pending(error, &self.metrics, &mut self.wakes);
        }
    }
}
