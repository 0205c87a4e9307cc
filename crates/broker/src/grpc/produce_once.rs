//! `ProduceOnce`: plain records in one call, grouped into batches here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    ProduceOnceRequest, ProduceOnceResponse, ProduceOnceResult, ProduceRecord,
};
use timberline_record::{Batch, BatchBuilder, BatchOptions, ProducerStamp};
use tokio::sync::oneshot;

use super::convert;
use super::produce_stream::too_large;
use crate::ack::{Outcome, Ticket};
use crate::auth::Operation;
use crate::clock;
use crate::core::Core;
use crate::errors;
use crate::partition::{Partition, TopicHandle};
use crate::shard::Work;
use crate::topic::config::TopicConfig;

/// Records in one call.
const RECORDS_MAX: usize = 100_000;

/// Where records without key and partition go next.
static ROUND_ROBIN: AtomicU32 = AtomicU32::new(0);

/// A batch on its way, with the places of its records in the request.
struct Sent {
    partition: i32,
    records: Vec<usize>,
    outcome: oneshot::Receiver<Outcome>,
}

pub(super) async fn produce_once(
    core: &Arc<Core>,
    request: ProduceOnceRequest,
) -> Result<ProduceOnceResponse, ApiError> {
    if request.records.is_empty() || request.records.len() > RECORDS_MAX {
        return Err(ApiError::invalid(
            "records",
            format!("a call carries 1 to {RECORDS_MAX} records"),
        ));
    }
    let topic = core.topic(Operation::Write, request.topic.as_ref())?;
    let stamp = stamp(&request)?;
    let mut results = vec![ProduceOnceResult::default(); request.records.len()];
    let mut by_partition: BTreeMap<i32, Vec<(usize, ProduceRecord)>> = BTreeMap::new();
    for (at, record) in request.records.into_iter().enumerate() {
        let number = request.partition.unwrap_or_else(|| choose(&topic, &record));
        results[at].partition = number;
        by_partition.entry(number).or_default().push((at, record));
    }
    // Before anything is written: a call that is refused as a whole may be repeated as a whole.
    let led = by_partition
        .into_iter()
        .map(|(number, records)| (core.led(&topic, number), records));
    let led: Vec<_> = led.collect();
    if let Some((Err(error), _)) = led.first()
        && led.iter().all(|(partition, _)| partition.is_err())
    {
        return Err(error.clone());
    }
    let mut sent = Vec::new();
    for (partition, records) in led {
        match partition {
            Ok(partition) => send(
                core,
                &topic,
                &partition,
                records,
                stamp,
                &mut sent,
                &mut results,
            ),
            Err(error) => {
                for (at, _) in records {
                    results[at].error = Some(error.to_item());
                }
            }
        }
    }
    for batch in sent {
        let outcome = batch
            .outcome
            .await
            .unwrap_or_else(|_| Err(Box::new(errors::gone())));
        for (delta, at) in batch.records.into_iter().enumerate() {
            results[at].partition = batch.partition;
            match &outcome {
                Ok(acked) => results[at].offset = acked.base_offset + delta as i64,
                Err(error) => results[at].error = Some(error.to_item()),
            }
        }
    }
    Ok(ProduceOnceResponse { results })
}

fn stamp(request: &ProduceOnceRequest) -> Result<Option<ProducerStamp>, ApiError> {
    match (
        request.producer_id,
        request.producer_epoch,
        request.base_sequence,
    ) {
        (None, None, None) => Ok(None),
        (Some(id), Some(epoch), Some(base_sequence)) if request.partition.is_some() => {
            let epoch = i16::try_from(epoch)
                .ok()
                .filter(|epoch| *epoch >= 0)
                .ok_or_else(|| ApiError::invalid("producer_epoch", "an epoch is 0 to 32767"))?;
            if id < 0 || base_sequence < 0 {
                return Err(ApiError::invalid(
                    "base_sequence",
                    "producer id and sequence count from 0",
                ));
            }
            Ok(Some(ProducerStamp {
                id,
                epoch,
                base_sequence,
            }))
        }
        _ => Err(ApiError::invalid(
            "base_sequence",
            "producer_id, producer_epoch and base_sequence go together, and need a partition",
        )),
    }
}

