//! What is read: partitions come, and go in order or not.

use std::sync::Arc;
use std::time::Instant;

use super::{Answer, Driver, Reading, Release, Step};
use crate::consumer::reader::Begin;
use crate::error::Error;
use crate::group::commits::Entry;
use crate::group::core::{Committed, Tp};
use crate::group::starts::{Beginning, Resolver};
use crate::group::types::{Revocation, TopicPartition};

impl Driver {
    pub(super) fn start(&mut self, parts: Vec<(Tp, Committed)>) {
        self.next_ticket += 1;
        let number = self.next_ticket;
        let mut asked = Vec::with_capacity(parts.len());
        for (tp, committed) in parts {
            let Some(topic) = self.names.get(&tp.topic).cloned() else {
                tracing::warn!(topic = %tp.topic, "a topic without a name is not read");
                continue;
            };
            match committed {
                Committed::At(offset) => self.commits.know(tp, Some(offset)),
                Committed::Nothing | Committed::Unknown => self.commits.know(tp, None),
            }
            let reading = Reading {
                topic: topic.clone(),
                progress: Arc::default(),
                starting: Some(number),
            };
            self.reading.insert(tp, reading);
            asked.push((tp, topic, committed));
        }
        // What is committed needs no question.
        let (ready, open): (Vec<_>, Vec<_>) = asked
            .into_iter()
            .partition(|(_, _, at)| self.listening.is_none() && matches!(at, Committed::At(_)));
        let ready = ready.into_iter().filter_map(|(tp, topic, at)| match at {
            Committed::At(offset) => Some(Beginning {
                tp,
                topic,
                committed: Some(offset),
                offset: Ok(offset),
                chosen: false,
            }),
            Committed::Nothing | Committed::Unknown => None,
        });
        self.begin(number, ready.collect());
        if open.is_empty() {
            return;
        }
        let resolver = Resolver {
            client: self.client.clone(),
            group: self.options.group.clone(),
            policy: self.options.offset_reset,
            known: self.known.clone().unwrap_or_default(),
            listening: self.listening.clone(),
        };
        let reply = self.answers_sender.clone();
        self.tasks.spawn(async move {
            let found = resolver.resolve(open).await;
            let _ = reply.send(Answer::Begin(number, found)).await;
        });
    }

    pub(super) fn begin(&mut self, number: u64, found: Vec<Beginning>) {
        let mut changes = Vec::with_capacity(found.len());
        for one in found {
            let reading = self.reading.get_mut(&one.tp);
            let Some(reading) = reading.filter(|reading| reading.starting == Some(number)) else {
                continue;
            };
            reading.starting = None;
            if self.commits.committed(&one.tp).is_none() {
                self.commits.know(one.tp, one.committed);
            }
            let (offset, error) = match one.offset {
                Ok(offset) => (offset, None),
                Err(error) => (-1, Some(error)),
            };
            if one.chosen {
                let entry = Entry {
                    offset,
                    metadata: String::new(),
                    rewind: false,
                };
                self.commits.add([(one.tp, entry)]);
            }
            let begin = Begin {
                topic: one.topic,
                topic_id: one.tp.topic.0,
                partition: one.tp.partition,
                offset,
                progress: reading.progress.clone(),
            };
            changes.push((one.tp, begin, error));
        }
        if changes.is_empty() {
            return;
        }
        self.mailbox.put(|mail| {
            for (tp, begin, error) in changes {
                mail.changes.entry(tp).or_default().start = Some((begin, error));
            }
        });
    }

    pub(super) fn release(&mut self, parts: Vec<Tp>, until: Instant) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        // The listener gets the rest.
        let stop_until = now + left * 3 / 4;
        let step = match self.closing {
            // The application has come back for good.
            Some(_) => Step::Listening,
            None => {
                self.stop(&parts, Some(ticket));
                Step::Stopping(stop_until)
            }
        };
        let listens = matches!(step, Step::Listening);
        self.releases.push(Release {
            ticket,
            parts,
            until,
            step,
        });
        if listens {
            self.listen(ticket);
        }
    }

    /// Has the application's side stop reading these.
    pub(super) fn stop(&mut self, parts: &[Tp], ticket: Option<u64>) {
        let mut stops = Vec::with_capacity(parts.len());
        for tp in parts {
            if let Some(reading) = self.reading.get_mut(tp) {
                // What was not begun yet never is.
                reading.starting = None;
                let partition = TopicPartition::new(reading.topic.clone(), tp.partition);
                stops.push((*tp, partition));
            }
        }
        self.mailbox.put(|mail| {
            for (tp, partition) in stops {
                let change = mail.changes.entry(tp).or_default();
                change.stop = Some(partition);
                change.start = None;
            }
            mail.tickets.extend(ticket);
        });
    }

    /// The application has stopped, or is late: the listener's turn.
    pub(super) fn listen(&mut self, ticket: u64) {
        let Some(at) = self.releases.iter().position(|one| one.ticket == ticket) else {
            return;
        };
        self.releases[at].step = Step::Listening;
        let deadline = self.releases[at].until;
        let Some(listening) = self.listening.clone() else {
            return self.commit_release(ticket);
        };
        let revocation = Revocation {
            partitions: self.named(&self.releases[at].parts),
            deadline,
            committer: self.committer.clone(),
        };
        let told = listening.revoked(revocation);
        let reply = self.answers_sender.clone();
        self.tasks.spawn(async move {
            // Dropped, or late: the same.
            let _ = tokio::time::timeout_at(deadline.into(), told).await;
            let _ = reply.send(Answer::Listened(ticket)).await;
        });
    }

    pub(super) fn named(&self, parts: &[Tp]) -> Vec<TopicPartition> {
        let name = |tp: &Tp| {
            let reading = self.reading.get(tp)?;
            Some(TopicPartition::new(reading.topic.clone(), tp.partition))
        };
        parts.iter().filter_map(name).collect()
    }

    pub(super) fn commit_release(&mut self, ticket: u64) {
        let Some(at) = self.releases.iter().position(|one| one.ticket == ticket) else {
            return;
        };
        self.releases[at].step = Step::Committing;
        if self.options.auto_commit.is_some() {
            let parts = self.releases[at].parts.clone();
            self.commit_done(&parts);
        }
    }

    /// Reports releases of which everything is committed; whether there were any.
    pub(super) fn finish_releases(&mut self) -> bool {
        let commits = &self.commits;
        let is_done = |release: &Release| {
            matches!(release.step, Step::Committing) && commits.is_clear(release.parts.iter())
        };
        let Some(at) = self.releases.iter().position(is_done) else {
            return false;
        };
        let release = self.releases.swap_remove(at);
        for tp in &release.parts {
            self.reading.remove(tp);
            self.commits.know(*tp, None);
        }
        self.core.released(Instant::now(), &release.parts);
        true
    }

    pub(super) fn lose(&mut self, parts: &[Tp], why: &Error) {
        tracing::warn!(%why, partitions = parts.len(), "partitions are lost");
        let named = self.named(parts);
        self.stop(parts, None);
        for release in std::mem::take(&mut self.releases) {
            self.mailbox
                .put(|mail| mail.tickets.retain(|known| *known != release.ticket));
        }
        self.commits.forget(parts, why);
        for tp in parts {
            self.reading.remove(tp);
        }
        if let Some(listening) = &self.listening {
            listening.lost(named);
        }
    }
}
