//! `timberline produce`.
//!
//! A thread reads the input and feeds the pump; the number of records acknowledged goes to standard output.

mod input;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use serde_json::json;
use timberline_client::{Client, Codec, ProducerOptions, ProducerRecord};
use timberline_workload::{Outcomes, Pump, PumpOptions, Tally};
use tokio::runtime::Handle;

use crate::complete::topics;
use crate::connect::ClientArgs;
use crate::failure::{BAD_INPUT, Failure};
use crate::json::RecordJson;
use crate::output::{Format, print};
use crate::progress::{Progress, Unit};
use crate::values::{
    Separator, count, parse_codec, parse_duration, parse_pair, parse_separator, parse_size,
};
use input::{Lines, Pieces};

/// Write records: a line of standard input each, JSON lines, or a file in pieces.
///
/// A record counts when the broker has it on disk. A broker that goes away is waited for, and nothing is written twice. The
/// count of acknowledged records is printed.
#[derive(Debug, Args)]
#[command(after_help = r"Examples:
  echo hello | timberline produce greetings
  printf 'k1:v1\nk2:v2\n' | timberline produce pairs -K ':'
  timberline consume a --until-end -o jsonl | timberline produce b --format json
  timberline produce files --file archive.tar --chunk 64KiB")]
pub(crate) struct ProduceArgs {
    /// The topic; it must exist.
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,

    /// Each line is KEY, this separator, VALUE. Without it a line is a value. Escapes: \t \n \xNN.
    #[arg(short = 'K', long, value_name = "SEP", value_parser = parse_separator)]
    key_separator: Option<Separator>,

    /// What standard input holds.
    #[arg(long, value_enum, default_value_t)]
    format: InputFormat,

    /// What ends a record of standard input.
    #[arg(short, long, value_name = "SEP", default_value = r"\n", value_parser = parse_separator)]
    delimiter: Separator,

    /// Send this file in pieces, in order, to one partition (0 unless --partition). `-` is standard input.
    #[arg(short, long, value_name = "PATH", conflicts_with_all = ["key_separator", "format", "delimiter"])]
    file: Option<PathBuf>,

    /// Size of a piece.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_size, requires = "file")]
    chunk: usize,

    /// Send everything to this partition [default: by key; without a key, spread].
    #[arg(short, long)]
    partition: Option<i32>,

    /// The key of every record.
    #[arg(short, long, conflicts_with = "key_separator")]
    key: Option<String>,

    /// A header of every record; may be given again.
    #[arg(short = 'H', long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    header: Vec<(String, String)>,

    /// Compress batches: none, gzip, snappy, lz4, zstd.
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none", value_parser = parse_codec)]
    compression: Codec,

    /// Longest wait of a record for company.
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = parse_duration)]
    linger: Duration,

    /// A batch is sent when it has this many bytes.
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_size)]
    batch: usize,

    /// How long a record may wait for its acknowledgement, a broker's restart included.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_duration)]
    timeout: Duration,

    /// How the result is printed; a table is the bare count.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum InputFormat {
    /// A record a line.
    #[default]
    Lines,
    /// A record a line, in JSON as `consume -o json` writes it.
    Json,
}

pub(crate) async fn run(args: ProduceArgs) -> Result<(), Failure> {
    if args.chunk == 0 {
        return Err(Failure::usage("--chunk must be at least 1 byte"));
    }
    let (source, total) = open(&args)?;
    let client = args.client.connect().await?;
    check_partition(&client, &args).await?;
    let options = ProducerOptions::default()
        .codec(args.compression)
        .linger(args.linger)
        .batch_bytes(args.batch)
        .delivery_timeout(args.timeout);
    let producer = client.producer(options).await?;
    producer.prepare(&args.topic).await?;
    let pump = Pump::new(producer.clone(), Handle::current(), PumpOptions::default());
    let tally = pump.tally();
    let progress = progress(&args, total, Arc::clone(&tally));
    let begun = Instant::now();
    let (topic, format) = (args.topic.clone(), args.output);
    let fed = tokio::task::spawn_blocking(move || feed(&args, source, pump, &tally));
    let (outcomes, stopped) = fed
        .await
        .map_err(|error| Failure::failed(format!("the reading thread ended early: {error}")))?;
    drop(progress);
    let _ = producer.close().await;
    let seconds = begun.elapsed().as_secs_f64();
    let value = json!({
        "topic": topic,
        "records": outcomes.acknowledged,
        "bytes": outcomes.acknowledged_bytes,
        "failed": outcomes.failed,
        "seconds": seconds,
    });
    print(format, &value, || format!("{}\n", outcomes.acknowledged))?;
    match (stopped, outcomes.first_error) {
        (_, Some(error)) => {
            let what = format!(
                "{} acknowledged, {} not",
                count(outcomes.acknowledged, "record"),
                outcomes.failed
            );
            Err(Failure::from(error).while_doing(&what))
        }
        (Some(failure), None) => {
            let what = format!(
                "stopped after {} acknowledged",
                count(outcomes.acknowledged, "record")
            );
            Err(failure.while_doing(&what))
        }
        (None, None) => Ok(()),
    }
}