/// As Kafka's default partitioner: murmur2 of the key; without a key, in turn.
fn choose(topic: &TopicHandle, record: &ProduceRecord) -> i32 {
    let count = topic.partition_count().max(1) as u32;
    let number = match &record.key {
        Some(key) => (murmur2(key) & 0x7fff_ffff) % count,
        None => ROUND_ROBIN.fetch_add(1, Ordering::Relaxed) % count,
    };
    number as i32
}

/// MurmurHash2, 32 bits, with the seed that Kafka's clients use: the same key goes to the same partition from everywhere.
fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ key.len() as u32;
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    for (at, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Builds batches within the topic's limit and hands them to the shard. Records that do not fit get their error here.
fn send(
    core: &Arc<Core>,
    topic: &TopicHandle,
    partition: &Arc<Partition>,
    records: Vec<(usize, ProduceRecord)>,
    stamp: Option<ProducerStamp>,
    sent: &mut Vec<Sent>,
    results: &mut [ProduceOnceResult],
) {
    let config = topic.config.load();
    let options = BatchOptions {
        limits: core.batch_limits(&config),
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::with_options(options);
    let mut places = Vec::new();
    let now_ms = clock::now_ms();
    for (at, record) in records {
        let headers = convert::headers(record.headers);
        let timestamp = record.timestamp_ms.unwrap_or(now_ms);
        let key = record.key.as_deref();
        let value = record.value.as_deref();
        let mut appended = builder.append(timestamp, key, value, &headers);
        // A sequence names one batch: it can't be split.
        if appended.is_err() && !builder.is_empty() && stamp.is_none() {
            let full = std::mem::replace(&mut builder, BatchBuilder::with_options(options));
            dispatch(
                core,
                &config,
                partition,
                full,
                stamp,
                std::mem::take(&mut places),
                sent,
                results,
            );
            appended = builder.append(timestamp, key, value, &headers);
        }
        match appended {
            Ok(()) => places.push(at),
            Err(error) if stamp.is_some() => {
                // All or nothing: the next sequence must not depend on which records were taken.
                places.push(at);
                return fail(&places, &limit_error(&error, &config), results);
            }
            Err(error) => fail(&[at], &limit_error(&error, &config), results),
        }
    }
    if !builder.is_empty() {
        dispatch(
            core, &config, partition, builder, stamp, places, sent, results,
        );
    }
}

fn limit_error(error: &timberline_record::Error, config: &TopicConfig) -> ApiError {
    match error {
        timberline_record::Error::BatchTooLarge { size, .. } => {
            too_large(*size, config.max_message_bytes)
        }
        error if error.is_limit() => errors::from_record(error),
        error => ApiError::invalid("records", error.to_string()),
    }
}

fn fail(places: &[usize], error: &ApiError, results: &mut [ProduceOnceResult]) {
    for &at in places {
        results[at].error = Some(error.to_item());
    }
}

#[allow(
    clippy::too_many_arguments,
    reason = "one step of `send`, cut out for length"
)]
fn dispatch(
    core: &Arc<Core>,
    config: &TopicConfig,
    partition: &Arc<Partition>,
    builder: BatchBuilder,
    stamp: Option<ProducerStamp>,
    places: Vec<usize>,
    sent: &mut Vec<Sent>,
    results: &mut [ProduceOnceResult],
) {
    let built = builder
        .build(stamp)
        .map_err(|error| ApiError::new(Reason::Internal, error.to_string()));
    let submitted = built.and_then(|batch| submit(core, config, partition, batch, places.len()));
    match submitted {
        Ok(outcome) => sent.push(Sent {
            partition: partition.number,
            records: places,
            outcome,
        }),
        Err(error) => fail(&places, &error, results),
    }
}

fn submit(
    core: &Arc<Core>,
    config: &TopicConfig,
    partition: &Arc<Partition>,
    batch: Batch,
    records: usize,
) -> Result<oneshot::Receiver<Outcome>, ApiError> {
    let bytes = batch.bytes().len() as u64;
    let permit = core.budget.take(partition, bytes)?;
    let (sender, outcome) = oneshot::channel();
    core.shards.submit(
        partition.replica,
        Work::Batch {
            batch,
            log_append_time: config.log_append_time,
            ticket: Ticket::for_call(sender, permit, bytes, records as u64),
        },
    );
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    /// Values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn keys_hash_as_in_kafka() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
