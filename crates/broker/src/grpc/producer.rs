//! `ProducerService`.

use std::pin::Pin;

use futures::Stream;
use timberline_proto::error::ApiError;
use timberline_proto::v1::producer_service_server::ProducerService;
use timberline_proto::v1::{
    InitProducerRequest, InitProducerResponse, ProduceOnceRequest, ProduceOnceResponse,
    ProduceRequest, ProduceResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::produce_stream::ProduceStream;
use super::{Services, produce_once};
use crate::auth::{Operation, Resource};

#[tonic::async_trait]
impl ProducerService for Services {
    async fn init_producer(
        &self,
        request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        self.call(
            "InitProducer",
            Operation::Write,
            request,
            async |core, request| {
                let (producer_id, producer_epoch) =
                    match (request.producer_id, request.producer_epoch) {
                        (None, None) => (core.metadata.next_producer_id().await?, 0),
                        (Some(id), Some(epoch)) => core.metadata.raise_epoch(id, epoch).await?,
                        _ => {
                            return Err(ApiError::invalid(
                                "producer_epoch",
                                "set both producer_id and producer_epoch, or neither",
                            ));
                        }
                    };
                Ok(InitProducerResponse {
                    producer_id,
                    producer_epoch,
                })
            },
        )
        .await
    }

    type ProduceStream = Pin<Box<dyn Stream<Item = Result<ProduceResponse, Status>> + Send>>;

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let active = self.enter(Operation::Write, Resource::Cluster)?;
        let stream = ProduceStream::new(self.core.clone(), request.into_inner(), active);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn produce_once(
        &self,
        request: Request<ProduceOnceRequest>,
    ) -> Result<Response<ProduceOnceResponse>, Status> {
        self.call(
            "ProduceOnce",
            Operation::Write,
            request,
            async |core, request| produce_once::produce_once(core, request).await,
        )
        .await
    }
}
