//! Random histories: members come, hang, break off, crash and leave, commits and answers get lost, topics grow, coordinators die at any
//! moment, images are cut off. A seed goes the same way each time.
//!
//! Checked all the time: no partition is read by two members that may go on (by what they were told and by their own clocks); an
//! offset whose commit was answered is there, or a higher one. At the end faults stop, and the group must be level and settled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::world::*;
use crate::groups::core::api::*;
use crate::groups::parts::{Parts, Tp};
use crate::groups::subscription::Subscription;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const SESSION_MS: u64 = 5_000;
const BEAT_MS: u64 = 1_000;

#[derive(Default)]
struct Client {
    name: String,
    instance: Option<String>,
    member: Option<String>,
    epoch: i64,
    link: Option<Link>,
    /// What it reads.
    reads: BTreeSet<Tp>,
    positions: BTreeMap<Tp, i64>,
    /// Told, and not applied yet.
    told: Option<(i64, Parts, Vec<Start>)>,
    /// An epoch was applied on this link.
    applied: bool,
    beat_at: u64,
    /// When heartbeats that were not answered were sent.
    unanswered: VecDeque<u64>,
    /// Until then it may go on.
    may_until: u64,
    silent_until: u64,
    gone: bool,
    /// Another one came with its instance id: whoever does that says that this one is no more.
    replaced: bool,
}

impl Client {
    fn stop(&mut self) {
        *self = Client {
            name: std::mem::take(&mut self.name),
            instance: self.instance.take(),
            silent_until: self.silent_until,
            ..Client::default()
        };
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.told = None;
        self.applied = false;
        self.unanswered.clear();
    }
}

struct Sim {
    rng: Rng,
    world: World,
    clients: Vec<Client>,
    acked: BTreeMap<Tp, i64>,
    /// Commits on their way: what the answer will confirm.
    commits: BTreeMap<Call, (usize, Vec<(Tp, i64)>)>,
    partitions: usize,
    names: u64,
    met: BTreeMap<&'static str, usize>,
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let mut world = World::new(topics(1, &[("t", 1, 7), ("u", 2, 4)]));
        world.now.mono_ms = 1_000;
        Sim {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            world,
            clients: Vec::new(),
            acked: BTreeMap::new(),
            commits: BTreeMap::new(),
            partitions: 11,
            names: 0,
            met: BTreeMap::new(),
        }
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn now(&self) -> u64 {
        self.world.now.mono_ms
    }

    fn connect(&mut self, at: usize) {
        let link = self.world.fresh();
        self.names += 1;
        let now = self.now();
        let client = &mut self.clients[at];
        let mut join = join("g", &format!("m{}", self.names), "t");
        let pattern = at.is_multiple_of(3).then(|| "[tu]".to_owned());
        let named = vec!["t".to_owned(), "u".to_owned()];
        join.subscription =
            Subscription::new(if pattern.is_some() { vec![] } else { named }, pattern).unwrap();
        join.session_ms = SESSION_MS as i64;
        join.rebalance_ms = 8_000;
        join.instance = client.instance.as_deref().map(Into::into);
        if let Some(member) = &client.member {
            join.returning = Some((member.as_str().into(), client.epoch));
            join.owned = client.reads.iter().copied().collect();
        }
        client.disconnect();
        client.replaced &= client.member.is_some();
        client.link = Some(link);
        client.beat_at = now + BEAT_MS;
        client.unanswered.push_back(now);
        if join.returning.is_none() && join.instance.is_some() {
            for other in &mut self.clients {
                other.replaced |= other.instance == join.instance.as_deref().map(str::to_owned)
                    && other.link != Some(link);
            }
        }
        let join = Box::new(join);
        self.world.input(Input::Join { link, join });
    }

    fn act(&mut self, at: usize, calm: bool) {
        let now = self.now();
        let client = &mut self.clients[at];
        if client.gone || client.silent_until > now {
            return;
        }
        // Its own clock: others may read its partitions now.
        if client.member.is_some() && client.may_until <= now {
            client.stop();
        }
        let Some(link) = client.link else {
            if calm || self.rng.one_in(3) {
                self.connect(at);
            }
            return;
        };
        let mut ended = false;
        for message in self.world.take(link) {
            let client = &mut self.clients[at];
            match message {
                Message::Welcome { member, .. } => {
                    client.member = Some(member.to_string());
                    if let Some(sent) = client.unanswered.pop_front() {
                        client.may_until = sent + SESSION_MS;
                    }
                }
                Message::Beat => {
                    if let Some(sent) = client.unanswered.pop_front() {
                        client.may_until = sent + SESSION_MS;
                    }
                }
                Message::Assignment {
                    epoch,
                    parts,
                    starts,
                } => {
                    assert!(client.told.is_none(), "two assignments at a time");
                    client.told = Some((epoch, parts, starts));
                }
                Message::Left => ended = true,
                Message::End(error) => {
                    ended = true;
                    let what = match error {
                        crate::groups::error::Error::Fenced(_) => "fenced",
                        crate::groups::error::Error::InstanceFenced => "instance fenced",
                        other => panic!("{other}"),
                    };
                    self.meet(what);
                }
            }
        }
        if ended {
            self.clients[at].stop();
            return;
        }
        self.apply(at, calm);
        let now = self.now();
        let client = &mut self.clients[at];
        if client.beat_at <= now && client.member.is_some() {
            client.beat_at = now + BEAT_MS;
            client.unanswered.push_back(now);
            let applied = client.applied.then_some(client.epoch);
            self.world.input(Input::Heartbeat {
                link,
                applied,
                since_poll_ms: 0,
            });
        }
        if calm || self.rng.one_in(2) {
            self.read_and_commit(at);
        }
    }

