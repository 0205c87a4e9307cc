//! Sealed segments from a leader to a follower that lacks what is not in the leader's tail any more.
//!
//! The leader offers (a message of the group), the follower pulls: the manifest, then the segments in pieces, each staged
//! and checked, then one record makes them its log. A pull that breaks off is begun again with the leader's next offer;
//! what was staged by then is dropped. The sender holds the files from the first question until the end, or until the
//! follower was silent for a while, and sends no faster than `cluster.transfer_rate`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use timberline_consensus::{NodeId, SnapshotMark};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_storage::{
    EntryPlace, Install, Log, ReplicaId, SegmentManifest, Snapshot, SnapshotManifest,
};
use uuid::Uuid;

use super::Cluster;
use crate::errors;
use crate::metadata::table::id_bytes;
use crate::peer::Segments;
use crate::shard::Work;

/// Bytes of one piece.
const PIECE_BYTES: u64 = 1 << 20;
/// A follower that asked nothing for so long has given up.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// Between two times that a leader's shard is told of a follower that pulls.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How far the bytes that left may be behind the rate and still be made up for.
const SLACK_MAX: Duration = Duration::from_millis(100);
/// A follower that lacks no more than this behind a snapshot gets it as entries.
const FURTHER_FROM_BYTES: u64 = 8 << 20;
/// Times that a follower asks for a snapshot that goes further. Each takes a fraction of the time of the one before, unless
/// more is written than is sent.
const FURTHER_MAX: usize = 8;
/// How long a segment may take to be sealed for that, and how often that is looked at.
const SEALED_WITHIN: Duration = Duration::from_secs(2);
const SEALED_EVERY: Duration = Duration::from_millis(5);
/// Snapshots that this broker sends at a time; more are refused and asked for again.
const SENDS_MAX: usize = 16;

/// What a follower needs to pull a snapshot.
pub(crate) struct Pull {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) log: Arc<Log>,
    /// The leader's broker and replica, and its term.
    pub(crate) broker: i32,
    pub(crate) from: NodeId,
    pub(crate) term: u64,
    /// The replica here.
    pub(crate) node: NodeId,
    pub(crate) tag: u64,
    pub(crate) mark: SnapshotMark,
}

impl Pull {
    /// Pulls, stages, and hands the result to the replica's shard, which is told of a failure, too.
    pub(crate) async fn run(mut self) {
        let replica = self.log.spec().replica;
        let began = Instant::now();
        let staged = match self.pull().await {
            Ok(staged) => {
                tracing::info!(%replica, index = self.mark.index, took = ?began.elapsed(), "a snapshot is here");
                Some(Box::new(staged))
            }
            Err(error) => {
                tracing::warn!(%replica, index = self.mark.index, %error, "a snapshot did not come through");
                None
            }
        };
        let work = Work::Staged {
            replica,
            from: self.from,
            term: self.term,
            staged,
        };
        self.cluster.submit(replica, work);
    }

    fn request(&self) -> pb::SnapshotRequest {
        pb::SnapshotRequest {
            group: self.tag,
            from: self.from,
            to: self.node,
            index: self.mark.index,
            ..pb::SnapshotRequest::default()
        }
    }

    async fn pull(&mut self) -> Result<Install, ApiError> {
        let peers = self.cluster.peers().ok_or_else(errors::gone)?;
        let segments = peers.segments(self.broker).await?;
        let answer = segments.ask(self.request()).await?;
        let manifest = answer.manifest.as_ref().and_then(manifest_from);
        let manifest = manifest.ok_or_else(|| {
            ApiError::new(Reason::MalformedMessage, "a snapshot without a manifest")
        })?;
        let storage = |error: timberline_storage::Error| errors::from_storage(&error);
        let install = self.log.begin_install(manifest).map_err(storage)?;
        let mut install = self.fetch(&segments, install).await?;
        // While a large log was fetched, much was written: that is fetched like the rest, and what is written meanwhile, as
        // long as it pays. Entries cost the leader far more.
        for _ in 0..FURTHER_MAX {
            let further = segments.ask(pb::SnapshotRequest {
                further: Some(true),
                ..self.request()
            });
            let answer = further.await.ok().and_then(|answer| answer.manifest);
            let Some(manifest) = answer.as_ref().and_then(manifest_from) else {
                break;
            };
            let end = manifest.segments.last().map_or(0, |last| last.last.index);
            if end <= self.mark.index {
                break;
            }
            install.resume(manifest).map_err(storage)?;
            self.mark.index = end;
            install = self.fetch(&segments, install).await?;
        }
        let finished = tokio::task::spawn_blocking(move || install.finish().map(|()| install));
        let install = finished
            .await
            .map_err(|_| errors::gone())?
            .map_err(storage)?;
        let ended = segments.ask(pb::SnapshotRequest {
            ended: Some(true),
            ..self.request()
        });
        // The leader finds out anyway.
        let _ = ended.await;
        Ok(install)
    }

