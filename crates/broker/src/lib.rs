//! The server: partitions, metadata, gRPC, HTTP, metrics.
//!
//! [`Broker::start`] turns a [`BrokerConfig`] into a [`RunningBroker`]; the command line does nothing else.
//!
//! ```text
//!  clients ──gRPC──► grpc (checks, credit, answers) ──► shard (sequences, proposals) ──► group ──► storage
//!                     ▲      ▲                            │                              commit ◄── durable
//!                     │      └───────── answers ◄─────────┴── high watermark ──► waiting fetches
//!                     └── directory ◄── metadata backend ◄── committed commands of group 0
//! ```
//!
//! - `config`: what it is told. `broker`: start and stop. `lifecycle`: where it stands in between.
//! - `grpc`, `http`, `peer`, `listen`: the only sockets of the product. `auth`: the one door. `errors`: reasons for clients.
//! - `shard`: threads that own the write side. `group`: the seam to agreement; today a group of one.
//! - `partition`: what all threads share of a partition. `ack`: the way back to a stream.
//! - `peer`: what brokers say to each other; nothing starts it yet.
//! - `metadata`: the cluster's own log and table. `topic`: names and configuration.
//! - `metrics`: what is counted.
//!
//! **Invariants.** A record is acknowledged only after the store says it is durable (INV-1, INV-5). Readers get nothing
//! above the high watermark (INV-3). Every queue has a bound with a name (INV-12): bytes in flight of a stream, a partition,
//! the broker; items in a shard's inbox; changes under way; connections, streams, assignments.
//!
//! What it is not: it knows no file format and makes no sync (`storage`), and it looks into no record beyond its checks
//! (`record`).
#![forbid(unsafe_code)]

mod ack;
mod auth;
mod broker;
mod clock;
mod cluster;
pub mod config;
mod core;
mod error;
mod errors;
mod groups;
mod grpc;
mod http;
mod lifecycle;
mod listen;
mod metadata;
mod metrics;
mod partition;
mod peer;
mod shard;
mod topic;

pub use broker::{Broker, RunningBroker};
pub use config::BrokerConfig;
pub use error::Error;
