//! A coordinator that does what `docs/groups.md` says, at once and in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};

use super::super::core::{Down, Greeting, Tp, Welcome};
use super::tp;

pub(super) const SESSION: Duration = Duration::from_millis(900);
pub(super) const HEARTBEAT: Duration = Duration::from_millis(150);
pub(super) const REBALANCE: Duration = Duration::from_millis(1500);
pub(super) const PARTITIONS: i32 = 7;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) epoch: i64,
    pub(super) held: BTreeSet<Tp>,
    instance: Option<String>,
    heard_at: Instant,
    pub(super) link: Option<u64>,
    under_way: Option<UnderWay>,
    target: BTreeSet<Tp>,
    untold: bool,
    /// Took another's place, and was told of nothing yet.
    idle: bool,
    ousted: bool,
}

#[derive(Debug)]
struct UnderWay {
    epoch: i64,
    told: BTreeSet<Tp>,
    until: Instant,
}

/// What goes down, by stream.
pub(super) type Told = Vec<(u64, Down)>;

#[derive(Default)]
pub(super) struct Coordinator {
    pub(super) term: i64,
    epoch: i64,
    next_member: u64,
    pub(super) members: BTreeMap<String, Member>,
    /// Epoch of each grant.
    holders: BTreeMap<Tp, (String, i64)>,
    pub(super) committed: BTreeMap<Tp, i64>,
    pub(super) told: Told,
    /// Let go by an acknowledgement: member, and what.
    pub(super) acked: Vec<(String, Vec<Tp>)>,
}

fn failure(reason: Reason, why: &str) -> Down {
    Down::Failure(ApiError::new(reason, why))
}

impl Coordinator {
    fn member_of(&self, link: u64) -> Option<String> {
        let mut members = self.members.iter();
        let found = members.find(|(_, member)| member.link == Some(link))?;
        Some(found.0.clone())
    }

    pub(super) fn hello(
        &mut self,
        now: Instant,
        link: u64,
        greeting: &Greeting,
        instance: Option<&str>,
    ) {
        let id = match &greeting.member {
            Some((id, epoch)) => {
                let known = self.members.get_mut(id);
                let Some(member) = known.filter(|one| *epoch <= one.epoch && !one.ousted) else {
                    self.told
                        .push((link, failure(Reason::MemberFenced, "unknown")));
                    return;
                };
                member.link = Some(link);
                member.heard_at = now;
                member.under_way = None;
                member.untold = true;
                let owned: BTreeSet<Tp> = greeting.owned.iter().copied().collect();
                let unknown: Vec<Tp> = member.held.difference(&owned).copied().collect();
                self.release(&id.clone(), &unknown);
                id.clone()
            }
            None => {
                self.next_member += 1;
                self.epoch += 1;
                let id = format!("m{}", self.next_member);
                let mut member = Member {
                    epoch: self.epoch,
                    held: BTreeSet::new(),
                    instance: instance.map(str::to_owned),
                    heard_at: now,
                    link: Some(link),
                    under_way: None,
                    target: BTreeSet::new(),
                    untold: false,
                    idle: false,
                    ousted: false,
                };
                let same = |one: &Member| one.instance.is_some() && one.instance == member.instance;
                let replaced = self.members.iter().find(|(_, one)| same(one));
                if let Some(old) = replaced.map(|(id, _)| id.clone()) {
                    let old = self.members.remove(&old).unwrap();
                    if let Some(link) = old.link {
                        self.told
                            .push((link, failure(Reason::InstanceFenced, "replaced")));
                    }
                    member.held = old.held;
                    member.untold = true;
                    member.idle = true;
                    for tp in &member.held {
                        self.holders.insert(*tp, (id.clone(), self.epoch));
                    }
                }
                self.members.insert(id.clone(), member);
                id
            }
        };
        let welcome = Down::Welcome(Welcome {
            member: id,
            heartbeat: HEARTBEAT,
            session: SESSION,
            rebalance: REBALANCE,
        });
        self.told.push((link, welcome));
        self.retarget(now);
    }

    pub(super) fn heartbeat(&mut self, now: Instant, link: u64, applied: Option<i64>) {
        let Some(id) = self.member_of(link) else {
            return;
        };
        let member = self.members.get_mut(&id).unwrap();
        member.heard_at = now;
        self.told.push((link, Down::Beat));
        let acked = member.under_way.take_if(|one| Some(one.epoch) == applied);
        if let Some(under_way) = acked {
            let gone: Vec<Tp> = member.held.difference(&under_way.told).copied().collect();
            self.acked.push((id.clone(), gone.clone()));
            self.release(&id, &gone);
            self.reconcile(now);
        }
    }

    pub(super) fn leave(&mut self, now: Instant, link: u64) {
        if let Some(id) = self.member_of(link) {
            let held = self.members[&id].held.iter().copied().collect();
            self.acked.push((id.clone(), held));
            self.remove(now, &id);
        }
    }