    /// Stages all that is missing.
    async fn fetch(&self, segments: &Segments, mut install: Install) -> Result<Install, ApiError> {
        let storage = |error: timberline_storage::Error| errors::from_storage(&error);
        loop {
            let missing = install.missing();
            let next = missing.iter().find_map(|lack| {
                lack.ranges
                    .first()
                    .map(|range| (lack.segment, range.clone()))
            });
            let Some((segment, range)) = next else {
                return Ok(install);
            };
            let length = (range.end - range.start).min(PIECE_BYTES);
            let piece = segments.ask(pb::SnapshotRequest {
                segment: Some(segment as u32),
                position: range.start,
                length: length as u32,
                ..self.request()
            });
            let data = piece.await?.data;
            if data.is_empty() {
                return Err(ApiError::new(Reason::MalformedMessage, "an empty piece"));
            }
            let written = tokio::task::spawn_blocking(move || {
                let result = install.write(segment, range.start, &data);
                result.map(|()| install)
            });
            install = written
                .await
                .map_err(|_| errors::gone())?
                .map_err(storage)?;
        }
    }
}

struct Send {
    index: u64,
    snapshot: Arc<Snapshot>,
    replica: ReplicaId,
    used: Instant,
    /// When the leader's shard was told of it last.
    told: Instant,
}

/// The snapshots that this broker sends.
pub(crate) struct Sends {
    under_way: Mutex<HashMap<(u64, NodeId), Send>>,
    /// When the next byte may leave.
    next: Mutex<Instant>,
    bytes_per_second: u64,
}

impl Sends {
    pub(crate) fn new(bytes_per_second: u64) -> Sends {
        Sends {
            under_way: Mutex::default(),
            next: Mutex::new(Instant::now()),
            bytes_per_second: bytes_per_second.max(1),
        }
    }

    /// Answers a follower that pulls from the log.
    ///
    /// # Errors
    /// `NOT_LEADER` when the snapshot is no more, `OVERLOADED`, and those of reading.
    pub(crate) async fn answer(
        &self,
        log: Arc<Log>,
        request: pb::SnapshotRequest,
    ) -> Result<pb::SnapshotResponse, ApiError> {
        let key = (request.group, request.to);
        if request.ended.is_some() {
            self.under_way.lock().remove(&key);
            return Ok(pb::SnapshotResponse::default());
        }
        let Some(segment) = request.segment else {
            let index = match request.further {
                Some(true) => further(&log, request.index).await,
                _ => Some(request.index),
            };
            let Some(index) = index else {
                return Ok(pb::SnapshotResponse::default());
            };
            let snapshot = self.begin(key, log, index).await?;
            return Ok(pb::SnapshotResponse {
                manifest: Some(manifest_to(snapshot.manifest())),
                ..pb::SnapshotResponse::default()
            });
        };
        let snapshot = {
            let mut under_way = self.under_way.lock();
            let send = under_way.get_mut(&key);
            let send = send.filter(|send| send.index == request.index);
            let send = send.ok_or_else(gone)?;
            send.used = Instant::now();
            Arc::clone(&send.snapshot)
        };
        let length = u64::from(request.length).min(PIECE_BYTES);
        self.throttle(length).await;
        let read = tokio::task::spawn_blocking(move || {
            snapshot.read(segment as usize, request.position, length as usize)
        });
        let data = read.await.map_err(|_| errors::gone())?;
        let data = data.map_err(|error| errors::from_storage(&error))?;
        Ok(pb::SnapshotResponse {
            data: data.into(),
            ..pb::SnapshotResponse::default()
        })
    }

    async fn begin(
        &self,
        key: (u64, NodeId),
        log: Arc<Log>,
        index: u64,
    ) -> Result<Arc<Snapshot>, ApiError> {
        {
            let mut under_way = self.under_way.lock();
            // One that is begun anew lets the old one go first.
            under_way.remove(&key);
            if under_way.len() >= SENDS_MAX {
                return Err(ApiError::new(
                    Reason::Overloaded,
                    "as many snapshots are being sent as this broker sends at a time",
                ));
            }
        }
        let replica = log.spec().replica;
        let taken = tokio::task::spawn_blocking(move || log.snapshot(index));
        let taken = taken.await.map_err(|_| errors::gone())?;
        let snapshot = taken
            .map_err(|error| errors::from_storage(&error))?
            .ok_or_else(gone)?;
        let snapshot = Arc::new(snapshot);
        let send = Send {
            index,
            snapshot: Arc::clone(&snapshot),
            replica,
            used: Instant::now(),
            told: Instant::now(),
        };
        self.under_way.lock().insert(key, send);
        Ok(snapshot)
    }

