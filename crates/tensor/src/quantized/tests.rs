//! Products with quantised weights against widening by definition, at every
//! SIMD level, with every format, and over any number of threads.

use std::sync::Arc;

use ndarray::Array2;
use proptest::prelude::*;

use super::activations::Activations;
use super::half::{Portable, Widen};
use super::{Precision, QuantizedFormat, QuantizedMatrix};
use crate::error::TensorError;
use crate::parallel::Parallelism;
use crate::simd::LevelId;

/// Reproducible bytes.
fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix of random blocks whose half-precision factors are finite; their
/// sizes go up to 2^(largest − 15).
fn random_matrix(
    format: QuantizedFormat,
    (rows, columns): (usize, usize),
    seed: u64,
    largest: u8,
) -> QuantizedMatrix {
    let bytes_of_row = columns / format.block_len() * format.block_bytes();
    let mut bytes = random_bytes(rows * bytes_of_row, seed);
    let tame = |high: &mut u8| *high = *high & 0x83 | (*high >> 2 & 31).min(largest) << 2;
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        match format {
            QuantizedFormat::Q6_K => tame(&mut block[209]),
            QuantizedFormat::BF16 => block[1] = block[1] & 0x80 | 0x3f,
            _ => {
                tame(&mut block[1]);
                if block.len() > 3 {
                    tame(&mut block[3]);
                }
            }
        }
    }
    QuantizedMatrix::new(format, rows, columns, Arc::new(bytes)).unwrap()
}

fn input((rows, columns): (usize, usize), seed: u64) -> Array2<f32> {
    let bytes = random_bytes(2 * rows * columns, seed);
    let value = |i: usize| i16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    Array2::from_shape_fn((rows, columns), |(r, c)| f32::from(value(r * columns + c)) / 1e4)
}

/// The matrix in double precision, by the table of [`QuantizedFormat`], value
/// by value.
fn definition(w: &QuantizedMatrix, bytes: &[u8]) -> Array2<f64> {
    let format = w.format();
    let value = |r: usize, c: usize| {
        let (len, width) = (format.block_len(), format.block_bytes());
        let block = &bytes[(r * w.columns() + c) / len * width..][..width];
        let l = c % len;
        let half =
            |at: usize| f64::from(Portable::widen(u16::from_le_bytes([block[at], block[at + 1]])));
        let nibble = |at: usize| {
            let byte = block[at + l % 16];
            f64::from(if l < 16 { byte % 16 } else { byte / 16 })
        };
        let fifth = |at: usize| f64::from(block[at + l / 8] >> (l % 8) & 1) * 16.0;
        let bits = |at: usize, shift: usize, count: u32| {
            f64::from(u32::from(block[at]) >> shift & ((1 << count) - 1))
        };
        let packed = |j: usize| {
            let s = &block[4..16];
            match j {
                0..4 => (s[j] & 63, s[j + 4] & 63),
                _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
            }
        };
        let of_k = |q: f64| {
            let (s, t) = packed(l / 32);
            half(0) * f64::from(s) * q - half(2) * f64::from(t)
        };
        match format {
            QuantizedFormat::F16 => half(0),
            QuantizedFormat::BF16 => {
                f64::from(f32::from_bits(u32::from_le_bytes([0, 0, block[0], block[1]])))
            }
            QuantizedFormat::Q4_0 => half(0) * (nibble(2) - 8.0),
            QuantizedFormat::Q4_1 => half(0) * nibble(4) + half(2),
            QuantizedFormat::Q5_0 => half(0) * (nibble(6) + fifth(2) - 16.0),
            QuantizedFormat::Q5_1 => half(0) * (nibble(8) + fifth(4)) + half(2),
            QuantizedFormat::Q8_0 => half(0) * f64::from(block[2 + l] as i8),
            QuantizedFormat::Q4_K => of_k(bits(16 + l / 64 * 32 + l % 32, l / 32 % 2 * 4, 4)),
            QuantizedFormat::Q5_K => {
                let low = bits(48 + l / 64 * 32 + l % 32, l / 32 % 2 * 4, 4);
                of_k(low + 16.0 * bits(16 + l % 32, l / 32, 1))
            }
            QuantizedFormat::Q6_K => {
                let (part, k) = (l / 128, l / 32 % 4);
                let low = bits(part * 64 + k % 2 * 32 + l % 32, k / 2 * 4, 4);
                let high = bits(128 + part * 32 + l % 32, 2 * k, 2);
                let scale = f64::from(block[192 + l / 16] as i8);
                half(208) * scale * (low + 16.0 * high - 32.0)
            }
        }
    };
    Array2::from_shape_fn((w.rows(), w.columns()), |(r, c)| value(r, c))
}

