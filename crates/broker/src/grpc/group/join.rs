//! `Join`: one member's stream. A task reads it, hands what it says to the coordinator, and writes what the coordinator says.
//!
//! Whatever ends a membership is said in band; the stream itself ends OK.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    JoinGoAway, JoinHello, JoinRequest, JoinResponse, join_request, join_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::super::produce_stream::{check_version, inbound_error};
use super::convert;
use crate::core::Core;
use crate::groups::core::api::{Input, Message};
use crate::groups::serve::{Ask, Handle, LINK_QUEUE_MAX, Place, Reply, fresh_id, not_coordinator};
use crate::lifecycle::{Active, Phase};

/// Messages on their way to the transport.
const OUTBOUND_MAX: usize = 4;
/// How long the first message may take.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// How long a client may let a message lie before it is cut off.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// How long a new member waits for topics that it names and that this broker may be about to hear of.
const TOPICS_WAIT: Duration = Duration::from_millis(500);

type Outbound = mpsc::Sender<Result<JoinResponse, Status>>;

/// Serves a stream until either side ends it.
pub(super) fn serve(
    core: Arc<Core>,
    inbound: Streaming<JoinRequest>,
    address: String,
    active: Active,
) -> impl Stream<Item = Result<JoinResponse, Status>> + Send {
    let (outbound, responses) = mpsc::channel(OUTBOUND_MAX);
    tokio::spawn(async move {
        let _active = active;
        // Whoever hung up hears nothing of it.
        let _ = session(&core, inbound, address, &outbound).await;
    });
    ReceiverStream::new(responses)
}

/// The other side is gone.
struct HungUp;

async fn say(outbound: &Outbound, kind: join_response::Kind) -> Result<(), HungUp> {
    let response = JoinResponse { kind: Some(kind) };
    match tokio::time::timeout(WRITE_WAIT, outbound.send(Ok(response))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(HungUp),
    }
}

fn go_away(reason: &str) -> join_response::Kind {
    let reason = reason.to_owned();
    join_response::Kind::GoAway(JoinGoAway { reason })
}

async fn session(
    core: &Arc<Core>,
    mut inbound: Streaming<JoinRequest>,
    address: String,
    outbound: &Outbound,
) -> Result<(), HungUp> {
    let hello = match hello(&mut inbound).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return Ok(()),
        Err(error) => return say(outbound, convert::failure(&error)).await,
    };
    let (handle, link, told) = match enter(core, hello, address).await {
        Ok(entered) => entered,
        Err(error) => return say(outbound, convert::failure(&error)).await,
    };
    let ended = Session {
        core,
        handle: &handle,
        link,
        outbound,
    }
    .run(inbound, told)
    .await;
    // However it ended: the coordinator forgets the stream, and the member has the rest of its session.
    let input = Input::Broken { link };
    let reply = Reply::Nowhere;
    let _ = handle.send(Ask { input, reply }).await;
    ended
}

async fn hello(inbound: &mut Streaming<JoinRequest>) -> Result<Option<JoinHello>, ApiError> {
    let first = tokio::time::timeout(HELLO_WAIT, inbound.message()).await;
    let required = || {
        ApiError::new(
            Reason::HandshakeRequired,
            "the first message of a stream is a hello",
        )
    };
    match first {
        Ok(Ok(Some(request))) => match request.kind {
            Some(join_request::Kind::Hello(hello)) => Ok(Some(hello)),
            _ => Err(required()),
        },
        Ok(Ok(None)) => Ok(None),
        Ok(Err(status)) => Err(ApiError::from_status(&inbound_error(status))),
        Err(_) => Err(required()),
    }
}

