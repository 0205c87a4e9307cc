//! Replay: reads again what came since some time, to repair what a mistake of an hour ago has done.
//!
//! ```sh
//! cargo run -p timberline-client --example replay -- orders 3600      # what came in the last hour
//! ```
//!
//! Belongs to no group: it commits nothing and is in nobody's way. To move a *group* back instead, stop its members and use
//! `timberline group seek`.
//!
//! **Holds.** In each partition reading begins at the first record with this timestamp or a later one, and ends where the partition
//! ended at the start.
//!
//! **Does not hold.** Timestamps are the producers' and need not rise with the offset: behind the beginning there may be records with
//! an earlier one, which are read as well. Partitions are read side by side; there is no order between them.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Parser;
use timberline_client::{Client, ClientOptions, ConsumerOptions, Position};

/// Reads what a topic got since some time.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    topic: String,
    /// How far back, in seconds.
    seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let since = SystemTime::now()
        .checked_sub(Duration::from_secs(args.seconds))
        .and_then(|since| since.duration_since(UNIX_EPOCH).ok())
        .context("that is before 1970")?;
    let from = Position::Timestamp(i64::try_from(since.as_millis())?);

    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    let count = client.metadata(&args.topic).await?.partitions.len() as i32;
    let latest: Vec<_> = (0..count).map(|one| (one, Position::Latest)).collect();
    let ends = client.admin().list_offsets(&args.topic, &latest).await?;

    let mut consumer = client.consumer(ConsumerOptions::default()).await?;
    for (partition, end) in (0..).zip(&ends) {
        consumer.assign(&args.topic, partition, from).await?;
        // Nothing came since: nothing to wait for.
        if consumer.position(&args.topic, partition) >= Some(end.offset) {
            consumer.unassign(&args.topic, partition)?;
        }
    }
    while !consumer.assignment().is_empty() {
        let record = consumer.recv().await?;
        let end = usize::try_from(record.partition)
            .ok()
            .and_then(|at| ends.get(at))
            .map_or(0, |end| end.offset);
        if record.offset < end {
            let value = record.value.as_deref().unwrap_or_default();
            let text = String::from_utf8_lossy(value);
            println!(
                "{} {}/{} {text}",
                record.timestamp_ms, record.partition, record.offset
            );
        }
        if record.offset + 1 >= end {
            consumer.unassign(&args.topic, record.partition)?;
        }
    }
    Ok(())
}
