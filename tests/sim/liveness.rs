//! The second phase: faults stop, and within a bounded time every group has a leader, every batch is acknowledged,
//! every replica is the same, and everything acknowledged can be read at every voter.

use timberline_consensus::NodeId;

use crate::checker::{Check, ensure};
use crate::shard::read_frames;
use crate::world::World;

/// Until a minority that is kept down comes back, ms.
const MINORITY_MS: u64 = 8_000;
/// Until everything has come to rest, ms: some forty election timeouts.
const REST_MS: u64 = 15_000;
/// Groups in which nothing happens fall silent within, ms.
const SILENCE_MS: u64 = 5_000;
/// What a beat may take, ms.
const SLACK_MS: u64 = 15;
/// Between two looks, ms.
const LOOK_MS: u64 = 100;

impl World {
    pub(crate) fn come_to_rest(&mut self) -> Check {
        self.calm = true;
        self.network.calm = true;
        self.network.heal();
        let kept = self
            .rng
            .chance(40)
            .then(|| self.rng.below(self.brokers.len() as u64) as usize);
        let now = self.now;
        self.trace.note(now, ("calm", kept), || {
            format!("faults are over, b{kept:?} stays down")
        });
        for broker in 0..self.brokers.len() {
            self.lift_capacity(broker);
            let at = &mut self.brokers[broker];
            at.paused_until = 0;
            at.slow_until = 0;
            at.disk.crash_after(u64::MAX);
            at.kept_down = false;
        }
        let falls_in_silence = kept.is_some() && self.rng.chance(50);
        if let Some(kept) = kept.filter(|_| !falls_in_silence) {
            self.keep_down(kept)?;
        }
        for broker in 0..self.brokers.len() {
            if self.brokers[broker].running.is_none() && kept != Some(broker) {
                self.start(broker)?;
            }
        }
        if let Some(kept) = kept.filter(|_| falls_in_silence) {
            if self.brokers[kept].running.is_none() {
                self.start(kept)?;
            }
            self.live_until(self.now + REST_MS, None)?;
            let until = self.now + SILENCE_MS;
            while self.now < until {
                self.step()?;
            }
            self.check_silence()?;
            self.keep_down(kept)?;
        }
        let began = self.now;
        if let Some(kept) = kept {
            self.live_until(began + MINORITY_MS, Some(kept))?;
            self.brokers[kept].kept_down = false;
            self.start(kept)?;
        }
        self.live_until(self.now + REST_MS, None)?;
        self.stats.liveness_ticks += (self.now - began) / 25;
        self.check_rest()
    }

    /// Nothing happens, and everybody is there: nobody says anything. Where clocks differ so much that a quick one misses a
    /// slow one's beats, groups may be awake.
    fn check_silence(&self) -> Check {
        let ticks = &self.profile.tick_ms;
        let (quick, slow) = (ticks.iter().min(), ticks.iter().max());
        if slow.map(|ms| 4 * ms + SLACK_MS) >= quick.map(|ms| 7 * ms) {
            return Ok(());
        }
        for (at, table) in self.groups.iter().enumerate() {
            if table.members.1.members().len() < 2 {
                continue;
            }
            let leader = self.settled_leader(at).map(|(leader, _)| leader);
            for member in table.members.1.members() {
                let running = self.brokers[member.broker as usize].running.as_ref();
                let replica = running.and_then(|running| running.replicas.get(&member.node));
                let is_quiet = replica.is_some_and(|replica| replica.group.is_quiet());
                // The leader may just be asking again.
                ensure!(
                    is_quiet || leader == Some(member.node),
                    "g{at}: n{} is awake, and nothing happens: {}",
                    member.node,
                    self.describe(at)
                );
            }
        }
        Ok(())
    }

    fn keep_down(&mut self, broker: usize) -> Check {
        self.brokers[broker].kept_down = true;
        self.crash(broker, None)?;
        self.brokers[broker].life += 1;
        Ok(())
    }

    /// Lets time pass until there is nothing left to wait for; `without` is a broker that is not waited for.
    fn live_until(&mut self, deadline: u64, without: Option<usize>) -> Check {
        let mut look = self.now + LOOK_MS;
        loop {
            self.step()?;
            if self.now < look {
                continue;
            }
            look = self.now + LOOK_MS;
            for group in 0..self.groups.len() {
                for at in 0..self.groups[group].producers.len() {
                    self.send_outstanding(group, at)?;
                }
            }
            let waits = self.unrest(without);
            match waits {
                None => return Ok(()),
                Some(why) => ensure!(
                    self.now < deadline,
                    "no rest after a long calm, without b{without:?}: {why}"
                ),
            }
        }
    }

