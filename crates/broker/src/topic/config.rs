//! A topic's configuration: Kafka's keys, checked, over the broker's defaults.

use std::collections::BTreeMap;

use timberline_proto::error::{ApiError, Reason};
use timberline_storage::LogConfig;

use crate::config::{BrokerConfig, nearest};

/// Longest value of a key, in bytes.
const VALUE_LEN_MAX: usize = 256;

/// What is set on a topic itself.
pub(crate) type Explicit = BTreeMap<String, String>;

/// What a topic lives by: explicit values over defaults.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TopicConfig {
    pub(crate) log: LogConfig,
    /// Largest batch in bytes, as sent.
    pub(crate) max_message_bytes: usize,
    /// `message.timestamp.type=LogAppendTime`: the broker's clock replaces the producer's.
    pub(crate) log_append_time: bool,
}

/// The values of keys that no topic set, and the bounds that the broker puts on them.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
    segment_bytes: u64,
    segment_ms: u64,
    max_message_bytes: u64,
    producer_expiry_ms: u64,
    /// Ceiling of max.message.bytes.
    message_bytes_max: u64,
}

impl Defaults {
    pub(crate) fn new(config: &BrokerConfig) -> Self {
        Defaults {
            retention_ms: config.log.retention_time.0.map(|span| span.0),
            retention_bytes: config.log.retention_bytes.0.map(|size| size.0),
            segment_bytes: config.log.segment_bytes.0,
            segment_ms: config.log.segment_time.0,
            max_message_bytes: config.log.max_message_bytes.0,
            producer_expiry_ms: config.log.producer_expiry.0,
            message_bytes_max: config.limits.message_bytes_max.0,
        }
    }
}

/// One key that is served.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) documentation: &'static str,
    default: fn(&Defaults) -> String,
    check: fn(&str, &Defaults) -> Result<(), String>,
}

impl Key {
    /// The value without a topic's own.
    pub(crate) fn default_value(&self, defaults: &Defaults) -> String {
        (self.default)(defaults)
    }
}

fn unlimited(value: Option<u64>) -> String {
    value.map_or_else(|| "-1".to_owned(), |value| value.to_string())
}

fn integer(text: &str, low: i64, high: i64) -> Result<i64, String> {
    let value: i64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a whole number"))?;
    if value < low || value > high {
        return Err(format!(
            "{value} is out of range, allowed are {low} to {high}"
        ));
    }
    Ok(value)
}

fn one_of(text: &str, served: &[&str], later: &[&str]) -> Result<(), String> {
    if served.contains(&text) {
        return Ok(());
    }
    let known = served.join(", ");
    if later.contains(&text) {
        return Err(format!("`{text}` is not served yet, only {known}"));
    }
    Err(format!("`{text}` is not one of {known}"))
}

/// Every key that is served, in the order they are shown.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "cleanup.policy",
        documentation: "What happens to old segments. Only delete is served.",
        default: |_| "delete".to_owned(),
        check: |text, _| {
            one_of(
                text,
                &["delete"],
                &["compact", "compact,delete", "delete,compact"],
            )
        },
    },
    Key {
        name: "compression.type",
        documentation: "Codec batches are stored with. Only producer is served: as they were sent.",
        default: |_| "producer".to_owned(),
        check: |text, _| {
            one_of(
                text,
                &["producer"],
                &["uncompressed", "gzip", "snappy", "lz4", "zstd"],
            )
        },
    },
    Key {
        name: "max.message.bytes",
        documentation: "Largest record batch, in bytes as sent.",
        default: |defaults| defaults.max_message_bytes.to_string(),
        check: |text, defaults| integer(text, 64, defaults.message_bytes_max as i64).map(drop),
    },
    Key {
        name: "message.timestamp.type",
        documentation: "Whose clock stamps records: CreateTime, the producer's, or LogAppendTime, the broker's.",
        default: |_| "CreateTime".to_owned(),
        check: |text, _| one_of(text, &["CreateTime", "LogAppendTime"], &[]),
    },
    Key {
        name: "min.insync.replicas",
        documentation: "Only 1 is accepted, and it changes nothing: a record is acknowledged when a majority of its partition's replicas has it synced.",
        default: |_| "1".to_owned(),
        check: |text, _| one_of(text, &["1"], &["2", "3"]),
    },
    Key {
        name: "retention.bytes",
        documentation: "Bytes of a partition that are kept, whole segments at a time; -1: unlimited.",
        default: |defaults| unlimited(defaults.retention_bytes),
        check: |text, _| integer(text, -1, 1 << 60).map(drop),
    },
    Key {
        name: "retention.ms",
        documentation: "How long records are kept after their append, in ms, whole segments at a time; -1: for ever.",
        default: |defaults| unlimited(defaults.retention_ms),
        check: |text, _| integer(text, -1, 36_500 * 86_400_000).map(drop),
    },
    Key {
        name: "segment.bytes",
        documentation: "A segment file is closed when it would grow beyond this.",
        default: |defaults| defaults.segment_bytes.to_string(),
        check: |text, _| integer(text, 1 << 20, (1 << 31) - 1).map(drop),
    },
    Key {
        name: "segment.ms",
        documentation: "A segment older than this, in ms, is closed even if it is not full.",
        default: |defaults| defaults.segment_ms.to_string(),
        check: |text, _| integer(text, 1, 36_500 * 86_400_000).map(drop),
    },
];

/// Kafka's keys that are known but not served, so that the answer can say so.
const NOT_SERVED: &[&str] = &[
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.zstd.level",
    "delete.retention.ms",
    "file.delete.delay.ms",
    "flush.messages",
    "flush.ms",
    "follower.replication.throttled.replicas",
    "index.interval.bytes",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "max.compaction.lag.ms",
    "message.downconversion.enable",
    "message.format.version",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "preallocate",
    "remote.storage.enable",
    "segment.index.bytes",
    "segment.jitter.ms",
    "unclean.leader.election.enable",
];

