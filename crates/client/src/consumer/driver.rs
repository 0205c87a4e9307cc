//! The task behind a consumer: one fetch stream per broker, assignments on it, bytes granted as they are consumed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1;
use timberline_proto::v1::fetch_request::Kind as Up;
use timberline_proto::v1::fetch_response::Kind as Down;
use timberline_record::Batch;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::backoff::Backoff;
use crate::client::{Client, by_id, leader_hint};
use crate::consumer::Position;
use crate::consumer::shared::{Credit, Item, Outage, Shared, Wanted};
use crate::consumer::stream::{self, News, StreamId};
use crate::error::{Error, Result, is_retriable};
use crate::metadata::TopicView;
use crate::options::{ConsumerOptions, OffsetReset};

/// Messages of brokers that wait for the driver. Their data is within the bytes granted.
const QUEUE: usize = 64;

/// What a topic that a broker does not know means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The partition fails: who assigned it believes that it is there.
    Fails,
    /// It is asked for again, until somebody takes it away: a topic is known to its group before it is known everywhere.
    Waits,
}

/// Answers to what the driver had asked for in the background.
enum Answer {
    Located(Arc<str>, Result<Arc<TopicView>>),
    /// Where the reset policy leads an assignment.
    Reset(u64, Result<i64>),
}

pub(crate) struct Driver {
    client: Client,
    options: Arc<ConsumerOptions>,
    gone: Gone,
    shared: Arc<Shared>,
    items: mpsc::UnboundedSender<Item>,
    assignments: BTreeMap<u64, Assignment>,
    routes: Vec<Route>,
    by_address: HashMap<Arc<str>, usize>,
    lookups: HashMap<Arc<str>, Lookup>,
    news: mpsc::Receiver<(StreamId, News)>,
    news_sender: mpsc::Sender<(StreamId, News)>,
    answers: mpsc::Receiver<Answer>,
    answers_sender: mpsc::Sender<Answer>,
}

struct Assignment {
    wanted: Wanted,
    /// One behind the last offset received.
    next_offset: i64,
    leader_epoch: Option<i32>,
    /// The newest epoch of a leader heard of. What is told of older ones is out of date.
    known_epoch: i32,
    route: Option<usize>,
    state: State,
    backoff: Backoff,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// To be sent once its route is ready.
    Unsent,
    /// With the broker.
    Sent,
    /// Refused; to be sent again at this time.
    Later(Instant),
    /// Waits for the reset policy's offset.
    Resetting,
    /// Failed; the application was told.
    Paused,
}

struct Route {
    address: Arc<str>,
    generation: u64,
    task: Option<AbortHandle>,
    requests: Option<mpsc::UnboundedSender<v1::FetchRequest>>,
    credit: Arc<Credit>,
    backoff: Backoff,
    /// From the end of a stream until another one is ready.
    outage: Option<Outage>,
}

struct Lookup {
    running: bool,
    not_before: Instant,
    backoff: Backoff,
}

