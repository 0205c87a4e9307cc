//! Who comes, stays and goes.

use std::sync::Arc;

use super::api::{Join, Link, Message, Now};
use super::group::{Group, Holder, Member, Slot};
use super::{Context, Groups};
use crate::groups::assign::Assignor;
use crate::groups::error::Error;
use crate::groups::limits::{
    ID_LEN_MAX, POLL_MS, REBALANCE_MS, SESSION_MS, Settings, TEXT_LEN_MAX,
};
use crate::groups::parts::Parts;
use crate::groups::record::{MemberRecord, Record};
use crate::groups::subscription::Subscription;
use crate::groups::topics::Topics;

/// # Errors
/// An id that is empty, too long, or has characters that no terminal should get.
pub(crate) fn check_id(field: &'static str, id: &str) -> Result<(), Error> {
    if id.is_empty() || id.len() > ID_LEN_MAX || id.chars().any(char::is_control) {
        let why = format!("{field} has 1 to {ID_LEN_MAX} bytes and no control characters");
        return Err(Error::invalid(field, why));
    }
    Ok(())
}

/// # Errors
/// As [`check_id`], of a group's id.
pub(crate) fn check_group_id(id: &str) -> Result<(), Error> {
    check_id("group_id", id)
}

fn check_text(field: &'static str, text: &str) -> Result<(), Error> {
    if text.len() > TEXT_LEN_MAX || text.chars().any(char::is_control) {
        let why = format!("{field} has at most {TEXT_LEN_MAX} bytes and no control characters");
        return Err(Error::invalid(field, why));
    }
    Ok(())
}

fn check_range(
    field: &'static str,
    asked: i64,
    default: i64,
    allowed: &std::ops::RangeInclusive<i64>,
) -> Result<i64, Error> {
    let value = if asked == 0 { default } else { asked };
    if !allowed.contains(&value) {
        let (low, high) = (allowed.start(), allowed.end());
        let why = format!("{field} is {value}, allowed are {low} to {high}");
        return Err(Error::invalid(field, why));
    }
    Ok(value)
}

/// What a join asks for, checked, as the record of the member it makes.
fn checked(join: &Join, settings: &Settings) -> Result<MemberRecord, Error> {
    check_id("group_id", &join.group)?;
    if let Some(instance) = &join.instance {
        check_id("instance_id", instance)?;
    }
    check_text("client_id", &join.client_id)?;
    check_text("rack", &join.rack)?;
    let session = settings.session_timeout_ms;
    let rebalance = settings.rebalance_timeout_ms;
    let poll = settings.max_poll_interval_ms;
    Ok(MemberRecord {
        id: Arc::clone(&join.new_id),
        instance: join.instance.clone(),
        client_id: Arc::clone(&join.client_id),
        rack: Arc::clone(&join.rack),
        topics: Vec::new(),
        pattern: None,
        session_ms: check_range("session_timeout_ms", join.session_ms, session, &SESSION_MS)?,
        rebalance_ms: check_range(
            "rebalance_timeout_ms",
            join.rebalance_ms,
            rebalance,
            &REBALANCE_MS,
        )?,
        poll_ms: check_range("max_poll_interval_ms", join.poll_ms, poll, &POLL_MS)?,
        epoch: 0,
    })
}

