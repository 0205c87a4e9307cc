//! Worker: does something for every record, at least once, and stops in order.
//!
//! ```sh
//! cargo run -p timberline-client --example worker -- orders mailer     # as many of these as you like; Ctrl-C ends one
//! ```
//!
//! Workers with the same group share the topic's partitions: start one more and it takes over some, stop one and the others take
//! over its own.
//!
//! **Holds.** Every record is handled at least once. A record counts as done when the worker comes back for the next one, never
//! before; what was at work when it was killed is handled again, by whoever gets the partition. Ctrl-C and SIGTERM finish the record
//! at hand, commit and leave, so that the others take over at once and repeat nothing.
//!
//! **Does not hold.** After a `kill -9`, or a cut longer than the session, some records are handled twice, a second's worth at most:
//! that is how often positions are committed. Make the handler idempotent, or keep the offset with its results as `sink_sqlite` does.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use clap::Parser;
use timberline_client::{Client, ClientOptions, ConsumedRecord, GroupOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Handles every record of a topic at least once.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    topic: String,
    /// Workers of a group share the topic.
    group: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    let options = GroupOptions::new(args.group).topics([args.topic]);
    let mut consumer = client.group_consumer(options).await?;
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    loop {
        // Only the waiting is given up for a signal, never a record that is being handled. `recv` loses none when it is dropped.
        let record = tokio::select! {
            record = consumer.recv() => record?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        // An error ends the process without leaving in order, so this record is handled again after the restart.
        handle(&record).await?;
    }
    // What was handled is committed, and the partitions go to others now instead of at the end of the session.
    consumer.close().await?;
    println!("left");
    Ok(())
}

/// The work. While it takes longer than the broker's `max_poll_interval`, the partitions go to others.
async fn handle(record: &ConsumedRecord) -> anyhow::Result<()> {
    let value = record.value.as_deref().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    println!("done {}/{} {text}", record.partition, record.offset);
    Ok(())
}
