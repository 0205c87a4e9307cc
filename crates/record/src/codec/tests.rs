//! Each codec alone: round trips, caps, and what other writers produce.

use super::*;

fn samples() -> Vec<Vec<u8>> {
    let mut seed = 1u64;
    let noise = (0..100_000).map(|_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    });
    vec![
        Vec::new(),
        b"a".to_vec(),
        b"some words, some words, some words".to_vec(),
        vec![0; 1 << 20],
        noise.collect(),
    ]
}

#[test]
fn round_trips_to_the_byte_of_the_limit() {
    for codec in Codec::ALL {
        for plain in samples() {
            let packed = codec.compress(&plain, 5).unwrap();
            assert_eq!(packed[..5], [0; 5]);
            assert_eq!(
                codec.decompress(&packed[5..], plain.len()).as_ref(),
                Ok(&plain),
                "{codec}"
            );
            if !plain.is_empty() {
                let limit = plain.len() - 1;
                let refused = codec.decompress(&packed[5..], limit);
                assert_eq!(refused, Err(Error::DecompressedTooLarge { codec, limit }));
            }
        }
    }
}

#[test]
fn names() {
    for codec in Codec::ALL {
        assert_eq!(codec.to_string().parse(), Ok(codec));
        assert_eq!(
            Codec::from_attributes(codec.attribute_bits() | 0x38),
            Ok(codec)
        );
    }
    assert!("GZIP".parse::<Codec>().is_err());
    assert_eq!(
        Codec::from_attributes(6),
        Err(Error::UnknownCodec { id: 6 })
    );
}

#[test]
fn bare_snappy_is_read() {
    let plain = samples().remove(3);
    let bare = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
    assert_eq!(Codec::Snappy.decompress(&bare, plain.len()), Ok(plain));
}

#[test]
fn gzip_members_in_a_row_are_one() {
    let packed = [b"one ", b"two "].map(|part| Codec::Gzip.compress(part, 0).unwrap());
    assert_eq!(
        Codec::Gzip.decompress(&packed.concat(), 100),
        Ok(b"one two ".to_vec())
    );
}

#[test]
fn zstd_of_unknown_size_is_read() {
    use std::io::Write;
    for plain in samples() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.write_all(&plain).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(
            Codec::Zstd.decompress(&packed, plain.len()).as_ref(),
            Ok(&plain)
        );
        if !plain.is_empty() {
            assert!(Codec::Zstd.decompress(&packed, plain.len() - 1).is_err());
        }
    }
}

#[test]
fn lz4_frames_of_every_kind_are_read() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use std::io::Write;
    let sizes = [
        BlockSize::Max64KB,
        BlockSize::Max256KB,
        BlockSize::Max1MB,
        BlockSize::Max4MB,
    ];
    for plain in samples() {
        for (index, size) in sizes.into_iter().enumerate() {
            let mode = [BlockMode::Linked, BlockMode::Independent][index % 2];
            let frame = FrameInfo::new()
                .block_size(size)
                .block_mode(mode)
                .block_checksums(index > 1)
                .content_size((index % 3 == 0).then_some(plain.len() as u64))
                .content_checksum(index != 1);
            let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
            encoder.write_all(&plain).unwrap();
            let packed = encoder.finish().unwrap();
            let read = Codec::Lz4.decompress(&packed, plain.len());
            assert_eq!(read.as_ref(), Ok(&plain), "{size:?}");
            for len in (0..packed.len()).rev().take(64) {
                assert!(Codec::Lz4.decompress(&packed[..len], plain.len()).is_err());
            }
        }
    }
}

#[test]
fn lz4_checksums_are_checked() {
    use lz4_flex::frame::{FrameEncoder, FrameInfo};
    use std::io::Write;
    for (blocks, content) in [(true, false), (false, true)] {
        let frame = FrameInfo::new()
            .block_checksums(blocks)
            .content_checksum(content);
        let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
        encoder.write_all(&samples()[4][..300]).unwrap();
        let packed = encoder.finish().unwrap();
        for at in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 4;
            assert!(Codec::Lz4.decompress(&damaged, 1_000).is_err(), "{at}");
        }
    }
}

#[test]
fn our_lz4_frames_are_standard() {
    use std::io::Read;
    for plain in samples() {
        let packed = Codec::Lz4.compress(&plain, 0).unwrap();
        let mut read = Vec::new();
        let mut decoder = lz4_flex::frame::FrameDecoder::new(&packed[..]);
        decoder.read_to_end(&mut read).unwrap();
        assert_eq!(read, plain);
    }
}
