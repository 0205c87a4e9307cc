//! A core with a log that commits when told, and members that are told what comes out.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::groups::core::api::*;
use crate::groups::core::{Groups, Replay};
use crate::groups::error::Error;
use crate::groups::limits::Settings;
use crate::groups::parts::{Parts, TopicId, Tp};
use crate::groups::record::Record;
use crate::groups::subscription::Subscription;
use crate::groups::topics::{TopicView, Topics};

pub(super) struct World {
    pub(super) now: Now,
    pub(super) settings: Arc<Settings>,
    pub(super) topics: Arc<Topics>,
    pub(super) core: Groups,
    /// Committed.
    pub(super) log: Vec<Vec<u8>>,
    /// Appended, with the effects that wait for each.
    pub(super) pending: Vec<(Vec<Vec<u8>>, Vec<Effect>)>,
    /// Said and not taken yet.
    pub(super) told: BTreeMap<Link, Vec<Message>>,
    pub(super) answers: BTreeMap<Call, Answer>,
    next: u64,
}

pub(super) fn topics(revision: u64, of: &[(&str, u128, usize)]) -> Arc<Topics> {
    let mut topics = Topics::new(revision);
    for (name, id, partitions) in of {
        topics.insert(TopicView {
            id: TopicId(*id),
            name: Arc::from(*name),
            internal: name.starts_with("__"),
            racks: vec![Box::default(); *partitions],
        });
    }
    Arc::new(topics)
}

pub(super) fn tp(topic: u128, partition: u32) -> Tp {
    Tp {
        topic: TopicId(topic),
        partition,
    }
}

pub(super) fn join(group: &str, id: &str, to: &str) -> Join {
    Join {
        group: group.into(),
        returning: None,
        new_id: id.into(),
        instance: None,
        subscription: Subscription::new(vec![to.to_owned()], None).unwrap(),
        assignor: None,
        session_ms: 0,
        rebalance_ms: 0,
        poll_ms: 0,
        client_id: "c".into(),
        address: "".into(),
        rack: "".into(),
        owned: Parts::default(),
    }
}

pub(super) fn item(tp: Tp, offset: i64) -> CommitItem {
    CommitItem {
        tp,
        offset,
        leader_epoch: None,
        metadata: Box::default(),
        rewind: false,
        refused: None,
    }
}

impl World {
    pub(super) fn new(topics: Arc<Topics>) -> World {
        let settings = Arc::new(Settings::default());
        let now = Now {
            mono_ms: 1,
            wall_ms: 1_700_000_000_000,
        };
        let mut core = Replay::new(Arc::clone(&settings)).finish(now, Arc::clone(&topics));
        core.take_output();
        World {
            now,
            core,
            settings,
            topics,
            log: Vec::new(),
            pending: Vec::new(),
            told: BTreeMap::new(),
            answers: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// An input, nothing committed yet.
    pub(super) fn input(&mut self, input: Input) {
        self.core.input(self.now, input);
        self.core.tick(self.now);
        self.collect();
    }

    pub(super) fn collect(&mut self) {
        let output = self.core.take_output();
        let records = output.records.iter().map(|record| record.encode(false));
        let records: Vec<_> = records.collect();
        if !records.is_empty() || !output.effects.is_empty() {
            self.pending.push((records, output.effects));
        }
    }

    /// Commits all that is appended, and says what waited for it.
    pub(super) fn commit(&mut self) {
        for (records, effects) in std::mem::take(&mut self.pending) {
            self.log.extend(records);
            for effect in effects {
                match effect {
                    Effect::Tell { link, message } => {
                        self.told.entry(link).or_default().push(message);
                    }
                    Effect::Answer { call, answer } => {
                        self.answers.insert(call, answer);
                    }
                }
            }
        }
    }

    pub(super) fn step(&mut self, input: Input) {
        self.input(input);
        self.commit();
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms as i64;
        self.core.tick(self.now);
        self.collect();
        self.commit();
    }

    pub(super) fn take(&mut self, link: Link) -> Vec<Message> {
        self.told.remove(&link).unwrap_or_default()
    }

    pub(super) fn join(&mut self, join: Join) -> Link {
        let link = self.fresh();
        let join = Box::new(join);
        self.step(Input::Join { link, join });
        link
    }

    pub(super) fn beat(&mut self, link: Link, applied: Option<i64>) {
        self.step(Input::Heartbeat {
            link,
            applied,
            since_poll_ms: 0,
        });
    }

    /// Everybody applies what it is told until nothing more comes; what each holds then.
    pub(super) fn settle(&mut self, links: &[Link]) -> BTreeMap<Link, (i64, Parts)> {
        let mut held = BTreeMap::new();
        for _ in 0..40 {
            self.pass(50);
            for link in links {
                self.beat(*link, None);
                for message in self.take(*link) {
                    if let Message::Assignment { epoch, parts, .. } = message {
                        held.insert(*link, (epoch, parts));
                        self.beat(*link, Some(epoch));
                    }
                }
            }
        }
        held
    }

    pub(super) fn call(&mut self, input: impl FnOnce(Call) -> Input) -> Answer {
        let call = self.fresh();
        self.step(input(call));
        self.answers.remove(&call).expect("an answer")
    }

    pub(super) fn commit_as(
        &mut self,
        group: &str,
        member: Option<(&str, i64)>,
        items: Vec<CommitItem>,
    ) -> Result<Vec<Option<Error>>, Error> {
        let answer = self.call(|call| Input::Commit {
            call,
            group: group.into(),
            member: member.map(|(id, epoch)| (id.into(), epoch)),
            items,
        });
        match answer {
            Answer::Items(items) => Ok(items
                .into_iter()
                .map(|one| one.err().map(|(_, error)| error))
                .collect()),
            Answer::Failed(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn fetch(&mut self, group: &str) -> Result<BTreeMap<Tp, i64>, Error> {
        let answer = self.call(|call| Input::Fetch {
            call,
            group: group.into(),
            which: Which::All,
        });
        match answer {
            Answer::Offsets(all) => Ok(all
                .into_iter()
                .filter_map(|(tp, one)| Some((tp, one?.offset)))
                .collect()),
            Answer::Failed(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// Another coordinator takes over: it knows what is committed, and nothing else.
    pub(super) fn fail_over(&mut self) {
        self.pending.clear();
        self.told.clear();
        let mut replay = Replay::new(Arc::clone(&self.settings));
        for bytes in &self.log {
            let (record, in_image) = Record::decode(bytes).unwrap();
            replay.apply(record, in_image).unwrap();
        }
        self.core = replay.finish(self.now, Arc::clone(&self.topics));
        self.collect();
    }

    /// An image, and the log cut behind it; `keep` of its records, if it is cut off.
    pub(super) fn image(&mut self, keep: Option<usize>) {
        let mut image = vec![Record::ImageBegin.encode(false)];
        self.core
            .image(|record| image.push(record.encode(record.is_state())));
        image.push(Record::ImageEnd.encode(false));
        match keep {
            Some(keep) => {
                image.truncate(keep.min(image.len() - 1));
                self.log.extend(image);
            }
            None => self.log = image,
        }
    }
}
