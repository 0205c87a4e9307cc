//! One HTTP/2 connection to one broker.
//!
//! Made from hyper directly: tonic's channel can't raise the frame size and hides the end of a connection behind
//! reconnects of its own, and here that end is news. It closes with its last holder.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use timberline_proto::error::{ApiError, Reason};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tonic::body::Body;

use super::limits::{
    BULK_KEEPALIVE, BULK_KEEPALIVE_TIMEOUT, BULK_SEND_BYTES, CONNECT_TIMEOUT,
    CONNECTION_WINDOW_BYTES, FRAME_BYTES, HEADER_BYTES_MAX, PROMPT_KEEPALIVE,
    PROMPT_KEEPALIVE_TIMEOUT, PROMPT_SEND_BYTES, STREAM_WINDOW_BYTES,
};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Prompt,
    /// Bulk, and calls.
    Bulk,
}

/// Why a broker could not be talked to.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// Nobody listens there: its process is gone.
    pub(super) refused: bool,
    pub(super) error: ApiError,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure {
            refused: false,
            error,
        }
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    requests: http2::SendRequest<Body>,
    origin: http::Uri,
    _driver: Arc<Driver>,
}

/// Ends the connection when nobody holds it, whatever state its streams are in.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The error of a broker that can't be reached.
pub(super) fn unreachable(address: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        Reason::PeerUnreachable,
        format!("cannot reach the broker at {address}: {why}"),
    )
    .with("address", address)
}

impl Connection {
    /// Connects to HOST:PORT; a name is resolved anew each time.
    pub(super) async fn open(address: &str, purpose: Use) -> Result<Connection, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::from(unreachable(address, why));
        let origin: http::Uri = format!("http://{address}")
            .parse()
            .map_err(|error| failed(&format!("not HOST:PORT: {error}")))?;
        let connect = async {
            let socket = TcpStream::connect(address).await.map_err(|error| Failure {
                refused: error.kind() == io::ErrorKind::ConnectionRefused,
                ..failed(&error)
            })?;
            socket.set_nodelay(true).map_err(|error| failed(&error))?;
            let (send_bytes, interval, timeout) = match purpose {
                Use::Prompt => (
                    PROMPT_SEND_BYTES,
                    PROMPT_KEEPALIVE,
                    PROMPT_KEEPALIVE_TIMEOUT,
                ),
                Use::Bulk => (BULK_SEND_BYTES, BULK_KEEPALIVE, BULK_KEEPALIVE_TIMEOUT),
            };
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_frame_size(FRAME_BYTES)
                .max_header_list_size(HEADER_BYTES_MAX)
                .max_send_buf_size(send_bytes)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout)
                .handshake(TokioIo::new(socket))
                .await
                .map_err(|error| failed(&error))
        };
        let (requests, driver) = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| failed(&format!("no connection within {CONNECT_TIMEOUT:?}")))??;
        let task = tokio::spawn(async move {
            if let Err(error) = driver.await {
                // Its streams hear of it.
                tracing::debug!(%error, "peer connection ended");
            }
        });
        Ok(Connection {
            requests,
            origin,
            _driver: Arc::new(Driver(task.abort_handle())),
        })
    }

    pub(super) fn origin(&self) -> http::Uri {
        self.origin.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future =
        Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send + 'static>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