/// Topics that a new member names must be there; those that may come later have patterns.
fn check_topics(subscription: &Subscription, topics: &Topics) -> Result<(), Error> {
    for name in &subscription.topics {
        match topics.named(name) {
            None => return Err(Error::UnknownTopicNamed(name.to_string())),
            Some(topic) if topic.internal => {
                let why = format!("`{name}` is internal: the broker keeps it for itself");
                return Err(Error::invalid("subscription.topics", why));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

impl Groups {
    pub(super) fn join(&mut self, now: Now, link: Link, join: Join) -> Result<(), Error> {
        let record = checked(&join, &self.settings)?;
        let id = Arc::clone(&join.group);
        let new = !self.groups.contains_key(&id);
        if new {
            if join.returning.is_some() {
                return Err(Error::Fenced("the group is not there any more"));
            }
            self.create(&id)?;
        }
        let joined = self.with(now, &id, |group, context| {
            group.join(link, join, record, context)
        })?;
        if new && joined.is_err() {
            self.groups.remove(&id);
        }
        joined
    }

    /// Makes a group that is not there. Whoever does this writes its record.
    pub(super) fn create(&mut self, id: &Arc<str>) -> Result<(), Error> {
        let limit = self.settings.groups_max;
        if self.groups.len() >= limit {
            let what = "the coordinator's number of groups";
            return Err(Error::Full { what, limit });
        }
        self.groups
            .insert(Arc::clone(id), Group::new(Arc::clone(id)));
        Ok(())
    }
}

fn full_of_members(settings: &Settings) -> Error {
    Error::Full {
        what: "the group's number of members",
        limit: settings.members_max,
    }
}

impl Group {
    fn join(
        &mut self,
        link: Link,
        join: Join,
        record: MemberRecord,
        context: &mut Context<'_>,
    ) -> Result<(), Error> {
        self.patterns.admit(&join.subscription)?;
        if let Some((id, epoch)) = &join.returning {
            let slot = self.returning(id, *epoch, &join)?;
            self.check_assignor(join.assignor)?;
            return self.come_back(slot, link, join, record, context);
        }
        let instance = join.instance.as_ref();
        let replaced = instance.and_then(|instance| self.instances.get(instance).copied());
        if self.members.len() > usize::from(replaced.is_some()) {
            self.check_assignor(join.assignor)?;
        }
        check_topics(&join.subscription, context.topics)?;
        if replaced.is_none() && self.members.len() >= context.settings.members_max {
            return Err(full_of_members(context.settings));
        }
        let assignor = join.assignor.unwrap_or(self.assignor);
        let changed = self.members.is_empty() || assignor != self.assignor;
        self.assignor = assignor;
        self.epoch += 1;
        if changed {
            self.empty_since_ms = None;
            context.out.records.push(self.record());
        }
        let mut member = Member::of(record);
        member.epoch = self.epoch;
        member.subscription = Arc::new(join.subscription);
        member.address = join.address;
        member.heard_at_ms = context.now.mono_ms;
        member.link = Some(link);
        let slot = match replaced {
            Some(slot) => {
                self.replace(slot, member, context);
                slot
            }
            None => {
                let member_record = Box::new(member.record());
                context.out.records.push(Record::Member {
                    group: Arc::clone(&self.id),
                    member: member_record,
                });
                self.insert_member(member)
            }
        };
        context.links.insert(link, (Arc::clone(&self.id), slot));
        self.welcome(slot, context);
        self.set_timer(slot, context);
        self.retarget(context);
        self.reconcile(slot, context);
        Ok(())
    }

    fn check_assignor(&self, asked: Option<Assignor>) -> Result<(), Error> {
        match asked {
            Some(asked) if asked != self.assignor => {
                Err(Error::InconsistentAssignor(self.assignor.name()))
            }
            _ => Ok(()),
        }
    }

    fn returning(&self, id: &Arc<str>, epoch: i64, join: &Join) -> Result<Slot, Error> {
        let slot = self.by_id.get(id).copied();
        let Some((slot, member)) = slot.and_then(|slot| Some((slot, self.members.get(&slot)?)))
        else {
            let taken = join.instance.as_ref();
            return Err(
                match taken.is_some_and(|instance| self.instances.contains_key(instance)) {
                    true => Error::InstanceFenced,
                    false => Error::Fenced("its session ran out, or it left"),
                },
            );
        };
        if epoch > member.epoch {
            return Err(Error::Fenced("it has an epoch that it was never given"));
        }
        if member.ousted {
            return Err(Error::Fenced("it did not release partitions in time"));
        }
        if member.instance != join.instance {
            let why = "a member that comes back keeps its instance id";
            return Err(Error::invalid("instance_id", why));
        }
        Ok(slot)
    }

    /// A member comes back on another stream, here or from another coordinator.
    fn come_back(
        &mut self,
        slot: Slot,
        link: Link,
        join: Join,
        mut record: MemberRecord,
        context: &mut Context<'_>,
    ) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&slot) else {
            return Err(Error::Fenced("it left"));
        };
        if let Some(old) = member.link.replace(link) {
            context.links.remove(&old);
            let why = Error::Fenced("it came back on another stream");
            context.out.tell(old, Message::End(why));
        }
        let before = member.record();
        record.id = Arc::clone(&member.id);
        let changed = *member.subscription != join.subscription || member.rack != record.rack;
        member.update(record);
        member.subscription = Arc::new(join.subscription);
        member.address = join.address;
        member.heard_at_ms = context.now.mono_ms;
        member.under_way = None;
        member.untold = true;
        // What it was told on the stream that broke and does not name was never applied, and will not be.
        let unknown = member.held.minus(&join.owned);
        let after = member.record();
        if after != before {
            context.out.records.push(Record::Member {
                group: Arc::clone(&self.id),
                member: Box::new(after),
            });
        }
        context.links.insert(link, (Arc::clone(&self.id), slot));
        self.welcome(slot, context);
        self.set_timer(slot, context);
        if changed {
            self.retarget(context);
        }
        self.release(slot, &unknown, context);
        self.reconcile(slot, context);
        Ok(())
    }

    /// A static member takes the place of another, with all that it held, at a new epoch: what the old one still commits is refused.
    fn replace(&mut self, slot: Slot, mut member: Member, context: &mut Context<'_>) {
        let Some(old) = self.take_member(slot) else {
            return;
        };
        if let Some(link) = old.link {
            context.links.remove(&link);
            context.out.tell(link, Message::End(Error::InstanceFenced));
        }
        let group = Arc::clone(&self.id);
        context.out.records.push(Record::MemberGone {
            group: Arc::clone(&group),
            member: old.id,
        });
        context.out.records.push(Record::Member {
            group: Arc::clone(&group),
            member: Box::new(member.record()),
        });
        if !old.held.is_empty() {
            context.out.records.push(Record::Grant {
                group,
                member: Arc::clone(&member.id),
                epoch: member.epoch,
                added: old.held.clone(),
                removed: Parts::default(),
            });
        }
        for tp in old.held.iter() {
            let epoch = member.epoch;
            self.set_holder(tp, Holder { slot, epoch });
        }
        member.held = old.held;
        member.target = old.target;
        member.targeted = old.targeted;
        member.idle = true;
        // Its timer may be about to ring for the old one: that finds the new one.
        member.timer_ms = old.timer_ms;
        self.put_member(slot, member);
    }

    fn welcome(&self, slot: Slot, context: &mut Context<'_>) {
        let Some(member) = self.members.get(&slot) else {
            return;
        };
        if let Some(link) = member.link {
            let message = Message::Welcome {
                member: Arc::clone(&member.id),
                assignor: self.assignor,
                session_ms: member.session_ms,
                rebalance_ms: member.rebalance_ms,
                poll_ms: member.poll_ms,
            };
            context.out.tell(link, message);
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        slot: Slot,
        applied: Option<i64>,
        since_poll_ms: i64,
        context: &mut Context<'_>,
    ) {
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        if since_poll_ms > member.poll_ms {
            let why = Error::PollTimeout {
                since_ms: since_poll_ms,
                max_ms: member.poll_ms,
            };
            return self.put_out(slot, why, context);
        }
        member.heard_at_ms = context.now.mono_ms;
        if let Some(link) = member.link {
            context.out.tell(link, Message::Beat);
        }
        if let Some(epoch) = applied {
            self.applied(slot, epoch, context);
        }
    }

    pub(super) fn subscribe(
        &mut self,
        slot: Slot,
        subscription: Subscription,
        context: &mut Context<'_>,
    ) {
        let admitted = self.patterns.admit(&subscription);
        let admitted = admitted.and_then(|()| check_topics(&subscription, context.topics));
        if let Err(why) = admitted {
            return self.put_out(slot, why, context);
        }
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        member.heard_at_ms = context.now.mono_ms;
        if *member.subscription != subscription {
            member.subscription = Arc::new(subscription);
            context.out.records.push(Record::Member {
                group: Arc::clone(&self.id),
                member: Box::new(member.record()),
            });
            self.retarget(context);
        }
    }

    pub(super) fn leave(&mut self, slot: Slot, will_return: bool, context: &mut Context<'_>) {
        let Some(member) = self.members.get(&slot) else {
            return;
        };
        if let Some(link) = member.link {
            context.out.tell(link, Message::Left);
        }
        if will_return && member.instance.is_some() {
            return self.unlink(slot, context);
        }
        self.remove(slot, context);
    }

    /// The member's stream is gone; the member has the rest of its session to come back.
    pub(super) fn unlink(&mut self, slot: Slot, context: &mut Context<'_>) {
        if let Some(member) = self.members.get_mut(&slot)
            && let Some(link) = member.link.take()
        {
            context.links.remove(&link);
        }
    }

    fn put_out(&mut self, slot: Slot, why: Error, context: &mut Context<'_>) {
        let link = self.members.get(&slot).and_then(|member| member.link);
        if let Some(link) = link {
            context.out.tell(link, Message::End(why));
        }
        self.remove(slot, context);
    }

    /// A member is no member any more: what it held is free.
    fn remove(&mut self, slot: Slot, context: &mut Context<'_>) {
        let Some(member) = self.take_member(slot) else {
            return;
        };
        if let Some(link) = member.link {
            context.links.remove(&link);
        }
        for tp in member.held.iter() {
            self.free(tp);
        }
        context.out.records.push(Record::MemberGone {
            group: Arc::clone(&self.id),
            member: member.id,
        });
        if self.members.is_empty() {
            self.empty_since_ms = Some(context.now.wall_ms);
            self.targets.clear();
            self.holders.clear();
            context.out.records.push(self.record());
        }
        self.retarget(context);
    }

    /// A member's timer rings.
    pub(super) fn ring(&mut self, slot: Slot, context: &mut Context<'_>) {
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        let now = context.now.mono_ms;
        if member.timer_ms.is_some_and(|timer| timer > now) {
            // Another entry stands for what is due later.
            return;
        }
        member.timer_ms = None;
        if member.deadline_ms() > now {
            return self.set_timer(slot, context);
        }
        let heard_until = member.heard_at_ms.saturating_add(member.session_ms as u64);
        if heard_until <= now {
            return self.put_out(slot, Error::Fenced("its session ran out"), context);
        }
        // It is told, but may not hear of it before the session ends that its last heartbeat began: until then it may read.
        member.ousted = true;
        member.under_way = None;
        if let Some(link) = member.link {
            let why = "it did not release partitions within its rebalance timeout";
            context.out.tell(link, Message::End(Error::Fenced(why)));
        }
        self.unlink(slot, context);
        self.set_timer(slot, context);
    }
}
