//! One `Produce` stream: connects, shakes hands, and passes on what the broker says until it ends.

use std::sync::Arc;
use std::time::Duration;

use timberline_proto::v1::produce_request::Kind as Up;
use timberline_proto::v1::produce_response::Kind as Down;
use timberline_proto::v1::{ProduceHello, ProduceRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::client::Client;
use crate::connection::{Connection, hello};
use crate::error::{Error, Result};
use crate::producer::core::RouteId;

/// What a stream tells the driver. `generation` tells a stream from the one before it.
#[derive(Debug)]
pub(crate) struct StreamEvent {
    pub(crate) route: RouteId,
    pub(crate) generation: u64,
    pub(crate) news: News,
}

#[derive(Debug)]
pub(crate) enum News {
    /// Batches may be sent. The queue is unbounded as such: what is in it is unacknowledged, hence bounded by the
    /// windows of the partitions and by `buffer_bytes`.
    Ready(mpsc::UnboundedSender<ProduceRequest>, ProduceHello),
    /// The broker said this.
    Said(Down),
    /// It is over; nothing follows.
    Ended(Error),
}

/// Runs one stream to its end, beginning after `pause`.
pub(crate) async fn run(
    client: Client,
    address: Arc<str>,
    route: RouteId,
    generation: u64,
    pause: Duration,
    events: mpsc::Sender<StreamEvent>,
) {
    tokio::time::sleep(pause).await;
    let tell = |news| {
        let event = StreamEvent {
            route,
            generation,
            news,
        };
        // Without a driver nobody wants to know.
        async { events.send(event).await.is_ok() }
    };
    let ended = match talk(&client, &address, &tell).await {
        Ok(()) => Error::Transport {
            address: address.to_string(),
            message: "the broker ended the stream".to_owned(),
        },
        Err(error) => error,
    };
    tell(News::Ended(ended)).await;
}

async fn talk<F: Future<Output = bool>>(
    client: &Client,
    address: &str,
    tell: &impl Fn(News) -> F,
) -> Result<()> {
    let options = client.options();
    let failed = |status: tonic::Status| Error::from_status(address, &status);
    let connection = Connection::open(address, options).await?;
    let (requests, outgoing) = mpsc::unbounded_channel();
    let greeting = ProduceRequest {
        kind: Some(Up::Hello(hello(options))),
    };
    // The receiver is right here.
    let _ = requests.send(greeting);
    let mut service = connection.producer();
    let shake_hands = async {
        let outgoing = UnboundedReceiverStream::new(outgoing);
        let mut incoming = service
            .produce(outgoing)
            .await
            .map_err(failed)?
            .into_inner();
        match incoming
            .message()
            .await
            .map_err(failed)?
            .and_then(|message| message.kind)
        {
            Some(Down::Hello(answer)) => Ok((incoming, answer)),
            Some(Down::GoAway(reason)) => Err(Error::Transport {
                address: address.to_owned(),
                message: format!("the broker takes no producers: {}", reason.reason),
            }),
            _ => Err(Error::Protocol {
                message: "the first message of a produce stream was not a hello".to_owned(),
            }),
        }
    };
    let (mut incoming, answer) = tokio::time::timeout(options.request_timeout, shake_hands)
        .await
        .map_err(|_| Error::Timeout {
            what: "opening a produce stream".to_owned(),
            after: options.request_timeout,
        })??;
    if !tell(News::Ready(requests, answer)).await {
        return Ok(());
    }
    while let Some(message) = incoming.message().await.map_err(failed)? {
        let Some(said) = message.kind else { continue };
        if !tell(News::Said(said)).await {
            break;
        }
    }
    Ok(())
}
