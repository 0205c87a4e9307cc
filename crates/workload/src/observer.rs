//! What a bystander sees of the cluster: who leads what, and who is up to date.

use std::time::{Duration, Instant};

use timberline_client::{Client, ClientOptions, TopicInfo};

use crate::error::Result;

/// Between two looks: as exact as the time of the last leader is, and little work for the brokers.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A broker that can't be reached or does not answer is left soon for another.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Asks the cluster about one topic. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Observer {
    client: Client,
    topic: String,
}

impl Observer {
    pub(crate) async fn connect(options: ClientOptions, topic: &str) -> Result<Observer> {
        // Nothing is kept: every answer is of now.
        let options = options
            .metadata_max_age(Duration::ZERO)
            .connect_timeout(Duration::from_secs(1))
            .request_timeout(ANSWER_WITHIN);
        Ok(Observer {
            client: Client::connect(options).await?,
            topic: topic.to_owned(),
        })
    }

    /// Where the topic's partitions are now.
    pub(crate) async fn look(&self) -> Result<TopicInfo> {
        Ok(self.client.metadata(&self.topic).await?)
    }

    /// Who leads the metadata now.
    pub(crate) async fn controller(&self) -> Result<Option<i32>> {
        Ok(self.client.cluster().await?.controller_id)
    }

    /// Waits until no partition is without a leader or led by one of these; `None` when `until` comes first.
    pub(crate) async fn led_by_others_than(&self, gone: &[i32], until: Instant) -> Option<Instant> {
        while Instant::now() < until {
            if let Ok(topic) = self.look().await
                && is_led_without(&topic, gone)
            {
                return Some(Instant::now());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }
}

/// Every partition has a leader, and none of these.
pub(crate) fn is_led_without(topic: &TopicInfo, gone: &[i32]) -> bool {
    let mut leaders = topic.partitions.iter().map(|info| info.leader_id);
    leaders.all(|leader| leader.is_some_and(|leader| !gone.contains(&leader)))
}

/// Every partition is led, and all its replicas are there and up to date.
pub(crate) fn is_whole(topic: &TopicInfo, replicas: usize) -> bool {
    topic.partitions.iter().all(|info| {
        info.leader_id.is_some()
            && info.replicas.len() >= replicas
            && info.in_sync.len() == info.replicas.len()
    })
}

/// The broker that leads most partitions; of several the one with the lowest number.
pub(crate) fn most_leading(topic: &TopicInfo) -> Option<i32> {
    let mut counts = std::collections::BTreeMap::new();
    for leader in topic.partitions.iter().filter_map(|info| info.leader_id) {
        *counts.entry(leader).or_insert(0_u32) += 1;
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map(|(leader, _)| leader)
}

#[cfg(test)]
mod tests {
    use timberline_client::PartitionInfo;

    use super::*;

    fn topic(leaders: &[Option<i32>]) -> TopicInfo {
        let info = |(leader, partition): (&Option<i32>, i32)| PartitionInfo {
            partition,
            leader_id: *leader,
            leader_epoch: 1,
            replicas: vec![1, 2, 3],
            in_sync: vec![1, 2, 3],
            ..PartitionInfo::default()
        };
        TopicInfo {
            partitions: leaders.iter().zip(0..).map(info).collect(),
            ..TopicInfo::default()
        }
    }

    #[test]
    fn the_victim_leads_most_and_is_the_same_for_the_same_picture() {
        let leaders = [Some(3), Some(2), Some(2), None, Some(3), Some(1)];
        assert_eq!(most_leading(&topic(&leaders)), Some(2));
        assert_eq!(most_leading(&topic(&[Some(1), Some(3), Some(3)])), Some(3));
        assert_eq!(most_leading(&topic(&[None])), None);
    }

    #[test]
    fn a_stale_leader_is_no_leader() {
        assert!(is_led_without(&topic(&[Some(1), Some(2)]), &[3]));
        assert!(!is_led_without(&topic(&[Some(1), Some(3)]), &[3]));
        assert!(!is_led_without(&topic(&[Some(1), None]), &[3]));
    }

    #[test]
    fn whole_means_all_replicas_in_sync() {
        let mut one = topic(&[Some(1)]);
        assert!(is_whole(&one, 3));
        one.partitions[0].in_sync.pop();
        assert!(!is_whole(&one, 3));
        one.partitions[0].replicas.pop();
        assert!(!is_whole(&one, 3));
        assert!(!is_whole(&topic(&[None]), 3));
    }
}
