//! `ConsumerService`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::consumer_service_server::ConsumerService;
use timberline_proto::v1::{
    FetchOnceRequest, FetchOnceResponse, FetchRequest, FetchResponse, ListOffsetsItem,
    ListOffsetsRequest, ListOffsetsResponse, ListOffsetsResult, list_offsets_item::At,
};
use tonic::{Request, Response, Status, Streaming};

use super::fetch_stream::FetchStream;
use super::{Services, blocking, fetch_once};
use crate::auth::{Operation, Resource};
use crate::core::Core;
use crate::errors;
use crate::metadata::table::id_bytes;

/// Items of one `ListOffsets`.
const LIST_ITEMS_MAX: usize = 100_000;
/// Items of one `ListOffsets` that ask by time: each may read a segment, and all of them hold one thread.
const LIST_TIMES_MAX: usize = 1000;

#[tonic::async_trait]
impl ConsumerService for Services {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<FetchResponse, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let active = self.enter(Operation::Read, Resource::Cluster)?;
        let stream = FetchStream::new(self.core.clone(), request.into_inner(), active);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn fetch_once(
        &self,
        request: Request<FetchOnceRequest>,
    ) -> Result<Response<FetchOnceResponse>, Status> {
        self.call(
            "FetchOnce",
            Operation::Read,
            request,
            async |core, request| fetch_once::fetch_once(core, request).await,
        )
        .await
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        self.call(
            "ListOffsets",
            Operation::Describe,
            request,
            async |core, request| {
                if request.items.len() > LIST_ITEMS_MAX {
                    return Err(ApiError::invalid(
                        "items",
                        format!("a call carries at most {LIST_ITEMS_MAX} items"),
                    ));
                }
                let by_time = |item: &&ListOffsetsItem| matches!(item.at, Some(At::TimestampMs(_)));
                if request.items.iter().filter(by_time).count() > LIST_TIMES_MAX {
                    return Err(ApiError::invalid(
                        "items",
                        format!("a call carries at most {LIST_TIMES_MAX} items by time"),
                    ));
                }
                let core = Arc::clone(core);
                // Looking a time up reads segments.
                let results = blocking(move || {
                    let answer = |item| list_one(&core, item);
                    request.items.into_iter().map(answer).collect()
                })
                .await?;
                Ok(ListOffsetsResponse { results })
            },
        )
        .await
    }
}

fn list_one(core: &Core, item: ListOffsetsItem) -> ListOffsetsResult {
    let number = item.partition;
    look_up(core, item).unwrap_or_else(|error| ListOffsetsResult {
        partition: number,
        error: Some(error.to_item()),
        ..ListOffsetsResult::default()
    })
}

fn look_up(core: &Core, item: ListOffsetsItem) -> Result<ListOffsetsResult, ApiError> {
    let topic = core.topic(Operation::Describe, item.topic.as_ref())?;
    let partition = core.readable(&topic, item.partition)?;
    let log = &partition.log;
    // A leader that has committed nothing yet may not know of all that was acknowledged before it.
    if !matches!(item.at, Some(At::Earliest(true)))
        && partition.lead().here
        && !partition.lead().settled
    {
        return Err(ApiError::new(
            Reason::OffsetNotAvailable,
            "the partition's new leader does not know its end yet",
        )
        .with_retry_after(std::time::Duration::from_millis(10)));
    }
    let (offset, timestamp_ms) = match item.at {
        Some(At::Earliest(true)) => (log.log_start(), None),
        Some(At::Latest(true)) => (log.high_watermark(), None),
        Some(At::TimestampMs(time)) => log
            .offset_for_time(time)
            .map_err(|error| errors::from_storage(&error))?
            .map_or_else(
                || (log.high_watermark(), None),
                |(offset, found)| (offset, Some(found)),
            ),
        _ => {
            return Err(ApiError::new(
                Reason::InvalidArgument,
                "set one of earliest, latest and timestamp_ms",
            )
            .with_field("at"));
        }
    };
    Ok(ListOffsetsResult {
        topic_id: id_bytes(topic.id),
        partition: item.partition,
        offset,
        timestamp_ms,
        leader_epoch: partition.leader_epoch(),
        error: None,
    })
}
