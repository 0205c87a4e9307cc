//! One group: its members, who holds what, what it committed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Context;
use super::api::{Link, State};
use crate::groups::assign::{Assignor, NONE};
use crate::groups::parts::{Parts, TopicId, Tp};
use crate::groups::record::{Committed, MemberRecord, Record};
use crate::groups::subscription::{Patterns, Subscription};

/// A member's number within its group. Not reused, but by a static member for the one whose place it takes.
pub(super) type Slot = u32;

/// Who holds a partition, and since which epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) slot: Slot,
    pub(super) epoch: i64,
}

const NOBODY: Holder = Holder {
    slot: NONE,
    epoch: 0,
};

/// An assignment that the member has not acknowledged.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) epoch: i64,
    pub(super) told: Parts,
    /// When the member must have acknowledged it, if it must.
    pub(super) until_ms: u64,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: Arc<str>,
    pub(super) instance: Option<Arc<str>>,
    pub(super) client_id: Arc<str>,
    pub(super) rack: Arc<str>,
    pub(super) subscription: Arc<Subscription>,
    pub(super) session_ms: i64,
    pub(super) rebalance_ms: i64,
    pub(super) poll_ms: i64,
    /// Of its last assignment.
    pub(super) epoch: i64,
    /// What it may hold, as far as it was ever told and did not release.
    pub(super) held: Parts,
    /// What it should hold.
    pub(super) target: Parts,
    /// A target was made since it came.
    pub(super) targeted: bool,
    // From here on: not kept.
    pub(super) address: Arc<str>,
    pub(super) link: Option<Link>,
    pub(super) heard_at_ms: u64,
    pub(super) under_way: Option<UnderWay>,
    /// It is to be told what it holds, even if that is what it held.
    pub(super) untold: bool,
    /// It reads nothing yet of what it holds.
    pub(super) idle: bool,
    /// It was told that it is put out. It may not have heard: what it holds is free when its session is over.
    pub(super) ousted: bool,
    /// When its timer rings.
    pub(super) timer_ms: Option<u64>,
}

impl Member {
    pub(super) fn of(record: MemberRecord) -> Member {
        Member {
            id: record.id,
            instance: record.instance,
            client_id: record.client_id,
            rack: record.rack,
            subscription: Arc::new(Subscription::trusted(record.topics, record.pattern)),
            session_ms: record.session_ms,
            rebalance_ms: record.rebalance_ms,
            poll_ms: record.poll_ms,
            epoch: record.epoch,
            held: Parts::default(),
            target: Parts::default(),
            targeted: false,
            address: Arc::from(""),
            link: None,
            heard_at_ms: 0,
            under_way: None,
            untold: true,
            idle: false,
            ousted: false,
            timer_ms: None,
        }
    }

    pub(super) fn record(&self) -> MemberRecord {
        let topics = self.subscription.topics.iter();
        let pattern = self.subscription.pattern.as_deref();
        MemberRecord {
            id: Arc::clone(&self.id),
            instance: self.instance.clone(),
            client_id: Arc::clone(&self.client_id),
            rack: Arc::clone(&self.rack),
            topics: topics.map(|name| name.to_string()).collect(),
            pattern: pattern.map(str::to_owned),
            session_ms: self.session_ms,
            rebalance_ms: self.rebalance_ms,
            poll_ms: self.poll_ms,
            epoch: self.epoch,
        }
    }

    /// Takes what a record of it says, and keeps what it holds.
    pub(super) fn update(&mut self, record: MemberRecord) {
        let epoch = self.epoch.max(record.epoch);
        let new = Member::of(record);
        self.instance = new.instance;
        self.client_id = new.client_id;
        self.rack = new.rack;
        self.subscription = new.subscription;
        self.session_ms = new.session_ms;
        self.rebalance_ms = new.rebalance_ms;
        self.poll_ms = new.poll_ms;
        self.epoch = epoch;
    }

    /// When it is put out, if it says nothing until then.
    pub(super) fn deadline_ms(&self) -> u64 {
        let session = self.heard_at_ms.saturating_add(self.session_ms as u64);
        let under_way = self.under_way.as_ref();
        under_way.map_or(session, |under_way| session.min(under_way.until_ms))
    }
}

/// One group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: Arc<str>,
    /// Counts changes; the source of members' epochs.
    pub(super) epoch: i64,
    pub(super) assignor: Assignor,
    /// Since when it has no members, ms since the epoch.
    pub(super) empty_since_ms: Option<i64>,
    pub(super) members: BTreeMap<Slot, Member>,
    pub(super) by_id: HashMap<Arc<str>, Slot>,
    pub(super) instances: HashMap<Arc<str>, Slot>,
    pub(super) next_slot: Slot,
    /// For each topic, by partition.
    pub(super) holders: HashMap<TopicId, Vec<Holder>>,
    /// Who should hold it, likewise.
    pub(super) targets: HashMap<TopicId, Vec<Slot>>,
    pub(super) patterns: Patterns,
    pub(super) offsets: BTreeMap<TopicId, BTreeMap<u32, Committed>>,
    pub(super) offset_count: usize,
    /// A new target is due.
    pub(super) retarget_at_ms: Option<u64>,
    /// The next one is not made before.
    pub(super) retarget_after_ms: u64,
}

