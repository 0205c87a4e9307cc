//! `timberline consume`.
//!
//! One consumer reads all partitions asked for; records go to standard output as they come, in order within each
//! partition. Output is flushed whenever nothing more is there at once.
//!
//! A broker out of reach is reported once. A plain tail then waits for as long as it takes; with an end in sight, which
//! somebody may be waiting for, it gives up after the time that a call may take.

mod format;
mod group;

use std::collections::HashMap;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use futures::FutureExt;
use timberline_client::{
    BatchRecord, Client, Consumer, ConsumerOptions, Error, Outage, Position, RecordBatch,
};

use crate::complete::{groups, topics};
use crate::connect::ClientArgs;
use crate::failure::{Failure, UNREACHABLE};
use crate::json::RecordJson;
use crate::values::{From, Separator, parse_duration, parse_from, parse_separator};
use format::Template;
use tokio::sync::watch;

/// Bytes of output held back at most.
const OUTPUT_BYTES: usize = 256 << 10;

/// Read records.
///
/// Reads from the beginning and then waits for more, unless told otherwise. A broker that goes away is waited for; with
/// --until-end or --count for no longer than --request-timeout (exit code 4).
#[derive(Debug, Args)]
#[command(after_help = r"Examples:
  timberline consume greetings --until-end
  timberline consume greetings --from end                        only what comes from now on
  timberline consume greetings --from -15m -o jsonl
  timberline consume greetings --group readers                   shared with others of that group
  timberline consume greetings --tail 10 --until-end --format '%p/%o %T %k=%v\n'
  timberline consume files --from beginning --until-end --raw | sha256sum

FROM is beginning, end, an offset, or a time: RFC 3339 with a zone, @UNIX_MS, or a span ago such as -15m.

A format has: %t topic  %p partition  %o offset  %k key  %v value  %h headers (k=v,…)  %T timestamp in ms
  %D timestamp as a date  %K key length  %V value length  %% percent, and the escapes \n \t \r \0 \\ \xNN.
  A null is nothing, and its length -1.")]
pub(crate) struct ConsumeArgs {
    /// The topic.
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,

    /// Read as a member of this group: its members share the partitions, and it goes on where it stands. With --from beginning or
    /// end for a group that is new.
    #[arg(short, long, value_name = "GROUP", add = ArgValueCandidates::new(groups), conflicts_with_all = ["tail", "partitions"])]
    group: Option<String>,

    /// With --group: a static member, whose restart within the session moves nothing.
    #[arg(long, value_name = "ID", requires = "group")]
    instance: Option<String>,

    /// Where to begin in each partition: beginning, end, OFFSET or TIME.
    #[arg(short = 's', long, value_name = "FROM", default_value = "beginning", value_parser = parse_from, allow_hyphen_values = true)]
    from: From,

    /// Begin so many offsets before the end of each partition.
    #[arg(long, value_name = "N", conflicts_with = "from")]
    tail: Option<u32>,

    /// Stop at the ends that the partitions had at the start.
    #[arg(short = 'e', long)]
    until_end: bool,

    /// Stop after so many records.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,

    /// Only these partitions, separated by commas.
    #[arg(
        short,
        long,
        visible_alias = "partition",
        value_name = "N,…",
        value_delimiter = ','
    )]
    partitions: Vec<i32>,

    /// The values' bytes and nothing else.
    #[arg(short, long)]
    raw: bool,

    /// With --raw: bytes behind each value. Escapes: \n \t \0 \xNN.
    #[arg(short, long, value_name = "SEP", value_parser = parse_separator, requires = "raw")]
    delimiter: Option<Separator>,

    /// Print KEY, this separator, VALUE.
    #[arg(short = 'K', long, value_name = "SEP", value_parser = parse_separator, conflicts_with_all = ["raw", "format"])]
    key_separator: Option<Separator>,

    /// Print each record by this template; see below.
    #[arg(short, long, value_name = "TEMPLATE", value_parser = Template::parse, conflicts_with = "raw")]
    format: Option<Template>,

    /// Print records in JSON.
    #[arg(short, long, value_enum, conflicts_with_all = ["raw", "format", "key_separator"])]
    output: Option<RecordFormat>,

    /// Give up when no record comes for this long (exit code 4).
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Report damaged ranges on standard error and read on behind them.
    #[arg(long)]
    skip_damaged: bool,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RecordFormat {
    /// One JSON array, a record a line.
    Json,
    /// One JSON object a line.
    Jsonl,
}

pub(crate) async fn run(args: ConsumeArgs) -> Result<(), Failure> {
    let client = args.client.connect().await?;
    if let Some(group) = &args.group {
        return group::run(&args, &client, group).await;
    }
    let plan = Plan::make(&client, &args).await?;
    let mut consumer = client.consumer(ConsumerOptions::default()).await?;
    for (&partition, range) in &plan.ranges {
        let from = Position::Offset(range.from);
        consumer.assign(&args.topic, partition, from).await?;
    }
    let mut reading = Reading {
        outages: consumer.outages(),
        reported: None,
        consumer,
        ends: plan.ends(),
        left: args.count.unwrap_or(u64::MAX),
        printer: Printer::new(&args),
        args: &args,
    };
    reading.printer.begin()?;
    let outcome = reading.run().await;
    // What was read before a failure is output all the same.
    reading.printer.end()?;
    outcome
}

