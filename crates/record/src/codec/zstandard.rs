//! Zstandard, always in one go: the output is the window, so a frame that claims a window of
//! gigabytes gets none. Contexts are kept per thread, as making one costs more than a small batch.

use std::cell::RefCell;
use std::io::Cursor;

use zstd::zstd_safe::{self, CCtx, DCtx, ErrorCode};

use crate::{Codec, Error, Result};

/// Kafka's default level, and the library's.
const LEVEL: i32 = 3;
/// `-ZSTD_error_dstSize_tooSmall`, a stable number of the library's interface.
const OUTPUT_TOO_SMALL: ErrorCode = 70usize.wrapping_neg();
/// The first output buffer: this many times the input, and at least `MIN_OUTPUT_LEN`, whatever size
/// the frame claims. It doubles from there, so a bomb costs twice its limit in work, once in memory.
const MAX_FIRST_RATIO: usize = 16;
/// The guess for a frame that claims no size, as those of streaming encoders such as Java's.
const EXPECTED_RATIO: usize = 4;
const MIN_OUTPUT_LEN: usize = 64 << 10;

thread_local! {
    static COMPRESSOR: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Appends to `out`.
pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    out.reserve(zstd_safe::compress_bound(plain.len()));
    COMPRESSOR.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(CCtx::try_create().ok_or_else(no_memory)?),
        };
        let at = out.len() as u64;
        let mut end = Cursor::new(out);
        end.set_position(at);
        context
            .compress(&mut end, plain, LEVEL)
            .map_err(|code| Codec::Zstd.failed(zstd_safe::get_error_name(code)))?;
        Ok(())
    })
}

pub(super) fn decompress(data: &[u8], limit: usize) -> Result<Vec<u8>> {
    let claimed =
        zstd_safe::get_frame_content_size(data).map_err(|_| Codec::Zstd.damaged("not a frame"))?;
    let guess = match claimed {
        Some(len) => usize::try_from(len).unwrap_or(usize::MAX).min(
            data.len()
                .saturating_mul(MAX_FIRST_RATIO)
                .max(MIN_OUTPUT_LEN),
        ),
        None => data
            .len()
            .saturating_mul(EXPECTED_RATIO)
            .max(MIN_OUTPUT_LEN),
    };
    let mut out: Vec<u8> = Vec::new();
    let mut room = guess.min(limit);
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(DCtx::try_create().ok_or_else(no_memory)?),
        };
        loop {
            out.clear();
            // Exact, as the decoder may fill whatever capacity it finds.
            out.reserve_exact(room);
            match context.decompress(&mut out, data) {
                Ok(_) if out.len() > limit => return Err(Codec::Zstd.too_large(limit)),
                Ok(_) => return Ok(()),
                Err(OUTPUT_TOO_SMALL) if room < limit => {
                    room = room
                        .saturating_mul(2)
                        .clamp(MIN_OUTPUT_LEN, limit.max(MIN_OUTPUT_LEN))
                        .min(limit);
                }
                Err(OUTPUT_TOO_SMALL) => return Err(Codec::Zstd.too_large(limit)),
                Err(code) => return Err(Codec::Zstd.damaged(zstd_safe::get_error_name(code))),
            }
        }
    })?;
    Ok(out)
}

fn no_memory() -> Error {
    Codec::Zstd.failed("no memory for a context")
}