/// Begins the membership at the coordinator, if that is here.
async fn enter(
    core: &Arc<Core>,
    hello: JoinHello,
    address: String,
) -> Result<(Handle, u64, mpsc::Receiver<Message>), ApiError> {
    check_version(&hello.hello.clone().unwrap_or_default())?;
    crate::groups::core::check_group_id(&hello.group_id).map_err(|why| convert::error(&why))?;
    let join = convert::join(hello, address)?;
    let handle = match core.groups.find(core, &join.group).await? {
        Place::Here(handle) => handle,
        Place::There(broker, address, term) => {
            return Err(not_coordinator(broker, &address, term));
        }
    };
    if join.returning.is_none() {
        let names = &join.subscription.topics;
        wait_for_topics(core, names).await;
    }
    let (stream, told) = mpsc::channel(LINK_QUEUE_MAX);
    let link = fresh_id();
    let input = Input::Join {
        link,
        join: Box::new(join),
    };
    let reply = Reply::Link(stream);
    handle.send(Ask { input, reply }).await?;
    Ok((handle, link, told))
}

async fn wait_for_topics(core: &Core, names: &[Arc<str>]) {
    let mut revisions = core.metadata.revisions();
    let known = revisions.wait_for(|_| {
        let table = core.metadata.table();
        names.iter().all(|name| table.topic_named(name).is_some())
    });
    let _ = tokio::time::timeout(TOPICS_WAIT, known).await;
}

struct Session<'a> {
    core: &'a Arc<Core>,
    handle: &'a Handle,
    link: u64,
    outbound: &'a Outbound,
}

impl Session<'_> {
    async fn run(
        &self,
        mut inbound: Streaming<JoinRequest>,
        mut told: mpsc::Receiver<Message>,
    ) -> Result<(), HungUp> {
        let draining = self.core.lifecycle.reached(Phase::Draining);
        tokio::pin!(draining);
        let mut open = true;
        loop {
            tokio::select! {
                message = told.recv() => match message {
                    Some(message) => {
                        let last = matches!(message, Message::End(_) | Message::Left);
                        let kind = convert::message(self.core, message, self.handle.term);
                        if let Some(kind) = kind {
                            say(self.outbound, kind).await?;
                        }
                        if last {
                            return Ok(());
                        }
                    }
                    // It stepped down, or this stream did not read for too long.
                    None => return say(self.outbound, go_away("the group's coordinator moves")).await,
                },
                request = inbound.message(), if open => match request {
                    Ok(Some(request)) => {
                        if let Err(error) = self.hear(request).await {
                            return say(self.outbound, self.parting(&error)).await;
                        }
                    }
                    // Half closed: it hears what comes until its session is over.
                    Ok(None) => open = false,
                    Err(_) => return Err(HungUp),
                },
                () = self.outbound.closed() => return Err(HungUp),
                () = &mut draining => {
                    return say(self.outbound, go_away("this broker is shutting down")).await;
                }
            }
        }
    }

    /// An error that ends the stream: of a coordinator that moves it is no failure of the member.
    fn parting(&self, error: &ApiError) -> join_response::Kind {
        match error.reason {
            Some(Reason::NoCoordinator) => go_away("the group's coordinator moves"),
            _ => convert::failure(error),
        }
    }

    async fn hear(&self, request: JoinRequest) -> Result<(), ApiError> {
        let link = self.link;
        let input = match request.kind {
            Some(join_request::Kind::Heartbeat(beat)) => Input::Heartbeat {
                link,
                applied: beat.applied_epoch,
                since_poll_ms: beat.since_poll_ms,
            },
            Some(join_request::Kind::Subscription(wanted)) => Input::Subscribe {
                link,
                subscription: convert::subscription(Some(wanted))?,
            },
            Some(join_request::Kind::Leave(leave)) => Input::Leave {
                link,
                will_return: leave.will_return,
            },
            Some(join_request::Kind::Hello(_)) | None => {
                return Err(ApiError::new(
                    Reason::HandshakeRequired,
                    "a hello is sent once, and then heartbeats",
                ));
            }
        };
        let reply = Reply::Nowhere;
        self.handle.send(Ask { input, reply }).await
    }
}
