//! Membership in a group, without I/O and without a clock: events and the time go in, [`Action`]s come out.
//!
//! **The rules** (what the coordinator does in turn is in `docs/groups.md`):
//!
//! 1. A partition is *held* from its [`Action::Start`] until it was released or lost. Nothing else may be read or committed.
//! 2. An assignment is applied as a whole: first all that it does not name is released ([`Action::Release`]: stopped, its last
//!    position committed, the commit answered), then what is new is started and its epoch is acknowledged. What is held and named
//!    does not notice.
//! 3. When the stream is lost, or the coordinator moves, reading goes on. What came on that stream and was not applied is
//!    forgotten; a release that is under way goes on. The member comes back with its id and names what it holds at that moment.
//! 4. An answer to a heartbeat confirms the session as of when that heartbeat was *sent*. When the session that was confirmed last
//!    is over, others may read: all is lost ([`Action::Lost`]), and the member comes back holding nothing.
//! 5. Who is fenced loses all and joins as a new member. What else can't be retried ends the membership.
//! 6. A coordinator that leaves a heartbeat unanswered for a third of the session is looked for elsewhere.
//! 7. To leave is to release all, then to say so, on this stream or the next, until a deadline.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};

use crate::backoff::Backoff;
use crate::error::{Error, is_retriable};
use crate::types::TopicId;

/// A partition of a topic, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tp {
    pub(crate) topic: TopicId,
    pub(crate) partition: i32,
}

/// Where the group stands in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    At(i64),
    Nothing,
    /// The coordinator did not say.
    Unknown,
}

/// What the coordinator is told of the member that comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Id and epoch of a member that comes back.
    pub(crate) member: Option<(String, i64)>,
    pub(crate) owned: Vec<Tp>,
}

/// What the member says on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Up {
    Heartbeat {
        applied: Option<i64>,
    },
    /// The subscription as it is now.
    Subscription,
    Leave {
        will_return: bool,
    },
}

/// Who the member is, and the intervals that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) member: String,
    pub(crate) heartbeat: Duration,
    pub(crate) session: Duration,
    pub(crate) rebalance: Duration,
}

/// What the coordinator says.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Welcome(Welcome),
    Beat,
    Assignment {
        epoch: i64,
        partitions: BTreeSet<Tp>,
        starts: BTreeMap<Tp, Option<i64>>,
    },
    Failure(ApiError),
    GoAway,
}

/// What the rules ask for.
#[derive(Debug)]
pub(crate) enum Action {
    /// Ask who coordinates the group, after this pause (of which the driver may take off a part).
    Locate { pause: Duration },
    /// Open a stream there, in place of any other.
    Connect {
        address: Arc<str>,
        greeting: Greeting,
    },
    /// Put this on the stream.
    Say(Up),
    /// Drop the stream.
    HangUp,
    /// Stop reading these, commit, and say so with [`Core::released`]; the application has until then.
    Release { parts: Vec<Tp>, until: Instant },
    /// Read these.
    Start(Vec<(Tp, Committed)>),
    /// Others may read these: stop now, and commit nothing.
    Lost { parts: Vec<Tp>, why: Error },
    /// The membership is over; nothing is held.
    Ended(Error),
    /// The member has left; nothing is held.
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Not a member, and does nothing to become one.
    Ended,
    /// Asks for the coordinator, or waits to ask again.
    Locating,
    /// Its hello is on the way, since then.
    Connecting(Instant),
    Joined,
}

/// An assignment that is not applied yet.
struct Pending {
    epoch: i64,
    partitions: BTreeSet<Tp>,
    starts: BTreeMap<Tp, Option<i64>>,
}

struct Leaving {
    until: Instant,
    will_return: bool,
    said: bool,
}

/// The options that the rules need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) backoff: Backoff,
}

/// Heartbeats without an answer; more are a coordinator that does not answer.
const UNANSWERED_MAX: usize = 256;
/// Least time that a hello may go without an answer: it waits for a commit of the group's log.
const WELCOME_WITHIN: Duration = Duration::from_secs(2);

