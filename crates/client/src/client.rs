//! The handle on a cluster: metadata, and calls that are retried over whichever broker answers.

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
use crate::metadata::{MetadataCache, TopicView};
use crate::options::{ClientOptions, ConsumerOptions, ProducerOptions};
use crate::producer::Producer;
use crate::types::{ClusterInfo, TopicInfo};

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
    /// Which address to try next.
    next: AtomicUsize,
}

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
                next: AtomicUsize::new(0),
            }),
        };
        // Not retried: a wrong address should be told at once. Who waits for a broker to start calls again.
        let connection = client.control().await?;
        client.ask(connection, Vec::new(), true).await?;
        Ok(client)
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
            .call("GetMetadata", |connection| {
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
            .call("GetMetadata", |connection| {
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

    async fn ask(
        &self,
        connection: Connection,
        topics: Vec<v1::TopicRef>,
        no_topics: bool,
    ) -> Result<v1::GetMetadataResponse> {
        let timeout = self.options().request_timeout;
        let call = async {
            let mut service = connection.metadata();
            service
                .get_metadata(v1::GetMetadataRequest { topics, no_topics })
                .await
        };
        let answer = tokio::time::timeout(timeout, call)
            .await
            .map_err(|_| timed_out("GetMetadata", timeout))?;
        let answer = answer
            .map_err(|status| Error::from_status(connection.address(), &status))?
            .into_inner();
        self.inner.cache.update(v1::GetMetadataResponse {
            cluster: answer.cluster.clone(),
            ..Default::default()
        });
        Ok(answer)
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
        let options = self.options();
        let deadline = Instant::now() + options.request_timeout;
        let mut backoff = Backoff::new(options.retry_backoff, options.retry_backoff_max);
        loop {
            let attempt = async {
                let connection = self.control().await?;
                let answer = make(connection.clone()).await;
                answer.map_err(|status| Error::from_status(connection.address(), &status))
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match tokio::time::timeout(left, attempt).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(error)) => error,
                Err(_) => return Err(timed_out(what, options.request_timeout)),
            };
            let wait = match &error {
                Error::Api(api) => api.retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            }
            .max(backoff.next_pause());
            if !error.is_retriable() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            // Another broker may know better, or be there at all.
            self.drop_control().await;
            tokio::time::sleep(wait).await;
        }
    }

    /// The offset of a position, asked for until the request timeout while the broker can't tell yet.
    pub(crate) async fn offset_of(
        &self,
        topic: v1::TopicRef,
        partition: i32,
        at: Position,
    ) -> Result<i64> {
        let options = self.options();
        let deadline = Instant::now() + options.request_timeout;
        let mut backoff = Backoff::new(options.retry_backoff, options.retry_backoff_max);
        loop {
            let request = v1::ListOffsetsRequest {
                items: vec![offsets_item(topic.clone(), partition, at)],
            };
            let answer = self
                .call("ListOffsets", |connection| {
                    let request = request.clone();
                    async move { connection.consumer().list_offsets(request).await }
                })
                .await?;
            let Some(result) = answer.results.into_iter().next() else {
                return Err(Error::Protocol {
                    message: "no answer to a question for an offset".to_owned(),
                });
            };
            match offset_info(result, at) {
                Ok(info) => return Ok(info.offset),
                Err(error) if !error.is_retriable() || Instant::now() >= deadline => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(backoff.next_pause()).await,
            }
        }
    }

    async fn drop_control(&self) {
        *self.inner.control.lock().await = None;
    }

    /// The connection for calls: the one there is, or a new one to the first address that takes it.
    pub(crate) async fn control(&self) -> Result<Connection> {
        let mut control = self.inner.control.lock().await;
        if let Some(connection) = control
            .as_ref()
            .filter(|connection| !connection.is_closed())
        {
            return Ok(connection.clone());
        }
        let mut addresses = self.inner.options.bootstrap.clone();
        for address in self.inner.cache.brokers() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let first = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..addresses.len() {
            let address = &addresses[(first + turn) % addresses.len()];
            match Connection::open(address, &self.inner.options).await {
                Ok(connection) => {
                    *control = Some(connection.clone());
                    return Ok(connection);
                }
                Err(Error::Transport { message, .. }) => failures.push(message),
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

pub(crate) fn by_name(name: &str) -> v1::TopicRef {
    v1::TopicRef {
        r#ref: Some(v1::topic_ref::Ref::Name(name.to_owned())),
    }
}

fn timed_out(what: &str, after: Duration) -> Error {
    Error::Timeout {
        what: what.to_owned(),
        after,
    }
}
