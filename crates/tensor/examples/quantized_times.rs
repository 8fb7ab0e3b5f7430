//! Times of products with quantised weights for the shapes of a model of 135 M
//! parameters, on one thread and two, beside a plain read of as many bytes.
//!
//! Run with `cargo run --release -p specialformer-tensor --example quantized_times`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use ndarray::Array2;
use specialformer_tensor::Parallelism;
use specialformer_tensor::quantized::{Precision, QuantizedFormat, QuantizedMatrix};

const REPEATS: usize = 3;
/// Bytes that the matrices of a measurement have together, so that they come
/// from memory and not from a cache.
const SPREAD: usize = 96 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bytes = random_bytes(SPREAD, &mut 1);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        pool.install(|| {
            let part = 1 << 20;
            let seconds = quartile(SPREAD / part, |i| read(&bytes[i * part..][..part], threads));
            println!("{threads} threads: plain read {:.1} GB/s", part as f64 / seconds / 1e9);
        });
        for (rows, columns, format) in [
            (576, 576, QuantizedFormat::Q8_0),
            (576, 576, QuantizedFormat::Q4_1),
            (1536, 576, QuantizedFormat::Q4_1),
            (576, 1536, QuantizedFormat::Q4_1),
            (49152, 576, QuantizedFormat::Q8_0),
            (1536, 576, QuantizedFormat::Q4_0),
            (1536, 576, QuantizedFormat::Q5_1),
            (1024, 1024, QuantizedFormat::Q4_K),
            (1024, 1024, QuantizedFormat::Q6_K),
            (1536, 576, QuantizedFormat::BF16),
        ] {
            let size = columns / format.block_len() * format.block_bytes() * rows;
            let matrices: Vec<_> = (0..(SPREAD / size).max(1))
                .map(|i| matrix(format, rows, columns, i as u64 + 1))
                .collect::<Result<_, _>>()?;
            for (batch, precision) in [
                (1, Precision::Fast),
                (1, Precision::Exact),
                (8, Precision::Fast),
                (8, Precision::Exact),
                (32, Precision::Exact),
                (256, Precision::Exact),
            ] {
                let x = Array2::from_shape_fn((batch, columns), |(i, j)| {
                    ((i * 31 + j * 17) % 101) as f32 / 50.0 - 1.0
                });
                let some = &matrices[..(matrices.len() / batch).max(1)];
                let seconds = pool.install(|| {
                    quartile(some.len(), |i| {
                        let mut y = Array2::zeros((batch, rows));
                        let parallel = Parallelism::Rayon;
                        some[i]
                            .multiply(x.view(), None, y.view_mut(), precision, parallel)
                            .expect("shapes fit");
                        black_box(&y);
                    })
                });
                println!(
                    "{threads} threads {format:>4} [{rows}, {columns}] x {batch:3} {precision:?}: \
                     {:5.1} GB/s, {:6.1} us, {:6.1} GFLOP/s",
                    size as f64 / seconds / 1e9,
                    seconds * 1e6,
                    2.0 * (rows * columns * batch) as f64 / seconds / 1e9,
                );
            }
        }
    }
    Ok(())
}

/// The lower quartile of the times of `f(i)` for i in `0..count`, each several
/// times, in seconds: on a busy machine a long measurement is interrupted.
fn quartile(count: usize, f: impl Fn(usize)) -> f64 {
    let mut times: Vec<f64> = (0..REPEATS * count)
        .map(|i| {
            let start = Instant::now();
            f(i % count);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

/// Adds up all bytes as words.
fn read(bytes: &[u8], threads: usize) {
    use rayon::prelude::*;
    let part = bytes.len() / threads;
    bytes.par_chunks(part).for_each(|bytes| {
        let (words, _) = bytes.as_chunks::<64>();
        let mut sums = [0u64; 8];
        for word in words {
            for (sum, word) in sums.iter_mut().zip(word.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        black_box(sums);
    });
}

fn random_bytes(len: usize, random: &mut u64) -> Vec<u8> {
    let mut next = || {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*random >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Random blocks with factors of about 0.01.
fn matrix(
    format: QuantizedFormat,
    rows: usize,
    columns: usize,
    mut random: u64,
) -> Result<QuantizedMatrix, Box<dyn std::error::Error>> {
    let len = rows * (columns / format.block_len()) * format.block_bytes();
    let mut bytes = random_bytes(len, &mut random);
    let factor_at = match format {
        QuantizedFormat::Q6_K => 208,
        _ => 0,
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        block[factor_at + 1] = 0x21;
        if block.len() > 2 && factor_at == 0 {
            block[3] = 0x21;
        }
    }
    Ok(QuantizedMatrix::new(format, rows, columns, Arc::new(bytes))?)
}
