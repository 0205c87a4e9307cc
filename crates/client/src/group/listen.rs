//! The task that calls the application's listener: one call after the other, each within its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::types::{AssignedPartition, RebalanceListener, Revocation, TopicPartition};

/// How long a listener may take over what is new or lost; what goes to others has the rebalance timeout.
const LISTEN_WITHIN: Duration = Duration::from_secs(30);

enum Call {
    Assigned(
        Vec<AssignedPartition>,
        oneshot::Sender<Vec<AssignedPartition>>,
    ),
    Revoked(Revocation, oneshot::Sender<()>),
    Lost(Vec<TopicPartition>),
}

/// Where calls go. The task ends with the last of these. The queue is unbounded as such: an assignment is under way at a time.
#[derive(Clone)]
pub(crate) struct Listening {
    calls: mpsc::UnboundedSender<Call>,
}

impl Listening {
    pub(crate) fn start(listener: Arc<dyn RebalanceListener>) -> Listening {
        let (sender, calls) = mpsc::unbounded_channel();
        tokio::spawn(run(listener, calls));
        Listening { calls: sender }
    }

    /// Hands back the partitions as the listener leaves them; the sender is dropped when it took too long.
    pub(crate) fn assigned(
        &self,
        partitions: Vec<AssignedPartition>,
        reply: oneshot::Sender<Vec<AssignedPartition>>,
    ) {
        let _ = self.calls.send(Call::Assigned(partitions, reply));
    }

    /// Answered, or dropped, when the listener is finished or its time is over.
    pub(crate) fn revoked(&self, revocation: Revocation) -> oneshot::Receiver<()> {
        let (reply, told) = oneshot::channel();
        let _ = self.calls.send(Call::Revoked(revocation, reply));
        told
    }

    pub(crate) fn lost(&self, partitions: Vec<TopicPartition>) {
        let _ = self.calls.send(Call::Lost(partitions));
    }
}

async fn run(listener: Arc<dyn RebalanceListener>, mut calls: mpsc::UnboundedReceiver<Call>) {
    while let Some(call) = calls.recv().await {
        let finished = match call {
            Call::Assigned(mut partitions, reply) => {
                let told = listener.assigned(&mut partitions);
                let finished = tokio::time::timeout(LISTEN_WITHIN, told).await.is_ok();
                if finished {
                    let _ = reply.send(partitions);
                }
                finished
            }
            Call::Revoked(revocation, reply) => {
                let left = revocation
                    .deadline
                    .saturating_duration_since(Instant::now());
                let told = listener.revoked(&revocation);
                let finished = tokio::time::timeout(left, told).await.is_ok();
                let _ = reply.send(());
                finished
            }
            Call::Lost(partitions) => {
                let told = listener.lost(&partitions);
                tokio::time::timeout(LISTEN_WITHIN, told).await.is_ok()
            }
        };
        if !finished {
            tracing::warn!("the rebalance listener did not finish in time");
        }
    }
}