impl Driver {
    pub(crate) fn new(
        client: Client,
        options: Arc<ConsumerOptions>,
        gone: Gone,
        shared: Arc<Shared>,
        items: mpsc::UnboundedSender<Item>,
    ) -> Driver {
        let (news_sender, news) = mpsc::channel(QUEUE);
        let (answers_sender, answers) = mpsc::channel(QUEUE);
        Driver {
            client,
            options,
            gone,
            shared,
            items,
            assignments: BTreeMap::new(),
            routes: Vec::new(),
            by_address: HashMap::new(),
            lookups: HashMap::new(),
            news,
            news_sender,
            answers,
            answers_sender,
        }
    }

    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        while !shared.closed.load(Ordering::Acquire) {
            let retry = self
                .assignments
                .values()
                .filter_map(|assignment| match assignment.state {
                    State::Later(at) => Some(at),
                    _ => None,
                });
            let retry = retry.min();
            tokio::select! {
                () = shared.wake.notified() => {}
                Some((id, news)) = self.news.recv() => self.on_news(id, news),
                Some(answer) = self.answers.recv() => self.on_answer(answer),
                () = sleep_until(retry) => self.retry(),
            }
            if shared.wanted_changed.swap(false, Ordering::AcqRel) {
                self.follow();
                self.publish_outage();
            }
            self.grant();
        }
        for route in &self.routes {
            if let Some(task) = &route.task {
                task.abort();
            }
        }
    }

    fn backoff(&self) -> Backoff {
        let options = self.client.options();
        Backoff::new(options.retry_backoff, options.retry_backoff_max)
    }

    // Assignments.

    /// Makes the assignments those that the application wants.
    fn follow(&mut self) {
        let wanted = self.shared.wanted.lock().clone();
        let is_wanted: HashSet<_> = wanted.values().map(Wanted::key).collect();
        let gone = self
            .assignments
            .keys()
            .filter(|&id| !wanted.contains_key(id))
            .copied();
        for id in gone.collect::<Vec<_>>() {
            let Some(assignment) = self.assignments.remove(&id) else {
                continue;
            };
            // An assignment of the same partition moves it on the stream by itself.
            if assignment.state == State::Sent && !is_wanted.contains(&assignment.wanted.key()) {
                self.ask(assignment.route, remove(&assignment));
            }
        }
        let mut new_of_topics = BTreeSet::new();
        for (id, wanted) in wanted {
            if self.assignments.contains_key(&id) {
                continue;
            }
            new_of_topics.insert(wanted.topic.clone());
            let assignment = Assignment {
                next_offset: wanted.offset,
                wanted,
                leader_epoch: None,
                known_epoch: -1,
                route: None,
                state: State::Unsent,
                backoff: self.backoff(),
            };
            self.assignments.insert(id, assignment);
        }
        for topic in new_of_topics {
            match self.client.cached_topic(&topic) {
                Some(view) => self.apply_leaders(&view),
                None => self.locate(topic),
            }
        }
    }

    /// Sends an assignment to its leader, if the stream is ready; otherwise sees to it that it will be.
    fn send(&mut self, id: u64) {
        let Some(assignment) = self.assignments.get_mut(&id) else {
            return;
        };
        if assignment.state != State::Unsent {
            return;
        }
        let Some(route) = assignment.route else {
            let topic = assignment.wanted.topic.clone();
            return self.locate(topic);
        };
        let Some(requests) = &self.routes[route].requests else {
            return self.connect(route);
        };
        let request = Up::Assign(v1::FetchAssign {
            topic_id: assignment.wanted.topic_id.to_vec().into(),
            partition: assignment.wanted.partition,
            offset: assignment.next_offset,
            assignment_id: id,
            leader_epoch: assignment.leader_epoch,
        });
        // If the stream is gone, its end is on the way and the assignment is sent again.
        let _ = requests.send(v1::FetchRequest {
            kind: Some(request),
        });
        assignment.state = State::Sent;
    }

    fn ask(&self, route: Option<usize>, kind: Up) {
        let requests = route.and_then(|route| self.routes[route].requests.as_ref());
        if let Some(requests) = requests {
            let _ = requests.send(v1::FetchRequest { kind: Some(kind) });
        }
    }

    fn retry(&mut self) {
        let now = Instant::now();
        let due = |state| matches!(state, State::Later(at) if at <= now);
        let ids: Vec<_> = self
            .assignments
            .iter()
            .filter(|(_, a)| due(a.state))
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            if let Some(assignment) = self.assignments.get_mut(&id) {
                assignment.state = State::Unsent;
            }
            self.send(id);
        }
    }

    fn fail(&mut self, id: u64, error: Error) {
        if let Some(assignment) = self.assignments.get_mut(&id) {
            assignment.state = State::Paused;
            let _ = self.items.send(Item::Failed {
                assignment: id,
                error,
            });
        }
    }

    // Streams.

    fn route(&mut self, address: &str) -> usize {
        if let Some(&route) = self.by_address.get(address) {
            return route;
        }
        let address: Arc<str> = address.into();
        self.routes.push(Route {
            address: address.clone(),
            generation: 0,
            task: None,
            requests: None,
            credit: Arc::default(),
            backoff: self.backoff(),
            outage: None,
        });
        self.by_address.insert(address, self.routes.len() - 1);
        self.routes.len() - 1
    }

    fn connect(&mut self, id: usize) {
        let route = &mut self.routes[id];
        if route.task.is_some() {
            return;
        }
        let pause = match route.generation {
            0 => Duration::ZERO,
            _ => route.backoff.next_pause(),
        };
        route.generation += 1;
        let stream = StreamId {
            route: id,
            generation: route.generation,
        };
        let task = tokio::spawn(stream::run(
            self.client.clone(),
            self.options.clone(),
            route.address.clone(),
            stream,
            pause,
            self.news_sender.clone(),
        ));
        route.task = Some(task.abort_handle());
    }

    /// Grants what the application took out of the queue.
    fn grant(&mut self) {
        for route in &self.routes {
            let returned = match route.requests {
                Some(_) => route.credit.returned.swap(0, Ordering::Relaxed),
                None => 0,
            };
            if let Some(requests) = route.requests.as_ref().filter(|_| returned > 0) {
                let kind = Some(Up::GrantBytes(returned as i64));
                let _ = requests.send(v1::FetchRequest { kind });
            }
        }
    }

    fn on_news(&mut self, id: StreamId, news: News) {
        if self.routes[id.route].generation != id.generation {
            return;
        }
        match news {
            News::Ready(requests) => self.on_ready(id.route, requests),
            News::Said(Down::Data(data)) => self.on_data(id.route, data),
            News::Said(Down::Failure(failure)) => self.on_failure(failure),
            News::Said(Down::Progress(progress)) => {
                if let Some(assignment) = self.assignments.get(&progress.assignment_id) {
                    assignment
                        .wanted
                        .progress
                        .high_watermark
                        .store(progress.high_watermark, Ordering::Relaxed);
                }
            }
            News::Said(Down::GoAway(reason)) => {
                tracing::info!(reason = reason.reason, "broker is draining");
                let error = Error::Transport {
                    address: self.routes[id.route].address.to_string(),
                    message: format!("the broker goes away: {}", reason.reason),
                };
                self.on_ended(id.route, error);
            }
            News::Said(Down::Hello(_)) => {}
            News::Ended(error) => {
                tracing::debug!(%error, "fetch stream ended");
                if !error.is_retriable() {
                    self.fail_all_of(id.route, &error);
                }
                self.on_ended(id.route, error);
            }
        }
    }

    fn on_ready(&mut self, id: usize, requests: mpsc::UnboundedSender<v1::FetchRequest>) {
        let route = &mut self.routes[id];
        route.backoff.reset();
        route.outage = None;
        // What an earlier stream sent may still be in the queue: it counts.
        route.credit.returned.store(0, Ordering::Relaxed);
        let queued = route.credit.queued.load(Ordering::Relaxed);
        let granted = self.options.prefetch_bytes.saturating_sub(queued);
        route.credit.returned.fetch_add(granted, Ordering::Relaxed);
        route.requests = Some(requests);
        self.publish_outage();
        self.send_all_of(id);
    }

    fn send_all_of(&mut self, route: usize) {
        let on_route = self
            .assignments
            .iter()
            .filter(|(_, assignment)| assignment.route == Some(route));
        for id in on_route.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.send(id);
        }
    }

    /// A stream that ended for good, say for a version not supported or a message too large, would end so again.
    fn fail_all_of(&mut self, route: usize, error: &Error) {
        let on_route = self
            .assignments
            .iter()
            .filter(|(_, assignment)| assignment.route == Some(route));
        for id in on_route.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.fail_unless_paused(id, error);
        }
    }

    fn on_ended(&mut self, id: usize, error: Error) {
        let route = &mut self.routes[id];
        let since = route
            .outage
            .as_ref()
            .map_or_else(Instant::now, |outage| outage.since);
        route.outage = Some(Outage { since, error });
        self.publish_outage();
        let route = &mut self.routes[id];
        if let Some(task) = route.task.take() {
            task.abort();
        }
        route.requests = None;
        let mut topics = Vec::new();
        for assignment in self
            .assignments
            .values_mut()
            .filter(|assignment| assignment.route == Some(id))
        {
            if assignment.state == State::Sent {
                assignment.state = State::Unsent;
            }
            topics.push(assignment.wanted.topic.clone());
        }
        topics.sort();
        topics.dedup();
        for topic in topics {
            self.locate(topic);
        }
        self.send_all_of(id);
    }

    /// Lets the application see the longest outage of a broker that it needs.
    fn publish_outage(&self) {
        let needed = |route: usize| {
            self.assignments.values().any(|assignment| {
                assignment.route == Some(route) && assignment.state != State::Paused
            })
        };
        let outages = self.routes.iter().enumerate();
        let longest = outages
            .filter_map(|(at, route)| Some((at, route.outage.as_ref()?)))
            .filter(|(at, _)| needed(*at))
            .map(|(_, outage)| outage)
            .min_by_key(|outage| outage.since)
            .cloned();
        self.shared.outage.send_if_modified(|now| {
            let since = |outage: &Option<Outage>| outage.as_ref().map(|outage| outage.since);
            let changed = since(now) != since(&longest);
            *now = longest;
            changed
        });
    }

    // Data.

    fn on_data(&mut self, route: usize, data: v1::FetchData) {
        let credit = self.routes[route].credit.clone();
        let bytes: usize = data.batches.iter().map(Bytes::len).sum();
        let sent = self
            .assignments
            .get_mut(&data.assignment_id)
            .filter(|a| a.state == State::Sent);
        let Some(assignment) = sent else {
            // Of an assignment that is gone: its bytes can be granted again at once.
            credit.returned.fetch_add(bytes, Ordering::Relaxed);
            return;
        };
        assignment
            .wanted
            .progress
            .high_watermark
            .store(data.high_watermark, Ordering::Relaxed);
        assignment.leader_epoch = Some(data.leader_epoch);
        assignment.backoff.reset();
        let mut failed = None;
        for (at, bytes) in data.batches.iter().enumerate() {
            let len = bytes.len();
            if failed.is_some() {
                credit.returned.fetch_add(len, Ordering::Relaxed);
                continue;
            }
            match check(bytes, self.options.verify_crc) {
                Ok(batch) if batch.header().next_offset() <= assignment.next_offset => {
                    credit.returned.fetch_add(len, Ordering::Relaxed);
                }
                Ok(batch) => {
                    assignment.next_offset = batch.header().next_offset();
                    credit.queued.fetch_add(len, Ordering::Relaxed);
                    let item = Item::Data {
                        assignment: data.assignment_id,
                        batch,
                        credit: credit.clone(),
                    };
                    // Without a consumer the driver ends soon.
                    let _ = self.items.send(item);
                }
                Err(error) => {
                    credit.returned.fetch_add(len, Ordering::Relaxed);
                    failed = Some(damaged(assignment, &data.batches[at..], &error));
                }
            }
        }
        if let Some(error) = failed {
            let request = remove(assignment);
            self.ask(Some(route), request);
            self.fail(data.assignment_id, error);
        }
    }

    fn on_failure(&mut self, failure: v1::FetchFailure) {
        let id = failure.assignment_id;
        let error = ApiError::from_item(&failure.error.unwrap_or_default());
        let sent = self
            .assignments
            .get_mut(&id)
            .filter(|a| a.state == State::Sent);
        let Some(assignment) = sent else { return };
        let topic = assignment.wanted.topic.clone();
        let known = assignment.known_epoch;
        if let Some(hint) = leader_hint(&error).filter(|hint| hint.epoch > known) {
            // Epochs rise, so no two brokers can send it back and forth.
            let route = self.route(&hint.address);
            if let Some(assignment) = self.assignments.get_mut(&id) {
                assignment.known_epoch = hint.epoch;
                assignment.route = Some(route);
                assignment.state = State::Unsent;
            }
            self.publish_outage();
            return self.send(id);
        }
        if is_retriable(&error) {
            let pause = assignment
                .backoff
                .next_pause()
                .max(error.retry_after.unwrap_or_default());
            assignment.state = State::Later(Instant::now() + pause);
            if matches!(
                error.reason,
                Some(Reason::NotLeader | Reason::NoLeader | Reason::Draining)
            ) {
                self.locate(topic);
            }
            return;
        }
        match error.reason {
            Some(Reason::OffsetOutOfRange) => self.out_of_range(id, &error),
            Some(Reason::DataDamaged) => {
                let damage = data_damaged(assignment, &error);
                self.fail(id, damage);
            }
            Some(Reason::UnknownTopic) => {
                self.client.forget_topic(&topic);
                self.topic_is_gone(id, &error.into());
            }
            _ => self.fail(id, error.into()),
        }
    }

    fn out_of_range(&mut self, id: u64, error: &ApiError) {
        let Some(assignment) = self.assignments.get_mut(&id) else {
            return;
        };
        let wanted = &assignment.wanted;
        let to = match self.options.offset_reset {
            OffsetReset::Earliest => Position::Earliest,
            OffsetReset::Latest => Position::Latest,
            OffsetReset::Error => {
                let error = Error::OffsetOutOfRange {
                    topic: wanted.topic.to_string(),
                    partition: wanted.partition,
                    offset: assignment.next_offset,
                    log_start: fact(error, "log_start").unwrap_or(0),
                    high_watermark: fact(error, "high_watermark").unwrap_or(0),
                };
                return self.fail(id, error);
            }
        };
        tracing::warn!(topic = %wanted.topic, partition = wanted.partition, offset = assignment.next_offset,
            ?to, "position is out of range: resetting it");
        assignment.state = State::Resetting;
        let topic = by_id(wanted.topic_id);
        let (client, name, partition, reply) = (
            self.client.clone(),
            wanted.topic.clone(),
            wanted.partition,
            self.answers_sender.clone(),
        );
        tokio::spawn(async move {
            let offset = client.offset_of(&name, topic, partition, to).await;
            let _ = reply.send(Answer::Reset(id, offset)).await;
        });
    }

    // Metadata.

    fn locate(&mut self, topic: Arc<str>) {
        let now = Instant::now();
        let backoff = self.backoff();
        let lookup = self.lookups.entry(topic.clone()).or_insert(Lookup {
            running: false,
            not_before: now,
            backoff,
        });
        if lookup.running {
            return;
        }
        lookup.running = true;
        let pause = lookup.not_before.saturating_duration_since(now);
        lookup.not_before = now + pause + lookup.backoff.next_exact();
        let (client, reply) = (self.client.clone(), self.answers_sender.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let view = client.fetch_topic(&topic).await;
            let _ = reply.send(Answer::Located(topic, view)).await;
        });
    }

    fn on_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Reset(id, Ok(offset)) => {
                let resetting = self
                    .assignments
                    .get_mut(&id)
                    .filter(|a| a.state == State::Resetting);
                let Some(assignment) = resetting else { return };
                assignment.next_offset = offset;
                assignment.state = State::Unsent;
                let _ = self.items.send(Item::Moved {
                    assignment: id,
                    offset,
                });
                self.send(id);
            }
            Answer::Reset(id, Err(error)) if error.is_retriable() => {
                let resetting = self
                    .assignments
                    .get_mut(&id)
                    .filter(|a| a.state == State::Resetting);
                if let Some(assignment) = resetting {
                    // Refused again there, and asked again.
                    assignment.state =
                        State::Later(Instant::now() + assignment.backoff.next_pause());
                }
            }
            Answer::Reset(id, Err(error)) => self.fail(id, error),
            Answer::Located(topic, view) => {
                if let Some(lookup) = self.lookups.get_mut(&topic) {
                    lookup.running = false;
                }
                match view {
                    Ok(view) => self.apply_leaders(&view),
                    Err(error) => self.not_located(&topic, &error),
                }
                self.locate_if_stranded(&topic);
            }
        }
    }

    /// Looks a topic up again, a little later, while the leader of something that is wanted is unknown or not reached.
    fn locate_if_stranded(&mut self, topic: &Arc<str>) {
        let stranded = |assignment: &Assignment| {
            let route = assignment.route.map(|route| &self.routes[route]);
            let reached = route.is_some_and(|route| route.requests.is_some());
            // What has not been tried yet is not out of reach.
            let failed = route.is_none_or(|route| route.outage.is_some());
            assignment.state == State::Unsent && !reached && failed
        };
        let mut of_topic = self.assignments.values();
        if of_topic.any(|assignment| assignment.wanted.topic == *topic && stranded(assignment)) {
            self.locate(topic.clone());
        } else if let Some(lookup) = self.lookups.get_mut(topic) {
            lookup.backoff.reset();
        }
    }

    fn of_topic(&self, topic: &str) -> Vec<u64> {
        let of_topic = self
            .assignments
            .iter()
            .filter(|(_, a)| *a.wanted.topic == *topic);
        of_topic.map(|(&id, _)| id).collect()
    }

    fn not_located(&mut self, topic: &Arc<str>, error: &Error) {
        tracing::debug!(%error, %topic, "metadata not available");
        for id in self.of_topic(topic) {
            if error.reason() == Some(Reason::UnknownTopic) {
                self.topic_is_gone(id, error);
            } else {
                self.send(id);
            }
        }
    }

    /// The topic is not there, or not there yet.
    fn topic_is_gone(&mut self, id: u64, error: &Error) {
        match self.gone {
            Gone::Fails => self.fail_unless_paused(id, error),
            Gone::Waits => {
                if let Some(assignment) = self.assignments.get_mut(&id) {
                    let pause = assignment.backoff.next_pause();
                    assignment.state = State::Later(Instant::now() + pause);
                }
            }
        }
    }

    fn fail_unless_paused(&mut self, id: u64, error: &Error) {
        if self
            .assignments
            .get(&id)
            .is_some_and(|assignment| assignment.state != State::Paused)
        {
            self.fail(id, error.clone());
        }
    }

    fn apply_leaders(&mut self, view: &TopicView) {
        for id in self.of_topic(&view.info.name) {
            let Some(assignment) = self.assignments.get(&id) else {
                continue;
            };
            if assignment.wanted.topic_id != view.info.topic_id.0 {
                let message = format!("topic {} was deleted and made again", view.info.name);
                let error = ApiError::new(Reason::UnknownTopic, message).into();
                self.topic_is_gone(id, &error);
                continue;
            }
            let number = assignment.wanted.partition as usize;
            let told = view.info.partitions.get(number);
            let epoch = told.map_or(-1, |told| told.leader_epoch);
            if epoch < assignment.known_epoch {
                // Out of date.
                self.send(id);
                continue;
            }
            let leader = view.leaders.get(number).cloned().flatten();
            let route = leader.map(|address| self.route(&address));
            let Some(assignment) = self.assignments.get_mut(&id) else {
                continue;
            };
            // Who goes on sending in the same epoch leads.
            let kept = route.is_none()
                && epoch == assignment.known_epoch
                && assignment.state == State::Sent;
            assignment.known_epoch = epoch;
            if assignment.route != route && !kept {
                let old = assignment.route;
                let was_sent = assignment.state == State::Sent;
                let request = remove(assignment);
                assignment.route = route;
                if was_sent {
                    assignment.state = State::Unsent;
                    self.ask(old, request);
                }
            }
            self.send(id);
        }
        // A partition led elsewhere needs its old leader no more.
        self.publish_outage();
    }
}

