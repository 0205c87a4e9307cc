//! `timberline bench`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use timberline_client::{Codec, ConsumerOptions, ProducerOptions};
use timberline_workload::Tally;
use timberline_workload::bench::{
    BenchReport, ConsumeLoad, EndToEndLoad, ProduceLoad, SIZE_MIN, consume, end_to_end, produce,
};

use crate::complete::topics;
use crate::connect::ClientArgs;
use crate::failure::Failure;
use crate::output::{Format, facts, print};
use crate::progress::{Progress, Unit};
use crate::values::{parse_codec, parse_duration, parse_size};

/// Measure producing and consuming, with exact definitions.
///
/// MB are 10^6 bytes of record values. Values are random, and nothing is compressed unless asked for.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Produce(ProduceArgs),
    Consume(ConsumeArgs),
    EndToEnd(EndToEndArgs),
}

/// What every one of them takes.
#[derive(Debug, Args)]
struct Common {
    /// The topic; it must exist.
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    client: ClientArgs,
}

/// How a producer batches.
#[derive(Debug, Args)]
struct Batching {
    /// Longest wait of a record for company.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    linger: Option<Duration>,
    /// A batch is sent when it has this many bytes.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    batch: Option<usize>,
    /// Bytes of records without an acknowledgement, at most.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    buffer: Option<usize>,
    /// Compress batches: none, gzip, snappy, lz4, zstd. The values are random all the same.
    #[arg(long, value_parser = parse_codec, value_name = "CODEC")]
    compression: Option<Codec>,
    /// How long a record may wait for its acknowledgement. The first that fails ends the run (exit code 4 for this cause).
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    timeout: Duration,
}

impl Batching {
    fn options(&self, default_linger: Duration) -> ProducerOptions {
        let mut options = ProducerOptions::default()
            .linger(self.linger.unwrap_or(default_linger))
            .delivery_timeout(self.timeout);
        if let Some(bytes) = self.batch {
            options = options.batch_bytes(bytes);
        }
        if let Some(bytes) = self.buffer {
            options = options.buffer_bytes(bytes);
        }
        if let Some(codec) = self.compression {
            options = options.codec(codec);
        }
        options
    }
}

/// Produce records and time their acknowledgements.
///
/// With --rate the load is open: records are due at fixed times, and a latency runs from when its record was due, not
/// from when the sender got to it. A run that is to include the journal's whole life writes more than three times its size
/// (storage.journal_bytes, 128 MiB unless configured).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline bench produce load --records 4000000 --size 1KiB
  timberline bench produce load --records 200000 --size 1KiB --rate 20000 --linger 0 -o json")]
struct ProduceArgs {
    #[command(flatten)]
    common: Common,
    /// Records in total.
    #[arg(short = 'n', long, default_value_t = 1_000_000)]
    records: u64,
    /// Bytes of each value.
    #[arg(short, long, default_value = "1KiB", value_parser = parse_size)]
    size: usize,
    /// Records a second in total [default: as fast as it goes].
    #[arg(short, long)]
    rate: Option<f64>,
    /// Producers, each with a thread and a connection of its own.
    #[arg(long, default_value_t = 1)]
    producers: usize,
    /// All into one partition [default: spread].
    #[arg(long)]
    partition: Option<i32>,
    /// Different keys to give records; 0: none.
    #[arg(long, default_value_t = 0)]
    keys: u64,
    #[command(flatten)]
    batching: Batching,
}

/// Read records from the beginning, verify every checksum, hand over every record.
///
/// The latency is how long each batch was waited for.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline bench consume load --records 4000000
  timberline bench consume load -o json           all that is there now
  timberline bench consume load --group readers   as members of a group, which begins where it stands")]
struct ConsumeArgs {
    #[command(flatten)]
    common: Common,
    /// Records in total [default: those there are at the start].
    #[arg(short = 'n', long)]
    records: Option<u64>,
    /// Consumers, among which partitions are dealt out [default: one for each core].
    #[arg(long)]
    consumers: Option<usize>,
    /// Read as members of this group.
    #[arg(short, long)]
    group: Option<String>,
    /// Take records one by one, and not in batches.
    #[arg(long)]
    one_by_one: bool,
    /// Bytes fetched ahead by each.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    prefetch: Option<usize>,
    /// Give up when no record comes for this long (exit code 4).
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    timeout: Duration,
}

