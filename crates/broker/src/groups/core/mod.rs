//! The core of a coordinator: all groups of one partition of the groups' log, and what happens to them.
//!
//! Sans-I/O: inputs and the time come in, records and effects go out ([`api`]). An input is applied at once; whoever drives the core holds
//! each effect back until all records that came out before it and with it are committed, and throws the core away when they are not.
//!
//! - `group`: the state. `membership`: who comes and goes. `reconcile`: from target to what is held. `offsets`: commits.
//!   `describe`: views. `replay`: from records to state and back. `timers`: when something is due.
//!
//! **Invariants.** A partition has one holder, and a member is told of a partition only when a record says that it holds it. A commit lowers no
//! offset unless its item says so (INV-9). Epochs of a group only rise.
//!
//! It knows no wire format and no log: only `std` and `regex`.

pub(crate) mod api;
mod describe;
mod group;
mod membership;
mod offsets;
mod reconcile;
mod replay;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use self::api::{Answer, Input, Link, Now, Output};
use self::group::{Group, Slot};
use self::timers::Timers;
use super::error::Error;
use super::limits::{EXPIRY_EVERY_MS, Settings};
use super::record::Record;
use super::topics::Topics;

pub(crate) use membership::check_group_id;
pub(crate) use replay::Replay;

/// All groups of one coordinator.
#[derive(Debug)]
pub(crate) struct Groups {
    settings: Arc<Settings>,
    topics: Arc<Topics>,
    groups: HashMap<Arc<str>, Group>,
    /// Which member a connection is of.
    links: HashMap<Link, (Arc<str>, Slot)>,
    timers: Timers,
    /// Groups whose target is due.
    due: BTreeSet<(u64, Arc<str>)>,
    /// When offsets are looked at for their age.
    expiry_at_ms: u64,
    /// The highest revision that a record names.
    revision: u64,
    out: Output,
}

/// What a group needs of its coordinator.
struct Context<'a> {
    now: Now,
    settings: &'a Settings,
    topics: &'a Topics,
    links: &'a mut HashMap<Link, (Arc<str>, Slot)>,
    timers: &'a mut Timers,
    due: &'a mut BTreeSet<(u64, Arc<str>)>,
    out: &'a mut Output,
}

impl Groups {
    pub(crate) fn new(settings: Arc<Settings>, topics: Arc<Topics>) -> Groups {
        Groups {
            settings,
            topics,
            groups: HashMap::new(),
            links: HashMap::new(),
            timers: Timers::default(),
            due: BTreeSet::new(),
            expiry_at_ms: 0,
            revision: 0,
            out: Output::default(),
        }
    }

