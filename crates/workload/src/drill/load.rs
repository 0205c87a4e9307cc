//! The load of a drill: records that are due at fixed times, in turn to every partition, and the fate of each.
//!
//! The load is open: a record is sent when it is due, whether or not earlier ones are acknowledged. Deliveries of a
//! partition go, in order, to a task that waits for them; it keeps the partition's books and tells the gaps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use timberline_client::{Delivery, Error as ClientError, Producer, ProducerRecord};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::drill::books::{Books, RECORDS_MAX, value};
use crate::drill::gaps::Gaps;
use crate::error::{Error, Result};
use crate::payload::Payloads;

/// Records of one partition whose fate is open, at most; beyond, the load waits.
const OPEN_MAX: usize = 1 << 16;

/// What is sent.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) topic: String,
    pub(super) partitions: usize,
    /// Records a second in total.
    pub(super) rate: f64,
    /// Bytes of a value.
    pub(super) size: usize,
    pub(super) run: u64,
    /// The load ends after so many; `None`: when it is told to.
    pub(super) records: Option<u64>,
}

/// A running load.
pub(super) struct Load {
    pub(super) gaps: Arc<Gaps>,
    stop: watch::Sender<bool>,
    sender: JoinHandle<Result<()>>,
    lanes: Vec<JoinHandle<Lane>>,
}

/// What a load came to.
pub(super) struct Loaded {
    /// By partition.
    pub(super) books: Vec<Books>,
    /// Records that the producer gave up.
    pub(super) failed: u64,
    /// The first of their errors.
    pub(super) first_error: Option<ClientError>,
}

struct Sent {
    delivery: Delivery,
    number: u64,
    due: Instant,
}

struct Lane {
    books: Books,
    failed: u64,
    first_error: Option<ClientError>,
}

impl Load {
    /// Begins to send.
    pub(super) fn start(producer: Producer, plan: &Plan) -> Load {
        let gaps = Arc::new(Gaps::new(plan.partitions, Instant::now()));
        let (stop, stopped) = watch::channel(false);
        let mut lanes = Vec::new();
        let mut senders = Vec::new();
        for partition in 0..plan.partitions {
            let (sender, sent) = mpsc::channel(OPEN_MAX);
            let lane = Lane {
                books: Books::new(plan.run, partition as i32),
                failed: 0,
                first_error: None,
            };
            lanes.push(tokio::spawn(lane.run(partition, sent, Arc::clone(&gaps))));
            senders.push(sender);
        }
        let sender = tokio::spawn(send(producer, plan.clone(), senders, stopped));
        Load {
            gaps,
            stop,
            sender,
            lanes,
        }
    }

    /// Sends no more, and waits for the fate of every record, which the producer's delivery timeout bounds.
    ///
    /// # Errors
    /// The sending itself went wrong.
    pub(super) async fn finish(self) -> Result<Loaded> {
        self.stop.send_replace(true);
        self.end().await
    }

    /// Waits until all is sent, and for the fate of every record.
    ///
    /// # Errors
    /// The sending itself went wrong.
    pub(super) async fn end(self) -> Result<Loaded> {
        self.sender.await??;
        let mut loaded = Loaded {
            books: Vec::new(),
            failed: 0,
            first_error: None,
        };
        for lane in self.lanes {
            let lane = lane.await?;
            loaded.books.push(lane.books);
            loaded.failed += lane.failed;
            loaded.first_error = loaded.first_error.or(lane.first_error);
        }
        Ok(loaded)
    }
}

async fn send(
    producer: Producer,
    plan: Plan,
    lanes: Vec<mpsc::Sender<Sent>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let topic: Arc<str> = plan.topic.as_str().into();
    let mut payloads = Payloads::new(plan.size, plan.run);
    let begun = Instant::now();
    let partitions = plan.partitions as u64;
    let most = RECORDS_MAX * partitions;
    for turn in 0..most.min(plan.records.unwrap_or(most)) {
        let due = begun + Duration::from_secs_f64(turn as f64 / plan.rate);
        if due > Instant::now() {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => return Ok(()),
                () = tokio::time::sleep_until(due.into()) => {}
            }
        } else if *stopped.borrow() {
            return Ok(());
        }
        let (number, partition) = (turn / partitions, (turn % partitions) as usize);
        let value = value(plan.run, partition as i32, number, &payloads.next_value());
        let record =
            ProducerRecord::value(Arc::clone(&topic), value).with_partition(partition as i32);
        let delivery = match producer.try_send(record) {
            Ok(delivery) => delivery,
            Err(refused)
                if matches!(
                    refused.error,
                    ClientError::BufferFull | ClientError::TopicNotReady { .. }
                ) =>
            {
                producer.send(refused.record).await?
            }
            Err(refused) => return Err(refused.error.into()),
        };
        let sent = Sent {
            delivery,
            number,
            due,
        };
        // A lane ends only after this end of it.
        let _ = lanes[partition].send(sent).await;
    }
    if plan.records.is_some_and(|records| records <= most) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "a drill keeps books of {RECORDS_MAX} records a partition; repeat it fewer times, or with a lower rate"
    )))
}

impl Lane {
    async fn run(
        mut self,
        partition: usize,
        mut sent: mpsc::Receiver<Sent>,
        gaps: Arc<Gaps>,
    ) -> Lane {
        while let Some(next) = sent.recv().await {
            self.books.sent(next.number);
            match next.delivery.await {
                Ok(stored) => {
                    gaps.acknowledged(partition, next.due, Instant::now());
                    self.books.acknowledged(next.number, stored.offset);
                }
                Err(error) => {
                    self.failed += 1;
                    self.first_error.get_or_insert(error);
                }
            }
        }
        self
    }
}
