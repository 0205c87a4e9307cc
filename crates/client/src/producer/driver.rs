//! The task behind a producer: takes batches out of the partitions, feeds events to the rules in `core`, and does
//! what they ask for. It is woken once or twice per batch, never per record.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1;
use timberline_proto::v1::produce_request::Kind as Up;
use timberline_proto::v1::produce_response::Kind as Down;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::backoff::Backoff;
use crate::client::{Client, LeaderHint, leader_hint};
use crate::error::{Error, Result};
use crate::metadata::TopicView;
use crate::producer::accumulator::Partition;
use crate::producer::batch::{ClosedBatch, Wire};
use crate::producer::core::{Action, Core, Epoch, Payload, RouteId, Rules, SlotId};
use crate::producer::delivery::{BatchAck, Completion};
use crate::producer::shared::Shared;
use crate::producer::stream::{self, News, StreamEvent};

/// Commands and answers that wait for the driver; senders wait beyond.
const QUEUE: usize = 1024;
/// How often silent streams are looked for, and topics in use are checked for their age.
const HOUSEKEEPING: Duration = Duration::from_millis(250);
/// A stream that owes answers and is silent for so long may be that of a broker that leads no more: others are asked.
const SILENT_AFTER: Duration = Duration::from_millis(500);
/// Events handled before batches are looked after.
const EVENTS_AT_ONCE: usize = 64;
/// So often in a row a topic in use must be called unknown before what waits for it fails: a broker that has just
/// started may not know it yet.
const UNKNOWN_TRIES: u32 = 5;
/// An epoch cannot be raised further than this in the record format.
const MAX_EPOCH: i16 = i16::MAX;

/// What reaches the driver from producers' handles and from tasks that asked something for it.
pub(crate) enum Command {
    /// A topic was looked up by a sender.
    Seen(Arc<TopicView>),
    /// A topic that the driver wanted was looked up.
    Located(Arc<str>, Result<Arc<TopicView>>),
    /// `InitProducer` was answered.
    Initialized(Option<Epoch>, Result<Epoch>),
    /// Close all batches and say which ones are under way.
    Flush(oneshot::Sender<Vec<Arc<Completion>>>),
}

pub(crate) fn commands() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}

/// A broker and the stream to it.
struct Route {
    address: Arc<str>,
    /// Streams opened so far: news of an older one is ignored.
    generation: u64,
    state: RouteState,
    backoff: Backoff,
    heard_at: Instant,
}

enum RouteState {
    Idle,
    /// Connecting, or ending after a go-away.
    Busy(AbortHandle),
    Ready(AbortHandle, mpsc::UnboundedSender<v1::ProduceRequest>),
}

/// Looking up a topic.
struct Lookup {
    /// The question under way.
    task: Option<AbortHandle>,
    /// Times in a row that the topic was called unknown.
    unknown: u32,
    not_before: Instant,
    backoff: Backoff,
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    client: Client,
    core: Core<ClosedBatch>,
    slots: Vec<Slot>,
    routes: Vec<Route>,
    by_address: HashMap<Arc<str>, RouteId>,
    lookups: HashMap<Arc<str>, Lookup>,
    /// When slots want to be served without an event.
    timers: BTreeSet<(Instant, SlotId)>,
    commands: mpsc::Receiver<Command>,
    to_self: mpsc::Sender<Command>,
    news: mpsc::Receiver<StreamEvent>,
    news_sender: mpsc::Sender<StreamEvent>,
    init_backoff: Backoff,
    actions: Vec<Action<ClosedBatch>>,
}

