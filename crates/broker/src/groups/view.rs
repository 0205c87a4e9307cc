//! From the metadata's table to the topics that the core sees.

use std::sync::Arc;

use parking_lot::Mutex;

use super::parts::TopicId;
use super::topics::{Rack, TopicView, Topics};
use crate::metadata::table::Table;
use crate::topic::name::is_internal;

/// The newest view, shared by all coordinators of a broker.
#[derive(Default)]
pub(super) struct View(Mutex<Option<(u64, Arc<Topics>)>>);

impl View {
    /// The topics at this revision, or the view before if they are the same.
    pub(super) fn at(&self, revision: u64, table: &Table) -> Arc<Topics> {
        let mut view = self.0.lock();
        match &mut *view {
            Some((known, topics)) if *known >= revision => Arc::clone(topics),
            Some((known, topics)) => {
                let new = build(revision, table);
                *known = revision;
                if !new.same(topics) {
                    *topics = Arc::new(new);
                }
                Arc::clone(topics)
            }
            None => {
                let topics = Arc::new(build(revision, table));
                *view = Some((revision, Arc::clone(&topics)));
                topics
            }
        }
    }
}

fn build(revision: u64, table: &Table) -> Topics {
    let mut topics = Topics::new(revision);
    let brokers = table.brokers();
    for topic in table.topics() {
        let partitions = topic.partitions.iter();
        let racks = partitions.map(|partition| {
            let replicas = partition.replicas.iter();
            let racks = replicas.filter_map(|replica| {
                let broker = brokers.get(&replica.broker)?;
                (!broker.rack.is_empty()).then(|| topics.rack(&broker.rack))
            });
            racks.collect::<Box<[Rack]>>()
        });
        let view = TopicView {
            id: TopicId(topic.id.as_u128()),
            name: Arc::from(topic.name.as_str()),
            internal: is_internal(&topic.name),
            racks: racks.collect(),
        };
        topics.insert(view);
    }
    topics
}
