//! Hello: three records in, three records out.
//!
//! ```sh
//! timberline dev up --detach
//! cargo run -p timberline-client --example hello -- greetings
//! ```
//!
//! **Holds.** A printed `stored` line is an acknowledgement: a majority of the partition's replicas has the record on disk. Records
//! with the same key land in the same partition and keep their order.
//!
//! **Does not hold.** Run it twice and there are six records: a producer's retries never store a record twice, a program that sends
//! it again does. There is no order between different keys.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use clap::Parser;
use timberline_client::{
    Client, ClientOptions, ConsumerOptions, NewTopic, Position, ProducerOptions, ProducerRecord,
    Reason,
};

/// Sends three records and reads them back.
#[derive(Parser)]
struct Args {
    /// Brokers to ask first.
    #[arg(long, env = "TIMBERLINE_BOOTSTRAP", default_value = "127.0.0.1:7071")]
    bootstrap: String,
    /// Is created when it is not there.
    topic: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let client = Client::connect(ClientOptions::default().bootstrap([&args.bootstrap])).await?;
    match client
        .admin()
        .create_topic(NewTopic::new(&args.topic, 3))
        .await
    {
        Err(error) if error.reason() == Some(Reason::TopicExists) => {}
        created => drop(created?),
    }

    // `send` only puts a record into a batch; the delivery is the acknowledgement. Collecting deliveries first lets the three
    // records share a batch, instead of a round trip each.
    let producer = client.producer(ProducerOptions::default()).await?;
    let mut deliveries = Vec::new();
    for word in ["hello", "from", "timberline"] {
        let record = ProducerRecord::keyed(args.topic.as_str(), "greeter", word);
        deliveries.push(producer.send(record).await?);
    }
    let mut stored = Vec::new();
    for delivery in deliveries {
        let at = delivery.await?;
        println!("stored {}/{}", at.partition, at.offset);
        stored.push(at);
    }
    producer.close().await?;

    // One key, so one partition: read it from where the first of ours went.
    let mut consumer = client.consumer(ConsumerOptions::default()).await?;
    if let Some(first) = stored.first() {
        let from = Position::Offset(first.offset);
        consumer.assign(&args.topic, first.partition, from).await?;
    }
    for _ in &stored {
        let record = consumer.recv().await?;
        let value = record.value.unwrap_or_default();
        let text = String::from_utf8_lossy(&value);
        println!("read {}/{} {text}", record.partition, record.offset);
    }
    Ok(())
}