fn remove(assignment: &Assignment) -> Up {
    Up::Remove(v1::FetchRemove {
        topic_id: assignment.wanted.topic_id.to_vec().into(),
        partition: assignment.wanted.partition,
    })
}

fn check(bytes: &Bytes, verify_crc: bool) -> Result<Batch, timberline_record::Error> {
    let batch = Batch::parse(bytes.clone())?;
    if verify_crc {
        batch.verify_crc()?;
    }
    Ok(batch)
}

/// The error for the first of `batches`: its offsets as far as they can be told, up to the next sound batch.
fn damaged(assignment: &Assignment, batches: &[Bytes], error: &timberline_record::Error) -> Error {
    let from = assignment.next_offset;
    let header = |bytes: &Bytes| {
        Batch::parse(bytes.clone())
            .ok()
            .map(|batch| *batch.header())
    };
    let own_end = header(&batches[0])
        .map(|header| header.next_offset())
        .filter(|&end| end > from);
    let next = batches[1..]
        .iter()
        .find_map(header)
        .map(|header| header.base_offset);
    let to = next
        .filter(|&next| next > from)
        .or(own_end)
        .unwrap_or(from + 1);
    Error::CorruptBatch {
        topic: assignment.wanted.topic.to_string(),
        partition: assignment.wanted.partition,
        from,
        to,
        message: error.to_string(),
    }
}

fn data_damaged(assignment: &Assignment, error: &ApiError) -> Error {
    let from = fact(error, "damaged_from").unwrap_or(assignment.next_offset);
    let to = fact(error, "damaged_to").unwrap_or(from + 1);
    Error::DataDamaged {
        topic: assignment.wanted.topic.to_string(),
        partition: assignment.wanted.partition,
        from,
        to,
        message: error.message.clone(),
    }
}

/// A number out of an error's metadata.
fn fact(error: &ApiError, name: &str) -> Option<i64> {
    error.metadata.get(name)?.parse().ok()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