struct Slot {
    partition: Arc<Partition>,
    timer: Option<Instant>,
    /// The newest epoch of a leader heard of. What is told of older ones is out of date.
    leader_epoch: i32,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, commands: mpsc::Receiver<Command>) -> Driver {
        let (news_sender, news) = mpsc::channel(QUEUE);
        let (to_self, _) = mpsc::channel(1);
        let backoff = Backoff::new(
            shared.options.retry_backoff,
            shared.options.retry_backoff_max,
        );
        let rules = Rules {
            max_in_flight: shared.options.max_in_flight_per_partition,
            idempotent: shared.options.idempotent,
            backoff,
        };
        Driver {
            client: shared.client.clone(),
            shared,
            core: Core::new(rules),
            slots: Vec::new(),
            routes: Vec::new(),
            by_address: HashMap::new(),
            lookups: HashMap::new(),
            timers: BTreeSet::new(),
            commands,
            to_self,
            news,
            news_sender,
            init_backoff: backoff,
            actions: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        let (to_self, mut answers) = mpsc::channel(QUEUE);
        self.to_self = to_self;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ready = Vec::new();
        let mut closing = false;
        let shared = self.shared.clone();
        loop {
            let timer = self.timers.first().map(|&(at, _)| at);
            let busy = self.core.batch_count() > 0 || !self.slots.is_empty();
            tokio::select! {
                () = shared.wake.notified() => {}
                Some(event) = self.news.recv() => {
                    self.on_news(event);
                    for _ in 1..EVENTS_AT_ONCE {
                        let Ok(event) = self.news.try_recv() else { break };
                        self.on_news(event);
                    }
                }
                Some(command) = self.commands.recv() => self.on_command(command),
                Some(command) = answers.recv() => self.on_command(command),
                () = sleep_until(timer) => {}
                _ = housekeeping.tick(), if busy => self.keep_house(),
            }
            self.learn_slots();
            shared.take_ready(&mut ready);
            for slot in ready.drain(..) {
                self.serve(slot, false);
            }
            self.run_timers();
            if shared.is_closing() && !closing {
                closing = true;
                self.close_all();
            }
            if closing && self.core.batch_count() == 0 {
                break;
            }
        }
        // Dropping the queues ends the streams.
        for route in &self.routes {
            if let RouteState::Busy(task) = &route.state {
                task.abort();
            }
        }
        shared.set_closed();
    }

    // Slots.

    /// Takes in partitions that were made known since the last time.
    fn learn_slots(&mut self) {
        let known = self.slots.len();
        let shared = self.shared.clone();
        let slots = shared.slots.read();
        for partition in slots.iter().skip(known) {
            self.core.add_slot();
            self.slots.push(Slot {
                partition: partition.clone(),
                timer: None,
                leader_epoch: -1,
            });
        }
    }

    /// Takes what is due out of a partition and lets the rules work. With `force` the open batch is due.
    fn serve(&mut self, slot: SlotId, force: bool) {
        let Some(partition) = self
            .slots
            .get(slot as usize)
            .map(|slot| slot.partition.clone())
        else {
            return;
        };
        let now = Instant::now();
        let found = partition.collect();
        for batch in found.full {
            self.enqueue(slot, batch);
        }
        let options = &self.shared.options;
        let mut wake = None;
        if let Some((since, timeout)) = found.open {
            // Past its deadline the rules fail it, even if it could not be sent.
            let late = since + timeout;
            // Whoever wants it soon does not wait for company.
            let due = since + options.linger.min(timeout / 2);
            let wanted = due <= now && self.core.wants(slot);
            if force || wanted || late <= now {
                for batch in partition.take() {
                    self.enqueue(slot, batch);
                }
            } else {
                // Once due, it waits for an answer to make room.
                wake = Some(if due > now { due } else { late });
            }
        }
        self.core.service(slot, now, &mut self.actions);
        self.act();
        let rules = self.core.wake_at(slot, now);
        self.set_timer(slot, wake.into_iter().chain(rules).min());
    }

    fn enqueue(&mut self, slot: SlotId, batch: ClosedBatch) {
        let (begun, timeout) = (batch.begun(), batch.timeout());
        self.core.enqueue(slot, batch, begun, timeout);
    }

    fn serve_all(&mut self, force: bool) {
        for slot in 0..self.slots.len() {
            self.serve(slot as SlotId, force);
        }
    }

    fn set_timer(&mut self, slot: SlotId, at: Option<Instant>) {
        let state = &mut self.slots[slot as usize];
        if state.timer == at {
            return;
        }
        if let Some(old) = state.timer.take() {
            self.timers.remove(&(old, slot));
        }
        if let Some(at) = at {
            self.timers.insert((at, slot));
        }
        state.timer = at;
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(&(at, slot)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.slots[slot as usize].timer = None;
            self.serve(slot, false);
        }
    }

    fn close_all(&mut self) {
        self.learn_slots();
        for slot in &self.slots {
            slot.partition.close();
        }
        self.serve_all(true);
    }

    // What the rules ask for.

    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Send {
                    route,
                    correlation_id,
                    wire,
                } => self.transmit(route, correlation_id, wire),
                Action::Complete { batch, outcome } => {
                    if let Err(error) = &outcome {
                        tracing::debug!(%error, records = batch.records(), "batch failed");
                    }
                    self.observe(&batch, &outcome);
                    self.shared.release(batch.reserved());
                    batch.complete(outcome);
                }
                Action::InitProducer { bump } => self.init_producer(bump, Duration::ZERO),
                Action::Connect { route } => self.connect(route),
                Action::Locate { slot } => {
                    let topic = self.slots[slot as usize].partition.topic_name.clone();
                    self.locate(topic);
                }
            }
        }
        // Keeps the allocation.
        self.actions = actions;
    }

    fn observe(&self, batch: &ClosedBatch, outcome: &Result<BatchAck>) {
        if let Some(observer) = &self.shared.options.observer.0 {
            match outcome {
                Ok(_) => observer.batch_acknowledged(&batch.info(), batch.begun().elapsed()),
                Err(error) => observer.batch_failed(&batch.info(), error),
            }
        }
    }

    fn transmit(&mut self, route: RouteId, correlation_id: u64, wire: Wire) {
        let route = &mut self.routes[route as usize];
        let RouteState::Ready(_, requests) = &route.state else {
            return;
        };
        if let Some(observer) = &self.shared.options.observer.0 {
            observer.batch_sent(&wire.info());
        }
        let request = v1::ProduceRequest {
            kind: Some(Up::Batch(v1::ProduceBatch {
                correlation_id,
                topic_id: wire.partition.topic_id.clone(),
                partition: wire.partition.partition,
                batch: wire.bytes,
            })),
        };
        // If the stream is gone, its end is on the way and the rules send the batch again.
        let _ = requests.send(request);
    }

    fn connect(&mut self, id: RouteId) {
        let route = &mut self.routes[id as usize];
        if !matches!(route.state, RouteState::Idle) {
            return;
        }
        let pause = match route.generation {
            0 => Duration::ZERO,
            _ => route.backoff.next_pause(),
        };
        route.generation += 1;
        let task = tokio::spawn(stream::run(
            self.client.clone(),
            route.address.clone(),
            id,
            route.generation,
            pause,
            self.news_sender.clone(),
        ));
        route.state = RouteState::Busy(task.abort_handle());
    }

    /// Looks a topic up, unless that is under way or was just done.
    fn locate(&mut self, topic: Arc<str>) {
        let options = &self.shared.options;
        let now = Instant::now();
        let lookup = self.lookups.entry(topic.clone()).or_insert_with(|| Lookup {
            task: None,
            unknown: 0,
            not_before: now,
            backoff: Backoff::new(options.retry_backoff, options.retry_backoff_max),
        });
        if lookup.task.is_some() {
            return;
        }
        let pause = lookup.not_before.saturating_duration_since(now);
        lookup.not_before = now + pause + lookup.backoff.next_exact();
        let client = self.client.clone();
        let reply = self.to_self.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let view = client.fetch_topic(&topic).await;
            let _ = reply.send(Command::Located(topic, view)).await;
        });
        lookup.task = Some(task.abort_handle());
    }

    /// A broker leaves. What it was asked just before may wait until it is gone: others are asked instead.
    fn ask_others(&mut self, id: RouteId) {
        self.client.leave(&self.routes[id as usize].address);
        let mut asked = Vec::new();
        for (topic, lookup) in &mut self.lookups {
            if let Some(task) = lookup.task.take() {
                task.abort();
                lookup.not_before = Instant::now();
                asked.push(topic.clone());
            }
        }
        for topic in asked {
            self.locate(topic);
        }
    }

    fn init_producer(&mut self, bump: Option<Epoch>, pause: Duration) {
        // Asked for as long as it takes: what waits for it fails by its own deadline.
        let bump = bump.filter(|epoch| epoch.epoch < MAX_EPOCH);
        let client = self.client.clone();
        let reply = self.to_self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let request = v1::InitProducerRequest {
                producer_id: bump.map(|epoch| epoch.producer_id),
                producer_epoch: bump.map(|epoch| i32::from(epoch.epoch)),
            };
            let answer = client
                .call_soon("InitProducer", |connection| async move {
                    connection.producer().init_producer(request).await
                })
                .await;
            let epoch = answer.and_then(|answer| read_epoch(&answer, bump));
            let _ = reply.send(Command::Initialized(bump, epoch)).await;
        });
    }

    // Events.

    fn on_command(&mut self, command: Command) {
        self.learn_slots();
        match command {
            Command::Seen(view) => self.apply_leaders(&view),
            Command::Located(topic, view) => self.on_located(&topic, view),
            Command::Initialized(_, Ok(epoch)) => {
                tracing::debug!(
                    producer_id = epoch.producer_id,
                    epoch = epoch.epoch,
                    "producer epoch"
                );
                self.init_backoff.reset();
                self.core.epoch_granted(epoch);
                self.serve_all(false);
            }
            Command::Initialized(bump, Err(error)) => self.on_not_initialized(bump, &error),
            Command::Flush(reply) => {
                self.serve_all(true);
                let completions = self
                    .core
                    .batches()
                    .map(|batch| batch.completion().clone())
                    .collect();
                // A caller that is gone needs no answer.
                let _ = reply.send(completions);
            }
        }
    }

    fn on_not_initialized(&mut self, bump: Option<Epoch>, error: &Error) {
        tracing::warn!(%error, "no producer epoch");
        let about_id = matches!(
            error.reason(),
            Some(Reason::ProducerFenced | Reason::UnknownProducer | Reason::OutOfOrderSequence)
        );
        // Fenced by an epoch that an earlier try got, whose answer was lost: a new id is as good.
        let new_id = bump.is_some() && about_id;
        if error.is_retriable() || new_id {
            let pause = self.init_backoff.next_pause();
            return self.init_producer(bump.filter(|_| !new_id), pause);
        }
        self.core
            .epoch_refused(false, Some(error), &mut self.actions);
        self.act();
    }

    fn on_located(&mut self, topic: &Arc<str>, view: Result<Arc<TopicView>>) {
        let unknown = matches!(&view, Err(error) if error.reason() == Some(Reason::UnknownTopic));
        let mut tries = 0;
        if let Some(lookup) = self.lookups.get_mut(topic) {
            lookup.task = None;
            lookup.unknown = if unknown { lookup.unknown + 1 } else { 0 };
            tries = lookup.unknown;
        }
        match view {
            Ok(view) => {
                // More partitions, or another topic of the same name.
                if let Err(error) = self.shared.adopt(&view) {
                    tracing::warn!(%error, %topic, "topic not taken in");
                }
                self.learn_slots();
                self.apply_leaders(&view);
                self.locate_if_stranded(topic);
            }
            Err(_) if unknown && tries < UNKNOWN_TRIES => self.locate(topic.clone()),
            Err(error) if unknown => self.topic_gone(topic, None, &error),
            Err(error) => {
                tracing::debug!(%error, %topic, "metadata not available");
                self.serve_topic(topic);
                self.locate_if_stranded(topic);
            }
        }
    }

    /// Looks a topic up again, a little later, while something of it can't be sent.
    fn locate_if_stranded(&mut self, topic: &Arc<str>) {
        let stranded = |slot: usize| {
            self.slots[slot].partition.topic_name == *topic && self.core.is_stranded(slot as SlotId)
        };
        if (0..self.slots.len()).any(stranded) {
            self.locate(topic.clone());
        } else if let Some(lookup) = self.lookups.get_mut(topic) {
            lookup.backoff.reset();
        }
    }

    /// Fails what waits for a topic that is not there, except for the one with the id `but`.
    fn topic_gone(&mut self, topic: &str, but: Option<&[u8]>, error: &Error) {
        for slot in 0..self.slots.len() {
            let partition = self.slots[slot].partition.clone();
            if &*partition.topic_name != topic || but == Some(&partition.topic_id[..]) {
                continue;
            }
            self.shared.forget(topic, &partition.topic_id);
            for batch in partition.take() {
                self.enqueue(slot as SlotId, batch);
            }
            self.core
                .fail_pending(slot as SlotId, error, &mut self.actions);
            self.act();
        }
    }

    fn serve_topic(&mut self, topic: &str) {
        for slot in 0..self.slots.len() {
            if &*self.slots[slot].partition.topic_name == topic {
                self.serve(slot as SlotId, false);
            }
        }
    }

    fn apply_leaders(&mut self, view: &TopicView) {
        let topic_id = &view.info.topic_id.0[..];
        let mut replaced = false;
        for slot in 0..self.slots.len() {
            let partition = self.slots[slot].partition.clone();
            if *partition.topic_name != *view.info.name {
                continue;
            }
            if partition.topic_id != topic_id {
                replaced = true;
                continue;
            }
            let number = partition.partition as usize;
            let leader = view.leaders.get(number).cloned().flatten();
            let told = view.info.partitions.get(number);
            let epoch = told.map_or(-1, |told| told.leader_epoch);
            self.follow(slot as SlotId, leader.as_deref(), epoch);
        }
        if replaced {
            let message = format!("topic {} was deleted and made again", view.info.name);
            let error = ApiError::new(Reason::UnknownTopic, message).into();
            self.topic_gone(&view.info.name, Some(topic_id), &error);
        }
        self.serve_topic(&view.info.name);
    }

    /// Sends a slot's batches to this leader from now on; `None`: nobody leads. Knowledge of an older epoch changes
    /// nothing. What a deposed leader has not answered is sent again to its successor.
    fn follow(&mut self, slot: SlotId, leader: Option<&str>, epoch: i32) {
        let known = self.slots[slot as usize].leader_epoch;
        let old = self.core.route_of(slot);
        if epoch < known {
            return;
        }
        // In the same epoch, who is reached was not told for nothing.
        let kept = old.filter(|&old| leader.is_none() && epoch == known && self.core.is_up(old));
        let new = kept.or_else(|| leader.map(|address| self.route(address)));
        self.slots[slot as usize].leader_epoch = epoch;
        if let Some(old) = old.filter(|_| epoch > known && old != new) {
            self.core.moved(slot, old);
        }
        self.core.set_route(slot, new);
    }

    /// Whether a refusal on a route says where to go on. Epochs rise, and nobody goes back to who refused in the same one,
    /// so no two brokers can send a batch back and forth.
    fn follow_hint(&mut self, slot: SlotId, refused_by: RouteId, hint: &LeaderHint) -> bool {
        let known = self.slots[slot as usize].leader_epoch;
        if hint.epoch > known {
            self.follow(slot, Some(&hint.address), hint.epoch);
            return true;
        }
        // Those behind the first that was refused say the same.
        let now = self.core.route_of(slot).filter(|&now| now != refused_by);
        hint.epoch == known
            && now.is_some_and(|now| *self.routes[now as usize].address == *hint.address)
    }

    fn route(&mut self, address: &str) -> RouteId {
        if let Some(&route) = self.by_address.get(address) {
            return route;
        }
        let address: Arc<str> = address.into();
        let options = self.client.options();
        let route = self.core.add_route();
        self.routes.push(Route {
            address: address.clone(),
            generation: 0,
            state: RouteState::Idle,
            backoff: Backoff::new(options.retry_backoff, options.retry_backoff_max),
            heard_at: Instant::now(),
        });
        self.by_address.insert(address, route);
        route
    }

    fn on_news(&mut self, event: StreamEvent) {
        let route = &mut self.routes[event.route as usize];
        if route.generation != event.generation {
            return;
        }
        route.heard_at = Instant::now();
        match event.news {
            News::Ready(requests, hello) => {
                let RouteState::Busy(task) = &route.state else {
                    return;
                };
                route.state = RouteState::Ready(task.clone(), requests);
                route.backoff.reset();
                let bound = |bytes: i64| usize::try_from(bytes).ok().filter(|&bytes| bytes > 0);
                if let Some(bytes) = bound(hello.max_batch_bytes) {
                    self.shared.limit_batches(bytes);
                }
                let max_bytes = bound(hello.max_in_flight_bytes).unwrap_or(usize::MAX);
                self.core.route_up(event.route, max_bytes);
                self.serve_all(false);
            }
            News::Said(said) => self.on_said(event.route, said),
            News::Ended(error) => self.on_ended(event.route, &error),
        }
    }

    fn on_said(&mut self, route: RouteId, said: Down) {
        let now = Instant::now();
        let (correlation_id, answer) = match said {
            Down::Ack(ack) => (
                ack.correlation_id,
                Ok(BatchAck {
                    base_offset: ack.base_offset,
                    log_append_time_ms: ack.log_append_time_ms,
                    duplicate: ack.duplicate,
                }),
            ),
            Down::Failure(failure) => {
                let error = ApiError::from_item(&failure.error.unwrap_or_default());
                (failure.correlation_id, Err(error))
            }
            Down::LeaderMoved(moved) => return self.on_moved(route, &moved),
            Down::GoAway(reason) => {
                tracing::info!(reason = reason.reason, "broker is draining");
                return self.drain(route);
            }
            Down::Hello(_) => return,
        };
        let largest = answer.as_ref().err().and_then(largest_batch);
        let unknown_topic =
            matches!(&answer, Err(error) if error.reason == Some(Reason::UnknownTopic));
        let hint = answer.as_ref().err().and_then(leader_hint);
        let slot = self
            .core
            .answered(correlation_id, answer, now, &mut self.actions);
        if let (Some(slot), Some(bytes)) = (slot, largest) {
            self.slots[slot as usize].partition.limit_batches(bytes);
        }
        if let (Some(slot), Some(hint)) = (slot, hint)
            && self.follow_hint(slot, route, &hint)
        {
            self.core.hurry(slot);
            self.actions
                .retain(|action| !matches!(action, Action::Locate { .. }));
        }
        self.act();
        if let Some(slot) = slot {
            if unknown_topic {
                let partition = &self.slots[slot as usize].partition;
                self.shared
                    .forget(&partition.topic_name, &partition.topic_id);
            }
            self.serve(slot, false);
        }
        for slot in self.core.take_throttled(route) {
            self.serve(slot, false);
        }
    }

    fn on_moved(&mut self, from: RouteId, moved: &v1::LeaderMoved) {
        let found = self.slots.iter().position(|slot| {
            slot.partition.partition == moved.partition && slot.partition.topic_id == moved.topic_id
        });
        let Some(slot) = found.map(|slot| slot as SlotId) else {
            return;
        };
        self.core.moved(slot, from);
        let to = Some(moved.leader_address.as_str()).filter(|address| !address.is_empty());
        self.follow(slot, to, moved.leader_epoch);
        self.core.hurry(slot);
        self.serve(slot, false);
    }

    /// Sends nothing more on a stream, and ends our side of it: the broker ends it after its last answer.
    fn drain(&mut self, id: RouteId) {
        self.core.route_draining(id);
        let route = &mut self.routes[id as usize];
        if let RouteState::Ready(task, _) = &route.state {
            route.state = RouteState::Busy(task.clone());
        }
        self.ask_others(id);
        self.locate_all_of(id);
    }

    fn on_ended(&mut self, id: RouteId, error: &Error) {
        tracing::debug!(%error, "produce stream ended");
        let before = std::mem::replace(&mut self.routes[id as usize].state, RouteState::Idle);
        if matches!(before, RouteState::Ready(..)) {
            self.ask_others(id);
        }
        self.core.route_down(id, &error.to_string());
        self.locate_all_of(id);
        self.serve_all(false);
    }

    /// The leaders of these partitions may be others now.
    fn locate_all_of(&mut self, route: RouteId) {
        let on_route = |&slot: &usize| self.core.route_of(slot as SlotId) == Some(route);
        let mut topics: Vec<_> = (0..self.slots.len())
            .filter(on_route)
            .map(|slot| self.slots[slot].partition.topic_name.clone())
            .collect();
        topics.sort();
        topics.dedup();
        for topic in topics {
            self.locate(topic);
        }
    }

    fn keep_house(&mut self) {
        let patience = self.client.options().request_timeout;
        for id in 0..self.routes.len() as RouteId {
            let route = &mut self.routes[id as usize];
            let silent_for = route.heard_at.elapsed();
            if !self.core.is_waiting(id) {
                route.heard_at = Instant::now();
            } else if (SILENT_AFTER..=patience).contains(&silent_for) {
                self.locate_all_of(id);
            } else if route.heard_at.elapsed() > patience {
                if let RouteState::Busy(task) | RouteState::Ready(task, _) = &route.state {
                    task.abort();
                }
                route.generation += 1;
                let error = Error::Timeout {
                    what: format!("the produce stream to {}", route.address),
                    after: patience,
                };
                self.on_ended(id, &error);
            }
        }
        let age = self.client.options().metadata_max_age;
        for topic in self.shared.topic_names() {
            if self.client.is_stale(&topic, age) {
                self.locate(topic);
            }
        }
    }
}

/// The topic's bound of a batch, if that is what the refusal tells.
fn largest_batch(error: &ApiError) -> Option<usize> {
    let told = error.metadata.get("max_message_bytes");
    let told = told.filter(|_| error.reason == Some(Reason::RecordTooLarge))?;
    told.parse().ok()
}

/// Checks what the broker granted.
fn read_epoch(answer: &v1::InitProducerResponse, bump: Option<Epoch>) -> Result<Epoch> {
    let epoch = i16::try_from(answer.producer_epoch)
        .ok()
        .filter(|&epoch| epoch >= 0);
    let granted = epoch
        .filter(|_| answer.producer_id >= 0)
        .map(|epoch| Epoch {
            producer_id: answer.producer_id,
            epoch,
        });
    granted
        .filter(|&granted| Some(granted) != bump)
        .ok_or_else(|| Error::Protocol {
            message: format!(
                "InitProducer granted id {} and epoch {}, which is out of range or not new",
                answer.producer_id, answer.producer_epoch
            ),
        })
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
