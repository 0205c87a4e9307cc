//! One coordinator: wait for the lead to be settled, read the log, serve, step down.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};
use tokio::sync::{mpsc, oneshot};

use super::appends::Appends;
use super::{Ask, Handle, INBOX_MAX, Reply, Teller, leads, log};
use crate::ack::Outcome;
use crate::clock;
use crate::core::Core;
use crate::groups::core::Groups;
use crate::groups::core::api::{Answer, Effect, Input, Message, Now};
use crate::groups::topics::Topics;
use crate::lifecycle::Phase;
use crate::partition::{Partition, Signal};
use crate::shard::Work;

/// Inputs that are applied between two batches.
const BURST_MAX: usize = 1024;
/// Before a batch is offered again that did not fit into the bounds on unacknowledged bytes.
const RETRY_OVERLOADED: Duration = Duration::from_millis(20);
/// Before a coordinator begins again that leads and could not append.
const BACK_OFF: Duration = Duration::from_millis(100);
/// One that wakes so much later than it wanted was stopped, or starved: its members are not to blame.
const STALL_MS: u64 = 1_000;
/// How long between two looks at a lead that is not settled, if nothing is heard of it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Coordinates the groups of a partition for as long as it is led here in this term.
pub(super) async fn run(core: Weak<Core>, partition: Arc<Partition>, term: u64) {
    let started = Instant::now();
    if !settled(&core, &partition, term).await {
        return;
    }
    let Some(core) = core.upgrade() else { return };
    let number = partition.number;
    let replayed = {
        let log = Arc::clone(&partition.log);
        let settings = Arc::clone(&core.groups.settings);
        let limits = core.read_limits();
        tokio::task::spawn_blocking(move || log::replay(&log, settings, &limits)).await
    };
    let log::Replayed {
        replay,
        bytes,
        image_bytes,
    } = match replayed {
        Ok(Ok(replayed)) => replayed,
        Ok(Err(why)) => {
            tracing::error!(number, why, "a coordinator can't become active");
            core.groups.broken.lock().insert(number, why);
            // Another replica may be better off; here it is not tried again before the lead has changed.
            while leads(&partition, term) && core.lifecycle.phase() < Phase::Stopped {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            core.groups.broken.lock().remove(&number);
            return;
        }
        Err(_) => return,
    };
    while *core.metadata.revisions().borrow() < replay.revision() {
        if !leads(&partition, term) || core.lifecycle.phase() >= Phase::Stopped {
            return;
        }
        core.metadata.shows(replay.revision()).await;
    }
    let (inbox, asks) = mpsc::channel(INBOX_MAX);
    let topics = core.groups.topics(&core);
    let groups = replay.finish(now(&core), Arc::clone(&topics));
    tracing::info!(number, term, groups = groups.len(), took = ?started.elapsed(), "coordinates groups");
    let handle = Handle { inbox, term };
    core.groups.active.lock().insert(number, handle.clone());
    let task = Task {
        appends: Appends::new(bytes, image_bytes),
        links: HashMap::new(),
        calls: HashMap::new(),
        flying: None,
        topics,
        core: Arc::clone(&core),
        partition,
        term,
        groups,
    };
    let watched = Arc::clone(&task.partition);
    let why = task.serve(asks).await;
    {
        let mut active = core.groups.active.lock();
        // A successor of a later term may be there already.
        if active.get(&number).is_some_and(|one| one.term == term) {
            active.remove(&number);
        }
    }
    tracing::info!(number, term, why, "coordinates groups no more");
    if leads(&watched, term) {
        // It begins again, but what refused it is not gone at once.
        tokio::time::sleep(BACK_OFF).await;
    }
}

/// Waits until the leader here has committed something in its term; false when it does not lead.
async fn settled(core: &Weak<Core>, partition: &Partition, term: u64) -> bool {
    loop {
        let runs = |core: Arc<Core>| core.lifecycle.phase() < Phase::Stopped;
        if !core.upgrade().is_some_and(runs) {
            return false;
        }
        let signal = Signal::new();
        partition.waiters().register(&signal, 0);
        if !leads(partition, term) {
            return false;
        }
        if partition.lead().settled {
            return true;
        }
        let _ = tokio::time::timeout(LOOK_EVERY, signal.wait()).await;
    }
}

fn now(core: &Core) -> Now {
    Now {
        mono_ms: core.started.elapsed().as_millis() as u64,
        wall_ms: clock::now_ms(),
    }
}

struct Task {
    core: Arc<Core>,
    partition: Arc<Partition>,
    term: u64,
    groups: Groups,
    topics: Arc<Topics>,
    appends: Appends,
    /// Streams of members.
    links: HashMap<u64, Teller>,
    /// Calls that wait.
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    /// The batch on its way.
    flying: Option<oneshot::Receiver<Outcome>>,
}

impl Task {
    /// Until it steps down. What was held back is dropped then: streams and calls find out by that.
    async fn serve(mut self, mut asks: mpsc::Receiver<Ask>) -> &'static str {
        let mut changes = self.core.cluster.changes();
        let mut revisions = self.core.metadata.revisions();
        let stopped = self.core.lifecycle.reached(Phase::Stopped);
        tokio::pin!(stopped);
        let mut burst = Vec::new();
        let mut wake_ms = u64::MAX;
        loop {
            let now_ms = now(&self.core);
            if now_ms.mono_ms.saturating_sub(wake_ms) > STALL_MS {
                self.groups.forgive(now_ms);
            }
            if let Err(why) = self.advance() {
                return why;
            }
            let deadline = self.groups.deadline_ms();
            let wait = deadline.saturating_sub(now(&self.core).mono_ms);
            let full = self.appends.is_full();
            wake_ms = match full {
                // It does not wake for that before there is room.
                true => u64::MAX,
                false => deadline.max(now(&self.core).mono_ms),
            };
            tokio::select! {
                // An answer first: it makes room.
                outcome = committed(&mut self.flying) => {
                    if let Err(why) = self.batch_ended(outcome).await {
                        return why;
                    }
                }
                changed = changes.changed() => if changed.is_err() { return "the broker is gone" },
                changed = revisions.changed() => {
                    if changed.is_err() {
                        return "the broker is gone";
                    }
                    self.look_at_topics();
                }
                () = &mut stopped => return "the broker stops",
                count = asks.recv_many(&mut burst, BURST_MAX), if !full => {
                    if count == 0 {
                        return "nobody can ask any more";
                    }
                    self.look_at_topics();
                    burst.drain(..).for_each(|ask| self.ask(ask));
                }
                () = tokio::time::sleep(Duration::from_millis(wait.max(1))), if !full => {}
            }
        }
    }

    fn look_at_topics(&mut self) {
        let topics = self.core.groups.topics(&self.core);
        if !Arc::ptr_eq(&topics, &self.topics) {
            self.topics = Arc::clone(&topics);
            self.groups.input(now(&self.core), Input::Topics(topics));
        }
    }

    fn ask(&mut self, ask: Ask) {
        match (ask.reply, &ask.input) {
            (Reply::Link(stream), Input::Join { link, .. }) => {
                self.links.insert(*link, stream);
            }
            (Reply::Call(call), input) => {
                if let Some(id) = input.call() {
                    self.calls.insert(id, call);
                }
            }
            _ => {}
        }
        if let Input::Broken { link } = &ask.input {
            self.links.remove(link);
        }
        self.groups.input(now(&self.core), ask.input);
    }

    /// Takes in what came out of the core, appends what can be appended, and says what may be said.
    fn advance(&mut self) -> Result<(), &'static str> {
        self.groups.tick(now(&self.core));
        self.appends.take(self.groups.take_output());
        self.appends.image_if_due(&self.groups);
        self.append()?;
        self.say()
    }

    fn append(&mut self) -> Result<(), &'static str> {
        if self.flying.is_some() {
            return Ok(());
        }
        let Some(batch) = self.appends.next_batch() else {
            return Ok(());
        };
        if !leads(&self.partition, self.term) {
            return Err("the lead is lost");
        }
        self.flying = Some(self.hand_over(batch));
        Ok(())
    }

    /// Appends a batch, again and again while there is no room for it.
    fn hand_over(&self, batch: Vec<Vec<u8>>) -> oneshot::Receiver<Outcome> {
        let (sender, outcome) = oneshot::channel();
        let core = Arc::clone(&self.core);
        let (partition, term) = (Arc::clone(&self.partition), self.term);
        tokio::spawn(async move {
            let outcome = loop {
                let error = match log::append(&core, &partition, &batch) {
                    Ok(outcome) => match outcome.await {
                        Ok(Err(error)) => *error,
                        Ok(done) => break done,
                        Err(_) => super::stopping(),
                    },
                    Err(error) => error,
                };
                // Only this says for certain that nothing was written and that it may fit later.
                let again = error.reason == Some(Reason::Overloaded);
                if !again || !leads(&partition, term) || sender.is_closed() {
                    break Err(Box::new(error));
                }
                tokio::time::sleep(RETRY_OVERLOADED).await;
            };
            let _ = sender.send(outcome);
        });
        outcome
    }

    async fn batch_ended(&mut self, outcome: Outcome) -> Result<(), &'static str> {
        self.flying = None;
        let acked = match outcome {
            Ok(acked) => acked,
            Err(error) => {
                self.refused(&error);
                return Err("a batch was not committed");
            }
        };
        if let Some(log_start) = self.appends.batch_committed(acked.base_offset) {
            // Nobody waits for it: what is not trimmed now is with the next image.
            let (reply, _) = oneshot::channel();
            let replica = self.partition.replica;
            let before = Some(log_start);
            let trim = Work::Trim {
                replica,
                before,
                reply,
            };
            self.core.shards.submit(replica, trim);
        }
        Ok(())
    }

    fn refused(&self, error: &ApiError) {
        let number = self.partition.number;
        match error.reason {
            Some(Reason::NotLeader | Reason::NoLeader | Reason::Draining) => {
                tracing::debug!(number, %error, "groups: a batch was refused");
            }
            _ => tracing::warn!(number, %error, "groups: a batch was refused"),
        }
    }

    /// Says what may be said, if this is still the leader.
    fn say(&mut self) -> Result<(), &'static str> {
        if !leads(&self.partition, self.term) {
            return Err("the lead is lost");
        }
        let mut slow = Vec::new();
        for effect in self.appends.released() {
            match effect {
                Effect::Answer { call, answer } => {
                    // Whoever asked may have gone.
                    self.calls.remove(&call).map(|call| call.send(answer));
                }
                Effect::Tell { link, message } => {
                    let last = matches!(message, Message::End(_) | Message::Left);
                    let Some(stream) = self.links.get(&link) else {
                        continue;
                    };
                    if !stream.tell(message) && !last {
                        slow.push(link);
                    }
                    if last {
                        self.links.remove(&link);
                    }
                }
            }
        }
        // One that does not read is as good as gone; its session goes on.
        for link in slow {
            if self.links.remove(&link).is_some() {
                self.groups.input(now(&self.core), Input::Broken { link });
            }
        }
        Ok(())
    }
}

/// The outcome of the batch on its way; for ever, if there is none.
async fn committed(flying: &mut Option<oneshot::Receiver<Outcome>>) -> Outcome {
    match flying {
        Some(outcome) => outcome
            .await
            .unwrap_or_else(|_| Err(Box::new(super::stopping()))),
        None => std::future::pending().await,
    }
}
