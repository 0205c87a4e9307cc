//! Why a broker does not start, or stops.

use std::net::SocketAddr;

/// Errors of a broker as a whole; what a client sees are `ApiError`s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A listener can't be opened.
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        key: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The data directory can't be opened or written.
    #[error(transparent)]
    Storage(#[from] timberline_storage::Error),
    /// The metadata log can't be read or understood. Nothing was changed.
    #[error("the metadata log: {0}")]
    Metadata(String),
    /// The data directory belongs to another broker.
    #[error(
        "the data directory belongs to broker {found}, this is broker {configured}; start it with --broker-id {found} or choose another --data-dir"
    )]
    WrongBroker {
        /// Who wrote it.
        found: i32,
        /// Who is starting.
        configured: i32,
    },
    /// A change that starting needs was refused.
    #[error("starting: {0}")]
    Start(String),
    /// A thread or a registry can't be made.
    #[error("{what}: {why}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        why: String,
    },
}
