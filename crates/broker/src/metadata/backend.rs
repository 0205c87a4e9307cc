//! Follows the metadata log: applies what is committed, and makes local logs what the table says.
//!
//! One thread. Replicas are created and deleted here and nowhere else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use prost::Message;
use timberline_consensus::{ConfigEntry, Group, GroupOptions, Member, Timing};
use timberline_proto::internal as pb;
use timberline_storage::{EntryKind, HardState, Log, ReplicaId, ReplicaSpec, Store, chain_seed};
use tokio::sync::watch;
use uuid::Uuid;

use super::table::{self, Effect, Rejected, Table, Topic};
use crate::Error;
use crate::cluster::Cluster;
use crate::partition::{Directory, Partition, TopicHandle};
use crate::shard::{LogGroup, Shards, Work};
use crate::topic::config::{Defaults, TopicConfig};

/// The metadata log's own replica.
pub(crate) const METADATA_REPLICA: ReplicaId = ReplicaId(0);

/// What backend and frontend share.
pub(crate) struct Committed {
    /// The table as of `applied`.
    pub(crate) table: RwLock<Table>,
    /// Index of the last entry applied; also the revision that clients see.
    pub(crate) applied: watch::Sender<u64>,
    /// Replicas found on disk that the table does not know, or not yet; left alone.
    pub(crate) quarantined: Mutex<HashSet<ReplicaId>>,
    /// Tombstones that were carried out here and may leave the next image.
    pub(crate) buried: Mutex<HashSet<u64>>,
    /// Commands applied since the last image.
    pub(crate) since_image: AtomicUsize,
    inbox: Mutex<Inbox>,
    filled: Condvar,
}

#[derive(Default)]
struct Inbox {
    /// The log's commit index, as it was told last.
    committed: u64,
    stop: bool,
}

impl Committed {
    pub(crate) fn new() -> Arc<Committed> {
        Arc::new(Committed {
            table: RwLock::default(),
            applied: watch::Sender::new(0),
            quarantined: Mutex::default(),
            buried: Mutex::default(),
            since_image: AtomicUsize::new(0),
            inbox: Mutex::default(),
            filled: Condvar::new(),
        })
    }

    /// Entries were committed. Called by the log's shard; does not block.
    pub(crate) fn committed(&self, index: u64) {
        self.inbox.lock().committed = index;
        self.filled.notify_one();
    }

    /// Ends the backend's thread.
    pub(crate) fn stop(&self) {
        self.inbox.lock().stop = true;
        self.filled.notify_one();
    }

