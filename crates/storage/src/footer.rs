//! The footer of a sealed segment: what it holds, and what a reader needs to find its way in it.
//!
//! It lies behind the last frame; a trailer of [`TRAILER_LEN`] bytes ends the file and says where the footer begins.
//! Nothing acknowledged depends on it: a segment whose footer is torn is sealed again, the checkpoint table holds
//! the producer state too.

use crate::codec::{Malformed, Put, Reader, versioned_crc};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::index::SparseIndex;
use crate::membership::Membership;
use crate::place::Place;
use crate::producers::Producers;

/// Bytes of the trailer.
pub(crate) const TRAILER_LEN: usize = 32;
/// Longest footer that is read, in bytes.
pub(crate) const FOOTER_LEN_MAX: u64 = 64 << 20;
const MAGIC: &[u8; 8] = b"TBLFOOTR";
const VERSION: u32 = 1;

/// What a sealed segment's footer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// The place before the first entry.
    pub(crate) first: Place,
    /// The place behind the last entry.
    pub(crate) last: Place,
    /// Producer state as of the last entry.
    pub(crate) producers: Producers,
    /// The sparse index.
    pub(crate) index: SparseIndex,
    /// Membership as of the last entry, if it is known.
    pub(crate) membership: Membership,
}

impl Footer {
    /// Footer and trailer, to be written at `last.pos`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        self.first.encode(&mut out);
        self.last.encode(&mut out);
        out.blob(&self.membership.encode());
        self.producers.encode(&mut out);
        self.index.encode(&mut out);
        let (len, crc) = (out.len() as u64, versioned_crc(VERSION, &out));
        out.raw(MAGIC);
        out.u32(VERSION);
        out.u32(crc);
        out.u64(self.last.pos);
        out.u64(len);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Footer, Malformed> {
        let mut reader = Reader::new(bytes);
        let footer = Footer {
            first: Place::decode(&mut reader)?,
            last: Place::decode(&mut reader)?,
            membership: Membership::decode(reader.blob()?)?,
            producers: Producers::decode(&mut reader)?,
            index: SparseIndex::decode(&mut reader)?,
        };
        if reader.is_empty() {
            Ok(footer)
        } else {
            Err(Malformed("bytes left over"))
        }
    }

    /// Length and checksum of what lies behind `end` in a sealed file, if that is a footer by its trailer.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn extent(file: &dyn DiskFile, end: u64, name: &str) -> Result<Option<(u64, u32)>> {
        let io = || Error::io(format!("reading the footer of {name}"));
        let behind = file.len().map_err(io())?.saturating_sub(end);
        if !(TRAILER_LEN as u64..=FOOTER_LEN_MAX + TRAILER_LEN as u64).contains(&behind) {
            return Ok(None);
        }
        let mut trailer = [0; TRAILER_LEN];
        let read = file
            .read_at(end + behind - TRAILER_LEN as u64, &mut trailer)
            .or_else(crate::journal::ring::unreadable_is_empty)
            .map_err(io())?;
        let fields = read_trailer(&trailer).filter(|_| read == TRAILER_LEN);
        let whole = fields.filter(|(_, _, start, len)| {
            *start == end && len.checked_add(TRAILER_LEN as u64) == Some(behind)
        });
        Ok(whole.map(|(_, crc, _, _)| (behind, crc)))
    }

    /// Reads the footer of a file, if it has a whole one.
    ///
    /// # Errors
    /// I/O errors, and [`Error::NewerFormat`]. A torn, unreadable or absent footer is `Ok(None)`.
    pub(crate) fn read(file: &dyn DiskFile, name: &str) -> Result<Option<Footer>> {
        let io = || Error::io(format!("reading the footer of {name}"));
        let len = file.len().map_err(io())?;
        if len < FIRST_FRAME + TRAILER_LEN as u64 {
            return Ok(None);
        }
        let mut trailer = [0; TRAILER_LEN];
        let at = len - TRAILER_LEN as u64;
        let read = |at, buf: &mut [u8]| {
            let read = file.read_at(at, buf);
            read.or_else(crate::journal::ring::unreadable_is_empty)
                .map_err(io())
        };
        if read(at, &mut trailer)? != TRAILER_LEN {
            return Ok(None);
        }
        let Some((version, crc, start, footer_len)) = read_trailer(&trailer) else {
            return Ok(None);
        };
        if start.checked_add(footer_len) != Some(at) || footer_len > FOOTER_LEN_MAX {
            return Ok(None);
        }
        let mut bytes = vec![0; footer_len as usize];
        let got = read(start, &mut bytes)?;
        if got != bytes.len() || versioned_crc(version, &bytes) != crc {
            return Ok(None);
        }
        if version != VERSION {
            return Err(Error::NewerFormat {
                what: format!("the footer of {name}"),
                found: version,
                known: VERSION,
            });
        }
        Ok(Self::decode(&bytes).ok().filter(|f| f.last.pos == start))
    }
}

fn read_trailer(bytes: &[u8]) -> Option<(u32, u32, u64, u64)> {
    let mut reader = Reader::new(bytes);
    if reader.raw(8).ok()? != MAGIC {
        return None;
    }
    Some((
        reader.u32().ok()?,
        reader.u32().ok()?,
        reader.u64().ok()?,
        reader.u64().ok()?,
    ))
}
