//! Bounds, by name (INV-12).

use crate::config::{GroupsSection, Span};

/// Longest id of a group, a member or an instance, in bytes.
pub(crate) const ID_LEN_MAX: usize = 249;
/// Longest free text of a member: client id, address, rack.
pub(crate) const TEXT_LEN_MAX: usize = 249;
/// Longest pattern of a subscription, in bytes.
pub(crate) const PATTERN_LEN_MAX: usize = 1024;
/// Bytes that a compiled pattern may take, and each of its caches.
pub(crate) const PATTERN_SIZE_MAX: usize = 256 << 10;
/// How deep a pattern may nest.
pub(crate) const PATTERN_NEST_MAX: u32 = 32;
/// Different patterns that a group's members may have.
pub(crate) const PATTERNS_MAX: usize = 64;
/// Topics that a subscription may name.
pub(crate) const TOPICS_NAMED_MAX: usize = 10_000;
/// Longest metadata of a commit, in bytes.
pub(crate) const METADATA_LEN_MAX: usize = 4096;
/// Items of one commit, fetch, reset or deletion of offsets.
pub(crate) const ITEMS_MAX: usize = 100_000;
/// Committed offsets of one group.
pub(crate) const OFFSETS_MAX: usize = 200_000;
/// Highest number of a partition that a record or an answer may carry, and one more.
pub(crate) const PARTITIONS_MAX: u32 = 1 << 20;

/// Session timeouts that a member may ask for, ms.
pub(crate) const SESSION_MS: std::ops::RangeInclusive<i64> = 500..=1_800_000;
/// Rebalance timeouts that a member may ask for, ms.
pub(crate) const REBALANCE_MS: std::ops::RangeInclusive<i64> = 1_000..=3_600_000;
/// Maximum poll intervals that a member may ask for, ms.
pub(crate) const POLL_MS: std::ops::RangeInclusive<i64> = 1_000..=86_400_000;

/// Least time between two targets of one group, ms; large groups wait longer.
pub(crate) const RETARGET_MS: u64 = 20;
/// Members and partitions whose assignment may be worked out for each further ms of that time.
pub(crate) const RETARGET_PER_MS: usize = 100;
/// How often offsets are looked at for their age, ms.
pub(crate) const EXPIRY_EVERY_MS: u64 = 60_000;

/// What a broker's configuration says about groups.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Members of one group.
    pub(crate) members_max: usize,
    /// Groups of one coordinator.
    pub(crate) groups_max: usize,
    /// How long offsets are kept after their group has become empty, ms.
    pub(crate) offsets_retention_ms: i64,
    /// Of members that do not ask for another, ms.
    pub(crate) session_timeout_ms: i64,
    pub(crate) rebalance_timeout_ms: i64,
    pub(crate) max_poll_interval_ms: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::from(&GroupsSection::default())
    }
}

impl From<&GroupsSection> for Settings {
    fn from(config: &GroupsSection) -> Settings {
        let ms = |span: Span| i64::try_from(span.0).unwrap_or(i64::MAX);
        Settings {
            members_max: config.members_max,
            groups_max: config.groups_max,
            offsets_retention_ms: ms(config.offsets_retention),
            session_timeout_ms: ms(config.session_timeout),
            rebalance_timeout_ms: ms(config.rebalance_timeout),
            max_poll_interval_ms: ms(config.max_poll_interval),
        }
    }
}
