//! The rules of `core` against simulated brokers that forget nothing, under every fault there is: refusals before and
//! after writing, lost streams whose messages still arrive later, moved leaders, lost answers to `InitProducer`,
//! passing deadlines. One seed, one history.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use timberline_proto::error::{ApiError, Reason};
use timberline_record::ProducerStamp;

use super::core::{Action, Core, Epoch, Payload, RouteId, Rules, SlotId, sequence_after};
use super::delivery::BatchAck;
use crate::backoff::Backoff;
use crate::error::{Error, Result};

const SLOTS: usize = 3;
const ROUTES: usize = 2;
const STEPS: usize = 1500;
/// Records that a batch may have at a broker; producers make larger ones.
const COUNT_MAX: u32 = 6;
const DELIVERY_TIMEOUT: Duration = Duration::from_millis(2000);

/// Consecutive numbers as values.
#[derive(Clone, Debug)]
struct TestBatch {
    slot: usize,
    first: u64,
    count: u32,
    stamp: Option<ProducerStamp>,
}

impl Payload for TestBatch {
    type Wire = TestBatch;

    fn records(&self) -> u32 {
        self.count
    }

    fn bytes(&self) -> usize {
        self.count as usize * 10
    }

    fn seal(&mut self, stamp: Option<ProducerStamp>) -> Result<()> {
        self.stamp = stamp;
        Ok(())
    }

    fn wire(&self) -> TestBatch {
        self.clone()
    }

    fn split(&mut self) -> Option<TestBatch> {
        let count = self.count / 2;
        let second = TestBatch {
            first: self.first + u64::from(count),
            count: self.count - count,
            stamp: self.stamp.map(|stamp| ProducerStamp {
                base_sequence: sequence_after(stamp.base_sequence, count),
                ..stamp
            }),
            ..*self
        };
        if count == 0 {
            return None;
        }
        self.count = count;
        Some(second)
    }
}

/// Records that are too large by themselves.
fn is_large(value: u64) -> bool {
    value % 41 == 17
}

