//! Producer, consumer and admin: the library applications use.
//!
//! A [`Client`] is a cheap handle on a cluster. From it come
//! - a [`Producer`]: batches records per partition, sends them in order, retries them with the same sequence
//!   numbers, and resolves a [`Delivery`] per record;
//! - a [`Consumer`]: reads partitions assigned by hand, with prefetch bounded in bytes;
//! - a [`GroupConsumer`]: reads the partitions that its group's coordinator gives it, and commits how far it is;
//! - an [`Admin`]: topics, configuration, offsets, groups.
//!
//! ```no_run
//! # async fn run() -> Result<(), timberline_client::Error> {
//! use timberline_client::{Client, ClientOptions, ConsumerOptions, Position, ProducerOptions, ProducerRecord};
//!
//! let client = Client::connect(ClientOptions::default().bootstrap(["127.0.0.1:7071"])).await?;
//! let producer = client.producer(ProducerOptions::default()).await?;
//! let delivery = producer.send(ProducerRecord::value("events", "hello")).await?;
//! let stored = delivery.await?;
//!
//! let mut consumer = client.consumer(ConsumerOptions::default()).await?;
//! consumer.assign("events", stored.partition, Position::Offset(stored.offset)).await?;
//! assert_eq!(consumer.recv().await?.value.as_deref(), Some(&b"hello"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! **Architecture invariants.** Nothing here knows the broker's internals: only `/proto` and the record batch
//! format. No generated type is part of the public API. Every buffer has a bound that an option names.
//! Every async function states its cancel-safety: what is left behind if its future is dropped half-way.
#![forbid(unsafe_code)]

mod admin;
mod admin_cluster;
mod admin_groups;
mod backoff;
mod client;
mod connection;
mod consumer;
mod error;
mod group;
mod metadata;
mod operations;
mod options;
mod producer;
mod types;

pub use admin::{Admin, TrimTarget};
pub use admin_groups::{
    CommittedOffset, Coordinator, GroupDescription, GroupList, GroupMember, GroupPartition,
    GroupState, GroupSummary, OffsetOutcome, ResetOutcome, ResetTarget, ResetTo, TopicSelection,
};
pub use client::Client;
pub use consumer::{BatchRecord, ConsumedRecord, Consumer, Outage, Position, RecordBatch};
pub use error::{Error, Result};
pub use group::{
    AssignedPartition, Assignor, Committer, GroupConsumer, GroupOptions, ListenerFuture,
    MemberState, OffsetCommit, PendingCommit, RebalanceListener, Revocation, TopicPartition,
};
pub use operations::{
    BrokerState, CanStop, FragileRack, LeaderMove, Operation, OperationKind, OperationState,
    PartitionAtRisk, Reassignment, ReplicaMove,
};
pub use options::{ClientOptions, Codec, ConsumerOptions, Isolation, OffsetReset, ProducerOptions};
pub use producer::{
    BatchInfo, Delivery, Observer, Partitioner, Partitioning, Producer, ProducerObserver,
    ProducerRecord, RecordMetadata, TrySendError,
};
pub use timberline_proto::error::{ApiError, Reason};
pub use types::{
    BrokerInfo, BrokerStatus, ClusterInfo, ClusterStatus, ConfigChange, ConfigEntry, ConfigSource,
    NewTopic, OffsetInfo, OffsetRange, PartitionInfo, PartitionState, TopicDescription, TopicId,
    TopicInfo, TrimOutcome,
};

/// The code in `docs/clients.md` compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/clients.md")]
struct ClientsPage;
