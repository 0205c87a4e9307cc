//! From a caller's wish and a table to a command, or to the reason why not. Pure: ids and times come in.

mod brokers;
mod operations;
mod partitions;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, metadata_command::Command};
use timberline_proto::v1::{ConfigChange, TopicRef, topic_ref};
use uuid::Uuid;

use super::placement::Placement;
use super::table::{Broker, Table, Topic, id_bytes, topic_id};
use crate::topic::{config, name};

pub(crate) use brokers::{
    Registration, begin_decommission, begin_drain, known_broker, raise_feature_level,
    register_broker, remove_broker, undrain,
};
pub(crate) use operations::{cancel, known_operation, remaining, settle};
pub(crate) use partitions::{
    MovePartition, begin_balance, finish_reassign, grow, move_partition, new_leader, prefer,
    replace, turn_back,
};

/// Longest request id, in bytes.
pub(crate) const REQUEST_ID_LEN_MAX: usize = 64;
/// Configuration changes in one call.
pub(crate) const CONFIG_CHANGES_MAX: usize = 256;
/// Producer ids reserved at a time; what a restart leaves of them is never handed out.
pub(crate) const PRODUCER_IDS_RESERVED: i64 = 1000;
/// Highest epoch that a batch can carry.
const PRODUCER_EPOCH_MAX: i32 = i16::MAX as i32;

/// The bounds that a plan keeps to.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) topic_partitions_max: usize,
    pub(crate) partitions_max: usize,
    pub(crate) defaults: config::Defaults,
}

/// A topic to be.
pub(crate) struct NewTopic<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    /// 0: the cluster's default, one replica for each broker up to three.
    pub(crate) replication_factor: i32,
    pub(crate) config: &'a HashMap<String, String>,
    /// Brokers that are connected.
    pub(crate) live: &'a BTreeSet<i32>,
    pub(crate) id: Uuid,
    pub(crate) now_ms: i64,
}

/// Checks a request id.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is too long.
pub(crate) fn check_request_id(id: &str) -> Result<(), ApiError> {
    if id.len() > REQUEST_ID_LEN_MAX {
        return Err(ApiError::invalid(
            "request_id",
            format!("a request id has at most {REQUEST_ID_LEN_MAX} bytes"),
        ));
    }
    Ok(())
}

/// The topic that a reference names.
///
/// # Errors
/// `UNKNOWN_TOPIC`; `INVALID_ARGUMENT` if it names none.
pub(crate) fn resolve<'a>(
    table: &'a Table,
    reference: Option<&TopicRef>,
) -> Result<&'a Arc<Topic>, ApiError> {
    match reference.and_then(|reference| reference.r#ref.as_ref()) {
        Some(topic_ref::Ref::Name(name)) => table
            .topic_named(name)
            .ok_or_else(|| unknown_topic_named(name)),
        Some(topic_ref::Ref::Id(bytes)) => {
            let id = topic_id(bytes)
                .ok_or_else(|| ApiError::invalid("topic.id", "a topic id has 16 bytes"))?;
            table.topic(id).ok_or_else(|| unknown_topic(id))
        }
        None => Err(ApiError::invalid("topic", "name a topic by name or by id")),
    }
}

/// The topics that the references name, each once, in the order of its first reference, and the references that name
/// none. No references: all topics.
///
/// # Errors
/// `INVALID_ARGUMENT` when they have more than `partitions_max` partitions together.
pub(crate) fn resolve_all<'a>(
    table: &'a Table,
    references: &[TopicRef],
    partitions_max: usize,
) -> Result<(Vec<&'a Arc<Topic>>, Vec<TopicRef>), ApiError> {
    let mut unknown = Vec::new();
    let topics: Vec<&Arc<Topic>> = if references.is_empty() {
        table.topics().collect()
    } else {
        let mut seen = HashSet::new();
        let mut named = Vec::new();
        for reference in references {
            match resolve(table, Some(reference)) {
                Ok(topic) if seen.insert(topic.id) => named.push(topic),
                Ok(_) => {}
                Err(_) => unknown.push(reference.clone()),
            }
        }
        named
    };
    let partitions: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    if partitions > partitions_max {
        return Err(ApiError::invalid(
            "topics",
            format!(
                "these topics have {partitions} partitions, an answer has at most {partitions_max}; name fewer topics"
            ),
        ));
    }
    Ok((topics, unknown))
}

/// `UNKNOWN_TOPIC` for an id.
pub(crate) fn unknown_topic(id: Uuid) -> ApiError {
    ApiError::new(Reason::UnknownTopic, format!("no topic with id {id}")).with("topic_id", id)
}