impl TestBatch {
    fn values(&self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// Brokers look at this before anything else.
    fn is_too_large(&self) -> bool {
        self.count > COUNT_MAX || self.values().any(is_large)
    }
}

#[derive(Default)]
struct ProducerState {
    epoch: i16,
    next: i32,
    last: VecDeque<(i32, i64)>,
}

/// A partition as all brokers share it.
#[derive(Default)]
struct Log {
    values: Vec<u64>,
    producers: HashMap<i64, ProducerState>,
}

impl Log {
    fn write(&mut self, batch: &TestBatch) -> Result<(i64, bool), Reason> {
        if batch.is_too_large() {
            return Err(Reason::RecordTooLarge);
        }
        let stamp = batch.stamp.expect("idempotent producers stamp");
        let known = self.producers.contains_key(&stamp.id);
        let state = self.producers.entry(stamp.id).or_default();
        if known && stamp.epoch < state.epoch {
            return Err(Reason::ProducerFenced);
        }
        if !known || stamp.epoch > state.epoch {
            if stamp.base_sequence != 0 {
                return Err(Reason::OutOfOrderSequence);
            }
            *state = ProducerState {
                epoch: stamp.epoch,
                ..ProducerState::default()
            };
        }
        if let Some((_, offset)) = state
            .last
            .iter()
            .find(|(sequence, _)| *sequence == stamp.base_sequence)
        {
            return Ok((*offset, true));
        }
        if stamp.base_sequence != state.next {
            return Err(match stamp.base_sequence < state.next {
                true => Reason::DuplicateSequence,
                false => Reason::OutOfOrderSequence,
            });
        }
        let base = self.values.len() as i64;
        state.next += batch.count as i32;
        state.last.push_back((stamp.base_sequence, base));
        if state.last.len() > 5 {
            state.last.pop_front();
        }
        self.values.extend(batch.values());
        Ok((base, false))
    }
}

#[derive(Default)]
struct Stream {
    up: bool,
    requests: VecDeque<(u64, TestBatch)>,
    answers: VecDeque<(u64, Result<BatchAck, ApiError>)>,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Stored(i64),
    NotWritten,
    Unknown,
}

struct World {
    random: SmallRng,
    now: Instant,
    core: Core<TestBatch>,
    logs: Vec<Log>,
    streams: Vec<Stream>,
    /// Messages of lost streams that still arrive.
    zombies: Vec<VecDeque<(u64, TestBatch)>>,
    leader: Vec<usize>,
    /// When slots want to be served; never without an event before, as in the driver.
    timers: Vec<Option<Instant>>,
    connecting: Vec<bool>,
    locating: Vec<bool>,
    next_value: u64,
    outcomes: HashMap<u64, Outcome>,
    sent: Vec<Vec<(u64, u32)>>,
    epochs: HashMap<i64, i16>,
    next_id: i64,
    init: Option<Option<Epoch>>,
    faults: bool,
    met: HashMap<&'static str, u32>,
    /// Parts that came without their batch.
    cut: u32,
}

impl World {
    fn new(seed: u64) -> World {
        let rules = Rules {
            max_in_flight: 5,
            idempotent: true,
            backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(80)),
        };
        let mut core = Core::new(rules);
        for _ in 0..ROUTES {
            core.add_route();
        }
        for _ in 0..SLOTS {
            let slot = core.add_slot();
            core.set_route(slot, Some(0));
        }
        World {
            random: SmallRng::seed_from_u64(seed),
            now: Instant::now(),
            core,
            logs: (0..SLOTS).map(|_| Log::default()).collect(),
            streams: (0..ROUTES).map(|_| Stream::default()).collect(),
            zombies: Vec::new(),
            leader: vec![0; SLOTS],
            timers: vec![None; SLOTS],
            connecting: vec![false; ROUTES],
            locating: vec![false; SLOTS],
            next_value: 0,
            outcomes: HashMap::new(),
            sent: vec![Vec::new(); SLOTS],
            epochs: HashMap::new(),
            next_id: 1,
            init: None,
            faults: true,
            met: HashMap::new(),
            cut: 0,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn fault(&mut self, name: &'static str, percent: u32) -> bool {
        let strikes = self.faults && self.chance(percent);
        if strikes {
            *self.met.entry(name).or_default() += 1;
        }
        strikes
    }

    fn step(&mut self) {
        match self.random.random_range(0..13) {
            0..=2 => self.produce_in_time(),
            3..=5 => self.broker_works(),
            6..=8 => self.answer_arrives(),
            9 => self.zombie_arrives(),
            10 => self.init_works(),
            11 => self.background_works(),
            _ => self.time_passes(),
        }
        if self.fault("stream lost", 2) {
            self.lose_stream();
        }
        if self.fault("leader moved", 1) {
            self.move_leader();
        }
    }

    /// Now and then one that is wanted soon, between others.
    fn produce_in_time(&mut self) {
        let timeout = match self.random.random_ratio(1, 5) {
            true => DELIVERY_TIMEOUT / 4,
            false => DELIVERY_TIMEOUT,
        };
        self.produce(timeout);
    }

    fn produce(&mut self, timeout: Duration) {
        let slot = self.random.random_range(0..SLOTS);
        let large = self.chance(10);
        let count = self.random.random_range(if large { 4..20 } else { 1..4 });
        let batch = TestBatch {
            slot,
            first: self.next_value,
            count,
            stamp: None,
        };
        self.sent[slot].push((self.next_value, count));
        self.next_value += u64::from(count);
        self.core.enqueue(slot as SlotId, batch, self.now, timeout);
        self.service(slot);
    }

    fn service(&mut self, slot: usize) {
        let mut out = Vec::new();
        self.core.service(slot as SlotId, self.now, &mut out);
        self.timers[slot] = self.core.wake_at(slot as SlotId, self.now);
        self.act(out);
    }

    fn service_all(&mut self) {
        (0..SLOTS).for_each(|slot| self.service(slot));
    }

    fn act(&mut self, out: Vec<Action<TestBatch>>) {
        for action in out {
            match action {
                Action::Send {
                    route,
                    correlation_id,
                    wire,
                } => {
                    let stream = &mut self.streams[route as usize];
                    assert!(stream.up, "sent on a stream that is down");
                    stream.requests.push_back((correlation_id, wire));
                }
                Action::Complete { batch, outcome } => self.complete(&batch, outcome),
                Action::InitProducer { bump } => {
                    assert!(self.init.is_none(), "asked twice");
                    self.init = Some(bump);
                }
                Action::Connect { route } => {
                    self.connecting[route as usize] = true;
                }
                Action::Locate { slot } => self.locating[slot as usize] = true,
            }
        }
    }

    fn background_works(&mut self) {
        for route in 0..ROUTES {
            if std::mem::take(&mut self.connecting[route]) && !self.streams[route].up {
                if self.fault("connect failed", 30) {
                    self.core.route_down(route as RouteId, "connect failed");
                } else {
                    self.streams[route].up = true;
                    self.core.route_up(route as RouteId, 60);
                }
                self.service_all();
            }
        }
        for slot in 0..SLOTS {
            if std::mem::take(&mut self.locating[slot]) {
                self.locate(slot);
                self.service(slot);
            }
        }
    }

    fn locate(&mut self, slot: usize) {
        let leader = self.leader[slot] as RouteId;
        self.core.set_route(slot as SlotId, Some(leader));
    }

    fn complete(&mut self, batch: &TestBatch, outcome: Result<BatchAck>) {
        let begins = |&(first, _): &(u64, u32)| first == batch.first;
        self.cut += u32::from(!self.sent[batch.slot].iter().any(begins));
        for index in 0..batch.count {
            let outcome = match &outcome {
                Ok(ack) => Outcome::Stored(ack.base_offset + i64::from(index)),
                Err(error) if error.outcome_unknown() => Outcome::Unknown,
                Err(_) => Outcome::NotWritten,
            };
            let old = self
                .outcomes
                .insert(batch.first + u64::from(index), outcome);
            assert!(old.is_none(), "two outcomes");
        }
    }

    fn broker_works(&mut self) {
        let route = self.random.random_range(0..ROUTES);
        let Some((id, batch)) = self.streams[route].requests.pop_front() else {
            return;
        };
        let refuse = |reason| Err(ApiError::new(reason, "simulated"));
        let answer = if self.leader[batch.slot] != route {
            refuse(Reason::NotLeader)
        } else if self.fault("refused before writing", 4) {
            let reason = [Reason::Overloaded, Reason::StorageFull, Reason::Draining]
                [self.random.random_range(0..3)];
            refuse(reason)
        } else if self.fault("refused for good", 1) {
            refuse(Reason::CorruptBatch)
        } else if self.fault("refused after writing", 2) {
            let _ = self.logs[batch.slot].write(&batch);
            refuse(Reason::Timeout)
        } else {
            let written = self.logs[batch.slot].write(&batch);
            let ack = |(base_offset, duplicate)| BatchAck {
                base_offset,
                log_append_time_ms: None,
                duplicate,
            };
            written
                .map(ack)
                .map_err(|reason| ApiError::new(reason, "simulated"))
        };
        self.streams[route].answers.push_back((id, answer));
    }

    fn answer_arrives(&mut self) {
        let route = self.random.random_range(0..ROUTES);
        let Some((id, answer)) = self.streams[route].answers.pop_front() else {
            return;
        };
        let mut out = Vec::new();
        let slot = self.core.answered(id, answer, self.now, &mut out);
        self.act(out);
        let throttled = self.core.take_throttled(route as RouteId);
        for slot in slot.into_iter().chain(throttled) {
            self.service(slot as usize);
        }
    }

    fn zombie_arrives(&mut self) {
        if self.zombies.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.zombies.len());
        match self.zombies[at].pop_front() {
            Some((_, batch)) => {
                let _ = self.logs[batch.slot].write(&batch);
            }
            None => {
                self.zombies.swap_remove(at);
            }
        }
    }

