//! `timberline drill group-join`, `group-kill` and `coordinator-kill`: what happens to consumers of a group when members come, go
//! and die, and when the broker that coordinates them does.
//!
//! A cluster of processes is started and a topic gets an open-loop load, as in the other drills. The consumers are those of the client
//! library, each with a runtime of its own (`squad`), and every record that they read is compared with what was acknowledged: each
//! must be read at least once.
//!
//! - **group-join**: one consumer reads everything, then the others join, one after the other. Measured from the last one's start until
//!   every partition was read by the member that it came to, of a record sent after that; and what of the partitions that stayed
//!   where they were stood still meanwhile.
//! - **group-kill**: a consumer is killed, then another one leaves. Measured until all that it had is read by others.
//! - **coordinator-kill**: the broker that coordinates is killed while consumers commit some hundred times a second. Measured is the longest time that
//!   a consumer was without an answer to a commit; what the group stands at afterwards is compared with what was answered.

mod report;
mod squad;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use timberline_client::{
    Client, ClientOptions, GroupOptions, GroupState, NewTopic, ProducerOptions,
};

use self::report::Figures;
pub use self::report::{GroupDrillReport, Takeovers};
use self::squad::{Member, Sight, Watch};
use super::books::{Books, SIZE_MIN};
use super::load::{Load, Plan};
use super::tail::ends_of;
use super::{CATCH_UP_PATIENCE, REPLICAS, START_PATIENCE, TOPIC, wait_acknowledged, wait_whole};
use crate::cluster::{Cluster, ClusterOptions};
use crate::error::{Error, Result};
use crate::observer::Observer;

/// A partition that stays with its member and is behind by more than this has paused.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the members may take to read everything again.
const SETTLE_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what they read.
const GLANCE_EVERY: Duration = Duration::from_millis(5);
/// Between two looks at the group.
const GROUP_EVERY: Duration = Duration::from_millis(50);
/// The load runs for so long before something is done to it, and after.
const QUIET: Duration = Duration::from_millis(1_000);
/// Members that one drill may have.
const CONSUMERS_MAX: usize = 64;

/// What is rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupDrillKind {
    /// Consumers join.
    GroupJoin,
    /// Consumers are killed, and leave.
    GroupKill,
    /// The coordinator is killed.
    CoordinatorKill,
}

impl GroupDrillKind {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            GroupDrillKind::GroupJoin => "group-join",
            GroupDrillKind::GroupKill => "group-kill",
            GroupDrillKind::CoordinatorKill => "coordinator-kill",
        }
    }
}

/// How it is rehearsed.
#[derive(Clone, Debug)]
pub struct GroupDrillOptions {
    /// What.
    pub kind: GroupDrillKind,
    /// On which brokers; they are started for it, and ended with it.
    pub cluster: ClusterOptions,
    /// Repetitions.
    pub times: u64,
    /// Consumers of the group.
    pub consumers: usize,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Records a second in total.
    pub rate: f64,
    /// Bytes of a value.
    pub size: usize,
    /// Session timeout of the members.
    pub session: Duration,
}

/// What happens, as it happens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GroupDrillEvent {
    /// The cluster is there and the load runs.
    Loaded {
        /// Clients' addresses.
        bootstrap: String,
        /// Where logs and data are.
        dir: std::path::PathBuf,
    },
    /// All consumers were there, and all is read again.
    Joined {
        /// The repetition, from 1.
        round: u64,
        /// From the start of the last one.
        took: Duration,
        /// Partitions that did not move and stood still.
        paused: usize,
    },
    /// A consumer was killed, or left, and others read what it had.
    TakenOver {
        /// The repetition, from 1.
        round: u64,
        /// Killed; otherwise it left.
        killed: bool,
        /// From the kill, or the beginning of the leaving.
        took: Duration,
    },
    /// The coordinator was killed, and all is well again.
    Coordinated {
        /// The repetition, from 1.
        round: u64,
        /// The broker.
        broker: i32,
        /// The longest time that a consumer was without an answer to a commit.
        gap: Duration,
    },
    /// The load has ended; the consumers read the rest.
    Reading {
        /// Records acknowledged.
        acknowledged: u64,
    },
}

