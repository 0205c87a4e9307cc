//! Which segment files lie in the directory. Names are parsed, contents not looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::RecoveryReport;
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::shared::Shared;

/// Segment files, and rows of installs, by id.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) files: BTreeMap<FileId, PathBuf>,
    /// Rows of installs.
    pub(crate) installs: BTreeMap<FileId, PathBuf>,
}

impl Listing {
    pub(crate) fn max_id(&self) -> u64 {
        let last = |of: &BTreeMap<FileId, _>| of.last_key_value().map_or(0, |(id, _)| id.0);
        last(&self.files).max(last(&self.installs))
    }
}

/// Lists `logs/*/*.seg` and `logs/*/*.ins`. What has another name is reported and left alone.
pub(crate) fn list(shared: &Shared, report: &mut RecoveryReport) -> Result<Listing> {
    let mut listing = Listing::default();
    let logs = shared.logs_dir();
    // A topic's directory may be there and not be durable: nobody will create it again.
    shared.dirs.changed(&logs);
    let what = |path: &PathBuf| Error::io(format!("listing {}", path.display()));
    for topic in shared.disk.list(&logs).map_err(what(&logs))? {
        let dir = logs.join(&topic.name);
        if !topic.is_dir {
            report.foreign.push(dir.display().to_string());
            continue;
        }
        for entry in shared.disk.list(&dir).map_err(what(&dir))? {
            let path = dir.join(&entry.name);
            match parse(&entry.name).filter(|_| !entry.is_dir) {
                Some((id, true)) => {
                    listing.files.insert(id, path);
                }
                Some((id, false)) => {
                    listing.installs.insert(id, path);
                }
                None => report.foreign.push(path.display().to_string()),
            }
        }
    }
    Ok(listing)
}

/// The id in a name, and whether it is a segment's.
pub(crate) fn parse(name: &str) -> Option<(FileId, bool)> {
    let (name, kind) = name.rsplit_once('.')?;
    let is_segment = match kind {
        "seg" => true,
        "ins" => false,
        _ => return None,
    };
    let (partition, file) = name.split_once('-')?;
    partition.parse::<u32>().ok()?;
    let id = u64::from_str_radix(file, 16)
        .ok()
        .filter(|_| file.len() == 16)?;
    Some((FileId(id), is_segment))
}
