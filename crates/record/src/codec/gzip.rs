//! Gzip (RFC 1952).

use std::io::{Read, Write};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::{Codec, Result};

/// A first guess at how much larger the plain bytes are; a wrong one costs a reallocation.
const EXPECTED_RATIO: usize = 3;

/// Appends to `out`.
pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let failed = |error: std::io::Error| Codec::Gzip.failed(error);
    let mut encoder = GzEncoder::new(out, Compression::default());
    encoder.write_all(plain).map_err(failed)?;
    encoder.finish().map_err(failed)?;
    Ok(())
}

/// Several members in a row are one stream, as for Java's decoder.
pub(super) fn decompress(data: &[u8], limit: usize) -> Result<Vec<u8>> {
    let expected = data.len().saturating_mul(EXPECTED_RATIO).min(limit);
    let mut out = Vec::with_capacity(expected);
    MultiGzDecoder::new(data)
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|error| Codec::Gzip.damaged(error))?;
    if out.len() > limit {
        return Err(Codec::Gzip.too_large(limit));
    }
    Ok(out)
}
