//! The gRPC listener: services, health, reflection, and HTTP/2's settings.

use std::sync::Arc;
use std::time::Duration;

use timberline_proto::v1::admin_service_server::AdminServiceServer;
use timberline_proto::v1::consumer_service_server::ConsumerServiceServer;
use timberline_proto::v1::group_service_server::GroupServiceServer;
use timberline_proto::v1::metadata_service_server::MetadataServiceServer;
use timberline_proto::v1::producer_service_server::ProducerServiceServer;
use tokio::task::JoinHandle;
use tonic::transport::Server;

use super::{Health, Services};
use crate::Error;
use crate::core::Core;
use crate::lifecycle::Phase;
use crate::listen::Listener;

/// HTTP/2 frames of the size that batches come in (RFC 9113 allows up to 16 MiB).
const FRAME_BYTES: u32 = 1 << 20;
/// Room beside a batch in its message.
const MESSAGE_OVERHEAD_BYTES: usize = 64 << 10;
/// Headers of one request.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// A silent peer is asked whether it is there, and hung up if it does not say.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves until the broker drains, then until the last stream has ended.
///
/// # Errors
/// [`Error::System`] if reflection can't be set up.
pub(crate) fn serve(
    core: &Arc<Core>,
    listener: Listener,
) -> Result<(Health, JoinHandle<Result<(), tonic::transport::Error>>), Error> {
    let limits = &core.config.limits;
    let services = Services::new(Arc::clone(core));
    let receive = limits.message_bytes_max.as_usize() + MESSAGE_OVERHEAD_BYTES;
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let reflection = |error: tonic_reflection::server::Error| Error::System {
        what: "gRPC reflection",
        why: error.to_string(),
    };
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(timberline_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(timberline_proto::ERROR_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .initial_stream_window_size(limits.stream_window.0 as u32)
        .initial_connection_window_size(limits.connection_window.0 as u32)
        .max_concurrent_streams(limits.connection_streams_max)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(
            ProducerServiceServer::new(services.clone()).max_decoding_message_size(receive),
        )
        .add_service(
            ConsumerServiceServer::new(services.clone()).max_decoding_message_size(receive),
        )
        .add_service(
            MetadataServiceServer::new(services.clone()).max_decoding_message_size(receive),
        )
        .add_service(GroupServiceServer::new(services.clone()).max_decoding_message_size(receive))
        .add_service(AdminServiceServer::new(services).max_decoding_message_size(receive))
        .add_service(health_service)
        .add_service(descriptors().build_v1().map_err(reflection)?)
        .add_service(descriptors().build_v1alpha().map_err(reflection)?);
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let connection = listener.next().await;
        Some((Ok::<_, std::io::Error>(connection), listener))
    });
    let draining = core.lifecycle.reached(Phase::Draining);
    let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, draining));
    Ok((Health(reporter), task))
}
