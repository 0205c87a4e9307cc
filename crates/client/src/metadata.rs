//! What is known of topics: identity, partitions, addresses of leaders. Old knowledge is asked for again when it
//! is used; an error that says that it is wrong drops it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use timberline_proto::v1;

use crate::types::{ClusterInfo, TopicInfo};

/// Topics remembered; beyond, all are forgotten and asked for again.
const MAX_TOPICS: usize = 10_000;

/// A topic with the addresses of the leaders of its partitions.
#[derive(Debug)]
pub(crate) struct TopicView {
    pub(crate) info: TopicInfo,
    /// By the partition's number; `None`: no leader known.
    pub(crate) leaders: Vec<Option<Arc<str>>>,
    fetched: Instant,
}

impl TopicView {
    /// `None` when partitions are not numbered from 0 without gaps, or the id is not 16 bytes.
    fn new(topic: v1::TopicInfo, cluster: &ClusterInfo) -> Option<TopicView> {
        if topic.topic_id.len() != 16 {
            return None;
        }
        let info = TopicInfo::from(topic);
        let numbered = info
            .partitions
            .iter()
            .zip(0..)
            .all(|(partition, number)| partition.partition == number);
        if !numbered || info.partitions.is_empty() {
            return None;
        }
        let address = |id: i32| {
            let broker = cluster
                .brokers
                .iter()
                .find(|broker| broker.broker_id == id)?;
            Some(Arc::from(broker.address.as_str()))
        };
        let leaders = info
            .partitions
            .iter()
            .map(|p| p.leader_id.and_then(address))
            .collect();
        Some(TopicView {
            info,
            leaders,
            fetched: Instant::now(),
        })
    }
}

/// The topics seen, and the brokers.
#[derive(Default)]
pub(crate) struct MetadataCache {
    topics: Mutex<HashMap<String, Arc<TopicView>>>,
    brokers: Mutex<Vec<String>>,
}

impl MetadataCache {
    /// The topic, if it was fetched less than `max_age` ago.
    pub(crate) fn topic(&self, name: &str, max_age: Duration) -> Option<Arc<TopicView>> {
        let topics = self.topics.lock();
        topics
            .get(name)
            .filter(|view| view.fetched.elapsed() < max_age)
            .cloned()
    }

    /// Takes in an answer; returns how many of its topics made no sense.
    pub(crate) fn update(&self, answer: v1::GetMetadataResponse) -> usize {
        let cluster = ClusterInfo::from(answer.cluster.unwrap_or_default());
        if !cluster.brokers.is_empty() {
            *self.brokers.lock() = cluster
                .brokers
                .iter()
                .map(|broker| broker.address.clone())
                .collect();
        }
        let mut bad = 0;
        let mut topics = self.topics.lock();
        for topic in answer.topics {
            match TopicView::new(topic, &cluster) {
                Some(view) => {
                    if topics.len() >= MAX_TOPICS {
                        topics.clear();
                    }
                    topics.insert(view.info.name.clone(), Arc::new(view));
                }
                None => bad += 1,
            }
        }
        bad
    }

    /// Forgets a topic.
    pub(crate) fn forget(&self, name: &str) {
        self.topics.lock().remove(name);
    }

    /// Addresses of all brokers heard of.
    pub(crate) fn brokers(&self) -> Vec<String> {
        self.brokers.lock().clone()
    }
}
