//! From the log's records to state, and from state to an image.
//!
//! An image counts when it is whole: its records are collected beside what is there, and take its place at its end. One that was cut off, because its
//! leader was, is dropped at the first record that is not of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use super::api::Now;
use super::group::{Group, Holder, Member};
use super::{Context, Groups};
use crate::groups::limits::Settings;
use crate::groups::parts::Parts;
use crate::groups::record::Record;
use crate::groups::topics::Topics;

/// A record that does not fit what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the groups' log is inconsistent: {0}")]
pub(crate) struct Inconsistent(&'static str);

/// Reads a log from its start.
#[derive(Debug)]
pub(crate) struct Replay {
    state: Groups,
    /// What an image has said so far.
    image: Option<Groups>,
}

impl Replay {
    pub(crate) fn new(settings: Arc<Settings>) -> Replay {
        Replay {
            state: Groups::new(settings, Arc::default()),
            image: None,
        }
    }

    /// # Errors
    /// [`Inconsistent`]: nothing is guessed.
    pub(crate) fn apply(&mut self, record: Record, in_image: bool) -> Result<(), Inconsistent> {
        match (&mut self.image, record) {
            (image, Record::ImageBegin) => {
                let settings = Arc::clone(&self.state.settings);
                *image = Some(Groups::new(settings, Arc::default()));
                Ok(())
            }
            (image, Record::ImageEnd) => {
                let whole = image.take();
                self.state = whole.ok_or(Inconsistent("the end of an image that did not begin"))?;
                Ok(())
            }
            (Some(image), record) if in_image => image.apply(record),
            (None, _) if in_image => Err(Inconsistent("a part of an image that did not begin")),
            (image, record) => {
                *image = None;
                self.state.apply(record)
            }
        }
    }

    /// The revision of the metadata that the state rests on.
    pub(crate) fn revision(&self) -> u64 {
        self.state.revision
    }

    /// The state, to go on with: everybody has a full session to come back.
    pub(crate) fn finish(self, now: Now, topics: Arc<Topics>) -> Groups {
        let mut groups = self.state;
        groups.topics = topics;
        let ids: Vec<Arc<str>> = groups.groups.keys().cloned().collect();
        for id in ids {
            let _ = groups.with(now, &id, Group::activate);
        }
        groups.tick(now);
        groups
    }
}

impl Groups {
    fn group_of(&mut self, id: &Arc<str>) -> Result<&mut Group, Inconsistent> {
        let group = self.groups.get_mut(id);
        group.ok_or(Inconsistent("something of a group that is not there"))
    }

    /// Takes in a record that is committed.
    fn apply(&mut self, record: Record) -> Result<(), Inconsistent> {
        match record {
            Record::Group {
                group,
                epoch,
                assignor,
                empty_since_ms,
            } => {
                let id = Arc::clone(&group);
                let entry = self.groups.entry(group);
                let group = entry.or_insert_with(|| Group::new(id));
                group.epoch = group.epoch.max(epoch);
                group.assignor = assignor;
                group.empty_since_ms = empty_since_ms;
            }
            Record::Member { group, member } => {
                let group = self.group_of(&group)?;
                group.epoch = group.epoch.max(member.epoch);
                let slot = group.by_id.get(&member.id).copied();
                let known = slot.and_then(|slot| group.members.get_mut(&slot));
                match known {
                    Some(known) => known.update(*member),
                    None => {
                        group.insert_member(Member::of(*member));
                    }
                }
            }
            Record::MemberGone { group, member } => {
                let group = self.group_of(&group)?;
                let slot = group.by_id.get(&member).copied();
                let gone = slot.and_then(|slot| group.take_member(slot));
                let gone = gone.ok_or(Inconsistent("a member goes that is not there"))?;
                gone.held.iter().for_each(|tp| group.free(tp));
            }
            Record::Grant {
                group,
                member,
                epoch,
                added,
                removed,
            } => {
                let group = self.group_of(&group)?;
                group.granted(&member, epoch, &added, &removed)?;
            }
            Record::Offset {
                group,
                tp,
                committed,
            } => self.group_of(&group)?.set_offset(tp, committed),
            Record::OffsetGone {
                group,
                topic,
                partition,
            } => {
                self.group_of(&group)?.forget_offset(topic, partition);
            }
            Record::GroupGone { group } => {
                self.groups.remove(&group);
            }
            Record::Revision(revision) => self.revision = self.revision.max(revision),
            Record::Mark => {}
            Record::ImageBegin | Record::ImageEnd => {
                return Err(Inconsistent("an image within a record"));
            }
        }
        Ok(())
    }

    /// All that there is, as records: between [`Record::ImageBegin`] and [`Record::ImageEnd`] they make this state anew.
    pub(crate) fn image(&self, mut emit: impl FnMut(&Record)) {
        emit(&Record::Revision(self.revision));
        for group in self.groups.values() {
            group.image(&mut emit);
        }
    }
}

impl Group {
    fn granted(
        &mut self,
        member: &Arc<str>,
        epoch: i64,
        added: &Parts,
        removed: &Parts,
    ) -> Result<(), Inconsistent> {
        self.epoch = self.epoch.max(epoch);
        let slot = self.by_id.get(member).copied();
        let slot = slot.ok_or(Inconsistent("a grant to a member that is not there"))?;
        for tp in removed.iter() {
            // Those of a deleted topic may have gone with it.
            if self.holder(tp).is_some_and(|holder| holder.slot == slot) {
                self.free(tp);
            }
        }
        for tp in added.iter() {
            if self.holder(tp).is_some_and(|holder| holder.slot != slot) {
                return Err(Inconsistent(
                    "a partition is granted that another one holds",
                ));
            }
            self.set_holder(tp, Holder { slot, epoch });
        }
        if let Some(member) = self.members.get_mut(&slot) {
            member.epoch = member.epoch.max(epoch);
            member.held.subtract(removed);
            member.held.add(added);
        }
        Ok(())
    }

    fn activate(&mut self, context: &mut Context<'_>) {
        let slots: Vec<_> = self.members.keys().copied().collect();
        for slot in slots {
            if let Some(member) = self.members.get_mut(&slot) {
                member.heard_at_ms = context.now.mono_ms;
            }
            self.set_timer(slot, context);
        }
        self.retarget(context);
    }

    fn image(&self, emit: &mut impl FnMut(&Record)) {
        emit(&self.record());
        for member in self.members.values() {
            emit(&Record::Member {
                group: Arc::clone(&self.id),
                member: Box::new(member.record()),
            });
            let mut by_epoch: BTreeMap<i64, Parts> = BTreeMap::new();
            for tp in member.held.iter() {
                if let Some(holder) = self.holder(tp) {
                    by_epoch.entry(holder.epoch).or_default().insert(tp);
                }
            }
            for (epoch, added) in by_epoch {
                emit(&Record::Grant {
                    group: Arc::clone(&self.id),
                    member: Arc::clone(&member.id),
                    epoch,
                    added,
                    removed: Parts::default(),
                });
            }
        }
        for (tp, committed) in self.all_offsets() {
            emit(&Record::Offset {
                group: Arc::clone(&self.id),
                tp,
                committed: committed.clone(),
            });
        }
    }
}
