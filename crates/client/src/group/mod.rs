//! The consumer of a group: its members share topics, each partition is read by one of them at a time.
//!
//! - `core`: the rules of membership, without I/O; `simulation` tries to break them. `commits`: commits on their way, likewise.
//! - `driver`: the task that does what the rules ask for; `stream`, `starts`, `listen`: what it does it with.
//! - here: what the application sees. Records come from a reader of partitions ([`consumer`](crate::Consumer) has the same one), which
//!   knows nothing of groups; `shared` is how the driver has it changed.

mod commits;
mod committer;
pub(crate) mod core;
mod driver;
mod listen;
mod options;
mod shared;
#[cfg(test)]
mod simulation;
mod starts;
mod stream;
mod types;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::Stream;
use timberline_proto::error::Reason;
use tokio::sync::{oneshot, watch};

pub use committer::{Committer, PendingCommit};
pub use options::{Assignor, GroupOptions};
pub use types::{
    AssignedPartition, ListenerFuture, OffsetCommit, RebalanceListener, Revocation, TopicPartition,
};

use crate::client::Client;
use crate::consumer::driver::Gone;
use crate::consumer::reader::{Begin, Reader, Slot};
use crate::consumer::{ConsumedRecord, Outage, Position, RecordBatch, not_assigned};
use crate::error::{Error, Result};
use listen::Listening;
use options::check_subscription;
use shared::{Command, Commands, Mailbox};

/// What a member knows of its membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberState {
    /// The id that the coordinator gave it; `None` before it has joined, and after it was put out.
    pub member_id: Option<String>,
    /// Of its assignment; rises with each.
    pub epoch: i64,
    /// Whether it is with the coordinator now. Reading goes on while it is not, for the session timeout.
    pub connected: bool,
}

/// A member of a group: reads the partitions that the group's coordinator gives it.
///
/// ```no_run
/// # async fn run(client: timberline_client::Client) -> Result<(), timberline_client::Error> {
/// use timberline_client::GroupOptions;
///
/// let mut consumer = client.group_consumer(GroupOptions::new("billing").topics(["orders"])).await?;
/// for _ in 0..1_000 {
///     let record = consumer.recv().await?;
///     println!("{}/{}: {:?}", record.partition, record.offset, record.value);
/// }
/// consumer.close().await?;
/// # Ok(())
/// # }
/// ```
///
/// **Delivery.** Every record is handed out at least once, to one member or another. With auto-commit (the default) a record is done
/// with when the application comes back for the next one; what it had in hand when it died is handed out again, to whoever gets the
/// partition. Without, it is done with when the application commits a position behind it.
///
/// **Rebalancing.** While partitions move, those that stay are read on. A partition that goes to another member is let go when the
/// application comes back for more, its [`RebalanceListener`] has finished and what is to be committed is committed, at the latest when
/// three quarters of the rebalance timeout are over. So an application that handles each record before it asks for the next has nothing
/// to do; one that hands records to others lets the listener wait for them.
///
/// **Failures.** A coordinator or a leader that dies, restarts or moves is followed; the application sees latency. A member that is cut
/// off for longer than its session loses its partitions ([`RebalanceListener::lost`]) and joins again by itself.
///
/// Dropping it leaves the group in the background, without what the application had in hand being done with;
/// [`close`](Self::close) leaves in order.
pub struct GroupConsumer {
    client: Client,
    reader: Option<Reader>,
    mailbox: Arc<Mailbox>,
    committer: Committer,
    state: watch::Receiver<MemberState>,
    /// About single partitions, to be told.
    failures: VecDeque<Error>,
    ended: Option<Ended>,
}

struct Ended {
    error: Error,
    told: bool,
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        let reply = oneshot::channel().0;
        let _ = self.committer.commands().send(Command::Close { reply });
    }
}