    /// Stops what it was told to, commits it, and starts what is new; sometimes not yet.
    fn apply(&mut self, at: usize, calm: bool) {
        let wait = !calm && !self.rng.one_in(3);
        let client = &mut self.clients[at];
        let Some((epoch, parts, starts)) = client.told.take() else {
            return;
        };
        if wait {
            client.told = Some((epoch, parts, starts));
            return;
        }
        client.reads.retain(|tp| parts.contains(*tp));
        client.epoch = epoch;
        client.applied = true;
        // At once, not with the next beat.
        client.beat_at = 0;
        for start in &starts {
            assert!(parts.contains(start.tp));
            client.reads.insert(start.tp);
            let offset = start.committed.map_or(0, |(offset, _)| offset);
            client.positions.insert(start.tp, offset);
        }
        let reads: Parts = client.reads.iter().copied().collect();
        assert_eq!(reads, parts, "{} at {epoch}", client.name);
        for start in starts {
            let offset = start.committed.map_or(0, |(offset, _)| offset);
            let acked = self.acked.get(&start.tp).copied().unwrap_or(0);
            assert!(offset >= acked, "{:?} moved back", start.tp);
        }
        if !parts.is_empty() {
            self.meet("assigned");
        }
    }

    fn read_and_commit(&mut self, at: usize) {
        let call = self.world.fresh();
        let client = &mut self.clients[at];
        let Some(member) = client.member.clone() else {
            return;
        };
        let mut items = Vec::new();
        for tp in client.reads.clone() {
            let by = self.rng.below(3) as i64;
            let position = client.positions.entry(tp).or_default();
            *position += by;
            items.push((tp, *position));
        }
        // Some come late: of what it read before.
        if self.rng.one_in(10) {
            for (_, offset) in &mut items {
                *offset = (*offset - 5).max(0);
            }
        }
        let epoch = client.epoch;
        self.commits.insert(call, (at, items.clone()));
        let items = items.into_iter().map(|(tp, offset)| item(tp, offset));
        self.world.input(Input::Commit {
            call,
            group: "g".into(),
            member: Some((member.as_str().into(), epoch)),
            items: items.collect(),
        });
    }

    fn answers(&mut self) {
        for (call, answer) in std::mem::take(&mut self.world.answers) {
            let Some((_, items)) = self.commits.remove(&call) else {
                if let Answer::Offsets(offsets) = answer {
                    let offsets: BTreeMap<Tp, i64> = offsets
                        .into_iter()
                        .filter_map(|(tp, one)| Some((tp, one?.offset)))
                        .collect();
                    for (tp, acked) in &self.acked {
                        assert!(offsets.get(tp).is_some_and(|offset| offset >= acked));
                    }
                    self.meet("read");
                }
                continue;
            };
            if let Answer::Items(results) = answer {
                for (result, (tp, offset)) in results.into_iter().zip(items) {
                    match result {
                        Ok(_) => {
                            let acked = self.acked.entry(tp).or_default();
                            *acked = offset.max(*acked);
                            self.meet("committed");
                        }
                        Err(_) => self.meet("commit refused"),
                    }
                }
            }
        }
    }

    fn check(&self) {
        let mut readers: BTreeMap<Tp, &str> = BTreeMap::new();
        for client in &self.clients {
            if client.gone || client.replaced || client.may_until <= self.now() {
                continue;
            }
            for tp in &client.reads {
                let other = readers.insert(*tp, &client.name);
                assert_eq!(other, None, "{} and another read {tp:?}", client.name);
            }
        }
    }

