//! CRC-32C of a batch whose header changed, without reading its body again.
//!
//! A CRC is linear: for a head A and a body B of n bytes, crc(AB) = crc(A)·x^8n ⊕ crc(B) in the
//! polynomials over GF(2) modulo Castagnoli's. Replacing A by A′ thus changes the whole by
//! (crc(A) ⊕ crc(A′))·x^8n, at a cost of log₂ n multiplications.

/// Castagnoli's polynomial, reflected: bit 31 is the coefficient of x⁰.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// `POWERS[k]` is x^(2^k) modulo the polynomial.
const POWERS: [u32; 64] = powers();

const fn powers() -> [u32; 64] {
    let mut table = [0; 64];
    table[0] = ONE >> 1;
    let mut k = 1;
    while k < 64 {
        table[k] = multiply(table[k - 1], table[k - 1]);
        k += 1;
    }
    table
}

/// The product of two polynomials, modulo Castagnoli's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit >>= 1;
    }
    product
}

/// x^(8·len) modulo the polynomial: the effect of `len` bytes that follow.
fn shift(len: usize) -> u32 {
    let mut result = ONE;
    // x^(8·len): the bits of `len` stand for x^(2^3), x^(2^4), …
    for (k, power) in POWERS.iter().enumerate().skip(3) {
        if (len >> (k - 3)) & 1 == 1 {
            result = multiply(*power, result);
        }
    }
    result
}

/// The checksum `whole` of `old_head` and a body of `body_len` bytes, once the head is `new_head`,
/// which is as long. A wrong checksum stays wrong.
pub(crate) fn replace_head(whole: u32, old_head: &[u8], new_head: &[u8], body_len: usize) -> u32 {
    debug_assert_eq!(old_head.len(), new_head.len());
    let difference = crc32c::crc32c(old_head) ^ crc32c::crc32c(new_head);
    whole ^ multiply(shift(body_len), difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_replaced_equals_recomputed() {
        let body: Vec<u8> = (0..70_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for len in [0, 1, 2, 3, 63, 64, 1_000, 4_096, 65_535, 70_000] {
            let whole = |head: &[u8]| crc32c::crc32c(&[head, &body[..len]].concat());
            let (old, new) = (b"a head of some bytes", b"one of as many bytes");
            assert_eq!(replace_head(whole(old), old, new, len), whole(new), "{len}");
            let wrong = whole(old) ^ 0x10;
            assert_ne!(replace_head(wrong, old, new, len), whole(new), "{len}");
        }
    }
}
