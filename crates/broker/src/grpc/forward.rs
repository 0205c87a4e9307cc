//! Changes of the metadata are made where they are led: another broker hands its client's call on, as it came.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_proto::v1::admin_service_server::AdminService;
use timberline_proto::v1::producer_service_server::ProducerService;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Services;
use crate::core::Core;

/// How long a call waits for a controller; a client waits longer.
const CONTROLLER_WAIT: Duration = Duration::from_secs(5);

macro_rules! changes {
    ($($name:literal => $call:ident,)*) => {
        /// Whether the call changes the metadata, and so belongs to the controller.
        pub(super) fn is_change(api: &str) -> bool {
            matches!(api, $($name)|*)
        }

        /// Makes a change that another broker hands on.
        ///
        /// # Errors
        /// Those of the call.
        pub(crate) async fn perform(
            services: &Services,
            request: pb::ForwardRequest,
        ) -> Result<Bytes, ApiError> {
            match request.method.as_str() {
                $($name => {
                    let request = decode(request.payload)?;
                    encode(services.$call(Request::new(request)).await)
                })*
                other => match super::group::perform(services, other, request.payload).await {
                    Some(outcome) => outcome,
                    None => Err(ApiError::new(
                        Reason::NotSupported,
                        format!("`{other}` is nothing that brokers hand on"),
                    )),
                },
            }
        }
    };
}

changes! {
    "CreateTopic" => create_topic,
    "DeleteTopic" => delete_topic,
    "AddPartitions" => add_partitions,
    "AlterConfig" => alter_config,
    "InitProducer" => init_producer,
    "MovePartition" => move_partition,
    "Balance" => balance,
    "DrainBroker" => drain_broker,
    "UndrainBroker" => undrain_broker,
    "DecommissionBroker" => decommission_broker,
    "RemoveBroker" => remove_broker,
    "SetFeatureLevel" => set_feature_level,
    "CancelOperation" => cancel_operation,
}

pub(super) fn decode<Q: Message + Default>(payload: Bytes) -> Result<Q, ApiError> {
    Q::decode(payload).map_err(|error| ApiError::new(Reason::MalformedMessage, error.to_string()))
}

pub(super) fn encode<R: Message>(response: Result<Response<R>, Status>) -> Result<Bytes, ApiError> {
    match response {
        Ok(response) => Ok(response.into_inner().encode_to_vec().into()),
        Err(status) => Err(ApiError::from_status(&status)),
    }
}

/// Hands a call on, and waits until its effect shows here too. While nobody leads the metadata it waits a little.
///
/// # Errors
/// Those of the call; `NO_LEADER`. After `PEER_UNREACHABLE` and `TIMEOUT` the outcome is unknown.
pub(super) async fn to_controller<Q: Message, R: Message + Default>(
    core: &Arc<Core>,
    api: &str,
    request: &Q,
) -> Result<R, ApiError> {
    let deadline = Instant::now() + CONTROLLER_WAIT;
    let mut changes = core.cluster.changes();
    loop {
        let payload = request.encode_to_vec().into();
        let error = match core.to_controller(api, payload).await {
            Ok(payload) => return decode(payload),
            Err(error) => error,
        };
        // Only these say for certain that nothing was done.
        let again = matches!(error.reason, Some(Reason::NotLeader | Reason::NoLeader));
        if !again || core.metadata.is_controller() {
            return Err(error);
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        if Instant::now() >= deadline {
            return Err(error);
        }
    }
}
