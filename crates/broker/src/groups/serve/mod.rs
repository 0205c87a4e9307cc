//! Coordinators at work: tasks, queues and the log around the core.
//!
//! - here: which coordinators run on this broker, and where the others are. `task`: one coordinator, from replay to stepping down. `log`: the
//!   internal topic, batches of records, replay. `appends`: what waits for a commit. `positions`: ends and ages of partitions, from whoever leads
//!   them. `link`: what waits for a member's stream.
//!
//! **Invariants.** Effects leave only after the commit of all records before them, while the term in which those were appended lasts. One
//! batch of a coordinator is on its way at a time. Queues: [`INBOX_MAX`], and what `link` and `appends` bound.

mod appends;
mod link;
pub(crate) mod log;
pub(crate) mod positions;
mod task;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use timberline_proto::error::{ApiError, Reason};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub(crate) use self::link::{Teller, Told, link};
use super::core::api::{Answer, Input};
use super::limits::Settings;
use super::topics::Topics;
use super::view::View;
use crate::core::Core;
use crate::errors;
use crate::metadata::leadership::Leadership;
use crate::partition::Partition;

/// Inputs that wait for one coordinator. Streams wait for room, and so do calls, for a while.
const INBOX_MAX: usize = 8192;
/// How long a call waits for room in an inbox.
const ROOM_WAIT: Duration = Duration::from_secs(1);
/// What a caller is told to wait while there is no coordinator.
const RETRY_WITHOUT: Duration = Duration::from_millis(20);

/// Where what comes of an input goes.
pub(crate) enum Reply {
    /// A member's stream begins.
    Link(Teller),
    Call(oneshot::Sender<Answer>),
    Nowhere,
}

/// An input on its way.
pub(crate) struct Ask {
    pub(crate) input: Input,
    pub(crate) reply: Reply,
}

/// A coordinator that runs here.
#[derive(Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Ask>,
    pub(crate) term: u64,
}

impl Handle {
    /// # Errors
    /// `NO_COORDINATOR` once it has stepped down, `OVERLOADED` when there is no room for long.
    pub(crate) async fn send(&self, ask: Ask) -> Result<(), ApiError> {
        match self.inbox.send_timeout(ask, ROOM_WAIT).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(moving()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(ApiError::new(
                Reason::Overloaded,
                "the group's coordinator has too much to do",
            )
            .with_retry_after(ROOM_WAIT)),
        }
    }

    /// Says something that nobody waits for, from where nobody can wait.
    pub(crate) fn tell(&self, input: Input) {
        let reply = Reply::Nowhere;
        let refused = self.inbox.try_send(Ask { input, reply });
        if let Err(mpsc::error::TrySendError::Full(ask)) = refused
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let this = self.clone();
            runtime.spawn(async move {
                let _ = this.send(ask).await;
            });
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// As [`Handle::send`]; after `TIMEOUT` the outcome is unknown: the coordinator stepped down meanwhile.
    pub(crate) async fn call(&self, input: impl FnOnce(u64) -> Input) -> Result<Answer, ApiError> {
        let (reply, answer) = oneshot::channel();
        let input = input(fresh_id());
        let reply = Reply::Call(reply);
        self.send(Ask { input, reply }).await?;
        answer.await.map_err(|_| {
            ApiError::new(
                Reason::Timeout,
                "the group's coordinator moved before it could answer; the outcome is unknown",
            )
        })
    }
}

/// The id of a link or a call.
pub(crate) fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The answer while the coordinator changes, or reads its log.
fn moving() -> ApiError {
    ApiError::new(Reason::NoCoordinator, "the group's coordinator is changing")
        .with_retry_after(RETRY_WITHOUT)
}

/// Where the coordinator of a group is.
pub(crate) enum Place {
    Here(Handle),
    /// On this broker, at this address for clients, in this term.
    There(i32, String, u64),
}

/// All coordinators of this broker.
#[derive(Default)]
pub(crate) struct Coordinators {
    settings: Arc<Settings>,
    /// By partition of the groups' topic, at most [`log::PARTITIONS`] of them.
    active: Mutex<HashMap<i32, Handle>>,
    view: View,
    creating: tokio::sync::Mutex<()>,
    /// Why a coordinator did not become active.
    broken: Mutex<HashMap<i32, String>>,
}

impl Coordinators {
    pub(crate) fn new(settings: Settings) -> Arc<Coordinators> {
        Arc::new(Coordinators {
            settings: Arc::new(settings),
            ..Coordinators::default()
        })
    }

