//! The groups' topic: how it comes about, which group is where, and records to batches and back.

use std::collections::HashMap;
use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_record::{Batch, BatchBuilder, BatchOptions, Limits};
use timberline_storage::Log;
use tokio::sync::oneshot;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::ack::{Outcome, Ticket};
use crate::clock;
use crate::core::Core;
use crate::errors;
use crate::groups::core::Replay;
use crate::groups::limits::Settings;
use crate::groups::record::Record;
use crate::metadata::plan::{self, NewTopic};
use crate::partition::Partition;
use crate::shard::Work;

/// The internal topic of groups.
pub(crate) const TOPIC: &str = "__groups";
/// Its partitions, for ever: a group's place is a hash modulo their number.
pub(crate) const PARTITIONS: i32 = 16;
/// Bytes of records in one batch; a record of a large group may be larger.
pub(super) const BATCH_BYTES: usize = 256 << 10;
/// Most bytes of a batch, and so of a record.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Bytes read from the log at a time.
const READ_BYTES: usize = 1 << 20;
/// Small segments: what is behind an image goes with whole ones.
const SEGMENT_BYTES: &str = "16777216";

/// Id and number of partitions, if it is there.
pub(super) fn topic(core: &Core) -> Option<(Uuid, i32)> {
    let table = core.metadata.table();
    let topic = table.topic_named(TOPIC)?;
    Some((topic.id, topic.partitions.len() as i32))
}

/// The partition of a group.
pub(super) fn partition_of(group: &str, count: i32) -> i32 {
    (xxh3_64(group.as_bytes()) % count.max(1) as u64) as i32
}

/// Makes the topic, if it is not there.
///
/// # Errors
/// Those of a change of the metadata.
pub(super) async fn ensure(core: &Core) -> Result<(Uuid, i32), ApiError> {
    if topic(core).is_none() {
        let result = if core.metadata.is_controller() {
            create(core).await
        } else {
            let method = crate::cluster::node::CREATE_GROUPS;
            core.to_controller(method, bytes::Bytes::new())
                .await
                .map(drop)
        };
        if let Err(error) = result
            && error.reason != Some(Reason::TopicExists)
        {
            return Err(error);
        }
    }
    topic(core).ok_or_else(super::moving)
}

/// Makes the topic, at the controller.
///
/// # Errors
/// As [`ensure`]; `TOPIC_EXISTS`.
pub(crate) async fn create(core: &Core) -> Result<(), ApiError> {
    let live = core.leadership.live_brokers();
    let config = HashMap::from(
        [
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("segment.bytes", SEGMENT_BYTES),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let new = NewTopic {
        name: TOPIC,
        partitions: PARTITIONS,
        replication_factor: 0,
        config: &config,
        live: &live,
        id: Uuid::new_v4(),
        now_ms: clock::now_ms(),
    };
    let bounds = &core.metadata.bounds;
    let change = core
        .metadata
        .change("", |table| plan::create_topic(table, &new, bounds));
    let id = change.await?;
    core.all_led(id).await;
    Ok(())
}

/// Hands encoded records to the partition's shard; the answer comes when they are committed.
///
/// # Errors
/// `OVERLOADED`, and a batch that can't be built.
pub(super) fn append(
    core: &Core,
    partition: &Arc<Partition>,
    records: &[Vec<u8>],
) -> Result<oneshot::Receiver<Outcome>, ApiError> {
    let options = BatchOptions {
        limits: Limits {
            max_batch_bytes: BATCH_BYTES_MAX,
            ..Limits::default()
        },
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::with_options(options);
    let now_ms = clock::now_ms();
    for record in records {
        builder
            .append(now_ms, None, Some(record), &[])
            .map_err(|error| errors::from_record(&error))?;
    }
    let batch = builder
        .build(None)
        .map_err(|error| errors::from_record(&error))?;
    let bytes = batch.bytes().len() as u64;
    let permit = core.budget.take(partition, bytes)?;
    let (sender, outcome) = oneshot::channel();
    core.shards.submit(
        partition.replica,
        Work::Batch {
            batch,
            log_append_time: false,
            ticket: Ticket::for_call(sender, permit, bytes, records.len() as u64),
        },
    );
    Ok(outcome)
}

/// What was read.
pub(super) struct Replayed {
    pub(super) replay: Replay,
    /// Of records behind the last image, and of that image.
    pub(super) bytes: u64,
    pub(super) image_bytes: u64,
}

/// Reads all that is committed. Blocking.
///
/// # Errors
/// Why the log can't be read, for people.
pub(super) fn replay(
    log: &Arc<Log>,
    settings: Arc<Settings>,
    limits: &Limits,
) -> Result<Replayed, String> {
    let mut replay = Replay::new(settings);
    let (mut bytes, mut image_bytes) = (0, 0);
    let mut cursor = log.cursor(log.log_start());
    let end = log.high_watermark();
    while cursor.offset() < end {
        let at = cursor.offset();
        let why = |what: &dyn std::fmt::Display| format!("the groups' log at offset {at}: {what}");
        let batches = log
            .read_blocking(&mut cursor, READ_BYTES)
            .map_err(|error| why(&error))?;
        if batches.is_empty() {
            return Err(why(&"nothing where something is committed"));
        }
        for batch in batches {
            let batch = Batch::parse(batch).map_err(|error| why(&error))?;
            for record in batch.records(limits).map_err(|error| why(&error))? {
                let record = record.map_err(|error| why(&error))?;
                // The first batch may begin below the log start.
                if record.offset < log.log_start() {
                    continue;
                }
                let value = record.value.unwrap_or_default();
                let (record, in_image) = Record::decode(&value).map_err(|error| why(&error))?;
                // An image that is whole is what the log is measured by; the records before it count no more.
                if matches!(record, Record::ImageBegin) {
                    (bytes, image_bytes) = (0, 0);
                }
                match in_image {
                    true => image_bytes += value.len() as u64,
                    false => bytes += value.len() as u64,
                }
                replay
                    .apply(record, in_image)
                    .map_err(|error| why(&error))?;
            }
        }
    }
    Ok(Replayed {
        replay,
        bytes,
        image_bytes,
    })
}
