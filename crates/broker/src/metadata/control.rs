//! What the controller should do now: repairs, moves of open operations, operations that have come to their end, and
//! leaderships to hand over. Pure: a table and soft state in, actions out.
//!
//! An action is planned anew against the table it is proposed on, because one before it may have changed that; it is idle
//! then, and the next round finds what is left. Nothing is remembered between rounds.

use std::collections::{BTreeSet, HashMap, HashSet};

use timberline_proto::internal::metadata_command::Command;
use uuid::Uuid;

use super::growth::{self, Growth};
use super::leaders::{self, LeaderMove};
use super::moves::{self, Move, View, Why};
use super::plan;
use super::table::{OperationKind, Table};

/// Soft state, as the controller knows it.
pub(crate) struct Soft<'a> {
    pub(crate) view: View<'a>,
    pub(crate) leaders: &'a HashMap<(Uuid, i32), i32>,
    /// Brokers whose replica of a partition is in sync.
    pub(crate) in_sync: &'a dyn Fn(Uuid, i32) -> Vec<i32>,
    /// Brokers whose vote counts in the metadata group.
    pub(crate) voters: &'a BTreeSet<i32>,
}

/// Something to propose.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Turn a change of replicas back that can't end.
    TurnBack { topic: Uuid, partition: i32 },
    /// Replace a replica, as part of an operation if it belongs to one.
    Replace {
        planned: Move,
        operation: Option<Uuid>,
    },
    /// Give a partition of an internal topic further replicas.
    Grow(Growth),
    /// A group has left its joint configuration with these voters, by replica id: its leader says so, no round does.
    Finish {
        topic: Uuid,
        partition: i32,
        voters: Vec<u64>,
        revision: u64,
    },
    /// Give a partition another preferred leader; its replicas, by id.
    Prefer {
        topic: Uuid,
        partition: i32,
        order: Vec<u64>,
    },
    /// End an operation that has nothing left to do.
    Settle(Command),
}

impl Action {
    /// The command for this table; `None` when there is nothing to do any more.
    pub(crate) fn plan(&self, table: &Table, now_ms: i64) -> Option<Command> {
        match self {
            Action::TurnBack { topic, partition } => {
                plan::turn_back(table, *topic, *partition, now_ms)
            }
            Action::Replace { planned, operation } => plan::replace(table, planned, *operation),
            Action::Grow(growth) => plan::grow(table, growth),
            Action::Finish {
                topic,
                partition,
                voters,
                revision,
            } => plan::finish_reassign(table, *topic, *partition, voters, *revision, now_ms),
            Action::Prefer {
                topic,
                partition,
                order,
            } => plan::prefer(table, *topic, *partition, order),
            Action::Settle(command) => Some(command.clone()),
        }
    }
}

/// What is to be proposed now, in this order. Bounded by what may be in flight, by the operations that may be open, and,
/// for preferred leaders, by the partitions of the cluster.
pub(crate) fn actions(table: &Table, soft: &Soft<'_>, now_ms: i64) -> Vec<Action> {
    let stuck = moves::stuck(table, soft.view).into_iter();
    let mut actions: Vec<Action> = stuck
        .map(|(topic, partition)| Action::TurnBack { topic, partition })
        .collect();
    let balance = open_balance(table);
    let mut plan = moves::healing(table, soft.view);
    if balance.is_some() {
        let taken: HashSet<(Uuid, i32)> =
            plan.iter().map(|one| (one.topic, one.partition)).collect();
        let level = moves::balance(table, soft.view.live);
        let free = level
            .into_iter()
            .filter(|one| !taken.contains(&(one.topic, one.partition)));
        plan.extend(free);
    }
    let idle = plan.is_empty();
    let admitted = moves::admit(table, &plan).into_iter();
    actions.extend(admitted.map(|planned| Action::Replace {
        planned,
        operation: operation_of(table, &planned, balance),
    }));
    if idle {
        let growth = growth::growth(table, soft.view.live).into_iter();
        actions.extend(growth.map(Action::Grow));
    }
    if idle && balance.is_some() {
        let orders = leaders::level_preferred(table).into_iter();
        actions.extend(orders.map(|(topic, partition, replicas)| Action::Prefer {
            topic,
            partition,
            order: replicas.iter().map(|replica| replica.id).collect(),
        }));
    }
    let ends = plan::settle(table, soft.leaders, soft.view.live, soft.voters, now_ms);
    actions.extend(ends.into_iter().map(Action::Settle));
    actions
}

/// Leaderships to hand over now.
pub(crate) fn transfers(table: &Table, soft: &Soft<'_>) -> Vec<LeaderMove> {
    leaders::leader_moves(table, soft.leaders, soft.in_sync, soft.view.live)
}

fn open_balance(table: &Table) -> Option<Uuid> {
    let mut open = table.operations().open();
    open.find(|one| one.kind == OperationKind::Balance)
        .map(|one| one.id)
}

/// The open operation that a move is part of.
fn operation_of(table: &Table, planned: &Move, balance: Option<Uuid>) -> Option<Uuid> {
    match planned.why {
        Why::Balance => balance,
        Why::Decommission => {
            let mut open = table.operations().open();
            open.find(|one| one.broker == Some(planned.from))
                .map(|one| one.id)
        }
        Why::Lost | Why::Gone | Why::Spread => None,
    }
}
