//! The members of a drill's group, and what they see.
//!
//! Each member has a runtime of its own, so that it can be killed as a process is: from one moment to the next, its connections
//! closed, nothing said.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use timberline_client::{
    Client, ClientOptions, GroupConsumer, GroupOptions, OffsetCommit, RecordBatch,
};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::drill::books::{Seen, recognize};
use crate::drill::tail::Noted;
use crate::error::{Error, Result};

/// Between two commits of a member: three of them make a hundred a second.
const COMMIT_EVERY: Duration = Duration::from_millis(25);
/// How long a member may take to leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

/// A partition as the members see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The member that read it last.
    pub(super) owner: Option<usize>,
    /// When this one first read a record that was written since [`Watch::begin`].
    pub(super) since: Option<Instant>,
    /// The longest time from a record's sending to its reading, since then.
    pub(super) worst: Duration,
}

struct Sights {
    partitions: Vec<Sight>,
    /// Only records that were sent later count.
    from_ms: i64,
    noted: Vec<Noted>,
    /// The last position of each partition whose commit was answered.
    committed: BTreeMap<i32, i64>,
    commits: u64,
    /// When a member's commit was answered last, and the longest time between two.
    commit_gaps: BTreeMap<usize, (Instant, Duration)>,
    error: Option<String>,
}

/// What the members of a group have read and committed.
pub(super) struct Watch {
    run: u64,
    sights: Mutex<Sights>,
}

impl Watch {
    pub(super) fn new(run: u64, partitions: usize) -> Arc<Watch> {
        let sight = Sight {
            owner: None,
            since: None,
            worst: Duration::ZERO,
        };
        Arc::new(Watch {
            run,
            sights: Mutex::new(Sights {
                partitions: vec![sight; partitions],
                from_ms: unix_ms(),
                noted: Vec::new(),
                committed: BTreeMap::new(),
                commits: 0,
                commit_gaps: BTreeMap::new(),
                error: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Sights> {
        self.sights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on only what is sent later counts.
    pub(super) fn begin(&self) {
        let mut sights = self.lock();
        sights.from_ms = unix_ms();
        for sight in &mut sights.partitions {
            sight.since = None;
            sight.worst = Duration::ZERO;
        }
        let now = Instant::now();
        for gap in sights.commit_gaps.values_mut() {
            *gap = (now, Duration::ZERO);
        }
    }

    pub(super) fn partitions(&self) -> Vec<Sight> {
        self.lock().partitions.clone()
    }

    pub(super) fn take_noted(&self) -> Vec<Noted> {
        std::mem::take(&mut self.lock().noted)
    }

    pub(super) fn committed(&self) -> BTreeMap<i32, i64> {
        self.lock().committed.clone()
    }

    pub(super) fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// The longest time that a member was without an answer to a commit; one that is still open counts.
    pub(super) fn worst_commit_gap(&self) -> Duration {
        let now = Instant::now();
        let gaps = self.lock().commit_gaps.clone();
        let gaps = gaps
            .values()
            .map(|(last, longest)| (*longest).max(now - *last));
        gaps.max().unwrap_or_default()
    }

    /// Forgets a member that has gone.
    pub(super) fn forget(&self, member: usize) {
        self.lock().commit_gaps.remove(&member);
    }

    pub(super) fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    fn fail(&self, error: &dyn std::fmt::Display) {
        self.lock().error.get_or_insert_with(|| error.to_string());
    }

    fn read(&self, member: usize, batch: &RecordBatch) -> Result<()> {
        let now_ms = unix_ms();
        let now = Instant::now();
        let mut noted = Vec::new();
        let mut youngest = i64::MIN;
        let mut worst = Duration::ZERO;
        let mut guard = self.lock();
        let sights = &mut *guard;
        for record in batch.records() {
            let record = record?;
            youngest = youngest.max(record.timestamp_ms);
            if record.timestamp_ms >= sights.from_ms {
                let took = (now_ms - record.timestamp_ms).max(0) as u64;
                worst = worst.max(Duration::from_millis(took));
            }
            let seen = recognize(self.run, &record.value.unwrap_or_default());
            if seen != Seen::Foreign {
                noted.push(Noted {
                    partition: batch.partition(),
                    offset: record.offset,
                    seen,
                });
            }
        }
        sights.noted.append(&mut noted);
        let from_ms = sights.from_ms;
        if let Some(sight) = sights.partitions.get_mut(batch.partition() as usize) {
            if sight.owner != Some(member) {
                sight.owner = Some(member);
                sight.since = None;
            }
            if youngest >= from_ms {
                sight.since.get_or_insert(now);
            }
            sight.worst = sight.worst.max(worst);
        }
        Ok(())
    }

    fn committed_now(&self, member: usize, partition: i32, offset: i64) {
        let mut sights = self.lock();
        sights.commits += 1;
        let known = sights.committed.entry(partition).or_insert(offset);
        *known = (*known).max(offset);
        let now = Instant::now();
        let (last, longest) = sights
            .commit_gaps
            .entry(member)
            .or_insert((now, Duration::ZERO));
        *longest = (*longest).max(now - *last);
        *last = now;
    }
}

/// A running member.
pub(super) struct Member {
    pub(super) number: usize,
    runtime: Option<Runtime>,
    close: Option<oneshot::Sender<()>>,
    left: mpsc::Receiver<()>,
}

impl Member {
    /// Starts a member. With `commits` it commits what it read, again and again, and waits for the answer.
    pub(super) fn start(
        number: usize,
        client: ClientOptions,
        options: GroupOptions,
        commits: bool,
        watch: Arc<Watch>,
    ) -> Result<Member> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::io("starting a member's threads"))?;
        let (close, closing) = oneshot::channel();
        let (leaving, left) = mpsc::channel(1);
        runtime.spawn(async move {
            let run = run(number, client, options, commits, &watch, closing);
            if let Err(error) = run.await {
                watch.fail(&error);
            }
            drop(leaving);
        });
        Ok(Member {
            number,
            runtime: Some(runtime),
            close: Some(close),
            left,
        })
    }

    /// As `kill -9` of its process.
    pub(super) fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Leaves in order, and waits for that.
    pub(super) async fn leave(mut self) {
        drop(self.close.take());
        let _ = tokio::time::timeout(LEAVE_PATIENCE, self.left.recv()).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn run(
    number: usize,
    client: ClientOptions,
    options: GroupOptions,
    commits: bool,
    watch: &Watch,
    mut closing: oneshot::Receiver<()>,
) -> Result<()> {
    let client = Client::connect(client).await?;
    let mut consumer: GroupConsumer = client.group_consumer(options).await?;
    let mut committed_at = Instant::now();
    loop {
        let batch = tokio::select! {
            batch = consumer.recv_batch() => batch?,
            _ = &mut closing => break,
        };
        watch.read(number, &batch)?;
        // Of what it holds now: what was read before may be another's by then.
        if commits && committed_at.elapsed() >= COMMIT_EVERY {
            let commit = OffsetCommit::after_batch(&batch);
            consumer.commit_offsets([commit]).await?;
            watch.committed_now(number, batch.partition(), batch.next_offset());
            committed_at = Instant::now();
        }
    }
    consumer.close().await?;
    Ok(())
}
