//! Blocks of 256 values whose scales are quantised themselves.

// The vector forms are intrinsics on pointers.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::blocks::{Blocks, Factors, PART, half};
use super::half::Widen;

/// Scale and minimum of part `j` of eight: six bits each, packed into twelve
/// bytes. The first four pairs are the low six bits of bytes `j` and `j + 4`;
/// of the others, the low four bits share byte `j + 4` and the high two are
/// the spare top bits of the first eight bytes.
#[inline(always)]
fn scale_and_minimum(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let shared = packed[j + 4];
        (shared & 15 | packed[j - 4] >> 6 << 4, shared >> 4 | packed[j] >> 6 << 4)
    }
}

/// The factors of part `j` of a block that starts `d, dmin, scales[12]`.
#[inline(always)]
fn packed_factors<W: Widen>(block: &[u8], j: usize) -> Factors {
    let (scale, minimum) = scale_and_minimum(&block[4..16], j);
    let (d, dmin) = (half::<W>(block, 0), half::<W>(block, 2));
    Factors::of(d * f32::from(scale), -(dmin * f32::from(minimum)))
}

/// 32 bytes shifted right by `shift` bits, with what `mask` keeps of each.
///
/// # Safety
/// The CPU has AVX2, 32 bytes are readable, and the mask keeps nothing that
/// came from a neighbouring byte.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn shifted_avx2(bytes: *const u8, shift: usize, mask: i8) -> __m256i {
    // SAFETY: the caller vouches for both.
    unsafe {
        let bytes = _mm256_loadu_si256(bytes.cast());
        let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
        _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
    }
}

/// `d, dmin, scales[12], q[128]`: parts 2i and 2i + 1 are the low and the high
/// nibbles of the same 32 bytes.
pub(super) struct Q4K;

impl Blocks for Q4K {
    const PARTS: usize = 8;
    const BYTES: usize = 144;
    const OFFSET: u8 = 0;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], part: usize) -> Factors {
        packed_factors::<W>(block, part)
    }

    #[inline(always)]
    fn integers(block: &[u8], part: usize) -> [u8; PART] {
        let (bytes, shift) = (&block[16 + part / 2 * 32..][..32], 4 * (part % 2));
        let mut q = [0; PART];
        for (q, &byte) in q.iter_mut().zip(bytes) {
            *q = byte >> shift & 15;
        }
        q
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, part: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe { shifted_avx2(block.add(16 + part / 2 * 32), 4 * (part % 2), 15) }
    }
}

/// `d, dmin, scales[12], high[32], q[128]`: as [`Q4K`], with bit `j` of
/// `high[l]` the fifth bit of value `l` of part `j`.
pub(super) struct Q5K;

impl Blocks for Q5K {
    const PARTS: usize = 8;
    const BYTES: usize = 176;
    const OFFSET: u8 = 0;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], part: usize) -> Factors {
        packed_factors::<W>(block, part)
    }

    #[inline(always)]
    fn integers(block: &[u8], part: usize) -> [u8; PART] {
        let (high, bytes) = (&block[16..48], &block[48 + part / 2 * 32..][..32]);
        let shift = 4 * (part % 2);
        let mut q = [0; PART];
        for ((q, &byte), &high) in q.iter_mut().zip(bytes).zip(high) {
            *q = byte >> shift & 15 | (high >> part & 1) << 4;
        }
        q
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, part: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe {
            let low = shifted_avx2(block.add(48 + part / 2 * 32), 4 * (part % 2), 15);
            let high = shifted_avx2(block.add(16), part, 1);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        }
    }
}

/// `low[128], high[64], scales[16], d`: each half of the block has 64 bytes of
/// low nibbles and 32 of high pairs. Part `k` of the four of a half takes the
/// low nibbles of bytes 0 to 31 (k = 0), 32 to 63 (1), or their high nibbles
/// (2, 3), and the pair at bit 2k.
pub(super) struct Q6K;

impl Blocks for Q6K {
    const PARTS: usize = 8;
    const BYTES: usize = 210;
    const OFFSET: u8 = 32;
    const MINIMUM: bool = false;
    const TWO_SCALES: bool = true;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], part: usize) -> Factors {
        let d = half::<W>(block, 208);
        let scale = |i: usize| d * f32::from(block[192 + part * 2 + i] as i8);
        Factors { scale: [scale(0), scale(1)], minimum: 0.0 }
    }

    #[inline(always)]
    fn integers(block: &[u8], part: usize) -> [u8; PART] {
        let (half, k) = (part / 4, part % 4);
        let low = &block[half * 64 + k % 2 * 32..][..32];
        let high = &block[128 + half * 32..][..32];
        let mut q = [0; PART];
        for ((q, &low), &high) in q.iter_mut().zip(low).zip(high) {
            *q = low >> (4 * (k / 2)) & 15 | (high >> (2 * k) & 3) << 4;
        }
        q
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, part: usize) -> __m256i {
        let (half, k) = (part / 4, part % 4);
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe {
            let low = shifted_avx2(block.add(half * 64 + k % 2 * 32), 4 * (k / 2), 15);
            let high = shifted_avx2(block.add(128 + half * 32), 2 * k, 3);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_six_bits_unpack() {
        // Scale j = 8·j + 1 and minimum j = 63 − 7·j, packed by hand.
        let (scale, minimum) = (|j: u8| 8 * j + 1, |j: u8| 63 - 7 * j);
        let mut packed = [0u8; 12];
        for j in 0..4u8 {
            let i = usize::from(j);
            packed[i] = scale(j) | scale(j + 4) >> 4 << 6;
            packed[i + 4] = minimum(j) | minimum(j + 4) >> 4 << 6;
            packed[i + 8] = scale(j + 4) & 15 | (minimum(j + 4) & 15) << 4;
        }
        for j in 0..8u8 {
            assert_eq!(scale_and_minimum(&packed, j.into()), (scale(j), minimum(j)), "{j}");
        }
    }
}
