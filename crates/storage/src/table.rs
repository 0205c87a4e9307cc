//! The checkpoint table: the state of every replica at one moment, so that the journal before it may be reused.
//!
//! Two files, written in turn, each with a generation and a checksum over all of it; the whole one with the higher
//! generation counts. `docs/storage-format.md` has the bytes.

use std::sync::Arc;

use uuid::Uuid;

use crate::codec::{Malformed, Put, Reader, versioned_crc};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::ids::{FileId, ReplicaId, ReplicaSpec};
use crate::membership::Membership;
use crate::options::HardState;
use crate::place::Place;
use crate::producers::Producers;
use crate::segment::full_or;
use crate::terms::TermRuns;

const MAGIC: &[u8; 8] = b"TBLTABLE";
const VERSION: u32 = 2;
/// Magic, version, checksum, length.
const HEAD_LEN: usize = 24;
/// Longest table, bytes: a million replicas fit.
const TABLE_BYTES_MAX: u64 = 1 << 30;

/// Flags of a replica.
const TAIL_CLOSED: u8 = 1;
const BROKEN: u8 = 2;
const UNPROVEN: u8 = 4;
/// Space reserved for a table at least, bytes.
const SLOT_BYTES_MIN: u64 = 64 << 10;

/// A segment as the table lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFile {
    pub(crate) id: FileId,
    /// The place its first entry continues.
    pub(crate) first: Place,
    /// Behind its last frame, bytes.
    pub(crate) end: u64,
    pub(crate) sealed: bool,
}

/// One replica at the moment of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableReplica {
    pub(crate) spec: ReplicaSpec,
    pub(crate) hard: HardState,
    pub(crate) log_start: i64,
    /// The next append starts a file, because bytes may lie behind the tail.
    pub(crate) tail_closed: bool,
    /// Damage hides what the last entry was: nothing may be appended, at any later start either.
    pub(crate) broken: bool,
    /// Damage took terms or config entries.
    pub(crate) unproven: bool,
    /// Behind the last entry; everything up to here is durable once the table is.
    pub(crate) tail: Place,
    /// Behind the last committed entry.
    pub(crate) committed: Place,
    /// Live files in order.
    pub(crate) files: Vec<TableFile>,
    /// Producer state as of `committed`, encoded.
    pub(crate) producers: Arc<Vec<u8>>,
    /// Membership as of `committed`.
    pub(crate) membership: Membership,
    /// Terms of the entries up to `tail`.
    pub(crate) terms: TermRuns,
}

/// The checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) generation: u64,
    pub(crate) directory: Uuid,
    pub(crate) boot: u64,
    /// Absolute journal position from which cycles are replayed.
    pub(crate) journal_from: u64,
    /// Sequence of the last cycle before it.
    pub(crate) journal_seq: u64,
    /// Length of the journal ring, bytes.
    pub(crate) journal_bytes: u64,
    /// Files with an id below this that no replica lists are dead.
    pub(crate) next_file: u64,
    /// Written by a clean shutdown: nothing lies behind any tail.
    pub(crate) clean: bool,
    pub(crate) replicas: Vec<TableReplica>,
}

