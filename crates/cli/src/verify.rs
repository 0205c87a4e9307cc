//! `timberline verify`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use timberline_storage::disk::RealDisk;
use timberline_storage::{Error, VerifyReport, verify_directory};

use crate::failure::{DATA_DIR_DAMAGED, DATA_DIR_IN_USE, Failure};
use crate::output::{Format, columns, facts, print};
use crate::values::show_size;

/// Check what is stored.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(subcommand)]
    command: VerifyCommand,
}

#[derive(Debug, Subcommand)]
enum VerifyCommand {
    Log(LogArgs),
}

/// Check every frame, checksum, chain and footer of a stopped broker's data directory; exit code 3 on damage.
///
/// Nothing is changed. What lies behind the last checkpoint of a broker that did not stop cleanly is judged by the
/// next start, not here; it is only counted.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline verify log\n  timberline verify log /var/lib/timberline -o json"
)]
struct LogArgs {
    /// The data directory [default: ./timberline-data].
    #[arg(value_name = "DIR", conflicts_with = "data_dir")]
    dir: Option<PathBuf>,
    /// The same, as the server's flag.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let VerifyCommand::Log(args) = &args.command;
    let dir = args.dir.clone().or(args.data_dir.clone());
    let dir = dir.unwrap_or_else(|| PathBuf::from("./timberline-data"));
    let report = verify_directory(Arc::new(RealDisk::new()), &dir).map_err(|error| {
        let failure = Failure::failed(error.to_string());
        match error {
            Error::Locked { .. } => failure
                .next("Stop the broker first: the check is of a directory at rest.")
                .reason(DATA_DIR_IN_USE),
            Error::Corrupt { .. } => failure.reason(DATA_DIR_DAMAGED),
            _ => failure,
        }
    })?;
    print(args.output, &value(&report), || {
        table(&report, args.output.is_wide())
    })?;
    if report.damage.is_empty() {
        return Ok(());
    }
    Err(Failure::unhealthy(format!("{} damaged places", report.damage.len()))
        .next("A broker quarantines these offsets and serves the rest; a replica or a backup has the records.")
        .reason(timberline_client::Reason::DataDamaged.as_str()))
}

fn value(report: &VerifyReport) -> Value {
    let logs: Vec<_> = report
        .logs
        .iter()
        .map(|log| {
            json!({
                "topic_id": log.spec.topic.to_string(),
                "partition": log.spec.partition,
                "replica": log.spec.replica.0,
                "files": log.files,
                "frames": log.frames,
                "records": log.records,
                "bytes": log.bytes,
                "log_start_offset": log.log_start,
                "next_offset": log.next_offset,
                "unproven_bytes": log.unproven_bytes,
            })
        })
        .collect();
    let damage: Vec<_> = report
        .damage
        .iter()
        .map(|damage| {
            json!({
                "file": damage.file,
                "position": damage.position,
                "bytes": damage.bytes,
                "offsets": damage.offsets.map(|(from, to)| json!({"from": from, "to": to})),
                "what": damage.what,
            })
        })
        .collect();
    json!({
        "directory_id": report.directory.to_string(),
        "clean_stop": report.clean,
        "journal_cycles": report.journal_cycles,
        "logs": logs,
        "damage": damage,
        "notes": report.notes,
    })
}

fn table(report: &VerifyReport, wide: bool) -> String {
    let frames: u64 = report.logs.iter().map(|log| log.frames).sum();
    let records: u64 = report.logs.iter().map(|log| log.records).sum();
    let bytes: u64 = report.logs.iter().map(|log| log.bytes).sum();
    let mut text = facts(&[
        ("directory", report.directory.to_string()),
        (
            "stopped",
            if report.clean {
                "cleanly"
            } else {
                "not cleanly: the next start recovers"
            }
            .to_owned(),
        ),
        (
            "checked",
            format!(
                "{} logs, {frames} frames, {records} records, {}",
                report.logs.len(),
                show_size(bytes as i64)
            ),
        ),
        (
            "damage",
            if report.damage.is_empty() {
                "none".to_owned()
            } else {
                format!("{} places", report.damage.len())
            },
        ),
    ]);
    if wide {
        let rows = report.logs.iter().map(|log| {
            vec![
                log.spec.topic.to_string(),
                log.spec.partition.to_string(),
                log.files.to_string(),
                log.frames.to_string(),
                log.records.to_string(),
                show_size(log.bytes as i64),
                format!("{}..{}", log.log_start, log.next_offset),
            ]
        });
        let headers = [
            "TOPIC ID",
            "PARTITION",
            "FILES",
            "FRAMES",
            "RECORDS",
            "SIZE",
            "OFFSETS",
        ];
        text.push('\n');
        text.push_str(&columns(&headers, &headers[1..6], rows.collect()));
    }
    if !report.damage.is_empty() {
        let rows = report.damage.iter().map(|damage| {
            vec![
                damage.file.clone(),
                damage.position.to_string(),
                damage.bytes.to_string(),
                damage
                    .offsets
                    .map_or("-".to_owned(), |(from, to)| format!("{from}..{to}")),
                damage.what.clone(),
            ]
        });
        text.push('\n');
        text.push_str(&columns(
            &["FILE", "POSITION", "BYTES", "OFFSETS", "WHAT"],
            &["POSITION", "BYTES"],
            rows.collect(),
        ));
    }
    for note in &report.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}