fn definition_of(w: &QuantizedMatrix) -> Array2<f64> {
    definition(w, w.bytes_for_tests().as_ref())
}

fn dense(w: &QuantizedMatrix) -> Array2<f32> {
    let values = w.to_dense(Parallelism::Serial).into_vec();
    Array2::from_shape_vec((w.rows(), w.columns()), values).unwrap()
}

fn product(
    w: &QuantizedMatrix,
    x: &Array2<f32>,
    level: LevelId,
    precision: Precision,
    parallelism: Parallelism,
) -> Array2<f32> {
    let mut y = Array2::from_elem((x.nrows(), w.rows()), f32::NAN);
    w.multiply_at(level, x.view(), None, y.view_mut(), precision, parallelism).unwrap();
    y
}

/// |got − wanted| ≤ relative · Σ|x|·|w| of each output, plus `extra`.
fn assert_close(
    got: &Array2<f32>,
    w: &Array2<f64>,
    x: &Array2<f32>,
    relative: f64,
    extra: impl Fn(usize, usize) -> f64,
) {
    let x = x.mapv(f64::from);
    let wanted = x.dot(&w.t());
    let size = x.mapv(f64::abs).dot(&w.mapv(f64::abs).t());
    for ((at, &got), &wanted) in got.indexed_iter().zip(&wanted) {
        let bound = relative * size[at] + extra(at.0, at.1) + f64::from(f32::MIN_POSITIVE);
        assert!((f64::from(got) - wanted).abs() <= bound, "{at:?}: {got} {wanted} ± {bound}");
    }
}

const SHAPES: [(usize, usize); 6] = [(1, 256), (3, 512), (7, 256), (64, 768), (101, 256), (0, 256)];

#[test]
fn widening_follows_the_definition() {
    for format in QuantizedFormat::ALL {
        for shape in SHAPES {
            let w = random_matrix(format, shape, 7, 15);
            for (got, wanted) in dense(&w).iter().zip(&definition_of(&w)) {
                let error = (f64::from(*got) - wanted).abs();
                // A minimum may cancel most of the product.
                assert!(error <= 4e-7 * (wanted.abs() + 130.0), "{format}: {got} {wanted}");
            }
        }
    }
}

#[test]
fn exact_products_are_those_of_the_dense_matrix() {
    for format in QuantizedFormat::ALL {
        for shape in SHAPES {
            let w = random_matrix(format, shape, 11, 14);
            let wide = definition_of(&w);
            for batch in [0, 1, 2, 8, 9, 40] {
                let x = input((batch, shape.1), 5);
                for level in LevelId::ALL {
                    let y = product(&w, &x, level, Precision::Exact, Parallelism::Serial);
                    assert_close(&y, &wide, &x, 1e-5, |_, _| 0.0);
                }
            }
        }
    }
}

#[test]
fn plain_formats_take_rows_of_any_length() {
    for format in [QuantizedFormat::F16, QuantizedFormat::BF16] {
        for columns in [1, 5, 33, 100] {
            let w = random_matrix(format, (13, columns), 3, 14);
            let wide = definition_of(&w);
            for batch in [1, 3, 20] {
                let x = input((batch, columns), 9);
                for precision in [Precision::Exact, Precision::Fast] {
                    let y = product(&w, &x, LevelId::Avx512, precision, Parallelism::Serial);
                    assert_close(&y, &wide, &x, 1e-5, |_, _| 0.0);
                }
            }
        }
    }
}

/// Half a step of each block of the input times Σ|w| over the block.
fn rounding(w: &Array2<f64>, x: &Array2<f32>, row: usize, out: usize) -> f64 {
    let (x, w) = (x.row(row).to_vec(), w.row(out).to_vec());
    let blocks = x.chunks(32).zip(w.chunks(32));
    blocks
        .map(|(x, w)| {
            let largest = x.iter().fold(0f64, |a, &b| a.max(f64::from(b).abs()));
            largest / 254.0 * 1.00001 * w.iter().map(|w| w.abs()).sum::<f64>()
        })
        .sum()
}