    /// Waits until entries from `next` on are committed; false at the end.
    fn wait(&self, next: u64) -> bool {
        let mut inbox = self.inbox.lock();
        while inbox.committed < next && !inbox.stop {
            self.filled.wait(&mut inbox);
        }
        !inbox.stop
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
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) timing: Timing,
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
        self.replay(false)?;
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
                self.committed.quarantined.lock().insert(*replica);
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
        while self.committed.wait(self.next_index) {
            if let Err(error) = self.replay(true) {
                // The table stops here; changes time out, what is hosted goes on being served.
                tracing::error!(%error, "the metadata log can't be followed any further");
                return;
            }
            self.publish();
        }
    }

    fn publish(&self) {
        self.cluster
            .set_brokers(self.committed.table.read().brokers());
        self.committed.applied.send_replace(self.next_index - 1);
    }

    /// Applies what the log has to the table and, with `reconcile`, makes local logs follow.
    fn replay(&mut self, reconcile: bool) -> Result<(), Error> {
        let commit = self.log.commit_index();
        if self.next_index > commit {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        let mut failed = None;
        let replayed = log.replay(self.next_index, |entry| {
            if entry.kind == EntryKind::Command {
                let result = self.apply(entry.index, entry.payload);
                let result = result.and_then(|effect| match effect {
                    Some(effect) if reconcile => self.reconcile(effect),
                    _ => Ok(()),
                });
                if let Err(error) = result {
                    // Only ends the replay; the error itself goes out beside it.
                    let why = timberline_storage::Error::Refused(error.to_string());
                    failed = Some(error);
                    return Err(why);
                }
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
            // An image holds what was committed before it: it changes nothing that is hosted.
            Effect::None | Effect::Replaced => {}
            Effect::Broker { lost, .. } => {
                for topic in lost {
                    self.host(&topic, &mut HashMap::new())?;
                }
            }
            Effect::Replicas {
                topic,
                partition,
                buried,
            } => {
                for replica in buried.iter().filter(|one| one.broker == self.broker_id) {
                    self.release(&topic, partition, ReplicaId(replica.id));
                }
                self.host(&topic, &mut HashMap::new())?;
            }
            Effect::Grown(topic) => self.host(&topic, &mut HashMap::new())?,
            Effect::Configured(topic) => self.configure(&topic),
            Effect::Deleted(topic) => self.drop_topic(&topic),
        }
        Ok(())
    }

    /// Makes the replicas of the topic that belong here and are not there yet. Those found on disk are taken out of
    /// `on_disk`.
    fn host(&self, topic: &Topic, on_disk: &mut HashMap<ReplicaId, Arc<Log>>) -> Result<(), Error> {
        let config = TopicConfig::resolve(&topic.config, &self.defaults);
        let known = self.directory.by_id(topic.id);
        let is_new = known.is_none();
        let handle =
            known.unwrap_or_else(|| TopicHandle::new(topic.id, topic.name.clone(), config.clone()));
        for (number, partition) in topic.numbered() {
            let hosted = handle.hosted_here(number);
            // The newest one: an older one of a change that was turned back is on its way out.
            let mine = partition.hosted_on(self.broker_id).max_by_key(|one| one.id);
            let wanted = match mine {
                Some(replica) if hosted.as_ref().is_none_or(|h| h.replica.0 != replica.id) => {
                    Some(self.open_partition(topic, number, partition, replica.id, on_disk)?)
                }
                _ => hosted,
            };
            handle.set(number, wanted);
        }
        if is_new {
            self.directory.insert(handle);
        }
        Ok(())
    }

    fn open_partition(
        &self,
        topic: &Topic,
        number: i32,
        partition: &table::Partition,
        replica: u64,
        on_disk: &mut HashMap<ReplicaId, Arc<Log>>,
    ) -> Result<Arc<Partition>, Error> {
        let config = TopicConfig::resolve(&topic.config, &self.defaults);
        let spec = ReplicaSpec {
            replica: ReplicaId(replica),
            topic: topic.id,
            partition: number as u32,
        };
        let log = match on_disk
            .remove(&spec.replica)
            .or_else(|| self.store.log(spec.replica))
        {
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
        self.committed.quarantined.lock().remove(&spec.replica);
        let member = |one: &table::Replica| Member {
            node: one.id,
            broker: one.broker,
        };
        let founders: Vec<Member> = partition.replicas.iter().map(member).collect();
        let is_founder = founders.iter().any(|member| member.node == replica);
        if partition.founding && is_founder {
            found_group(&log, founders.clone(), topic.created_at_ms)?;
        }
        let fresh = log.last_index() <= 1;
        let mut group = open_group(&log, replica, self.timing)?;
        // The preferred leader of a new partition need not wait for a timeout.
        if fresh && founders.first().is_some_and(|first| first.node == replica) {
            group.campaign();
        }
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

    /// Lets one replica go that is a tombstone now.
    fn release(&self, topic: &Topic, number: i32, replica: ReplicaId) {
        if let Some(handle) = self.directory.by_id(topic.id)
            && let Some(hosted) = handle.hosted_here(number)
            && hosted.replica == replica
        {
            handle.set(number, None);
        }
        self.bury_when_released(replica);
    }

    fn bury_when_released(&self, replica: ReplicaId) {
        let (store, committed) = (self.store.clone(), Arc::clone(&self.committed));
        // The shard may have appends of it under way: the files go when it has let go.
        let then = Box::new(move || bury(&store, &committed, replica));
        self.shards.submit(replica, Work::Release { replica, then });
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
        self.cluster.forget(topic.id);
        for partition in handle.hosted() {
            self.bury_when_released(partition.replica);
        }
    }
}

/// Gives a log without members its founding entry, the same on every founder. It is committed by being there: nobody
/// founds a group twice.
///
/// # Errors
/// Those of the log.
pub(crate) fn found_group(log: &Arc<Log>, founders: Vec<Member>, now_ms: i64) -> Result<(), Error> {
    if log.last_membership().0 > 0 {
        return Ok(());
    }
    let term = log.hard_state().term.max(log.last_term()).max(1);
    let payload = ConfigEntry::founding(founders).encode();
    let appended = log.append(term, EntryKind::Config, payload, now_ms)?;
    log.set_hard_state(HardState {
        term,
        ..log.hard_state()
    });
    log.commit_to(appended.index);
    Ok(())
}

/// Opens a replica's group. One that can't prove what it has takes no part (INV-6).
///
/// # Errors
/// [`Error::Metadata`] when the log is not one of a group.
pub(crate) fn open_group(log: &Arc<Log>, node: u64, timing: Timing) -> Result<LogGroup, Error> {
    let spec = log.spec();
    let options = GroupOptions {
        node,
        tag: chain_seed(spec.topic, spec.partition),
        seed: rand::random(),
        timing,
    };
    let mut group = Group::open(options, Arc::clone(log))
        .map_err(|error| Error::Metadata(format!("replica {}: {error}", spec.replica)))?;
    if let Some(why) = log.unproven() {
        tracing::error!(replica = %spec.replica, why, "the replica can't prove what it has; it takes no part");
        group.stop(why);
    }
    Ok(group)
}

/// Carries a tombstone out.
fn bury(store: &Store, committed: &Committed, replica: ReplicaId) {
    match store.remove_replica(replica) {
        Ok(()) => {
            committed.quarantined.lock().remove(&replica);
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
