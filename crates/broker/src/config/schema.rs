//! The keys: one declaration gives the type, its default, its range and its documentation.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::setting::{HostPorts, LogFormat, Maybe, Setting};
use super::units::{ByteSize, Span};

/// What the reference, `explain` and the error messages know about one key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Section, e.g. `listen`.
    pub section: &'static str,
    /// Name within the section, e.g. `grpc`.
    pub name: &'static str,
    /// Kind of value.
    pub kind: &'static str,
    /// The default as it would stand in the file.
    pub default: String,
    /// Smallest and largest value allowed, as text.
    pub range: Option<(String, String)>,
    /// What it does.
    pub documentation: String,
}

impl Key {
    /// `section.name`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that sets it.
    pub fn environment(&self) -> String {
        format!(
            "TIMBERLINE_{}__{}",
            self.section.to_uppercase(),
            self.name.to_uppercase()
        )
    }
}

/// Why a value was not taken.
#[derive(Debug)]
pub(super) enum SetError {
    UnknownKey,
    Value(String),
}

fn check_range<T: Setting + PartialOrd>(value: &T, low: &T, high: &T) -> Result<(), String> {
    if value < low || value > high {
        return Err(format!(
            "{} is out of range, allowed are {} to {}",
            value.to_toml(),
            low.to_toml(),
            high.to_toml()
        ));
    }
    Ok(())
}

macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident : $section_type:ident {
            $( $(#[doc = $doc:literal])+ $key:ident : $ty:ty = $default:expr $(, $low:expr => $high:expr)? ; )*
        }
    )*) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $section_type { $( $(#[doc = $doc])+ pub $key: $ty, )* }

            impl Default for $section_type {
                fn default() -> Self { $section_type { $( $key: $default, )* } }
            }

            impl $section_type {
                fn set(&mut self, key: &str, value: &toml::Value) -> Result<(), SetError> {
                    match key {
                        $( stringify!($key) => {
                            let value = <$ty as Setting>::from_toml(value).map_err(SetError::Value)?;
                            $( check_range::<$ty>(&value, &$low, &$high).map_err(SetError::Value)?; )?
                            self.$key = value;
                            Ok(())
                        } )*
                        _ => Err(SetError::UnknownKey),
                    }
                }
            }
        )*

        /// Everything a broker can be told. Made by [`super::load`]; `Default` is what no configuration means.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct BrokerConfig { $( $(#[doc = $section_doc])+ pub $section: $section_type, )* }

        impl BrokerConfig {
            pub(super) fn set(&mut self, section: &str, key: &str, value: &toml::Value) -> Result<(), SetError> {
                match section {
                    $( stringify!($section) => self.$section.set(key, value), )*
                    _ => Err(SetError::UnknownKey),
                }
            }
        }

        /// Every section with what it is about, in the order of the reference.
        pub(super) fn sections() -> Vec<(&'static str, String)> {
            vec![ $( (stringify!($section), [$($section_doc),+].join("\n").trim().to_owned()), )* ]
        }

        /// Every key, in the order of the reference.
        #[allow(clippy::vec_init_then_push, reason = "one push for each key of each section, by the macro")]
        pub fn keys() -> Vec<Key> {
            let defaults = BrokerConfig::default();
            let mut keys = Vec::new();
            $( $( keys.push(Key {
                section: stringify!($section),
                name: stringify!($key),
                kind: <$ty as Setting>::TYPE,
                default: Setting::to_toml(&defaults.$section.$key),
                range: None $( .or(Some(($low.to_toml(), $high.to_toml()))) )?,
                documentation: [$($doc),+].map(str::trim).join(" "),
            }); )* )*
            keys
        }
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const SECOND: u64 = 1_000;
const DAY: u64 = 86_400_000;
/// A hundred years: longer than any retention that is meant.
const CENTURY: u64 = 36_500 * DAY;

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

sections! {
    /// Who this broker is.
    broker: BrokerSection {
        /// Number of this broker, unique in the cluster and the same for the life of its data directory.
        id: i32 = 1, 1 => i32::MAX;
        /// Failure domain this broker stands in, for example a zone. Empty: none.
        rack: String = String::new();
        /// Threads that own the partitions' write side. 0: one for each core.
        shards: usize = 0, 0 => 256;
    }

    /// The data directory and its journal.
    storage: StorageSection {
        /// Where everything is kept. Created if missing; one process at a time may use it.
        data_dir: PathBuf = PathBuf::from("./timberline-data");
        /// Size of the prewritten journal that small appends of all partitions share.
        journal_bytes: ByteSize = ByteSize(128 * MIB), ByteSize(MIB) => ByteSize(16 * GIB);
        /// A file with at least this much new data in one cycle is synced directly instead of through the journal.
        direct_sync_bytes: ByteSize = ByteSize(256 * KIB), ByteSize(4 * KIB) => ByteSize(GIB);
        /// A checkpoint is due after this many new bytes; recovery reads at most about as many.
        checkpoint_bytes: ByteSize = ByteSize(256 * MIB), ByteSize(MIB) => ByteSize(TIB);
        /// Segment files held open, and so mapped, at a time. A Linux host allows about 65,000 maps for each process.
        open_files_max: usize = 8000, 16 => 60_000;
        /// Threads that sync files with much new data, side by side.
        sync_threads: usize = 8, 1 => 256;
    }

    /// The cluster and how its brokers watch each other.
    cluster: ClusterSection {
        /// Peer listeners of the brokers that found the cluster, or through which this one joins it; the same list for all of them. Empty: found a cluster of one broker.
        seeds: HostPorts = HostPorts::default();
        /// A leader that was silent for this long is replaced.
        election_timeout: Span = Span(300), Span(50) => Span(60 * SECOND);
        /// How often a leader says that it is there. Must be shorter than election_timeout; a third of it is right.
        heartbeat_interval: Span = Span(100), Span(10) => Span(20 * SECOND);
        /// The replicas of a broker that was gone for this long are rebuilt on others.
        replacement_after: Span = Span(300 * SECOND), Span(SECOND) => Span(CENTURY);
        /// Bytes that this broker sends each second, at most, to build replicas elsewhere.
        transfer_rate: ByteSize = ByteSize(64 * MIB), ByteSize(64 * KIB) => ByteSize(TIB);
    }

    /// Addresses to listen on.
    listen: ListenSection {
        /// The clients' gRPC listener. Port 0: one that is free.
        grpc: SocketAddr = loopback(7071);
        /// HOST:PORT that clients are told to use for gRPC. Empty: the address listened on.
        grpc_advertise: String = String::new();
        /// The listener for other brokers. Port 0: one that is free.
        peer: SocketAddr = loopback(7072);
        /// HOST:PORT that other brokers are told to use. Empty: the address listened on.
        peer_advertise: String = String::new();
        /// HTTP listener for probes and metrics.
        http: SocketAddr = loopback(7073);
        /// Allows listeners that are not loopback although they have no TLS: everybody who reaches the port may read and write.
        insecure: bool = false;
        /// gRPC connections at a time; more wait in the listener's queue.
        connections_max: usize = 4096, 1 => 1_000_000;
        /// HTTP connections at a time.
        http_connections_max: usize = 256, 1 => 100_000;
        /// A connection that has not finished its HTTP/2 preface by then is closed.
        handshake_timeout: Span = Span(10 * SECOND), Span(100) => Span(600 * SECOND);
    }

    /// Bounds on what clients may ask for and on memory.
    limits: LimitsSection {
        /// Largest value that a topic's max.message.bytes may have; requests are received up to a little more.
        message_bytes_max: ByteSize = ByteSize(16 * MIB), ByteSize(KIB) => ByteSize(256 * MIB);
        /// Largest size of a batch after decompression.
        decompressed_bytes_max: ByteSize = ByteSize(64 * MIB), ByteSize(KIB) => ByteSize(GIB);
        /// Unacknowledged bytes on one produce stream before it is not read any further.
        stream_in_flight_bytes: ByteSize = ByteSize(32 * MIB), ByteSize(MIB) => ByteSize(4 * GIB);
        /// Unacknowledged batches on one produce stream before it is not read any further.
        stream_in_flight_batches: usize = 8192, 1 => 1_000_000;
        /// Unacknowledged bytes of one partition before further batches are refused with OVERLOADED.
        partition_in_flight_bytes: ByteSize = ByteSize(128 * MIB), ByteSize(MIB) => ByteSize(16 * GIB);
        /// Unacknowledged bytes of the whole broker before further batches are refused with OVERLOADED.
        broker_in_flight_bytes: ByteSize = ByteSize(512 * MIB), ByteSize(MIB) => ByteSize(TIB);
        /// Most bytes of batches in one message of a fetch stream.
        fetch_message_bytes: ByteSize = ByteSize(MIB), ByteSize(4 * KIB) => ByteSize(64 * MIB);
        /// Partitions assigned to one fetch stream at a time.
        fetch_assignments_max: usize = 20_000, 1 => 1_000_000;
        /// Partitions of one topic.
        topic_partitions_max: usize = 20_000, 1 => 1_000_000;
        /// Partitions on this broker.
        partitions_max: usize = 100_000, 1 => 1_000_000;
        /// Streams that one connection may have open.
        connection_streams_max: u32 = 1024, 1 => 65_536;
        /// HTTP/2 receive window of a stream; bytes a peer may have under way unread.
        stream_window: ByteSize = ByteSize(4 * MIB), ByteSize(64 * KIB) => ByteSize(GIB);
        /// HTTP/2 receive window of a connection.
        connection_window: ByteSize = ByteSize(8 * MIB), ByteSize(64 * KIB) => ByteSize(GIB);
    }

    /// What a topic gets when it does not say otherwise.
    log: LogSection {
        /// Default of retention.ms: closed segments whose newest record is older are deleted. "none": kept for ever.
        retention_time: Maybe<Span> = Maybe(Some(Span(7 * DAY))), Maybe(Some(Span(1))) => Maybe(Some(Span(CENTURY)));
        /// Default of retention.bytes, for each partition. "none": unlimited.
        retention_bytes: Maybe<ByteSize> = Maybe(None), Maybe(Some(ByteSize(1))) => Maybe(Some(ByteSize(1 << 60)));
        /// Default of segment.bytes: a segment file is closed when it would grow beyond.
        segment_bytes: ByteSize = ByteSize(256 * MIB), ByteSize(MIB) => ByteSize(2 * GIB - 1);
        /// Default of segment.ms: a segment older than this is closed even if it is not full.
        segment_time: Span = Span(7 * DAY), Span(1) => Span(CENTURY);
        /// Default of max.message.bytes: the largest batch, as it is sent.
        max_message_bytes: ByteSize = ByteSize(1_048_588), ByteSize(64) => ByteSize(256 * MIB);
        /// A producer that wrote nothing for this long is forgotten.
        producer_expiry: Span = Span(DAY), Span(SECOND) => Span(CENTURY);
        /// How often retention and age are looked at.
        housekeeping_interval: Span = Span(30 * SECOND), Span(100) => Span(DAY);
        /// Commands in the metadata log before a full image replaces them.
        metadata_image_commands: u64 = 20_000, 16 => 10_000_000;
    }

    /// Consumer groups.
    groups: GroupsSection {
        /// How long a member may be silent that does not ask for another session timeout.
        session_timeout: Span = Span(10 * SECOND), Span(500) => Span(1800 * SECOND);
        /// How long a member may take to release partitions, if it does not ask for another rebalance timeout.
        rebalance_timeout: Span = Span(60 * SECOND), Span(SECOND) => Span(3600 * SECOND);
        /// How long an application may go without a poll, if its member does not ask for another interval.
        max_poll_interval: Span = Span(300 * SECOND), Span(SECOND) => Span(DAY);
        /// Committed offsets are kept for this long after their group has lost its last member.
        offsets_retention: Span = Span(7 * DAY), Span(SECOND) => Span(CENTURY);
        /// Members of one group.
        members_max: usize = 10_000, 1 => 100_000;
        /// Groups of one coordinator; a sixteenth of all groups.
        groups_max: usize = 100_000, 1 => 10_000_000;
    }

    /// Log lines of the process.
    logging: LoggingSection {
        /// What to log, as a filter: `info`, or `info,timberline_broker=debug`.
        filter: String = "info".to_owned();
        /// How a line looks.
        format: LogFormat = LogFormat::Human;
    }

    /// Starting and stopping.
    shutdown: ShutdownSection {
        /// How long a drain waits for clients' streams to end before it closes them.
        drain_timeout: Span = Span(10 * SECOND), Span(0) => Span(600 * SECOND);
    }
}
