//! The handle on a cluster: metadata, and calls that are retried over whichever broker answers.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1;

use crate::admin::{Admin, offset_info, offsets_item};
use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::consumer::{Consumer, Position};
use crate::error::{Error, Result};
use crate::group::{GroupConsumer, GroupOptions, RebalanceListener};
use crate::metadata::{MetadataCache, TopicView};
use crate::options::{ClientOptions, ConsumerOptions, ProducerOptions};
use crate::producer::Producer;
use crate::types::{ClusterInfo, OffsetInfo, TopicInfo};

/// A handle on a cluster. Clones share everything.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClientOptions,
    cache: MetadataCache,
    /// The connection for calls. Locked while one is opened, so that callers don't open one each.
    control: tokio::sync::Mutex<Option<Connection>>,
    /// Connections to leaders, for calls that only they can answer.
    leaders: tokio::sync::Mutex<HashMap<String, Connection>>,
    /// Which address to try next.
    next: AtomicUsize,
    /// When an address failed last.
    failed: parking_lot::Mutex<HashMap<String, Instant>>,
}

/// How long a broker is given for an answer that costs it nothing, before another one is asked; twice as long the next
/// time, since all may be slow.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// For so long an address that failed is tried only after the others.
const SHUN_FOR: Duration = Duration::from_secs(5);
/// Addresses and connections remembered; beyond, all are forgotten.
const ADDRESSES_MAX: usize = 1024;

impl Client {
    /// Reaches one of the bootstrap brokers and asks it who is in the cluster.
    ///
    /// Cancel-safe: nothing is left behind.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], [`Error::Transport`], [`Error::Timeout`].
    pub async fn connect(options: ClientOptions) -> Result<Client> {
        options.check()?;
        let client = Client {
            inner: Arc::new(Inner {
                options,
                cache: MetadataCache::default(),
                control: tokio::sync::Mutex::new(None),
                leaders: tokio::sync::Mutex::default(),
                next: AtomicUsize::new(0),
                failed: parking_lot::Mutex::default(),
            }),
        };
        // Each is asked once: a wrong address should be told at once. Who waits for a broker to start calls again.
        let mut left = client.options().bootstrap.len();
        loop {
            left -= 1;
            let connection = client.control().await?;
            // The last one has all the time there is.
            let patience = match left {
                0 => client.options().request_timeout,
                _ => ANSWER_WITHIN.min(client.options().request_timeout),
            };
            match client.ask(&connection, patience).await {
                Ok(()) => return Ok(client),
                Err(error) if left == 0 || !error.is_retriable() => return Err(error),
                Err(_) => client.give_up(&connection).await,
            }
        }
    }