    fn fault(&mut self) {
        let now = self.now();
        let some = (!self.clients.is_empty()).then(|| self.rng.below(self.clients.len() as u64));
        let some = some.map(|at| at as usize);
        match (self.rng.below(60), some) {
            (0..=4, _) if self.clients.len() < 9 => {
                let instance = self
                    .rng
                    .one_in(6)
                    .then(|| format!("i{}", self.rng.below(3)));
                let name = format!("c{}", self.clients.len());
                self.clients.push(Client {
                    name,
                    instance,
                    ..Client::default()
                });
            }
            (5, Some(at)) => {
                // Crashes; another process may take its place.
                self.clients[at].stop();
                self.clients[at].gone = self.rng.one_in(4);
                self.meet("crash");
            }
            (6 | 7, Some(at)) => {
                let for_ms = self.rng.below(3 * SESSION_MS);
                self.clients[at].silent_until = now + for_ms;
                self.meet("silence");
            }
            (8 | 9, Some(at)) => {
                if let Some(link) = self.clients[at].link {
                    self.clients[at].disconnect();
                    self.world.input(Input::Broken { link });
                    self.meet("broken");
                }
            }
            (10, Some(at)) => {
                if let Some(link) = self.clients[at].link {
                    let will_return = self.rng.one_in(2);
                    self.clients[at].reads.clear();
                    self.world.input(Input::Leave { link, will_return });
                    self.clients[at].stop();
                    self.meet("leave");
                }
            }
            (11, _) if self.rng.one_in(2) => self.fail_over(),
            (15, _) => {
                self.world.commit();
                self.answers();
                let keep = self.rng.one_in(2).then(|| self.rng.below(20) as usize);
                self.world.image(keep);
                if keep.is_some() {
                    // It was cut off because its leader was.
                    self.fail_over();
                }
                self.meet("image");
            }
            (16, _) if self.partitions < 20 => {
                self.partitions += 1;
                let revision = self.partitions as u64;
                let grown = topics(revision, &[("t", 1, self.partitions - 4), ("u", 2, 4)]);
                self.world.topics = grown.clone();
                self.world.input(Input::Topics(grown));
            }
            (17, _) => {
                let call = self.world.fresh();
                self.world.input(Input::Fetch {
                    call,
                    group: "g".into(),
                    which: Which::All,
                });
            }
            _ => {}
        }
    }

    /// What was appended is committed up to some point that nobody was told of; the rest is lost.
    fn fail_over(&mut self) {
        let keep = self.rng.below(self.world.pending.len() as u64 + 1) as usize;
        let kept: Vec<_> = self.world.pending.drain(..keep).collect();
        for (records, _) in kept {
            self.world.log.extend(records);
        }
        self.world.fail_over();
        self.commits.clear();
        for client in &mut self.clients {
            client.disconnect();
        }
        self.meet("failover");
    }

    fn pass(&mut self) {
        let ms = self.rng.below(300) + 1;
        self.world.now.mono_ms += ms;
        self.world.now.wall_ms += ms as i64;
        self.world.core.tick(self.world.now);
        self.world.collect();
    }

    fn run(mut self) -> BTreeMap<&'static str, usize> {
        for _ in 0..600 {
            self.fault();
            for at in 0..self.clients.len() {
                self.act(at, false);
            }
            if self.rng.one_in(3) {
                self.world.commit();
                self.answers();
            }
            self.pass();
            self.check();
        }
        // Faults stop.
        self.clients.retain(|client| !client.gone);
        for client in &mut self.clients {
            client.silent_until = 0;
            // Two with the same instance would put each other out for ever.
            client.instance = None;
            client.stop();
        }
        for _ in 0..300 {
            for at in 0..self.clients.len() {
                self.act(at, true);
            }
            self.world.commit();
            self.answers();
            self.pass();
            self.check();
        }
        self.settled();
        self.met
    }

    fn settled(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let counts: Vec<usize> = self.clients.iter().map(|one| one.reads.len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), self.partitions, "{counts:?}");
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 1, "{counts:?}");
        let answer = self.world.call(|call| Input::Describe {
            call,
            group: "g".into(),
        });
        let Answer::Description(described) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(described.summary.state, State::Stable);
        assert_eq!(described.members.len(), self.clients.len());
        let offsets = self.world.fetch("g").unwrap_or_default();
        for (tp, acked) in &self.acked {
            assert!(offsets[tp] >= *acked, "{tp:?}");
        }
    }
}

#[test]
fn random_histories() {
    let seeds = std::env::var("GROUPS_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(500);
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..seeds {
        let seen = std::panic::catch_unwind(|| Sim::new(seed).run());
        let seen = seen.unwrap_or_else(|_| panic!("seed {seed}"));
        for (what, times) in seen {
            *met.entry(what).or_default() += times;
        }
    }
    // No seed is hollow, taken together.
    for what in [
        "assigned",
        "committed",
        "commit refused",
        "fenced",
        "instance fenced",
        "failover",
        "image",
        "read",
    ] {
        assert!(met.get(what).is_some_and(|times| *times > 10), "{met:?}");
    }
}