    fn lose_stream(&mut self) {
        let route = self.random.random_range(0..ROUTES);
        let stream = std::mem::take(&mut self.streams[route]);
        let mut requests = stream.requests;
        let arrive = self.random.random_range(0..=requests.len());
        requests.truncate(arrive);
        self.zombies.push(requests);
        self.core.route_down(route as RouteId, "stream lost");
        self.service_all();
    }

    fn move_leader(&mut self) {
        let slot = self.random.random_range(0..SLOTS);
        let from = self.leader[slot];
        self.leader[slot] = (from + 1) % ROUTES;
        if self.chance(50) {
            // Told in band; what the old leader got may still be written by it (it was replicated).
            let kept = self.streams[from]
                .requests
                .iter()
                .filter(|(_, batch)| batch.slot == slot)
                .cloned()
                .collect();
            self.zombies.push(kept);
            self.streams[from]
                .requests
                .retain(|(_, batch)| batch.slot != slot);
            self.core.moved(slot as SlotId, from as RouteId);
            self.locate(slot);
            self.service(slot);
        }
    }

    fn init_works(&mut self) {
        let Some(bump) = self.init.take() else { return };
        let granted = match bump {
            Some(epoch) if self.epochs.get(&epoch.producer_id) != Some(&epoch.epoch) => {
                // Fenced: as the driver does, ask for a new id.
                self.init = Some(None);
                return;
            }
            Some(epoch) => Epoch {
                epoch: epoch.epoch + 1,
                ..epoch
            },
            None => {
                self.next_id += 1;
                Epoch {
                    producer_id: self.next_id,
                    epoch: 0,
                }
            }
        };
        self.epochs.insert(granted.producer_id, granted.epoch);
        if self.fault("epoch lost", 20) {
            self.init = Some(bump);
            return;
        }
        self.core.epoch_granted(granted);
        self.service_all();
    }

