//! `range`: each topic by itself is cut into as many ranges as it has subscribers. Partitions with equal numbers of
//! topics with equal subscribers go to the same member, so that keys meet.

use super::{Demand, NONE};

pub(super) fn assign(demand: &Demand<'_>) -> Vec<u32> {
    let mut owners = vec![NONE; demand.held.len()];
    for (topic, subscribers) in demand.topics.iter().zip(demand.subscribers()) {
        if subscribers.is_empty() {
            continue;
        }
        let each = topic.racks.len() / subscribers.len();
        let longer = topic.racks.len() % subscribers.len();
        let mut next = topic.base as usize;
        for (at, member) in subscribers.into_iter().enumerate() {
            let len = each + usize::from(at < longer);
            owners[next..next + len].fill(member);
            next += len;
        }
    }
    owners
}
