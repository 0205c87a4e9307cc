//! Commits: of what the application is done with, and of what it asks for; to the coordinator, and their answers.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use timberline_proto::error::ApiError;
use timberline_proto::v1;

use super::{Answer, Driver};
use crate::client::by_id;
use crate::error::{Error, Result};
use crate::group::commits::Entry;
use crate::group::committer::Reply;
use crate::group::core::Tp;
use crate::group::types::OffsetCommit;
use crate::types::TopicId;

impl Driver {
    /// Commits what the application is done with and the group does not know.
    pub(super) fn commit_done(&mut self, parts: &[Tp]) {
        let mut entries = Vec::new();
        for tp in parts {
            let Some(reading) = self.reading.get(tp) else {
                continue;
            };
            let done = reading.progress.done.load(Ordering::Acquire);
            if done < 0 || self.commits.committed(tp) == Some(done) {
                continue;
            }
            let entry = Entry {
                offset: done,
                metadata: String::new(),
                rewind: reading.progress.rewound.swap(false, Ordering::AcqRel),
            };
            entries.push((*tp, entry));
        }
        self.commits.add(entries);
    }

    pub(super) fn commit(&mut self, items: Vec<OffsetCommit>, reply: Reply) {
        let by_name: HashMap<&str, TopicId> = self
            .names
            .iter()
            .map(|(topic, name)| (&**name, *topic))
            .collect();
        let mut entries = Vec::with_capacity(items.len());
        for item in items {
            let topic = by_name.get(&*item.topic).copied();
            let partition = item.partition;
            let tp = topic.map(|topic| Tp { topic, partition });
            let Some(tp) = tp.filter(|tp| self.core.holds(tp)) else {
                return reply.send(Err(Error::NotAssigned {
                    topic: item.topic.to_string(),
                    partition,
                }));
            };
            let rewound = self.reading.get(&tp).is_some_and(|reading| {
                let rewound = &reading.progress.rewound;
                rewound.load(Ordering::Acquire) && rewound.swap(false, Ordering::AcqRel)
            });
            let entry = Entry {
                offset: item.offset,
                metadata: item.metadata,
                rewind: item.rewind || rewound,
            };
            entries.push((tp, entry));
        }
        let deadline = Instant::now() + self.client.options().request_timeout;
        self.commits.call(entries, reply, deadline);
    }

    pub(super) fn send_commits(&mut self) {
        // Who is not with the coordinator has nobody to send them to; whoever is next takes them.
        let Some(address) = self.coordinator.clone().filter(|_| self.core.is_joined()) else {
            return;
        };
        let Some((member, epoch)) = self.core.identity() else {
            return;
        };
        let (member, now) = (member.to_owned(), Instant::now());
        let Some(entries) = self.commits.next_request(now) else {
            return;
        };
        let parts: Vec<Tp> = entries.iter().map(|(tp, _)| *tp).collect();
        let item = |(tp, entry): (Tp, Entry)| v1::CommitItem {
            topic: Some(by_id(tp.topic.0)),
            partition: tp.partition,
            offset: entry.offset,
            leader_epoch: None,
            metadata: entry.metadata,
            rewind: entry.rewind,
        };
        let request = v1::CommitRequest {
            group_id: self.options.group.clone(),
            member_id: Some(member),
            member_epoch: Some(epoch),
            items: entries.into_iter().map(item).collect(),
        };
        let (client, reply) = (self.client.clone(), self.answers_sender.clone());
        self.tasks.spawn(async move {
            let asked = client.ask_broker(&address, |connection| {
                let request = request.clone();
                async move { connection.group().commit(request).await }
            });
            let answer = asked.await;
            let _ = reply.send(Answer::Committed(parts, answer)).await;
        });
    }

    pub(super) fn on_committed(&mut self, parts: Vec<Tp>, answer: Result<v1::CommitResponse>) {
        match answer {
            Ok(response) if response.results.len() == parts.len() => {
                let outcome = |(tp, result): (Tp, v1::CommitResult)| {
                    (tp, result.error.as_ref().map(ApiError::from_item))
                };
                let results = parts.into_iter().zip(response.results).map(outcome);
                self.commits.answered(results.collect());
            }
            Ok(response) => {
                let (told, asked) = (response.results.len(), parts.len());
                let message = format!("{told} outcomes of {asked} commits");
                self.commits
                    .failed(Instant::now(), &Error::Protocol { message });
            }
            Err(error) => {
                tracing::debug!(%error, "a commit failed");
                self.commits.failed(Instant::now(), &error);
            }
        }
    }
}
