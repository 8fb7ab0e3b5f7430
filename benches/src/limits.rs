//! What the machine can do at most, measured: multiply-adds from registers,
//! and reading memory.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

/// Rounds of a measurement, of which the best counts.
const ROUNDS: usize = 5;
/// Bytes that are read: more than any cache holds.
const BYTES: usize = 256 << 20;

/// The limits of a pool of threads.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Floating-point operations a second (single precision, two for a
    /// multiply-add).
    pub flops: f64,
    /// Bytes read a second.
    pub bandwidth: f64,
}

impl Limits {
    /// Measures with the threads of the current pool.
    pub fn measure() -> Self {
        Self { flops: flops(), bandwidth: bandwidth() }
    }
}

/// Independent multiply-adds that all stay in registers.
struct MultiplyAdds(usize);

const CHAINS: usize = 12;
const LANES: usize = 16;

impl Kernel for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn run<L: Level>(self) -> f32 {
        let mut sums = [[0.0f32; LANES]; CHAINS];
        let (factor, term) = (black_box([0.999f32; LANES]), black_box([0.001f32; LANES]));
        for _ in 0..self.0 {
            for chain in &mut sums {
                for lane in 0..LANES {
                    chain[lane] = if L::FMA {
                        chain[lane].mul_add(factor[lane], term[lane])
                    } else {
                        chain[lane] * factor[lane] + term[lane]
                    };
                }
            }
        }
        sums.iter().flatten().sum()
    }
}

fn flops() -> f64 {
    let (threads, turns) = (rayon::current_num_threads(), 4_000_000);
    let seconds = best(|| {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(dispatch(MultiplyAdds(turns)));
        });
    });
    2.0 * (threads * turns * CHAINS * LANES) as f64 / seconds
}

fn bandwidth() -> f64 {
    let threads = rayon::current_num_threads();
    let numbers = vec![1u64; BYTES / size_of::<u64>()];
    let seconds = best(|| {
        numbers.par_chunks(numbers.len().div_ceil(threads)).for_each(|part| {
            let mut sums = [0u64; 32];
            for numbers in part.as_chunks::<32>().0 {
                for (sum, number) in sums.iter_mut().zip(numbers) {
                    *sum = sum.wrapping_add(*number);
                }
            }
            black_box(sums);
        });
    });
    BYTES as f64 / seconds
}

/// The shortest time of a call, after one that does not count.
pub fn best(mut call: impl FnMut()) -> f64 {
    call();
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}
