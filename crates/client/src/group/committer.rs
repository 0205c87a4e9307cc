//! Commits from outside of the consumer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::shared::{Command, Commands};
use super::types::OffsetCommit;
use crate::error::{Error, Result};

/// Commits without an answer that one member may have.
const PENDING_MAX: usize = 10_000;

/// Commits positions for a member of a group, from whichever task. Clones share it.
#[derive(Clone, Debug)]
pub struct Committer {
    commands: Commands,
    pending: Arc<AtomicUsize>,
}

impl Committer {
    pub(crate) fn new(commands: Commands) -> Committer {
        Committer {
            commands,
            pending: Arc::default(),
        }
    }

    pub(crate) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Commits these positions, and waits for the answer.
    ///
    /// Cancel-safe: the commit goes on when the future is dropped.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit_offsets`](crate::GroupConsumer::commit_offsets); [`Error::Closed`] after its consumer is gone.
    pub async fn commit(&self, offsets: impl IntoIterator<Item = OffsetCommit>) -> Result<()> {
        self.commit_async(offsets).await
    }

    /// Commits these positions; returns at once. The result need not be waited for. Of several commits of one partition that
    /// wait for their turn only the last is sent, and answers all.
    pub fn commit_async(&self, offsets: impl IntoIterator<Item = OffsetCommit>) -> PendingCommit {
        if self.pending.fetch_add(1, Ordering::Relaxed) >= PENDING_MAX {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            return PendingCommit {
                state: State::Failed(Error::TooManyCommits { limit: PENDING_MAX }),
            };
        }
        let (reply, answer) = Reply::new(self.pending.clone());
        let items = offsets.into_iter().collect();
        let command = Command::Commit { items, reply };
        match self.commands.send(command) {
            Ok(()) => PendingCommit {
                state: State::Waiting(answer),
            },
            Err(_) => PendingCommit {
                state: State::Failed(Error::Closed),
            },
        }
    }
}

/// The answer to a commit that is under way. Awaiting it waits for the answer; dropping it changes nothing.
#[derive(Debug)]
#[must_use = "a commit goes on by itself, but only its answer says whether it was taken"]
pub struct PendingCommit {
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<Result<()>>),
    Failed(Error),
}

impl Future for PendingCommit {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.state {
            State::Waiting(answer) => {
                let answer = ready!(Pin::new(answer).poll(cx));
                Poll::Ready(answer.unwrap_or(Err(Error::Closed)))
            }
            State::Failed(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

/// Where an answer goes to. While it is there the commit counts as one without an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    sender: Option<oneshot::Sender<Result<()>>>,
    pending: Arc<AtomicUsize>,
}

impl Reply {
    /// For one that is counted in `pending` already.
    pub(crate) fn new(pending: Arc<AtomicUsize>) -> (Reply, oneshot::Receiver<Result<()>>) {
        let (sender, answer) = oneshot::channel();
        let sender = Some(sender);
        (Reply { sender, pending }, answer)
    }

    pub(crate) fn send(mut self, answer: Result<()>) {
        if let Some(sender) = self.sender.take() {
            // Who does not wait does not want to know.
            let _ = sender.send(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }
}