    /// The topics now.
    pub(super) fn topics(&self, core: &Core) -> Arc<Topics> {
        let table = core.metadata.table();
        let revision = *core.metadata.revisions().borrow();
        self.view.at(revision, &table)
    }

    /// Coordinators that run here.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.active.lock().values().cloned().collect()
    }

    /// The coordinator of a group. Makes the groups' topic, if it is not there.
    ///
    /// # Errors
    /// `NO_COORDINATOR` while there is none, and what making the topic may meet.
    pub(crate) async fn find(&self, core: &Core, group: &str) -> Result<Place, ApiError> {
        let (topic, count) = {
            let known = log::topic(core);
            match known {
                Some(known) => known,
                None => {
                    let _one = self.creating.lock().await;
                    log::ensure(core).await?
                }
            }
        };
        let number = log::partition_of(group, count);
        if let Some(handle) = self.active.lock().get(&number) {
            return Ok(Place::Here(handle.clone()));
        }
        if let Some(why) = self.broken.lock().get(&number) {
            return Err(ApiError::new(Reason::NoCoordinator, why.clone()));
        }
        let leader = core.cluster.leader_of(topic, number);
        let leader = leader.filter(|(_, broker)| *broker != core.cluster.me());
        let Some((term, broker)) = leader else {
            return Err(core.poisoned_first(moving()));
        };
        let address = core.cluster.brokers().get(&broker).map(|b| b.grpc.clone());
        Ok(Place::There(broker, address.unwrap_or_default(), term))
    }
}

/// `NOT_COORDINATOR`, with where to go.
pub(crate) fn not_coordinator(broker: i32, address: &str, term: u64) -> ApiError {
    ApiError::new(
        Reason::NotCoordinator,
        format!("the group is coordinated by broker {broker}"),
    )
    .with("coordinator_id", broker)
    .with("coordinator_address", address)
    .with("coordinator_epoch", term)
}

/// Starts a coordinator for each partition of the groups' topic that is led here, for as long as the broker runs.
pub(crate) async fn run(core: Arc<Core>) {
    let mut tasks: HashMap<i32, (u64, JoinHandle<()>)> = HashMap::new();
    let mut changes = core.cluster.changes();
    let mut revisions = core.metadata.revisions();
    let weak = Arc::downgrade(&core);
    drop(core);
    loop {
        let Some(core) = Weak::upgrade(&weak) else {
            return;
        };
        let ended = start_missing(&core, &mut tasks);
        drop(core);
        // One that ended although it leads is begun again, but not in a tight loop.
        let again = async {
            match ended {
                true => tokio::time::sleep(RETRY_WITHOUT).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = revisions.changed() => if changed.is_err() { return },
            () = again => {}
            () = first_ended(&mut tasks) => {}
        }
    }
}

async fn first_ended(tasks: &mut HashMap<i32, (u64, JoinHandle<()>)>) {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::Poll;
    poll_fn(|context| {
        let running = tasks.values_mut();
        let mut running = running.filter(|(_, task)| !task.is_finished());
        match running.any(|(_, task)| Pin::new(task).poll(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Whether one that should run has ended.
fn start_missing(core: &Arc<Core>, tasks: &mut HashMap<i32, (u64, JoinHandle<()>)>) -> bool {
    let Some(topic) = core.directory.by_name(log::TOPIC) else {
        return false;
    };
    let mut ended = false;
    for partition in topic.hosted() {
        let lead = partition.lead();
        let number = partition.number;
        let running = tasks.get(&number);
        if !lead.here {
            continue;
        }
        if let Some((term, task)) = running {
            if !task.is_finished() {
                continue;
            }
            if *term == lead.term {
                ended = true;
                tasks.remove(&number);
                continue;
            }
        }
        let task = task::run(Arc::downgrade(core), partition, lead.term);
        tasks.insert(number, (lead.term, tokio::spawn(task)));
    }
    ended
}

/// Whether the replica here still leads in this term.
fn leads(partition: &Partition, term: u64) -> bool {
    let lead = partition.lead();
    lead.here && lead.term == term
}

/// What a caller hears when the broker stops.
fn stopping() -> ApiError {
    errors::draining()
}
