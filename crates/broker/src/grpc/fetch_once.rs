//! `FetchOnce`: a long poll that answers with plain records.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use timberline_proto::error::ApiError;
use timberline_proto::v1::{FetchOnceRequest, FetchOnceResponse, Record};
use timberline_record::{Batch, Limits};
use timberline_storage::{Cursor, Log};
use tokio::time::{Instant, timeout_at};

use super::{blocking, convert};
use crate::auth::Operation;
use crate::core::Core;
use crate::errors;
use crate::lifecycle::Phase;
use crate::partition::{Partition, Signal};

const RECORDS_DEFAULT: usize = 1000;
const RECORDS_MAX: usize = 1_000_000;
const BYTES_DEFAULT: usize = 1 << 20;
/// A caller that did not raise its own limit receives 4 MiB; the rest is for framing.
const BYTES_MAX_UNASKED: usize = 3 << 20;
const BYTES_MAX: usize = 64 << 20;
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes read from the log at a time.
const READ_BYTES: usize = 1 << 20;

struct Wanted {
    offset: i64,
    records: usize,
    bytes: usize,
    deadline: Instant,
}

fn wanted(request: &FetchOnceRequest) -> Result<Wanted, ApiError> {
    let non_negative = |field: &str, value: i64| {
        usize::try_from(value).map_err(|_| ApiError::invalid(field, format!("{field} is negative")))
    };
    let records = match non_negative("max_records", request.max_records.into())? {
        0 => RECORDS_DEFAULT,
        records => records.min(RECORDS_MAX),
    };
    let bytes = match non_negative("max_bytes", request.max_bytes)? {
        0 => BYTES_DEFAULT,
        bytes if bytes <= BYTES_MAX_UNASKED => bytes,
        bytes => bytes.min(BYTES_MAX),
    };
    let wait = non_negative("max_wait_ms", request.max_wait_ms)?;
    non_negative("offset", request.offset)?;
    Ok(Wanted {
        offset: request.offset,
        records,
        bytes,
        deadline: Instant::now() + Duration::from_millis(wait as u64).min(WAIT_MAX),
    })
}

pub(super) async fn fetch_once(
    core: &Arc<Core>,
    request: FetchOnceRequest,
) -> Result<FetchOnceResponse, ApiError> {
    let wanted = wanted(&request)?;
    let topic = core.topic(Operation::Read, request.topic.as_ref())?;
    let partition = core.readable(&topic, request.partition)?;
    wait_for_records(core, &partition, &wanted).await?;
    let log = Arc::clone(&partition.log);
    let limits = core.read_limits();
    // Reading may touch the disk and decompress: both are for threads that may block.
    let (records, next_offset) = blocking(move || collect(&log, &wanted, &limits)).await??;
    core.metrics.sent(
        records.len() as u64,
        records
            .iter()
            .map(|record| record.encoded_len() as u64)
            .sum(),
    );
    Ok(FetchOnceResponse {
        records,
        next_offset,
        high_watermark: partition.log.high_watermark(),
        log_start_offset: partition.log.log_start(),
    })
}

/// Waits until there is something at the offset, or the deadline has passed.
async fn wait_for_records(
    core: &Core,
    partition: &Partition,
    wanted: &Wanted,
) -> Result<(), ApiError> {
    let draining = core.lifecycle.reached(Phase::Draining);
    tokio::pin!(draining);
    loop {
        core.check_readable(partition)?;
        // A signal for each turn: a registration is used once.
        let signal = Signal::new();
        partition.waiters().register(&signal, 0);
        let log = &partition.log;
        let (high_watermark, end) = (log.high_watermark(), log.end_offset());
        let lead = partition.lead();
        let known = lead.settled || !lead.here;
        let beyond = known && wanted.offset > end.max(high_watermark);
        if wanted.offset < log.log_start() || beyond {
            return Err(errors::out_of_range(wanted.offset, log));
        }
        if wanted.offset < high_watermark {
            return Ok(());
        }
        tokio::select! {
            waited = timeout_at(wanted.deadline, signal.wait()) => if waited.is_err() { return Ok(()) },
            () = &mut draining => return Err(errors::draining()),
        }
    }
}

/// Records from the offset on, within the bounds; the first comes whatever its size.
fn collect(
    log: &Arc<Log>,
    wanted: &Wanted,
    limits: &Limits,
) -> Result<(Vec<Record>, i64), ApiError> {
    let mut cursor = log.cursor(wanted.offset);
    let mut page = Page {
        records: Vec::new(),
        bytes: 0,
        next_offset: wanted.offset,
    };
    if wanted.offset >= log.high_watermark() {
        return Ok((page.records, page.next_offset));
    }
    loop {
        let batches = match read(log, &mut cursor) {
            Ok(batches) => batches,
            // What was found before the damage is good; the next call meets it.
            Err(_) if !page.records.is_empty() => return Ok((page.records, page.next_offset)),
            Err(error) => return Err(errors::from_storage(&error)),
        };
        if batches.is_empty() {
            return Ok((page.records, page.next_offset));
        }
        for batch in batches {
            if page.take(batch, wanted, limits)? {
                return Ok((page.records, page.next_offset));
            }
        }
    }
}

fn read(log: &Arc<Log>, cursor: &mut Cursor) -> Result<Vec<Bytes>, timberline_storage::Error> {
    log.read_blocking(cursor, READ_BYTES)
}

struct Page {
    records: Vec<Record>,
    bytes: usize,
    next_offset: i64,
}

impl Page {
    /// Takes a batch's records; true when the page is full.
    fn take(&mut self, batch: Bytes, wanted: &Wanted, limits: &Limits) -> Result<bool, ApiError> {
        let batch = Batch::parse(batch).map_err(|error| errors::from_record(&error))?;
        if batch.header().is_control() {
            self.next_offset = batch.header().next_offset();
            return Ok(false);
        }
        let records = batch
            .records(limits)
            .map_err(|error| errors::from_record(&error))?;
        for record in records {
            let record = record.map_err(|error| errors::from_record(&error))?;
            if record.offset < wanted.offset {
                continue;
            }
            let next_offset = record.offset + 1;
            let record = convert::plain_record(record);
            let bytes = record.encoded_len();
            if !self.records.is_empty() && self.bytes + bytes > wanted.bytes {
                return Ok(true);
            }
            self.bytes += bytes;
            self.records.push(record);
            self.next_offset = next_offset;
            if self.records.len() >= wanted.records {
                return Ok(true);
            }
        }
        self.next_offset = self.next_offset.max(batch.header().next_offset());
        Ok(false)
    }
}
