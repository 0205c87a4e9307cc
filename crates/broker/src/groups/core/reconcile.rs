//! From what members should hold to what they hold, without two holding the same (as KIP-848).
//!
//! A member is told what it may keep and what is free for it. What it must give up is still its own until it has acknowledged that; only then, or when
//! it is gone, somebody else is told of it.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use super::Context;
use super::api::{Message, Start};
use super::group::{Group, Holder, Slot, UnderWay};
use crate::groups::assign::{Demand, NONE, TopicOf, Wish, assign};
use crate::groups::limits::{RETARGET_MS, RETARGET_PER_MS};
use crate::groups::parts::{Parts, TopicId, Tp};
use crate::groups::record::Record;
use crate::groups::subscription::Subscription;
use crate::groups::topics::TopicView;

impl Group {
    /// Makes a new target of members, subscriptions, topics and what is held, and begins to bring it about.
    pub(super) fn make_target(&mut self, context: &mut Context<'_>) {
        if self.retarget_at_ms.take().is_none() {
            return;
        }
        let topics = context.topics;
        let members = self.members.values();
        let subscriptions = members.map(|member| &*member.subscription);
        self.patterns.refresh(topics, subscriptions);
        // Members in an order that stays when they come back.
        let members = self.members.iter();
        let named = members.map(|(slot, one)| (one.instance.as_ref().unwrap_or(&one.id), *slot));
        let mut named: Vec<_> = named.collect();
        named.sort_unstable();
        let slots: Vec<Slot> = named.into_iter().map(|(_, slot)| slot).collect();
        let (wanted, wishes) = self.wishes(&slots, context);
        let (demand, total) = self.demand(&slots, &wanted, wishes);
        let owners = assign(self.assignor, &demand);
        let pace = (total + slots.len()) / RETARGET_PER_MS;
        self.retarget_after_ms = context.now.mono_ms + RETARGET_MS + pace as u64;
        self.set_target(&slots, &demand, &wanted, &owners);
        for slot in slots {
            self.reconcile(slot, context);
        }
    }

