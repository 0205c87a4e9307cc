//! Producing as fast as it goes, or at a rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use timberline_client::{Client, ProducerOptions, ProducerRecord};
use tokio::runtime::Handle;

use super::BenchReport;
use crate::error::{Error, Result};
use crate::payload::Payloads;
use crate::pump::{Outcomes, Pump, PumpOptions, Tally};

/// Shortest sleep of an open-loop sender: records due meanwhile are sent together, late by at most this.
const SLEEP_MIN: Duration = Duration::from_micros(100);

/// What to produce.
#[derive(Clone, Debug)]
pub struct ProduceLoad {
    /// The topic.
    pub topic: String,
    /// Records in total.
    pub records: u64,
    /// Bytes of each value.
    pub size: usize,
    /// Records a second in total; `None`: as fast as it goes.
    pub rate: Option<f64>,
    /// Producers, each with a thread and connections of its own.
    pub producers: usize,
    /// All into this partition; `None`: as records without a key go.
    pub partition: Option<i32>,
    /// Different keys to give records; 0: no keys.
    pub keys: u64,
    /// Batching, linger, compression.
    pub options: ProducerOptions,
    /// Of the random values.
    pub seed: u64,
}

impl ProduceLoad {
    /// `records` values of `size` bytes at full speed from one producer.
    pub fn new(topic: impl Into<String>, records: u64, size: usize) -> ProduceLoad {
        ProduceLoad {
            topic: topic.into(),
            records,
            size,
            rate: None,
            producers: 1,
            partition: None,
            keys: 0,
            options: ProducerOptions::default(),
            seed: 1,
        }
    }

    fn check(&self) -> Result<()> {
        if self.records == 0 {
            return Err(Error::Invalid("records must be at least 1".to_owned()));
        }
        if self.producers == 0 {
            return Err(Error::Invalid("producers must be at least 1".to_owned()));
        }
        if self
            .rate
            .is_some_and(|rate| !rate.is_finite() || rate <= 0.0)
        {
            return Err(Error::Invalid(
                "the rate must be more than 0 records a second".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Runs the load. `tally` counts along.
///
/// # Errors
/// The topic does not exist or can't be reached at the start. A record that fails ends the run at once, without waiting for
/// the others; the report has its error. When none is acknowledged, the error is returned instead.
pub async fn produce(
    client: &Client,
    load: &ProduceLoad,
    tally: Arc<Tally>,
) -> Result<BenchReport> {
    load.check()?;
    let mut pumps = Vec::new();
    for _ in 0..load.producers {
        let producer = client.producer(load.options.clone()).await?;
        producer.prepare(&load.topic).await?;
        let options = PumpOptions {
            measure: true,
            keep_acks: false,
        };
        let pump = Pump::new(producer.clone(), Handle::current(), options);
        pumps.push((producer, pump.with_tally(Arc::clone(&tally))));
    }
    let begun = Instant::now();
    let mut threads = Vec::new();
    for (at, (producer, pump)) in pumps.into_iter().enumerate() {
        let sender = Sender::new(load, at as u64, Arc::clone(&tally));
        let thread = tokio::task::spawn_blocking(move || sender.run(pump, begun));
        threads.push((producer, thread));
    }
    let mut all = Outcomes::default();
    for (producer, thread) in threads {
        all.add(thread.await?);
        // After a failure nobody waits for what is left in the buffer.
        if all.first_error.is_none() {
            let _ = producer.close().await;
        }
    }
    let took = all
        .last_ack
        .map_or_else(|| begun.elapsed(), |last| last - begun);
    if all.acknowledged == 0
        && let Some(error) = all.first_error
    {
        return Err(error.into());
    }
    let errors = load.records - all.acknowledged;
    let report = BenchReport::new(
        all.acknowledged,
        all.acknowledged_bytes,
        errors,
        took,
        &all.latencies,
    );
    Ok(BenchReport {
        first_error: all.first_error,
        ..report
    })
}

/// One producer's share: every `producers`th record, from `first` on.
struct Sender {
    topic: Arc<str>,
    payloads: Payloads,
    first: u64,
    step: u64,
    end: u64,
    rate: Option<f64>,
    partition: Option<i32>,
    keys: u64,
    tally: Arc<Tally>,
}

impl Sender {
    fn new(load: &ProduceLoad, first: u64, tally: Arc<Tally>) -> Sender {
        Sender {
            topic: load.topic.as_str().into(),
            payloads: Payloads::new(load.size, load.seed.wrapping_add(first)),
            first,
            step: load.producers as u64,
            end: load.records,
            rate: load.rate,
            partition: load.partition,
            keys: load.keys,
            tally,
        }
    }

    fn run(mut self, mut pump: Pump, begun: Instant) -> Outcomes {
        let mut at = self.first;
        while at < self.end {
            let due = match self.rate {
                None => pump.now(),
                Some(rate) => {
                    let due = begun + Duration::from_secs_f64(at as f64 / rate);
                    sleep_until(due, &mut pump);
                    due
                }
            };
            let record = ProducerRecord {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                key: (self.keys > 0).then(|| key(at % self.keys)),
                value: Some(self.payloads.next_value()),
                headers: Vec::new(),
                // One reading of the clock serves several records; at a rate each has its own.
                timestamp_ms: self.rate.is_none().then(|| pump.wall_ms()),
                delivery_timeout: None,
            };
            // A run with a failure is not worth going on with. What was not sent counts as an error: it has no
            // acknowledgement.
            if let Err(error) = pump.send(record, at, due) {
                let mut outcomes = pump.abort();
                outcomes.first_error.get_or_insert(error);
                return outcomes;
            }
            if self.tally.failed() > 0 {
                return pump.abort();
            }
            at += self.step;
        }
        pump.finish()
    }
}

/// Sleeps until `due`, if that is in the future.
pub(super) fn sleep_until(due: Instant, pump: &mut Pump) {
    let now = Instant::now();
    if due > now {
        pump.hand_over();
        std::thread::sleep((due - now).max(SLEEP_MIN));
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number}"))
}
