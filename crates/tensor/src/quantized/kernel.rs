//! Integer products of quantised rows with quantised input.
//!
//! Every path does the same arithmetic in the same order, so all give the same
//! bits: for each part of 32 values, eight integer sums of four products each,
//! exact; each widened, multiplied by scale·d and added to its lane's sum in
//! single precision; at the end the lanes are joined as a binary tree.

// The vector paths are intrinsics on pointers.
#![allow(unsafe_code)]

use super::activations::{Activations, LANES};
use super::blocks::{Blocks, PART};
use super::half::Portable;
use crate::simd::LevelId;

/// How integer products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// Scalar code.
    Portable,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VNNI, in registers of 256 bits.
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Path {
    /// The path of a SIMD level, narrower where the CPU lacks an extension.
    pub(super) fn of(level: LevelId) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let level = level.min(LevelId::widest());
            if level >= LevelId::Avx2 && is_x86_feature_detected!("f16c") {
                let vnni = level == LevelId::Avx512 && is_x86_feature_detected!("avx512vnni");
                return if vnni { Self::Vnni } else { Self::Avx2 };
            }
        }
        let _ = level;
        Self::Portable
    }
}

/// out\[r\] = row r of the weights · row `row` of the input.
///
/// # Panics
/// Unless `weights` are `out.len()` whole rows as long as the input's.
pub(super) fn multiply<B: Blocks>(
    path: Path,
    weights: &[u8],
    x: &Activations,
    row: usize,
    out: &mut [f32],
) {
    let stride = x.parts / B::PARTS * B::BYTES;
    assert!(
        x.parts.is_multiple_of(B::PARTS) && weights.len() == stride * out.len(),
        "quantized rows differ in length from the input's"
    );
    let range = row * x.parts..(row + 1) * x.parts;
    let x = Input {
        q: &x.q[range.clone()],
        start: &x.start[range.clone()],
        d: &x.d[range.clone()],
        sum: &x.sum[range],
    };
    match path {
        Path::Portable => {
            for (r, out) in out.iter_mut().enumerate() {
                *out = portable::<B>(&weights[r * stride..][..stride], x);
            }
        }
        // SAFETY: `Path::of` found the features, and the weights are whole rows.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { x86::multiply_avx2::<B>(weights.as_ptr(), stride, x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Vnni => unsafe { x86::multiply_vnni::<B>(weights.as_ptr(), stride, x, out) },
    }
}

/// A row of [`Activations`]; all slices are equally long.
#[derive(Clone, Copy)]
struct Input<'a> {
    q: &'a [[i8; PART]],
    start: &'a [[i32; LANES]],
    d: &'a [f32],
    sum: &'a [f32],
}