    pub(super) fn broken(&mut self, link: u64) {
        if let Some(id) = self.member_of(link) {
            self.members.get_mut(&id).unwrap().link = None;
        }
    }

    /// Puts a member out for a reason of the test's.
    pub(super) fn put_out(&mut self, now: Instant, link: u64, reason: Reason) {
        if let Some(id) = self.member_of(link) {
            self.told.push((link, failure(reason, "the test wants it")));
            // It may read until it has heard that, or until its session is over.
            let member = self.members.get_mut(&id).unwrap();
            member.ousted = true;
            member.link = None;
            member.under_way = None;
            let _ = now;
        }
    }

    /// Another broker takes over: links are gone, everyone gets a full session.
    pub(super) fn fail_over(&mut self, now: Instant) {
        self.term += 1;
        self.told.clear();
        for member in self.members.values_mut() {
            member.link = None;
            member.under_way = None;
            member.heard_at = now;
        }
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        let due = |member: &Member| {
            let session = member.heard_at + SESSION;
            let ack = member.under_way.as_ref().map(|one| one.until);
            ack.map_or(session, |ack| ack.min(session))
        };
        self.members.values().map(due).min()
    }

    pub(super) fn tick(&mut self, now: Instant) {
        let gone = self.members.iter();
        let gone = gone.filter(|(_, member)| member.heard_at + SESSION <= now);
        let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            if let Some(link) = self.members[&id].link {
                self.told
                    .push((link, failure(Reason::MemberFenced, "silent")));
            }
            self.remove(now, &id);
        }
        for member in self.members.values_mut() {
            if member
                .under_way
                .as_ref()
                .is_some_and(|one| one.until <= now)
            {
                member.ousted = true;
                member.under_way = None;
                if let Some(link) = member.link.take() {
                    self.told
                        .push((link, failure(Reason::MemberFenced, "slow")));
                }
            }
        }
    }

    /// Whether the commit is taken.
    pub(super) fn commit(&mut self, member: &str, epoch: i64, tp: Tp, offset: i64) -> bool {
        let holder = self.holders.get(&tp);
        let taken = holder.is_some_and(|(id, granted)| id == member && *granted <= epoch);
        let known = self
            .members
            .get(member)
            .is_some_and(|one| epoch <= one.epoch);
        if !taken || !known {
            return false;
        }
        let before = self.committed.entry(tp).or_insert(offset);
        assert!(
            *before <= offset,
            "a commit goes back: {tp:?} from {before} to {offset}"
        );
        *before = offset;
        true
    }

    fn release(&mut self, id: &str, parts: &[Tp]) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        for tp in parts {
            member.held.remove(tp);
            self.holders.remove(tp);
        }
    }

    fn remove(&mut self, now: Instant, id: &str) {
        if let Some(member) = self.members.remove(id) {
            for tp in &member.held {
                self.holders.remove(tp);
            }
        }
        self.retarget(now);
    }

    fn retarget(&mut self, now: Instant) {
        let count = self.members.len();
        if count == 0 {
            return;
        }
        let quota = (PARTITIONS as usize).div_ceil(count);
        let mut left: BTreeSet<Tp> = (0..PARTITIONS).map(tp).collect();
        for member in self.members.values_mut() {
            member.target = member.held.iter().copied().take(quota).collect();
            left = &left - &member.target;
        }
        for tp in left {
            let least = self.members.values_mut().min_by_key(|one| one.target.len());
            least.unwrap().target.insert(tp);
        }
        self.reconcile(now);
    }

    fn reconcile(&mut self, now: Instant) {
        for (id, member) in &mut self.members {
            let Some(link) = member.link.filter(|_| member.under_way.is_none()) else {
                continue;
            };
            let keep = &member.held & &member.target;
            let free = |tp: &&Tp| !self.holders.contains_key(tp);
            let grants: BTreeSet<Tp> = member.target.iter().filter(free).copied().collect();
            let moves = keep != member.held || !grants.is_empty();
            if !moves && !member.untold {
                continue;
            }
            if moves {
                self.epoch += 1;
                member.epoch = self.epoch;
            }
            for tp in &grants {
                self.holders.insert(*tp, (id.clone(), self.epoch));
            }
            let new: Vec<Tp> = match std::mem::take(&mut member.idle) {
                true => (&keep | &grants).into_iter().collect(),
                false => grants.iter().copied().collect(),
            };
            member.held.extend(grants.iter().copied());
            member.untold = false;
            let told = &keep | &grants;
            member.under_way = Some(UnderWay {
                epoch: member.epoch,
                told: told.clone(),
                until: now + REBALANCE,
            });
            let start = |tp: Tp| (tp, self.committed.get(&tp).copied());
            let assignment = Down::Assignment {
                epoch: member.epoch,
                partitions: told,
                starts: new.into_iter().map(start).collect(),
            };
            self.told.push((link, assignment));
        }
    }
}
