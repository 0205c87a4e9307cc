//! The task behind a group's consumer: does what the rules of `core` ask for, over gRPC and with the application.
//!
//! - here: the loop, the way to the coordinator, and what others say. `reading`: what is read. `committing`: commits.
//!
//! A release goes through three steps: the application comes back for more (or is late), the listener finishes (or is late), what
//! is to be committed of it is answered. Then the coordinator is told.

mod committing;
mod reading;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use timberline_proto::v1;
use timberline_proto::v1::join_request::Kind as Upward;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::commits::Commits;
use super::core::{Action, Core, Greeting, Rules, Tp, Up};
use super::listen::Listening;
use super::options::GroupOptions;
use super::shared::{Command, Commands, Mailbox};
use super::starts::{self, Beginning, Known};
use super::stream::{self, News};
use super::{Committer, MemberState};
use crate::backoff::Backoff;
use crate::client::Client;
use crate::connection::hello;
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
