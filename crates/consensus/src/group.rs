//! One replica of one group: proposals in, messages both ways, commit out. No I/O of its own, no clock, no thread.
//!
//! ```text
//! propose ─► log.append ─► raft (stub) ─┐
//! step ────► checks ─────► raft ────────┤► turn: ready ─► log (hard state, entries) ─► messages, each after what it
//! tick ────────────────────► raft ──────┘                                             promises is durable (INV-5)
//! durable ─► stages that wait for it ─► raft may commit ─► log.commit_to
//! ```
//!
//! **Invariants.** The library and the log agree on the last index whenever [`Group::turn`] has returned. Payload never
//! enters the library. A vote, and the acceptance of entries, leave only after hard state and entries before them are on
//! stable storage. A panic inside stops this group and no other.

mod propose;
mod pulse;
mod quiesce;
mod send;
mod snapshot;
mod step;
mod turn;
mod view;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use raft::{RawNode, StateRole};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use timberline_storage::{ColdRead, EntryKind, HardState};

use crate::bugs::Bug;
use crate::error::OpenError;
use crate::log_store::{Frames, LogStore};
use crate::membership::{ConfigEntry, Member, Membership};
use crate::message::{Envelope, Frame, NodeId, SnapshotMark};
use crate::raft_storage::{RaftStorage, conf_state};
use crate::timing::Timing;
use quiesce::Quiet;

pub use pulse::Pulse;
pub use quiesce::Tick;
pub use snapshot::NotInstalled;
pub use step::{Dropped, FRAMES_MAX};
pub use view::{PeerView, Role, View};

/// Messages to one follower that may be under way unanswered.
const IN_FLIGHT_MESSAGES_MAX: usize = 256;
/// Payload in one message, about.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The longest timeout in ticks that can be set; a bound that the library wants.
const TIMEOUT_TICKS_MAX: usize = 1 << 20;

/// What a group must be told.
#[derive(Clone, Copy, Debug)]
pub struct GroupOptions {
    /// This replica.
    pub node: NodeId,
    /// The group's tag: the chain's seed.
    pub tag: u64,
    /// For randomized timeouts.
    pub seed: u64,
    /// Timeouts in ticks.
    pub timing: Timing,
}

/// What a turn wants done, and what it found out.
#[derive(Debug, Default)]
pub struct Output {
    /// To be sent, in order for each receiver.
    pub messages: Vec<Envelope>,
    /// Reads that must run where blocking is allowed, and the follower that waits for each: then
    /// [`Group::cold_done`].
    pub cold: Vec<(NodeId, ColdRead)>,
    /// Followers that lack what is not in the log any more: to be shipped, then [`Group::snapshot_sent`].
    pub snapshots: Vec<SnapshotOffer>,
    /// A follower waits for a snapshot that can't be made yet: the active segment is to be closed, so that a boundary
    /// at or behind this index comes to be. It is asked for again until there is one.
    pub close_after: Option<u64>,
}

/// A snapshot that a follower needs. Its segments go beside the stream of messages.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotOffer {
    /// The follower.
    pub to: NodeId,
    /// The leader's term.
    pub term: u64,
    /// Where it ends.
    pub mark: SnapshotMark,
}

/// What waits until a ready's hard state and entries are durable.
struct Stage {
    number: u64,
    /// The last entry that it wrote, if it wrote any; lowered when that is cut off.
    last_index: Option<u64>,
    /// The snapshot that came with it: applied once it is durable.
    snapshot: Option<u64>,
    hard_version: u64,
    messages: Vec<raft::eraftpb::Message>,
}

/// One replica of one group.
pub struct Group<S: LogStore> {
    raw: RawNode<RaftStorage<S>>,
    options: GroupOptions,
    rng: SmallRng,
    membership: Membership,
    /// Ticks since a hand-over began.
    handing_over_for: usize,
    /// Revision of the last applied configuration entry.
    revision: u64,
    /// Bounded by what is under way to the disk.
    stages: VecDeque<Stage>,
    /// What waits for the hard state alone: beats' answers, and what a sole voter says before its term is durable.
    term_waits: Vec<(u64, raft::eraftpb::Message)>,
    /// Frames of messages that were stepped since the last turn, by index and term.
    incoming: BTreeMap<(u64, u64), Frame>,
    /// Term and vote set last, and the version of that.
    hard: (u64, u64),
    hard_version: u64,
    /// Highest commit index that the log was told.
    committed: u64,
    /// The last term in which it was elected; it may have been deposed before its first entry was written.
    elected: u64,
    /// The election timeout that was set, in ticks, and for which leader.
    timeout: (usize, NodeId),
    /// Ticks in which it was not silent, and when, by their count, each member answered last.
    awake_ticks: u64,
    heard: BTreeMap<NodeId, u64>,
    /// Whether shards' beats stand for this group's.
    quiet: Quiet,
    /// Before this tick it is not asked for again.
    ask_at: u64,
    /// The last entry found no space.
    no_space: bool,
    stopped: Option<String>,
    #[cfg(feature = "planted-bugs")]
    bug: Option<Bug>,
}

