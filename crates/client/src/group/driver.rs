//! The task behind a group's consumer: does what the rules of `core` ask for, over gRPC and with the application.
//!
//! A release goes through three steps: the application comes back for more (or is late), the listener finishes (or is late), what
//! is to be committed of it is answered. Then the coordinator is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::Rng;
use timberline_proto::error::ApiError;
use timberline_proto::v1;
use timberline_proto::v1::join_request::Kind as Upward;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::commits::{Commits, Entry};
use super::committer::Reply;
use super::core::{Action, Committed, Core, Greeting, Rules, Tp, Up};
use super::listen::Listening;
use super::options::GroupOptions;
use super::shared::{Command, Commands, Mailbox};
use super::starts::{self, Beginning, Known, Resolver};
use super::stream::{self, News};
use super::types::{OffsetCommit, Revocation, TopicPartition};
use super::{Committer, MemberState};
use crate::backoff::Backoff;
use crate::client::{Client, by_id};
use crate::connection::hello;
use crate::consumer::reader::Begin;
use crate::consumer::shared::Progress;
use crate::error::{Error, Result};
use crate::options::OffsetReset;
use crate::types::TopicId;

/// What streams and tasks say that is not read yet.
const QUEUE: usize = 256;

/// What tasks in the background found out.
enum Answer {
    Located(Result<(Arc<str>, i64, Arc<Known>)>),
    Begin(u64, Vec<Beginning>),
    Listened(u64),
    Committed(Vec<Tp>, Result<v1::CommitResponse>),
}

/// A partition that is held.
struct Reading {
    topic: Arc<str>,
    progress: Arc<Progress>,
    /// Where to begin is being found out, under this number; nothing is read yet.
    starting: Option<u64>,
}

enum Step {
    /// The application still has something of it, until then.
    Stopping(Instant),
    Listening,
    Committing,
}

struct Release {
    ticket: u64,
    parts: Vec<Tp>,
    until: Instant,
    step: Step,
}

struct Stream {
    up: mpsc::Sender<v1::JoinRequest>,
    task: AbortHandle,
}

pub(crate) struct Driver {
    client: Client,
    options: GroupOptions,
    mailbox: Arc<Mailbox>,
    committer: Committer,
    state: tokio::sync::watch::Sender<MemberState>,
    listening: Option<Listening>,
    core: Core,
    commits: Commits,
    reading: BTreeMap<Tp, Reading>,
    names: HashMap<TopicId, Arc<str>>,
    releases: Vec<Release>,
    known: Option<Arc<Known>>,
    stream: Option<Stream>,
    generation: u64,
    coordinator: Option<Arc<str>>,
    next_ticket: u64,
    next_auto_commit: Option<Instant>,
    polls_seen: u64,
    polled_at: Instant,
    closing: Option<oneshot::Sender<Result<()>>>,
    gone: bool,
    commands: mpsc::UnboundedReceiver<Command>,
    news: mpsc::Receiver<(u64, News)>,
    news_sender: mpsc::Sender<(u64, News)>,
    answers: mpsc::Receiver<Answer>,
    answers_sender: mpsc::Sender<Answer>,
    /// Of the question for the coordinator, and of beginnings: they end with the driver.
    tasks: tokio::task::JoinSet<()>,
}

impl Driver {
    pub(crate) fn new(
        client: Client,
        options: GroupOptions,
        mailbox: Arc<Mailbox>,
        committer: Committer,
        commands: mpsc::UnboundedReceiver<Command>,
        listening: Option<Listening>,
        state: tokio::sync::watch::Sender<MemberState>,
    ) -> Driver {
        let now = Instant::now();
        let (news_sender, news) = mpsc::channel(QUEUE);
        let (answers_sender, answers) = mpsc::channel(QUEUE);
        let of_client = client.options();
        let backoff = Backoff::new(of_client.retry_backoff, of_client.retry_backoff_max);
        Driver {
            core: Core::new(now, Rules { backoff }),
            commits: Commits::new(backoff),
            next_auto_commit: options.auto_commit.map(|every| now + every),
            client,
            options,
            mailbox,
            committer,
            state,
            listening,
            reading: BTreeMap::new(),
            names: HashMap::new(),
            releases: Vec::new(),
            known: None,
            stream: None,
            generation: 0,
            coordinator: None,
            next_ticket: 0,
            polls_seen: 0,
            polled_at: now,
            closing: None,
            gone: false,
            commands,
            news,
            news_sender,
            answers,
            answers_sender,
            tasks: tokio::task::JoinSet::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.work();
            if self.gone {
                break;
            }
            let wake = self.next_wake();
            tokio::select! {
                Some(command) = self.commands.recv() => self.on_command(command),
                Some((generation, news)) = self.news.recv() => self.on_news(generation, news),
                Some(answer) = self.answers.recv() => self.on_answer(answer),
                Some(_) = self.tasks.join_next() => {}
                () = sleep_until(wake) => self.on_time(),
            }
        }
        self.hang_up();
        if let Some(reply) = self.closing.take() {
            let _ = reply.send(Ok(()));
        }
    }