    /// All topics that anybody wants, in order, and what each member wants of them.
    fn wishes<'a>(&self, slots: &[Slot], context: &Context<'a>) -> (Vec<&'a TopicView>, Vec<Wish>) {
        let topics = context.topics;
        // Most members have the same subscription: it is resolved once.
        let mut resolved: HashMap<&Subscription, Vec<TopicId>> = HashMap::new();
        for member in self.members.values() {
            let subscription = &*member.subscription;
            if !resolved.contains_key(subscription) {
                let ids = self.patterns.resolve(subscription, topics);
                resolved.insert(subscription, ids);
            }
        }
        let ids: BTreeSet<TopicId> = resolved.values().flatten().copied().collect();
        let wanted: Vec<&TopicView> = ids.iter().filter_map(|id| topics.get(*id)).collect();
        let numbers: HashMap<TopicId, u32> = wanted.iter().map(|one| one.id).zip(0..).collect();
        let numbered: HashMap<&Subscription, Rc<[u32]>> = resolved
            .iter()
            .map(|(subscription, ids)| {
                let ids = ids.iter().filter_map(|id| numbers.get(id).copied());
                (*subscription, ids.collect())
            })
            .collect();
        let wishes = slots
            .iter()
            .filter_map(|slot| self.members.get(slot))
            .map(|member| Wish {
                topics: numbered
                    .get(&*member.subscription)
                    .map_or_else(|| Rc::from([]), Rc::clone),
                rack: topics.known_rack(&member.rack),
            })
            .collect();
        (wanted, wishes)
    }

    fn demand<'a>(
        &self,
        slots: &[Slot],
        wanted: &[&'a TopicView],
        members: Vec<Wish>,
    ) -> (Demand<'a>, usize) {
        let places: HashMap<Slot, u32> = slots.iter().copied().zip(0..).collect();
        let mut topics = Vec::with_capacity(wanted.len());
        let mut held = Vec::new();
        for topic in wanted {
            topics.push(TopicOf {
                racks: &topic.racks,
                base: held.len() as u32,
            });
            let holders = self.holders.get(&topic.id);
            for number in 0..topic.partitions() {
                let holder = holders.and_then(|holders| holders.get(number));
                let place = holder.and_then(|holder| places.get(&holder.slot));
                held.push(place.copied().unwrap_or(NONE));
            }
        }
        let total = held.len();
        let demand = Demand {
            members,
            topics,
            held,
        };
        (demand, total)
    }

    fn set_target(
        &mut self,
        slots: &[Slot],
        demand: &Demand<'_>,
        wanted: &[&TopicView],
        owners: &[u32],
    ) {
        for member in self.members.values_mut() {
            member.target = Parts::default();
            member.targeted = true;
        }
        self.targets.clear();
        for (topic, view) in demand.topics.iter().zip(wanted) {
            let owners = &owners[topic.base as usize..topic.base as usize + view.partitions()];
            let mut targets = Vec::with_capacity(owners.len());
            for (partition, owner) in (0..).zip(owners) {
                let slot = slots.get(*owner as usize).copied().unwrap_or(NONE);
                targets.push(slot);
                if let Some(member) = self.members.get_mut(&slot) {
                    let topic = view.id;
                    member.target.insert(Tp { topic, partition });
                }
            }
            self.targets.insert(view.id, targets);
        }
    }

    /// Tells a member what it may hold, if that is news and it can be told.
    pub(super) fn reconcile(&mut self, slot: Slot, context: &mut Context<'_>) {
        let Some(member) = self.members.get(&slot) else {
            return;
        };
        let Some(link) = member.link else { return };
        if member.under_way.is_some() || !member.targeted {
            return;
        }
        let mut told = member.held.and(&member.target);
        let revokes = told.len() < member.held.len();
        let grants = member.target.filter(|tp| self.holder(tp).is_none());
        if !member.untold && !revokes && grants.is_empty() {
            return;
        }
        let moves = revokes || !grants.is_empty();
        if moves {
            self.epoch += 1;
        }
        told.add(&grants);
        let group_epoch = self.epoch;
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        if moves {
            member.epoch = group_epoch;
            context.out.records.push(Record::Grant {
                group: Arc::clone(&self.id),
                member: Arc::clone(&member.id),
                epoch: group_epoch,
                added: grants.clone(),
                removed: Parts::default(),
            });
        }
        member.held.add(&grants);
        member.untold = false;
        let idle = std::mem::take(&mut member.idle);
        let until_ms = context
            .now
            .mono_ms
            .saturating_add(member.rebalance_ms as u64);
        let epoch = member.epoch;
        member.under_way = Some(UnderWay {
            epoch,
            told: told.clone(),
            until_ms,
        });
        for tp in grants.iter() {
            self.set_holder(tp, Holder { slot, epoch });
        }
        let new = if idle { &told } else { &grants };
        let starts = new.iter().map(|tp| Start {
            tp,
            committed: self
                .offset(tp)
                .map(|committed| (committed.offset, committed.leader_epoch)),
        });
        let message = Message::Assignment {
            epoch,
            starts: starts.collect(),
            parts: told,
        };
        context.out.tell(link, message);
        self.set_timer(slot, context);
    }

    /// A member has applied an assignment: what that did not name is free.
    pub(super) fn applied(&mut self, slot: Slot, epoch: i64, context: &mut Context<'_>) {
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        // An older epoch is of an assignment before; the one that counts is still on its way.
        let Some(under_way) = member.under_way.take_if(|one| one.epoch == epoch) else {
            return;
        };
        let released = member.held.minus(&under_way.told);
        self.release(slot, &released, context);
        self.reconcile(slot, context);
    }

    /// Frees what a member let go, and gives it to whoever should have it.
    pub(super) fn release(&mut self, slot: Slot, parts: &Parts, context: &mut Context<'_>) {
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        if parts.is_empty() {
            return;
        }
        member.held.subtract(parts);
        context.out.records.push(Record::Grant {
            group: Arc::clone(&self.id),
            member: Arc::clone(&member.id),
            epoch: member.epoch,
            added: Parts::default(),
            removed: parts.clone(),
        });
        let mut heirs = BTreeSet::new();
        for tp in parts.iter() {
            self.free(tp);
            heirs.extend(self.should_hold(tp));
        }
        heirs.remove(&slot);
        for heir in heirs {
            self.reconcile(heir, context);
        }
    }

    /// A topic was deleted: nobody has to release it, and nothing of it is remembered.
    pub(super) fn drop_topic(&mut self, topic: TopicId, context: &mut Context<'_>) {
        let group = Arc::clone(&self.id);
        if self.forget_offset(topic, None) {
            context.out.records.push(Record::OffsetGone {
                group: Arc::clone(&group),
                topic,
                partition: None,
            });
        }
        self.targets.remove(&topic);
        if self.holders.remove(&topic).is_none() {
            return;
        }
        for member in self.members.values_mut() {
            member.target.remove_topic(topic);
            let removed = member.held.filter(|tp| tp.topic == topic);
            if removed.is_empty() {
                continue;
            }
            member.held.remove_topic(topic);
            member.untold = true;
            if let Some(under_way) = &mut member.under_way {
                under_way.told.remove_topic(topic);
            }
            context.out.records.push(Record::Grant {
                group: Arc::clone(&group),
                member: Arc::clone(&member.id),
                epoch: member.epoch,
                added: Parts::default(),
                removed,
            });
        }
    }
}
