//! Listeners: connections capped, peers that say nothing sent away.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::Error;
use crate::lifecycle::Lifecycle;

/// Bytes of HTTP/2's connection preface (RFC 9113, section 3.4); an HTTP/1.1 request is not shorter.
const FIRST_BYTES: usize = 24;
/// Pause after the system refused to accept, usually for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listening socket with its bounds.
pub(crate) struct Listener {
    socket: TcpListener,
    slots: Arc<Semaphore>,
    handshake_timeout: Duration,
    connections: IntGauge,
    lifecycle: Arc<Lifecycle>,
}

/// Binds an address.
///
/// # Errors
/// [`Error::Listen`], which names the configuration key.
pub(crate) async fn bind(
    address: SocketAddr,
    key: &'static str,
) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen {
        address,
        key,
        source,
    };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok((socket, bound))
}

impl Listener {
    pub(crate) fn new(
        socket: TcpListener,
        connections_max: usize,
        handshake_timeout: Duration,
        connections: IntGauge,
        lifecycle: Arc<Lifecycle>,
    ) -> Listener {
        Listener {
            socket,
            slots: Arc::new(Semaphore::new(connections_max)),
            handshake_timeout,
            connections,
            lifecycle,
        }
    }

    /// The next connection, once there is a slot for it. Errors of one connection are not the listener's.
    pub(crate) async fn next(&self) -> Connection {
        loop {
            // Never closed, so this never fails.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    // Answers are small and awaited.
                    let _ = stream.set_nodelay(true);
                    tracing::debug!(%peer, "connected");
                    return Connection::new(stream, peer, slot, self);
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let connection = self.next().await;
        let peer = connection.peer;
        (connection, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// A connection that holds its slot, must say something soon, and can be hung up.
pub(crate) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    /// Until the first bytes have come.
    deadline: Option<Pin<Box<Sleep>>>,
    first_bytes: usize,
    hang_up: Pin<Box<dyn Future<Output = ()> + Send>>,
    connections: IntGauge,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
        listener: &Listener,
    ) -> Connection {
        let lifecycle = Arc::clone(&listener.lifecycle);
        listener.connections.inc();
        Connection {
            stream,
            peer,
            deadline: Some(Box::pin(tokio::time::sleep(listener.handshake_timeout))),
            first_bytes: 0,
            hang_up: Box::pin(async move { lifecycle.hang_up.notified().await }),
            connections: listener.connections.clone(),
            _slot: slot,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.dec();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.hang_up.as_mut().poll(context).is_ready() {
            this.hang_up = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some(deadline) = &mut this.deadline {
            this.first_bytes += buffer.filled().len() - before;
            if this.first_bytes >= FIRST_BYTES {
                this.deadline = None;
            } else if result.is_pending() && deadline.as_mut().poll(context).is_ready() {
                tracing::debug!(peer = %this.peer, "no handshake in time");
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = SocketAddr;

    fn connect_info(&self) -> SocketAddr {
        self.peer
    }
}
