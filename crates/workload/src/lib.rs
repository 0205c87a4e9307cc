//! What loads, measures and checks a cluster from outside.
//!
//! - [`Pump`]: sends records as fast as the producer takes them and accounts for the outcome of every one.
//! - [`mod@bench`]: `timberline bench`: produce, consume, end to end.
//! - [`Ledger`]: what was acknowledged against what was read: lost, duplicated, altered.
//! - [`Cluster`]: brokers in processes of their own on loopback, to be killed, stopped, paused and started again.
//! - [`drill`]: a failure rehearsed under load, and what it cost.
//! - [`demo`]: three brokers, a real file, `kill -9` in the middle, everything back.
//!
//! **Invariants.** A figure is never better than the truth: a latency runs from when a record was due, or from a clock
//! read before it was sent, to a clock read after its acknowledgement was seen. No outcome is dropped: what is not
//! acknowledged is counted as an error.
//!
//! What it is not: it knows only the client's public API, and prints nothing; `cli` does.
#![forbid(unsafe_code)]

pub mod bench;
mod cluster;
pub mod demo;
pub mod drill;
mod error;
mod identity;
mod latency;
mod ledger;
mod observer;
mod payload;
mod ports;
mod process;
mod pump;

pub use cluster::{BROKERS_MAX, Cluster, ClusterOptions};
pub use error::{Error, Result};
pub use identity::{ProcessIdentity, ProcessState};
pub use latency::{Latencies, LatencySummary};
pub use ledger::{Digest, Ledger, Verdict};
pub use payload::Payloads;
pub use ports::{BASE_PORT, BrokerAddresses};
pub use process::{BrokerProcess, BrokerSpec};
pub use pump::{Ack, Outcomes, Pump, PumpOptions, Tally};
