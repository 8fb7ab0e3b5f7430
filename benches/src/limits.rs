//! What the machine can do at most, measured: multiply-adds from registers,
//! reading memory, and copying it.

use std::hint::black_box;

use rayon::prelude::*;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use crate::timing::best;

/// Bytes that are read: more than any cache holds.
const BYTES: usize = 256 << 20;
/// Places from which a thread reads in turns; one alone waits for memory.
const STREAMS: usize = 4;
/// Multiply-adds that do not wait for each other.
const CHAINS: usize = 12;

/// The limits of a pool of threads.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Floating-point operations a second (single precision, two for a
    /// multiply-add).
    pub flops: f64,
    /// Bytes read a second.
    pub read: f64,
    /// Bytes read or written a second where as many are read as written.
    pub copy: f64,
}

impl Limits {
    /// Measures with the threads of the current pool.
    pub fn measure() -> Self {
        Self { flops: flops(), read: read(), copy: copy() }
    }
}

fn flops() -> f64 {
    let (threads, turns) = (rayon::current_num_threads(), 10_000_000);
    let mut lanes = 0;
    let seconds = best(|| {
        let each = (0..threads).into_par_iter().map(|_| multiply_adds(turns));
        lanes = each.max().unwrap_or(0);
    });
    2.0 * (threads * turns * CHAINS * lanes) as f64 / seconds
}

/// `turns` times [`CHAINS`] vectors of multiply-adds that stay in registers;
/// the numbers of a vector. The compiler does not make these of a plain loop.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn multiply_adds(turns: usize) -> usize {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has it.
        unsafe { x86::avx512(turns) };
        16
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has both.
        unsafe { x86::avx2(turns) };
        8
    } else {
        portable(turns)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_adds(turns: usize) -> usize {
    portable(turns)
}

fn portable(turns: usize) -> usize {
    const LANES: usize = 4;
    let (factor, term) = (black_box([0.999f32; LANES]), black_box([0.001f32; LANES]));
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = std::array::from_fn(|lane| sum[lane] * factor[lane] + term[lane]);
        }
    }
    black_box(sums);
    LANES
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    use std::hint::black_box;

    use super::CHAINS;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(turns: usize) {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [term; CHAINS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(turns: usize) {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [term; CHAINS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
    }
}

/// The sum of numbers, read in [`STREAMS`] places in turns.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Level>(self) -> f32 {
        const BLOCK: usize = 64;
        let part = self.0.len() / STREAMS / BLOCK * BLOCK;
        let mut sums = [0.0f32; BLOCK];
        for start in (0..part).step_by(BLOCK) {
            for stream in 0..STREAMS {
                let numbers = &self.0[stream * part + start..][..BLOCK];
                for (sum, number) in sums.iter_mut().zip(numbers) {
                    *sum += number;
                }
            }
        }
        sums.iter().sum()
    }
}

fn read() -> f64 {
    let numbers = vec![1.0f32; BYTES / size_of::<f32>()];
    let part = numbers.len().div_ceil(rayon::current_num_threads());
    let seconds = best(|| {
        numbers.par_chunks(part).for_each(|part| {
            black_box(dispatch(Read(part)));
        });
    });
    BYTES as f64 / seconds
}

fn copy() -> f64 {
    let from = vec![1.0f32; BYTES / size_of::<f32>()];
    let mut to = vec![0.0f32; from.len()];
    let part = from.len().div_ceil(rayon::current_num_threads());
    let seconds = best(|| {
        let parts = to.par_chunks_mut(part).zip(from.par_chunks(part));
        parts.for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&to);
    });
    2.0 * BYTES as f64 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_once() {
        let numbers: Vec<f32> = (0..1024).map(|n| n as f32).collect();
        assert_eq!(dispatch(Read(&numbers)), numbers.iter().sum::<f32>());
        assert!([4, 8, 16].contains(&multiply_adds(10)));
        assert_eq!(portable(10), 4);
    }
}