impl Group {
    pub(super) fn new(id: Arc<str>) -> Group {
        Group {
            id,
            epoch: 0,
            assignor: Assignor::default(),
            empty_since_ms: None,
            members: BTreeMap::new(),
            by_id: HashMap::new(),
            instances: HashMap::new(),
            next_slot: 0,
            holders: HashMap::new(),
            targets: HashMap::new(),
            patterns: Patterns::default(),
            offsets: BTreeMap::new(),
            offset_count: 0,
            retarget_at_ms: None,
            retarget_after_ms: 0,
        }
    }

    pub(super) fn record(&self) -> Record {
        Record::Group {
            group: Arc::clone(&self.id),
            epoch: self.epoch,
            assignor: self.assignor,
            empty_since_ms: self.empty_since_ms,
        }
    }

    pub(super) fn insert_member(&mut self, member: Member) -> Slot {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.put_member(slot, member);
        slot
    }

    pub(super) fn put_member(&mut self, slot: Slot, member: Member) {
        self.by_id.insert(Arc::clone(&member.id), slot);
        if let Some(instance) = &member.instance {
            self.instances.insert(Arc::clone(instance), slot);
        }
        self.members.insert(slot, member);
    }

    pub(super) fn take_member(&mut self, slot: Slot) -> Option<Member> {
        let member = self.members.remove(&slot)?;
        self.by_id.remove(&member.id);
        if let Some(instance) = &member.instance {
            self.instances.remove(instance);
        }
        Some(member)
    }

    pub(super) fn holder(&self, tp: Tp) -> Option<Holder> {
        let holders = self.holders.get(&tp.topic)?;
        let holder = holders.get(tp.partition as usize)?;
        (holder.slot != NONE).then_some(*holder)
    }

    pub(super) fn set_holder(&mut self, tp: Tp, holder: Holder) {
        let holders = self.holders.entry(tp.topic).or_default();
        let at = tp.partition as usize;
        if holders.len() <= at {
            holders.resize(at + 1, NOBODY);
        }
        holders[at] = holder;
    }

    pub(super) fn free(&mut self, tp: Tp) {
        if let Some(holders) = self.holders.get_mut(&tp.topic)
            && let Some(holder) = holders.get_mut(tp.partition as usize)
        {
            *holder = NOBODY;
        }
    }

    pub(super) fn should_hold(&self, tp: Tp) -> Option<Slot> {
        let targets = self.targets.get(&tp.topic)?;
        let slot = *targets.get(tp.partition as usize)?;
        (slot != NONE).then_some(slot)
    }

    pub(super) fn set_offset(&mut self, tp: Tp, committed: Committed) {
        let topic = self.offsets.entry(tp.topic).or_default();
        if topic.insert(tp.partition, committed).is_none() {
            self.offset_count += 1;
        }
    }

    pub(super) fn offset(&self, tp: Tp) -> Option<&Committed> {
        self.offsets.get(&tp.topic)?.get(&tp.partition)
    }

    /// Whether there was something.
    pub(super) fn forget_offset(&mut self, topic: TopicId, partition: Option<u32>) -> bool {
        let Some(of_topic) = self.offsets.get_mut(&topic) else {
            return false;
        };
        let forgotten = match partition {
            Some(number) => usize::from(of_topic.remove(&number).is_some()),
            None => std::mem::take(of_topic).len(),
        };
        if of_topic.is_empty() {
            self.offsets.remove(&topic);
        }
        self.offset_count -= forgotten;
        forgotten > 0
    }

    pub(super) fn state(&self) -> State {
        if self.members.is_empty() {
            return State::Empty;
        }
        if self.retarget_at_ms.is_some() {
            return State::Assigning;
        }
        let settled = |member: &Member| member.under_way.is_none() && member.held == member.target;
        match self.members.values().all(settled) {
            true => State::Stable,
            false => State::Reconciling,
        }
    }

    /// Asks for a new target, soon.
    pub(super) fn retarget(&mut self, context: &mut Context<'_>) {
        if self.retarget_at_ms.is_none() && !self.members.is_empty() {
            let at = self.retarget_after_ms.max(context.now.mono_ms);
            self.retarget_at_ms = Some(at);
            context.due.insert((at, Arc::clone(&self.id)));
        }
    }

    /// Sets a member's timer, if it rings too late or not at all.
    pub(super) fn set_timer(&mut self, slot: Slot, context: &mut Context<'_>) {
        if let Some(member) = self.members.get_mut(&slot) {
            let deadline = member.deadline_ms();
            if member.timer_ms.is_none_or(|timer| timer > deadline) {
                member.timer_ms = Some(deadline);
                context.timers.push(deadline, &self.id, slot);
            }
        }
    }
}
