//! Follows the metadata log: applies what is committed, and makes local logs what the table says.
//!
//! One thread. Replicas are created and deleted here and nowhere else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use prost::Message;
use timberline_proto::internal as pb;
use timberline_storage::{EntryKind, Log, ReplicaId, ReplicaSpec, Store};
use tokio::sync::watch;
use uuid::Uuid;

use super::table::{Effect, Rejected, Table, Topic};
use crate::Error;
use crate::group::Solo;
use crate::partition::{Directory, Partition, TopicHandle};
use crate::shard::{Shards, Work};
use crate::topic::config::{Defaults, TopicConfig};

/// The metadata log's own replica.
pub(crate) const METADATA_REPLICA: ReplicaId = ReplicaId(0);

/// What backend and frontend share.
pub(crate) struct Committed {
    /// The table as of `applied`.
    pub(crate) table: RwLock<Table>,
    /// Index of the last entry applied; also the revision that clients see.
    pub(crate) applied: watch::Sender<u64>,
    /// Replicas found on disk that the table does not know; left alone.
    pub(crate) quarantined: AtomicUsize,
    /// Tombstones that were carried out here and may leave the next image.
    pub(crate) buried: Mutex<HashSet<u64>>,
    /// Commands applied since the last image.
    pub(crate) since_image: AtomicUsize,
    inbox: Mutex<Inbox>,
    filled: Condvar,
}

#[derive(Default)]
struct Inbox {
    commands: Vec<(u64, Bytes)>,
    stop: bool,
}

impl Committed {
    pub(crate) fn new() -> Arc<Committed> {
        Arc::new(Committed {
            table: RwLock::default(),
            applied: watch::Sender::new(0),
            quarantined: AtomicUsize::new(0),
            buried: Mutex::default(),
            since_image: AtomicUsize::new(0),
            inbox: Mutex::default(),
            filled: Condvar::new(),
        })
    }

    /// A command was committed. Called by the log's shard, in order; does not block. What waits is bounded by the
    /// frontend's changes under way.
    pub(crate) fn committed(&self, index: u64, payload: Bytes) {
        self.inbox.lock().commands.push((index, payload));
        self.filled.notify_one();
    }

    /// Ends the backend's thread.
    pub(crate) fn stop(&self) {
        self.inbox.lock().stop = true;
        self.filled.notify_one();
    }

    /// Waits for commands; `None` at the end.
    fn wait(&self) -> Option<Vec<(u64, Bytes)>> {
        let mut inbox = self.inbox.lock();
        while inbox.commands.is_empty() && !inbox.stop {
            self.filled.wait(&mut inbox);
        }
        (!inbox.stop).then(|| std::mem::take(&mut inbox.commands))
    }
}

/// The backend, before it is given to its thread.
pub(crate) struct Backend {
    pub(crate) broker_id: i32,
    pub(crate) log: Arc<Log>,
    pub(crate) store: Store,
    pub(crate) committed: Arc<Committed>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) defaults: Defaults,
    /// Index of the next entry to apply.
    pub(crate) next_index: u64,
}

impl Backend {
    /// Replays the metadata log and makes local logs match. `found` are the other replicas on disk.
    ///
    /// # Errors
    /// [`Error::Metadata`] when the log can't be read or understood: then nothing is served, and nothing deleted.
    pub(crate) fn recover(&mut self, found: Vec<Arc<Log>>) -> Result<(), Error> {
        self.replay()?;
        let mut on_disk: HashMap<ReplicaId, Arc<Log>> = found
            .into_iter()
            .map(|log| (log.spec().replica, log))
            .collect();
        let topics: Vec<Arc<Topic>> = self.committed.table.read().topics().cloned().collect();
        for topic in &topics {
            self.host(topic, &mut on_disk)?;
        }
        self.settle_unknown(&on_disk);
        self.publish();
        Ok(())
    }

