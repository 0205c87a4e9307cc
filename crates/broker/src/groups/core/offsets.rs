//! Committed offsets: taken, read, moved, forgotten.

use std::collections::HashSet;
use std::sync::Arc;

use super::Groups;
use super::api::{Answer, CommitItem, Now, Which};
use super::group::Group;
use super::membership::check_id;
use crate::groups::error::Error;
use crate::groups::limits::{ITEMS_MAX, METADATA_LEN_MAX, OFFSETS_MAX};
use crate::groups::parts::{TopicId, Tp};
use crate::groups::record::{Committed, Record};
use crate::groups::topics::Topics;

type Result<T> = std::result::Result<T, Error>;

/// # Errors
/// More items than one call may have.
fn check_count(count: usize) -> Result<()> {
    if count > ITEMS_MAX {
        let why = format!("a call has at most {ITEMS_MAX} items");
        return Err(Error::invalid("items", why));
    }
    Ok(())
}

fn check_place(tp: Tp, topics: &Topics) -> Result<()> {
    let Some(topic) = topics.get(tp.topic) else {
        return Err(Error::UnknownTopic(tp.topic));
    };
    if tp.partition as usize >= topic.partitions() {
        return Err(Error::UnknownPartition {
            partition: tp.partition.into(),
            count: topic.partitions(),
        });
    }
    Ok(())
}

impl Groups {
    pub(super) fn commit(
        &mut self,
        now: Now,
        id: &Arc<str>,
        member: Option<(Arc<str>, i64)>,
        items: Vec<CommitItem>,
    ) -> Result<Answer> {
        check_id("group_id", id)?;
        check_count(items.len())?;
        let new = !self.groups.contains_key(id);
        if new {
            if member.is_some() {
                return Err(Error::Fenced("the group is not there any more"));
            }
            let bad = |item: &CommitItem| check_item(item, &self.topics).is_err();
            if items.iter().all(bad) {
                // Nothing to begin a group for.
                let refuse = |item: &CommitItem| match check_item(item, &self.topics) {
                    Ok(()) => Ok(item.tp),
                    Err(error) => Err((item.tp, error)),
                };
                return Ok(Answer::Items(items.iter().map(refuse).collect()));
            }
            self.create(id)?;
        }
        self.with(now, id, |group, context| {
            let slot = match &member {
                Some((id, epoch)) => Some(group.committer(id, *epoch)?),
                None if group.members.is_empty() => None,
                None => return Err(Error::NotEmpty(group.members.len())),
            };
            if new {
                group.empty_since_ms = Some(now.wall_ms);
                context.out.records.push(group.record());
            }
            let mut results = Vec::with_capacity(items.len());
            for item in items {
                let tp = item.tp;
                let epoch = member.as_ref().map_or(0, |(_, epoch)| *epoch);
                let checked = check_item(&item, context.topics)
                    .and_then(|()| group.check_holder(tp, slot, epoch))
                    .and_then(|()| group.check_forward(&item));
                match checked {
                    Ok(()) => {
                        let committed = Committed {
                            offset: item.offset,
                            leader_epoch: item.leader_epoch,
                            at_ms: now.wall_ms,
                            metadata: item.metadata,
                        };
                        // A member that stands still says nothing new. Without members the age counts.
                        let same = slot.is_some() && group.says_the_same(tp, &committed);
                        if !same {
                            context.out.records.push(Record::Offset {
                                group: Arc::clone(&group.id),
                                tp,
                                committed: committed.clone(),
                            });
                            group.set_offset(tp, committed);
                        }
                        results.push(Ok(tp));
                    }
                    Err(error) => results.push(Err((tp, error))),
                }
            }
            Ok(Answer::Items(results))
        })?
    }

    pub(super) fn fetch(&self, id: &Arc<str>, which: &Which) -> Result<Answer> {
        let group = self.known(id)?;
        Ok(Answer::Offsets(match which {
            Which::All => group
                .all_offsets()
                .map(|(tp, committed)| (tp, Some(committed.clone())))
                .collect(),
            Which::These(topics) => {
                let mut found = Vec::new();
                for (topic, partitions) in topics {
                    match partitions {
                        Some(partitions) => found.extend(partitions.iter().map(|partition| {
                            let (topic, partition) = (*topic, *partition);
                            let tp = Tp { topic, partition };
                            (tp, group.offset(tp).cloned())
                        })),
                        None => {
                            let all = group.offsets.get(topic).into_iter().flatten();
                            found.extend(all.map(|(partition, committed)| {
                                let (topic, partition) = (*topic, *partition);
                                (Tp { topic, partition }, Some(committed.clone()))
                            }));
                        }
                    }
                }
                found
            }
        }))
    }

    fn known(&self, id: &Arc<str>) -> Result<&Group> {
        let group = self.groups.get(id);
        group.ok_or_else(|| Error::UnknownGroup(id.to_string()))
    }

    /// Moves offsets to where somebody wants them.
    pub(super) fn reset(
        &mut self,
        now: Now,
        id: &Arc<str>,
        offsets: Vec<(Tp, i64)>,
    ) -> Result<Answer> {
        let items = offsets.into_iter().map(|(tp, offset)| CommitItem {
            tp,
            offset,
            leader_epoch: None,
            metadata: Box::default(),
            rewind: true,
            refused: None,
        });
        self.commit(now, id, None, items.collect())
    }

