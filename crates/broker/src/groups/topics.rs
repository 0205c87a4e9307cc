//! The cluster's topics as groups need them: a view of one revision of the metadata.

use std::collections::HashMap;
use std::sync::Arc;

use super::parts::TopicId;

/// Racks, as numbers that a view gives them.
pub(crate) type Rack = u16;

/// One topic.
#[derive(Clone, Debug)]
pub(crate) struct TopicView {
    pub(crate) id: TopicId,
    pub(crate) name: Arc<str>,
    /// The broker keeps it for itself: nobody subscribes to it.
    pub(crate) internal: bool,
    /// For each partition the racks of its replicas, the preferred leader's first. A broker without a rack has none.
    pub(crate) racks: Vec<Box<[Rack]>>,
}

impl TopicView {
    pub(crate) fn partitions(&self) -> usize {
        self.racks.len()
    }
}

/// All topics at one revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topics {
    /// Of the metadata.
    pub(crate) revision: u64,
    by_id: HashMap<TopicId, TopicView>,
    by_name: HashMap<Arc<str>, TopicId>,
    racks: HashMap<Arc<str>, Rack>,
}

impl Topics {
    pub(crate) fn new(revision: u64) -> Topics {
        Topics {
            revision,
            ..Topics::default()
        }
    }

    /// The number of a rack; those beyond 65,535 share one.
    pub(crate) fn rack(&mut self, name: &str) -> Rack {
        if let Some(rack) = self.racks.get(name) {
            return *rack;
        }
        let rack = Rack::try_from(self.racks.len()).unwrap_or(Rack::MAX);
        self.racks.insert(name.into(), rack);
        rack
    }

    /// The number of a rack that has a broker.
    pub(crate) fn known_rack(&self, name: &str) -> Option<Rack> {
        self.racks.get(name).copied()
    }

    pub(crate) fn insert(&mut self, topic: TopicView) {
        self.by_name.insert(Arc::clone(&topic.name), topic.id);
        self.by_id.insert(topic.id, topic);
    }

    /// Whether groups would see a difference.
    pub(crate) fn same(&self, other: &Topics) -> bool {
        self.racks == other.racks
            && self.by_id.len() == other.by_id.len()
            && self.by_id.iter().all(|(id, topic)| {
                let other = other.by_id.get(id);
                other.is_some_and(|other| topic.racks == other.racks)
            })
    }

    pub(crate) fn get(&self, id: TopicId) -> Option<&TopicView> {
        self.by_id.get(&id)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&TopicView> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// In no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &TopicView> {
        self.by_id.values()
    }
}
