//! One `Fetch` stream: connects, shakes hands, and passes on what the broker says until it ends.

use std::sync::Arc;
use std::time::Duration;

use timberline_proto::v1;
use timberline_proto::v1::fetch_request::Kind as Up;
use timberline_proto::v1::fetch_response::Kind as Down;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::client::Client;
use crate::connection::{Connection, hello};
use crate::error::{Error, Result};
use crate::options::{ConsumerOptions, Isolation};

/// Where a stream goes to, for its news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamId {
    pub(crate) route: usize,
    /// Tells a stream from the one before it to the same broker.
    pub(crate) generation: u64,
}

#[derive(Debug)]
pub(crate) enum News {
    /// Partitions may be assigned. The queue is unbounded as such; in it are assignments, at most a few per partition,
    /// and grants, at most one per quarter of the prefetched bytes.
    Ready(mpsc::UnboundedSender<v1::FetchRequest>),
    Said(Down),
    /// It is over; nothing follows.
    Ended(Error),
}

/// Runs one stream to its end, beginning after `pause`.
pub(crate) async fn run(
    client: Client,
    options: Arc<ConsumerOptions>,
    address: Arc<str>,
    id: StreamId,
    pause: Duration,
    events: mpsc::Sender<(StreamId, News)>,
) {
    tokio::time::sleep(pause).await;
    let ended = match talk(&client, &options, &address, id, &events).await {
        Ok(()) => Error::Transport {
            address: address.to_string(),
            message: "the broker ended the stream".to_owned(),
        },
        Err(error) => error,
    };
    // Without a driver nobody wants to know.
    let _ = events.send((id, News::Ended(ended))).await;
}

async fn talk(
    client: &Client,
    options: &ConsumerOptions,
    address: &str,
    id: StreamId,
    events: &mpsc::Sender<(StreamId, News)>,
) -> Result<()> {
    let failed = |status: tonic::Status| Error::from_status(address, &status);
    let patience = client.options().request_timeout;
    let connection = Connection::open(address, client.options()).await?;
    let (requests, outgoing) = mpsc::unbounded_channel();
    let isolation = match options.isolation {
        Isolation::ReadUncommitted => v1::Isolation::ReadUncommitted,
        Isolation::ReadCommitted => v1::Isolation::ReadCommitted,
    };
    let greeting = v1::FetchRequest {
        kind: Some(Up::Hello(v1::FetchHello {
            hello: Some(hello(client.options())),
            isolation: isolation.into(),
            max_response_bytes: options.max_response_bytes as i64,
        })),
    };
    // The receiver is right here.
    let _ = requests.send(greeting);
    let mut service = connection.consumer();
    let shake_hands = async {
        let outgoing = UnboundedReceiverStream::new(outgoing);
        let mut incoming = service.fetch(outgoing).await.map_err(failed)?.into_inner();
        match incoming
            .message()
            .await
            .map_err(failed)?
            .and_then(|message| message.kind)
        {
            Some(Down::Hello(_)) => Ok(incoming),
            Some(Down::GoAway(reason)) => Err(Error::Transport {
                address: address.to_owned(),
                message: format!("the broker takes no consumers: {}", reason.reason),
            }),
            _ => Err(Error::Protocol {
                message: "the first message of a fetch stream was not a hello".to_owned(),
            }),
        }
    };
    let shaken = tokio::time::timeout(patience, shake_hands).await;
    let mut incoming = shaken.map_err(|_| Error::Timeout {
        what: "opening a fetch stream".to_owned(),
        after: patience,
    })??;
    if events.send((id, News::Ready(requests))).await.is_err() {
        return Ok(());
    }
    while let Some(message) = incoming.message().await.map_err(failed)? {
        let Some(said) = message.kind else { continue };
        if events.send((id, News::Said(said))).await.is_err() {
            break;
        }
    }
    Ok(())
}
