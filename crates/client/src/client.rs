//! The handle on a cluster.

use std::sync::Arc;

use crate::admin::Admin;
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::options::{ClientOptions, ConsumerOptions, ProducerOptions};
use crate::producer::Producer;
use crate::types::{ClusterInfo, TopicInfo};

/// A handle on a cluster. Clones share everything.
#[derive(Clone)]
pub struct Client {
    options: Arc<ClientOptions>,
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
        Ok(Client {
            options: Arc::new(options),
        })
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
        Err(Error::Closed)
    }

    /// A consumer with its own connections, with nothing assigned.
    ///
    /// Cancel-safe: nothing is left behind.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub async fn consumer(&self, options: ConsumerOptions) -> Result<Consumer> {
        options.check()?;
        Err(Error::Closed)
    }

    /// A topic and where its partitions are; from the cache if it is young enough.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`; [`Error::Transport`] and [`Error::Timeout`] after retries.
    pub async fn metadata(&self, topic: &str) -> Result<TopicInfo> {
        let _ = (topic, &self.options);
        Err(Error::Closed)
    }

    /// Who is in the cluster, asked now.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Transport`] and [`Error::Timeout`] after retries.
    pub async fn cluster(&self) -> Result<ClusterInfo> {
        Err(Error::Closed)
    }
}
