//! From due to read: one producer at a rate, one consumer at the end of the log.
//!
//! A value begins with the run's id, the record's number and when it was due, so that the reader needs no table; what
//! other producers write to the topic is skipped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use timberline_client::{
    Client, Consumer, ConsumerOptions, Position, ProducerOptions, ProducerRecord,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::BenchReport;
use super::produce::sleep_until;
use crate::error::{Error, Result};
use crate::latency::Latencies;
use crate::payload::Payloads;
use crate::pump::{Outcomes, Pump, PumpOptions, Tally};

/// Smallest value in bytes: run, number and due time.
pub const SIZE_MIN: usize = 24;

/// What to send and read.
#[derive(Clone, Debug)]
pub struct EndToEndLoad {
    /// The topic.
    pub topic: String,
    /// Records in total.
    pub records: u64,
    /// Bytes of each value, at least [`SIZE_MIN`].
    pub size: usize,
    /// Records a second.
    pub rate: f64,
    /// Of the producer.
    pub producer: ProducerOptions,
    /// Of the consumer.
    pub consumer: ConsumerOptions,
    /// How long to wait for missing records after the last was sent.
    pub patience: Duration,
}

impl EndToEndLoad {
    /// `records` values of 1 KiB at `rate` a second, without linger.
    pub fn new(topic: impl Into<String>, records: u64, rate: f64) -> EndToEndLoad {
        EndToEndLoad {
            topic: topic.into(),
            records,
            size: 1024,
            rate,
            producer: ProducerOptions::default().linger(Duration::ZERO),
            consumer: ConsumerOptions::default(),
            patience: Duration::from_secs(10),
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Invalid(what.to_owned()));
        if self.records == 0 {
            return wrong("records must be at least 1");
        }
        if self.size < SIZE_MIN {
            return wrong(
                "the size must be at least 24 bytes: each value carries its number and due time",
            );
        }
        if !self.rate.is_finite() || self.rate <= 0.0 {
            return wrong("the rate must be more than 0 records a second");
        }
        Ok(())
    }
}

/// Runs the load. `tally` counts acknowledgements along.
///
/// # Errors
/// The topic does not exist or can't be reached at the start.
pub async fn end_to_end(
    client: &Client,
    load: &EndToEndLoad,
    tally: Arc<Tally>,
) -> Result<BenchReport> {
    load.check()?;
    let partitions = client.metadata(&load.topic).await?.partitions.len() as i32;
    let mut consumer = client
        .consumer(load.consumer.clone().verify_crc(true))
        .await?;
    for partition in 0..partitions {
        consumer
            .assign(&load.topic, partition, Position::Latest)
            .await?;
    }
    let producer = client.producer(load.producer.clone()).await?;
    producer.prepare(&load.topic).await?;
    let pump = Pump::new(producer.clone(), Handle::current(), PumpOptions::default());
    let pump = pump.with_tally(tally);
    let run = rand::random();
    let begun = Instant::now();
    let (sent, all_sent) = oneshot::channel();
    let reader = Reader {
        run,
        begun,
        seen: Seen::new(load.records),
        twice: 0,
        bytes: 0,
        latencies: Latencies::default(),
        last: None,
    };
    let reader = tokio::spawn(reader.run(consumer, all_sent, load.patience));
    let sender = Sender {
        run,
        begun,
        load: load.clone(),
    };
    let outcomes = tokio::task::spawn_blocking(move || sender.send(pump)).await?;
    let _ = sent.send(());
    let reader = reader.await??;
    if outcomes.first_error.is_none() {
        let _ = producer.close().await;
    }
    let took = reader
        .last
        .map_or_else(|| begun.elapsed(), |last| last - begun);
    let read = reader.seen.count;
    let errors = load.records - read + reader.twice;
    if read == 0
        && let Some(error) = outcomes.first_error
    {
        return Err(error.into());
    }
    let report = BenchReport::new(read, reader.bytes, errors, took, &reader.latencies);
    Ok(BenchReport {
        first_error: outcomes.first_error,
        ..report
    })
}