/// `UNKNOWN_TOPIC` for a name.
pub(crate) fn unknown_topic_named(name: &str) -> ApiError {
    let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    ApiError::new(Reason::UnknownTopic, format!("no topic named `{shown}`")).with("topic", shown)
}

fn check_partitions(
    wanted: i32,
    existing: usize,
    table: &Table,
    bounds: &Bounds,
) -> Result<(), ApiError> {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if wanted == 0 || wanted > bounds.topic_partitions_max {
        return Err(ApiError::invalid(
            "partitions",
            format!(
                "a topic has 1 to {} partitions",
                bounds.topic_partitions_max
            ),
        ));
    }
    if table.partition_count() + wanted - existing.min(wanted) > bounds.partitions_max {
        return Err(ApiError::invalid(
            "partitions",
            format!(
                "the cluster has {} partitions and at most {} (limits.partitions_max)",
                table.partition_count(),
                bounds.partitions_max
            ),
        ));
    }
    Ok(())
}

/// Places `count` new partitions from number `first` on active brokers: those that live, as long as they are enough. A
/// partition that is placed on others may have to wait for its first leader until they are back.
fn place(
    table: &Table,
    live: &BTreeSet<i32>,
    topic: Uuid,
    first: usize,
    count: usize,
    factor: usize,
) -> Vec<pb::Partition> {
    let there = |id: i32, broker: &Broker| broker.is_active() && live.contains(&id);
    let brokers = table.brokers().iter();
    let enough = brokers.filter(|(id, one)| there(**id, one)).count() >= factor;
    let mut placement = Placement::of(table, |id, broker| match enough {
        true => there(id, broker),
        false => broker.is_active(),
    });
    let mut next_replica = table.next_replica_id();
    (first..first + count)
        .map(|number| {
            let brokers = placement.place(topic, factor);
            let replicas = brokers.into_iter().zip(next_replica..);
            let replicas: Vec<pb::Replica> = replicas
                .map(|(broker_id, replica_id)| pb::Replica {
                    replica_id,
                    broker_id,
                    lost: false,
                })
                .collect();
            next_replica += replicas.len() as u64;
            pb::Partition {
                partition: number as i32,
                replicas,
                ..pb::Partition::default()
            }
        })
        .collect()
}

/// Brokers that may get new replicas.
pub(crate) fn active_brokers(table: &Table) -> usize {
    let brokers = table.brokers().values();
    brokers.filter(|broker| broker.is_active()).count()
}

/// `INVALID_REPLICATION_FACTOR`.
fn too_few_brokers(factor: i32, active: usize) -> ApiError {
    ApiError::new(
        Reason::InvalidReplicationFactor,
        format!("replication factor {factor} with {active} active broker(s)"),
    )
    .with("brokers", active)
    .with_field("replication_factor")
}

/// The command that creates a topic.
///
/// # Errors
/// `INVALID_TOPIC_NAME`, `TOPIC_EXISTS`, `INVALID_ARGUMENT`, `INVALID_REPLICATION_FACTOR`, `INVALID_CONFIG`.
pub(crate) fn create_topic(
    table: &Table,
    new: &NewTopic<'_>,
    bounds: &Bounds,
) -> Result<Command, ApiError> {
    name::check(new.name)?;
    if let Some(other) = table.colliding(new.name) {
        let how = if other.name == new.name {
            format!("topic `{}` exists", new.name)
        } else {
            format!(
                "topic `{}` exists, and `{}` differs from it only by '.' and '_'",
                other.name, new.name
            )
        };
        return Err(ApiError::new(Reason::TopicExists, how)
            .with("topic_id", other.id)
            .with_field("name"));
    }
    check_partitions(new.partitions, 0, table, bounds)?;
    let active = active_brokers(table);
    let factor = match usize::try_from(new.replication_factor) {
        Ok(0) if active > 0 => active.min(3),
        Ok(factor @ 1..) if factor <= active => factor,
        _ => return Err(too_few_brokers(new.replication_factor, active)),
    };
    if new.config.len() > CONFIG_CHANGES_MAX {
        return Err(ApiError::invalid("config", "too many configuration keys"));
    }
    for (key, value) in new.config {
        config::check(key, value, &bounds.defaults)?;
    }
    Ok(Command::CreateTopic(pb::CreateTopic {
        name: new.name.to_owned(),
        topic_id: id_bytes(new.id),
        partitions: place(table, new.live, new.id, 0, new.partitions as usize, factor),
        replication_factor: factor as i32,
        config: new.config.clone(),
        created_at_ms: new.now_ms,
    }))
}

