//! The simulated world: brokers, network, clients, a clock, and the events to come. One seed, one history.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use harness::rng::Rng;
use timberline_consensus::bugs::Bug as ConsensusBug;
use timberline_consensus::{Envelope, Membership, NodeId};
use timberline_storage::bugs::Bug as StorageBug;
use timberline_storage::disk::FaultDisk;
use timberline_storage::{ReplicaId, ReplicaSpec, chain_seed};
use uuid::Uuid;

use crate::broker::Broker;
use crate::checker::{Check, Checker};
use crate::clients::Producer;
use crate::network::Network;
use crate::profile::Profile;
use crate::stats::{Stats, Trace};

/// Client operations of a history.
pub(crate) const OPERATIONS: u64 = 2_000;
/// Acknowledgements that a history must have.
pub(crate) const ACKS: u64 = 100;
/// Append times begin here, ms.
const EPOCH_MS: i64 = 1_000_000;
/// Events of a history: more means that something goes round in circles.
const EVENTS_MAX: u64 = 3_000_000;

/// A deliberate mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Storage(StorageBug),
    Consensus(ConsensusBug),
    /// A leader answers by index, whatever term stands there and whoever leads.
    AnswerByIndex,
    /// A batch is proposed without a look at its sequence.
    NoSequences,
}

/// What a run is to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) planted: Option<Planted>,
    /// Keep the trace.
    pub(crate) words: bool,
}

/// The end of a run.
pub(crate) struct Outcome {
    pub(crate) stats: Stats,
    /// Of everything that happened.
    pub(crate) hash: u64,
    pub(crate) failure: Option<String>,
    pub(crate) trace: Vec<String>,
}

/// What is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Envelope),
    /// A shard of the first, by number, is alive; the second hears.
    ShardBeat(usize, usize, usize),
    /// The rest is for one broker's life.
    Tick(usize, u64),
    Turn(usize, u64),
    Flush(usize, u64),
    Cycle(usize, u64),
    Direct(usize, u64, u64),
    Checkpoint(usize, u64),
    Upkeep(usize, u64),
    Crash(usize, u64),
    Start(usize, u64),
    Client,
    Fault,
    Heal,
    Free(usize),
}

/// A group as the cluster's metadata would know it.
pub(crate) struct Table {
    pub(crate) tag: u64,
    pub(crate) spec: (Uuid, u32),
    /// The newest membership known to be committed, and its index.
    pub(crate) members: (u64, Membership),
    pub(crate) revision: u64,
    pub(crate) producers: Vec<Producer>,
    /// Index, term and offset of batches that leaders appended.
    pub(crate) offsets: BTreeMap<u64, (u64, i64)>,
}

/// Where a replica lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) group: usize,
    pub(crate) broker: usize,
    /// It was a member once: it goes when it is none any more.
    pub(crate) joined: bool,
    /// Last index when its broker ended.
    pub(crate) last: u64,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) profile: Profile,
    pub(crate) settings: Settings,
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(crate) brokers: Vec<Broker>,
    pub(crate) groups: Vec<Table>,
    pub(crate) replicas: BTreeMap<NodeId, Place>,
    pub(crate) next_node: NodeId,
    pub(crate) openings: u64,
    pub(crate) network: Network,
    pub(crate) checker: Checker,
    pub(crate) stats: Stats,
    pub(crate) trace: Trace,
    /// The second phase: nothing new, no faults.
    pub(crate) calm: bool,
}

/// Runs one seed. A panic of the code under test is a failure like any other.
pub(crate) fn run(seed: u64, settings: &Settings) -> Outcome {
    let mut world = World::new(seed, settings);
    let result = catch_unwind(AssertUnwindSafe(|| world.history()));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
    };
    let outcome = Outcome {
        stats: world.stats,
        hash: world.trace.hash(),
        failure,
        trace: world.trace.lines(),
    };
    if outcome.failure.is_some() {
        // What is left of a broken store may panic again: it is not dropped.
        std::mem::forget(world);
    }
    outcome
}

impl World {
    fn new(seed: u64, settings: &Settings) -> World {
        let mut rng = Rng::new(seed);
        let mut profile = Profile::of(&mut rng);
        if let Some(Planted::Storage(bug)) = settings.planted {
            profile.store.bug = Some(bug);
        }
        let brokers = (0..profile.brokers()).map(|at| {
            let disk = FaultDisk::new(seed.wrapping_mul(31) + at as u64);
            Broker::new(disk, profile.store_options(at), at as i64 * 13)
        });
        World {
            brokers: brokers.collect(),
            rng,
            profile,
            settings: *settings,
            now: 0,
            events: BTreeMap::new(),
            sequence: 0,
            groups: Vec::new(),
            replicas: BTreeMap::new(),
            next_node: 1,
            openings: 0,
            network: Network::default(),
            checker: Checker::default(),
            stats: Stats::default(),
            trace: Trace::new(settings.words),
            calm: false,
        }
    }