/// The state of one member.
pub(crate) struct Core {
    phase: Phase,
    backoff: Backoff,
    /// Since the last answered heartbeat.
    failures: u32,
    member: Option<String>,
    /// Of the last assignment that was applied.
    epoch: i64,
    /// Of the coordinator heard of last; what names an older one is out of date.
    coordinator_epoch: i64,
    held: BTreeSet<Tp>,
    /// Of those: on the way to be released.
    releasing: BTreeSet<Tp>,
    pending: Option<Pending>,
    /// Applied on this stream.
    applied: Option<i64>,
    heartbeat: Duration,
    session: Duration,
    rebalance: Duration,
    /// The session runs from here.
    confirmed_at: Option<Instant>,
    /// When the heartbeats were sent that have no answer.
    unanswered: VecDeque<Instant>,
    next_beat: Instant,
    leaving: Option<Leaving>,
    actions: VecDeque<Action>,
}

impl Core {
    /// A member that is about to join.
    pub(crate) fn new(now: Instant, rules: Rules) -> Core {
        Core {
            phase: Phase::Locating,
            backoff: rules.backoff,
            failures: 0,
            member: None,
            epoch: 0,
            coordinator_epoch: -1,
            held: BTreeSet::new(),
            releasing: BTreeSet::new(),
            pending: None,
            applied: None,
            heartbeat: Duration::from_secs(1),
            session: Duration::from_secs(10),
            rebalance: Duration::from_secs(60),
            confirmed_at: None,
            unanswered: VecDeque::new(),
            next_beat: now,
            leaving: None,
            actions: VecDeque::from([Action::Locate {
                pause: Duration::ZERO,
            }]),
        }
    }

    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Id and epoch for commits of what is held.
    pub(crate) fn identity(&self) -> Option<(&str, i64)> {
        Some((self.member.as_deref()?, self.epoch))
    }

    pub(crate) fn holds(&self, tp: &Tp) -> bool {
        self.held.contains(tp)
    }

    pub(crate) fn is_joined(&self) -> bool {
        self.phase == Phase::Joined
    }