/// The input, and how long it is if that is known.
fn open(args: &ProduceArgs) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    let Some(path) = args.file.as_ref().filter(|path| path.as_os_str() != "-") else {
        return Ok((Box::new(io::stdin()), None));
    };
    let failed = |error| Failure::failed(format!("reading {}: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(
            Failure::failed(format!("{} is a directory", path.display()))
                .next("Send an archive of it: `tar c DIR | timberline produce TOPIC --file -`."),
        );
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// A wrong partition is told before anything is read.
async fn check_partition(client: &Client, args: &ProduceArgs) -> Result<(), Failure> {
    let topic = client.metadata(&args.topic).await?;
    let count = topic.partitions.len();
    match args.partition {
        Some(partition) if usize::try_from(partition).map_or(true, |at| at >= count) => {
            Err(Failure::failed(format!(
                "{} has partitions 0 to {}, not {partition}",
                args.topic,
                count.saturating_sub(1)
            ))
            .next(timberline_client::Reason::UnknownPartition.advice())
            .reason(timberline_client::Reason::UnknownPartition.as_str()))
        }
        _ => Ok(()),
    }
}

fn progress(args: &ProduceArgs, total: Option<u64>, tally: Arc<Tally>) -> Option<Progress> {
    // Somebody who types lines does not want a moving one beside.
    if args.file.is_none() && io::stdin().is_terminal() {
        return None;
    }
    let (unit, count): (_, fn(&Tally) -> u64) = match args.file {
        Some(_) => (Unit::Bytes, Tally::acknowledged_bytes),
        None => (Unit::Records, Tally::acknowledged),
    };
    Some(Progress::start("produce", unit, total, move || {
        count(&tally)
    }))
}

/// What every record of this run has.
struct Template {
    topic: Arc<str>,
    partition: Option<i32>,
    key: Option<Bytes>,
    headers: Vec<(String, Option<Bytes>)>,
}

impl Template {
    fn record(&self, key: Option<Bytes>, value: Bytes) -> ProducerRecord {
        ProducerRecord {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            key: key.or_else(|| self.key.clone()),
            value: Some(value),
            headers: self.headers.clone(),
            timestamp_ms: None,
            delivery_timeout: None,
        }
    }
}

/// Reads to the end of the input, or to the first failure.
fn feed(
    args: &ProduceArgs,
    source: Box<dyn Read + Send>,
    mut pump: Pump,
    tally: &Tally,
) -> (Outcomes, Option<Failure>) {
    let header = |(key, value): &(String, String)| (key.clone(), Some(Bytes::from(value.clone())));
    let template = Template {
        topic: args.topic.as_str().into(),
        partition: args.partition.or(args.file.as_ref().map(|_| 0)),
        key: args.key.clone().map(Bytes::from),
        headers: args.header.iter().map(header).collect(),
    };
    let stopped = match (&args.file, args.format) {
        (Some(_), _) => feed_pieces(args, source, &mut pump, tally, &template),
        (None, InputFormat::Lines) => feed_lines(args, source, &mut pump, tally, &template),
        (None, InputFormat::Json) => feed_json(args, source, &mut pump, tally, &template),
    };
    (pump.finish(), stopped.err())
}

fn feed_pieces(
    args: &ProduceArgs,
    source: Box<dyn Read + Send>,
    pump: &mut Pump,
    tally: &Tally,
    template: &Template,
) -> Result<(), Failure> {
    let mut pieces = Pieces::new(source, args.chunk);
    while let Some(piece) = pieces.next_piece().map_err(unreadable)? {
        if tally.failed() > 0 {
            break;
        }
        let due = pump.now();
        pump.send(template.record(None, piece), 0, due)?;
    }
    Ok(())
}

fn feed_lines(
    args: &ProduceArgs,
    source: Box<dyn Read + Send>,
    pump: &mut Pump,
    tally: &Tally,
    template: &Template,
) -> Result<(), Failure> {
    let separator = args.key_separator.as_ref();
    let finder = separator.map(|Separator(bytes)| memchr::memmem::Finder::new(bytes));
    let mut lines = Lines::new(source, args.delimiter.0.clone());
    while let Some(line) = lines.next_line(|| pump.hand_over()).map_err(unreadable)? {
        if tally.failed() > 0 {
            break;
        }
        let record = match &finder {
            None => template.record(None, line),
            Some(finder) => {
                let Some(at) = finder.find(&line) else {
                    return Err(Failure::failed(format!(
                        "line {} has no key: the separator is not in it",
                        lines.number()
                    ))
                    .reason(BAD_INPUT));
                };
                let value = line.slice(at + finder.needle().len()..);
                template.record(Some(line.slice(..at)), value)
            }
        };
        let due = pump.now();
        pump.send(record, 0, due).map_err(|error| {
            Failure::from(error).while_doing(&format!("line {}", lines.number()))
        })?;
    }
    Ok(())
}

fn feed_json(
    args: &ProduceArgs,
    source: Box<dyn Read + Send>,
    pump: &mut Pump,
    tally: &Tally,
    template: &Template,
) -> Result<(), Failure> {
    let mut lines = Lines::new(source, args.delimiter.0.clone());
    while let Some(line) = lines.next_line(|| pump.hand_over()).map_err(unreadable)? {
        if tally.failed() > 0 {
            break;
        }
        // An array as `consume -o json` writes it has a record on each of its lines.
        let line = line.trim_ascii();
        let line = line.strip_suffix(b",").unwrap_or(line);
        if line.is_empty() || line == b"[" || line == b"]" {
            continue;
        }
        let bad = |why: String| {
            Failure::failed(format!("line {}: {why}", lines.number())).reason(BAD_INPUT)
        };
        let mut record = RecordJson::parse(line)
            .and_then(|json| json.into_record(Arc::clone(&template.topic)))
            .map_err(bad)?;
        record.partition = template.partition.or(record.partition);
        record.key = template.key.clone().or(record.key);
        record.headers.extend(template.headers.iter().cloned());
        let due = pump.now();
        pump.send(record, 0, due).map_err(|error| {
            Failure::from(error).while_doing(&format!("line {}", lines.number()))
        })?;
    }
    Ok(())
}

fn unreadable(error: io::Error) -> Failure {
    Failure::failed(format!("reading the input: {error}")).reason(BAD_INPUT)
}