    /// What is not at rest yet.
    fn unrest(&self, without: Option<usize>) -> Option<String> {
        for group in 0..self.groups.len() {
            let members = &self.groups[group].members.1;
            let is_up = |broker: i32| Some(broker as usize) != without;
            let quorum = [&members.voters, &members.outgoing]
                .into_iter()
                .all(|side| {
                    let up = side.iter().filter(|m| is_up(m.broker)).count();
                    side.is_empty() || up > side.len() / 2
                });
            // Who does not know yet that the last change is committed needs the members before it.
            if !quorum || without.is_some() && !self.know_members(group) {
                continue;
            }
            if let Some(why) = self.unrest_of(group, without) {
                return Some(format!("g{group}: {why}"));
            }
        }
        None
    }

    fn know_members(&self, group: usize) -> bool {
        let (index, members) = &self.groups[group].members;
        let commit = |node: NodeId, broker: i32| {
            let running = self.brokers[broker as usize].running.as_ref()?;
            Some(running.replicas.get(&node)?.group.log().commit_index())
        };
        let mut members = members.members().into_iter();
        members.all(|m| commit(m.node, m.broker).is_none_or(|c| c >= *index))
    }

    fn unrest_of(&self, group: usize, without: Option<usize>) -> Option<String> {
        let Some((leader, committed)) = self.settled_leader(group) else {
            return Some(format!("no leader; {}", self.describe(group)));
        };
        if self.groups[group].members.1.is_joint() {
            return Some(format!("n{leader} leads a joint configuration"));
        }
        if let Some(at) = self.groups[group]
            .producers
            .iter()
            .position(|p| !p.is_done())
        {
            return Some(format!(
                "producer {at} waits: {}",
                self.groups[group].producers[at].describe()
            ));
        }
        for member in self.groups[group].members.1.members() {
            let broker = member.broker as usize;
            if Some(broker) == without {
                continue;
            }
            let running = self.brokers[broker].running.as_ref();
            let Some(replica) = running.and_then(|r| r.replicas.get(&member.node)) else {
                return Some(format!("n{} is not there", member.node));
            };
            let log = replica.group.log();
            if log.commit_index() < committed || log.last_index() > log.commit_index() {
                return Some(format!(
                    "n{} is at commit {} of {}, n{leader} leads at {committed}",
                    member.node,
                    log.commit_index(),
                    log.last_index()
                ));
            }
        }
        None
    }

    /// The leader of the highest term, if it is caught up.
    fn settled_leader(&self, group: usize) -> Option<(NodeId, u64)> {
        let nodes = self.replicas.iter().filter(|(_, p)| p.group == group);
        nodes
            .filter_map(|(&node, place)| {
                let running = self.brokers[place.broker].running.as_ref()?;
                let group = &running.replicas.get(&node)?.group;
                let found = (group.term(), node, group.log().commit_index());
                group.is_caught_up().then_some(found)
            })
            .max()
            .map(|(_, node, committed)| (node, committed))
    }

    fn describe(&self, group: usize) -> String {
        let nodes = self.replicas.iter().filter(|(_, p)| p.group == group);
        let of = |(node, place): (&NodeId, &crate::world::Place)| {
            let running = self.brokers[place.broker].running.as_ref();
            let replica = running.and_then(|r| r.replicas.get(node));
            let view = replica.map(|r| (r.group.view(), r.group.stopped().map(str::to_owned)));
            format!("b{} n{node}: {view:?}", place.broker)
        };
        nodes.map(of).collect::<Vec<_>>().join("; ")
    }

    /// Everything acknowledged is there, and the same everywhere.
    fn check_rest(&mut self) -> Check {
        for running in self.brokers.iter().filter_map(|b| b.running.as_ref()) {
            self.stats.checkpoints += running.store.stats().checkpoints;
        }
        for group in 0..self.groups.len() {
            for member in self.groups[group].members.1.members() {
                let Some(running) = &self.brokers[member.broker as usize].running else {
                    continue;
                };
                let Some(replica) = running.replicas.get(&member.node) else {
                    continue;
                };
                let log = replica.group.log().clone();
                let frames =
                    read_frames(&log, log.first_index(), log.last_index(), &mut self.stats)
                        .map_err(|e| format!("n{}: reading at rest: {e}", member.node))?;
                let history = self.checker.history(group);
                history.holds_all(member.node, &frames)?;
                let (start, end) = (log.log_start(), log.high_watermark());
                ensure!(
                    start == history.log_start(),
                    "n{}: log start {start} at rest, {} is committed",
                    member.node,
                    history.log_start()
                );
                let mut cursor = log.cursor(start);
                while cursor.offset() < end {
                    let from = cursor.offset();
                    let batches = log
                        .read_blocking(&mut cursor, 64 << 10)
                        .map_err(|e| format!("n{}: reading at {from}: {e}", member.node))?;
                    ensure!(
                        !batches.is_empty(),
                        "n{}: nothing at {from} below {end}",
                        member.node
                    );
                    history.read(member.node, from, &batches)?;
                }
            }
        }
        Ok(())
    }
}
