//! From errors of the crates below to what a client is told.

use std::time::Duration;

use timberline_proto::error::{ApiError, Reason};

/// Space is freed by people or by retention: neither is faster.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(1);

/// A hand-over takes about two messages.
const RETRY_HANDING_OVER: Duration = Duration::from_millis(10);

/// What a client hears of a storage error.
pub(crate) fn from_storage(error: &timberline_storage::Error) -> ApiError {
    use timberline_storage::Error;
    match error {
        Error::StorageFull { .. } => {
            ApiError::new(Reason::StorageFull, error.to_string()).with_retry_after(RETRY_AFTER_FULL)
        }
        Error::Poisoned { .. } => ApiError::new(Reason::StoragePoisoned, error.to_string()),
        Error::OffsetOutOfRange {
            offset,
            log_start,
            high_watermark,
        } => ApiError::new(Reason::OffsetOutOfRange, error.to_string())
            .with("offset", offset)
            .with("log_start", log_start)
            .with("high_watermark", high_watermark),
        Error::Damaged { from, to, .. } => ApiError::new(Reason::DataDamaged, error.to_string())
            .with("damaged_from", from)
            .with("damaged_to", to),
        Error::TooLarge { .. } => ApiError::new(Reason::RecordTooLarge, error.to_string()),
        _ => {
            tracing::error!(%error, "storage");
            ApiError::new(Reason::Internal, error.to_string())
        }
    }
}

/// The answer while a leader hands over: the next one leads in a moment, and the client asks who that is.
pub(crate) fn handing_over() -> ApiError {
    ApiError::new(Reason::NoLeader, "the partition is being handed over")
        .with_retry_after(RETRY_HANDING_OVER)
}

/// What a client hears of a batch that fails its checks.
pub(crate) fn from_record(error: &timberline_record::Error) -> ApiError {
    let reason = if error.is_limit() {
        Reason::RecordTooLarge
    } else {
        Reason::CorruptBatch
    };
    ApiError::new(reason, error.to_string()).with_field("batch")
}

/// The answer while the broker stops.
pub(crate) fn draining() -> ApiError {
    ApiError::new(Reason::Draining, "this broker is shutting down")
        .with_retry_after(Duration::from_millis(500))
}

/// A blocking task or a thread that answers is gone: only while stopping.
pub(crate) fn gone() -> ApiError {
    draining()
}

/// `OFFSET_OUT_OF_RANGE` with the valid range.
pub(crate) fn out_of_range(offset: i64, log: &timberline_storage::Log) -> ApiError {
    from_storage(&timberline_storage::Error::OffsetOutOfRange {
        offset,
        log_start: log.log_start(),
        high_watermark: log.high_watermark(),
    })
}
