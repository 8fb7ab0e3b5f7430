//! From stored values to single precision.

// Integers are unpacked by intrinsics.
#![allow(unsafe_code)]

use super::blocks::{Blocks, PART, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::format::QuantizedFormat;
use super::half::{Portable, Widen};
use super::k_blocks::{Q4K, Q5K, Q6K};
use crate::simd::{Kernel, Level, LevelId, dispatch_at};

/// Widens whole blocks. One rounding for a product and one for a sum, in the
/// same order at every level.
pub(super) fn widen(level: LevelId, format: QuantizedFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        QuantizedFormat::F16 => dispatch_at(level, Halves(bytes, out)),
        QuantizedFormat::BF16 => {
            for (out, &value) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(value)) << 16);
            }
        }
        QuantizedFormat::Q4_0 => dispatch_at(level, Blocked(bytes, out, Q4_0)),
        QuantizedFormat::Q4_1 => dispatch_at(level, Blocked(bytes, out, Q4_1)),
        QuantizedFormat::Q5_0 => dispatch_at(level, Blocked(bytes, out, Q5_0)),
        QuantizedFormat::Q5_1 => dispatch_at(level, Blocked(bytes, out, Q5_1)),
        QuantizedFormat::Q8_0 => dispatch_at(level, Blocked(bytes, out, Q8_0)),
        QuantizedFormat::Q4_K => dispatch_at(level, Blocked(bytes, out, Q4K)),
        QuantizedFormat::Q5_K => dispatch_at(level, Blocked(bytes, out, Q5K)),
        QuantizedFormat::Q6_K => dispatch_at(level, Blocked(bytes, out, Q6K)),
    }
}

struct Halves<'a>(&'a [u8], &'a mut [f32]);

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (out, &value) in self.1.iter_mut().zip(self.0.as_chunks::<2>().0) {
            *out = Portable::widen(u16::from_le_bytes(value));
        }
    }
}

/// [`Blocks::integers`] with the registers of the level.
#[inline(always)]
fn integers<L: Level, B: Blocks>(block: &[u8], part: usize) -> [u8; PART] {
    #[cfg(target_arch = "x86_64")]
    if L::LANES_F32 >= 8 {
        let mut q = [0; PART];
        // SAFETY: levels with registers this wide have AVX2; the block is whole
        // and the array as long as a register.
        unsafe {
            let register = B::integers_avx2(block[..B::BYTES].as_ptr(), part);
            std::arch::x86_64::_mm256_storeu_si256(q.as_mut_ptr().cast(), register);
        }
        return q;
    }
    B::integers(block, part)
}

struct Blocked<'a, B>(&'a [u8], &'a mut [f32], B);

impl<B: Blocks> Kernel for Blocked<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let blocks = self.0.chunks_exact(B::BYTES);
        for (block, out) in blocks.zip(self.1.chunks_exact_mut(B::PARTS * PART)) {
            for (part, out) in out.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
                let factors = B::factors::<Portable>(block, part);
                let q = integers::<L, B>(block, part);
                for l in 0..PART {
                    let value = f32::from(i16::from(q[l]) - i16::from(B::OFFSET));
                    let product = factors.scale[l / (PART / 2)] * value;
                    out[l] = if B::MINIMUM { product + factors.minimum } else { product };
                }
            }
        }
    }
}