    fn time_passes(&mut self) {
        let long = self.fault("long silence", 2);
        let ms = if long {
            self.random.random_range(500..2500)
        } else {
            self.random.random_range(1..40)
        };
        self.now += Duration::from_millis(ms);
        for slot in 0..SLOTS {
            if self.timers[slot].is_some_and(|at| at <= self.now) {
                self.service(slot);
            }
        }
    }

    /// Without faults everything must come to an end, and new batches must be taken, in every slot.
    fn heal(&mut self) {
        self.faults = false;
        let mut steps = 0;
        while self.core.batch_count() > 0 {
            steps += 1;
            assert!(steps < 200_000, "a slot is blocked");
            match self.random.random_range(0..6) {
                5 => self.background_works(),
                0 | 1 => self.broker_works(),
                2 | 3 => self.answer_arrives(),
                _ if self.chance(50) => self.init_works(),
                _ => self.time_passes(),
            }
        }
    }

    fn check(&self) {
        for slot in 0..SLOTS {
            let log = &self.logs[slot].values;
            let mut offsets = HashMap::new();
            for (offset, value) in log.iter().enumerate() {
                let old = offsets.insert(*value, offset as i64);
                assert!(old.is_none(), "value {value} was written twice");
            }
            let mut last = -1;
            for value in self.sent[slot]
                .iter()
                .flat_map(|&(first, count)| first..first + u64::from(count))
            {
                match &self.outcomes[&value] {
                    Outcome::Stored(offset) => {
                        assert_eq!(
                            offsets.get(&value),
                            Some(offset),
                            "acknowledged elsewhere, or lost"
                        );
                        assert!(*offset > last, "value {value} was reordered");
                        last = *offset;
                    }
                    Outcome::NotWritten => assert!(
                        !offsets.contains_key(&value),
                        "value {value} was written after all"
                    ),
                    Outcome::Unknown => {}
                }
            }
        }
    }
}

fn run(seed: u64) -> HashMap<&'static str, u32> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.heal();
    let before = world.next_value;
    for _ in 0..30 {
        world.produce(DELIVERY_TIMEOUT);
    }
    world.heal();
    let right = |value: u64| match world.outcomes[&value] {
        Outcome::Stored(_) => !is_large(value),
        Outcome::NotWritten => is_large(value),
        Outcome::Unknown => false,
    };
    assert!(
        (before..world.next_value).all(right),
        "a healthy cluster refuses what is too large and nothing else"
    );
    while !world.zombies.is_empty() {
        world.zombie_arrives();
    }
    world.check();
    let mut met = world.met;
    met.insert("batch cut", world.cut);
    for outcome in world.outcomes.values() {
        let name = match outcome {
            Outcome::Stored(_) => "stored",
            Outcome::NotWritten => "not written",
            Outcome::Unknown => "unknown",
        };
        *met.entry(name).or_default() += 1;
    }
    met
}

