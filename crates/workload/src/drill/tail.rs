//! Reading: back, when all is sent, and along, while it is.

use std::time::Duration;

use timberline_client::{Client, Consumer, ConsumerOptions, Position};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::drill::books::{Books, Seen, recognize};
use crate::error::{Error, Result};

/// Longest wait for the next record that must come.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// A record that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) seen: Seen,
}

/// A consumer that reads a topic along from its beginning, and notes what comes.
pub(super) struct Tail {
    ends: watch::Sender<Option<Vec<i64>>>,
    task: JoinHandle<Result<Vec<Noted>>>,
}

impl Tail {
    /// Begins to read.
    pub(super) async fn start(
        client: &Client,
        topic: &str,
        partitions: usize,
        run: u64,
    ) -> Result<Tail> {
        let mut consumer = consumer(client, topic, partitions).await?;
        let (ends, told) = watch::channel(None);
        let task = tokio::spawn(async move {
            let mut noted = Vec::new();
            let note = |partition, offset, value: &[u8]| {
                noted.push(Noted {
                    partition,
                    offset,
                    seen: recognize(run, value),
                });
            };
            read(&mut consumer, partitions, told, note).await?;
            Ok(noted)
        });
        Ok(Tail { ends, task })
    }

    /// Reads up to these ends, and gives what was noted in the order in which it came.
    ///
    /// # Errors
    /// The consumer gave up, or records do not come.
    pub(super) async fn finish(self, ends: Vec<i64>) -> Result<Vec<Noted>> {
        self.ends.send_replace(Some(ends));
        self.task.await?
    }
}

/// The ends that the partitions of a topic have now.
pub(super) async fn ends_of(client: &Client, topic: &str, partitions: usize) -> Result<Vec<i64>> {
    let latest: Vec<_> = (0..partitions as i32)
        .map(|partition| (partition, Position::Latest))
        .collect();
    let ends = client.admin().list_offsets(topic, &latest).await?;
    Ok(ends.iter().map(|end| end.offset).collect())
}

/// Reads a topic from its beginning to the end it has now, into the books of its partitions.
pub(super) async fn read_back(client: &Client, topic: &str, books: &mut [Books]) -> Result<()> {
    let partitions = books.len();
    let note = |partition: i32, offset, value: &[u8]| {
        if let Some(books) = books.get_mut(partition as usize) {
            books.read(value, offset);
        }
    };
    read_all(client, topic, partitions, note).await
}

/// Reads a topic from its beginning to the end it has now.
pub(super) async fn read_all(
    client: &Client,
    topic: &str,
    partitions: usize,
    note: impl FnMut(i32, i64, &[u8]),
) -> Result<()> {
    let ends = ends_of(client, topic, partitions).await?;
    let mut consumer = consumer(client, topic, partitions).await?;
    let (_keep, ends) = watch::channel(Some(ends));
    read(&mut consumer, partitions, ends, note).await
}

async fn consumer(client: &Client, topic: &str, partitions: usize) -> Result<Consumer> {
    let mut consumer = client.consumer(ConsumerOptions::default()).await?;
    for partition in 0..partitions as i32 {
        consumer
            .assign(topic, partition, Position::Earliest)
            .await?;
    }
    Ok(consumer)
}

/// Reads until all partitions are at their ends, which may be told later. Until then there may be nothing to read for as
/// long as nothing is written.
async fn read(
    consumer: &mut Consumer,
    partitions: usize,
    mut ends: watch::Receiver<Option<Vec<i64>>>,
    mut note: impl FnMut(i32, i64, &[u8]),
) -> Result<()> {
    let mut positions = vec![0; partitions];
    let mut read = 0;
    loop {
        let wanted = ends.borrow_and_update().clone();
        let batch = match &wanted {
            None => tokio::select! {
                batch = consumer.recv_batch() => batch?,
                told = ends.changed() => match told {
                    Ok(()) => continue,
                    // Nobody waits for the rest.
                    Err(_) => return Ok(()),
                },
            },
            Some(ends) if positions.iter().zip(ends).all(|(at, end)| at >= end) => return Ok(()),
            Some(ends) => tokio::time::timeout(READ_PATIENCE, consumer.recv_batch())
                .await
                .map_err(|_| Error::Starved {
                    read,
                    wanted: ends.iter().sum::<i64>() as u64,
                    after: READ_PATIENCE,
                })??,
        };
        let Some(position) = positions.get_mut(batch.partition() as usize) else {
            continue;
        };
        *position = batch.next_offset();
        for record in batch.records() {
            let record = record?;
            note(
                batch.partition(),
                record.offset,
                &record.value.unwrap_or_default(),
            );
            read += 1;
        }
    }
}