#[test]
fn fast_products_stay_within_their_error_and_agree_at_all_levels() {
    for format in QuantizedFormat::ALL {
        for shape in SHAPES {
            let w = random_matrix(format, shape, 13, 14);
            let wide = definition_of(&w);
            for batch in [1, 3, 8, 9] {
                let x = input((batch, shape.1), 21);
                let y = LevelId::ALL
                    .map(|level| product(&w, &x, level, Precision::Fast, Parallelism::Serial));
                for y in &y {
                    assert_close(y, &wide, &x, 1e-5, |r, o| rounding(&wide, &x, r, o));
                }
                if format.block_len() > 1 && batch <= Precision::FAST_ROWS {
                    assert!(y[0] == y[1] && y[1] == y[2], "{format} {shape:?} {batch}");
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
    let pools = [threads(2), threads(3)];
    for (format, shape) in [
        (QuantizedFormat::Q8_0, (1001, 576)),
        (QuantizedFormat::Q4_1, (999, 576)),
        (QuantizedFormat::Q4_K, (1500, 512)),
        (QuantizedFormat::F16, (700, 300)),
    ] {
        let w = random_matrix(format, shape, 17, 14);
        for batch in [1, 5, 50] {
            let (x, g) = (input((batch, shape.1), 3), input((batch, shape.0), 4));
            for precision in [Precision::Exact, Precision::Fast] {
                let y = product(&w, &x, LevelId::Avx512, precision, Parallelism::Serial);
                for pool in &pools {
                    let other = pool.install(|| {
                        product(&w, &x, LevelId::Avx512, precision, Parallelism::Rayon)
                    });
                    assert!(y == other, "{format} {batch} {precision:?}");
                }
            }
            let gradient = |parallelism| {
                let mut dx = Array2::from_elem((batch, shape.1), f32::NAN);
                w.multiply_transposed(g.view(), dx.view_mut(), parallelism).unwrap();
                dx
            };
            let dx = gradient(Parallelism::Serial);
            assert_close(&dx, &definition_of(&w).reversed_axes(), &g, 1e-5, |_, _| 0.0);
            for pool in &pools {
                assert!(dx == pool.install(|| gradient(Parallelism::Rayon)), "{format} {batch}");
            }
        }
    }
}

#[test]
fn biases_and_strided_operands() {
    let w = random_matrix(QuantizedFormat::Q5_1, (37, 96), 23, 12);
    let x = input((96, 4), 29);
    let bias = ndarray::Array1::from_shape_fn(37, |i| i as f32);
    for precision in [Precision::Exact, Precision::Fast] {
        let straight = product(
            &w,
            &x.t().as_standard_layout().into_owned(),
            LevelId::widest(),
            precision,
            Parallelism::Serial,
        );
        let mut y = Array2::zeros((37, 4));
        let serial = Parallelism::Serial;
        w.multiply(x.t(), Some(bias.view()), y.view_mut().reversed_axes(), precision, serial)
            .unwrap();
        for ((row, out), &wanted) in straight.indexed_iter() {
            let wanted = wanted + bias[out];
            assert!((y[[out, row]] - wanted).abs() <= 1e-4 * (1.0 + wanted.abs()));
        }
    }
}

#[test]
fn rows_are_looked_up() {
    let w = random_matrix(QuantizedFormat::Q8_0, (300, 64), 31, 14);
    let all = dense(&w);
    let indices: Vec<usize> = (0..2000).map(|i| i * 7 % 300).collect();
    for parallelism in [Parallelism::Serial, Parallelism::Rayon] {
        let mut out = vec![f32::NAN; 2000 * 64];
        w.gather_rows(&indices, &mut out, parallelism).unwrap();
        for (out, &index) in out.chunks(64).zip(&indices) {
            assert_eq!(out, all.row(index).to_slice().unwrap());
        }
    }
    let mut row = [0.0; 64];
    w.widen_rows(299, &mut row).unwrap();
    assert_eq!(row, all.row(299).to_slice().unwrap());
    let error = w.gather_rows(&[0, 300], &mut [0.0; 128], Parallelism::Serial).unwrap_err();
    assert_eq!(
        error.to_string(),
        "gather_rows: index 300 at position 1 is out of range for size 300"
    );
    assert!(w.widen_rows(299, &mut [0.0; 128]).is_err());
    assert!(w.widen_rows(usize::MAX, &mut row).is_err());
    assert!(w.widen_rows(0, &mut [0.0; 65]).is_err());
}

#[test]
fn wrong_sizes_are_errors() {
    let new = |rows, columns, len: usize| {
        QuantizedMatrix::new(QuantizedFormat::Q8_0, rows, columns, Arc::new(vec![0; len]))
    };
    assert_eq!(
        new(2, 40, 80).unwrap_err().to_string(),
        "quantized matrix: rows of Q8_0 are whole blocks of 32, got [2, 40]"
    );
    assert_eq!(
        new(2, 32, 67).unwrap_err().to_string(),
        "quantized matrix: 67 bytes are not a matrix of Q8_0, got [2, 32]"
    );
    assert!(new(usize::MAX, 64, 0).is_err());
    assert!(new(usize::MAX / 2 + 1, 1 << 40, 0).is_err());
    let w = new(2, 32, 68).unwrap();
    let (x, mut y) = (Array2::zeros((1, 31)), Array2::zeros((1, 2)));
    let multiply = |x: &Array2<f32>, y: &mut Array2<f32>| {
        w.multiply(x.view(), None, y.view_mut(), Precision::Fast, Parallelism::Serial)
    };
    assert!(matches!(
        multiply(&x, &mut y).unwrap_err(),
        TensorError::InnerDimension { lhs_k: 31, rhs_k: 32, .. }
    ));
    let (x, mut y) = (Array2::zeros((1, 32)), Array2::zeros((1, 3)));
    assert!(matches!(multiply(&x, &mut y).unwrap_err(), TensorError::ShapeMismatch { .. }));
}

#[test]
fn input_that_is_not_finite_gives_nan() {
    let w = random_matrix(QuantizedFormat::Q4_0, (5, 64), 37, 14);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 17, 63] {
            let mut x = input((1, 64), 41);
            x[[0, at]] = bad;
            for level in LevelId::ALL {
                let y = product(&w, &x, level, Precision::Fast, Parallelism::Serial);
                assert!(y.iter().all(|y| y.is_nan()), "{bad} {level}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn levels_agree_on_any_blocks(
        format in 2..10usize,
        rows in 1..11usize,
        blocks in 1..4usize,
        seed: u64,
        largest in 0..31u8,
        scale in -40..30i32,
        extreme in proptest::option::of(0..768usize),
    ) {
        let format = QuantizedFormat::ALL[format];
        let columns = blocks * 256;
        let w = random_matrix(format, (rows, columns), seed, largest);
        let mut x = input((2, columns), seed ^ 1) * 2f32.powi(scale);
        if let Some(at) = extreme.filter(|&at| at < columns) {
            x[[0, at]] = 1e15;
        }
        let wide = definition_of(&w);
        let y = LevelId::ALL
            .map(|level| product(&w, &x, level, Precision::Fast, Parallelism::Serial));
        prop_assert!(y[0] == y[1] && y[1] == y[2]);
        assert_close(&y[0], &wide, &x, 1e-5, |r, o| rounding(&wide, &x, r, o) + 1e-30);
        for level in LevelId::ALL {
            let y = product(&w, &x, level, Precision::Exact, Parallelism::Serial);
            assert_close(&y, &wide, &x, 1e-5, |_, _| 1e-30);
        }
    }

    #[test]
    fn inputs_quantize_alike_at_all_levels(
        values in proptest::collection::vec(-1e3f32..1e3, 64),
        exponent in -150..100i32,
    ) {
        let x = Array2::from_shape_vec((1, 64), values).unwrap() * 2f32.powi(exponent.max(-126));
        let all = LevelId::ALL.map(|level| {
            let mut a = Activations::default();
            a.quantize(level, x.view(), 8);
            a
        });
        for a in &all {
            prop_assert_eq!((&a.q, &a.start, &a.d, &a.sum),
                (&all[0].q, &all[0].start, &all[0].d, &all[0].sum));
            for (i, &x) in x.iter().enumerate() {
                let back = a.d[i / 32] * f32::from(a.q[i / 32][i % 32]);
                prop_assert!((x - back).abs() <= a.d[i / 32] * 0.50001 + 1e-36);
            }
        }
    }
}
