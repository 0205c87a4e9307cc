//! Where replicas and leaders are, and what brokers are for: the part of [`Admin`] for those who run a cluster.

use timberline_proto::v1;

use crate::admin::{Admin, request_id};
use crate::client::by_name;
use crate::error::{Error, Result};
use crate::operations::{CanStop, LeaderMove, Operation, Reassignment, ReplicaMove};
use crate::types::BrokerInfo;

/// Makes a call with a request that is cloned for each try.
macro_rules! call {
    ($admin:expr, $name:literal, $method:ident, $request:expr) => {{
        let request = $request;
        $admin
            .client
            .call($name, |connection| {
                let request = request.clone();
                async move { connection.admin().$method(request).await }
            })
            .await
    }};
}

fn operation(told: Option<v1::Operation>) -> Result<Operation> {
    told.map(Operation::from).ok_or_else(|| Error::Protocol {
        message: "an operation was begun and not named".to_owned(),
    })
}

impl Admin {
    /// Moves the replicas of a partition to these brokers, the preferred leader first; as many as there are. `None` when
    /// it was only checked.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, `INVALID_ARGUMENT`.
    pub async fn move_partition(
        &self,
        topic: &str,
        partition: i32,
        brokers: &[i32],
        validate_only: bool,
    ) -> Result<Option<Operation>> {
        let request = v1::MovePartitionRequest {
            request_id: request_id(),
            topic: Some(by_name(topic)),
            partition,
            brokers: brokers.to_vec(),
            validate_only,
        };
        let answer = call!(self, "MovePartition", move_partition, request)?;
        Ok(answer.operation.map(Operation::from))
    }

    /// Changes of replicas in flight, of one topic or of all.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn list_reassignments(&self, topic: Option<&str>) -> Result<Vec<Reassignment>> {
        let request = v1::ListReassignmentsRequest {
            topic: topic.map(by_name),
        };
        let answer = call!(self, "ListReassignments", list_reassignments, request)?;
        Ok(answer
            .reassignments
            .into_iter()
            .map(Reassignment::from)
            .collect())
    }

    /// Hands the leadership of a partition to another replica in sync; `None`: to the preferred one. Returns who leads.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, `INVALID_ARGUMENT`.
    pub async fn transfer_leader(
        &self,
        topic: &str,
        partition: i32,
        to: Option<i32>,
    ) -> Result<i32> {
        let request = v1::TransferLeaderRequest {
            request_id: request_id(),
            topic: Some(by_name(topic)),
            partition,
            broker_id: to,
        };
        Ok(call!(self, "TransferLeader", transfer_leader, request)?.leader_id)
    }

    /// Hands leaderships back to preferred leaders that are in sync, of one topic or of all. One outcome per move.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn elect_preferred(
        &self,
        topic: Option<&str>,
        validate_only: bool,
    ) -> Result<Vec<LeaderMove>> {
        let request = v1::ElectPreferredRequest {
            request_id: request_id(),
            topic: topic.map(by_name),
            validate_only,
        };
        let answer = call!(self, "ElectPreferred", elect_preferred, request)?;
        Ok(answer.moves.into_iter().map(LeaderMove::from).collect())
    }

    /// Levels replicas over brokers. No operation when it was only checked, or when everything is level.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn balance(
        &self,
        validate_only: bool,
    ) -> Result<(Option<Operation>, Vec<ReplicaMove>)> {
        let request = v1::BalanceRequest {
            request_id: request_id(),
            validate_only,
        };
        let answer = call!(self, "Balance", balance, request)?;
        let moves = answer.moves.into_iter().map(ReplicaMove::from).collect();
        Ok((answer.operation.map(Operation::from), moves))
    }

    /// A broker hands its leaderships over and gets nothing new; its replicas stay.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is no such broker.
    pub async fn drain_broker(&self, broker_id: i32) -> Result<Operation> {
        let request = v1::DrainBrokerRequest {
            request_id: request_id(),
            broker_id,
        };
        operation(call!(self, "DrainBroker", drain_broker, request)?.operation)
    }

    /// Makes a draining or decommissioning broker an active one again; what has moved stays where it is.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is no such broker.
    pub async fn undrain_broker(&self, broker_id: i32) -> Result<BrokerInfo> {
        let request = v1::UndrainBrokerRequest {
            request_id: request_id(),
            broker_id,
        };
        let answer = call!(self, "UndrainBroker", undrain_broker, request)?;
        Ok(answer.broker.unwrap_or_default().into())
    }

    /// Moves all replicas of a broker to others. `None` when it was only checked.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is no such broker, or the others can't take its replicas.
    pub async fn decommission_broker(
        &self,
        broker_id: i32,
        validate_only: bool,
    ) -> Result<Option<Operation>> {
        let request = v1::DecommissionBrokerRequest {
            request_id: request_id(),
            broker_id,
            validate_only,
        };
        let answer = call!(self, "DecommissionBroker", decommission_broker, request)?;
        Ok(answer.operation.map(Operation::from))
    }

    /// Takes a decommissioned broker without replicas out of the cluster.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is no such broker, or it still has replicas.
    pub async fn remove_broker(&self, broker_id: i32) -> Result<()> {
        let request = v1::RemoveBrokerRequest {
            request_id: request_id(),
            broker_id,
        };
        call!(self, "RemoveBroker", remove_broker, request)?;
        Ok(())
    }

    /// Whether every partition would have a majority in sync if this broker stopped now.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is no such broker.
    pub async fn can_stop(&self, broker_id: i32) -> Result<CanStop> {
        let request = v1::CanStopRequest { broker_id };
        Ok(call!(self, "CanStop", can_stop, request)?.into())
    }

    /// Raises the feature level, when every broker supports it; returns it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: a broker does not support it, or it would be lowered.
    pub async fn set_feature_level(&self, level: u32) -> Result<u32> {
        let request = v1::SetFeatureLevelRequest {
            request_id: request_id(),
            level,
        };
        Ok(call!(self, "SetFeatureLevel", set_feature_level, request)?.level)
    }

    /// How far an operation is.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is none of this id, or it ended long ago.
    pub async fn operation(&self, operation_id: &str) -> Result<Operation> {
        let request = v1::GetOperationRequest {
            operation_id: operation_id.to_owned(),
        };
        operation(call!(self, "GetOperation", get_operation, request)?.operation)
    }

    /// Operations in the order in which they began; also the last hundred that ended, if they are wanted.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn list_operations(&self, include_ended: bool) -> Result<Vec<Operation>> {
        let request = v1::ListOperationsRequest { include_ended };
        let answer = call!(self, "ListOperations", list_operations, request)?;
        Ok(answer.operations.into_iter().map(Operation::from).collect())
    }

    /// Ends an operation; what it has done stays.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: there is none of this id, or it has ended.
    pub async fn cancel_operation(&self, operation_id: &str) -> Result<Operation> {
        let request = v1::CancelOperationRequest {
            request_id: request_id(),
            operation_id: operation_id.to_owned(),
        };
        operation(call!(self, "CancelOperation", cancel_operation, request)?.operation)
    }
}
