//! Settings of a store and of a log, and the bounds that are not settings.

/// Settings of a data directory.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Size of the journal ring, bytes. Fixed when the directory is made; an existing one keeps its size.
    pub journal_bytes: u64,
    /// A file with at least this many new bytes in a cycle is synced directly instead of being copied into the
    /// journal.
    pub direct_sync_bytes: u64,
    /// Write-back of a file starts ahead of the checkpoint when this many journaled bytes of it wait for one.
    pub write_back_bytes: u64,
    /// A checkpoint is due after this many directly synced bytes (and after a quarter of the journal).
    pub checkpoint_bytes: u64,
    /// Segment files kept open, and so mapped, at most.
    pub open_files_max: usize,
    /// Bytes of one log that snapshots being sent may keep below its log start; more, and they are let go.
    pub pinned_bytes_max: u64,
    /// Threads that sync files beside the journal.
    pub sync_threads: usize,
    /// Id of a directory that is made now; `None`: a random one. Fixed in tests that must repeat themselves.
    pub directory_id: Option<uuid::Uuid>,
    /// A deliberate mistake, to prove that the tests would notice one.
    #[cfg(feature = "planted-bugs")]
    pub bug: Option<crate::bugs::Bug>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            journal_bytes: 128 << 20,
            direct_sync_bytes: 256 << 10,
            write_back_bytes: 256 << 10,
            checkpoint_bytes: 256 << 20,
            open_files_max: 8_000,
            pinned_bytes_max: 16 << 30,
            sync_threads: 8,
            directory_id: None,
            #[cfg(feature = "planted-bugs")]
            bug: None,
        }
    }
}

/// Smallest journal, bytes: four of the largest cycles and the reserve fit.
pub const JOURNAL_BYTES_MIN: u64 = 256 << 10;

/// Settings of one replica's log. They may change while it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment is full at this size, bytes.
    pub segment_bytes: u64,
    /// A segment is full when its first record is this old, ms.
    pub segment_ms: u64,
    /// Sealed segments beyond this total size go, bytes. `None`: no bound.
    pub retention_bytes: Option<u64>,
    /// Sealed segments whose last record is older than this go, ms by the append time. `None`: never.
    pub retention_ms: Option<u64>,
    /// A producer that was silent for this long is forgotten when a segment is sealed, ms.
    pub producer_expiry_ms: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            segment_bytes: 128 << 20,
            segment_ms: 7 * 24 * 3_600_000,
            retention_bytes: None,
            retention_ms: Some(7 * 24 * 3_600_000),
            producer_expiry_ms: 24 * 3_600_000,
        }
    }
}

/// What Raft must find again after a crash, beside its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest term seen.
    pub term: u64,
    /// Replica voted for in that term; 0 for none.
    pub vote: u64,
    /// Latest index known to be committed.
    pub commit: u64,
}