    /// Replicas that no topic claims: deleted if a tombstone says so, left alone otherwise.
    fn settle_unknown(&self, on_disk: &HashMap<ReplicaId, Arc<Log>>) {
        let tombstones = self.committed.table.read().tombstones().clone();
        for (replica, log) in on_disk {
            if tombstones.contains_key(&replica.0) {
                self.bury(*replica);
            } else {
                let spec = log.spec();
                tracing::warn!(%replica, topic = %spec.topic, partition = spec.partition,
                    "a replica on disk is not in the metadata; it is left alone");
                self.committed.quarantined.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Those of other brokers are theirs to carry out.
        let gone = tombstones
            .into_iter()
            .filter(|(id, broker)| {
                *broker == self.broker_id && !on_disk.contains_key(&ReplicaId(*id))
            })
            .map(|(id, _)| id);
        self.committed.buried.lock().extend(gone);
    }

    fn bury(&self, replica: ReplicaId) {
        bury(&self.store, &self.committed, replica);
    }

    /// Runs until [`Committed::stop`].
    pub(crate) fn run(mut self) {
        while let Some(commands) = self.committed.wait() {
            if let Err(error) = self.follow(commands) {
                // The table stops here; changes time out, what is hosted goes on being served.
                tracing::error!(%error, "the metadata log can't be followed any further");
                return;
            }
            self.publish();
        }
    }

    fn publish(&self) {
        self.committed.applied.send_replace(self.next_index - 1);
    }

    fn follow(&mut self, commands: Vec<(u64, Bytes)>) -> Result<(), Error> {
        for (index, payload) in commands {
            if let Some(effect) = self.apply(index, payload)? {
                self.reconcile(effect)?;
            }
            self.next_index = index + 1;
        }
        Ok(())
    }

    /// Applies what the log has to the table.
    fn replay(&mut self) -> Result<(), Error> {
        let commit = self.log.commit_index();
        if self.next_index > commit {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        let mut failed = None;
        let replayed = log.replay(self.next_index, |entry| {
            if entry.kind == EntryKind::Command
                && let Err(error) = self.apply(entry.index, entry.payload)
            {
                // Only ends the replay; the error itself goes out beside it.
                let why = timberline_storage::Error::Refused(error.to_string());
                failed = Some(error);
                return Err(why);
            }
            self.next_index = entry.index + 1;
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        replayed.map_err(|error| Error::Metadata(error.to_string()))?;
        self.next_index = self.next_index.max(commit + 1);
        Ok(())
    }

    /// Applies one command; one that does not fit has no effect.
    fn apply(&self, index: u64, payload: Bytes) -> Result<Option<Effect>, Error> {
        let command = pb::MetadataCommand::decode(payload)
            .map_err(|error| Error::Metadata(format!("entry {index}: {error}")))?;
        self.committed.since_image.fetch_add(1, Ordering::Relaxed);
        match self.committed.table.write().apply(index, &command) {
            Ok(effect) => {
                if effect == Effect::Replaced {
                    self.committed.since_image.store(0, Ordering::Relaxed);
                }
                Ok(Some(effect))
            }
            Err(Rejected::UnknownKind) => Err(Error::Metadata(format!(
                "entry {index} is of a kind this version does not know; run the newer version"
            ))),
            Err(why) => {
                tracing::debug!(index, %why, "command without effect");
                Ok(None)
            }
        }
    }

    fn reconcile(&self, effect: Effect) -> Result<(), Error> {
        match effect {
            // Written by this broker from the table it has: an image changes nothing that is hosted.
            Effect::None | Effect::Replaced | Effect::Broker { .. } => {}
            // Partitions have one replica each, and it stays where it is.
            Effect::Replicas { .. } => {}
            Effect::Grown(topic) => self.host(&topic, &mut HashMap::new())?,
            Effect::Configured(topic) => self.configure(&topic),
            Effect::Deleted(topic) => self.drop_topic(&topic),
        }
        Ok(())
    }

    /// Makes the topic's partitions that are not hosted yet. Replicas found on disk are taken out of `on_disk`.
    fn host(&self, topic: &Topic, on_disk: &mut HashMap<ReplicaId, Arc<Log>>) -> Result<(), Error> {
        let config = TopicConfig::resolve(&topic.config, &self.defaults);
        let known = self.directory.by_id(topic.id);
        let is_new = known.is_none();
        let handle =
            known.unwrap_or_else(|| TopicHandle::new(topic.id, topic.name.clone(), config.clone()));
        let mut more = Vec::new();
        for number in handle.partition_count()..topic.partitions.len() {
            let mine = topic.partitions[number].hosted_on(self.broker_id).next();
            let partition = match mine {
                Some(replica) => {
                    let spec = ReplicaSpec {
                        replica: ReplicaId(replica.id),
                        topic: topic.id,
                        partition: number as u32,
                    };
                    Some(self.open_partition(spec, &config, on_disk)?)
                }
                None => None,
            };
            more.push(partition);
        }
        handle.extend(more);
        if is_new {
            self.directory.insert(handle);
        }
        Ok(())
    }

    fn open_partition(
        &self,
        spec: ReplicaSpec,
        config: &TopicConfig,
        on_disk: &mut HashMap<ReplicaId, Arc<Log>>,
    ) -> Result<Arc<Partition>, Error> {
        let log = match on_disk.remove(&spec.replica) {
            Some(log) if *log.spec() == spec => {
                log.set_config(config.log.clone());
                log
            }
            Some(log) => {
                return Err(Error::Metadata(format!(
                    "replica {} is {:?} on disk and {spec:?} in the metadata",
                    spec.replica,
                    log.spec()
                )));
            }
            None => self.store.create_replica(spec, config.log.clone())?,
        };
        let group = Solo::lead(Arc::clone(&log));
        let partition = Partition::new(log);
        self.shards.submit(
            spec.replica,
            Work::Adopt {
                group: Box::new(group),
                partition: Arc::clone(&partition),
                on_commit: None,
            },
        );
        Ok(partition)
    }

    fn configure(&self, topic: &Topic) {
        let Some(handle) = self.directory.by_id(topic.id) else {
            return;
        };
        let config = TopicConfig::resolve(&topic.config, &self.defaults);
        for partition in handle.hosted() {
            partition.log.set_config(config.log.clone());
        }
        handle.config.store(Arc::new(config));
    }

    fn drop_topic(&self, topic: &Topic) {
        let Some(handle) = self.directory.remove(topic.id) else {
            return;
        };
        for partition in handle.hosted() {
            let (store, committed) = (self.store.clone(), Arc::clone(&self.committed));
            let replica = partition.replica;
            // The shard may have appends of it under way: the files go when it has let go.
            let then = Box::new(move || bury(&store, &committed, replica));
            self.shards.submit(replica, Work::Release { replica, then });
        }
    }
}

/// Carries a tombstone out.
fn bury(store: &Store, committed: &Committed, replica: ReplicaId) {
    match store.remove_replica(replica) {
        Ok(()) => {
            committed.buried.lock().insert(replica.0);
        }
        Err(error) => {
            tracing::warn!(%replica, %error, "removing a deleted topic's replica; tried again at the next start")
        }
    }
}

/// The metadata log's place on every broker.
pub(crate) fn metadata_spec() -> ReplicaSpec {
    ReplicaSpec {
        replica: METADATA_REPLICA,
        topic: Uuid::nil(),
        partition: 0,
    }
}