    /// A group with all that it needs, borrowed apart.
    fn with<R>(
        &mut self,
        now: Now,
        id: &str,
        work: impl FnOnce(&mut Group, &mut Context<'_>) -> R,
    ) -> Result<R, Error> {
        let Some(group) = self.groups.get_mut(id) else {
            return Err(Error::UnknownGroup(id.to_owned()));
        };
        let mut context = Context {
            now,
            settings: &self.settings,
            topics: &self.topics,
            links: &mut self.links,
            timers: &mut self.timers,
            due: &mut self.due,
            out: &mut self.out,
        };
        Ok(work(group, &mut context))
    }

    /// As [`Groups::with`], of the member that a connection is of; nothing if it is of none any more.
    fn with_link(
        &mut self,
        now: Now,
        link: Link,
        work: impl FnOnce(&mut Group, Slot, &mut Context<'_>),
    ) {
        if let Some((id, slot)) = self.links.get(&link).cloned() {
            let _ = self.with(now, &id, |group, context| work(group, slot, context));
        }
    }

    /// Applies one input.
    pub(crate) fn input(&mut self, now: Now, input: Input) {
        match input {
            Input::Join { link, join } => {
                if let Err(error) = self.join(now, link, *join) {
                    self.out.tell(link, api::Message::End(error));
                }
            }
            Input::Heartbeat {
                link,
                applied,
                since_poll_ms,
            } => self.with_link(now, link, |group, slot, context| {
                group.heartbeat(slot, applied, since_poll_ms, context);
            }),
            Input::Subscribe { link, subscription } => {
                self.with_link(now, link, |group, slot, context| {
                    group.subscribe(slot, subscription, context);
                });
            }
            Input::Leave { link, will_return } => {
                self.with_link(now, link, |group, slot, context| {
                    group.leave(slot, will_return, context);
                });
            }
            Input::Broken { link } => {
                self.with_link(now, link, |group, slot, context| {
                    group.unlink(slot, context);
                });
            }
            Input::Topics(topics) => self.set_topics(now, topics),
            Input::List { call, prefix } => {
                let answer = Answer::Groups(self.list(&prefix));
                self.out.answer(call, answer);
            }
            Input::Commit {
                call,
                group,
                member,
                items,
            } => {
                let result = self.commit(now, &group, member, items);
                self.answer(call, result);
            }
            Input::Fetch { call, group, which } => {
                let result = self.fetch(&group, &which);
                self.out.mark = true;
                self.answer(call, result);
            }
            Input::Reset {
                call,
                group,
                offsets,
            } => {
                let result = self.reset(now, &group, offsets);
                self.answer(call, result);
            }
            Input::DeleteOffsets { call, group, which } => {
                let result = self.delete_offsets(now, &group, &which);
                self.answer(call, result);
            }
            Input::DeleteGroup { call, group } => {
                let result = self.delete_group(&group);
                self.answer(call, result);
            }
            Input::Describe { call, group } => {
                let result = self.describe(&group);
                self.answer(call, result);
            }
        }
    }

    fn answer(&mut self, call: api::Call, result: Result<Answer, Error>) {
        self.out.answer(call, result.unwrap_or_else(Answer::Failed));
    }

    /// Does what is due: targets, timeouts, old offsets. After every burst of inputs, and at [`Groups::deadline_ms`].
    pub(crate) fn tick(&mut self, now: Now) {
        while let Some((id, slot)) = self.timers.pop(now.mono_ms) {
            let _ = self.with(now, &id, |group, context| group.ring(slot, context));
        }
        while let Some((at, id)) = self.due.first() {
            if *at > now.mono_ms {
                break;
            }
            let id = Arc::clone(id);
            self.due.pop_first();
            let revision = self.topics.revision;
            let made = self.with(now, &id, |group, context| group.make_target(context));
            if made.is_ok() && revision > self.revision {
                self.revision = revision;
                self.out.records.push(Record::Revision(revision));
            }
        }
        if now.mono_ms >= self.expiry_at_ms {
            self.expiry_at_ms = now.mono_ms + EXPIRY_EVERY_MS;
            self.expire(now);
        }
    }

    /// The coordinator itself stood still for a while, and what members said meanwhile waits unheard: everybody has a full session.
    pub(crate) fn forgive(&mut self, now: Now) {
        let members = self.groups.values_mut();
        let members = members.flat_map(|group| group.members.values_mut());
        for member in members.filter(|member| !member.ousted) {
            member.heard_at_ms = now.mono_ms;
            if let Some(under_way) = &mut member.under_way {
                under_way.until_ms = now.mono_ms.saturating_add(member.rebalance_ms as u64);
            }
        }
    }

    /// When [`Groups::tick`] has something to do next, if nothing else happens.
    pub(crate) fn deadline_ms(&self) -> u64 {
        let due = self.due.first().map(|(at, _)| *at);
        let timer = self.timers.next_ms();
        let all = [due, timer].into_iter().flatten();
        all.min().unwrap_or(u64::MAX).min(self.expiry_at_ms)
    }

    /// What has come out since the last time.
    pub(crate) fn take_output(&mut self) -> Output {
        let mut output = std::mem::take(&mut self.out);
        if output.mark && output.records.is_empty() {
            output.records.push(Record::Mark);
        }
        output
    }

    /// Groups that are there.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    fn set_topics(&mut self, now: Now, topics: Arc<Topics>) {
        let before = std::mem::replace(&mut self.topics, topics);
        let deleted: Vec<_> = before
            .all()
            .map(|topic| topic.id)
            .filter(|id| self.topics.get(*id).is_none())
            .collect();
        let ids: Vec<Arc<str>> = self.groups.keys().cloned().collect();
        for id in ids {
            let _ = self.with(now, &id, |group, context| {
                for topic in &deleted {
                    group.drop_topic(*topic, context);
                }
                group.retarget(context);
            });
        }
    }
}
