//! Block formats as the kernels see them, and those of 32 values.

// The vector forms are intrinsics on pointers.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::half::Widen;

/// Values that share a part's factors, and that one step of a kernel takes.
pub(super) const PART: usize = 32;

/// The factors of 32 values: value l is scale\[l / 16\]·(q − offset) + minimum.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) scale: [f32; 2],
    pub(super) minimum: f32,
}

impl Factors {
    #[inline(always)]
    pub(super) fn of(scale: f32, minimum: f32) -> Self {
        Self { scale: [scale; 2], minimum }
    }
}

/// A format of blocks of `PARTS` times 32 values.
pub(super) trait Blocks: 'static {
    /// Parts of a block.
    const PARTS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// What is taken off the unsigned integers.
    const OFFSET: u8;
    /// False if the minimum is always 0.
    const MINIMUM: bool;
    /// True if the two scales of a part may differ.
    const TWO_SCALES: bool = false;

    /// True if a block is one part that begins with its scale and its minimum
    /// in half precision.
    const PAIRED: bool = false;

    /// The factors of a part.
    fn factors<W: Widen>(block: &[u8], part: usize) -> Factors;

    /// The integers of a part, from 0.
    fn integers(block: &[u8], part: usize) -> [u8; PART];

    /// [`Blocks::integers`] in a register.
    ///
    /// # Safety
    /// The CPU has AVX2, and a whole block is readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn integers_avx2(block: *const u8, part: usize) -> __m256i;
}

/// The half-precision factor at a place of a block.
#[inline(always)]
pub(super) fn half<W: Widen>(block: &[u8], at: usize) -> f32 {
    W::widen(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Low nibbles of sixteen bytes, then their high nibbles.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; PART] {
    let mut q = [0; PART];
    for (j, &byte) in bytes[..16].iter().enumerate() {
        q[j] = byte & 15;
        q[j + 16] = byte >> 4;
    }
    q
}

/// [`nibbles`] in a register.
///
/// # Safety
/// The CPU has AVX2, and sixteen bytes are readable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn nibbles_avx2(bytes: *const u8) -> __m256i {
    // SAFETY: the caller vouches for both.
    unsafe {
        let low = _mm_loadu_si128(bytes.cast());
        let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// Adds 16 where a bit of the word at `at` is set, bit j for value j.
#[inline(always)]
fn add_fifth_bits(q: &mut [u8; PART], block: &[u8], at: usize) {
    for (j, q) in q.iter_mut().enumerate() {
        *q |= (block[at + j / 8] >> (j % 8) & 1) << 4;
    }
}

/// 16 where a bit of the word is set, else 0.
///
/// # Safety
/// The CPU has AVX2, and four bytes are readable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn fifth_bits_avx2(word: *const u8) -> __m256i {
    // SAFETY: the caller vouches for both.
    unsafe {
        let word = _mm256_set1_epi32(word.cast::<i32>().read_unaligned());
        let byte_of = _mm256_setr_epi64x(
            0,
            0x0101_0101_0101_0101,
            0x0202_0202_0202_0202,
            0x0303_0303_0303_0303,
        );
        let bit_of = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let bits = _mm256_and_si256(_mm256_shuffle_epi8(word, byte_of), bit_of);
        _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(16))
    }
}

/// `d, q[16]`.
pub(super) struct Q4_0;

impl Blocks for Q4_0 {
    const PARTS: usize = 1;
    const BYTES: usize = 18;
    const OFFSET: u8 = 8;
    const MINIMUM: bool = false;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], _: usize) -> Factors {
        Factors::of(half::<W>(block, 0), 0.0)
    }

    #[inline(always)]
    fn integers(block: &[u8], _: usize) -> [u8; PART] {
        nibbles(&block[2..])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe { nibbles_avx2(block.add(2)) }
    }
}

/// `d, m, q[16]`.
pub(super) struct Q4_1;

impl Blocks for Q4_1 {
    const PARTS: usize = 1;
    const BYTES: usize = 20;
    const OFFSET: u8 = 0;
    const MINIMUM: bool = true;
    const PAIRED: bool = true;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], _: usize) -> Factors {
        Factors::of(half::<W>(block, 0), half::<W>(block, 2))
    }

    #[inline(always)]
    fn integers(block: &[u8], _: usize) -> [u8; PART] {
        nibbles(&block[4..])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe { nibbles_avx2(block.add(4)) }
    }
}

/// `d, fifth bits[4], q[16]`.
pub(super) struct Q5_0;

impl Blocks for Q5_0 {
    const PARTS: usize = 1;
    const BYTES: usize = 22;
    const OFFSET: u8 = 16;
    const MINIMUM: bool = false;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], _: usize) -> Factors {
        Factors::of(half::<W>(block, 0), 0.0)
    }

    #[inline(always)]
    fn integers(block: &[u8], _: usize) -> [u8; PART] {
        let mut q = nibbles(&block[6..]);
        add_fifth_bits(&mut q, block, 2);
        q
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe { _mm256_or_si256(nibbles_avx2(block.add(6)), fifth_bits_avx2(block.add(2))) }
    }
}

/// `d, m, fifth bits[4], q[16]`.
pub(super) struct Q5_1;

impl Blocks for Q5_1 {
    const PARTS: usize = 1;
    const BYTES: usize = 24;
    const OFFSET: u8 = 0;
    const MINIMUM: bool = true;
    const PAIRED: bool = true;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], _: usize) -> Factors {
        Factors::of(half::<W>(block, 0), half::<W>(block, 2))
    }

    #[inline(always)]
    fn integers(block: &[u8], _: usize) -> [u8; PART] {
        let mut q = nibbles(&block[8..]);
        add_fifth_bits(&mut q, block, 4);
        q
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe { _mm256_or_si256(nibbles_avx2(block.add(8)), fifth_bits_avx2(block.add(4))) }
    }
}

/// `d, q[32]`, q signed: 128 more makes them count from 0.
pub(super) struct Q8_0;

impl Blocks for Q8_0 {
    const PARTS: usize = 1;
    const BYTES: usize = 34;
    const OFFSET: u8 = 128;
    const MINIMUM: bool = false;

    #[inline(always)]
    fn factors<W: Widen>(block: &[u8], _: usize) -> Factors {
        Factors::of(half::<W>(block, 0), 0.0)
    }

    #[inline(always)]
    fn integers(block: &[u8], _: usize) -> [u8; PART] {
        let mut q = [0; PART];
        for (q, &byte) in q.iter_mut().zip(&block[2..34]) {
            *q = byte ^ 128;
        }
        q
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn integers_avx2(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the caller vouches for the block and the CPU.
        unsafe {
            let q = _mm256_loadu_si256(block.add(2).cast());
            _mm256_xor_si256(q, _mm256_set1_epi8(-128))
        }
    }
}
