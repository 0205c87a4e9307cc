//! How a dev cluster is: its processes, and what its brokers say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use timberline_client::{Client, ClientOptions, TopicInfo};
use timberline_workload::ProcessState;

use super::state::{DevBroker, State};
use crate::output::{columns, facts};

/// Brokers that don't answer in this time are shown without what they would say.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What the cluster says of itself.
#[derive(Debug, Default)]
pub(super) struct Picture {
    controller: Option<i32>,
    brokers: BTreeMap<i32, Counts>,
    partitions: usize,
    /// Partitions without a leader.
    leaderless: usize,
}

/// Of one broker.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    leads: usize,
    replicas: usize,
    /// Replicas that are not up to date.
    behind: usize,
}

impl Picture {
    /// Of a topic as a broker knows it, which may not have heard yet that others stopped `running`.
    fn add(&mut self, topic: &TopicInfo, running: &BTreeSet<i32>) {
        for partition in &topic.partitions {
            self.partitions += 1;
            let there = partition.replicas.iter().filter(|id| running.contains(id));
            let majority = there.count() * 2 > partition.replicas.len();
            let leader = partition.leader_id.filter(|id| running.contains(id));
            match leader.filter(|_| majority) {
                Some(leader) => self.brokers.entry(leader).or_default().leads += 1,
                None => self.leaderless += 1,
            }
            for replica in &partition.replicas {
                let counts = self.brokers.entry(*replica).or_default();
                counts.replicas += 1;
                counts.behind += usize::from(!partition.in_sync.contains(replica));
            }
        }
    }
}

/// Asks again and again, over a connection that is kept while it works.
#[derive(Default)]
pub(super) struct Asker {
    client: Option<Client>,
}

impl Asker {
    /// `None` when nobody answers soon.
    pub(super) async fn ask(&mut self, state: &State) -> Option<Picture> {
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.try_ask(state)).await;
        let picture = asked.ok().flatten();
        if picture.is_none() {
            self.client = None;
        }
        picture
    }

    async fn try_ask(&mut self, state: &State) -> Option<Picture> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let up = up(state).map(|broker| broker.addresses.grpc.to_string());
                let options = ClientOptions::default()
                    .bootstrap(up)
                    .connect_timeout(ANSWER_WITHIN)
                    .request_timeout(ANSWER_WITHIN);
                let client = Client::connect(options).await.ok()?;
                self.client.insert(client).clone()
            }
        };
        let running: BTreeSet<i32> = up(state).map(|broker| broker.id).collect();
        let controller = client.cluster().await.ok()?.controller_id;
        let mut picture = Picture {
            controller: controller.filter(|id| running.contains(id)),
            ..Picture::default()
        };
        for topic in client.admin().list_topics(true).await.ok()? {
            picture.add(&topic, &running);
        }
        Some(picture)
    }
}

/// Brokers whose process runs and is not paused.
fn up(state: &State) -> impl Iterator<Item = &DevBroker> {
    let brokers = state.brokers.iter();
    brokers.filter(|broker| broker.state() == ProcessState::Running)
}

/// The contract of `dev status -o json`.
pub(super) fn value(state: &State) -> Value {
    let broker = |broker: &DevBroker| {
        json!({
            "id": broker.id,
            "rack": broker.rack,
            "pid": broker.alive().map(|process| process.pid),
            "state": broker.state().as_str(),
            "grpc": broker.addresses.grpc.to_string(),
            "peer": broker.addresses.peer.to_string(),
            "http": broker.addresses.http.to_string(),
            // Not built yet.
            "kafka": null,
            "data_dir": broker.data_dir.display().to_string(),
        })
    };
    json!({
        "bootstrap": state.bootstrap(),
        "brokers": state.brokers.iter().map(broker).collect::<Vec<_>>(),
    })
}

