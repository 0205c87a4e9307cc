//! The handshake: what a sender says of itself, and what is checked before anything else is read from it.

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, PeerLane};
use uuid::Uuid;

use super::convert::malformed;
use super::limits::{SHARDS_MAX, TEXT_BYTES_MAX};

/// Oldest version of the protocol between brokers that is spoken here.
pub(super) const VERSION_MIN: u32 = 3;
/// The newest.
pub(super) const VERSION_MAX: u32 = 3;

/// Which stream of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LaneId {
    /// Everything that must not wait.
    Prompt,
    /// Entries of one of the sender's shards.
    Bulk(u16),
}

/// A hello whose form was checked. What it claims is for [`super::PeerHandler::hello`] to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The sender's cluster.
    pub(crate) cluster_id: String,
    /// The sender.
    pub(crate) broker_id: i32,
    /// Its data directory.
    pub(crate) directory: Uuid,
    /// Starts of that directory; one behind what was seen before is a copy or a rollback (INV-6).
    pub(crate) boot: u64,
    /// Where it stands.
    pub(crate) rack: String,
    /// What the stream is for.
    pub(crate) lane: LaneId,
}

impl Hello {
    /// As it goes out to `receiver`.
    pub(super) fn to_wire(&self, receiver: i32) -> pb::PeerHello {
        let (lane, shard) = match self.lane {
            LaneId::Prompt => (PeerLane::Prompt, 0),
            LaneId::Bulk(shard) => (PeerLane::Bulk, u32::from(shard)),
        };
        pb::PeerHello {
            cluster_id: self.cluster_id.clone(),
            broker_id: self.broker_id,
            directory_id: self.directory.as_bytes().to_vec().into(),
            boot: self.boot,
            rack: self.rack.clone(),
            lane: lane.into(),
            shard,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            receiver_broker_id: receiver,
        }
    }

    /// Reads the first message of a stream to broker `receiver`; also gives the version that both speak.
    ///
    /// # Errors
    /// `WRONG_RECEIVER`, `UNSUPPORTED_VERSION`, or `MALFORMED_MESSAGE`.
    pub(super) fn from_wire(hello: pb::PeerHello, receiver: i32) -> Result<(Hello, u32), ApiError> {
        let version = common_version(hello.version_min, hello.version_max)?;
        if hello.receiver_broker_id != receiver {
            return Err(ApiError::new(
                Reason::WrongReceiver,
                format!(
                    "this is broker {receiver}, meant was broker {}",
                    hello.receiver_broker_id
                ),
            )
            .with("broker_id", receiver));
        }
        let lane = match PeerLane::try_from(hello.lane) {
            Ok(PeerLane::Prompt) => LaneId::Prompt,
            Ok(PeerLane::Bulk) => u16::try_from(hello.shard)
                .ok()
                .filter(|&shard| shard < SHARDS_MAX)
                .map(LaneId::Bulk)
                .ok_or_else(|| malformed(format!("a hello of shard {}", hello.shard)))?,
            _ => return Err(malformed("a hello without a lane")),
        };
        if hello.broker_id < 1 {
            return Err(malformed(format!("a hello of broker {}", hello.broker_id)));
        }
        if hello.cluster_id.len() > TEXT_BYTES_MAX || hello.rack.len() > TEXT_BYTES_MAX {
            return Err(malformed("a hello with a text that is too long"));
        }
        let directory = Uuid::from_slice(&hello.directory_id)
            .map_err(|_| malformed("a hello without the 16 bytes of a directory id"))?;
        let hello = Hello {
            cluster_id: hello.cluster_id,
            broker_id: hello.broker_id,
            directory,
            boot: hello.boot,
            rack: hello.rack,
            lane,
        };
        Ok((hello, version))
    }
}

/// The newest version of both ranges.
///
/// # Errors
/// `UNSUPPORTED_VERSION`.
fn common_version(min: u32, max: u32) -> Result<u32, ApiError> {
    let version = max.min(VERSION_MAX);
    if version < min.max(VERSION_MIN) {
        return Err(ApiError::new(
            Reason::UnsupportedVersion,
            format!(
                "the peer speaks versions {min} to {max} of the protocol between brokers, this broker {VERSION_MIN} to {VERSION_MAX}"
            ),
        ));
    }
    Ok(version)
}
