//! The gRPC services. Each call: count it, the one door, do it, answer with a reason.

mod admin;
mod consumer;
mod convert;
mod fetch_once;
mod fetch_stream;
mod forward;
mod group;
mod health;
mod metadata;
mod produce_once;
mod produce_stream;
mod producer;
mod server;

use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use timberline_proto::error::ApiError;
use tonic::{Code, Response, Status};

use crate::auth::{Operation, Principal, Resource, authorize};
use crate::core::Core;
use crate::errors;
use crate::lifecycle::{Active, Phase};

pub(crate) use forward::perform as perform_forwarded;
pub(crate) use health::Health;
pub(crate) use server::serve;

/// The protocol version that this broker speaks.
pub(crate) const PROTOCOL_VERSION: i32 = 1;

/// One implementation of all services.
#[derive(Clone)]
pub(crate) struct Services {
    core: Arc<Core>,
    /// Another broker calls for its client: a change is made here or refused, not handed on.
    for_peer: bool,
}

impl Services {
    pub(crate) fn new(core: Arc<Core>) -> Services {
        Services {
            core,
            for_peer: false,
        }
    }

    /// For calls that another broker hands on.
    pub(crate) fn of_peer(core: Arc<Core>) -> Services {
        Services {
            core,
            for_peer: true,
        }
    }

    /// Opens the door for one operation.
    fn enter(&self, operation: Operation, resource: Resource<'_>) -> Result<Active, ApiError> {
        if self.core.lifecycle.phase() >= Phase::Draining {
            return Err(errors::draining());
        }
        authorize(Principal::Anonymous, operation, resource)?;
        Ok(self.core.lifecycle.active())
    }

    fn belongs_to_controller(&self, api: &str) -> bool {
        !self.for_peer && forward::is_change(api) && !self.core.metadata.is_controller()
    }

    /// A unary call from door to answer, counted under the name `api`.
    async fn call<Q: Message, R: Message + Default>(
        &self,
        api: &'static str,
        operation: Operation,
        request: tonic::Request<Q>,
        work: impl AsyncFnOnce(&Arc<Core>, Q) -> Result<R, ApiError>,
    ) -> Result<Response<R>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        let metrics = &self.core.metrics;
        metrics.request_bytes.inc_by(request.encoded_len() as u64);
        let result = match self.enter(operation, Resource::Cluster) {
            Ok(_active) if self.belongs_to_controller(api) => {
                forward::to_controller(&self.core, api, &request).await
            }
            Ok(_active) => work(&self.core, request).await,
            Err(error) => Err(error),
        };
        let code = result
            .as_ref()
            .map_or_else(|error| error.code, |_| Code::Ok);
        metrics.answered(api, code, started.elapsed());
        match result {
            Ok(response) => {
                metrics.response_bytes.inc_by(response.encoded_len() as u64);
                Ok(Response::new(response))
            }
            Err(error) => {
                tracing::debug!(api, %error, "refused");
                Err(error.to_status())
            }
        }
    }
}

/// Runs blocking work off the network threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| errors::gone())
}
