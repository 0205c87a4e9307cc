//! The log: partitions as entries in memory-mapped segment files, one journal per data directory, recovery that
//! keeps every acknowledged record.
//!
//! ```text
//! Store ── a data directory: open (recovery), cycles, checkpoints, threads (Running)
//!   └─ Log ── one replica: append, truncate, commit, read, retention
//!        └─ Segment ── one file: frames, sparse index, footer, map
//! Disk ── all access to files: RealDisk, FaultDisk
//! ```
//!
//! It is blocking and knows no network. It does not know Raft: it keeps entries with index and term, a hard state,
//! and tells which entries are durable; who may append, and what is committed, is its caller's. The format of every
//! file is in `docs/storage-format.md`, the reasons are in `docs/architecture.md`.
//!
//! **Architecture invariant:** all disk access goes through [`disk::Disk`]; the only unsafe code is its mapping.
//! **Architecture invariant:** work on the disk is a value ([`Work`], [`Checkpoint`]) that threads run in the product
//! and a seeded test runs in any order.
#![deny(unsafe_code)]

pub mod bugs;
mod checkpoint;
mod codec;
mod cycles;
mod dirs;
pub mod disk;
mod error;
mod file_header;
mod footer;
mod frame;
mod handles;
mod ids;
mod index;
mod install;
mod journal;
mod log;
mod membership;
mod options;
mod place;
mod producers;
mod ranges;
mod recovery;
mod running;
mod scan;
mod segment;
mod shared;
mod snapshot;
mod store;
mod table;
mod terms;
mod verify;

pub use checkpoint::{Checkpoint, CheckpointSync};
pub use cycles::{Cycle, DirectSync, Work, WriteBack};
pub use error::{Error, Result};
pub use file_header::FIRST_FRAME;
pub use frame::{
    EntryKind, FRAME_HEADER_LEN, FrameFault, FrameHeader, PAYLOAD_LEN_MAX, chain_seed, frame_len,
    leader_epoch,
};
pub use ids::{FileId, ReplicaId, ReplicaSpec};
pub use install::{Install, Missing};
pub use log::{
    Appended, Boundary, ColdRead, Cursor, Durability, EntryRef, FramesOutcome, Log, ReadOutcome,
    SNAPSHOT_READ_MAX, SNAPSHOTS_MAX, SealDue, Snapshot,
};
pub use membership::CONFIG_LEN_MAX;
pub use options::{HardState, JOURNAL_BYTES_MIN, LogConfig, StoreOptions};
pub use producers::{BATCHES_REMEMBERED, PRODUCERS_MAX, SequenceCheck};
pub use recovery::RecoveryReport;
pub use running::Running;
pub use shared::{Listener, SyncKind};
pub use snapshot::{EntryPlace, SNAPSHOT_SEGMENTS_MAX, SegmentManifest, SnapshotManifest};
pub use store::{Opened, Store, StoreStats};
pub use verify::{VerifiedDamage, VerifiedLog, VerifyReport, verify_directory};
