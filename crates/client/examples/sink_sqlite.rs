//! Sink into SQLite: every record is in the database exactly once, whatever is killed.
//!
//! ```sh
//! cargo run -p timberline-client --example sink_sqlite -- orders orders.db     # two of them share the topic and the file
//! sqlite3 orders.db 'SELECT part, count(*) FROM records GROUP BY part'
//! ```
//!
//! The position is stored **with the data, in the same transaction**: either both are there or neither. Two rules make the rest:
//!
//! 1. A partition that is new to this member is read from where the *database* stands, not from what the group committed.
//! 2. Inside of the transaction, records below the stored offset are left out. So a member that does not know yet that its partition
//!    has gone to another one (it was paused, or cut off) adds nothing that the other one has written already.
//!
//! **Holds.** Exactly once in this database, through `kill -9`, rebalances and lost commits. The group's own offsets are committed
//! only so that `timberline group lag` has something to show.
//!
//! **Does not hold.** Effects outside of the transaction, a mail say, are at least once. The rules know the topic by its name: before
//! a topic is deleted and made again, remove its rows from `positions`. All members must use the same database file.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use timberline_client::{
    AssignedPartition, Client, ClientOptions, GroupOptions, ListenerFuture, Position,
    RebalanceListener, RecordBatch,
};
use tokio::signal::unix::{SignalKind, signal};

/// No unique key on `records`: nothing hides a double.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE IF NOT EXISTS records (topic TEXT, part INTEGER, offset INTEGER, key BLOB, value BLOB);
    CREATE TABLE IF NOT EXISTS positions (topic TEXT, part INTEGER, next INTEGER, PRIMARY KEY (topic, part));
";

/// Writes a topic into a SQLite database, exactly once.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    topic: String,
    /// The file; is created when it is not there.
    database: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let database = Database::open(&args.database)?;
    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    let options = GroupOptions::new("sink-sqlite").topics([args.topic]);
    let mut consumer = client
        .group_consumer_with(options, database.clone())
        .await?;
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    loop {
        // A batch per transaction: one sync of the disk for all of its records.
        let batch = tokio::select! {
            batch = consumer.recv_batch() => batch?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        // SQLite blocks; this keeps the consumer's own tasks, its heartbeats among them, going meanwhile.
        let written = tokio::task::block_in_place(|| database.write(&batch))?;
        println!(
            "wrote {written} of {}/{} up to {}",
            batch.topic(),
            batch.partition(),
            batch.next_offset()
        );
    }
    consumer.close().await?;
    Ok(())
}

#[derive(Clone)]
struct Database(Arc<Mutex<Connection>>);

impl Database {
    fn open(path: &PathBuf) -> rusqlite::Result<Database> {
        let connection = Connection::open(path)?;
        // The other members write too; one waits for another.
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Database(Arc::new(Mutex::new(connection))))
    }

    /// Writes what is not there yet, and the position behind it. The number of records written.
    fn write(&self, batch: &RecordBatch) -> anyhow::Result<usize> {
        let (topic, partition) = (batch.topic(), batch.partition());
        let mut connection = self.0.lock();
        // Takes the write lock before it reads, so nobody moves the position between the look and the commit.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let stored = position(&transaction, topic, partition)?.unwrap_or(0);
        let mut insert = transaction.prepare("INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5)")?;
        let mut written = 0;
        for record in batch.records() {
            let record = record?;
            if record.offset >= stored {
                let (key, value) = (record.key.as_deref(), record.value.as_deref());
                written +=
                    insert.execute(params![&**topic, partition, record.offset, key, value])?;
            }
        }
        drop(insert);
        transaction.execute(
            "INSERT OR REPLACE INTO positions VALUES (?1, ?2, ?3)",
            params![&**topic, partition, stored.max(batch.next_offset())],
        )?;
        transaction.commit()?;
        Ok(written)
    }
}

/// The offset of the next record that belongs into the database.
fn position(db: &Connection, topic: &str, partition: i32) -> rusqlite::Result<Option<i64>> {
    let query = "SELECT next FROM positions WHERE topic = ?1 AND part = ?2";
    db.query_row(query, params![topic, partition], |row| row.get(0))
        .optional()
}

impl RebalanceListener for Database {
    fn assigned<'a>(&'a self, partitions: &'a mut [AssignedPartition]) -> ListenerFuture<'a> {
        Box::pin(async move {
            let db = self.0.lock();
            for one in partitions {
                let name = &one.partition;
                // A failure shows at the first write as well, and ends the process there. To begin at 0 is slow but never wrong: what is
                // there already is left out.
                let stored = position(&db, &name.topic, name.partition).ok().flatten();
                one.start = Some(stored.map_or(Position::Earliest, Position::Offset));
            }
        })
    }
}
