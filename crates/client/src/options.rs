//! Options of client, producer and consumer: public fields with defaults, and a builder method for each.

use std::time::Duration;

pub use timberline_record::Codec;

use crate::error::{Error, Result};

/// Defines a builder method per option.
macro_rules! builders {
    ($($name:ident: $type:ty),* $(,)?) => {
        $(
            #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ").")]
            #[must_use]
            pub fn $name(mut self, value: impl Into<$type>) -> Self {
                self.$name = value.into();
                self
            }
        )*
    };
}
pub(crate) use builders;

/// How a client reaches the cluster.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Brokers to ask first, HOST:PORT; any that answers will do. Default: `127.0.0.1:7071`.
    pub bootstrap: Vec<String>,
    /// Name for the broker's logs. Default: the crate's name.
    pub client_id: String,
    /// The failure domain this client runs in.
    pub rack: Option<String>,
    /// For one TCP connection. Default 5 s.
    pub connect_timeout: Duration,
    /// For one call, its retries included; also how long a stream with work outstanding may be silent. Default 30 s.
    pub request_timeout: Duration,
    /// First pause before a call or a connection is tried again; it grows from there. Default 20 ms.
    pub retry_backoff: Duration,
    /// Longest such pause. Default 1 s.
    pub retry_backoff_max: Duration,
    /// Metadata older than this is fetched again when it is used. Default 60 s.
    pub metadata_max_age: Duration,
    /// Largest message accepted from a broker, in bytes. It must hold the largest batch. Default 64 MiB.
    pub max_message_bytes: usize,
    /// HTTP/2 flow-control window of a stream, in bytes. Default 8 MiB.
    pub stream_window_bytes: u32,
    /// HTTP/2 flow-control window of a connection, in bytes. Default 16 MiB.
    pub connection_window_bytes: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            bootstrap: vec!["127.0.0.1:7071".to_owned()],
            client_id: env!("CARGO_PKG_NAME").to_owned(),
            rack: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
            metadata_max_age: Duration::from_secs(60),
            max_message_bytes: 64 << 20,
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
        }
    }
}

impl ClientOptions {
    builders! {
        client_id: String,
        rack: Option<String>,
        connect_timeout: Duration,
        request_timeout: Duration,
        retry_backoff: Duration,
        retry_backoff_max: Duration,
        metadata_max_age: Duration,
        max_message_bytes: usize,
        stream_window_bytes: u32,
        connection_window_bytes: u32,
    }

    /// Sets [`bootstrap`](Self#structfield.bootstrap). An entry may itself be a list with commas.
    #[must_use]
    pub fn bootstrap<S: AsRef<str>>(mut self, addresses: impl IntoIterator<Item = S>) -> Self {
        self.bootstrap = addresses
            .into_iter()
            .flat_map(|entry| {
                let parts = entry.as_ref().split(',').map(|part| part.trim().to_owned());
                parts.filter(|part| !part.is_empty()).collect::<Vec<_>>()
            })
            .collect();
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        ensure(
            !self.bootstrap.is_empty(),
            "bootstrap",
            "name at least one HOST:PORT",
        )?;
        ensure(
            !self.request_timeout.is_zero(),
            "request_timeout",
            "must be longer than 0",
        )?;
        ensure(
            !self.connect_timeout.is_zero(),
            "connect_timeout",
            "must be longer than 0",
        )?;
        ensure(
            !self.retry_backoff.is_zero(),
            "retry_backoff",
            "must be longer than 0",
        )?;
        ensure(
            self.retry_backoff_max >= self.retry_backoff,
            "retry_backoff_max",
            "must be at least retry_backoff",
        )?;
        ensure(
            self.max_message_bytes >= 1 << 20,
            "max_message_bytes",
            "must be at least 1 MiB",
        )?;
        let window = (64 << 10)..=(1 << 30);
        ensure(
            window.contains(&self.stream_window_bytes)
                && window.contains(&self.connection_window_bytes),
            "stream_window_bytes, connection_window_bytes",
            "must be 64 KiB to 1 GiB",
        )
    }
}

