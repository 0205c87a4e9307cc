//! Views of groups, as they are in memory.

use std::sync::Arc;

use super::Groups;
use super::api::{Answer, Description, MemberView, Summary};
use super::group::Group;
use crate::groups::error::Error;

impl Groups {
    /// In the order of their ids.
    pub(super) fn list(&self, prefix: &str) -> Vec<Summary> {
        let groups = self.groups.values();
        let mut found: Vec<Summary> = groups
            .filter(|group| group.id.starts_with(prefix))
            .map(summary)
            .collect();
        found.sort_by(|a, b| a.group.cmp(&b.group));
        found
    }

    pub(super) fn describe(&self, id: &Arc<str>) -> Result<Answer, Error> {
        let group = self.groups.get(id);
        let group = group.ok_or_else(|| Error::UnknownGroup(id.to_string()))?;
        let members = group.members.values().map(|member| MemberView {
            id: Arc::clone(&member.id),
            instance: member.instance.clone(),
            client_id: Arc::clone(&member.client_id),
            address: Arc::clone(&member.address),
            rack: Arc::clone(&member.rack),
            epoch: member.epoch,
            subscription: Arc::clone(&member.subscription),
            held: member.held.clone(),
            target: member.target.clone(),
            connected: member.link.is_some(),
            session_ms: member.session_ms,
        });
        let offsets = group.all_offsets();
        Ok(Answer::Description(Box::new(Description {
            summary: summary(group),
            epoch: group.epoch,
            members: members.collect(),
            offsets: offsets.map(|(tp, one)| (tp, one.clone())).collect(),
        })))
    }
}

fn summary(group: &Group) -> Summary {
    Summary {
        group: Arc::clone(&group.id),
        state: group.state(),
        assignor: group.assignor,
        members: group.members.len(),
    }
}