/// No value twice, none lost, none reordered, none written that was said not to be, and no slot blocked.
#[test]
fn random_faults_never_break_the_promises() {
    let mut met: HashMap<&str, u32> = HashMap::new();
    for seed in 0..1500 {
        let found =
            std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
        for (name, count) in found {
            *met.entry(name).or_default() += count;
        }
    }
    // No hollow seeds: all of it was met.
    let expected = [
        "stream lost",
        "leader moved",
        "connect failed",
        "refused before writing",
        "refused for good",
        "refused after writing",
        "epoch lost",
        "batch cut",
        "long silence",
        "stored",
        "not written",
        "unknown",
    ];
    for name in expected {
        assert!(
            met.get(name).is_some_and(|&count| count > 100),
            "{name}: {met:?}"
        );
    }
}

#[test]
fn sequences_start_over_after_the_largest() {
    assert_eq!(super::core::sequence_after(i32::MAX, 1), 0);
    assert_eq!(super::core::sequence_after(i32::MAX - 2, 5), 2);
    assert_eq!(super::core::sequence_after(7, 3), 10);
}

/// Rule 5, step by step.
#[test]
fn a_missing_sequence_leads_to_a_new_epoch() {
    let mut world = World::new(0);
    world.faults = false;
    world.produce_in(0);
    world.background_works();
    world.init_works();
    world.produce_in(0);
    assert_eq!(world.streams[0].requests.len(), 2);
    // The first is lost on its way; the stream stays.
    world.streams[0].requests.pop_front();
    world.broker_works_on(0);
    world.answer_arrives_on(0);
    // The second was refused for its sequence and waits for the first, until the deadline of both.
    world.produce_later_in(0);
    world.now += DELIVERY_TIMEOUT;
    world.service(0);
    assert_eq!(world.outcomes[&0], Outcome::Unknown);
    assert_eq!(world.outcomes[&1], Outcome::NotWritten);
    assert_eq!(
        world.init,
        Some(Some(Epoch {
            producer_id: 2,
            epoch: 0
        }))
    );
    world.init_works();
    let (_, batch) = &world.streams[0].requests[0];
    assert_eq!(
        batch.stamp,
        Some(ProducerStamp {
            id: 2,
            epoch: 1,
            base_sequence: 0
        })
    );
}

impl World {
    fn one(&mut self, slot: usize, begun: Instant) {
        let batch = TestBatch {
            slot,
            first: self.next_value,
            count: 1,
            stamp: None,
        };
        self.sent[slot].push((self.next_value, 1));
        self.next_value += 1;
        self.core
            .enqueue(slot as SlotId, batch, begun, DELIVERY_TIMEOUT);
        self.service(slot);
        self.service(slot);
    }

    fn produce_in(&mut self, slot: usize) {
        self.one(slot, self.now);
    }

    fn produce_later_in(&mut self, slot: usize) {
        self.one(slot, self.now + DELIVERY_TIMEOUT / 2);
    }

    fn broker_works_on(&mut self, route: usize) {
        while !self.streams[route].requests.is_empty() {
            self.broker_works();
        }
    }

    fn answer_arrives_on(&mut self, route: usize) {
        while !self.streams[route].answers.is_empty() {
            self.answer_arrives();
        }
    }
}