impl GroupConsumer {
    pub(crate) fn start(
        client: Client,
        options: GroupOptions,
        listener: Option<Arc<dyn RebalanceListener>>,
    ) -> GroupConsumer {
        let mut fetch = options.fetch.clone();
        fetch.offset_reset = options.offset_reset;
        let mailbox = Arc::new(Mailbox::default());
        let (commands, asked): (Commands, _) = driver::commands();
        let committer = Committer::new(commands);
        let (told, state) = watch::channel(MemberState::default());
        let driver = driver::Driver::new(
            client.clone(),
            options,
            mailbox.clone(),
            committer.clone(),
            asked,
            listener.map(Listening::start),
            told,
        );
        tokio::spawn(driver.run());
        GroupConsumer {
            reader: Some(Reader::start(client.clone(), fetch, Gone::Waits)),
            client,
            mailbox,
            committer,
            state,
            failures: VecDeque::new(),
            ended: None,
        }
    }

    fn reader(&mut self) -> Result<&mut Reader> {
        self.reader.as_mut().ok_or(Error::Closed)
    }

    // Records.

    /// The next record of any partition that the member holds; waits for one, and while it holds none.
    ///
    /// To call it says that the application is done with what it got before. An application that does not call it for the maximum
    /// poll interval is put out of the group.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    ///
    /// # Errors
    /// - [`Error::NoCommittedOffset`], [`Error::OffsetOutOfRange`], [`Error::DataDamaged`], [`Error::CorruptBatch`] and refusals that
    ///   can't be retried are about one partition, which is paused until [`seek`](Self::seek); the others go on with the next call.
    /// - `POLL_TIMEOUT`: the application took too long and was put out; the next call joins again.
    /// - `INSTANCE_FENCED`, `GROUP_FULL`, `INCONSISTENT_ASSIGNOR`, `INVALID_PATTERN`, `UNKNOWN_TOPIC` and other refusals of the
    ///   membership are final: every further call gives the same.
    pub async fn recv(&mut self) -> Result<ConsumedRecord> {
        self.come_back()?;
        loop {
            self.follow()?;
            if let Some(next) = self.reader()?.next_record() {
                return next;
            }
            self.wait(async |reader| reader.open_next().await).await?;
        }
    }

