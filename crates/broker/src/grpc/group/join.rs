//! `Join`: one member's stream. What it says goes to the coordinator, and what that says comes back.
//!
//! Whatever ends a membership is said in band; the stream itself ends OK. The transport polls the stream when it can send: who
//! does not read is not read either, and its session runs out. No task and no buffer for each: there may be ten thousand.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    JoinGoAway, JoinHello, JoinRequest, JoinResponse, join_request, join_response,
};
use tonic::{Status, Streaming};

use super::super::produce_stream::{check_version, inbound_error};
use super::convert;
use crate::core::Core;
use crate::groups::core::api::{Input, Message};
use crate::groups::core::check_group_id;
use crate::groups::serve::{Ask, Handle, Place, Reply, Told, fresh_id, link, not_coordinator};
use crate::lifecycle::{Active, Phase};

/// How long the first message may take.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// How long a new member waits for topics that it names and that this broker may be about to hear of.
const TOPICS_WAIT: Duration = Duration::from_millis(500);

/// Serves a stream until either side ends it.
pub(super) fn serve(
    core: Arc<Core>,
    inbound: Streaming<JoinRequest>,
    address: String,
    active: Active,
) -> impl Stream<Item = Result<JoinResponse, Status>> + Send {
    let session = Session {
        draining: Box::pin(core.lifecycle.reached(Phase::Draining)),
        core,
        inbound,
        state: State::Hello(address),
        _active: active,
    };
    futures::stream::unfold(session, Session::next)
}

struct Session {
    core: Arc<Core>,
    inbound: Streaming<JoinRequest>,
    state: State,
    draining: BoxFuture<'static, ()>,
    _active: Active,
}

enum State {
    /// Nothing was heard yet; where the stream comes from.
    Hello(String),
    Member(Membership),
    Ended,
}

/// A stream that the coordinator knows.
struct Membership {
    handle: Handle,
    link: u64,
    told: Told,
    /// The client has not closed its side.
    open: bool,
}

impl Drop for Membership {
    /// However it ended: the coordinator forgets the stream, and the member has the rest of its session.
    fn drop(&mut self) {
        let link = self.link;
        self.handle.tell(Input::Broken { link });
    }
}

enum Step {
    Say(join_response::Kind),
    /// Nothing comes after it.
    Last(join_response::Kind),
    End,
}

fn go_away(reason: &str) -> join_response::Kind {
    let reason = reason.to_owned();
    join_response::Kind::GoAway(JoinGoAway { reason })
}

impl Session {
    /// The next message, and the session after it.
    async fn next(mut self) -> Option<(Result<JoinResponse, Status>, Session)> {
        loop {
            let step = match &mut self.state {
                State::Ended => return None,
                State::Hello(address) => {
                    let address = std::mem::take(address);
                    match begin(&self.core, &mut self.inbound, address).await {
                        Ok(Some(member)) => {
                            self.state = State::Member(member);
                            continue;
                        }
                        Ok(None) => Step::End,
                        Err(error) => Step::Last(convert::failure(&error)),
                    }
                }
                State::Member(member) => {
                    let draining = &mut self.draining;
                    member.step(&self.core, &mut self.inbound, draining).await
                }
            };
            let kind = match step {
                Step::Say(kind) => kind,
                Step::Last(kind) => {
                    self.state = State::Ended;
                    kind
                }
                Step::End => return None,
            };
            return Some((Ok(JoinResponse { kind: Some(kind) }), self));
        }
    }
}

/// Hears the hello, and begins the membership at the coordinator, if that is here.
async fn begin(
    core: &Arc<Core>,
    inbound: &mut Streaming<JoinRequest>,
    address: String,
) -> Result<Option<Membership>, ApiError> {
    let Some(hello) = hello(inbound).await? else {
        return Ok(None);
    };
    check_version(&hello.hello.clone().unwrap_or_default())?;
    check_group_id(&hello.group_id).map_err(|why| convert::error(&why))?;
    let join = convert::join(hello, address)?;
    let handle = match core.groups.find(core, &join.group).await? {
        Place::Here(handle) => handle,
        Place::There(broker, address, term) => {
            return Err(not_coordinator(broker, &address, term));
        }
    };
    if join.returning.is_none() {
        wait_for_topics(core, &join.subscription.topics).await;
    }
    let (teller, told) = link();
    let link = fresh_id();
    let input = Input::Join {
        link,
        join: Box::new(join),
    };
    let reply = Reply::Link(teller);
    handle.send(Ask { input, reply }).await?;
    Ok(Some(Membership {
        handle,
        link,
        told,
        open: true,
    }))
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

async fn wait_for_topics(core: &Core, names: &[Arc<str>]) {
    let mut revisions = core.metadata.revisions();
    let known = revisions.wait_for(|_| {
        let table = core.metadata.table();
        names.iter().all(|name| table.topic_named(name).is_some())
    });
    let _ = tokio::time::timeout(TOPICS_WAIT, known).await;
}

impl Membership {
    /// Until there is something to say.
    async fn step(
        &mut self,
        core: &Core,
        inbound: &mut Streaming<JoinRequest>,
        draining: &mut BoxFuture<'static, ()>,
    ) -> Step {
        loop {
            tokio::select! {
                message = self.told.next() => {
                    return match message {
                        Some(message) => self.say(core, message),
                        // It stepped down, or this stream did not read for too long.
                        None => Step::Last(go_away("the group's coordinator moves")),
                    };
                }
                request = inbound.message(), if self.open => match request {
                    Ok(Some(request)) => {
                        if let Err(error) = self.hear(request).await {
                            return Step::Last(parting(&error));
                        }
                    }
                    // Half closed: it hears what comes until its session is over.
                    Ok(None) => self.open = false,
                    Err(_) => return Step::End,
                },
                () = &mut *draining => {
                    return Step::Last(go_away("this broker is shutting down"));
                }
            }
        }
    }

    fn say(&self, core: &Core, message: Message) -> Step {
        let last = matches!(message, Message::End(_));
        match convert::message(core, message, self.handle.term) {
            Some(kind) if last => Step::Last(kind),
            Some(kind) => Step::Say(kind),
            None => Step::End,
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

/// An error that ends the stream: of a coordinator that moves it is no failure of the member.
fn parting(error: &ApiError) -> join_response::Kind {
    match error.reason {
        Some(Reason::NoCoordinator) => go_away("the group's coordinator moves"),
        _ => convert::failure(error),
    }
}
