//! The five codecs, each compressing a whole body and decompressing within a bound.
//!
//! What comes out of a decoder is capped while it comes out, so a bomb costs at most the limit; what
//! is allocated ahead follows from the bytes present.

mod gzip;
mod lz4;
mod snappy;
mod zstandard;

use std::fmt;
use std::str::FromStr;

use crate::header::CODEC_MASK;
use crate::{Error, Result};

/// How a batch's records are compressed; the discriminants are the attribute bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    #[default]
    None = 0,
    /// Gzip (RFC 1952), level 6.
    Gzip = 1,
    /// Snappy in snappy-java's framing, blocks of 32 KiB; bare Snappy is read too.
    Snappy = 2,
    /// LZ4 in its standard frame, independent blocks of 64 KiB.
    Lz4 = 3,
    /// Zstandard (RFC 8878), level 3 (KIP-110).
    Zstd = 4,
}

impl Codec {
    /// All codecs, in the order of their ids.
    pub const ALL: [Codec; 5] = [
        Codec::None,
        Codec::Gzip,
        Codec::Snappy,
        Codec::Lz4,
        Codec::Zstd,
    ];

    /// The codec in bits 0–2 of a batch's attributes.
    ///
    /// # Errors
    /// [`Error::UnknownCodec`] for 5, 6 and 7.
    pub fn from_attributes(attributes: i16) -> Result<Codec> {
        match attributes & CODEC_MASK {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Gzip),
            2 => Ok(Codec::Snappy),
            3 => Ok(Codec::Lz4),
            4 => Ok(Codec::Zstd),
            id => Err(Error::UnknownCodec { id: id as u8 }),
        }
    }

    /// Its bits in a batch's attributes.
    #[must_use]
    pub fn attribute_bits(self) -> i16 {
        self as i16
    }

    /// The lowercase name, as in `compression.type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// `plain` compressed, behind `room` zero bytes.
    pub(crate) fn compress(self, plain: &[u8], room: usize) -> Result<Vec<u8>> {
        // Half is a guess at what comes out; zstd, which can't grow its output, sees to itself.
        let mut out = Vec::with_capacity(room + plain.len() / 2);
        out.resize(room, 0);
        match self {
            Codec::None => out.extend_from_slice(plain),
            Codec::Gzip => gzip::compress(plain, &mut out)?,
            Codec::Snappy => snappy::compress(plain, &mut out)?,
            Codec::Lz4 => lz4::compress(plain, &mut out)?,
            Codec::Zstd => zstandard::compress(plain, &mut out)?,
        }
        Ok(out)
    }

    /// `data` decompressed, if that is at most `limit` bytes.
    pub(crate) fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>> {
        let mut out = match self {
            Codec::None if data.len() > limit => return Err(self.too_large(limit)),
            Codec::None => data.to_vec(),
            Codec::Gzip => gzip::decompress(data, limit)?,
            Codec::Snappy => snappy::decompress(data, limit)?,
            Codec::Lz4 => lz4::decompress(data, limit)?,
            Codec::Zstd => zstandard::decompress(data, limit)?,
        };
        // Records may be held for long: what was too much of a guess is given back.
        if out.capacity() - out.len() > out.len() / 4 {
            out.shrink_to_fit();
        }
        Ok(out)
    }

    fn too_large(self, limit: usize) -> Error {
        Error::DecompressedTooLarge { codec: self, limit }
    }

    fn damaged(self, reason: impl fmt::Display) -> Error {
        Error::Decompress {
            codec: self,
            reason: reason.to_string(),
        }
    }

    fn failed(self, reason: impl fmt::Display) -> Error {
        Error::Compress {
            codec: self,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Codec {
    type Err = Error;

    /// Takes the names that [`Codec::name`] gives, in lowercase.
    fn from_str(name: &str) -> Result<Codec> {
        let known = Codec::ALL.into_iter().find(|codec| codec.name() == name);
        known.ok_or_else(|| Error::UnknownCodecName {
            name: name.chars().take(32).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
