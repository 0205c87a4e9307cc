//! Snappy as Kafka's Java client writes it: snappy-java's stream framing, which is neither Snappy's
//! own framing nor bare Snappy. Some clients send bare Snappy, so that is read as well.
//!
//! Framing: `82 "SNAPPY" 00`, version and least compatible version (big-endian `u32`, both 1), then
//! blocks, each of a big-endian `u32` length and so many bytes of bare Snappy.

use crate::{Codec, Error, Result};

const MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const FRAMING_HEADER_LEN: usize = 16;
/// snappy-java's default block, before compression.
const BLOCK_LEN: usize = 32 << 10;
/// More than Snappy can reach: its densest element makes 64 bytes out of 3.
const MAX_RATIO: usize = 22;

pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let failed = |error: snap::Error| Codec::Snappy.failed(error);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&1u32.to_be_bytes());
    out.extend_from_slice(&1u32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in plain.chunks(BLOCK_LEN) {
        let at = out.len();
        let room = snap::raw::max_compress_len(block.len());
        out.resize(at + 4 + room, 0);
        let len = encoder
            .compress(block, &mut out[at + 4..])
            .map_err(failed)?;
        // A block is at most 32 KiB and its compressed form little more.
        out[at..at + 4].copy_from_slice(&(len as u32).to_be_bytes());
        out.truncate(at + 4 + len);
    }
    Ok(())
}

pub(super) fn decompress(data: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut decoder = snap::raw::Decoder::new();
    let mut out = Vec::new();
    if !data.starts_with(&MAGIC) {
        block(&mut decoder, data, &mut out, limit)?;
        return Ok(out);
    }
    let mut rest = data.get(FRAMING_HEADER_LEN..).ok_or_else(cut_off)?;
    while !rest.is_empty() {
        let (len, behind) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
        let len = u32::from_be_bytes(*len) as usize;
        if len > behind.len() {
            return Err(cut_off());
        }
        let (compressed, next) = behind.split_at(len);
        block(&mut decoder, compressed, &mut out, limit)?;
        rest = next;
    }
    Ok(out)
}

/// Decompresses bare Snappy to the end of `out`.
fn block(
    decoder: &mut snap::raw::Decoder,
    compressed: &[u8],
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<()> {
    let damaged = |error: snap::Error| Codec::Snappy.damaged(error);
    let len = snap::raw::decompress_len(compressed).map_err(damaged)?;
    if len > limit - out.len() {
        return Err(Codec::Snappy.too_large(limit));
    }
    if len > compressed.len().saturating_mul(MAX_RATIO) {
        return Err(Codec::Snappy.damaged("its length can't come of so few bytes"));
    }
    let at = out.len();
    out.resize(at + len, 0);
    let written = decoder
        .decompress(compressed, &mut out[at..])
        .map_err(damaged)?;
    debug_assert_eq!(written, len);
    Ok(())
}

fn cut_off() -> Error {
    Codec::Snappy.damaged("cut off")
}