    /// Waits until so many bytes may leave.
    async fn throttle(&self, bytes: u64) {
        let at = {
            let mut next = self.next.lock();
            let now = Instant::now();
            // Time lost between two questions may be made up for.
            let at = (*next).max(now.checked_sub(SLACK_MAX).unwrap_or(now));
            *next = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            at
        };
        tokio::time::sleep_until(at.into()).await;
    }

    /// Whether the leader's shard should be told that this replica still pulls: now and then.
    pub(crate) fn is_to_be_told(&self, group: u64, to: NodeId) -> bool {
        let mut under_way = self.under_way.lock();
        let send = under_way.get_mut(&(group, to));
        let due = send.filter(|send| send.told.elapsed() > TOLD_EVERY);
        due.map(|send| send.told = Instant::now()).is_some()
    }

    /// Lets go what nobody pulls any more; returns whom the leaders may offer it again.
    pub(crate) fn sweep(&self) -> Vec<(ReplicaId, NodeId)> {
        let mut given_up = Vec::new();
        self.under_way.lock().retain(|(_, node), send| {
            let silent = send.used.elapsed() > SILENT_AFTER;
            if silent {
                given_up.push((send.replica, *node));
            }
            !silent
        });
        given_up
    }
}

/// A boundary further on than `index`, one that is made for it, if a snapshot up to there brings much more.
async fn further(log: &Arc<Log>, index: u64) -> Option<u64> {
    if log.bytes_from(index + 1) < FURTHER_FROM_BYTES {
        return None;
    }
    let committed = log.commit_index();
    log.close_active(committed)
        .inspect_err(|error| tracing::debug!(%error, "closing the active segment for a snapshot"))
        .ok()?;
    let until = Instant::now() + SEALED_WITHIN;
    loop {
        let boundary = log.boundary().map(|boundary| boundary.index);
        if boundary.is_some_and(|boundary| boundary >= committed) || Instant::now() > until {
            return boundary.filter(|boundary| *boundary > index);
        }
        tokio::time::sleep(SEALED_EVERY).await;
    }
}

fn gone() -> ApiError {
    ApiError::new(Reason::NotLeader, "the snapshot is not here any more")
}

fn place_to(place: &EntryPlace) -> pb::EntryPlace {
    pb::EntryPlace {
        index: place.index,
        term: place.term,
        chain: place.chain,
        next_offset: place.next_offset,
        time_ms: place.time_ms,
    }
}

fn place_from(place: &pb::EntryPlace) -> EntryPlace {
    EntryPlace {
        index: place.index,
        term: place.term,
        chain: place.chain,
        next_offset: place.next_offset,
        time_ms: place.time_ms,
    }
}

fn manifest_to(manifest: &SnapshotManifest) -> pb::SnapshotManifest {
    let segment = |segment: &SegmentManifest| pb::SnapshotSegment {
        first: Some(place_to(&segment.first)),
        last: Some(place_to(&segment.last)),
        frames_end: segment.frames_end,
        footer_length: segment.footer_len,
        footer_crc: segment.footer_crc,
    };
    pb::SnapshotManifest {
        topic_id: id_bytes(manifest.topic),
        partition: manifest.partition,
        log_start: manifest.log_start,
        membership_index: manifest.membership_index,
        membership: manifest.membership.clone(),
        segments: manifest.segments.iter().map(segment).collect(),
    }
}

/// What is in it is the log's to check.
fn manifest_from(manifest: &pb::SnapshotManifest) -> Option<SnapshotManifest> {
    let segment = |segment: &pb::SnapshotSegment| {
        Some(SegmentManifest {
            first: place_from(segment.first.as_ref()?),
            last: place_from(segment.last.as_ref()?),
            frames_end: segment.frames_end,
            footer_len: segment.footer_length,
            footer_crc: segment.footer_crc,
        })
    };
    Some(SnapshotManifest {
        topic: Uuid::from_slice(&manifest.topic_id).ok()?,
        partition: manifest.partition,
        log_start: manifest.log_start,
        membership_index: manifest.membership_index,
        membership: manifest.membership.clone(),
        segments: manifest
            .segments
            .iter()
            .map(segment)
            .collect::<Option<_>>()?,
    })
}
