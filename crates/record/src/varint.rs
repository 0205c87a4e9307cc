//! Zigzag varints, as in Kafka's records: little-endian groups of 7 bits, at most 5 bytes for an
//! `i32` and 10 for an `i64`.

use crate::RecordFlaw;

/// Bytes of the longest `i32`.
pub(crate) const MAX_I32: usize = 5;
/// Bytes of the longest `i64`.
pub(crate) const MAX_I64: usize = 10;

#[inline]
const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The bytes that `value` takes; the same for an `i32` and for that value as `i64`.
#[inline]
pub(crate) const fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Writes `value` to the front of `out`, which has the room, and returns the bytes written.
#[inline]
pub(crate) fn write(out: &mut [u8], value: i64) -> usize {
    let mut rest = zigzag(value);
    let mut at = 0;
    while rest >= 0x80 {
        out[at] = rest as u8 | 0x80;
        rest >>= 7;
        at += 1;
    }
    out[at] = rest as u8;
    at + 1
}

/// Reads forward over borrowed bytes; every read is checked.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at `at`, which may be the end of `bytes`.
    #[inline]
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Reader { bytes, at }
    }

    /// The position from the start of the bytes.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes left.
    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Reads one byte.
    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, RecordFlaw> {
        let byte = *self.bytes.get(self.at).ok_or(RecordFlaw::CutOff)?;
        self.at += 1;
        Ok(byte)
    }

    /// Passes over `len` bytes without looking at them and returns where they began.
    #[inline]
    pub(crate) fn skip(&mut self, len: usize) -> Result<usize, RecordFlaw> {
        if len > self.left() {
            return Err(RecordFlaw::FieldTooLong);
        }
        let start = self.at;
        self.at += len;
        Ok(start)
    }

    /// Reads a varint of 32 bits.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<i32, RecordFlaw> {
        let raw = self.unsigned(MAX_I32)?;
        let raw = u32::try_from(raw).map_err(|_| RecordFlaw::BadVarint)?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    /// Reads a varint of 64 bits.
    #[inline]
    pub(crate) fn varlong(&mut self) -> Result<i64, RecordFlaw> {
        let raw = self.unsigned(MAX_I64)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    #[inline]
    fn unsigned(&mut self, max_len: usize) -> Result<u64, RecordFlaw> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for index in 1..max_len {
            let byte = self.byte()?;
            let group = u64::from(byte & 0x7f);
            let shift = 7 * index as u32;
            if shift == 63 && group > 1 {
                return Err(RecordFlaw::BadVarint);
            }
            value |= group << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(RecordFlaw::BadVarint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_round_trips() {
        let mut values = vec![0, 1, -1, 63, 64, -64, -65, i64::MAX, i64::MIN];
        values.extend((0..63).flat_map(|bit| [1i64 << bit, -(1i64 << bit), (1 << bit) - 1]));
        for value in values {
            let mut out = [0; MAX_I64];
            let written = write(&mut out, value);
            assert_eq!(written, len(value), "{value}");
            let mut reader = Reader::new(&out[..written], 0);
            assert_eq!(reader.varlong(), Ok(value));
            assert_eq!(reader.left(), 0);
            let small = Reader::new(&out[..written], 0).varint();
            match i32::try_from(value) {
                Ok(value) => assert_eq!(small, Ok(value)),
                Err(_) => assert_eq!(small, Err(RecordFlaw::BadVarint), "{value}"),
            }
        }
    }

    #[test]
    fn overlong_and_cut_off() {
        assert_eq!(
            Reader::new(&[0xff; 11], 0).varlong(),
            Err(RecordFlaw::BadVarint)
        );
        assert_eq!(
            Reader::new(&[0x80; 6], 0).varint(),
            Err(RecordFlaw::BadVarint)
        );
        assert_eq!(Reader::new(&[0x80; 3], 0).varint(), Err(RecordFlaw::CutOff));
        let mut tenth_byte_overflows = [0xff; 10];
        tenth_byte_overflows[9] = 2;
        assert_eq!(
            Reader::new(&tenth_byte_overflows, 0).varlong(),
            Err(RecordFlaw::BadVarint)
        );
    }
}