/// The command that grants the epoch after `epoch` to a producer id; `None` when the id can't have another one and its
/// owner needs a new id.
///
/// # Errors
/// `UNKNOWN_PRODUCER` for an id that was never given out, `INVALID_ARGUMENT` for what is no epoch, `PRODUCER_FENCED` when
/// a higher epoch was granted.
pub(crate) fn raise_epoch(table: &Table, id: i64, epoch: i32) -> Result<Option<Command>, ApiError> {
    if id < 0 || id >= table.next_producer_id() {
        return Err(ApiError::new(
            Reason::UnknownProducer,
            format!("producer id {id} was never given out"),
        ));
    }
    if !(0..=PRODUCER_EPOCH_MAX).contains(&epoch) {
        return Err(ApiError::invalid(
            "producer_epoch",
            format!("an epoch is 0 to {PRODUCER_EPOCH_MAX}"),
        ));
    }
    let Some(highest) = table.epochs().highest(id) else {
        return Ok(None);
    };
    if epoch < highest {
        return Err(ApiError::new(
            Reason::ProducerFenced,
            format!("producer {id} was granted epoch {highest}, this is {epoch}"),
        )
        .with("producer_id", id)
        .with("current_epoch", highest));
    }
    // The last epoch is not granted: it ends the id.
    let grant = pb::GrantEpoch {
        producer_id: id,
        epoch: epoch + 1,
    };
    Ok((grant.epoch < PRODUCER_EPOCH_MAX).then_some(Command::GrantEpoch(grant)))
}

fn check_not_internal(topic: &Topic) -> Result<(), ApiError> {
    match name::is_internal(&topic.name) {
        true => Err(ApiError::invalid(
            "topic",
            format!(
                "`{}` is internal: the broker looks after it itself",
                topic.name
            ),
        )),
        false => Ok(()),
    }
}

/// The command that deletes a topic.
///
/// # Errors
/// `INVALID_ARGUMENT` for a topic that the broker keeps for itself.
pub(crate) fn delete_topic(topic: &Topic) -> Result<Command, ApiError> {
    check_not_internal(topic)?;
    Ok(Command::DeleteTopic(pb::DeleteTopic {
        topic_id: id_bytes(topic.id),
    }))
}

/// The command that raises a topic's number of partitions to `total`.
///
/// # Errors
/// `INVALID_ARGUMENT` for an internal topic, when it would not grow or grows beyond the bounds, `INVALID_REPLICATION_FACTOR` when fewer brokers are
/// active than it has replicas.
pub(crate) fn add_partitions(
    table: &Table,
    topic: &Topic,
    total: i32,
    live: &BTreeSet<i32>,
    bounds: &Bounds,
) -> Result<Command, ApiError> {
    check_not_internal(topic)?;
    let existing = topic.partitions.len();
    check_partitions(total, existing, table, bounds)?;
    let total = total as usize;
    if total <= existing {
        return Err(ApiError::invalid(
            "total",
            format!("the topic has {existing} partitions; partitions only grow"),
        ));
    }
    let factor = usize::try_from(topic.replication_factor).unwrap_or(1);
    let active = active_brokers(table);
    if factor > active {
        return Err(too_few_brokers(topic.replication_factor, active));
    }
    Ok(Command::AddPartitions(pb::AddPartitions {
        topic_id: id_bytes(topic.id),
        partitions: place(table, live, topic.id, existing, total - existing, factor),
    }))
}

/// The command that changes a topic's configuration.
///
/// # Errors
/// `INVALID_CONFIG`, `INVALID_ARGUMENT`.
pub(crate) fn alter_config(
    topic: &Topic,
    changes: &[ConfigChange],
    bounds: &Bounds,
) -> Result<Command, ApiError> {
    check_not_internal(topic)?;
    if changes.is_empty() || changes.len() > CONFIG_CHANGES_MAX {
        return Err(ApiError::invalid(
            "changes",
            format!("a call carries 1 to {CONFIG_CHANGES_MAX} changes"),
        ));
    }
    let mut set = HashMap::new();
    let mut unset = Vec::new();
    for change in changes {
        match &change.value {
            Some(value) => {
                config::check(&change.key, value, &bounds.defaults)?;
                set.insert(change.key.clone(), value.clone());
            }
            None => {
                config::key(&change.key)?;
                unset.push(change.key.clone());
            }
        }
    }
    if let Some(twice) = unset.iter().find(|key| set.contains_key(*key)) {
        return Err(ApiError::invalid(
            "changes",
            format!("`{twice}` is both set and unset"),
        ));
    }
    Ok(Command::AlterTopicConfig(pb::AlterTopicConfig {
        topic_id: id_bytes(topic.id),
        set,
        unset,
    }))
}