impl Table {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096 + self.replicas.len() * 320);
        out.resize(HEAD_LEN, 0);
        out.u64(self.generation);
        out.uuid(self.directory);
        out.u64(self.boot);
        out.u64(self.journal_from);
        out.u64(self.journal_seq);
        out.u64(self.journal_bytes);
        out.u64(self.next_file);
        out.u8(u8::from(self.clean));
        out.u32(self.replicas.len() as u32);
        for replica in &self.replicas {
            replica.encode(&mut out);
        }
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.raw(MAGIC);
        head.u32(VERSION);
        head.u32(versioned_crc(VERSION, &out[HEAD_LEN..]));
        head.u64(out.len() as u64);
        out[..HEAD_LEN].copy_from_slice(&head);
        out
    }

    fn decode(version: u32, body: &[u8]) -> Result<Table, Malformed> {
        let mut reader = Reader::new(body);
        let mut table = Table {
            generation: reader.u64()?,
            directory: reader.uuid()?,
            boot: reader.u64()?,
            journal_from: reader.u64()?,
            journal_seq: reader.u64()?,
            journal_bytes: reader.u64()?,
            next_file: reader.u64()?,
            clean: reader.u8()? != 0,
            replicas: Vec::new(),
        };
        let count = reader.count(2 * Place::LEN)?;
        table.replicas.reserve(count);
        for _ in 0..count {
            table
                .replicas
                .push(TableReplica::decode(version, &mut reader)?);
        }
        if reader.is_empty() {
            Ok(table)
        } else {
            Err(Malformed("bytes left over"))
        }
    }

    /// Writes the table over a slot and syncs it.
    pub(crate) fn write(&self, slot: &dyn DiskFile) -> Result<()> {
        let bytes = self.encode();
        Self::reserve(slot, bytes.len() as u64)?;
        Self::put(slot, &bytes)
    }

    /// Writes an encoded table over a slot that has the space, and syncs it. Any error is final.
    pub(crate) fn put(slot: &dyn DiskFile, bytes: &[u8]) -> Result<()> {
        let what = || Error::io("writing the checkpoint table");
        slot.write_at(0, &[bytes]).map_err(what())?;
        slot.sync().map_err(what())
    }

    /// Makes sure that a table of this length can be written, and some larger ones if there is space.
    ///
    /// # Errors
    /// [`Error::StorageFull`] changes nothing.
    pub(crate) fn reserve(slot: &dyn DiskFile, len: u64) -> Result<()> {
        let ample = len.next_power_of_two().max(SLOT_BYTES_MIN);
        let grown = match slot.reserve(0, ample) {
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull => slot.reserve(0, len),
            other => other,
        };
        grown.map_err(|e| full_or(e, len, Error::io("reserving a checkpoint table")))
    }

    /// Reads a slot from the device: `None` when it holds no whole table.
    ///
    /// # Errors
    /// I/O errors, and [`Error::NewerFormat`].
    pub(crate) fn read(slot: &dyn DiskFile, from_cache: bool) -> Result<Option<Table>> {
        let what = "the checkpoint table";
        let Some((version, body)) = read_whole(slot, MAGIC, what, from_cache)? else {
            return Ok(None);
        };
        Table::decode(version, &body)
            .map(Some)
            .map_err(|m| Error::corrupt("the checkpoint table", m.0))
    }
}

/// A row as an install makes it live.
#[derive(Debug)]
pub(crate) struct InstallRow {
    pub(crate) row: TableReplica,
    /// The row's producers, decoded.
    pub(crate) producers: Producers,
}

const INSTALL_MAGIC: &[u8; 8] = b"TBLINSTL";

impl TableReplica {
    /// The file of an install: the same row as in a table, with the table's version, bound to the file's id.
    pub(crate) fn encode_install(&self, file: FileId) -> Vec<u8> {
        let mut body = Vec::with_capacity(1024);
        body.u64(file.0);
        self.encode(&mut body);
        let mut out = Vec::with_capacity(HEAD_LEN + body.len());
        out.raw(INSTALL_MAGIC);
        out.u32(VERSION);
        out.u32(versioned_crc(VERSION, &body));
        out.u64((HEAD_LEN + body.len()) as u64);
        out.raw(&body);
        out
    }