impl<S: LogStore> Group<S> {
    /// Opens a replica on its log. A replica that is its group's only voter campaigns at once. Blocking: it may read
    /// the log's tail.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: GroupOptions, log: S) -> Result<Group<S>, OpenError> {
        Group::open_with(options, log, None)
    }

    /// [`Group::open`], with a deliberate mistake.
    ///
    /// # Errors
    /// As that.
    #[cfg(feature = "planted-bugs")]
    pub fn open_planted(options: GroupOptions, log: S, bug: Bug) -> Result<Group<S>, OpenError> {
        Group::open_with(options, log, Some(bug))
    }

    fn open_with(options: GroupOptions, log: S, bug: Option<Bug>) -> Result<Group<S>, OpenError> {
        let mut configs = unapplied_configs(&log, log.commit_index())?;
        let proven = configs.keys().rev().nth(1).copied();
        let proven = proven.filter(|_| bug != Some(Bug::ForgetProvenMembership));
        if let Some(proven) = proven {
            // A leader proposes a change of the members only after it has applied the one before: that is committed,
            // whatever a lost commit index says. A replica two changes behind could win where no majority is one.
            log.commit_to(proven);
            configs = configs.split_off(&(proven + 1));
        }
        let committed = log.commit_index();
        let (_, payload) = log.membership();
        let (membership, revision) = if payload.is_empty() {
            (Membership::default(), 0)
        } else {
            let entry = ConfigEntry::decode(&payload)?;
            (entry.result, entry.revision)
        };
        let timing = options.timing;
        let config = raft::Config {
            id: options.node,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.beat_ticks,
            max_election_tick: TIMEOUT_TICKS_MAX,
            applied: committed,
            max_size_per_msg: MESSAGE_BYTES_MAX as u64,
            max_inflight_msgs: IN_FLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            batch_append: true,
            ..raft::Config::default()
        };
        let hard = match bug {
            Some(Bug::ForgetHardState) => HardState::default(),
            _ => log.hard_state(),
        };
        let storage = RaftStorage {
            initial: conf_state(&membership),
            hard,
            configs,
            last_index: log.last_index(),
            log,
            boundary_wanted: Cell::new(None),
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, storage, &logger)
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let mut group = Group {
            raw,
            rng: SmallRng::seed_from_u64(options.seed ^ options.node),
            options,
            membership,
            handing_over_for: 0,
            revision,
            stages: VecDeque::new(),
            term_waits: Vec::new(),
            incoming: BTreeMap::new(),
            hard: (hard.term, hard.vote),
            hard_version: 0,
            committed,
            elected: 0,
            timeout: (0, 0),
            awake_ticks: 0,
            heard: BTreeMap::new(),
            quiet: Quiet::No,
            ask_at: 0,
            no_space: false,
            stopped: None,
            #[cfg(feature = "planted-bugs")]
            bug,
        };
        group.retime();
        if group.is_sole_voter() {
            group.campaign();
        }
        Ok(group)
    }

    /// Stands for election at once, if it may: a replica without a vote may not.
    pub fn campaign(&mut self) {
        if self.may_stand() && self.raw.raft.promotable() {
            self.wake();
            self.contained("campaigning", |group| {
                group.raw.campaign().map_err(|error| error.to_string())
            });
        }
    }

    /// A tick passed, by its number: the groups of a shard that lead beat at the same ones, so that their beats travel
    /// together. Ticks that came late count once: call it once, however late. `silent_for` says for how many ticks the
    /// shard of a member was not heard.
    pub fn tick(
        &mut self,
        number: u64,
        silent_for: impl Fn(Member) -> u64,
        out: &mut Output,
    ) -> Tick {
        if self.stopped.is_some() || !self.may_stand() {
            return Tick::Idle;
        }
        if let Some(quiet) = self.tick_quiet(number, silent_for, out) {
            return quiet;
        }
        let of = self.reign();
        self.awake_ticks += 1;
        let beat_ticks = self.options.timing.beat_ticks;
        let phase = (number % beat_ticks as u64) as usize;
        let mut due = false;
        self.contained("ticking", |group| {
            due = group.raw.tick();
            // A new leader's first beats come a little early.
            for _ in 1..beat_ticks {
                if !group.is_leader() || group.raw.raft.heartbeat_elapsed() == phase {
                    break;
                }
                due |= group.raw.tick();
            }
            group.limit_transfer();
            due |= group.finish_joint();
            Ok(())
        });
        self.wake_unless_same(of);
        match due || self.stopped.is_some() {
            true => Tick::Due,
            false => Tick::Idle,
        }
    }

    /// Gives a hand-over up that takes too long.
    fn limit_transfer(&mut self) {
        if !self.is_handing_over() {
            self.handing_over_for = 0;
            return;
        }
        self.handing_over_for += 1;
        if self.handing_over_for > self.options.timing.transfer_ticks {
            self.raw.raft.abort_leader_transfer();
        }
    }

    /// A sole voter wins in the step in which it stands, and what it has must be durable by then.
    fn may_stand(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        !self.is_sole_voter() || log.persisted >= log.last_index() || self.is_leader()
    }

    fn is_sole_voter(&self) -> bool {
        let alone =
            |members: &[Member]| matches!(members, [only] if only.node == self.options.node);
        alone(&self.membership.voters) && !self.membership.is_joint()
    }

    /// Connections to these replicas were reset and can't be made again: a leader among them is taken for dead, and
    /// its successors stand by rank.
    pub fn lost(&mut self, is_lost: impl Fn(NodeId) -> bool) {
        let leader = self.raw.raft.leader_id;
        if self.is_leader() || is_lost(leader) {
            self.wake();
        }
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Follower && leader != 0 && is_lost(leader) {
            raft.election_elapsed = raft
                .election_elapsed
                .max(self.options.timing.election_ticks);
        }
        if raft.lead_transferee.is_some_and(&is_lost) {
            raft.abort_leader_transfer();
        }
        if raft.state == StateRole::Leader {
            let lost: Vec<NodeId> = raft.prs().iter().map(|(&id, _)| id).collect();
            for node in lost.into_iter().filter(|&node| is_lost(node)) {
                self.unreachable(node);
            }
        }
    }

    /// Messages to or from this replica may have been lost. A leader probes it until it answers; whoever follows it quietly
    /// wants to hear it again, since it may be another process.
    pub fn unreachable(&mut self, node: NodeId) {
        if self.is_leader() {
            self.wake();
            self.raw.report_unreachable(node);
        } else if self.raw.raft.leader_id == node {
            self.wake();
        }
    }

    /// A cold read for this follower is done.
    pub fn cold_done(&mut self, node: NodeId) {
        self.wake();
        self.contained("sending", |group| {
            let raft = &mut group.raw.raft;
            if raft.state == StateRole::Leader && raft.prs().get(node).is_some() {
                if let Some(progress) = raft.mut_prs().get_mut(node) {
                    progress.resume();
                }
                raft.send_append(node);
            }
            Ok(())
        });
    }

    /// The log, for reading.
    pub fn log(&self) -> &S {
        &self.raw.raft.raft_log.store.log
    }

    /// Gives the log back.
    pub fn into_log(self) -> S {
        self.raw.raft.r.raft_log.store.log
    }

    /// Whether this mistake is planted.
    fn has_bug(&self, bug: Bug) -> bool {
        #[cfg(feature = "planted-bugs")]
        return self.bug == Some(bug);
        #[cfg(not(feature = "planted-bugs"))]
        {
            let _ = bug;
            false
        }
    }

    /// Runs what may panic inside the library, or fail: either stops the group.
    fn contained(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<(), String>) {
        if self.stopped.is_some() {
            return;
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(self)));
        let why = match result {
            Ok(Ok(())) => {
                let noted = !self.has_bug(Bug::ForgetElection) || what == "working";
                if self.raw.raft.state == StateRole::Leader && noted {
                    self.elected = self.raw.raft.term;
                }
                return;
            }
            Ok(Err(why)) => why,
            Err(panic) => panic_text(&*panic),
        };
        self.stop(format!("{what}: {why}"));
    }

    /// Whether it stopped for want of space alone. Once there is some, and everything in the log and its hard state are
    /// durable, another group may be opened on the log.
    pub fn stopped_for_space(&self) -> bool {
        self.stopped.is_some() && self.no_space
    }

    /// What it was told.
    pub fn options(&self) -> GroupOptions {
        self.options
    }

    /// Takes no part any more.
    pub fn stop(&mut self, why: String) {
        if self.stopped.is_none() {
            tracing::error!(
                node = self.options.node,
                why,
                "a group stops; its replica takes no part until a restart"
            );
        }
        self.wake();
        self.stages.clear();
        self.term_waits.clear();
        self.incoming.clear();
        self.stopped.get_or_insert(why);
    }

    /// Sets the election timeout by rank, once whenever the library has set one by chance.
    fn retime(&mut self) {
        let leader = self.raw.raft.leader_id;
        if (self.raw.raft.randomized_election_timeout(), leader) == self.timeout {
            return;
        }
        let timing = &self.options.timing;
        let ticks = timing.timeout(&self.membership, leader, self.options.node, &mut self.rng);
        self.raw.raft.set_randomized_election_timeout(ticks);
        self.timeout = (ticks, leader);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panic").to_owned()
}

/// Configuration entries behind the commit index.
fn unapplied_configs<S: LogStore>(
    log: &S,
    committed: u64,
) -> Result<BTreeMap<u64, bytes::Bytes>, OpenError> {
    let mut configs = BTreeMap::new();
    let (mut next, last) = (committed + 1, log.last_index());
    while next <= last {
        match log.frames(next, last, MESSAGE_BYTES_MAX)? {
            Frames::Cold(cold) => cold.run()?,
            Frames::Ready(frames) => {
                for frame in frames {
                    next = frame.header.index + 1;
                    if frame.header.kind == EntryKind::Config {
                        configs.insert(frame.header.index, frame.payload);
                    }
                }
            }
        }
    }
    Ok(configs)
}