struct Sender {
    run: u64,
    begun: Instant,
    load: EndToEndLoad,
}

impl Sender {
    fn send(self, mut pump: Pump) -> Outcomes {
        let mut payloads = Payloads::new(self.load.size, self.run);
        let topic: Arc<str> = self.load.topic.as_str().into();
        for number in 0..self.load.records {
            let after = Duration::from_secs_f64(number as f64 / self.load.rate);
            let due = self.begun + after;
            sleep_until(due, &mut pump);
            let value = stamped(self.run, number, after, &payloads.next_value());
            let record = ProducerRecord::value(Arc::clone(&topic), value);
            if let Err(error) = pump.send(record, number, due) {
                let mut outcomes = pump.abort();
                outcomes.first_error.get_or_insert(error);
                return outcomes;
            }
            if pump.tally().failed() > 0 {
                return pump.abort();
            }
        }
        pump.finish()
    }
}

fn stamped(run: u64, number: u64, due: Duration, random: &Bytes) -> Bytes {
    let mut value = BytesMut::with_capacity(random.len());
    value.put_u64(run);
    value.put_u64(number);
    value.put_u64(due.as_nanos() as u64);
    value.put_slice(&random[SIZE_MIN..]);
    value.freeze()
}

/// Number and due time of a value of this run.
fn stamp(run: u64, value: &[u8]) -> Option<(u64, Duration)> {
    let field = |at: usize| {
        let bytes = value.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    if field(0)? != run {
        return None;
    }
    Some((field(8)?, Duration::from_nanos(field(16)?)))
}

/// Which numbers were read: a bit each.
struct Seen {
    bits: Vec<u64>,
    count: u64,
    wanted: u64,
}

impl Seen {
    fn new(wanted: u64) -> Seen {
        Seen {
            bits: vec![0; (wanted / 64 + 1) as usize],
            count: 0,
            wanted,
        }
    }

    /// False when the number was seen before.
    fn mark(&mut self, number: u64) -> bool {
        let Some(word) = self.bits.get_mut((number / 64) as usize) else {
            return false;
        };
        let bit = 1 << (number % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(new);
        new
    }
}

struct Reader {
    run: u64,
    begun: Instant,
    seen: Seen,
    twice: u64,
    bytes: u64,
    latencies: Latencies,
    last: Option<Instant>,
}

impl Reader {
    async fn run(
        mut self,
        mut consumer: Consumer,
        mut all_sent: oneshot::Receiver<()>,
        patience: Duration,
    ) -> Result<Reader> {
        let mut sending = true;
        while self.seen.count < self.seen.wanted {
            let batch = tokio::select! {
                biased;
                batch = consumer.recv_batch() => batch?,
                _ = &mut all_sent, if sending => {
                    sending = false;
                    continue;
                }
                // What is missing now is missing.
                () = tokio::time::sleep(patience), if !sending => return Ok(self),
            };
            for record in batch.records() {
                let record = record?;
                let Some(value) = &record.value else { continue };
                let Some((number, due)) = stamp(self.run, value) else {
                    continue;
                };
                if !self.seen.mark(number) {
                    self.twice += 1;
                    continue;
                }
                let now = Instant::now();
                self.bytes += value.len() as u64;
                self.latencies
                    .add(now.saturating_duration_since(self.begun + due));
                self.last = Some(now);
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_foreign_values_are_not() {
        let random = Bytes::from(vec![9; 40]);
        let value = stamped(5, 7, Duration::from_nanos(11), &random);
        assert_eq!(value.len(), 40);
        assert_eq!(stamp(5, &value), Some((7, Duration::from_nanos(11))));
        assert_eq!(stamp(6, &value), None);
        assert_eq!(stamp(5, &value[..20]), None);
    }

    #[test]
    fn numbers_are_seen_once() {
        let mut seen = Seen::new(65);
        assert!(seen.mark(0) && seen.mark(64) && !seen.mark(64) && !seen.mark(1 << 40));
        assert_eq!(seen.count, 2);
    }
}