    /// Topics, configuration, offsets.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// A producer with its own connections, buffer and producer id.
    ///
    /// Cancel-safe: nothing is left behind.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub async fn producer(&self, options: ProducerOptions) -> Result<Producer> {
        options.check()?;
        Ok(Producer::start(self.clone(), options))
    }

    /// A consumer with its own connections, with nothing assigned.
    ///
    /// Cancel-safe: nothing is left behind.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub async fn consumer(&self, options: ConsumerOptions) -> Result<Consumer> {
        options.check()?;
        Ok(Consumer::start(self.clone(), options))
    }

    /// A member of a group: the coordinator gives it partitions to read.
    ///
    /// It joins in the background; what is refused comes from [`GroupConsumer::recv`].
    ///
    /// Cancel-safe: nothing is left behind.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub async fn group_consumer(&self, options: GroupOptions) -> Result<GroupConsumer> {
        options.check()?;
        Ok(GroupConsumer::start(self.clone(), options, None))
    }

    /// As [`group_consumer`](Self::group_consumer), with a listener that is told when partitions come and go.
    ///
    /// Cancel-safe: nothing is left behind.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub async fn group_consumer_with(
        &self,
        options: GroupOptions,
        listener: impl RebalanceListener,
    ) -> Result<GroupConsumer> {
        options.check()?;
        let listener = Arc::new(listener);
        Ok(GroupConsumer::start(self.clone(), options, Some(listener)))
    }

    /// A topic and where its partitions are; from the cache if it is young enough.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`; [`Error::Transport`] and [`Error::Timeout`] after retries.
    pub async fn metadata(&self, topic: &str) -> Result<TopicInfo> {
        Ok(self.topic(topic).await?.info.clone())
    }

    /// Who is in the cluster, asked now.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Transport`] and [`Error::Timeout`] after retries.
    pub async fn cluster(&self) -> Result<ClusterInfo> {
        let request = v1::GetMetadataRequest {
            topics: Vec::new(),
            no_topics: true,
        };
        let answer = self
            .call_soon("GetMetadata", |connection| {
                let request = request.clone();
                async move { connection.metadata().get_metadata(request).await }
            })
            .await?;
        let cluster = answer.cluster.clone().unwrap_or_default().into();
        self.inner.cache.update(answer);
        Ok(cluster)
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    pub(crate) fn forget_topic(&self, name: &str) {
        self.inner.cache.forget(name);
    }

    /// Whether the topic was fetched longer than `age` ago, or never.
    pub(crate) fn is_stale(&self, name: &str, age: Duration) -> bool {
        self.inner.cache.topic(name, age).is_none()
    }

    /// The topic from the cache, if it is young enough.
    pub(crate) fn cached_topic(&self, name: &str) -> Option<Arc<TopicView>> {
        self.inner
            .cache
            .topic(name, self.options().metadata_max_age)
    }

    /// The topic from the cache, or asked for.
    pub(crate) async fn topic(&self, name: &str) -> Result<Arc<TopicView>> {
        match self
            .inner
            .cache
            .topic(name, self.options().metadata_max_age)
        {
            Some(view) => Ok(view),
            None => self.fetch_topic(name).await,
        }
    }

    /// The topic, asked for now.
    pub(crate) async fn fetch_topic(&self, name: &str) -> Result<Arc<TopicView>> {
        let request = v1::GetMetadataRequest {
            topics: vec![by_name(name)],
            no_topics: false,
        };
        let answer = self
            .call_soon("GetMetadata", |connection| {
                let request = request.clone();
                async move { connection.metadata().get_metadata(request).await }
            })
            .await?;
        self.take_in(answer, name)
    }

    fn take_in(&self, answer: v1::GetMetadataResponse, name: &str) -> Result<Arc<TopicView>> {
        if !answer.topics.iter().any(|topic| topic.name == name) {
            self.inner.cache.forget(name);
            return Err(ApiError::new(
                Reason::UnknownTopic,
                format!("topic {name} does not exist"),
            )
            .into());
        }
        let bad = self.inner.cache.update(answer);
        let view = self.inner.cache.topic(name, Duration::MAX);
        view.filter(|_| bad == 0).ok_or_else(|| Error::Protocol {
            message: format!(
                "metadata of topic {name} has no id, or partitions that are not numbered from 0"
            ),
        })
    }

    /// Asks for the brokers.
    async fn ask(&self, connection: &Connection, patience: Duration) -> Result<()> {
        let request = v1::GetMetadataRequest {
            topics: Vec::new(),
            no_topics: true,
        };
        let mut service = connection.metadata();
        let answer = tokio::time::timeout(patience, service.get_metadata(request))
            .await
            .map_err(|_| timed_out("GetMetadata", patience))?;
        let answer = answer.map_err(|status| Error::from_status(connection.address(), &status))?;
        self.inner.cache.update(answer.into_inner());
        Ok(())
    }

    /// Makes a call on whichever broker answers, and again while that may help, for the request timeout.
    pub(crate) async fn call<T, F>(
        &self,
        what: &'static str,
        make: impl Fn(Connection) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        // A call that takes long is told from a broker that hangs by the connection's keep-alive.
        self.call_within(what, self.options().request_timeout, make)
            .await
    }

    /// As [`call`](Self::call), for what a broker answers at once: one that does not is soon left for another.
    pub(crate) async fn call_soon<T, F>(
        &self,
        what: &'static str,
        make: impl Fn(Connection) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        self.call_within(what, ANSWER_WITHIN, make).await
    }

    async fn call_within<T, F>(
        &self,
        what: &'static str,
        mut patience: Duration,
        make: impl Fn(Connection) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let options = self.options();
        let deadline = Instant::now() + options.request_timeout;
        let mut backoff = Backoff::new(options.retry_backoff, options.retry_backoff_max);
        // Others are asked at once, each in turn; only then is there a pause.
        let mut others = self.addresses().len() - 1;
        // The broker that a refusal named.
        let mut named: Option<String> = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let connection = async {
                match named.take() {
                    Some(address) => self.leader(&address).await,
                    None => self.control().await,
                }
            };
            let error = match tokio::time::timeout(left.min(patience), connection).await {
                Ok(Ok(connection)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let answer = make(connection.clone());
                    match tokio::time::timeout(left.min(patience), answer).await {
                        Ok(Ok(answer)) => return Ok(answer.into_inner()),
                        Ok(Err(status)) => {
                            let error = Error::from_status(connection.address(), &status);
                            // Another broker may know better, or be there at all.
                            if error.is_retriable() {
                                self.give_up(&connection).await;
                            }
                            error
                        }
                        Err(_) => {
                            self.give_up(&connection).await;
                            timed_out(what, left.min(patience))
                        }
                    }
                }
                Ok(Err(error)) => error,
                Err(_) => timed_out(what, left.min(patience)),
            };
            if Instant::now() >= deadline {
                return Err(match error {
                    Error::Timeout { .. } => timed_out(what, options.request_timeout),
                    error => error,
                });
            }
            let unanswered = matches!(error, Error::Transport { .. } | Error::Timeout { .. });
            if matches!(error, Error::Timeout { .. }) {
                patience = patience.saturating_mul(2);
            }
            let wait = match &error {
                _ if unanswered && others > 0 => {
                    others -= 1;
                    Duration::ZERO
                }
                Error::Api(api) => {
                    named = leader_hint(api).map(|hint| hint.address);
                    api.retry_after
                        .unwrap_or_default()
                        .max(backoff.next_pause())
                }
                _ => backoff.next_pause(),
            };
            if !error.is_retriable() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Where a position of a partition is; the id says which topic of this name is meant.
    pub(crate) async fn start_of(
        &self,
        topic: &str,
        topic_id: [u8; 16],
        partition: i32,
        from: Position,
    ) -> Result<i64> {
        match from {
            Position::Offset(offset) => Ok(offset),
            _ => {
                let by_id = by_id(topic_id);
                self.offset_of(topic, by_id, partition, from).await
            }
        }
    }

    /// The offset of a position. The topic is named for the way to its leaders; `by` says which one is meant.
    pub(crate) async fn offset_of(
        &self,
        topic: &str,
        by: v1::TopicRef,
        partition: i32,
        at: Position,
    ) -> Result<i64> {
        let found = self.offsets_of(topic, by, &[(partition, at)]).await?;
        let first = found.first().map(|info| info.offset);
        first.ok_or_else(|| Error::Protocol {
            message: "no answer to a question for an offset".to_owned(),
        })
    }

    /// The offsets of positions, in their order. Each partition's leader is asked, until the request timeout while it can't
    /// tell yet or is somebody else.
    ///
    /// # Errors
    /// The first that can't be retried; otherwise the last one.
    pub(crate) async fn offsets_of(
        &self,
        topic: &str,
        by: v1::TopicRef,
        items: &[(i32, Position)],
    ) -> Result<Vec<OffsetInfo>> {
        let options = self.options();
        let deadline = Instant::now() + options.request_timeout;
        let mut backoff = Backoff::new(options.retry_backoff, options.retry_backoff_max);
        let mut patience = ANSWER_WITHIN;
        let mut found: Vec<Option<OffsetInfo>> = vec![None; items.len()];
        let mut hints: HashMap<i32, String> = HashMap::new();
        let mut view = self.topic(topic).await?;
        loop {
            // Without a leader, whoever answers says why.
            let mut by_leader: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
            for (at, (partition, _)) in items.iter().enumerate() {
                if found[at].is_none() {
                    let known = usize::try_from(*partition).ok();
                    let known = known.and_then(|at| view.leaders.get(at).cloned().flatten());
                    let hint = hints.remove(partition);
                    let leader = hint.or_else(|| known.map(|address| address.to_string()));
                    by_leader.entry(leader).or_default().push(at);
                }
            }
            let mut problem = None;
            for (leader, asked) in by_leader {
                let questions: Vec<_> = asked.iter().map(|&at| items[at]).collect();
                let answer = self
                    .offsets_from(
                        leader.as_deref(),
                        &by,
                        &questions,
                        patience.min(options.request_timeout),
                    )
                    .await;
                match answer {
                    Ok(results) => {
                        for (result, &at) in results.into_iter().zip(&asked) {
                            match offset_info(result, items[at].1) {
                                Ok(info) => found[at] = Some(info),
                                Err(error) if !error.is_retriable() => return Err(error),
                                Err(error) => {
                                    if let Error::Api(api) = &error {
                                        let hint = leader_hint(api);
                                        hints.extend(hint.map(|hint| (items[at].0, hint.address)));
                                    }
                                    problem = Some(error);
                                }
                            }
                        }
                    }
                    Err(error) if !error.is_retriable() => return Err(error),
                    Err(error) => problem = Some(error),
                }
            }
            let Some(error) = problem else {
                return Ok(found.into_iter().flatten().collect());
            };
            let wait = backoff.next_pause();
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            if matches!(error, Error::Timeout { .. }) {
                patience = patience.saturating_mul(2);
            }
            if hints.is_empty() {
                view = self.fetch_topic(topic).await?;
            }
        }
    }

    /// Asks one broker for offsets; `None`: whichever answers.
    async fn offsets_from(
        &self,
        leader: Option<&str>,
        by: &v1::TopicRef,
        items: &[(i32, Position)],
        patience: Duration,
    ) -> Result<Vec<v1::ListOffsetsResult>> {
        let questions = items.iter();
        let questions = questions.map(|(partition, at)| offsets_item(by.clone(), *partition, *at));
        let request = v1::ListOffsetsRequest {
            items: questions.collect(),
        };
        let ask = async {
            let connection = match leader {
                Some(address) => self.leader(address).await?,
                None => self.control().await?,
            };
            match connection.consumer().list_offsets(request).await {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) => {
                    let error = Error::from_status(connection.address(), &status);
                    if error.is_retriable() {
                        self.give_up(&connection).await;
                    }
                    Err(error)
                }
            }
        };
        let answer = match tokio::time::timeout(patience, ask).await {
            Ok(answer) => answer?,
            Err(_) => {
                if let Some(address) = leader {
                    self.shun(address);
                    self.inner.leaders.lock().await.remove(address);
                }
                return Err(timed_out("ListOffsets", patience));
            }
        };
        if answer.results.len() != items.len() {
            return Err(Error::Protocol {
                message: format!(
                    "{} answers to {} questions for offsets",
                    answer.results.len(),
                    items.len()
                ),
            });
        }
        Ok(answer.results)
    }

    fn shun(&self, address: &str) {
        let mut failed = self.inner.failed.lock();
        if failed.len() >= ADDRESSES_MAX {
            failed.clear();
        }
        failed.insert(address.to_owned(), Instant::now());
    }

    /// A broker said that it leaves, or is gone: it is asked nothing more for a while.
    pub(crate) fn leave(&self, address: &str) {
        self.shun(address);
        // Whoever holds the lock is looking for another connection already.
        if let Ok(mut control) = self.inner.control.try_lock()
            && control.as_ref().is_some_and(|now| now.address() == address)
        {
            *control = None;
        }
    }

    /// Takes this connection for no further call, and its broker only after the others for a while. One that somebody else
    /// has opened meanwhile stays.
    async fn give_up(&self, connection: &Connection) {
        self.shun(connection.address());
        let mut control = self.inner.control.lock().await;
        if control.as_ref().is_some_and(|now| now.is_same(connection)) {
            *control = None;
        }
        drop(control);
        let mut leaders = self.inner.leaders.lock().await;
        if leaders
            .get(connection.address())
            .is_some_and(|now| now.is_same(connection))
        {
            leaders.remove(connection.address());
        }
    }

    /// Addresses of all brokers heard of.
    fn addresses(&self) -> Vec<String> {
        let mut addresses = self.inner.options.bootstrap.clone();
        for address in self.inner.cache.brokers() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// A connection to this broker and no other.
    async fn leader(&self, address: &str) -> Result<Connection> {
        let known = self.inner.leaders.lock().await.get(address).cloned();
        if let Some(connection) = known.filter(|connection| !connection.is_closed()) {
            return Ok(connection);
        }
        let connection = Connection::open(address, &self.inner.options).await?;
        let mut leaders = self.inner.leaders.lock().await;
        if leaders.len() >= ADDRESSES_MAX {
            leaders.clear();
        }
        leaders.insert(address.to_owned(), connection.clone());
        Ok(connection)
    }

    /// Asks one broker and no other, once.
    pub(crate) async fn ask_broker<T, F>(
        &self,
        address: &str,
        make: impl Fn(Connection) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let asked = async {
            let connection = self.leader(address).await?;
            let answer = make(connection).await;
            let answer = answer.map_err(|status| Error::from_status(address, &status))?;
            Ok(answer.into_inner())
        };
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out("asking a broker", ANSWER_WITHIN)),
        }
    }

    /// The connection for calls: the one there is, or a new one to the first address that takes it.
    async fn control(&self) -> Result<Connection> {
        let mut control = self.inner.control.lock().await;
        if let Some(connection) = control
            .as_ref()
            .filter(|connection| !connection.is_closed())
        {
            return Ok(connection.clone());
        }
        let mut addresses = self.addresses();
        let first = self.inner.next.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(first);
        {
            let failed = self.inner.failed.lock();
            let shunned = |address: &String| {
                let failed = failed.get(address);
                failed.is_some_and(|failed| failed.elapsed() < SHUN_FOR)
            };
            addresses.sort_by_cached_key(shunned);
        }
        let mut failures = Vec::new();
        for address in &addresses {
            match Connection::open(address, &self.inner.options).await {
                Ok(connection) => {
                    *control = Some(connection.clone());
                    return Ok(connection);
                }
                Err(Error::Transport { message, .. }) => {
                    self.shun(address);
                    failures.push(message);
                }
                Err(error) => return Err(error),
            }
        }
        failures.dedup();
        Err(Error::Transport {
            address: addresses.join(", "),
            message: failures.join("; "),
        })
    }
}

/// Who leads instead, as a refusal tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaderHint {
    /// HOST:PORT.
    pub(crate) address: String,
    /// Rises with every change of leader.
    pub(crate) epoch: i32,
}

/// The leader that a refusal names, if it does.
pub(crate) fn leader_hint(error: &ApiError) -> Option<LeaderHint> {
    if error.reason != Some(Reason::NotLeader) {
        return None;
    }
    let address = error.metadata.get("leader_address")?;
    let epoch = error.metadata.get("leader_epoch")?.parse().ok()?;
    Some(LeaderHint {
        address: Some(address.clone()).filter(|address| !address.is_empty())?,
        epoch,
    })
}

pub(crate) fn by_name(name: &str) -> v1::TopicRef {
    v1::TopicRef {
        r#ref: Some(v1::topic_ref::Ref::Name(name.to_owned())),
    }
}

pub(crate) fn by_id(topic_id: [u8; 16]) -> v1::TopicRef {
    v1::TopicRef {
        r#ref: Some(v1::topic_ref::Ref::Id(topic_id.to_vec().into())),
    }
}

fn timed_out(what: &str, after: Duration) -> Error {
    Error::Timeout {
        what: what.to_owned(),
        after,
    }
}