    /// The moment at which [`tick`](Self::tick) has something to do.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let beat = (self.phase == Phase::Joined).then_some(self.next_beat);
        let leave = self.leaving.as_ref().map(|leaving| leaving.until);
        [beat, leave, self.silent_until(), self.confirmed_until()]
            .into_iter()
            .flatten()
            .min()
    }

    /// While anything is held: until when nobody else can hold it.
    fn confirmed_until(&self) -> Option<Instant> {
        let confirmed = self.confirmed_at.filter(|_| !self.held.is_empty());
        confirmed.map(|at| at + self.session)
    }

    /// Until when the coordinator may be silent.
    fn silent_until(&self) -> Option<Instant> {
        let patience = self.session / 3;
        match self.phase {
            Phase::Connecting(since) => Some(since + patience.max(WELCOME_WITHIN)),
            Phase::Joined => self.unanswered.front().map(|&sent| sent + patience),
            Phase::Ended | Phase::Locating => None,
        }
    }

    // Time.

    pub(crate) fn tick(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.leaving.as_ref().map(|leaving| leaving.until)) {
            return self.left();
        }
        if due(self.confirmed_until()) {
            let why = ApiError::new(
                Reason::MemberFenced,
                "the group's coordinator did not answer within the session timeout",
            );
            self.lose(why.into());
            if matches!(self.phase, Phase::Connecting(_) | Phase::Joined) {
                // What is under way on this stream names what was lost.
                return self.look_elsewhere();
            }
        }
        if due(self.silent_until()) {
            return self.look_elsewhere();
        }
        if self.phase == Phase::Joined && self.next_beat <= now {
            self.beat(now);
        }
    }

    fn beat(&mut self, now: Instant) {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return self.look_elsewhere();
        }
        self.unanswered.push_back(now);
        self.next_beat = now + self.heartbeat;
        let applied = self.applied;
        self.actions
            .push_back(Action::Say(Up::Heartbeat { applied }));
    }

    // The way to the coordinator.

    /// The answer to [`Action::Locate`]: address, and epoch of the coordinator.
    pub(crate) fn located(&mut self, now: Instant, found: Result<(Arc<str>, i64), Error>) {
        if self.phase != Phase::Locating {
            return;
        }
        match found {
            Ok((address, epoch)) => {
                self.coordinator_epoch = self.coordinator_epoch.max(epoch);
                self.connect(now, address);
            }
            Err(error) if error.is_retriable() => self.locate(Duration::ZERO),
            Err(error) => self.end(error),
        }
    }

    fn locate(&mut self, at_least: Duration) {
        self.phase = Phase::Locating;
        // What breaks once is looked for at once.
        let pause = match self.failures {
            0 => Duration::ZERO,
            _ => self.backoff.next_exact(),
        };
        self.failures = self.failures.saturating_add(1);
        self.actions.push_back(Action::Locate {
            pause: pause.max(at_least),
        });
    }

    fn connect(&mut self, now: Instant, address: Arc<str>) {
        self.phase = Phase::Connecting(now);
        self.forget_stream();
        let member = self.member.clone().map(|member| (member, self.epoch));
        let owned = self.held.iter().copied().collect();
        self.actions.push_back(Action::Connect {
            address,
            greeting: Greeting { member, owned },
        });
    }

    /// What only counts on one stream.
    fn forget_stream(&mut self) {
        self.unanswered.clear();
        self.pending = None;
        self.applied = None;
        if let Some(leaving) = &mut self.leaving {
            leaving.said = false;
        }
    }

    fn look_elsewhere(&mut self) {
        self.actions.push_back(Action::HangUp);
        self.forget_stream();
        self.locate(Duration::ZERO);
    }

    /// The stream is over: by itself and in order, or not.
    pub(crate) fn broken(&mut self, in_order: bool) {
        if !matches!(self.phase, Phase::Connecting(_) | Phase::Joined) {
            return;
        }
        if in_order && self.leaving.as_ref().is_some_and(|leaving| leaving.said) {
            return self.left();
        }
        self.forget_stream();
        self.locate(Duration::ZERO);
    }

    // What the coordinator says.

    pub(crate) fn heard(&mut self, now: Instant, said: Down) {
        match (self.phase, said) {
            (Phase::Connecting(since), Down::Welcome(welcome)) => self.welcome(now, since, welcome),
            (Phase::Joined, Down::Beat) => {
                if let Some(sent) = self.unanswered.pop_front() {
                    self.confirmed_at = self.confirmed_at.max(Some(sent));
                }
                self.failures = 0;
                self.backoff.reset();
            }
            (
                Phase::Joined,
                Down::Assignment {
                    epoch,
                    partitions,
                    starts,
                },
            ) => {
                let pending = Pending {
                    epoch,
                    partitions,
                    starts,
                };
                self.assign(now, pending);
            }
            (Phase::Connecting(_) | Phase::Joined, Down::Failure(error)) => self.fail(now, error),
            (Phase::Connecting(_) | Phase::Joined, Down::GoAway) => self.look_elsewhere(),
            _ => {}
        }
    }

    fn welcome(&mut self, now: Instant, since: Instant, said: Welcome) {
        self.member = Some(said.member);
        self.heartbeat = said.heartbeat;
        self.session = said.session;
        self.rebalance = said.rebalance;
        self.confirmed_at = self.confirmed_at.max(Some(since));
        self.phase = Phase::Joined;
        self.next_beat = now + self.heartbeat;
        self.say_leave();
    }

    fn assign(&mut self, now: Instant, mut pending: Pending) {
        if self.leaving.is_some() {
            return;
        }
        // Of what is on its way to be released, the group does not know yet where it stands.
        pending.starts.retain(|tp, _| !self.held.contains(tp));
        let revoked = self.held.difference(&pending.partitions);
        let revoked = revoked.filter(|tp| !self.releasing.contains(tp));
        let revoked: Vec<Tp> = revoked.copied().collect();
        self.pending = Some(pending);
        // The commit behind it takes its time as well.
        self.release(revoked, now + self.rebalance * 3 / 4);
        self.apply(now);
    }

    fn release(&mut self, parts: Vec<Tp>, until: Instant) {
        if !parts.is_empty() {
            self.releasing.extend(parts.iter().copied());
            self.actions.push_back(Action::Release { parts, until });
        }
    }

    /// These are read no more, and where they stand is committed.
    pub(crate) fn released(&mut self, now: Instant, parts: &[Tp]) {
        for tp in parts {
            if self.releasing.remove(tp) {
                self.held.remove(tp);
            }
        }
        self.apply(now);
        self.say_leave();
    }

    /// Applies what is pending, once all that must go has gone.
    fn apply(&mut self, now: Instant) {
        if !self.releasing.is_empty() {
            return;
        }
        let Some(pending) = self.pending.take() else {
            return;
        };
        let new = pending.partitions.difference(&self.held);
        let start = |tp: &Tp| match pending.starts.get(tp) {
            Some(Some(offset)) => (*tp, Committed::At(*offset)),
            Some(None) => (*tp, Committed::Nothing),
            // Released, and given again before the coordinator heard of it.
            None => (*tp, Committed::Unknown),
        };
        let new: Vec<_> = new.map(start).collect();
        self.held = pending.partitions;
        self.epoch = pending.epoch;
        self.applied = Some(pending.epoch);
        if !new.is_empty() {
            self.actions.push_back(Action::Start(new));
        }
        self.beat(now);
    }

    fn fail(&mut self, now: Instant, error: ApiError) {
        self.actions.push_back(Action::HangUp);
        self.forget_stream();
        match error.reason {
            Some(Reason::MemberFenced) => {
                self.lose(error.into());
                self.member = None;
                self.epoch = 0;
                if self.leaving.is_some() {
                    return self.left();
                }
                self.locate(Duration::ZERO);
            }
            _ if is_retriable(&error) => match coordinator_hint(&error) {
                // Epochs rise, so no two brokers can send it back and forth.
                Some((address, epoch)) if epoch > self.coordinator_epoch => {
                    self.coordinator_epoch = epoch;
                    self.connect(now, address);
                }
                _ => self.locate(error.retry_after.unwrap_or_default()),
            },
            _ => self.end(error.into()),
        }
    }

    /// Others may have what was held.
    fn lose(&mut self, why: Error) {
        let parts: Vec<Tp> = std::mem::take(&mut self.held).into_iter().collect();
        self.releasing.clear();
        self.pending = None;
        if !parts.is_empty() {
            self.actions.push_back(Action::Lost { parts, why });
        }
    }

    fn end(&mut self, error: Error) {
        self.lose(error.clone());
        self.phase = Phase::Ended;
        self.member = None;
        self.epoch = 0;
        match self.leaving.take() {
            Some(_) => self.actions.push_back(Action::Left),
            None => self.actions.push_back(Action::Ended(error)),
        }
    }

    // What the application wants.

    /// Joins again after the membership ended, as a new member.
    pub(crate) fn join_again(&mut self) {
        if self.phase == Phase::Ended && self.leaving.is_none() {
            self.failures = 0;
            self.backoff.reset();
            self.locate(Duration::ZERO);
        }
    }

    /// The subscription has changed; a hello names it by itself.
    pub(crate) fn subscribed(&mut self) {
        if self.phase == Phase::Joined {
            self.actions.push_back(Action::Say(Up::Subscription));
        }
    }

    /// Releases all and leaves; what is not done until then is given up.
    pub(crate) fn leave(&mut self, until: Instant, will_return: bool) {
        if self.phase == Phase::Ended {
            return self.actions.push_back(Action::Left);
        }
        self.pending = None;
        self.leaving = Some(Leaving {
            until,
            will_return,
            said: false,
        });
        let rest = self.held.difference(&self.releasing).copied().collect();
        self.release(rest, until);
        self.say_leave();
    }

    fn say_leave(&mut self) {
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        if !self.held.is_empty() {
            return;
        }
        if self.phase == Phase::Joined {
            if !std::mem::replace(&mut leaving.said, true) {
                let will_return = leaving.will_return;
                self.actions
                    .push_back(Action::Say(Up::Leave { will_return }));
            }
        } else if self.member.is_none() && self.phase == Phase::Locating {
            // Nobody knows of it.
            self.left();
        }
    }

    fn left(&mut self) {
        let why = Error::Closed;
        self.lose(why);
        if matches!(self.phase, Phase::Connecting(_) | Phase::Joined) {
            self.actions.push_back(Action::HangUp);
        }
        self.phase = Phase::Ended;
        self.leaving = None;
        self.actions.push_back(Action::Left);
    }
}

/// Who coordinates instead, as a refusal tells it.
fn coordinator_hint(error: &ApiError) -> Option<(Arc<str>, i64)> {
    if error.reason != Some(Reason::NotCoordinator) {
        return None;
    }
    let address = error.metadata.get("coordinator_address")?;
    let epoch = error.metadata.get("coordinator_epoch")?.parse().ok()?;
    let address = Some(address.as_str()).filter(|address| !address.is_empty())?;
    Some((address.into(), epoch))
}
