//! The directory's own files: which there are, and how they are made.
//!
//! The identity is written last, so that a directory is ours only when the rest of it is whole.

use std::io::ErrorKind;
use std::path::Path;

use uuid::Uuid;

use super::{RecoveryReport, open_file};
use crate::codec::{Put, Reader, versioned_crc};
use crate::disk::OpenMode;
use crate::error::{Error, Result};
use crate::options::JOURNAL_BYTES_MIN;
use crate::segment::full_or;
use crate::shared::Shared;
use crate::table::Table;

/// The checkpoint tables.
pub(crate) const TABLES: [&str; 2] = ["table.0", "table.1"];
/// The journal ring.
pub(crate) const JOURNAL: &str = "journal";
/// Format version and the directory's id.
pub(crate) const IDENTITY: &str = "identity";
const MAGIC: &[u8; 8] = b"TBLDIRID";
const VERSION: u32 = 1;
const IDENTITY_LEN: usize = 32;

/// The directory's id; the directory is made when it is empty.
///
/// # Errors
/// [`Error::NewerFormat`], [`Error::Corrupt`]: nothing is changed then.
pub(crate) fn open_or_create(shared: &Shared, report: &mut RecoveryReport) -> Result<Uuid> {
    let path = shared.dir.join(IDENTITY);
    match shared.disk.open(&path, OpenMode::Existing) {
        Ok(file) => {
            let mut bytes = [0; IDENTITY_LEN];
            let read = file
                .read_at(0, &mut bytes)
                .map_err(Error::io(format!("reading {}", path.display())))?;
            let unwritten = read < IDENTITY_LEN || bytes == [0; IDENTITY_LEN];
            if unwritten && !holds_data(shared) {
                // The power failed while the directory was made.
                return create(shared, report);
            }
            let directory = read_identity(&bytes, &path.display().to_string())?;
            // Whoever wrote it may have been stopped before the sync.
            let io = |what: &str| Error::io(format!("syncing {what} of {}", shared.dir.display()));
            file.sync().map_err(io("the identity"))?;
            shared
                .disk
                .sync_dir(&shared.dir)
                .map_err(io("the entries"))?;
            Ok(directory)
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if holds_data(shared) {
                return Err(Error::corrupt(
                    path.display().to_string(),
                    "it is missing although the directory holds data",
                ));
            }
            create(shared, report)
        }
        Err(e) => Err(Error::io(format!("opening {}", path.display()))(e)),
    }
}

fn read_identity(bytes: &[u8; IDENTITY_LEN], name: &str) -> Result<Uuid> {
    let mut reader = Reader::new(bytes);
    let bad = |_| Error::corrupt(name, "not an identity of this program");
    let magic = reader.raw(8).map_err(bad)?;
    let version = reader.u32().map_err(bad)?;
    let crc = reader.u32().map_err(bad)?;
    if magic != MAGIC || crc != versioned_crc(version, &bytes[16..]) {
        return Err(Error::corrupt(name, "its checksum does not match"));
    }
    if version != VERSION {
        return Err(Error::NewerFormat {
            what: name.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    reader.uuid().map_err(bad)
}

/// Whether anybody has used the directory: then it is never made anew.
fn holds_data(shared: &Shared) -> bool {
    let used = |name: &&str| {
        let file = shared.disk.open(&shared.dir.join(name), OpenMode::ReadOnly);
        file.is_ok_and(|file| match Table::read(&*file, false) {
            Ok(Some(table)) => table.generation > 1,
            Ok(None) => false,
            Err(_) => true,
        })
    };
    let has_segments = shared
        .disk
        .list(&shared.logs_dir())
        .is_ok_and(|l| !l.is_empty());
    has_segments || TABLES.iter().any(used)
}

fn create(shared: &Shared, report: &mut RecoveryReport) -> Result<Uuid> {
    report.created = true;
    let io = |what: &str| Error::io(format!("making {}: {what}", shared.dir.display()));
    let journal_bytes = shared
        .options
        .journal_bytes
        .max(JOURNAL_BYTES_MIN)
        .next_multiple_of(1 << 16);
    let directory = shared.options.directory_id.unwrap_or_else(Uuid::new_v4);
    shared
        .disk
        .create_dir(&shared.logs_dir())
        .map_err(io("the directory of logs"))?;
    let journal = open_file(shared, &shared.dir.join(JOURNAL), OpenMode::CreateOrOpen)?;
    journal
        .reserve(0, journal_bytes)
        .map_err(|e| full_or(e, journal_bytes, io("the journal")))?;
    journal.sync().map_err(io("the journal"))?;
    let table = Table {
        generation: 1,
        directory,
        boot: 0,
        journal_from: 0,
        journal_seq: 0,
        journal_bytes,
        next_file: 1,
        clean: true,
        replicas: Vec::new(),
    };
    for name in TABLES {
        let slot = open_file(shared, &shared.dir.join(name), OpenMode::CreateOrOpen)?;
        table.write(&*slot)?;
    }
    let mut bytes = Vec::with_capacity(IDENTITY_LEN);
    bytes.raw(MAGIC);
    bytes.u32(VERSION);
    bytes.u32(versioned_crc(VERSION, directory.as_bytes()));
    bytes.uuid(directory);
    sync_names_above(shared)?;
    let identity = open_file(shared, &shared.dir.join(IDENTITY), OpenMode::CreateOrOpen)?;
    shared
        .disk
        .sync_dir(&shared.dir)
        .map_err(io("its entries"))?;
    identity
        .write_at(0, &[&bytes])
        .map_err(io("the identity"))?;
    identity.sync().map_err(io("the identity"))?;
    shared
        .disk
        .sync_dir(&shared.dir)
        .map_err(io("its entries"))?;
    Ok(directory)
}

/// Makes the directory's own name durable, and those above it: whoever made them may have been stopped before.
fn sync_names_above(shared: &Shared) -> Result<()> {
    for above in shared.dir.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() {
            Path::new(".")
        } else {
            above
        };
        match shared.disk.sync_dir(above) {
            // Not ours to write, so not made by us.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => break,
            other => other.map_err(Error::io(format!("syncing {}", above.display())))?,
        }
    }
    Ok(())
}