fn refuse(key: &str, message: String) -> ApiError {
    ApiError::new(Reason::InvalidConfig, message)
        .with("key", shown(key))
        .with_field("config")
}

/// A key from outside, short enough for a message.
fn shown(key: &str) -> String {
    key.chars().take(80).flat_map(char::escape_debug).collect()
}

/// The key with this name.
///
/// # Errors
/// `INVALID_CONFIG` with the nearest key, or saying that it is not served.
pub(crate) fn key(name: &str) -> Result<&'static Key, ApiError> {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return Ok(key);
    }
    let name_shown = shown(name);
    if NOT_SERVED.contains(&name) {
        return Err(refuse(
            name,
            format!("configuration key `{name_shown}` is not served yet"),
        ));
    }
    let message = match nearest(name, KEYS.iter().map(|key| key.name)) {
        Some(near) => format!("unknown configuration key `{name_shown}`; did you mean `{near}`?"),
        None => format!("unknown configuration key `{name_shown}`"),
    };
    Err(refuse(name, message))
}

/// Checks one pair.
///
/// # Errors
/// `INVALID_CONFIG` that names the key and what is allowed.
pub(crate) fn check(name: &str, value: &str, defaults: &Defaults) -> Result<(), ApiError> {
    let key = key(name)?;
    if value.len() > VALUE_LEN_MAX {
        return Err(refuse(
            name,
            format!("the value of `{name}` is longer than {VALUE_LEN_MAX} bytes"),
        ));
    }
    (key.check)(value, defaults).map_err(|why| refuse(name, format!("{name}: {why}")))
}

impl TopicConfig {
    /// Explicit values over defaults. A value that no longer passes (written under a wider ceiling) counts as not set.
    pub(crate) fn resolve(explicit: &Explicit, defaults: &Defaults) -> TopicConfig {
        let text = |name: &str| {
            explicit
                .get(name)
                .filter(|value| check(name, value, defaults).is_ok())
        };
        let number = |name: &str| text(name).and_then(|value| value.parse::<i64>().ok());
        // -1 is Kafka's "unlimited": set, and no bound.
        let bound = |name: &str, default: Option<u64>| match number(name) {
            Some(value) => u64::try_from(value).ok(),
            None => default,
        };
        let size = |name: &str, default: u64| bound(name, Some(default)).unwrap_or(default);
        TopicConfig {
            log: LogConfig {
                segment_bytes: size("segment.bytes", defaults.segment_bytes),
                segment_ms: size("segment.ms", defaults.segment_ms),
                retention_bytes: bound("retention.bytes", defaults.retention_bytes),
                retention_ms: bound("retention.ms", defaults.retention_ms),
                producer_expiry_ms: defaults.producer_expiry_ms,
            },
            max_message_bytes: size("max.message.bytes", defaults.max_message_bytes) as usize,
            log_append_time: text("message.timestamp.type").is_some_and(|v| v == "LogAppendTime"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults::new(&BrokerConfig::default())
    }

    #[test]
    fn keys_and_ranges_are_checked() {
        for (name, value) in [
            ("retention.ms", "-1"),
            ("retention.ms", "86400000"),
            ("retention.bytes", "0"),
            ("segment.bytes", "1048576"),
            ("max.message.bytes", "2000000"),
            ("message.timestamp.type", "LogAppendTime"),
            ("cleanup.policy", "delete"),
            ("compression.type", "producer"),
            ("min.insync.replicas", "1"),
        ] {
            check(name, value, &defaults()).unwrap();
        }
        let huge = "9".repeat(300);
        for (name, value, part) in [
            ("retention.ms", "-2", "range"),
            ("retention.ms", "soon", "whole number"),
            ("retention.ms", huge.as_str(), "longer"),
            ("retension.ms", "1", "`retention.ms`"),
            ("flush.ms", "1", "not served yet"),
            ("cleanup.policy", "compact", "not served yet"),
            ("compression.type", "zstd", "not served yet"),
            ("compression.type", "rar", "not one of"),
            ("min.insync.replicas", "2", "not served yet"),
            ("max.message.bytes", "99999999999", "range"),
            ("segment.bytes", "1", "range"),
            ("\0", "1", "unknown"),
        ] {
            let error = check(name, value, &defaults()).unwrap_err();
            assert_eq!(error.reason, Some(Reason::InvalidConfig));
            assert!(error.message.contains(part), "{}", error.message);
        }
    }

    #[test]
    fn every_default_passes_its_own_check() {
        for key in KEYS {
            let value = key.default_value(&defaults());
            check(key.name, &value, &defaults()).unwrap();
        }
    }

    #[test]
    fn explicit_values_win_and_minus_one_means_unlimited() {
        let explicit = Explicit::from([
            ("retention.ms".to_owned(), "-1".to_owned()),
            ("retention.bytes".to_owned(), "5000000".to_owned()),
            ("max.message.bytes".to_owned(), "99999999999".to_owned()),
            (
                "message.timestamp.type".to_owned(),
                "LogAppendTime".to_owned(),
            ),
        ]);
        let config = TopicConfig::resolve(&explicit, &defaults());
        assert_eq!(config.log.retention_ms, None);
        assert_eq!(config.log.retention_bytes, Some(5_000_000));
        assert_eq!(config.max_message_bytes, 1_048_588);
        assert!(config.log_append_time);
        assert_eq!(
            TopicConfig::resolve(&Explicit::new(), &defaults())
                .log
                .retention_ms,
            Some(604_800_000)
        );
    }
}
