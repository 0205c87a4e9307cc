//! The same over the product's log: what a leader offers is read from its segments, staged, installed, and found again
//! after a power loss.

use std::path::Path;
use std::sync::Arc;

use timberline_consensus::{
    Change, ConfigEntry, Envelope, Group, GroupOptions, Output, Proposal, SnapshotOffer, Timing,
};
use timberline_record::{Batch, BatchBuilder, Codec, TimestampType};
use timberline_storage::disk::{Disk, FaultDisk};
use timberline_storage::{
    EntryKind, Install, Log, LogConfig, ReplicaId, ReplicaSpec, Snapshot, Store, StoreOptions,
    chain_seed,
};
use uuid::Uuid;

use super::world::member;

const TOPIC: Uuid = Uuid::from_u128(5);

struct Node {
    disk: FaultDisk,
    store: Store,
    log: Arc<Log>,
    group: Group<Arc<Log>>,
}

fn open_store(disk: &FaultDisk) -> Store {
    let options = StoreOptions {
        journal_bytes: 1 << 20,
        ..StoreOptions::default()
    };
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Store::open(disk, Path::new("/data"), options)
        .unwrap()
        .store
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 4 << 10,
        ..LogConfig::default()
    }
}

fn open_group(node: u64, log: &Arc<Log>) -> Group<Arc<Log>> {
    let options = GroupOptions {
        node,
        tag: chain_seed(TOPIC, 0),
        seed: 1,
        timing: Timing::default(),
    };
    Group::open(options, log.clone()).unwrap()
}

impl Node {
    fn new(node: u64, founding: Option<ConfigEntry>) -> Node {
        let disk = FaultDisk::new(node);
        let store = open_store(&disk);
        let spec = ReplicaSpec {
            replica: ReplicaId(node),
            topic: TOPIC,
            partition: 0,
        };
        let log = store.create_replica(spec, config()).unwrap();
        if let Some(founding) = founding {
            log.append(1, EntryKind::Config, founding.encode(), 1)
                .unwrap();
            settle(&store);
            log.commit_to(1);
        }
        let group = open_group(node, &log);
        Node {
            disk,
            store,
            log,
            group,
        }
    }

    fn lose_power(&mut self, node: u64) {
        self.disk.power_loss();
        let gone = FaultDisk::new(99);
        let elsewhere = open_store(&gone);
        self.store = elsewhere.clone();
        let spec = *self.log.spec();
        self.log = elsewhere.create_replica(spec, config()).unwrap();
        self.group = open_group(node, &self.log);
        self.store = open_store(&self.disk);
        self.log = self.store.log(ReplicaId(node)).unwrap();
        self.group = open_group(node, &self.log);
    }

    /// Works until nothing is left to do.
    fn turn(&mut self) -> (Vec<Envelope>, Vec<SnapshotOffer>) {
        let (mut messages, mut offers) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let mut out = Output::default();
            self.group.turn(2, &mut out);
            assert_eq!(self.group.stopped(), None);
            messages.extend(out.messages);
            offers.extend(out.snapshots);
            for (node, cold) in out.cold {
                cold.run().unwrap();
                self.group.cold_done(node);
            }
            if let Some(index) = out.close_after {
                self.log.close_active(index).unwrap();
            }
            settle(&self.store);
            while let Some(seal) = self.store.begin_seal() {
                self.store.run_seal(seal).unwrap();
            }
        }
        (messages, offers)
    }
}

fn settle(store: &Store) {
    loop {
        let work = store.begin_cycle(false);
        if work.is_empty() {
            return;
        }
        for direct in work.direct {
            store.run_direct(&direct).unwrap();
            store.finish_direct(direct);
        }
        if let Some(cycle) = work.cycle {
            store.run_cycle(&cycle).unwrap();
            store.finish_cycle(cycle);
        }
    }
}

/// Two nodes talk until they are at rest.
fn talk(one: &mut Node, two: &mut Node) -> Vec<SnapshotOffer> {
    let mut offers = Vec::new();
    for number in 0..12 {
        one.group.tick(number, |_| u64::MAX, &mut Output::default());
        two.group.tick(number, |_| u64::MAX, &mut Output::default());
        for _ in 0..4 {
            let (to_two, offered) = one.turn();
            offers.extend(offered);
            for envelope in to_two {
                two.group.step(envelope).unwrap();
            }
            for envelope in two.turn().0 {
                one.group.step(envelope).unwrap();
            }
        }
    }
    offers
}

fn batch(n: u32) -> Batch {
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    let value = vec![n as u8; 300];
    builder.append(1, None, Some(&value), &[]).unwrap();
    builder.build(None).unwrap()
}

fn ship(from: &Snapshot, to: &Arc<Log>) -> Install {
    let mut install = to.begin_install(from.manifest().clone()).unwrap();
    for missing in install.missing() {
        for range in missing.ranges {
            let mut pos = range.start;
            while pos < range.end {
                let bytes = from
                    .read(missing.segment, pos, (range.end - pos) as usize)
                    .unwrap();
                install.write(missing.segment, pos, &bytes).unwrap();
                pos += bytes.len() as u64;
            }
        }
    }
    install.finish().unwrap();
    install
}

#[test]
fn a_learner_joins_over_segments_and_keeps_them_through_a_power_loss() {
    let mut leader = Node::new(1, Some(ConfigEntry::founding(vec![member(1)])));
    leader.turn();
    let propose = |leader: &mut Node, range: std::ops::Range<u32>| {
        for n in range {
            let batch = Proposal::Batch(batch(n));
            leader.group.propose(&batch, 2).unwrap();
        }
        leader.turn();
    };
    propose(&mut leader, 0..60);
    leader.log.close_active(1).unwrap();
    leader.turn();
    let start = leader.log.high_watermark();
    leader.group.propose(&Proposal::LogStart(start), 2).unwrap();
    leader.turn();
    for _ in 0..3 {
        leader.store.checkpoint_now(false).unwrap();
    }
    assert!(leader.log.first_index() > 1, "the beginning is gone");

    let mut learner = Node::new(2, None);
    let add = vec![Change::AddLearner(member(2))];
    leader.group.propose_membership(7, add, 2).unwrap();
    let offers = talk(&mut leader, &mut learner);
    assert_eq!(offers.len(), 1, "a boundary was made that names it");
    let offer = &offers[0];
    let snapshot = leader.log.snapshot(offer.mark.index).unwrap().unwrap();
    assert_eq!(snapshot.manifest().membership, offer.mark.membership);
    let install = ship(&snapshot, &learner.log);
    learner.group.install(1, offer.term, install).unwrap();
    leader.group.snapshot_sent(2, true);
    drop(snapshot);
    propose(&mut leader, 60..65);
    talk(&mut leader, &mut learner);
    assert_eq!(learner.log.last_chain(), leader.log.last_chain());
    assert_eq!(learner.group.revision(), 7);
    assert_eq!(learner.log.commit_index(), leader.log.commit_index());

    learner.lose_power(2);
    propose(&mut leader, 65..70);
    let offers = talk(&mut leader, &mut learner);
    assert!(offers.is_empty(), "entries will do");
    assert_eq!(learner.log.last_chain(), leader.log.last_chain());
    assert_eq!(learner.group.membership(), leader.group.membership());
}