    /// Does all that follows from what has happened.
    fn work(&mut self) {
        loop {
            while let Some(action) = self.core.next_action() {
                self.act(action);
            }
            self.send_commits();
            if !self.finish_releases() {
                return self.publish();
            }
        }
    }

    fn publish(&self) {
        let epoch = self.core.identity();
        let now = MemberState {
            member_id: epoch.map(|(member, _)| member.to_owned()),
            epoch: epoch.map_or(0, |(_, epoch)| epoch),
            connected: self.core.is_joined(),
        };
        self.state.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    fn next_wake(&self) -> Option<Instant> {
        let release = |release: &Release| match release.step {
            Step::Stopping(until) => Some(until),
            Step::Listening | Step::Committing => None,
        };
        let releases = self.releases.iter().filter_map(release).min();
        let auto = self.next_auto_commit.filter(|_| !self.reading.is_empty());
        let commits = self.commits.next_wake(self.core.is_joined());
        [self.core.next_wake(), releases, auto, commits]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.core.tick(now);
        let timed_out = Error::Timeout {
            what: "a commit".to_owned(),
            after: self.client.options().request_timeout,
        };
        self.commits.expire(now, &timed_out);
        if self.next_auto_commit.is_some_and(|at| at <= now) {
            self.next_auto_commit = self.options.auto_commit.map(|every| now + every);
            let all: Vec<Tp> = self.reading.keys().copied().collect();
            self.commit_done(&all);
        }
        let late = self.releases.iter().filter(|release| match release.step {
            Step::Stopping(until) => until <= now,
            Step::Listening | Step::Committing => false,
        });
        let late: Vec<u64> = late.map(|release| release.ticket).collect();
        for ticket in late {
            self.mailbox
                .put(|mail| mail.tickets.retain(|known| *known != ticket));
            self.listen(ticket);
        }
    }

    // The rules.

    fn act(&mut self, action: Action) {
        match action {
            Action::Locate { pause } => self.locate(pause),
            Action::Connect { address, greeting } => self.connect(address, greeting),
            Action::Say(up) => self.say(up),
            Action::HangUp => self.hang_up(),
            Action::Release { parts, until } => self.release(parts, until),
            Action::Start(parts) => self.start(parts),
            Action::Lost { parts, why } => self.lose(&parts, &why),
            Action::Ended(error) => {
                tracing::warn!(%error, group = self.options.group, "the membership is over");
                self.mailbox.put(|mail| mail.ended = Some(error));
            }
            Action::Left => self.gone = true,
        }
    }

    fn locate(&mut self, pause: Duration) {
        let (client, reply) = (self.client.clone(), self.answers_sender.clone());
        let group = self.options.group.clone();
        let (topics, all) = (
            self.options.topics.clone(),
            self.options.topic_pattern.is_some(),
        );
        let known = self.known.clone();
        let policy = self.options.offset_reset;
        let pause = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            let find = async {
                let known = match known {
                    Some(known) => known,
                    // Whatever was there, it begins at the start.
                    None if policy == OffsetReset::Earliest => Arc::default(),
                    None => Arc::new(starts::known(&client, &topics, all).await?),
                };
                let request = v1::FindCoordinatorRequest { group_id: group };
                let found = client.call_soon("FindCoordinator", |connection| {
                    let request = request.clone();
                    async move { connection.group().find_coordinator(request).await }
                });
                let found = found.await?;
                Ok((found.address.into(), found.coordinator_epoch, known))
            };
            let found = find.await;
            let _ = reply.send(Answer::Located(found)).await;
        });
    }

    fn connect(&mut self, address: Arc<str>, greeting: Greeting) {
        self.hang_up();
        self.generation += 1;
        let (up, requests) = mpsc::channel(stream::UP_MAX);
        let hello = Upward::Hello(self.hello(greeting));
        // The queue is empty.
        let _ = up.try_send(v1::JoinRequest { kind: Some(hello) });
        let task = tokio::spawn(stream::run(
            self.client.clone(),
            address.clone(),
            requests,
            self.generation,
            self.news_sender.clone(),
        ));
        self.coordinator = Some(address);
        self.stream = Some(Stream {
            up,
            task: task.abort_handle(),
        });
    }

    fn hello(&self, greeting: Greeting) -> v1::JoinHello {
        let options = &self.options;
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let (member_id, member_epoch) = greeting.member.unzip();
        v1::JoinHello {
            hello: Some(hello(self.client.options())),
            group_id: options.group.clone(),
            member_id,
            member_epoch,
            instance_id: options.instance_id.clone(),
            subscription: Some(self.subscription()),
            assignor: options.assignor.name().to_owned(),
            session_timeout_ms: millis(options.session_timeout),
            rebalance_timeout_ms: millis(options.rebalance_timeout),
            max_poll_interval_ms: millis(options.max_poll_interval),
            client_id: self.client.options().client_id.clone(),
            owned: stream::by_topic(&greeting.owned),
        }
    }

    fn subscription(&self) -> v1::Subscription {
        v1::Subscription {
            topics: self.options.topics.clone(),
            topic_pattern: self.options.topic_pattern.clone(),
        }
    }

    fn say(&mut self, up: Up) {
        let kind = match up {
            Up::Heartbeat { applied } => Upward::Heartbeat(v1::JoinHeartbeat {
                applied_epoch: applied,
                since_poll_ms: self.since_poll().as_millis() as i64,
            }),
            Up::Subscription => Upward::Subscription(self.subscription()),
            Up::Leave { will_return } => Upward::Leave(v1::JoinLeave { will_return }),
        };
        let request = v1::JoinRequest { kind: Some(kind) };
        let taken = self.stream.as_ref();
        // A stream that takes nothing is noticed by its silence.
        if taken.is_some_and(|stream| stream.up.try_send(request).is_err()) {
            tracing::debug!("the stream to the group's coordinator takes nothing");
        }
    }

    /// How long ago the application asked for records, to within a heartbeat.
    fn since_poll(&mut self) -> Duration {
        let polls = &self.mailbox.polls;
        let now = Instant::now();
        if polls.is_waiting() || polls.count() != self.polls_seen || self.closing.is_some() {
            self.polls_seen = polls.count();
            self.polled_at = now;
        }
        now - self.polled_at
    }

    fn hang_up(&mut self) {
        if let Some(stream) = self.stream.take() {
            // Ends with the queue at the latest; what is in it does not matter any more.
            stream.task.abort();
        }
    }

    fn on_news(&mut self, generation: u64, news: News) {
        if generation != self.generation || self.stream.is_none() {
            return;
        }
        match news {
            News::Names(names) => {
                let named = names.into_iter().filter(|(_, name)| !name.is_empty());
                let named: HashMap<_, _> = named.collect();
                // Of what is not assigned any more, only what is held matters.
                let reading = &self.reading;
                self.names
                    .retain(|topic, _| reading.keys().any(|tp| tp.topic == *topic));
                self.names.extend(named);
            }
            News::Said(said) => self.core.heard(Instant::now(), said),
            News::Ended(in_order) => {
                self.stream = None;
                self.core.broken(in_order);
            }
        }
    }

    // What is read.

    fn start(&mut self, parts: Vec<(Tp, Committed)>) {
        self.next_ticket += 1;
        let number = self.next_ticket;
        let mut asked = Vec::with_capacity(parts.len());
        for (tp, committed) in parts {
            let Some(topic) = self.names.get(&tp.topic).cloned() else {
                tracing::warn!(topic = %tp.topic, "a topic without a name is not read");
                continue;
            };
            match committed {
                Committed::At(offset) => self.commits.know(tp, Some(offset)),
                Committed::Nothing | Committed::Unknown => self.commits.know(tp, None),
            }
            let reading = Reading {
                topic: topic.clone(),
                progress: Arc::default(),
                starting: Some(number),
            };
            self.reading.insert(tp, reading);
            asked.push((tp, topic, committed));
        }
        // What is committed needs no question.
        let (ready, open): (Vec<_>, Vec<_>) = asked
            .into_iter()
            .partition(|(_, _, at)| self.listening.is_none() && matches!(at, Committed::At(_)));
        let ready = ready.into_iter().filter_map(|(tp, topic, at)| match at {
            Committed::At(offset) => Some(Beginning {
                tp,
                topic,
                committed: Some(offset),
                offset: Ok(offset),
                chosen: false,
            }),
            Committed::Nothing | Committed::Unknown => None,
        });
        self.begin(number, ready.collect());
        if open.is_empty() {
            return;
        }
        let resolver = Resolver {
            client: self.client.clone(),
            group: self.options.group.clone(),
            policy: self.options.offset_reset,
            known: self.known.clone().unwrap_or_default(),
            listening: self.listening.clone(),
        };
        let reply = self.answers_sender.clone();
        self.tasks.spawn(async move {
            let found = resolver.resolve(open).await;
            let _ = reply.send(Answer::Begin(number, found)).await;
        });
    }

    fn begin(&mut self, number: u64, found: Vec<Beginning>) {
        let mut changes = Vec::with_capacity(found.len());
        for one in found {
            let reading = self.reading.get_mut(&one.tp);
            let Some(reading) = reading.filter(|reading| reading.starting == Some(number)) else {
                continue;
            };
            reading.starting = None;
            if self.commits.committed(&one.tp).is_none() {
                self.commits.know(one.tp, one.committed);
            }
            let (offset, error) = match one.offset {
                Ok(offset) => (offset, None),
                Err(error) => (-1, Some(error)),
            };
            if one.chosen {
                let entry = Entry {
                    offset,
                    metadata: String::new(),
                    rewind: false,
                };
                self.commits.add([(one.tp, entry)]);
            }
            let begin = Begin {
                topic: one.topic,
                topic_id: one.tp.topic.0,
                partition: one.tp.partition,
                offset,
                progress: reading.progress.clone(),
            };
            changes.push((one.tp, begin, error));
        }
        if changes.is_empty() {
            return;
        }
        self.mailbox.put(|mail| {
            for (tp, begin, error) in changes {
                mail.changes.entry(tp).or_default().start = Some((begin, error));
            }
        });
    }

    fn release(&mut self, parts: Vec<Tp>, until: Instant) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        // The listener gets the rest.
        let stop_until = now + left * 3 / 4;
        let step = match self.closing {
            // The application has come back for good.
            Some(_) => Step::Listening,
            None => {
                self.stop(&parts, Some(ticket));
                Step::Stopping(stop_until)
            }
        };
        let listens = matches!(step, Step::Listening);
        self.releases.push(Release {
            ticket,
            parts,
            until,
            step,
        });
        if listens {
            self.listen(ticket);
        }
    }

    /// Has the application's side stop reading these.
    fn stop(&mut self, parts: &[Tp], ticket: Option<u64>) {
        let mut stops = Vec::with_capacity(parts.len());
        for tp in parts {
            if let Some(reading) = self.reading.get_mut(tp) {
                // What was not begun yet never is.
                reading.starting = None;
                let partition = TopicPartition::new(reading.topic.clone(), tp.partition);
                stops.push((*tp, partition));
            }
        }
        self.mailbox.put(|mail| {
            for (tp, partition) in stops {
                let change = mail.changes.entry(tp).or_default();
                change.stop = Some(partition);
                change.start = None;
            }
            mail.tickets.extend(ticket);
        });
    }

    /// The application has stopped, or is late: the listener's turn.
    fn listen(&mut self, ticket: u64) {
        let Some(at) = self.releases.iter().position(|one| one.ticket == ticket) else {
            return;
        };
        self.releases[at].step = Step::Listening;
        let deadline = self.releases[at].until;
        let Some(listening) = self.listening.clone() else {
            return self.commit_release(ticket);
        };
        let revocation = Revocation {
            partitions: self.named(&self.releases[at].parts),
            deadline,
            committer: self.committer.clone(),
        };
        let told = listening.revoked(revocation);
        let reply = self.answers_sender.clone();
        self.tasks.spawn(async move {
            // Dropped, or late: the same.
            let _ = tokio::time::timeout_at(deadline.into(), told).await;
            let _ = reply.send(Answer::Listened(ticket)).await;
        });
    }

    fn named(&self, parts: &[Tp]) -> Vec<TopicPartition> {
        let name = |tp: &Tp| {
            let reading = self.reading.get(tp)?;
            Some(TopicPartition::new(reading.topic.clone(), tp.partition))
        };
        parts.iter().filter_map(name).collect()
    }

    fn commit_release(&mut self, ticket: u64) {
        let Some(at) = self.releases.iter().position(|one| one.ticket == ticket) else {
            return;
        };
        self.releases[at].step = Step::Committing;
        if self.options.auto_commit.is_some() {
            let parts = self.releases[at].parts.clone();
            self.commit_done(&parts);
        }
    }

    /// Reports releases of which everything is committed; whether there were any.
    fn finish_releases(&mut self) -> bool {
        let commits = &self.commits;
        let is_done = |release: &Release| {
            matches!(release.step, Step::Committing) && commits.is_clear(release.parts.iter())
        };
        let Some(at) = self.releases.iter().position(is_done) else {
            return false;
        };
        let release = self.releases.swap_remove(at);
        for tp in &release.parts {
            self.reading.remove(tp);
            self.commits.know(*tp, None);
        }
        self.core.released(Instant::now(), &release.parts);
        true
    }

    fn lose(&mut self, parts: &[Tp], why: &Error) {
        tracing::warn!(%why, partitions = parts.len(), "partitions are lost");
        let named = self.named(parts);
        self.stop(parts, None);
        for release in std::mem::take(&mut self.releases) {
            self.mailbox
                .put(|mail| mail.tickets.retain(|known| *known != release.ticket));
        }
        self.commits.forget(parts, why);
        for tp in parts {
            self.reading.remove(tp);
        }
        if let Some(listening) = &self.listening {
            listening.lost(named);
        }
    }

    // Commits.

    /// Commits what the application is done with and the group does not know.
    fn commit_done(&mut self, parts: &[Tp]) {
        let mut entries = Vec::new();
        for tp in parts {
            let Some(reading) = self.reading.get(tp) else {
                continue;
            };
            let done = reading.progress.done.load(Ordering::Acquire);
            if done < 0 || self.commits.committed(tp) == Some(done) {
                continue;
            }
            let entry = Entry {
                offset: done,
                metadata: String::new(),
                rewind: reading.progress.rewound.swap(false, Ordering::AcqRel),
            };
            entries.push((*tp, entry));
        }
        self.commits.add(entries);
    }

    fn commit(&mut self, items: Vec<OffsetCommit>, reply: Reply) {
        let by_name: HashMap<&str, TopicId> = self
            .names
            .iter()
            .map(|(topic, name)| (&**name, *topic))
            .collect();
        let mut entries = Vec::with_capacity(items.len());
        for item in items {
            let topic = by_name.get(&*item.topic).copied();
            let partition = item.partition;
            let tp = topic.map(|topic| Tp { topic, partition });
            let Some(tp) = tp.filter(|tp| self.core.holds(tp)) else {
                return reply.send(Err(Error::NotAssigned {
                    topic: item.topic.to_string(),
                    partition,
                }));
            };
            let rewound = self.reading.get(&tp).is_some_and(|reading| {
                let rewound = &reading.progress.rewound;
                rewound.load(Ordering::Acquire) && rewound.swap(false, Ordering::AcqRel)
            });
            let entry = Entry {
                offset: item.offset,
                metadata: item.metadata,
                rewind: item.rewind || rewound,
            };
            entries.push((tp, entry));
        }
        let deadline = Instant::now() + self.client.options().request_timeout;
        self.commits.call(entries, reply, deadline);
    }

    fn send_commits(&mut self) {
        // Who is not with the coordinator has nobody to send them to; whoever is next takes them.
        let Some(address) = self.coordinator.clone().filter(|_| self.core.is_joined()) else {
            return;
        };
        let Some((member, epoch)) = self.core.identity() else {
            return;
        };
        let (member, now) = (member.to_owned(), Instant::now());
        let Some(entries) = self.commits.next_request(now) else {
            return;
        };
        let parts: Vec<Tp> = entries.iter().map(|(tp, _)| *tp).collect();
        let item = |(tp, entry): (Tp, Entry)| v1::CommitItem {
            topic: Some(by_id(tp.topic.0)),
            partition: tp.partition,
            offset: entry.offset,
            leader_epoch: None,
            metadata: entry.metadata,
            rewind: entry.rewind,
        };
        let request = v1::CommitRequest {
            group_id: self.options.group.clone(),
            member_id: Some(member),
            member_epoch: Some(epoch),
            items: entries.into_iter().map(item).collect(),
        };
        let (client, reply) = (self.client.clone(), self.answers_sender.clone());
        self.tasks.spawn(async move {
            let asked = client.ask_broker(&address, |connection| {
                let request = request.clone();
                async move { connection.group().commit(request).await }
            });
            let answer = asked.await;
            let _ = reply.send(Answer::Committed(parts, answer)).await;
        });
    }

    fn on_committed(&mut self, parts: Vec<Tp>, answer: Result<v1::CommitResponse>) {
        match answer {
            Ok(response) if response.results.len() == parts.len() => {
                let outcome = |(tp, result): (Tp, v1::CommitResult)| {
                    (tp, result.error.as_ref().map(ApiError::from_item))
                };
                let results = parts.into_iter().zip(response.results).map(outcome);
                self.commits.answered(results.collect());
            }
            Ok(response) => {
                let (told, asked) = (response.results.len(), parts.len());
                let message = format!("{told} outcomes of {asked} commits");
                self.commits
                    .failed(Instant::now(), &Error::Protocol { message });
            }
            Err(error) => {
                tracing::debug!(%error, "a commit failed");
                self.commits.failed(Instant::now(), &error);
            }
        }
    }

    // What others say.

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Commit { items, reply } => self.commit(items, reply),
            Command::Subscribe { topics, pattern } => {
                self.options.topics = topics;
                self.options.topic_pattern = pattern;
                self.core.subscribed();
            }
            Command::Stopped(ticket) => {
                let stopping =
                    |one: &Release| one.ticket == ticket && matches!(one.step, Step::Stopping(_));
                if self.releases.iter().any(stopping) {
                    self.listen(ticket);
                }
            }
            Command::JoinAgain => {
                self.polled_at = Instant::now();
                self.core.join_again();
            }
            Command::Close { reply } => self.close(reply),
        }
    }

    fn close(&mut self, reply: oneshot::Sender<Result<()>>) {
        if self.closing.is_some() {
            return;
        }
        self.closing = Some(reply);
        let stopping: Vec<u64> = self
            .releases
            .iter()
            .filter(|one| matches!(one.step, Step::Stopping(_)))
            .map(|one| one.ticket)
            .collect();
        for ticket in stopping {
            self.listen(ticket);
        }
        let until = Instant::now() + self.options.leave_timeout;
        let will_return = self.options.instance_id.is_some();
        self.core.leave(until, will_return);
    }

    fn on_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Located(Ok((address, epoch, known))) => {
                self.known = Some(known);
                self.core.located(Instant::now(), Ok((address, epoch)));
            }
            Answer::Located(Err(error)) => {
                tracing::debug!(%error, "no coordinator found");
                self.core.located(Instant::now(), Err(error));
            }
            Answer::Begin(number, found) => self.begin(number, found),
            Answer::Listened(ticket) => {
                let listening =
                    |one: &Release| one.ticket == ticket && matches!(one.step, Step::Listening);
                if self.releases.iter().any(listening) {
                    self.commit_release(ticket);
                }
            }
            Answer::Committed(parts, answer) => self.on_committed(parts, answer),
        }
    }
}

/// Where commands go to, for consumer and committers.
pub(crate) fn commands() -> (Commands, mpsc::UnboundedReceiver<Command>) {
    mpsc::unbounded_channel()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
