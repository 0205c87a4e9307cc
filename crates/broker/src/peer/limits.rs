//! The bounds of the transport (INV-12), and its times.

use std::time::Duration;

use timberline_storage::PAYLOAD_LEN_MAX;

/// Payload of one batch on the wire, about; a larger envelope goes alone.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Messages of one batch.
pub(super) const BATCH_MESSAGES: usize = 4096;
/// Frames of one batch, over all its messages.
pub(super) const BATCH_FRAMES: usize = 65_536;
/// Leaderships of one batch.
pub(super) const BATCH_LEADERSHIPS: usize = 8192;
/// Payload of one envelope: the largest frame behind others that alone would have fitted. Larger ones are dropped.
pub(super) const ENVELOPE_BYTES_MAX: usize = PAYLOAD_LEN_MAX + BATCH_BYTES;
/// Largest message received on a stream: a batch nearly full, the largest envelope, and what encoding adds.
pub(super) const MESSAGE_BYTES_MAX: usize = ENVELOPE_BYTES_MAX + BATCH_BYTES + (4 << 20);
/// Largest answer on a stream.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Largest message of a call beside the streams, either way.
pub(super) const CALL_BYTES_MAX: usize = 4 << 20;

/// What a queued envelope costs beside its payload.
pub(super) const ENVELOPE_OVERHEAD_BYTES: usize = 128;
/// The queue of the prompt lane to one broker.
pub(super) const PROMPT_QUEUE_ITEMS: usize = 65_536;
/// See [`PROMPT_QUEUE_ITEMS`].
pub(super) const PROMPT_QUEUE_BYTES: usize = 16 << 20;
/// Leaderships that wait for one broker: those of all its partitions, and again.
pub(super) const GOSSIP_QUEUE_ITEMS: usize = 200_000;
/// The queue of one shard's bulk lane to one broker.
pub(super) const BULK_QUEUE_ITEMS: usize = 16_384;
/// See [`BULK_QUEUE_ITEMS`]. One envelope is taken by an empty queue whatever its size.
pub(super) const BULK_QUEUE_BYTES: usize = 32 << 20;

/// HTTP/2 frames as large as batches.
pub(super) const FRAME_BYTES: u32 = 1 << 20;
/// Bytes of a stream on their way and not yet taken.
pub(super) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes of a connection on their way and not yet taken.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of a prompt stream that wait for the socket: few, so that what waits is batched.
pub(super) const PROMPT_SEND_BYTES: usize = 256 << 10;
/// Bytes of a bulk stream that wait for the socket.
pub(super) const BULK_SEND_BYTES: usize = 2 << 20;
/// Headers of one request, or of one answer with its error details.
pub(super) const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Connections of the peer listener at a time: two of each broker, and calls.
pub(crate) const PEER_CONNECTIONS_MAX: usize = 1024;
/// Streams of one connection: a lane for each shard there can be, and calls.
pub(super) const CONNECTION_STREAMS_MAX: u32 = 320;
/// Streams whose hello is being read, of all connections; more wait.
pub(super) const HANDSHAKES_MAX: usize = 64;
/// Longest text in a hello.
pub(super) const TEXT_BYTES_MAX: usize = 255;
/// Shards that a sender can have.
pub(super) const SHARDS_MAX: u16 = 256;

/// How long a connection may take to be made.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a hello may take to come, or to be answered.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// A prompt connection that was silent for so long is asked whether it lives.
pub(super) const PROMPT_KEEPALIVE: Duration = Duration::from_secs(1);
/// How long it may take to answer.
pub(super) const PROMPT_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// As [`PROMPT_KEEPALIVE`] for other connections: their pings queue behind entries.
pub(super) const BULK_KEEPALIVE: Duration = Duration::from_secs(5);
/// As [`PROMPT_KEEPALIVE_TIMEOUT`].
pub(super) const BULK_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before dialing again.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest pause before dialing again.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that stood for so long was sound: after it, dialing starts without a pause.
pub(super) const SOUND_AFTER: Duration = Duration::from_secs(1);
/// How long an answer to `Status` may take.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer to `Join` may take: it waits for a commit.
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a piece of a segment may take, the sender's throttle included.
pub(super) const SEGMENT_TIMEOUT: Duration = Duration::from_secs(30);