    pub(super) fn delete_offsets(
        &mut self,
        now: Now,
        id: &Arc<str>,
        which: &Which,
    ) -> Result<Answer> {
        self.with(now, id, |group, context| {
            let subscribed = group.subscribed(context.topics);
            let topics: Vec<(TopicId, Option<Vec<u32>>)> = match which {
                Which::All => group.offsets.keys().map(|topic| (*topic, None)).collect(),
                Which::These(topics) => topics.clone(),
            };
            let mut results = Vec::new();
            for (topic, partitions) in topics {
                let partitions = partitions.unwrap_or_else(|| {
                    let all = group.offsets.get(&topic).into_iter().flatten();
                    all.map(|(partition, _)| *partition).collect()
                });
                for partition in partitions {
                    let tp = Tp { topic, partition };
                    if subscribed.contains(&topic) {
                        let members = group.members.len();
                        results.push(Err((tp, Error::NotEmpty(members))));
                        continue;
                    }
                    if group.forget_offset(topic, Some(partition)) {
                        context.out.records.push(Record::OffsetGone {
                            group: Arc::clone(&group.id),
                            topic,
                            partition: Some(partition),
                        });
                    }
                    results.push(Ok(tp));
                }
            }
            Ok(Answer::Items(results))
        })?
    }

    pub(super) fn delete_group(&mut self, id: &Arc<str>) -> Result<Answer> {
        let members = self.known(id)?.members.len();
        if members > 0 {
            return Err(Error::NotEmpty(members));
        }
        self.groups.remove(id);
        let group = Arc::clone(id);
        self.out.records.push(Record::GroupGone { group });
        Ok(Answer::Done)
    }

    /// Forgets what is too old: offsets of groups without members, and of topics that no member wants (KIP-211).
    pub(super) fn expire(&mut self, now: Now) {
        let retention = self.settings.offsets_retention_ms;
        let ids: Vec<Arc<str>> = self.groups.keys().cloned().collect();
        for id in ids {
            let over = self.with(now, &id, |group, context| {
                let old = now.wall_ms.saturating_sub(retention);
                if group.empty_since_ms.is_some_and(|since| since > old) {
                    return false;
                }
                let subscribed = group.subscribed(context.topics);
                let expired: Vec<Tp> = group
                    .all_offsets()
                    .filter(|(tp, one)| one.at_ms <= old && !subscribed.contains(&tp.topic))
                    .map(|(tp, _)| tp)
                    .collect();
                for tp in expired {
                    group.forget_offset(tp.topic, Some(tp.partition));
                    context.out.records.push(Record::OffsetGone {
                        group: Arc::clone(&group.id),
                        topic: tp.topic,
                        partition: Some(tp.partition),
                    });
                }
                group.members.is_empty() && group.offset_count == 0
            });
            if over == Ok(true) {
                self.groups.remove(&id);
                self.out.records.push(Record::GroupGone { group: id });
            }
        }
    }
}

fn check_item(item: &CommitItem, topics: &Topics) -> Result<()> {
    if let Some(error) = &item.refused {
        return Err(error.clone());
    }
    check_place(item.tp, topics)?;
    if item.offset < 0 {
        let why = format!("an offset is not negative, this is {}", item.offset);
        return Err(Error::invalid("offset", why));
    }
    if item.metadata.len() > METADATA_LEN_MAX {
        let why = format!("metadata has at most {METADATA_LEN_MAX} bytes");
        return Err(Error::invalid("metadata", why));
    }
    Ok(())
}

impl Group {
    fn committer(&self, id: &Arc<str>, epoch: i64) -> Result<u32> {
        let slot = self.by_id.get(id).copied();
        let member = slot.and_then(|slot| Some((slot, self.members.get(&slot)?)));
        match member {
            Some((slot, member)) if epoch <= member.epoch => Ok(slot),
            Some(_) => Err(Error::Fenced("it has an epoch that it was never given")),
            None => Err(Error::Fenced("its session ran out, or it left")),
        }
    }

    /// A member commits what it holds, at an epoch at which it held it (KIP-1251).
    fn check_holder(&self, tp: Tp, slot: Option<u32>, epoch: i64) -> Result<()> {
        let Some(slot) = slot else { return Ok(()) };
        match self.holder(tp) {
            Some(holder) if holder.slot == slot && holder.epoch <= epoch => Ok(()),
            _ => Err(Error::NotAssigned),
        }
    }

    fn check_forward(&self, item: &CommitItem) -> Result<()> {
        match self.offset(item.tp) {
            Some(before) if item.offset < before.offset && !item.rewind => {
                Err(Error::CommitBehind {
                    committed: before.offset,
                })
            }
            None if self.offset_count >= OFFSETS_MAX => Err(Error::Full {
                what: "the group's number of committed offsets",
                limit: OFFSETS_MAX,
            }),
            _ => Ok(()),
        }
    }

    fn says_the_same(&self, tp: Tp, new: &Committed) -> bool {
        self.offset(tp).is_some_and(|old| {
            old.offset == new.offset
                && old.leader_epoch == new.leader_epoch
                && old.metadata == new.metadata
        })
    }

    pub(super) fn all_offsets(&self) -> impl Iterator<Item = (Tp, &Committed)> {
        self.offsets.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(|(partition, committed)| {
                let (topic, partition) = (*topic, *partition);
                (Tp { topic, partition }, committed)
            })
        })
    }

    /// Topics that members want.
    fn subscribed(&self, topics: &Topics) -> HashSet<TopicId> {
        let mut seen = HashSet::new();
        let members = self.members.values();
        members
            .filter(|member| seen.insert(&*member.subscription))
            .flat_map(|member| self.patterns.resolve(&member.subscription, topics))
            .collect()
    }
}