/// What is read of one partition.
#[derive(Clone, Copy, Debug)]
struct Range {
    from: i64,
    /// One after the last offset; `None`: without end.
    to: Option<i64>,
}

struct Plan {
    ranges: HashMap<i32, Range>,
}

impl Plan {
    async fn make(client: &Client, args: &ConsumeArgs) -> Result<Plan, Failure> {
        let topic = client.metadata(&args.topic).await?;
        let mut partitions: Vec<i32> = args.partitions.clone();
        if partitions.is_empty() {
            partitions = topic.partitions.iter().map(|info| info.partition).collect();
        }
        partitions.sort_unstable();
        partitions.dedup();
        // The ends first: a record that comes meanwhile is behind them.
        let ends = offsets(client, args, &partitions, Position::Latest).await?;
        let position = match (args.tail, args.from) {
            (Some(_), _) | (None, From::Beginning) => Position::Earliest,
            (None, From::End) => Position::Latest,
            (None, From::Offset(offset)) => Position::Offset(offset),
            (None, From::Time(ms)) => Position::Timestamp(ms),
        };
        let starts = offsets(client, args, &partitions, position).await?;
        let mut ranges = HashMap::new();
        for ((partition, start), end) in partitions.into_iter().zip(starts).zip(ends) {
            let from = match (args.tail, args.from) {
                (Some(tail), _) => start.max(end - i64::from(tail)),
                // From the end as it was asked for first, so that nothing falls between two answers.
                (None, From::End) => end,
                (None, _) => start,
            };
            let to = args.until_end.then_some(end);
            if to.is_none_or(|to| from < to) {
                ranges.insert(partition, Range { from, to });
            }
        }
        Ok(Plan { ranges })
    }

    fn ends(&self) -> HashMap<i32, i64> {
        let ends = self.ranges.iter();
        ends.map(|(&partition, range)| (partition, range.to.unwrap_or(i64::MAX)))
            .collect()
    }
}

async fn offsets(
    client: &Client,
    args: &ConsumeArgs,
    partitions: &[i32],
    position: Position,
) -> Result<Vec<i64>, Failure> {
    let items: Vec<_> = partitions
        .iter()
        .map(|&partition| (partition, position))
        .collect();
    let found = client.admin().list_offsets(&args.topic, &items).await?;
    Ok(found.iter().map(|info| info.offset).collect())
}

struct Reading<'a> {
    consumer: Consumer,
    outages: watch::Receiver<Option<Outage>>,
    /// When the outage began that was reported last.
    reported: Option<Instant>,
    /// Partitions that are still read, and where each ends.
    ends: HashMap<i32, i64>,
    /// Records still wanted.
    left: u64,
    printer: Printer<'a>,
    args: &'a ConsumeArgs,
}

