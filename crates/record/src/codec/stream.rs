//! Gzip and LZ4 frames, whose decoders are streams with windows of a fixed size.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use crate::{Codec, Result};

/// A first guess at how much larger the plain bytes are; a wrong one costs a reallocation.
const EXPECTED_RATIO: usize = 3;

pub(super) fn gzip(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let failed = |error: std::io::Error| Codec::Gzip.failed(error);
    let mut encoder = GzEncoder::new(out, Compression::default());
    encoder.write_all(plain).map_err(failed)?;
    encoder.finish().map_err(failed)?;
    Ok(())
}

/// Several members in a row are one stream, as for Java's decoder.
pub(super) fn gunzip(data: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut decoder = MultiGzDecoder::new(data);
    read_capped(Codec::Gzip, &mut decoder, data.len(), limit)
}

pub(super) fn lz4(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let frame = FrameInfo::new()
        .block_size(BlockSize::Max64KB)
        .block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(frame, out);
    encoder
        .write_all(plain)
        .map_err(|error| Codec::Lz4.failed(error))?;
    encoder.finish().map_err(|error| Codec::Lz4.failed(error))?;
    Ok(())
}

/// The decoder's own buffers are of the frame's block size, at most 8 MiB each.
pub(super) fn unlz4(data: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut decoder = FrameDecoder::new(Watched {
        rest: data,
        ran_out: false,
    });
    let out = read_capped(Codec::Lz4, &mut decoder, data.len(), limit)?;
    let source = decoder.get_ref();
    if source.ran_out {
        return Err(Codec::Lz4.damaged("no end mark"));
    }
    match source.rest.len() {
        0 => Ok(out),
        extra => Err(Codec::Lz4.damaged(format_args!("{extra} bytes after the frame"))),
    }
}

/// Bytes that remember being asked for more than there are. The LZ4 decoder takes the end of input
/// between two blocks for the end of the frame, where Java's insists on the end mark.
struct Watched<'a> {
    rest: &'a [u8],
    ran_out: bool,
}

impl Read for Watched<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.ran_out |= self.rest.is_empty() && !into.is_empty();
        self.rest.read(into)
    }
}

fn read_capped(
    codec: Codec,
    decoder: &mut impl Read,
    compressed_len: usize,
    limit: usize,
) -> Result<Vec<u8>> {
    let expected = compressed_len.saturating_mul(EXPECTED_RATIO).min(limit);
    let mut out = Vec::with_capacity(expected);
    decoder
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|error| codec.damaged(error))?;
    if out.len() > limit {
        return Err(codec.too_large(limit));
    }
    Ok(out)
}