/// Produce at a rate and read along: the latency runs from when a record was due to when the reader has it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline bench end-to-end load --records 100000 --rate 10000 -o json"
)]
struct EndToEndArgs {
    #[command(flatten)]
    common: Common,
    /// Records in total.
    #[arg(short = 'n', long, default_value_t = 100_000)]
    records: u64,
    /// Bytes of each value, at least 24.
    #[arg(short, long, default_value = "1KiB", value_parser = parse_size)]
    size: usize,
    /// Records a second.
    #[arg(short, long, default_value_t = 1000.0)]
    rate: f64,
    #[command(flatten)]
    batching: Batching,
}

pub(crate) async fn run(args: BenchArgs) -> Result<(), Failure> {
    match args.command {
        BenchCommand::Produce(args) => run_produce(args).await,
        BenchCommand::Consume(args) => run_consume(args).await,
        BenchCommand::EndToEnd(args) => run_end_to_end(args).await,
    }
}

async fn run_produce(args: ProduceArgs) -> Result<(), Failure> {
    let client = args.common.client.connect().await?;
    let load = ProduceLoad {
        rate: args.rate,
        producers: args.producers,
        partition: args.partition,
        keys: args.keys,
        options: args.batching.options(ProducerOptions::default().linger),
        ..ProduceLoad::new(&args.common.topic, args.records, args.size)
    };
    let tally = Arc::new(Tally::default());
    let seen = Arc::clone(&tally);
    let progress = Progress::start("produce", Unit::Records, Some(args.records), move || {
        seen.acknowledged()
    });
    let report = produce(&client, &load, tally).await;
    drop(progress);
    show(args.common.output, "acknowledged after", &report?)
}

async fn run_consume(args: ConsumeArgs) -> Result<(), Failure> {
    let client = args.common.client.connect().await?;
    let mut options = ConsumerOptions::default();
    if let Some(bytes) = args.prefetch {
        options = options.prefetch_bytes(bytes);
    }
    let load = ConsumeLoad {
        consumers: args.consumers,
        group: args.group,
        one_by_one: args.one_by_one,
        options,
        starved_after: args.timeout,
        ..ConsumeLoad::new(&args.common.topic, args.records)
    };
    let read = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&read);
    let progress = Progress::start("consume", Unit::Records, args.records, move || {
        seen.load(Ordering::Relaxed)
    });
    let report = consume(&client, &load, read).await;
    drop(progress);
    show(args.common.output, "batch waited for", &report?)
}

async fn run_end_to_end(args: EndToEndArgs) -> Result<(), Failure> {
    if args.size < SIZE_MIN {
        return Err(Failure::usage(format!(
            "--size {} is less than {SIZE_MIN} bytes: each value carries its number and due time",
            args.size
        )));
    }
    let client = args.common.client.connect().await?;
    let load = EndToEndLoad {
        size: args.size,
        producer: args.batching.options(Duration::ZERO),
        ..EndToEndLoad::new(&args.common.topic, args.records, args.rate)
    };
    let tally = Arc::new(Tally::default());
    let seen = Arc::clone(&tally);
    let progress = Progress::start("end to end", Unit::Records, Some(args.records), move || {
        seen.acknowledged()
    });
    let report = end_to_end(&client, &load, tally).await;
    drop(progress);
    show(args.common.output, "read after", &report?)
}

fn show(format: Format, latency: &str, report: &BenchReport) -> Result<(), Failure> {
    let value = serde_json::to_value(report)
        .map_err(|error| Failure::failed(format!("writing the result: {error}")))?;
    print(format, &value, || {
        let ms = &report.latency_ms;
        facts(&[
            ("records", report.records.to_string()),
            ("errors", report.errors.to_string()),
            ("took", format!("{:.3} s", report.seconds)),
            (
                "rate",
                format!(
                    "{:.1} MB/s, {:.0} records/s",
                    report.mb_per_second, report.records_per_second
                ),
            ),
            (
                latency,
                format!(
                    "p50 {:.3}, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3} ms",
                    ms.p50, ms.p90, ms.p99, ms.p999, ms.max
                ),
            ),
        ])
    })?;
    if report.errors == 0 {
        return Ok(());
    }
    if let Some(error) = &report.first_error {
        let what = format!("{} records done, {} not", report.records, report.errors);
        return Err(Failure::from(error.clone()).while_doing(&what));
    }
    Err(Failure::failed(format!("{} records failed", report.errors))
        .next("See the broker's log, and `timberline cluster info`."))
}