impl Reading<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        while self.left > 0 && !self.ends.is_empty() {
            let next = match self.consumer.recv_batch().now_or_never() {
                Some(next) => next,
                None => {
                    self.printer.flush()?;
                    match self.wait().await? {
                        Some(next) => next,
                        None => return Ok(()),
                    }
                }
            };
            match next {
                Ok(batch) => self.print(&batch)?,
                Err(error) => self.step_over(error).await?,
            }
        }
        Ok(())
    }

    /// Waits for a batch; `None` when the user has seen enough.
    async fn wait(&mut self) -> Result<Option<Result<RecordBatch, Error>>, Failure> {
        let patience = self.args.timeout.unwrap_or(Duration::MAX);
        let starved = tokio::time::sleep(patience);
        tokio::pin!(starved);
        loop {
            let give_up = self.see_outage();
            tokio::select! {
                biased;
                next = self.consumer.recv_batch() => return Ok(Some(next)),
                // The sender lives as long as the consumer.
                _ = self.outages.changed() => {}
                () = sleep_until(give_up) => return Err(self.lost_contact()),
                () = &mut starved => {
                    return Err(Failure::timed_out(format!("no record came for {patience:?}"))
                        .next("Leave --timeout away to wait, or use --until-end to read what is there."));
                }
                _ = tokio::signal::ctrl_c() => return Ok(None),
            }
        }
    }

    /// Reports an outage that is new; returns when it has lasted too long.
    fn see_outage(&mut self) -> Option<Instant> {
        let outage = self.outages.borrow_and_update().clone()?;
        let limit = self.limit();
        if self.reported != Some(outage.since) {
            self.reported = Some(outage.since);
            let then = match limit {
                Some(limit) => format!("giving up if that lasts {limit:?}"),
                None => "reading goes on when that is over".to_owned(),
            };
            let _ = writeln!(
                io::stderr(),
                "warning: lost contact: {}; {then}",
                told(&outage.error)
            );
        }
        outage.since.checked_add(limit?)
    }

    /// How long an outage may last; `None`: as long as it takes.
    fn limit(&self) -> Option<Duration> {
        let bounded = self.args.until_end || self.args.count.is_some();
        bounded.then_some(self.args.client.request_timeout)
    }

    fn lost_contact(&self) -> Failure {
        let limit = self.args.client.request_timeout;
        let last = self.outages.borrow();
        let last = last.as_ref().map(|outage| told(&outage.error));
        Failure::timed_out(format!(
            "no contact for {limit:?}, and not all is read: {}",
            last.unwrap_or_default()
        ))
        .reason(UNREACHABLE)
        .next("Start the broker, then read again; --request-timeout says how long an outage may last.")
    }

    fn print(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let partition = batch.partition();
        let end = self.ends.get(&partition).copied().unwrap_or(0);
        for record in batch.records() {
            let record = match record {
                Ok(record) => record,
                Err(error) if self.args.skip_damaged => {
                    warn(&error);
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if record.offset >= end || self.left == 0 {
                break;
            }
            self.printer.print(batch.topic(), partition, &record)?;
            self.left -= 1;
        }
        if batch.next_offset() >= end {
            self.finish(partition)?;
        }
        Ok(())
    }

    fn finish(&mut self, partition: i32) -> Result<(), Failure> {
        self.ends.remove(&partition);
        self.consumer.unassign(&self.args.topic, partition)?;
        Ok(())
    }

    /// Goes on behind damage, if that was asked for.
    async fn step_over(&mut self, error: Error) -> Result<(), Failure> {
        let (Error::DataDamaged { partition, to, .. } | Error::CorruptBatch { partition, to, .. }) =
            &error
        else {
            return Err(error.into());
        };
        if !self.args.skip_damaged {
            return Err(error.into());
        }
        let (partition, to) = (*partition, *to);
        warn(&error);
        if self.ends.get(&partition).is_none_or(|&end| to >= end) {
            return self.finish(partition);
        }
        self.consumer
            .seek(&self.args.topic, partition, Position::Offset(to))
            .await?;
        Ok(())
    }
}

/// An outage's cause in a few words.
fn told(error: &Error) -> String {
    match error {
        Error::Transport { address, message } => format!("cannot reach {address}: {message}"),
        _ => error.to_string(),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn warn(error: &Error) {
    let _ = writeln!(io::stderr(), "warning: {error}");
}

/// How a record becomes output.
enum Style<'a> {
    Raw(&'a [u8]),
    Template(&'a Template),
    /// Separator of key and value.
    Pair(&'a [u8]),
    Line,
    JsonLine,
    JsonArray,
}

struct Printer<'a> {
    out: BufWriter<StdoutLock<'static>>,
    style: Style<'a>,
    first: bool,
}

impl<'a> Printer<'a> {
    fn new(args: &'a ConsumeArgs) -> Printer<'a> {
        let style = match (&args.format, &args.key_separator, args.output) {
            _ if args.raw => Style::Raw(
                args.delimiter
                    .as_ref()
                    .map_or(&[], |Separator(bytes)| bytes),
            ),
            (Some(template), ..) => Style::Template(template),
            (_, Some(Separator(bytes)), _) => Style::Pair(bytes),
            (.., Some(RecordFormat::Json)) => Style::JsonArray,
            (.., Some(RecordFormat::Jsonl)) => Style::JsonLine,
            _ => Style::Line,
        };
        Printer {
            out: BufWriter::with_capacity(OUTPUT_BYTES, io::stdout().lock()),
            style,
            first: true,
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        match self.style {
            Style::JsonArray => self.out.write_all(b"["),
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if matches!(self.style, Style::JsonArray) {
            let end: &[u8] = if self.first { b"]\n" } else { b"\n]\n" };
            self.out.write_all(end)?;
        }
        self.out.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn print(&mut self, topic: &str, partition: i32, record: &BatchRecord) -> io::Result<()> {
        let value = record.value.as_deref().unwrap_or_default();
        let out = &mut self.out;
        match self.style {
            Style::Raw(delimiter) => {
                out.write_all(value)?;
                out.write_all(delimiter)?;
            }
            Style::Template(template) => template.write(out, topic, partition, record)?,
            Style::Pair(separator) => {
                out.write_all(record.key.as_deref().unwrap_or_default())?;
                out.write_all(separator)?;
                out.write_all(value)?;
                out.write_all(b"\n")?;
            }
            Style::Line => {
                out.write_all(value)?;
                out.write_all(b"\n")?;
            }
            Style::JsonLine | Style::JsonArray => {
                if matches!(self.style, Style::JsonArray) {
                    out.write_all(if self.first { b"\n" } else { b",\n" })?;
                }
                serde_json::to_writer(&mut *out, &RecordJson::of(topic, partition, record))?;
                if matches!(self.style, Style::JsonLine) {
                    out.write_all(b"\n")?;
                }
            }
        }
        self.first = false;
        Ok(())
    }
}
