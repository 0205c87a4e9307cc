//! LZ4 in its standard frame, as Kafka has it since magic 2. Blocks are decompressed straight into the
//! output, so what a frame claims its blocks to be allocates nothing.
//!
//! Frame (LZ4 frame format 1.6): magic, flags, block descriptor, content size if flagged, a byte of the
//! header's XXH32; blocks, each of a little-endian `u32` length (top bit: stored as is), so many bytes
//! and, if flagged, their XXH32; an end mark of four zeros; if flagged, the content's XXH32.

use lz4_flex::block::{
    DecompressError, compress_into, decompress_into, decompress_into_with_dict,
    get_maximum_output_size,
};
use xxhash_rust::xxh32::xxh32;

use crate::{Codec, Error, Result};

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Version 1, independent blocks, no checksums, no content size; blocks of 64 KiB: as Java writes it.
const OUR_DESCRIPTOR: [u8; 2] = [0x60, 0x40];
const OUR_BLOCK_LEN: usize = 64 << 10;
/// How far back a linked block may reach.
const WINDOW_LEN: usize = 64 << 10;
/// The top bit of a block's length: its bytes are not compressed.
const STORED: u32 = 1 << 31;
/// More than LZ4 can reach: a byte of a match's length stands for 255.
const MAX_RATIO: usize = 256;

/// Appends to `out`.
pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&OUR_DESCRIPTOR);
    out.push(descriptor_check(&OUR_DESCRIPTOR));
    for block in plain.chunks(OUR_BLOCK_LEN) {
        let at = out.len();
        let body = at + 4;
        out.resize(body + get_maximum_output_size(block.len()), 0);
        let compressed =
            compress_into(block, &mut out[body..]).map_err(|error| Codec::Lz4.failed(error))?;
        // Neither exceeds 64 KiB.
        let (len, flag) = if compressed < block.len() {
            (compressed, 0)
        } else {
            out[body..body + block.len()].copy_from_slice(block);
            (block.len(), STORED)
        };
        out[at..body].copy_from_slice(&(len as u32 | flag).to_le_bytes());
        out.truncate(body + len);
    }
    out.extend_from_slice(&[0; 4]);
    Ok(())
}

pub(super) fn decompress(data: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut input = Input { rest: data };
    let frame = Frame::read(&mut input)?;
    let mut output = Output {
        bytes: Vec::new(),
        len: 0,
        limit,
    };
    loop {
        let word = input.word()?;
        if word == 0 {
            break;
        }
        let len = (word & !STORED) as usize;
        if len > frame.max_block_len {
            return Err(damaged("a block is larger than its frame allows"));
        }
        let block = input.take(len)?;
        if frame.block_checksums && input.word()? != xxh32(block, 0) {
            return Err(damaged("a block's checksum is wrong"));
        }
        if word & STORED == 0 {
            output.block(block, &frame)?;
        } else {
            output.stored(block)?;
        }
    }
    let out = output.finish();
    if frame.content_len.is_some_and(|len| len != out.len() as u64) {
        return Err(damaged("the content has another size than claimed"));
    }
    if frame.content_checksum && input.word()? != xxh32(&out, 0) {
        return Err(damaged("the content's checksum is wrong"));
    }
    match input.rest.len() {
        0 => Ok(out),
        extra => Err(Codec::Lz4.damaged(format_args!("{extra} bytes after the frame"))),
    }
}

/// What a frame's descriptor says.
struct Frame {
    linked_blocks: bool,
    block_checksums: bool,
    content_len: Option<u64>,
    content_checksum: bool,
    max_block_len: usize,
}

impl Frame {
    fn read(input: &mut Input<'_>) -> Result<Frame> {
        if input.take(MAGIC.len())? != MAGIC {
            return Err(damaged("not a frame"));
        }
        let descriptor = input.rest;
        let [flags, block] = input.array::<2>()?;
        // Version 1, no reserved bit; dictionaries, flag 0, are nothing that batches could share.
        if flags & 0b1100_0011 != 0b0100_0000 || block & 0b1000_1111 != 0 {
            return Err(damaged("an unknown version or flag of the frame"));
        }
        let max_block_len = match block >> 4 {
            size @ 4..=7 => 1 << (8 + 2 * size),
            _ => return Err(damaged("an unknown block size")),
        };
        let content_len = match flags & 0b1000 {
            0 => None,
            _ => Some(u64::from_le_bytes(input.array()?)),
        };
        let descriptor = &descriptor[..descriptor.len() - input.rest.len()];
        if input.array()? != [descriptor_check(descriptor)] {
            return Err(damaged("the frame descriptor's checksum is wrong"));
        }
        Ok(Frame {
            linked_blocks: flags & 0b10_0000 == 0,
            block_checksums: flags & 0b1_0000 != 0,
            content_len,
            content_checksum: flags & 0b100 != 0,
            max_block_len,
        })
    }
}

fn descriptor_check(descriptor: &[u8]) -> u8 {
    (xxh32(descriptor, 0) >> 8) as u8
}

/// The compressed bytes not yet read.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn word(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

/// The plain bytes: `len` of them, and behind them zeroed room that later blocks need not zero again.
struct Output {
    bytes: Vec<u8>,
    len: usize,
    limit: usize,
}

impl Output {
    fn block(&mut self, block: &[u8], frame: &Frame) -> Result<()> {
        let possible = frame.max_block_len.min(block.len() * MAX_RATIO);
        let room = possible.min(self.limit - self.len);
        let end = self.len + room;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let (before, into) = self.bytes[..end].split_at_mut(self.len);
        let written = if frame.linked_blocks {
            let window = &before[before.len().saturating_sub(WINDOW_LEN)..];
            decompress_into_with_dict(block, into, window)
        } else {
            decompress_into(block, into)
        };
        match written {
            Ok(written) => self.len += written,
            Err(DecompressError::OutputTooSmall { .. }) if room < possible => {
                return Err(Codec::Lz4.too_large(self.limit));
            }
            Err(error) => return Err(Codec::Lz4.damaged(error)),
        }
        Ok(())
    }

    fn stored(&mut self, block: &[u8]) -> Result<()> {
        if block.len() > self.limit - self.len {
            return Err(Codec::Lz4.too_large(self.limit));
        }
        self.bytes.truncate(self.len);
        self.bytes.extend_from_slice(block);
        self.len += block.len();
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.len);
        self.bytes
    }
}

fn cut_off() -> Error {
    damaged("cut off")
}

fn damaged(reason: &'static str) -> Error {
    Codec::Lz4.damaged(reason)
}