/// How a producer batches, retries and gives up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// A batch is sent when it has this many bytes, before compression. A larger record goes alone. Default 256 KiB.
    pub batch_bytes: usize,
    /// Longest wait of a record for company. 0: sent as soon as a batch may be in flight. Default 5 ms.
    pub linger: Duration,
    /// Unacknowledged batches per partition, 1 to 5. Default 5.
    pub max_in_flight_per_partition: usize,
    /// Bytes of all records not acknowledged yet; `send` waits beyond. Default 64 MiB.
    pub buffer_bytes: usize,
    /// Compression of batches. Default none.
    pub codec: Codec,
    /// Every record is written at most once, in order, also over retries and restarts of the broker. Default true.
    pub idempotent: bool,
    /// From `send` to the acknowledgement, all retries included. Default 120 s.
    pub delivery_timeout: Duration,
    /// First pause before a refused batch is sent again; it grows from there. Default 20 ms.
    pub retry_backoff: Duration,
    /// Longest such pause. Default 1 s.
    pub retry_backoff_max: Duration,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        ProducerOptions {
            batch_bytes: 256 << 10,
            linger: Duration::from_millis(5),
            max_in_flight_per_partition: 5,
            buffer_bytes: 64 << 20,
            codec: Codec::None,
            idempotent: true,
            delivery_timeout: Duration::from_secs(120),
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
        }
    }
}

impl ProducerOptions {
    builders! {
        batch_bytes: usize,
        linger: Duration,
        max_in_flight_per_partition: usize,
        buffer_bytes: usize,
        codec: Codec,
        idempotent: bool,
        delivery_timeout: Duration,
        retry_backoff: Duration,
        retry_backoff_max: Duration,
    }

    pub(crate) fn check(&self) -> Result<()> {
        let batch = (1 << 10)..=(32 << 20);
        ensure(
            batch.contains(&self.batch_bytes),
            "batch_bytes",
            "must be 1 KiB to 32 MiB",
        )?;
        let window = 1..=5;
        ensure(
            window.contains(&self.max_in_flight_per_partition),
            "max_in_flight_per_partition",
            "must be 1 to 5: brokers remember the last five batches of a producer",
        )?;
        let buffer = self.batch_bytes..=(u32::MAX as usize / 2);
        ensure(
            buffer.contains(&self.buffer_bytes),
            "buffer_bytes",
            "must be batch_bytes to 2 GiB",
        )?;
        ensure(
            self.delivery_timeout > self.linger,
            "delivery_timeout",
            "must be longer than linger",
        )?;
        ensure(
            !self.retry_backoff.is_zero(),
            "retry_backoff",
            "must be longer than 0",
        )?;
        ensure(
            self.retry_backoff_max >= self.retry_backoff,
            "retry_backoff_max",
            "must be at least retry_backoff",
        )
    }
}

/// Which records of transactions a consumer sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All committed to the log.
    #[default]
    ReadUncommitted,
    /// Only those of committed transactions.
    ReadCommitted,
}

/// What to do when a position is outside of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// Go on at the first record there is.
    Earliest,
    /// Go on behind the last record there is.
    Latest,
    /// Return [`Error::OffsetOutOfRange`](crate::Error::OffsetOutOfRange) and let the caller decide.
    #[default]
    Error,
}

/// How a consumer fetches.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// Bytes of batches fetched ahead of the application, per broker read from; one batch may overrun. Default 16 MiB.
    pub prefetch_bytes: usize,
    /// Bytes of batches in one message from the broker; a larger batch comes alone. Default 1 MiB.
    pub max_response_bytes: usize,
    /// Which records of transactions to see. Default: all committed to the log.
    pub isolation: Isolation,
    /// What to do when a position is outside of the log. Default: say so.
    pub offset_reset: OffsetReset,
    /// Check the checksum of every batch. Default true.
    pub verify_crc: bool,
    /// Bound of the records of one batch after decompression, in bytes. Default 128 MiB.
    pub max_decompressed_bytes: usize,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        ConsumerOptions {
            prefetch_bytes: 16 << 20,
            max_response_bytes: 1 << 20,
            isolation: Isolation::default(),
            offset_reset: OffsetReset::default(),
            verify_crc: true,
            max_decompressed_bytes: 128 << 20,
        }
    }
}

impl ConsumerOptions {
    builders! {
        prefetch_bytes: usize,
        max_response_bytes: usize,
        isolation: Isolation,
        offset_reset: OffsetReset,
        verify_crc: bool,
        max_decompressed_bytes: usize,
    }

    pub(crate) fn check(&self) -> Result<()> {
        let range = (4 << 10)..=(1 << 30);
        ensure(
            range.contains(&self.prefetch_bytes),
            "prefetch_bytes",
            "must be 4 KiB to 1 GiB",
        )?;
        let range = 1..=(32 << 20);
        ensure(
            range.contains(&self.max_response_bytes),
            "max_response_bytes",
            "must be 1 byte to 32 MiB",
        )
    }
}

pub(crate) fn ensure(holds: bool, option: &'static str, message: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::InvalidOption {
        option,
        message: message.to_owned(),
    })
}
