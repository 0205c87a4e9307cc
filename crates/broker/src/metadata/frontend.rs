//! Changes of the metadata: checked, proposed, and answered when they are committed and applied here.
//!
//! Changes are pipelined: each is checked against a table that has all earlier proposals in it, so that many callers
//! share a sync. When a proposal is refused, what was planned on top of it may not fit; the table of proposals is then
//! made anew from the committed one as soon as nothing is under way. An image is made at such a moment only, of the
//! committed table: it never holds what may yet be refused. Whether a change took place is read off the
//! committed table by its request id, never guessed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use timberline_consensus::{ConfigEntry, Member};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, metadata_command::Command};
use timberline_storage::Log;
use tokio::sync::{Notify, Semaphore, oneshot};
use uuid::Uuid;

use super::backend::{Committed, METADATA_REPLICA};
use super::plan::{self, Bounds, PRODUCER_IDS_RESERVED};
use super::table::{INDEX_UNKNOWN, Table};
use crate::cluster::{Cluster, METADATA};
use crate::errors;
use crate::partition::Directory;
use crate::shard::{Shards, Work};

/// Changes under way at a time; more wait. Well below `REQUESTS_REMEMBERED`, by which their outcome is read.
const CHANGES_MAX: usize = 1024;
/// A change whose outcome is not known by then is answered with TIMEOUT.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call waits for this broker's table to show what another one has changed.
const SHOW_TIMEOUT: Duration = Duration::from_secs(5);

/// The one way to change the metadata, and to look at it.
pub(crate) struct Frontend {
    committed: Arc<Committed>,
    cluster: Arc<Cluster>,
    log: Arc<Log>,
    shards: Arc<Shards>,
    directory: Arc<Directory>,
    pub(crate) bounds: Bounds,
    image_commands: usize,
    pipeline: Mutex<Pipeline>,
    /// Rung whenever a change ends.
    ended: Notify,
    slots: Semaphore,
    producer_ids: tokio::sync::Mutex<std::ops::Range<i64>>,
}

struct Pipeline {
    /// The committed table with everything proposed on top.
    ahead: Table,
    under_way: usize,
    /// A proposal was refused: `ahead` is wrong until it is made anew.
    stale: bool,
    /// The term that `ahead` is of; others may have proposed in between.
    term: u64,
}

impl Frontend {
    pub(crate) fn new(
        committed: Arc<Committed>,
        cluster: Arc<Cluster>,
        log: Arc<Log>,
        shards: Arc<Shards>,
        directory: Arc<Directory>,
        bounds: Bounds,
        image_commands: u64,
    ) -> Arc<Frontend> {
        let ahead = committed.table.read().clone();
        Arc::new(Frontend {
            committed,
            cluster,
            log,
            shards,
            directory,
            bounds,
            image_commands: image_commands as usize,
            pipeline: Mutex::new(Pipeline {
                ahead,
                under_way: 0,
                stale: false,
                term: 0,
            }),
            ended: Notify::new(),
            slots: Semaphore::new(CHANGES_MAX),
            producer_ids: tokio::sync::Mutex::new(0..0),
        })
    }

