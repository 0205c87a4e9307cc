//! Operations: work that outlasts the call that began it. Open ones, and the last that ended.

use timberline_proto::internal as pb;
use uuid::Uuid;

use super::topic::optional_id;
use super::{Rejected, id_bytes, topic_id};

/// Operations that may be open at a time.
pub(crate) const OPERATIONS_OPEN_MAX: usize = 100;
/// Ended operations that are remembered; the one that began first is forgotten first.
pub(crate) const OPERATIONS_ENDED_MAX: usize = 100;
/// Longest message of an ended operation, in bytes.
const MESSAGE_LEN_MAX: usize = 500;

pub(crate) use pb::{OperationKind, OperationResult};

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) id: Uuid,
    pub(crate) kind: OperationKind,
    /// The broker it is about, if it is about one.
    pub(crate) broker: Option<i32>,
    /// The partition it is about, if it is about one.
    pub(crate) partition: Option<(Uuid, i32)>,
    pub(crate) started_at_ms: i64,
    /// Units of work when it began: leaderships to hand over, replicas or moves.
    pub(crate) total: u64,
    pub(crate) ended: Option<Ended>,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) result: OperationResult,
    pub(crate) at_ms: i64,
    /// One sentence for a person; may be empty.
    pub(crate) message: String,
}

/// All of them, in the order in which they began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operations {
    list: Vec<Operation>,
}

impl Operations {
    /// In the order in which they began.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Operation> {
        self.list.iter()
    }

    /// Those that have not ended.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Operation> {
        self.iter().filter(|operation| operation.ended.is_none())
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<&Operation> {
        self.iter().find(|operation| operation.id == id)
    }

    /// Whether the operation may begin; `closing` are open ones that end first.
    pub(super) fn check(&self, operation: &Operation, closing: usize) -> Result<(), Rejected> {
        if self.get(operation.id).is_some() {
            return Err(Rejected::OperationExists);
        }
        if self.open().count().saturating_sub(closing) >= OPERATIONS_OPEN_MAX {
            return Err(Rejected::TooManyOperations);
        }
        Ok(())
    }

    /// Adds one that was checked, or that comes from an image.
    pub(super) fn push(&mut self, operation: Operation) {
        self.list.push(operation);
        self.forget();
    }

    /// Ends the open operations that `which` picks.
    pub(super) fn end(&mut self, which: impl Fn(&Operation) -> bool, ended: &Ended) -> usize {
        let mut count = 0;
        for operation in &mut self.list {
            if operation.ended.is_none() && which(operation) {
                operation.ended = Some(ended.clone());
                count += 1;
            }
        }
        self.forget();
        count
    }

    /// Forgets ended ones above the bound.
    fn forget(&mut self) {
        let closed = self.list.iter().filter(|one| one.ended.is_some()).count();
        let mut excess = closed.saturating_sub(OPERATIONS_ENDED_MAX);
        self.list.retain(|operation| {
            let forget = excess > 0 && operation.ended.is_some();
            excess -= usize::from(forget);
            !forget
        });
    }
}

impl Ended {
    /// An end without anything to say about it.
    pub(super) fn plainly(result: OperationResult, at_ms: i64) -> Ended {
        Ended {
            result,
            at_ms,
            message: String::new(),
        }
    }

    /// An end out of a command.
    pub(super) fn new(result: OperationResult, at_ms: i64, message: &str) -> Ended {
        Ended {
            result,
            at_ms,
            message: message
                .char_indices()
                .take_while(|(at, c)| at + c.len_utf8() <= MESSAGE_LEN_MAX)
                .map(|(_, c)| c)
                .collect(),
        }
    }
}

/// An operation out of a command or an image.
pub(super) fn operation_from(operation: &pb::Operation) -> Result<Operation, Rejected> {
    let kind = OperationKind::try_from(operation.kind).map_err(|_| Rejected::UnknownKind)?;
    let result = OperationResult::try_from(operation.result).map_err(|_| Rejected::UnknownKind)?;
    let ended = match result {
        OperationResult::Unspecified => None,
        result => Some(Ended::new(
            result,
            operation.ended_at_ms,
            &operation.message,
        )),
    };
    let topic = optional_id(&operation.topic_id)?;
    Ok(Operation {
        id: topic_id(&operation.operation_id).ok_or(Rejected::Malformed("operation id"))?,
        kind,
        broker: operation.broker_id,
        partition: topic.zip(operation.partition),
        started_at_ms: operation.started_at_ms,
        total: operation.total,
        ended,
    })
}

/// An operation for a command or an image.
pub(crate) fn operation_to(operation: &Operation) -> pb::Operation {
    let ended = operation.ended.as_ref();
    pb::Operation {
        operation_id: id_bytes(operation.id),
        kind: operation.kind.into(),
        broker_id: operation.broker,
        topic_id: operation
            .partition
            .map(|(topic, _)| id_bytes(topic))
            .unwrap_or_default(),
        partition: operation.partition.map(|(_, partition)| partition),
        started_at_ms: operation.started_at_ms,
        total: operation.total,
        result: ended
            .map_or(OperationResult::Unspecified, |ended| ended.result)
            .into(),
        ended_at_ms: ended.map_or(0, |ended| ended.at_ms),
        message: ended.map(|ended| ended.message.clone()).unwrap_or_default(),
    }
}
