//! Running programs, and what the system says of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A program that was built into the same directory as this one.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.with_file_name(name);
    anyhow::ensure!(
        path.exists(),
        "{} is missing: build it first",
        path.display()
    );
    Ok(path)
}

/// Runs a program to its end; its last line of output is one JSON value.
pub(crate) fn run(program: &Path, args: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(program).args(args).output()?;
    anyhow::ensure!(
        output.status.success(),
        "{} {args:?}: {}\n{}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_json::from_str(text.trim()).unwrap_or(Value::String(text)))
}

/// Seconds of CPU.
pub(crate) type Cpu = f64;

/// CPU used so far by a process.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<Cpu> {
    cpu_in(&format!("/proc/{pid}/stat"), [11, 12])
}

/// CPU used so far by the children of this process that have ended.
pub(crate) fn cpu_of_children() -> anyhow::Result<Cpu> {
    cpu_in("/proc/self/stat", [13, 14])
}

/// CPU used so far by a process's threads, by name without number.
pub(crate) fn cpu_of_threads(pid: u32) -> anyhow::Result<Vec<(String, Cpu)>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path().to_string_lossy().into_owned();
        // It may have ended.
        let Ok(name) = std::fs::read_to_string(format!("{task}/comm")) else {
            continue;
        };
        let name = name
            .trim()
            .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        if let Ok(cpu) = cpu_in(&format!("{task}/stat"), [11, 12]) {
            all.push((name.to_owned(), cpu));
        }
    }
    Ok(all)
}

/// The sum of two of the fields behind the name.
fn cpu_in(stat: &str, fields: [usize; 2]) -> anyhow::Result<Cpu> {
    let text = std::fs::read_to_string(stat)?;
    let behind_name = text.rsplit(')').next().unwrap_or_default();
    let all: Vec<&str> = behind_name.split_whitespace().collect();
    let ticks = |at: usize| all.get(at).copied().unwrap_or_default().parse::<f64>();
    let ticks = ticks(fields[0])? + ticks(fields[1])?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident memory of a process, by what backs it.
pub(crate) fn memory(pid: u32) -> anyhow::Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        let kib: f64 = number.and_then(|n| n.parse().ok()).unwrap_or(0.0);
        kib / 1024.0
    };
    Ok(format!(
        "RssAnon {:.1} MiB, RssFile {:.1} MiB",
        mib("RssAnon"),
        mib("RssFile")
    ))
}

/// Bytes allocated on disk below a directory.
pub(crate) fn disk_bytes(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        bytes += entry.metadata()?.blocks() * 512;
        if entry.file_type()?.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}