/// Runs a drill. The brokers are killed when it ends or is dropped; their directory is left to the caller.
///
/// # Errors
/// It could not even begin: the options make no sense, or there is no cluster. All that goes wrong later is in the report.
pub async fn run(
    options: &GroupDrillOptions,
    mut tell: impl FnMut(GroupDrillEvent) + Send,
) -> Result<GroupDrillReport> {
    let begun = Instant::now();
    check(options)?;
    let mut stage = Stage::start(options).await?;
    tell(GroupDrillEvent::Loaded {
        bootstrap: stage.cluster.bootstrap(),
        dir: options.cluster.dir.clone(),
    });
    let mut report = GroupDrillReport {
        consumers: options.consumers,
        partitions: options.partitions,
        session_timeout_ms: options.session.as_millis() as u64,
        ..GroupDrillReport::default()
    };
    let mut figures = Figures::default();
    let outcome = stage.rounds(&mut figures, &mut tell).await;
    figures.fill(options.kind, &mut report);
    if let Err(error) = outcome {
        report.fail(&error);
    }
    if let Err(error) = stage.finish(&mut report, &mut tell).await {
        report.fail(&error);
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

fn check(options: &GroupDrillOptions) -> Result<()> {
    let invalid = |what: String| Err(Error::Invalid(what));
    if options.times == 0 || options.partitions < 1 {
        return invalid("a drill has at least one repetition and one partition".to_owned());
    }
    if !(2..=CONSUMERS_MAX).contains(&options.consumers) {
        return invalid(format!("a drill has 2 to {CONSUMERS_MAX} consumers"));
    }
    if !options.rate.is_finite() || options.rate < f64::from(options.partitions) {
        return invalid(format!(
            "the rate must be at least a record a second for each of the {} partitions",
            options.partitions
        ));
    }
    if options.size < SIZE_MIN {
        return invalid(format!("a value has at least {SIZE_MIN} bytes"));
    }
    Ok(())
}

/// The cluster, its load and the group.
struct Stage<'a> {
    options: &'a GroupDrillOptions,
    cluster: Cluster,
    client: Client,
    producer: timberline_client::Producer,
    load: Option<Load>,
    watch: Arc<Watch>,
    members: Vec<Member>,
    next_member: usize,
    /// Where the group stood when it was looked at last.
    stood: BTreeMap<i32, i64>,
}

impl<'a> Stage<'a> {
    async fn start(options: &'a GroupDrillOptions) -> Result<Stage<'a>> {
        let mut cluster = Cluster::start(&options.cluster)?;
        cluster.wait_ready(START_PATIENCE).await?;
        let client = Client::connect(cluster.client_options()).await?;
        let replicas = REPLICAS.min(options.cluster.brokers);
        let topic = NewTopic::new(TOPIC, options.partitions).replication_factor(replicas as i32);
        client.admin().create_topic(topic).await?;
        let observer = Observer::connect(cluster.client_options(), TOPIC).await?;
        wait_whole(&mut cluster, &observer, replicas, CATCH_UP_PATIENCE).await?;
        let producer = client
            .producer(ProducerOptions::default().linger(Duration::ZERO))
            .await?;
        producer.prepare(TOPIC).await?;
        let plan = Plan {
            topic: TOPIC.to_owned(),
            partitions: options.partitions as usize,
            rate: options.rate,
            size: options.size,
            run: rand::random(),
            records: None,
        };
        let load = Load::start(producer.clone(), &plan);
        wait_acknowledged(&mut cluster, &load, Instant::now()).await?;
        Ok(Stage {
            options,
            watch: Watch::new(plan.run, plan.partitions),
            cluster,
            client,
            producer,
            load: Some(load),
            members: Vec::new(),
            next_member: 0,
            stood: BTreeMap::new(),
        })
    }

    async fn rounds(
        &mut self,
        figures: &mut Figures,
        tell: &mut (impl FnMut(GroupDrillEvent) + Send),
    ) -> Result<()> {
        if self.options.kind != GroupDrillKind::GroupJoin {
            for _ in 0..self.options.consumers {
                self.join()?;
            }
            self.settle(Instant::now()).await?;
        }
        for round in 1..=self.options.times {
            match self.options.kind {
                GroupDrillKind::GroupJoin => self.round_of_joins(round, figures, tell).await?,
                GroupDrillKind::GroupKill => self.round_of_kills(round, figures, tell).await?,
                GroupDrillKind::CoordinatorKill => {
                    self.round_of_coordinators(round, figures, tell).await?;
                }
            }
            figures.rounds += 1;
        }
        figures.commits = self.watch.commits();
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        let options = GroupOptions::new(TOPIC)
            .topics([TOPIC])
            .session_timeout(self.options.session);
        let commits = self.options.kind == GroupDrillKind::CoordinatorKill;
        let options = match commits {
            true => options.auto_commit(None),
            false => options,
        };
        let client: ClientOptions = self.cluster.client_options();
        let number = self.next_member;
        self.next_member += 1;
        let member = Member::start(number, client, options, commits, Arc::clone(&self.watch))?;
        self.members.push(member);
        Ok(())
    }

    async fn round_of_joins(
        &mut self,
        round: u64,
        figures: &mut Figures,
        tell: &mut (impl FnMut(GroupDrillEvent) + Send),
    ) -> Result<()> {
        if self.members.is_empty() {
            self.join()?;
        }
        self.settle(Instant::now()).await?;
        tokio::time::sleep(QUIET).await;
        let before = self.watch.partitions();
        self.watch.begin();
        let mut last = Instant::now();
        while self.members.len() < self.options.consumers {
            last = Instant::now();
            self.join()?;
        }
        let after = self.settle(last).await?;
        let took = after.iter().filter_map(|sight| sight.since).max();
        let took = took.map_or(Duration::ZERO, |at| at.saturating_duration_since(last));
        let stayed: Vec<&Sight> = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before.owner == after.owner)
            .map(|(_, after)| after)
            .collect();
        let paused = stayed.iter().filter(|sight| sight.worst > PAUSE).count();
        figures.joins.push(took);
        figures.paused += paused as u64;
        figures.unmoved += stayed.len() as u64;
        let worst = stayed.iter().map(|sight| sight.worst).max();
        figures.worst_unmoved.push(worst.unwrap_or_default());
        tell(GroupDrillEvent::Joined {
            round,
            took,
            paused,
        });
        // One stays, so that what is read goes on.
        while self.members.len() > 1 {
            if let Some(member) = self.members.pop() {
                member.leave().await;
            }
        }
        Ok(())
    }

    async fn round_of_kills(
        &mut self,
        round: u64,
        figures: &mut Figures,
        tell: &mut (impl FnMut(GroupDrillEvent) + Send),
    ) -> Result<()> {
        for killed in [true, false] {
            tokio::time::sleep(QUIET).await;
            let before = self.watch.partitions();
            self.watch.begin();
            let member = self.members.remove(0);
            let number = member.number;
            let begun = Instant::now();
            match killed {
                true => member.kill(),
                false => member.leave().await,
            }
            let after = self.settle(begun).await?;
            self.watch.forget(number);
            let had = before.iter().zip(&after);
            let had = had.filter(|(before, _)| before.owner == Some(number));
            let took = had.filter_map(|(_, after)| after.since).max();
            let took = took.map_or(Duration::ZERO, |at| at.saturating_duration_since(begun));
            match killed {
                true => figures.kills.push(took),
                false => figures.leaves.push(took),
            }
            tell(GroupDrillEvent::TakenOver {
                round,
                killed,
                took,
            });
            self.join()?;
            self.settle(Instant::now()).await?;
        }
        Ok(())
    }

    async fn round_of_coordinators(
        &mut self,
        round: u64,
        figures: &mut Figures,
        tell: &mut (impl FnMut(GroupDrillEvent) + Send),
    ) -> Result<()> {
        tokio::time::sleep(QUIET).await;
        let before = self.watch.partitions();
        let broker = self.client.admin().find_coordinator(TOPIC).await?.broker_id;
        self.watch.begin();
        self.cluster.kill(broker)?;
        tokio::time::sleep(QUIET).await;
        let after = self.settle(Instant::now()).await?;
        self.look_at_offsets(figures).await?;
        self.cluster.restart(broker)?;
        let process = self.cluster.process(broker)?;
        process.wait_ready(START_PATIENCE).await?;
        let observer = Observer::connect(self.cluster.client_options(), TOPIC).await?;
        let replicas = REPLICAS.min(self.options.cluster.brokers);
        wait_whole(&mut self.cluster, &observer, replicas, CATCH_UP_PATIENCE).await?;
        // The groups' topic has no observer: whoever leads it next needs a majority that knows all.
        let gap = self.watch.worst_commit_gap();
        self.look_at_offsets(figures).await?;
        figures.commit_gaps.push(gap);
        let moved = before.iter().zip(&after);
        let moved = moved.filter(|(before, after)| before.owner != after.owner);
        figures.moved += moved.count() as u64;
        tell(GroupDrillEvent::Coordinated { round, broker, gap });
        Ok(())
    }

    /// Compares where the group stands with what was answered to its members, and with where it stood before.
    async fn look_at_offsets(&mut self, figures: &mut Figures) -> Result<()> {
        let answered = self.watch.committed();
        let admin = self.client.admin();
        let stands = admin.group_offsets(TOPIC, &[]).await?;
        let stands: BTreeMap<i32, i64> = stands
            .iter()
            .filter_map(|one| Some((one.partition, one.offset?)))
            .collect();
        let behind = |than: &BTreeMap<i32, i64>| {
            let behind = |(partition, offset): &(&i32, &i64)| {
                stands.get(partition).is_none_or(|stands| stands < *offset)
            };
            than.iter().filter(behind).count() as u64
        };
        figures.lost_commits += behind(&answered);
        figures.moved_back += behind(&self.stood);
        self.stood = stands;
        Ok(())
    }

    /// Waits until the group is at rest and every partition is read by the member that holds it, of what was sent since the watch
    /// began.
    async fn settle(&mut self, since: Instant) -> Result<Vec<Sight>> {
        let mut looked = Instant::now();
        let mut stable = false;
        loop {
            if looked.elapsed() >= GROUP_EVERY {
                looked = Instant::now();
                let group = self.client.admin().describe_group(TOPIC, false).await;
                stable = group.as_ref().is_ok_and(|group| {
                    group.state == GroupState::Stable && group.members.len() == self.members.len()
                });
            }
            let seen = self.watch.partitions();
            if stable && self.all_read(&seen) {
                return Ok(seen);
            }
            if let Some(error) = self.watch.error() {
                return Err(Error::Invalid(format!(
                    "a member of the group gave up: {error}"
                )));
            }
            self.cluster.check_alive()?;
            if since.elapsed() > SETTLE_PATIENCE {
                let silent = seen.iter().filter(|sight| sight.since.is_none()).count();
                return Err(Error::Unread {
                    partitions: silent,
                    after: SETTLE_PATIENCE,
                });
            }
            tokio::time::sleep(GLANCE_EVERY).await;
        }
    }

    /// Whether members that are there read all of it, evenly.
    fn all_read(&self, seen: &[Sight]) -> bool {
        let mut counts: BTreeMap<usize, usize> =
            self.members.iter().map(|one| (one.number, 0)).collect();
        for sight in seen {
            let owner = sight.owner.filter(|_| sight.since.is_some());
            match owner.and_then(|owner| counts.get_mut(&owner)) {
                Some(count) => *count += 1,
                None => return false,
            }
        }
        let (least, most) = (counts.values().min(), counts.values().max());
        least
            .zip(most)
            .is_some_and(|(least, most)| most - least <= 1)
    }

    /// Ends the load, lets the members read the rest, and counts.
    async fn finish(
        mut self,
        report: &mut GroupDrillReport,
        tell: &mut (impl FnMut(GroupDrillEvent) + Send),
    ) -> Result<()> {
        let Some(load) = self.load.take() else {
            return Ok(());
        };
        let mut loaded = load.finish().await?;
        let _ = self.producer.clone().close().await;
        report.errors += loaded.failed;
        if let Some(error) = loaded.first_error {
            report.failure.get_or_insert_with(|| error.to_string());
        }
        let acknowledged = loaded.books.iter().map(Books::acknowledged_count).sum();
        tell(GroupDrillEvent::Reading { acknowledged });
        if self.members.is_empty() {
            self.join()?;
        }
        let ends = ends_of(&self.client, TOPIC, loaded.books.len()).await?;
        let mut reached = vec![0; ends.len()];
        let begun = Instant::now();
        loop {
            for noted in self.watch.take_noted() {
                let at = noted.partition as usize;
                if let (Some(books), Some(reached)) =
                    (loaded.books.get_mut(at), reached.get_mut(at))
                {
                    books.seen(noted.seen, noted.offset);
                    *reached = (*reached).max(noted.offset + 1);
                }
            }
            if reached.iter().zip(&ends).all(|(at, end)| at >= end) {
                break;
            }
            // What is missing then is lost.
            if begun.elapsed() > SETTLE_PATIENCE {
                break;
            }
            tokio::time::sleep(GLANCE_EVERY).await;
        }
        if let Some(error) = self.watch.error() {
            report.fail(&error);
        }
        for books in &loaded.books {
            let verdict = books.verdict();
            report.acknowledged += verdict.acknowledged;
            report.read += verdict.read;
            report.lost += verdict.lost;
            report.duplicated += verdict.duplicated;
            // What is read again is out of order, too.
            report.errors += verdict.altered + verdict.misplaced + verdict.unknown;
        }
        for member in self.members.drain(..) {
            member.leave().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: GroupDrillKind) -> GroupDrillOptions {
        GroupDrillOptions {
            kind,
            cluster: ClusterOptions::new("timberline", "dir", 3),
            times: 1,
            consumers: 3,
            partitions: 30,
            rate: 100.0,
            size: 100,
            session: Duration::from_secs(3),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(check(&options(GroupDrillKind::GroupJoin)).is_ok());
        let base = || options(GroupDrillKind::GroupKill);
        let times = GroupDrillOptions { times: 0, ..base() };
        let alone = GroupDrillOptions {
            consumers: 1,
            ..base()
        };
        let slow = GroupDrillOptions {
            rate: 7.0,
            ..base()
        };
        for wrong in [times, alone, slow] {
            assert!(matches!(check(&wrong), Err(Error::Invalid(_))));
        }
    }
}
