//! `timberline demo`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use timberline_workload::demo::{self, DemoEvent, DemoOptions, DemoReport, PARTITIONS};

use crate::failure::Failure;
use crate::output::{Format, print, print_text};
use crate::values::{parse_size, show_size};

/// The most of a file that the demo takes: it is held in memory.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Kill brokers of a cluster in the middle of a real file, and count what is lost: 0.
///
/// Three brokers in three racks, in a temporary directory and on free ports; nothing is left behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline demo
  timberline demo --file /usr/share/dict/words --chunk 4KiB
  timberline demo -o json")]
pub(crate) struct DemoArgs {
    /// The file to send, at most its first 64 MiB [default: this program].
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// The file goes in pieces of this size.
    #[arg(long, default_value = "64KiB", value_parser = parse_size, value_name = "SIZE")]
    chunk: usize,

    /// A broker is started in each of these racks.
    #[arg(
        long,
        default_value = "a,b,c",
        value_name = "RACK,…",
        value_delimiter = ','
    )]
    racks: Vec<String>,

    /// How the result is printed; the story goes to standard error unless it is a table.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) async fn run(args: DemoArgs) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("finding this program: {error}")))?;
    let options = DemoOptions {
        file: args.file.unwrap_or_else(|| program.clone()),
        program,
        piece_bytes: args.chunk,
        bytes_max: FILE_BYTES_MAX,
        racks: args.racks,
    };
    let quiet = !args.output.is_table();
    tell(quiet, INTRODUCTION)?;
    let story = |event: DemoEvent| {
        // A closed output is noticed at the end; the demo goes on.
        let _ = tell(quiet, &told(&event));
    };
    let report = tokio::select! {
        report = Box::pin(demo::run(&options, story)) => report?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted")),
    };
    let value = serde_json::to_value(&report)
        .map_err(|error| Failure::failed(format!("writing the result: {error}")))?;
    print(args.output, &value, || summary(&report))?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(Failure::failed(
            "records are lost or wrong: this is a defect, please report it",
        ))
    }
}

fn tell(quiet: bool, text: &str) -> Result<(), Failure> {
    if quiet {
        let _ = io::stderr().write_all(text.as_bytes());
        return Ok(());
    }
    print_text(text)
}

const INTRODUCTION: &str = "\
Timberline is a replicated log broker: programs append records to partitions, others read them in order.
It acknowledges a record only when most of its replicas have it on disk. So let's kill brokers in the middle of the work.

";

fn told(event: &DemoEvent) -> String {
    match event {
        DemoEvent::Started { brokers, dir, took } => {
            let mut text = format!(
                "  started   {} brokers in {} ms, data in {}\n",
                brokers.len(),
                took.as_millis(),
                dir.display()
            );
            for broker in brokers {
                text.push_str(&format!(
                    "            broker {} in rack {}, process {}, on {}\n",
                    broker.id, broker.rack, broker.pid, broker.address
                ));
            }
            text
        }
        DemoEvent::Sending {
            file,
            bytes,
            pieces,
            replicas,
        } => format!(
            "  sending   {} ({}) in {pieces} pieces, each to {replicas} replicas\n",
            file.display(),
            show_size(i64::try_from(*bytes).unwrap_or(i64::MAX))
        ),
        DemoEvent::Killed {
            broker,
            leads,
            acknowledged,
            pieces,
        } => format!(
            "  kill -9   broker {}, process {}, which led {leads} of {PARTITIONS} partitions, with {acknowledged} of {pieces} pieces acknowledged\n",
            broker.id, broker.pid
        ),
        DemoEvent::TakenOver { took } => format!(
            "  election  the others lead all partitions after {} ms\n",
            took.as_millis()
        ),
        DemoEvent::Returned {
            broker,
            took,
            caught_up,
        } => format!(
            "  restart   broker {} serves after {} ms and has caught up after {} more\n",
            broker.id,
            took.as_millis(),
            caught_up.as_millis()
        ),
        DemoEvent::Sent { acknowledged } => format!(
            "  sent      all {acknowledged} pieces are acknowledged; the producer saw no error. Now another one:\n"
        ),
        DemoEvent::Read {
            read,
            brokers,
            identical,
        } => format!(
            "  read      {read} pieces back from the {brokers} left: the file is {}\n",
            if *identical {
                "the same, byte for byte"
            } else {
                "NOT THE SAME"
            }
        ),
        _ => String::new(),
    }
}

fn summary(report: &DemoReport) -> String {
    let verdict = &report.verdict;
    let (on, off) = if io::stdout().is_terminal() && report.is_clean() {
        ("\u{1b}[32m", "\u{1b}[0m")
    } else {
        ("", "")
    };
    format!(
        "\n  acknowledged: {}\n  read:         {}\n  {on}lost: {}{off}\n  duplicated: {}\n\nTwo kills, {:.1} s. Your turn:\n  timberline dev up --detach\n  timberline topic create hello --partitions 3 --replication-factor 3\n  echo world | timberline produce hello\n  timberline dev kill 1\n  timberline consume hello --from beginning --until-end --bootstrap 127.0.0.1:7081\n  timberline dev down\n",
        verdict.acknowledged, verdict.read, verdict.lost, verdict.duplicated, report.seconds,
    )
}