    /// The committed table. Hold it shortly.
    pub(crate) fn table(&self) -> parking_lot::RwLockReadGuard<'_, Table> {
        self.committed.table.read()
    }

    /// Revision of the committed table, and a way to wait for the next.
    pub(crate) fn revisions(&self) -> tokio::sync::watch::Receiver<u64> {
        self.committed.applied.subscribe()
    }

    /// Whether the metadata is led here, and what was committed before is known.
    pub(crate) fn is_controller(&self) -> bool {
        let lead = self.cluster.metadata_lead();
        lead.here && lead.settled
    }

    /// Waits, not for ever, until the committed table has this revision.
    pub(crate) async fn shows(&self, revision: u64) {
        let mut applied = self.committed.applied.subscribe();
        let wait = applied.wait_for(|index| *index >= revision);
        let _ = tokio::time::timeout(SHOW_TIMEOUT, wait).await;
    }

    /// Replicas on disk that the metadata does not know. Without a controller the metadata may have more to tell: none.
    pub(crate) fn quarantined(&self) -> usize {
        match self.cluster.metadata_lead().leader {
            Some(_) => self.committed.quarantined.lock().len(),
            None => 0,
        }
    }

    /// Brokers that vote on the metadata; while the voters change, those before and after.
    pub(crate) fn voters(&self) -> Vec<Vec<i32>> {
        let (_, payload) = self.log.last_membership();
        let Ok(entry) = ConfigEntry::decode(&payload) else {
            return Vec::new();
        };
        let brokers = |members: &[Member]| members.iter().map(|member| member.broker).collect();
        let membership = &entry.result;
        let groups = [&membership.voters, &membership.outgoing];
        let groups = groups.into_iter().filter(|group| !group.is_empty());
        groups.map(|group| brokers(group)).collect()
    }

    /// Partitions hosted here, and how many of them have damaged ranges.
    pub(crate) fn partition_counts(&self) -> (usize, usize) {
        let (mut hosted, mut damaged) = (0, 0);
        for topic in self.directory.topics() {
            for partition in topic.hosted() {
                hosted += 1;
                damaged += usize::from(!partition.log.quarantined().is_empty());
            }
        }
        (hosted, damaged)
    }

    /// Plans a change against everything proposed so far, proposes it, and waits until it is applied. The answer is the
    /// topic it concerned. A change with a request id that was applied before is not planned again.
    ///
    /// # Errors
    /// Those of `plan`; of the log; `TIMEOUT`, after which the outcome is unknown and the request may be retried.
    pub(crate) async fn change(
        self: &Arc<Self>,
        request_id: &str,
        plan: impl FnOnce(&Table) -> Result<Command, ApiError>,
    ) -> Result<Uuid, ApiError> {
        plan::check_request_id(request_id)?;
        let slot = self.slots.acquire().await.map_err(|_| errors::gone())?;
        // Every change has an id: its outcome is looked up by it.
        let request = if request_id.is_empty() {
            Uuid::new_v4().to_string()
        } else {
            request_id.to_owned()
        };
        let deadline = tokio::time::Instant::now() + CHANGE_TIMEOUT;
        let work = self.attempt(&request, plan);
        let result = tokio::time::timeout_at(deadline, work).await;
        drop(slot);
        result.unwrap_or_else(|_| {
            Err(ApiError::new(
                Reason::Timeout,
                "the change was not committed in time; its outcome is unknown",
            ))
        })
    }

    async fn attempt(
        self: &Arc<Self>,
        request: &str,
        plan: impl FnOnce(&Table) -> Result<Command, ApiError>,
    ) -> Result<Uuid, ApiError> {
        let mut plan = Some(plan);
        loop {
            let lead = self.cluster.metadata_lead();
            if !lead.here || !lead.settled {
                let (topic, number) = METADATA;
                return Err(self.cluster.not_leader(topic, number, Some(lead)));
            }
            if self.pipeline.lock().term != lead.term {
                // Plans of a new term begin on all that was committed in the ones before.
                self.shows(self.log.commit_index()).await;
                let mut pipeline = self.pipeline.lock();
                pipeline.stale |= pipeline.term != lead.term;
                pipeline.term = lead.term;
            }
            let ended = self.ended.notified();
            let reply = {
                let mut pipeline = self.pipeline.lock();
                let image_due =
                    self.committed.since_image.load(Ordering::Relaxed) >= self.image_commands;
                let drained = pipeline.under_way == 0;
                if drained && pipeline.stale {
                    pipeline.ahead = self.committed.table.read().clone();
                    pipeline.stale = false;
                }
                if drained && image_due {
                    self.propose_image(&mut pipeline);
                }
                if !drained && (pipeline.stale || image_due)
                    || pipeline.ahead.applied_request(request).is_some()
                {
                    if let Some(topic) = self.committed.table.read().applied_request(request) {
                        return Ok(topic);
                    }
                    None
                } else {
                    let Some(plan) = plan.take() else {
                        return Err(errors::gone());
                    };
                    let command = plan(&pipeline.ahead)?;
                    Some(self.propose(&mut pipeline, command, request)?)
                }
            };
            match reply {
                Some(reply) => return self.outcome(reply, request).await,
                // The same request is under way, or the pipeline must drain: look again when something ended.
                None => ended.await,
            }
        }
    }

    /// Applies the command to the table ahead and hands it to the log, in this order for all.
    fn propose(
        self: &Arc<Self>,
        pipeline: &mut Pipeline,
        command: Command,
        request: &str,
    ) -> Result<oneshot::Receiver<Result<u64, ApiError>>, ApiError> {
        let command = pb::MetadataCommand {
            command: Some(command),
            request_id: request.to_owned(),
        };
        pipeline
            .ahead
            .apply(INDEX_UNKNOWN, &command)
            .map_err(|why| {
                ApiError::new(
                    Reason::Internal,
                    format!("planned a change that does not fit: {why}"),
                )
            })?;
        Ok(self.submit(pipeline, &command))
    }

    /// Hands the log an image of the committed table. Nothing is under way: the table ahead is that table.
    fn propose_image(self: &Arc<Self>, pipeline: &mut Pipeline) {
        self.committed.since_image.store(0, Ordering::Relaxed);
        let image = {
            let table = self.committed.table.read();
            let mut buried = self.committed.buried.lock();
            // Kept until the table has forgotten them: this image may be refused.
            buried.retain(|replica| table.tombstones().contains_key(replica));
            table.image(|replica| !buried.contains(&replica))
        };
        let image = pb::MetadataCommand {
            command: Some(Command::Image(image)),
            request_id: String::new(),
        };
        // What the broker made of its own table fits; if not, the next change finds the table stale.
        pipeline.stale |= pipeline.ahead.apply(INDEX_UNKNOWN, &image).is_err();
        drop(self.submit(pipeline, &image));
    }

    /// Hands the command to the log. A task of its own sees it through, whether or not the caller stays.
    fn submit(
        self: &Arc<Self>,
        pipeline: &mut Pipeline,
        command: &pb::MetadataCommand,
    ) -> oneshot::Receiver<Result<u64, ApiError>> {
        let (reply, committed) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        self.shards.submit(
            METADATA_REPLICA,
            Work::Command {
                replica: METADATA_REPLICA,
                payload: command.encode_to_vec().into(),
                reply,
            },
        );
        pipeline.under_way += 1;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.see_through(committed).await;
            {
                let mut pipeline = this.pipeline.lock();
                pipeline.under_way -= 1;
                pipeline.stale |= result.is_err();
            }
            let _ = done.send(result);
            this.ended.notify_waiters();
        });
        outcome
    }

    /// Waits for the commit and then for the table to have it.
    async fn see_through(
        &self,
        committed: oneshot::Receiver<crate::ack::Outcome>,
    ) -> Result<u64, ApiError> {
        let acked = committed
            .await
            .map_err(|_| errors::gone())?
            .map_err(|error| *error)?;
        let mut applied = self.committed.applied.subscribe();
        let wait = applied.wait_for(|index| *index >= acked.index);
        match tokio::time::timeout(CHANGE_TIMEOUT, wait).await {
            Ok(Ok(_)) => Ok(acked.index),
            _ => Err(errors::gone()),
        }
    }

    async fn outcome(
        &self,
        reply: oneshot::Receiver<Result<u64, ApiError>>,
        request: &str,
    ) -> Result<Uuid, ApiError> {
        reply.await.map_err(|_| errors::gone())??;
        self.table().applied_request(request).ok_or_else(|| {
            ApiError::new(
                Reason::Overloaded,
                "the change did not fit any more, because one before it was refused; nothing was changed",
            )
            .with_retry_after(Duration::from_millis(100))
        })
    }

    /// Checks a change without making it.
    ///
    /// # Errors
    /// Those of `plan`.
    pub(crate) fn check_only(
        &self,
        plan: impl FnOnce(&Table) -> Result<Command, ApiError>,
    ) -> Result<(), ApiError> {
        plan(&self.table()).map(drop)
    }

    /// A producer id that nobody had.
    ///
    /// # Errors
    /// Those of a change, when a new range has to be reserved.
    pub(crate) async fn next_producer_id(self: &Arc<Self>) -> Result<i64, ApiError> {
        let mut ids = self.producer_ids.lock().await;
        if let Some(id) = ids.next() {
            return Ok(id);
        }
        let mut reserved = 0..0;
        let plan = |table: &Table| {
            let first = table.next_producer_id();
            reserved = first..first + PRODUCER_IDS_RESERVED;
            Ok(Command::ReserveProducerIds(pb::ReserveProducerIds {
                next: reserved.end,
            }))
        };
        self.change("", plan).await?;
        *ids = reserved;
        ids.next().ok_or_else(errors::gone)
    }

    /// The next epoch of a producer id, granted to this caller alone; or a new id with epoch 0 when the id is used up.
    ///
    /// # Errors
    /// Those of [`plan::raise_epoch`] and of a change.
    pub(crate) async fn raise_epoch(
        self: &Arc<Self>,
        id: i64,
        epoch: i32,
    ) -> Result<(i64, i32), ApiError> {
        let possible = plan::raise_epoch(&self.table(), id, epoch)?.is_some();
        if !possible {
            return Ok((self.next_producer_id().await?, 0));
        }
        let plan = |table: &Table| {
            plan::raise_epoch(table, id, epoch)?.ok_or_else(|| {
                ApiError::new(
                    Reason::ProducerFenced,
                    format!("producer {id} can't have another epoch; take a new id"),
                )
            })
        };
        self.change("", plan).await?;
        Ok((id, epoch + 1))
    }
}
