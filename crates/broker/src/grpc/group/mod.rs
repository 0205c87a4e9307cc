//! `GroupService`: calls go to the group's coordinator, here or handed on to the broker that it is on.
//!
//! - here: which way a call goes. `calls`: what each does at the coordinator. `lag`: end offsets, ages, and where a reset leads.
//!   `join`: members' streams. `convert`: between the API's types and the core's.

mod calls;
mod convert;
mod join;
mod lag;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::join_all;
use prost::Message;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_proto::v1::group_service_server::GroupService;
use timberline_proto::v1::{
    CommitRequest, CommitResponse, DeleteGroupRequest, DeleteGroupResponse, DeleteOffsetsRequest,
    DeleteOffsetsResponse, DescribeGroupRequest, DescribeGroupResponse, FetchOffsetsRequest,
    FetchOffsetsResponse, FindCoordinatorRequest, FindCoordinatorResponse, JoinRequest,
    JoinResponse, ListGroupsRequest, ListGroupsResponse, ResetOffsetsRequest, ResetOffsetsResponse,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use super::forward::{decode, encode};
use crate::auth::{Operation, Resource};
use crate::cluster::node;
use crate::core::Core;
use crate::groups::core::check_group_id;
use crate::groups::serve::{Handle, Place, not_coordinator};

/// How long a call waits for a coordinator; a client waits longer.
const COORDINATOR_WAIT: Duration = Duration::from_secs(5);
/// Between two looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the coordinator may take for a call that was handed on.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

impl Services {
    /// Does a call at its group's coordinator.
    async fn coordinated<Q, R>(
        &self,
        api: &'static str,
        operation: Operation,
        request: Request<Q>,
        group: fn(&Q) -> &str,
        work: impl AsyncFn(&Arc<Core>, &Handle, &Q) -> Result<R, ApiError>,
    ) -> Result<Response<R>, Status>
    where
        Q: Message,
        R: Message + Default,
    {
        let for_peer = self.for_peer;
        self.call(api, operation, request, async |core, request| {
            check_group_id(group(&request)).map_err(|error| convert::error(&error))?;
            let deadline = Instant::now() + COORDINATOR_WAIT;
            loop {
                let error = match core.groups.find(core, group(&request)).await {
                    Ok(Place::Here(handle)) => match work(core, &handle, &request).await {
                        Ok(response) => return Ok(response),
                        Err(error) => error,
                    },
                    Ok(Place::There(broker, address, term)) if for_peer => {
                        return Err(not_coordinator(broker, &address, term));
                    }
                    Ok(Place::There(broker, ..)) => {
                        match hand_on(core, broker, api, request.encode_to_vec()).await {
                            Ok(payload) => return decode(payload),
                            Err(error) => error,
                        }
                    }
                    Err(error) => error,
                };
                // Only these say for certain that nothing was done.
                let again = matches!(
                    error.reason,
                    Some(Reason::NotCoordinator | Reason::NoCoordinator)
                );
                if !again || for_peer || Instant::now() >= deadline {
                    return Err(error);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
        .await
    }
}

async fn hand_on(
    core: &Arc<Core>,
    broker: i32,
    api: &str,
    payload: Vec<u8>,
) -> Result<Bytes, ApiError> {
    let peers = core.cluster.peers();
    let peers = peers
        .ok_or_else(|| ApiError::new(Reason::NoCoordinator, "there are no other brokers here"))?;
    let request = pb::ForwardRequest {
        method: api.to_owned(),
        payload: payload.into(),
    };
    node::forwarded_within(peers, broker, request, ANSWER_WAIT).await
}

/// Does a call that another broker hands on; `None` if it is no call about groups.
pub(super) async fn perform(
    services: &Services,
    method: &str,
    payload: Bytes,
) -> Option<Result<Bytes, ApiError>> {
    macro_rules! calls {
        ($($name:literal => $call:ident,)*) => {
            match method {
                $($name => match decode(payload) {
                    Ok(request) => encode(services.$call(Request::new(request)).await),
                    Err(error) => Err(error),
                },)*
                _ => return None,
            }
        };
    }
    Some(calls! {
        "Commit" => commit,
        "FetchOffsets" => fetch_offsets,
        "ResetOffsets" => reset_offsets,
        "ListGroups" => list_groups,
        "DescribeGroup" => describe_group,
        "DeleteGroup" => delete_group,
        "DeleteOffsets" => delete_offsets,
    })
}

#[tonic::async_trait]
impl GroupService for Services {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<JoinResponse, Status>> + Send>>;

    async fn find_coordinator(
        &self,
        request: Request<FindCoordinatorRequest>,
    ) -> Result<Response<FindCoordinatorResponse>, Status> {
        self.call(
            "FindCoordinator",
            Operation::Describe,
            request,
            async |core, request| {
                check_group_id(&request.group_id).map_err(|error| convert::error(&error))?;
                let (broker_id, address, term) =
                    match core.groups.find(core, &request.group_id).await? {
                        Place::Here(handle) => {
                            let address = core.grpc_address.clone();
                            (core.cluster.me(), address, handle.term)
                        }
                        Place::There(broker, address, term) => (broker, address, term),
                    };
                Ok(FindCoordinatorResponse {
                    broker_id,
                    address,
                    coordinator_epoch: term as i64,
                })
            },
        )
        .await
    }

    async fn join(
        &self,
        request: Request<Streaming<JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let active = self.enter(Operation::Read, Resource::Cluster)?;
        let address = request.remote_addr();
        let address = address.map_or_else(String::new, |address| address.to_string());
        let stream = join::serve(
            Arc::clone(&self.core),
            request.into_inner(),
            address,
            active,
        );
        Ok(Response::new(Box::pin(stream)))
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let group: fn(&CommitRequest) -> &str = |request| &request.group_id;
        self.coordinated("Commit", Operation::Read, request, group, calls::commit)
            .await
    }

    async fn fetch_offsets(
        &self,
        request: Request<FetchOffsetsRequest>,
    ) -> Result<Response<FetchOffsetsResponse>, Status> {
        let group: fn(&FetchOffsetsRequest) -> &str = |request| &request.group_id;
        self.coordinated(
            "FetchOffsets",
            Operation::Describe,
            request,
            group,
            calls::fetch_offsets,
        )
        .await
    }

    async fn reset_offsets(
        &self,
        request: Request<ResetOffsetsRequest>,
    ) -> Result<Response<ResetOffsetsResponse>, Status> {
        let group: fn(&ResetOffsetsRequest) -> &str = |request| &request.group_id;
        self.coordinated(
            "ResetOffsets",
            Operation::Alter,
            request,
            group,
            calls::reset_offsets,
        )
        .await
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let for_peer = self.for_peer;
        self.call(
            "ListGroups",
            Operation::Describe,
            request,
            async |core, request| {
                let mut response = calls::list_here(core, &request).await?;
                if for_peer {
                    return Ok(response);
                }
                let others = core.leadership.live_brokers();
                let others = others.into_iter().filter(|id| *id != core.cluster.me());
                let payload = request.encode_to_vec();
                let asked = others.map(|id| hand_on(core, id, "ListGroups", payload.clone()));
                for answer in join_all(asked).await {
                    let answer = answer.and_then(decode::<ListGroupsResponse>);
                    match answer {
                        Ok(more) => response.groups.extend(more.groups),
                        Err(error) => response.errors.push(error.to_item()),
                    }
                }
                response.groups.sort_by(|a, b| a.group_id.cmp(&b.group_id));
                // A group that moved meanwhile was told of twice.
                response.groups.dedup_by(|a, b| a.group_id == b.group_id);
                Ok(response)
            },
        )
        .await
    }

    async fn describe_group(
        &self,
        request: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        let group: fn(&DescribeGroupRequest) -> &str = |request| &request.group_id;
        self.coordinated(
            "DescribeGroup",
            Operation::Describe,
            request,
            group,
            calls::describe_group,
        )
        .await
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let group: fn(&DeleteGroupRequest) -> &str = |request| &request.group_id;
        self.coordinated(
            "DeleteGroup",
            Operation::Delete,
            request,
            group,
            calls::delete_group,
        )
        .await
    }

    async fn delete_offsets(
        &self,
        request: Request<DeleteOffsetsRequest>,
    ) -> Result<Response<DeleteOffsetsResponse>, Status> {
        let group: fn(&DeleteOffsetsRequest) -> &str = |request| &request.group_id;
        self.coordinated(
            "DeleteOffsets",
            Operation::Delete,
            request,
            group,
            calls::delete_offsets,
        )
        .await
    }
}
