//! Windowed count: how many records of each key came in each minute, in an embedded store that survives `kill -9`.
//!
//! ```sh
//! cargo run -p timberline-client --example windowed_count -- orders counts/             # two of them share topic and directory
//! cargo run -p timberline-client --example windowed_count -- orders counts/ --show      # once they have stopped
//! ```
//!
//! Every partition has a store of its own, a `redb` file in the directory. Counts and the position behind them are written **in one
//! transaction**: after a crash the store is as of some record, and reading goes on right behind that one. The stores move with the
//! partitions: whoever is given one opens its file, whoever loses it closes it. The file's lock, which ends with its process, keeps
//! out a member that does not know yet that it lost the partition.
//!
//! **Holds.** Each record is counted exactly once, through `kill -9` and rebalances. Windows are of the records' own timestamps, so
//! late records and replays land where they belong.
//!
//! **Does not hold.** All members need the same directory, so they run on one machine. One that is stopped without ending keeps its
//! files locked, and others that are given its partitions end after half a minute. Windows are never closed or removed: a
//! service would drop old ones in the same transaction, and would send a window's result on at least once. Counting the same
//! topic anew takes an empty directory.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use parking_lot::Mutex;
use redb::{Database, DatabaseError, ReadableTable, TableDefinition};
use timberline_client::{
    AssignedPartition, Client, ClientOptions, GroupOptions, ListenerFuture, Position,
    RebalanceListener, RecordBatch, Revocation, TopicPartition,
};
use tokio::signal::unix::{SignalKind, signal};

const WINDOW_MS: i64 = 60_000;

/// By begin of the window, milliseconds since the Unix epoch, and key.
const COUNTS: TableDefinition<'_, (i64, &[u8]), u64> = TableDefinition::new("counts");
/// One row: the offset of the next record to count.
const NEXT: TableDefinition<'_, (), i64> = TableDefinition::new("next");

/// Counts records by key and minute, exactly once.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    topic: String,
    /// Of the stores; is created when it is not there.
    directory: PathBuf,
    /// Print the counts and end.
    #[arg(long)]
    show: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.directory)?;
    if args.show {
        return show(&args.directory);
    }
    let stores = Stores {
        directory: args.directory.into(),
        open: Arc::default(),
    };
    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    let options = GroupOptions::new("windowed-count").topics([args.topic]);
    let mut consumer = client.group_consumer_with(options, stores.clone()).await?;
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    loop {
        let batch = tokio::select! {
            batch = consumer.recv_batch() => batch?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        tokio::task::block_in_place(|| stores.count(&batch))?;
        println!(
            "counted {} up to {}",
            batch.partition(),
            batch.next_offset()
        );
    }
    consumer.close().await?;
    Ok(())
}

/// The stores of the partitions that this member holds; `None`: it is not open yet.
#[derive(Clone)]
struct Stores {
    directory: Arc<Path>,
    open: Arc<Mutex<HashMap<TopicPartition, Option<Database>>>>,
}

impl Stores {
    fn count(&self, batch: &RecordBatch) -> anyhow::Result<()> {
        let partition = TopicPartition::new(batch.topic().clone(), batch.partition());
        // Held until the commit, so that a store is not closed in between.
        let open = self.open.lock();
        let store = match open.get(&partition) {
            Some(Some(store)) => store,
            Some(None) => bail!("the store of {partition} could not be opened"),
            // The partition went to another member while this batch was on its way; its counts go on there.
            None => return Ok(()),
        };
        let transaction = store.begin_write()?;
        {
            let mut next = transaction.open_table(NEXT)?;
            let mut counts = transaction.open_table(COUNTS)?;
            let stored = next.get(())?.map_or(0, |next| next.value());
            let mut added: BTreeMap<(i64, Vec<u8>), u64> = BTreeMap::new();
            for record in batch.records() {
                let record = record?;
                if record.offset < stored {
                    continue;
                }
                let begin = record.timestamp_ms - record.timestamp_ms.rem_euclid(WINDOW_MS);
                let key = record.key.map(Vec::from).unwrap_or_default();
                *added.entry((begin, key)).or_default() += 1;
            }
            for ((begin, key), more) in added {
                let at = (begin, key.as_slice());
                let so_far = counts.get(at)?.map_or(0, |count| count.value());
                counts.insert(at, so_far + more)?;
            }
            next.insert((), stored.max(batch.next_offset()))?;
        }
        // On disk before it returns; a crash before leaves the store as it was.
        transaction.commit()?;
        Ok(())
    }

    /// Opens a partition's store as soon as nobody else has it open. Where to go on.
    async fn open(&self, partition: &TopicPartition) -> anyhow::Result<Position> {
        let name = format!("{}-{}.redb", partition.topic, partition.partition);
        let path = self.directory.join(name);
        self.open.lock().insert(partition.clone(), None);
        // The consumer gives up on a listener after half a minute; that ends this loop.
        let store = loop {
            match Database::create(&path) {
                Err(DatabaseError::DatabaseAlreadyOpen) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                opened => break opened?,
            }
        };
        // To write is to create the table.
        let transaction = store.begin_write()?;
        let stored = transaction.open_table(NEXT)?.get(())?.map(|at| at.value());
        transaction.commit()?;
        self.open.lock().insert(partition.clone(), Some(store));
        Ok(stored.map_or(Position::Earliest, Position::Offset))
    }

    fn close<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        let mut open = self.open.lock();
        for partition in partitions {
            open.remove(partition);
        }
    }
}

impl RebalanceListener for Stores {
    fn assigned<'a>(&'a self, partitions: &'a mut [AssignedPartition]) -> ListenerFuture<'a> {
        Box::pin(async move {
            for one in partitions {
                // Without a store the first batch ends the process.
                one.start = self.open(&one.partition).await.ok();
            }
        })
    }

    fn revoked<'a>(&'a self, revocation: &'a Revocation) -> ListenerFuture<'a> {
        Box::pin(async move { self.close(&revocation.partitions) })
    }

    fn lost<'a>(&'a self, partitions: &'a [TopicPartition]) -> ListenerFuture<'a> {
        Box::pin(async move { self.close(partitions) })
    }
}

/// Prints `WINDOW KEY COUNT` for all partitions; a key is in one partition only.
fn show(directory: &Path) -> anyhow::Result<()> {
    let mut all = BTreeMap::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let store = Database::open(&path)
            .with_context(|| format!("{}: is a counter still running?", path.display()))?;
        let transaction = store.begin_read()?;
        let counts = match transaction.open_table(COUNTS) {
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            counts => counts?,
        };
        for row in counts.iter()? {
            let (at, count) = row?;
            let (begin, key) = at.value();
            let key = String::from_utf8_lossy(key).into_owned();
            *all.entry((begin, key)).or_insert(0) += count.value();
        }
    }
    for ((begin, key), count) in all {
        println!("{begin} {key} {count}");
    }
    Ok(())
}
