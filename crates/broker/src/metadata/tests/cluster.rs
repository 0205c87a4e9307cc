//! A table that commands are applied to as the log would.

use std::collections::{BTreeSet, HashMap};

use timberline_proto::internal::{self as pb, metadata_command::Command};
use uuid::Uuid;

use super::bounds;
use crate::metadata::moves::{self, Move, View};
use crate::metadata::plan::{self, NewTopic};
use crate::metadata::table::{BrokerState, Effect, Partition, Rejected, Table, id_bytes};

pub(super) struct Cluster {
    pub(super) table: Table,
    pub(super) index: u64,
}

impl Cluster {
    /// Brokers from 1, one for each rack given.
    pub(super) fn new(racks: &[&str]) -> Cluster {
        let mut cluster = Cluster {
            table: Table::default(),
            index: 0,
        };
        for (id, rack) in (1..).zip(racks) {
            cluster.register(id, rack, 1);
        }
        cluster
    }

    pub(super) fn apply(&mut self, command: Command) -> Result<Effect, Rejected> {
        self.apply_as("", command)
    }

    pub(super) fn apply_as(&mut self, request: &str, command: Command) -> Result<Effect, Rejected> {
        self.index += 1;
        let command = pb::MetadataCommand {
            request_id: request.to_owned(),
            command: Some(command),
        };
        let before = self.table.clone();
        let result = self.table.apply(self.index, &command);
        if result.is_err() {
            assert_eq!(self.table, before);
        }
        result
    }

    pub(super) fn register(&mut self, id: i32, rack: &str, directory: u128) -> Effect {
        self.apply(Command::RegisterBroker(pb::RegisterBroker {
            broker_id: id,
            rack: rack.to_owned(),
            directory_id: id_bytes(Uuid::from_u128(directory << 32 | id as u128)),
            grpc_address: format!("h{id}:7071"),
            peer_address: format!("h{id}:7072"),
            http_address: format!("h{id}:7073"),
            version: "1".into(),
            feature_level_min: 1,
            feature_level_max: 2,
            ..Default::default()
        }))
        .unwrap()
    }

    pub(super) fn topic(&mut self, name: &str, partitions: i32, factor: i32) -> Uuid {
        let id = Uuid::from_u128(u128::from(self.index) + 1000);
        let new = NewTopic {
            name,
            partitions,
            replication_factor: factor,
            config: &HashMap::new(),
            live: &self.table.brokers().keys().copied().collect(),
            id,
            now_ms: 5,
        };
        let create = plan::create_topic(&self.table, &new, &bounds()).unwrap();
        self.apply(create).unwrap();
        id
    }

    pub(super) fn set_state(&mut self, id: i32, state: BrokerState) {
        self.apply(Command::SetBrokerState(pb::SetBrokerState {
            broker_id: id,
            state: crate::metadata::table::state_to(state).into(),
            at_ms: 7,
            operation: None,
        }))
        .unwrap();
    }

    pub(super) fn partition(&self, topic: Uuid, number: i32) -> &Partition {
        self.table.topic(topic).unwrap().partition(number).unwrap()
    }

    pub(super) fn brokers(&self, topic: Uuid, number: i32) -> Vec<i32> {
        let replicas = self.partition(topic, number).replicas.iter();
        replicas.map(|replica| replica.broker).collect()
    }

    /// Finishes the change of a partition that is in flight.
    pub(super) fn finish(&mut self, topic: Uuid, number: i32) -> Result<Effect, Rejected> {
        let target = self.partition(topic, number).target().iter();
        let replica_ids = target.map(|replica| replica.id).collect();
        self.apply(Command::FinishReassign(pb::FinishReassign {
            topic_id: id_bytes(topic),
            partition: number,
            replica_ids,
            at_ms: 9,
            revision: 0,
        }))
    }

    /// Asserts that an image gives the same table.
    pub(super) fn check_image(&self) {
        let mut restored = Table::default();
        let image = pb::MetadataCommand {
            request_id: String::new(),
            command: Some(Command::Image(self.table.image(|_| true))),
        };
        assert_eq!(restored.apply(1, &image), Ok(Effect::Replaced));
        assert_eq!(restored, self.table);
    }
}

/// What lives and what is gone.
#[derive(Clone, Default)]
pub(super) struct Liveness {
    pub(super) live: BTreeSet<i32>,
    pub(super) gone: BTreeSet<i32>,
}

impl Liveness {
    pub(super) fn view(&self) -> View<'_> {
        View {
            live: &self.live,
            gone: &self.gone,
        }
    }

    pub(super) fn kill(&mut self, id: i32) {
        self.live.remove(&id);
        self.gone.insert(id);
    }
}

impl Cluster {
    /// Everybody lives.
    pub(super) fn all_live(&self) -> Liveness {
        Liveness {
            live: self.table.brokers().keys().copied().collect(),
            gone: BTreeSet::new(),
        }
    }

    /// Begins the moves given, and finishes them.
    pub(super) fn carry_out(&mut self, moves: &[Move]) {
        for one in moves {
            let command = plan::replace(&self.table, one, None).expect("the move fits");
            self.apply(command).unwrap();
        }
        for one in moves {
            self.finish(one.topic, one.partition).unwrap();
        }
    }

    /// Repairs that may begin now.
    pub(super) fn due(&self, liveness: &Liveness) -> Vec<Move> {
        moves::admit(&self.table, &moves::healing(&self.table, liveness.view()))
    }

    /// Repairs until nothing is to be repaired; the moves that it took.
    pub(super) fn heal(&mut self, liveness: &Liveness) -> Vec<Move> {
        let mut all = Vec::new();
        loop {
            let moves = self.due(liveness);
            if moves.is_empty() {
                return all;
            }
            assert!(moves.len() <= moves::MOVES_MAX);
            self.carry_out(&moves);
            all.extend(moves);
            assert!(all.len() < 10_000, "healing does not end");
        }
    }
}