    /// The next batch of any partition that the member holds, as [`recv`](Self::recv). Its records are read in place, without an
    /// allocation per record. After `recv` left off inside of a batch, the rest of it comes first.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_batch(&mut self) -> Result<RecordBatch> {
        self.come_back()?;
        loop {
            self.follow()?;
            if let Some(rest) = self.reader()?.rest_of_batch() {
                return Ok(rest);
            }
            let next = self.wait(async |reader| reader.take_next().await).await?;
            if let Some(batch) = next {
                return Ok(batch);
            }
        }
    }

    /// Records as a stream that ends only when it is dropped; an error does not end it. Each item asked for is a
    /// [`recv`](Self::recv).
    pub fn records(&mut self) -> impl Stream<Item = Result<ConsumedRecord>> + '_ {
        futures::stream::unfold(self, |consumer| async move {
            let next = consumer.recv().await;
            Some((next, consumer))
        })
    }

    /// Batches as a stream, as [`records`](Self::records).
    pub fn batches(&mut self) -> impl Stream<Item = Result<RecordBatch>> + '_ {
        futures::stream::unfold(self, |consumer| async move {
            let next = consumer.recv_batch().await;
            Some((next, consumer))
        })
    }

    /// The application asks for more.
    fn come_back(&mut self) -> Result<()> {
        self.mailbox.polls.begin();
        self.reader()?.settle();
        let Some(ended) = &mut self.ended else {
            return Ok(());
        };
        let again = ended.error.reason() == Some(Reason::PollTimeout);
        if again && ended.told {
            self.ended = None;
            let _ = self.committer.commands().send(Command::JoinAgain);
        }
        Ok(())
    }

    /// Does what the membership asks for; the errors that this has to tell.
    fn follow(&mut self) -> Result<()> {
        if let Some(mail) = self.mailbox.take() {
            let reader = self.reader.as_mut().ok_or(Error::Closed)?;
            let stops = mail.changes.values().filter_map(|one| one.stop.as_ref());
            reader.remove(stops.map(|one| (&*one.topic, one.partition)));
            let mut begins: Vec<Begin> = Vec::new();
            for (begin, error) in mail.changes.into_values().filter_map(|one| one.start) {
                match error {
                    None => begins.push(begin),
                    Some(error) => {
                        reader.begin_paused(begin);
                        self.failures.push_back(error);
                    }
                }
            }
            reader.begin(begins);
            for ticket in mail.tickets {
                let _ = self.committer.commands().send(Command::Stopped(ticket));
            }
            if let Some(error) = mail.ended {
                self.ended = Some(Ended { error, told: false });
            }
        }
        if let Some(error) = self.failures.pop_front() {
            return Err(error);
        }
        match &mut self.ended {
            Some(ended) => {
                ended.told = true;
                Err(ended.error.clone())
            }
            None => Ok(()),
        }
    }

    /// Waits for the reader, or for news of the membership: then `None`.
    async fn wait<T>(
        &mut self,
        next: impl AsyncFnOnce(&mut Reader) -> Result<T>,
    ) -> Result<Option<T>> {
        let reader = self.reader.as_mut().ok_or(Error::Closed)?;
        let _waiting = self.mailbox.polls.wait();
        tokio::select! {
            // Who is revoked hands out nothing more.
            biased;
            () = self.mailbox.wake.notified() => Ok(None),
            item = next(reader) => item.map(Some),
        }
    }

    // Commits.

    /// Commits all that was handed out, and waits for the answer. Only what moved is sent.
    ///
    /// Cancel-safe: the commit goes on when the future is dropped.
    ///
    /// # Errors
    /// `MEMBER_FENCED`, `NOT_ASSIGNED`: a partition has gone to another member, who begins at the position committed before.
    /// [`Error::Timeout`]: the coordinator did not answer; it is asked on, and may have committed it. Otherwise the first error
    /// of a partition; others may be committed.
    pub async fn commit(&mut self) -> Result<()> {
        self.commit_async().await
    }

    /// Commits all that was handed out; returns at once. The result need not be waited for.
    pub fn commit_async(&mut self) -> PendingCommit {
        self.committer.commit_async(self.positions())
    }

    /// Commits these positions, and waits for the answer.
    ///
    /// Cancel-safe: the commit goes on when the future is dropped.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and [`Error::NotAssigned`] for what this member does not hold; nothing is committed then.
    pub async fn commit_offsets(
        &self,
        offsets: impl IntoIterator<Item = OffsetCommit>,
    ) -> Result<()> {
        self.committer.commit(offsets).await
    }

    /// Commits these positions; returns at once. The result need not be waited for.
    pub fn commit_offsets_async(
        &self,
        offsets: impl IntoIterator<Item = OffsetCommit>,
    ) -> PendingCommit {
        self.committer.commit_async(offsets)
    }

    /// A handle that commits for this member from elsewhere. Clones share it.
    pub fn committer(&self) -> Committer {
        self.committer.clone()
    }

    /// The positions behind all that was handed out.
    fn positions(&self) -> Vec<OffsetCommit> {
        let slots = self.slots().iter().filter(|slot| slot.position >= 0);
        let position = |slot: &Slot| {
            let mut commit = OffsetCommit::new(slot.topic.clone(), slot.partition, slot.position);
            commit.rewind = slot.progress.rewound.load(Ordering::Relaxed);
            commit
        };
        slots.map(position).collect()
    }

    // Positions.

    fn slots(&self) -> &[Slot] {
        self.reader.as_ref().map_or(&[], Reader::slots)
    }

    fn slot(&self, topic: &str, partition: i32) -> Option<&Slot> {
        self.reader.as_ref()?.slot(topic, partition)
    }

    /// The partitions that are read now. Changes are taken in by [`recv`](Self::recv).
    pub fn assignment(&self) -> Vec<TopicPartition> {
        let name = |slot: &Slot| TopicPartition::new(slot.topic.clone(), slot.partition);
        let mut all: Vec<TopicPartition> = self.slots().iter().map(name).collect();
        all.sort();
        all
    }

    /// The offset that comes next: one after the last record handed out, or where reading began.
    /// `None` when the partition is not assigned, or its position is not known.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        Some(self.slot(topic, partition)?.position).filter(|&offset| offset >= 0)
    }

    /// The high watermark last heard of: one after the last readable offset. `None` before the first news.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        self.slot(topic, partition)?.high_watermark()
    }

    /// Records from the position to the high watermark last heard of. `None` before the first news.
    pub fn lag(&self, topic: &str, partition: i32) -> Option<i64> {
        self.slot(topic, partition)?.lag()
    }

    /// Goes on elsewhere in a partition, also in one that is paused. Records of it that were fetched ahead are dropped. The
    /// position is committed like every other, also if the group was further.
    ///
    /// Cancel-safe: dropped before it completes, nothing has changed.
    ///
    /// # Errors
    /// [`Error::NotAssigned`], and those of every call.
    pub async fn seek(&mut self, topic: &str, partition: i32, to: Position) -> Result<()> {
        let slot = self.slot(topic, partition);
        let slot = slot.ok_or_else(|| not_assigned(topic, partition))?;
        let (topic, topic_id) = (slot.topic.clone(), slot.topic_id);
        let progress = slot.progress.clone();
        let asked = self.client.start_of(&topic, topic_id, partition, to);
        let offset = asked.await?;
        progress.rewound.store(true, Ordering::Release);
        self.reader()?.begin([Begin {
            topic,
            topic_id,
            partition,
            offset,
            progress,
        }]);
        Ok(())
    }

    /// Hands out nothing of a partition until [`resume`](Self::resume), or until it goes to another member. Records of it that
    /// were fetched ahead are dropped and fetched again then, so that a paused partition takes no room from the others.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn pause(&mut self, topic: &str, partition: i32) -> Result<()> {
        match self.reader()?.pause(topic, partition) {
            true => Ok(()),
            false => Err(not_assigned(topic, partition)),
        }
    }

    /// Goes on where a partition was paused, by [`pause`](Self::pause) or by an error. One without a position needs a
    /// [`seek`](Self::seek).
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn resume(&mut self, topic: &str, partition: i32) -> Result<()> {
        match self.reader()?.resume(topic, partition) {
            true => Ok(()),
            false => Err(not_assigned(topic, partition)),
        }
    }

    /// Whether a partition is paused, by [`pause`](Self::pause) or by an error. `None` when it is not assigned.
    pub fn is_paused(&self, topic: &str, partition: i32) -> Option<bool> {
        self.reader.as_ref()?.is_paused(topic, partition)
    }

    // Membership.

    /// Reads these topics, and what matches the pattern, from now on, in place of what was subscribed before. The coordinator
    /// gives out partitions anew; [`recv`](Self::recv) takes them in. A topic that does not exist ends the membership.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] without a topic and without a pattern.
    pub fn subscribe<S: Into<String>>(
        &mut self,
        topics: impl IntoIterator<Item = S>,
        pattern: Option<&str>,
    ) -> Result<()> {
        let topics: Vec<String> = topics.into_iter().map(Into::into).collect();
        check_subscription(&topics, pattern)?;
        let pattern = pattern.map(str::to_owned);
        let _ = self
            .committer
            .commands()
            .send(Command::Subscribe { topics, pattern });
        Ok(())
    }

    /// What the member knows of its membership, and when that changes.
    pub fn membership(&self) -> watch::Receiver<MemberState> {
        self.state.clone()
    }

    /// Tells when a broker that is read from goes out of reach (`Some`) and when all are there again (`None`); the longest
    /// outage, if there are several. The consumer waits for the broker however long that takes.
    pub fn outages(&self) -> watch::Receiver<Option<Outage>> {
        match &self.reader {
            Some(reader) => reader.outages(),
            None => watch::channel(None).1,
        }
    }

    /// Leaves the group in order: all that was handed out is done with, the listener is told, positions are committed (with
    /// auto-commit, or those under way), and the partitions go to others at once. A static member's wait for its return, until its
    /// session is over. Waits for that, for the leave timeout at most; then the session ends the rest.
    ///
    /// Cancel-safe: it is left all the same when the future is dropped.
    ///
    /// # Errors
    /// None at present: a leave that nobody heard of is one that the session timeout makes.
    pub async fn close(mut self) -> Result<()> {
        if let Some(mut reader) = self.reader.take() {
            reader.settle();
        }
        let (reply, left) = oneshot::channel();
        let _ = self.committer.commands().send(Command::Close { reply });
        // Without a driver there is nothing to leave.
        left.await.unwrap_or(Ok(()))
    }
}