    fn history(&mut self) -> Check {
        for at in 0..self.profile.groups.len() {
            let spec = (Uuid::from_u128(7 + at as u128), at as u32);
            let tag = chain_seed(spec.0, spec.1);
            self.checker.found(at, tag);
            let producers = self.profile.groups[at].producers;
            self.groups.push(Table {
                tag,
                spec,
                members: (0, Membership::default()),
                revision: 0,
                producers: (0..producers).map(|n| Producer::new(n as i64)).collect(),
                offsets: BTreeMap::new(),
            });
        }
        self.found()?;
        self.after(5, Event::Client);
        self.after(self.profile.fault_ms, Event::Fault);
        // Where faults leave hardly anything to succeed, it goes on until something did.
        while self.stats.operations < OPERATIONS
            || self.stats.acks < ACKS && self.stats.operations < 8 * OPERATIONS
        {
            self.step()?;
        }
        self.come_to_rest()
    }

    /// The next event.
    pub(crate) fn step(&mut self) -> Check {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return Err("nothing is to happen any more".into());
        };
        if self.sequence > EVENTS_MAX {
            return Err(format!("{EVENTS_MAX} events and no end"));
        }
        self.now = self.now.max(at);
        if let Some((broker, life)) = of_broker(&event) {
            let broker = &self.brokers[broker];
            if broker.life != life || broker.running.is_none() {
                return Ok(());
            }
            if broker.paused_until > self.now && !matches!(event, Event::Crash(..)) {
                self.at(broker.paused_until, event);
                return Ok(());
            }
        }
        match event {
            Event::Deliver(envelope) => self.deliver(envelope),
            Event::ShardBeat(from, shard, to) => {
                self.hear_shard(from, shard, to);
                Ok(())
            }
            Event::Tick(broker, _) => self.tick(broker),
            Event::Turn(broker, _) => self.turns(broker),
            Event::Flush(broker, _) => self.flush(broker),
            Event::Cycle(broker, _) => self.step_cycle(broker),
            Event::Direct(broker, _, id) => self.step_direct(broker, id),
            Event::Checkpoint(broker, _) => self.step_checkpoint(broker),
            Event::Upkeep(broker, _) => self.upkeep(broker),
            Event::Crash(broker, _) => self.crash(broker, None),
            Event::Start(broker, life) => match self.brokers[broker].life == life {
                true => self.start(broker),
                false => Ok(()),
            },
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::Heal => {
                self.network.heal();
                Ok(())
            }
            Event::Free(broker) => {
                self.lift_capacity(broker);
                Ok(())
            }
        }
    }

    pub(crate) fn at(&mut self, when: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((when, self.sequence), event);
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    /// A broker's clock, ms.
    pub(crate) fn clock(&self, broker: usize) -> i64 {
        EPOCH_MS + self.now as i64 + self.brokers[broker].skew_ms
    }

    pub(crate) fn spec(&self, node: NodeId) -> ReplicaSpec {
        let (topic, partition) = self.groups[self.replicas[&node].group].spec;
        ReplicaSpec {
            replica: ReplicaId(node),
            topic,
            partition,
        }
    }

    /// Places a replica; its broker has to make it.
    pub(crate) fn place(&mut self, group: usize, broker: usize) -> NodeId {
        let node = self.next_node;
        self.next_node += 1;
        self.replicas.insert(
            node,
            Place {
                group,
                broker,
                joined: false,
                last: 0,
            },
        );
        node
    }

    /// Puts a message on the wire.
    pub(crate) fn send(&mut self, envelope: Envelope) {
        let (Some(from), Some(to)) = (
            self.replicas.get(&envelope.from),
            self.replicas.get(&envelope.to),
        ) else {
            return;
        };
        let link = (from.broker, to.broker);
        let delays: VecDeque<u64> = self
            .network
            .send(&mut self.rng, &self.profile, &mut self.stats, link)
            .into();
        for delay in delays {
            self.after(delay, Event::Deliver(envelope.clone()));
        }
    }
}

fn of_broker(event: &Event) -> Option<(usize, u64)> {
    match *event {
        Event::Tick(broker, life)
        | Event::Turn(broker, life)
        | Event::Flush(broker, life)
        | Event::Cycle(broker, life)
        | Event::Direct(broker, life, _)
        | Event::Checkpoint(broker, life)
        | Event::Upkeep(broker, life)
        | Event::Crash(broker, life) => Some((broker, life)),
        _ => None,
    }
}