    /// Reads the file of an install from the device: `None` when it is not whole.
    ///
    /// # Errors
    /// I/O errors, and [`Error::NewerFormat`].
    pub(crate) fn read_install(file: &dyn DiskFile, id: FileId) -> Result<Option<TableReplica>> {
        let Some((version, body)) = read_whole(file, INSTALL_MAGIC, "an install's row", false)?
        else {
            return Ok(None);
        };
        let mut reader = Reader::new(&body);
        let row = reader.u64().and_then(|found| match found == id.0 {
            true => TableReplica::decode(version, &mut reader),
            false => Err(Malformed("the row of another install")),
        });
        Ok(row.ok().filter(|_| reader.is_empty()))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.spec.replica.0);
        out.uuid(self.spec.topic);
        out.u32(self.spec.partition);
        out.u64(self.hard.term);
        out.u64(self.hard.vote);
        out.u64(self.hard.commit);
        out.i64(self.log_start);
        let flags = [
            (self.tail_closed, TAIL_CLOSED),
            (self.broken, BROKEN),
            (self.unproven, UNPROVEN),
        ];
        let set = flags.iter().filter(|(is_set, _)| *is_set);
        out.u8(set.fold(0, |all, (_, flag)| all | flag));
        self.tail.encode(out);
        self.committed.encode(out);
        out.u32(self.files.len() as u32);
        for file in &self.files {
            out.u64(file.id.0);
            file.first.encode(out);
            out.u64(file.end);
            out.u8(u8::from(file.sealed));
        }
        out.blob(&self.producers);
        out.blob(&self.membership.encode());
        self.terms.encode(out);
    }

    fn decode(version: u32, reader: &mut Reader<'_>) -> Result<TableReplica, Malformed> {
        let spec = ReplicaSpec {
            replica: ReplicaId(reader.u64()?),
            topic: reader.uuid()?,
            partition: reader.u32()?,
        };
        let hard = HardState {
            term: reader.u64()?,
            vote: reader.u64()?,
            commit: reader.u64()?,
        };
        let log_start = reader.i64()?;
        let flags = reader.u8()?;
        let tail = Place::decode(reader)?;
        let committed = Place::decode(reader)?;
        let count = reader.count(Place::LEN + 17)?;
        let mut files = Vec::with_capacity(count);
        for _ in 0..count {
            files.push(TableFile {
                id: FileId(reader.u64()?),
                first: Place::decode(reader)?,
                end: reader.u64()?,
                sealed: reader.u8()? != 0,
            });
        }
        let producers = Arc::new(reader.blob()?.to_vec());
        let membership = Membership::decode(reader.blob()?)?;
        let terms = match version {
            1 => terms_of_version_1(&files, &committed),
            _ => TermRuns::decode(reader)?,
        };
        Ok(TableReplica {
            spec,
            hard,
            log_start,
            tail_closed: flags & TAIL_CLOSED != 0,
            broken: flags & BROKEN != 0,
            unproven: flags & UNPROVEN != 0,
            tail,
            committed,
            files,
            producers,
            membership,
            terms,
        })
    }
}

/// The version and the body of a file with a head and a checksum; `None` when it is not whole.
fn read_whole(
    file: &dyn DiskFile,
    wanted: &[u8; 8],
    name: &str,
    from_cache: bool,
) -> Result<Option<(u32, Vec<u8>)>> {
    let what = || Error::io(format!("reading {name}"));
    let read = |at: u64, buf: &mut [u8]| {
        let read = if from_cache {
            file.read_at(at, buf)
        } else {
            file.read_device_at(at, buf)
        };
        read.or_else(crate::journal::ring::unreadable_is_empty)
            .map_err(what())
    };
    let mut head = [0; HEAD_LEN];
    if read(0, &mut head)? != HEAD_LEN {
        return Ok(None);
    }
    let mut reader = Reader::new(&head);
    let fields =
        (|| Ok::<_, Malformed>((reader.raw(8)?, reader.u32()?, reader.u32()?, reader.u64()?)))();
    let Ok((magic, version, crc, len)) = fields else {
        return Ok(None);
    };
    if magic != wanted
        || len < HEAD_LEN as u64
        || len > TABLE_BYTES_MAX
        || len > file.len().map_err(what())?
    {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    if read(0, &mut bytes)? != bytes.len() || versioned_crc(version, &bytes[HEAD_LEN..]) != crc {
        return Ok(None);
    }
    if !(1..=VERSION).contains(&version) {
        return Err(Error::NewerFormat {
            what: name.into(),
            found: version,
            known: VERSION,
        });
    }
    bytes.drain(..HEAD_LEN);
    Ok(Some((version, bytes)))
}

/// What the places of a row tell of its terms, up to the committed one; recovery walks what lies behind.
fn terms_of_version_1(files: &[TableFile], committed: &Place) -> TermRuns {
    let mut places: Vec<Place> = files.iter().map(|f| f.first).collect();
    if places.is_empty() {
        places.push(*committed);
    }
    TermRuns::of_places(places.iter(), committed)
}
