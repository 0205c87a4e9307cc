//! Fan-out: several groups read the same topic, each all of it, none in the way of another.
//!
//! ```sh
//! cargo run -p timberline-client --example fan_out -- orders billing audit search
//! ```
//!
//! Reads what the topic holds now and ends. Run it again: every group goes on where it was, so a group that is new reads everything,
//! the others only what came meanwhile.
//!
//! **Holds.** A group has its own members and its own positions. Reading removes nothing: a record is there until the topic's
//! retention takes it, however many groups have read it. A group that is slow, or away for a week, holds up nobody.
//!
//! **Does not hold.** Groups know nothing of each other: there is no order between what `billing` and what `audit` see. A group that
//! is away for longer than the retention misses records, and goes on at the first one there is.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::Duration;

use clap::Parser;
use timberline_client::{Client, ClientOptions, GroupConsumer, GroupOptions, Position};

/// Reads a topic as several groups.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    topic: String,
    #[arg(required = true)]
    groups: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // One client serves all: it is a cheap handle, and shares connections and metadata.
    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    let mut readers = Vec::new();
    for group in args.groups {
        let read = read_all(client.clone(), args.topic.clone(), group.clone());
        readers.push((group, tokio::spawn(read)));
    }
    for (group, reader) in readers {
        println!("{group}: {} records", reader.await??);
    }
    Ok(())
}

/// Reads as a group up to where the topic ends now. The number of records.
async fn read_all(client: Client, topic: String, group: String) -> anyhow::Result<u64> {
    let count = client.metadata(&topic).await?.partitions.len() as i32;
    let latest: Vec<_> = (0..count).map(|one| (one, Position::Latest)).collect();
    let found = client.admin().list_offsets(&topic, &latest).await?;
    let ends: Vec<(i32, i64)> = (0..).zip(found.iter().map(|end| end.offset)).collect();

    let options = GroupOptions::new(group).topics([topic.as_str()]);
    let mut consumer = client.group_consumer(options).await?;
    let mut records = 0;
    let at_end = |consumer: &GroupConsumer| {
        let mut ends = ends.iter();
        ends.all(|&(one, end)| consumer.position(&topic, one).is_some_and(|at| at >= end))
    };
    while !at_end(&consumer) {
        // Partitions are taken in by `recv`, also those that have nothing new to read: look again now and then.
        match tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await {
            Ok(record) => {
                record?;
                records += 1;
            }
            Err(_elapsed) => {}
        }
    }
    // Commits what was read, so that the next run goes on here.
    consumer.close().await?;
    Ok(records)
}