/// Rule 6, step by step: the batches behind keep their sequences, and no epoch is used up but for the record too large.
#[test]
fn of_a_batch_too_large_only_the_record_too_large_fails() {
    let mut world = World::new(0);
    world.faults = false;
    world.next_value = 13;
    world.produce_in(0);
    world.background_works();
    world.init_works();
    world.broker_works_on(0);
    world.answer_arrives_on(0);
    // 14 to 17 go together, and the last of them is large; 18 and 19 come behind.
    let batch = TestBatch {
        slot: 0,
        first: 14,
        count: 4,
        stamp: None,
    };
    world.sent[0].push((14, 4));
    world.next_value += 4;
    world.core.enqueue(0, batch, world.now, DELIVERY_TIMEOUT);
    world.service(0);
    world.produce_in(0);
    world.produce_in(0);
    assert_eq!(world.streams[0].requests.len(), 3);
    let mut rounds = 0;
    while world.outcomes.len() < 7 {
        rounds += 1;
        assert!(rounds < 10, "{:?}", world.outcomes);
        world.broker_works_on(0);
        world.answer_arrives_on(0);
        world.init_works();
        world.now += Duration::from_millis(100);
        world.service(0);
    }
    assert_eq!(world.outcomes[&17], Outcome::NotWritten);
    assert_eq!(world.logs[0].values, [13, 14, 15, 16, 18, 19]);
    assert_eq!(
        world.epochs[&2], 1,
        "one new epoch for the missing sequence"
    );
}

/// A batch that may have been written is not cut: its parts would be other batches with its sequences.
#[test]
fn a_doubtful_batch_is_not_cut() {
    let mut world = World::new(0);
    world.faults = false;
    world.produce_in(0);
    world.background_works();
    world.init_works();
    let batch = TestBatch {
        slot: 0,
        first: 1,
        count: 4,
        stamp: None,
    };
    world.sent[0].push((1, 4));
    world.next_value += 4;
    world.core.enqueue(0, batch, world.now, DELIVERY_TIMEOUT);
    world.service(0);
    world.core.route_down(0, "stream lost");
    world.streams[0] = Stream::default();
    world.service(0);
    world.background_works();
    let (first, _) = world.streams[0].requests.pop_front().unwrap();
    let (second, _) = world.streams[0].requests.pop_front().unwrap();
    let ack = BatchAck {
        base_offset: 0,
        log_append_time_ms: None,
        duplicate: false,
    };
    let refused = ApiError::new(Reason::RecordTooLarge, "simulated");
    world.streams[0].answers.push_back((first, Ok(ack)));
    world.streams[0].answers.push_back((second, Err(refused)));
    world.answer_arrives_on(0);
    assert!((1..5).all(|value| world.outcomes[&value] == Outcome::Unknown));
}

/// What a broker that lost its memory of the producer, or fences it, leads to.
#[test]
fn an_unknown_producer_takes_a_new_id() {
    for reason in [Reason::UnknownProducer, Reason::ProducerFenced] {
        let mut world = World::new(0);
        world.faults = false;
        world.produce_in(0);
        world.background_works();
        world.init_works();
        let (id, _) = world.streams[0].requests.pop_front().unwrap();
        world.streams[0]
            .answers
            .push_back((id, Err(ApiError::new(reason, "simulated"))));
        world.answer_arrives_on(0);
        assert_eq!(world.init, Some(None), "{reason}");
        world.heal();
        assert_eq!(world.outcomes[&0], Outcome::Stored(0));
    }
}

/// Errors that say nothing of the batch keep their cause.
#[test]
fn a_timeout_tells_the_last_problem() {
    let mut world = World::new(0);
    world.faults = false;
    world.produce_in(0);
    world.background_works();
    world.init_works();
    let (id, _) = world.streams[0].requests.pop_front().unwrap();
    let mut out = Vec::new();
    let error = ApiError::new(Reason::StorageFull, "no space");
    world.core.answered(id, Err(error), world.now, &mut out);
    world
        .core
        .service(0, world.now + DELIVERY_TIMEOUT, &mut out);
    let outcome = out.into_iter().find_map(|action| match action {
        Action::Complete { outcome, .. } => Some(outcome),
        _ => None,
    });
    let expected = Error::DeliveryTimeout {
        outcome_unknown: false,
        after: DELIVERY_TIMEOUT,
        last: "no space [STORAGE_FULL]".to_owned(),
    };
    assert_eq!(outcome.unwrap().unwrap_err(), expected);
}
