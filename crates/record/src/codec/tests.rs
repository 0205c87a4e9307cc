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
fn lz4_of_linked_blocks_is_read() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use std::io::Write;
    for plain in samples() {
        let frame = FrameInfo::new()
            .block_size(BlockSize::Max256KB)
            .block_mode(BlockMode::Linked)
            .content_checksum(true);
        let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
        encoder.write_all(&plain).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(Codec::Lz4.decompress(&packed, plain.len()), Ok(plain));
    }
}
