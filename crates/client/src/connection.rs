//! One HTTP/2 connection to one broker, and the generated clients on it.
//!
//! Made from hyper directly and not through tonic's channel: that one can't raise the frame size and hides
//! whether a connection is alive behind reconnects of its own. Here a connection that broke stays broken, and who
//! holds it opens another.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use timberline_proto::v1;
use timberline_proto::v1::admin_service_client::AdminServiceClient;
use timberline_proto::v1::consumer_service_client::ConsumerServiceClient;
use timberline_proto::v1::group_service_client::GroupServiceClient;
use timberline_proto::v1::metadata_service_client::MetadataServiceClient;
use timberline_proto::v1::producer_service_client::ProducerServiceClient;
use tokio::net::TcpStream;
use tonic::body::Body;

use crate::error::{Error, Result};
use crate::options::ClientOptions;

/// Largest HTTP/2 frame accepted: a fetched chunk should not come in 16 KiB pieces.
const FRAME_BYTES: u32 = 1 << 20;
/// Bytes of one stream's outgoing messages that wait for the socket.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// A connection with streams that was silent for so long is asked whether it lives.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long it may take to answer: a broker that is stopped keeps its connections and says nothing.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The protocol version spoken.
pub(crate) const PROTOCOL_VERSION: i32 = 1;

/// A connection; clones share it. It closes when the last clone and the last stream are gone.
#[derive(Clone)]
pub(crate) struct Connection {
    requests: http2::SendRequest<Body>,
    address: Arc<str>,
    origin: http::Uri,
    max_message_bytes: usize,
}

impl Connection {
    /// Connects to HOST:PORT.
    pub(crate) async fn open(address: &str, options: &ClientOptions) -> Result<Connection> {
        let failed = |message: String| Error::Transport {
            address: address.to_owned(),
            message,
        };
        let origin: http::Uri = format!("http://{address}")
            .parse()
            .map_err(|error| failed(format!("the address is not HOST:PORT: {error}")))?;
        let connect = async {
            let socket = TcpStream::connect(address)
                .await
                .map_err(|e| failed(e.to_string()))?;
            socket
                .set_nodelay(true)
                .map_err(|e| failed(e.to_string()))?;
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_frame_size(FRAME_BYTES)
                .max_send_buf_size(SEND_BUFFER_BYTES)
                .initial_stream_window_size(options.stream_window_bytes)
                .initial_connection_window_size(options.connection_window_bytes)
                .keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
            builder
                .handshake(TokioIo::new(socket))
                .await
                .map_err(|e| failed(e.to_string()))
        };
        let (requests, connection) = tokio::time::timeout(options.connect_timeout, connect)
            .await
            .map_err(|_| {
                failed(format!(
                    "no connection within {:?}",
                    options.connect_timeout
                ))
            })??;
        // Ends by itself with the last sender and stream; errors reach the streams.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(Connection {
            requests,
            address: address.into(),
            origin,
            max_message_bytes: options.max_message_bytes,
        })
    }

    /// HOST:PORT.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether both are clones of one.
    pub(crate) fn is_same(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.address, &other.address)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub(crate) fn producer(&self) -> ProducerServiceClient<Connection> {
        ProducerServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(usize::MAX)
    }

    pub(crate) fn consumer(&self) -> ConsumerServiceClient<Connection> {
        ConsumerServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }

    pub(crate) fn group(&self) -> GroupServiceClient<Connection> {
        GroupServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(usize::MAX)
    }

    pub(crate) fn metadata(&self) -> MetadataServiceClient<Connection> {
        MetadataServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Connection> {
        AdminServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }
}

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

/// What this client says of itself at the start of every stream.
pub(crate) fn hello(options: &ClientOptions) -> v1::Hello {
    v1::Hello {
        software: format!(
            "{} ({}/{})",
            options.client_id,
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION")
        ),
        protocol_version: PROTOCOL_VERSION,
        rack: options.rack.clone().unwrap_or_default(),
    }
}
