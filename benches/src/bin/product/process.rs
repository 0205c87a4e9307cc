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