/// Sum of the lanes as a binary tree, halves first.
#[inline(always)]
fn join(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

fn portable<B: Blocks>(weights: &[u8], x: Input<'_>) -> f32 {
    let (mut sums, mut minima) = ([0f32; LANES], 0f32);
    for (block, first) in weights.chunks_exact(B::BYTES).zip((0..).step_by(B::PARTS)) {
        for part in 0..B::PARTS {
            let i = first + part;
            let factors = B::factors::<Portable>(block, part);
            let q = B::integers(block, part);
            let (q, _) = q.as_chunks::<4>();
            let (x_q, _) = x.q[i].as_chunks::<4>();
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut dot = x.start[i][lane];
                for (&q, &x) in q[lane].iter().zip(&x_q[lane]) {
                    dot += i32::from(q) * i32::from(x);
                }
                *sum += factors.scale[lane / 4] * x.d[i] * dot as f32;
            }
            if B::MINIMUM {
                minima += factors.minimum * x.sum[i];
            }
        }
    }
    join(sums) + minima
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::half::F16c;
    use super::{Blocks, Input, LANES, join};

    /// Rows of weights that go through the input together, so that additions
    /// of one do not wait for each other.
    const ROWS: usize = 4;
    /// Bytes of a cache line.
    const LINE: usize = 64;
    /// How far ahead of the next rows to fetch.
    const AHEAD: usize = 2048;

    /// An instruction set's product of bytes.
    trait Dot {
        /// For each lane of four bytes, Σ (q − offset)·x; `start` holds
        /// −offset·Σx of each lane.
        ///
        /// # Safety
        /// The CPU has the instructions.
        unsafe fn dot<B: Blocks>(q: __m256i, x: __m256i, start: __m256i) -> __m256i;
    }

    struct Vnni;

    impl Dot for Vnni {
        #[inline(always)]
        unsafe fn dot<B: Blocks>(q: __m256i, x: __m256i, start: __m256i) -> __m256i {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm256_dpbusd_epi32(start, q, x) }
        }
    }

    struct Avx2;

    impl Dot for Avx2 {
        #[inline(always)]
        unsafe fn dot<B: Blocks>(q: __m256i, x: __m256i, start: __m256i) -> __m256i {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                let one = _mm256_set1_epi16(1);
                if B::OFFSET < 128 {
                    // Integers of up to 6 bits: a pair of products fits 16.
                    let pairs = _mm256_maddubs_epi16(q, x);
                    return _mm256_add_epi32(start, _mm256_madd_epi16(pairs, one));
                }
                // Integers of 8 bits do not, but their sizes do.
                let q = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
                let x = _mm256_sign_epi8(x, q);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), x);
                _mm256_madd_epi16(pairs, one)
            }
        }
    }

    /// # Safety
    /// The CPU has the features, and `weights` are `out.len()` rows of `stride`
    /// bytes as long as the input.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn multiply_vnni<B: Blocks>(
        weights: *const u8,
        stride: usize,
        x: Input<'_>,
        out: &mut [f32],
    ) {
        // SAFETY: the caller vouches for the features and the weights.
        unsafe { multiply::<B, Vnni>(weights, stride, x, out) }
    }

    /// # Safety
    /// As [`multiply_vnni`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn multiply_avx2<B: Blocks>(
        weights: *const u8,
        stride: usize,
        x: Input<'_>,
        out: &mut [f32],
    ) {
        // SAFETY: the caller vouches for the features and the weights.
        unsafe { multiply::<B, Avx2>(weights, stride, x, out) }
    }

    /// # Safety
    /// As [`multiply_vnni`].
    #[inline(always)]
    unsafe fn multiply<B: Blocks, D: Dot>(
        weights: *const u8,
        stride: usize,
        x: Input<'_>,
        out: &mut [f32],
    ) {
        let (tiles, rest) = out.as_chunks_mut::<ROWS>();
        let whole = tiles.len() * ROWS;
        // SAFETY: the weights hold a row for each output.
        unsafe {
            for (i, tile) in tiles.iter_mut().enumerate() {
                *tile = rows::<B, D, ROWS>(weights.add(i * ROWS * stride), stride, x);
            }
            for (i, out) in rest.iter_mut().enumerate() {
                [*out] = rows::<B, D, 1>(weights.add((whole + i) * stride), stride, x);
            }
        }
    }

    /// Products of `R` rows with the input.
    ///
    /// # Safety
    /// As [`multiply_vnni`], for `R` rows.
    #[inline(always)]
    unsafe fn rows<B: Blocks, D: Dot, const R: usize>(
        weights: *const u8,
        stride: usize,
        x: Input<'_>,
    ) -> [f32; R] {
        let parts = x.q.len();
        assert!(x.d.len() == parts && x.sum.len() == parts && x.start.len() == parts);
        // SAFETY: blocks lie within their rows, parts within the input, and the
        // CPU has the features.
        unsafe {
            let mut sums = [_mm256_setzero_ps(); R];
            let mut minima = [0f32; R];
            // Of paired factors: sums of scale·d, which nobody asks for, and of
            // minimum·Σx.
            let mut pairs = [_mm_setzero_ps(); R];
            let mut i = 0;
            let mut at = 0;
            while i < parts {
                // Rows in step are short streams, which the processor's own
                // prefetch keeps losing (7 GB/s instead of 25, measured with
                // Q8_0); together they are one long stream.
                let ahead = weights.wrapping_add(R * (at + stride) + AHEAD);
                for line in (0..R * B::BYTES).step_by(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
                }
                for part in 0..B::PARTS {
                    let x_q = _mm256_loadu_si256(x.q.as_ptr().add(i).cast());
                    let start = _mm256_loadu_si256(x.start.as_ptr().add(i).cast());
                    let d = *x.d.get_unchecked(i);
                    let sum = *x.sum.get_unchecked(i);
                    let d_and_sum = _mm_setr_ps(d, sum, 0.0, 0.0);
                    for r in 0..R {
                        let block = weights.add(r * stride + at);
                        let dot = D::dot::<B>(B::integers_avx2(block, part), x_q, start);
                        let factor = if B::PAIRED {
                            // One conversion and one product for both.
                            let pair = _mm_cvtsi32_si128(block.cast::<i32>().read_unaligned());
                            let pair = _mm_mul_ps(_mm_cvtph_ps(pair), d_and_sum);
                            pairs[r] = _mm_add_ps(pairs[r], pair);
                            _mm256_broadcastss_ps(pair)
                        } else {
                            let bytes = std::slice::from_raw_parts(block, B::BYTES);
                            let factors = B::factors::<F16c>(bytes, part);
                            if B::MINIMUM {
                                minima[r] += factors.minimum * sum;
                            }
                            let [low, high] = factors.scale.map(|scale| scale * d);
                            if B::TWO_SCALES {
                                _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low))
                            } else {
                                _mm256_set1_ps(low)
                            }
                        };
                        // Not fused, so that other paths can do the same.
                        let product = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(dot));
                        sums[r] = _mm256_add_ps(sums[r], product);
                    }
                    i += 1;
                }
                at += B::BYTES;
            }
            let mut out = [0f32; R];
            for (r, out) in out.iter_mut().enumerate() {
                let mut lanes = [0f32; LANES];
                _mm256_storeu_ps(lanes.as_mut_ptr(), sums[r]);
                let minimum =
                    if B::PAIRED { _mm_cvtss_f32(_mm_movehdup_ps(pairs[r])) } else { minima[r] };
                *out = join(lanes) + minimum;
            }
            out
        }
    }
}
