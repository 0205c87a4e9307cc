//! What the transport tells, and asks of, the broker.

use timberline_consensus::Envelope;
use timberline_proto::error::ApiError;
use timberline_proto::internal as pb;

use super::convert::ShardBeats;
use super::hello::Hello;

/// The broker, as the transport knows it.
///
/// All but the `async` calls are made on network threads, [`PeerHandler::unreachable`] also on a thread inside
/// [`super::Peers::send`]: they must not block, nor call `send` while they hold what a caller of `send` holds.
#[tonic::async_trait]
pub(crate) trait PeerHandler: Send + Sync + 'static {
    /// Whether this sender may speak: its cluster is ours, its broker and directory are registered together, its boot is
    /// not behind (INV-6).
    ///
    /// # Errors
    /// `WRONG_CLUSTER`, `UNKNOWN_BROKER`, `DUPLICATE_BROKER`: the sender is told, and tries again later.
    fn hello(&self, hello: &Hello) -> Result<(), ApiError>;

    /// Messages of many groups from a broker that was let in. Each names its group and replicas, which are still to be
    /// checked: any broker that was let in can claim any of them. Payloads belong to their headers.
    fn messages(&self, from: i32, batch: Vec<Envelope>);

    /// Shards of another broker are alive.
    fn shard_beats(&self, from: i32, beats: ShardBeats);

    /// Who leads what, as another broker knows it. Topic ids have 16 bytes.
    fn leaderships(&self, from: i32, leaderships: Vec<pb::Leadership>);

    /// Prompt messages to the broker go through from here on.
    fn connected(&self, broker: i32);

    /// The prompt connection to the broker ended, and what was on its way may be lost. Called again with `refused` once it
    /// is known that nobody listens there any more, and not again before the next [`PeerHandler::connected`]: its process
    /// is gone, elections need not wait.
    fn lost(&self, broker: i32, refused: bool);

    /// Messages to the broker were dropped or may be lost: probe before sending on. Once for each episode.
    fn unreachable(&self, broker: i32);

    /// Who this broker is and what it knows.
    async fn status(&self, request: pb::StatusRequest) -> Result<pb::StatusResponse, ApiError>;

    /// A change of metadata for another broker.
    async fn forward(&self, request: pb::ForwardRequest) -> Result<pb::ForwardResponse, ApiError>;

    /// Registers a broker.
    async fn join(&self, request: pb::JoinRequest) -> Result<pb::JoinResponse, ApiError>;

    /// Sealed segments of a log that is led here.
    async fn snapshot(
        &self,
        request: pb::SnapshotRequest,
    ) -> Result<pb::SnapshotResponse, ApiError>;
}
