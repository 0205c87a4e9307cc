//! Sink into Postgres: every record is in the database exactly once, whatever is killed.
//!
//! ```sh
//! cargo run -p timberline-client --example sink_postgres -- orders 'host=/var/run/postgresql user=app dbname=app'
//! psql app -c 'SELECT part, count(*) FROM records GROUP BY part'
//! ```
//!
//! As `sink_sqlite`: the position is stored **with the data, in the same transaction**, a partition is read from where the database
//! stands, and records below the stored offset are left out inside of the transaction. What differs is who makes two members wait
//! for each other: here the row of the partition's position, locked with `FOR UPDATE`. Different partitions write side by side.
//!
//! **Holds.** Exactly once in this database, through `kill -9`, rebalances, lost commits and a Postgres that restarts (the sink ends
//! then; start it again).
//!
//! **Does not hold.** Effects outside of the transaction are at least once. With `synchronous_commit = off` Postgres may forget a
//! transaction: its records and its position together, so they are written again. The rules know the topic by its name: before a
//! topic is deleted and made again, remove its rows from `positions`.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use clap::Parser;
use timberline_client::{
    AssignedPartition, Client, ClientOptions, GroupOptions, ListenerFuture, Position,
    RebalanceListener, RecordBatch,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::NoTls;

/// No unique key on `records`: nothing hides a double. The lock is for members that start together, which `IF NOT EXISTS` is not.
const SCHEMA: &str = "
    BEGIN;
    SELECT pg_advisory_xact_lock(7071);
    CREATE TABLE IF NOT EXISTS records (topic TEXT, part INT, \"offset\" BIGINT, key BYTEA, value BYTEA);
    CREATE TABLE IF NOT EXISTS positions (topic TEXT, part INT, next BIGINT NOT NULL, PRIMARY KEY (topic, part));
    COMMIT;
";

/// Writes a topic into a Postgres database, exactly once.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    topic: String,
    /// A connection string, `host=… user=… dbname=…` or `postgres://…`.
    database: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut database = connect(&args.database).await?;
    database.batch_execute(SCHEMA).await?;
    let positions = Positions(connect(&args.database).await?);
    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    let options = GroupOptions::new("sink-postgres").topics([args.topic]);
    let mut consumer = client.group_consumer_with(options, positions).await?;
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
        let written = write(&mut database, &batch).await?;
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

async fn connect(database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(database, NoTls).await?;
    // When it ends, every call of the client fails and says why.
    tokio::spawn(connection);
    Ok(client)
}

/// Writes what is not there yet, and the position behind it. The number of records written.
async fn write(
    database: &mut tokio_postgres::Client,
    batch: &RecordBatch,
) -> anyhow::Result<usize> {
    let (topic, partition) = (&**batch.topic(), batch.partition());
    // Dropped without a commit, it is rolled back.
    let transaction = database.transaction().await?;
    let begin = "INSERT INTO positions VALUES ($1, $2, 0) ON CONFLICT DO NOTHING";
    transaction.execute(begin, &[&topic, &partition]).await?;
    // From here to the commit the partition is this transaction's alone.
    let lock = "SELECT next FROM positions WHERE topic = $1 AND part = $2 FOR UPDATE";
    let row = transaction.query_one(lock, &[&topic, &partition]).await?;
    let stored: i64 = row.get(0);

    let (mut offsets, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for record in batch.records() {
        let record = record?;
        if record.offset >= stored {
            offsets.push(record.offset);
            keys.push(record.key.map(Vec::from));
            values.push(record.value.map(Vec::from));
        }
    }
    // One round trip for the whole batch.
    let rows =
        "INSERT INTO records SELECT $1, $2, * FROM unnest($3::bigint[], $4::bytea[], $5::bytea[])";
    transaction
        .execute(rows, &[&topic, &partition, &offsets, &keys, &values])
        .await?;
    let next = stored.max(batch.next_offset());
    let advance = "UPDATE positions SET next = $3 WHERE topic = $1 AND part = $2";
    transaction
        .execute(advance, &[&topic, &partition, &next])
        .await?;
    transaction.commit().await?;
    Ok(offsets.len())
}

/// Where the database stands. A connection of its own, so that it need not wait for a transaction that is under way.
struct Positions(tokio_postgres::Client);

impl RebalanceListener for Positions {
    fn assigned<'a>(&'a self, partitions: &'a mut [AssignedPartition]) -> ListenerFuture<'a> {
        Box::pin(async move {
            for one in partitions {
                let (topic, partition) = (&*one.partition.topic, one.partition.partition);
                let query = "SELECT next FROM positions WHERE topic = $1 AND part = $2";
                let row = self.0.query_opt(query, &[&topic, &partition]).await;
                // A failure shows at the next write as well, and ends the process there. To begin at the first record is slow but never
                // wrong: what is there already is left out.
                let stored = row.ok().flatten().map(|row| row.get(0));
                one.start = Some(stored.map_or(Position::Earliest, Position::Offset));
            }
        })
    }
}