/// For people.
pub(super) fn table(state: &State, picture: Option<&Picture>) -> String {
    let controller = picture.and_then(|picture| picture.controller);
    let said = |text: Option<String>| text.unwrap_or("-".to_owned());
    let row = |broker: &DevBroker| {
        let counts = picture.map(|picture| picture.brokers.get(&broker.id).copied());
        let counts = counts.map(Option::unwrap_or_default);
        let state = broker.state();
        let role = match controller {
            Some(id) if id == broker.id && state != ProcessState::Down => " *",
            _ => "",
        };
        vec![
            format!("{}{role}", broker.id),
            said(broker.rack.clone()),
            state.as_str().to_owned(),
            said(broker.alive().map(|process| process.pid.to_string())),
            said(counts.map(|counts| counts.leads.to_string())),
            said(counts.map(|counts| counts.replicas.to_string())),
            said(counts.map(|counts| counts.behind.to_string())),
            broker.addresses.grpc.to_string(),
            broker.addresses.http.to_string(),
        ]
    };
    let headers = [
        "BROKER", "RACK", "STATE", "PID", "LEADS", "REPLICAS", "BEHIND", "GRPC", "HTTP",
    ];
    let right = ["PID", "LEADS", "REPLICAS", "BEHIND"];
    let rows = state.brokers.iter().map(row).collect();
    let leads = picture.map(|picture| match picture.controller {
        Some(id) => format!("broker {id} (*)"),
        None => "none: nothing can be changed".to_owned(),
    });
    let partitions = picture.map(|picture| match picture.leaderless {
        0 => format!("{}, all led", picture.partitions),
        some => format!("{}, {some} without a leader", picture.partitions),
    });
    let head = facts(&[
        ("bootstrap", state.bootstrap()),
        ("controller", said(leads)),
        ("partitions", said(partitions)),
    ]);
    format!("{head}\n{}", columns(&headers, &right, rows))
}

#[cfg(test)]
mod tests {
    use timberline_client::PartitionInfo;
    use timberline_workload::ClusterOptions;

    use super::*;

    fn state() -> State {
        let options = ClusterOptions {
            base_port: Some(7071),
            ..ClusterOptions::new("timberline", "/d", 3)
        };
        State::of(&options.plan().unwrap())
    }

    #[test]
    fn the_fields_are_the_contract() {
        let value = value(&state());
        let keys =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(keys(&value), ["bootstrap", "brokers"]);
        let second = &value["brokers"][1];
        let expected = [
            "id", "rack", "pid", "state", "grpc", "peer", "http", "kafka", "data_dir",
        ];
        assert_eq!(keys(second), expected);
        assert_eq!(second["id"], 2);
        assert_eq!(second["state"], "down");
        assert_eq!(second["pid"], Value::Null);
        assert_eq!(second["peer"], "127.0.0.1:7082");
        assert_eq!(second["data_dir"], "/d/broker-2/data");
    }

    #[test]
    fn leaders_and_replicas_behind_are_counted_by_broker() {
        let partition = |leader_id, in_sync: &[i32]| PartitionInfo {
            leader_id,
            replicas: vec![1, 2, 3],
            in_sync: in_sync.to_vec(),
            ..PartitionInfo::default()
        };
        let mut picture = Picture::default();
        let topic = TopicInfo {
            partitions: vec![
                partition(Some(1), &[1, 2]),
                partition(Some(1), &[1, 2, 3]),
                partition(None, &[1]),
            ],
            ..TopicInfo::default()
        };
        picture.add(&topic, &BTreeSet::from([1, 2, 3]));
        let counts = |id| {
            let counts = picture.brokers[&id];
            (counts.leads, counts.replicas, counts.behind)
        };
        assert_eq!(
            (counts(1), counts(2), counts(3)),
            ((2, 3, 0), (0, 3, 1), (0, 3, 2))
        );
        let text = table(&state(), Some(&picture));
        assert!(text.contains("3, 1 without a leader"), "{text}");
        assert!(table(&state(), None).contains("controller  -"));
        // What a broker still believes of others counts for nothing.
        for running in [BTreeSet::from([1]), BTreeSet::from([2, 3])] {
            let mut picture = Picture::default();
            picture.add(&topic, &running);
            let text = table(&state(), Some(&picture));
            assert!(text.contains("3, 3 without a leader"), "{text}");
            assert!(text.contains("controller  none"), "{text}");
        }
    }
}
