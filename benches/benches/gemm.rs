//! Matrix products of real shapes, each by every kernel, on one thread.
//!
//! `cargo bench -p specialformer-benches --bench gemm` reports elements per
//! second, an element being one floating-point operation: `200 Gelem/s` is 200
//! GFLOP/s. Kernel choice in `specialformer_tensor::gemm` rests on this table.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use specialformer_tensor::Parallelism;
use specialformer_tensor::gemm::{KernelChoice, gemm, gemm_with};
use specialformer_tensor::simd;

/// m, k, n, and which operands are stored transposed.
const SHAPES: &[(usize, usize, usize, bool, bool)] = &[
    // Linear layers of small models: forward, input gradient, weight gradient.
    (4096, 16, 64, false, true),
    (4096, 64, 16, false, true),
    (256, 16, 16, false, true),
    (4096, 16, 64, false, false),
    (4096, 64, 16, false, false),
    (256, 16, 16, false, false),
    (64, 4096, 16, true, false),
    (6144, 64, 256, false, true),
    (6144, 256, 64, false, true),
    (6144, 64, 256, false, false),
    (6144, 256, 64, false, false),
    (64, 6144, 256, true, false),
    // Tiles of attention.
    (64, 64, 128, false, false),
    (64, 16, 64, false, true),
    (24, 16, 24, false, true),
    // Large products.
    (2048, 512, 2048, false, false),
    (2048, 512, 2048, false, true),
    (512, 2048, 2048, true, false),
    (1024, 1024, 1024, false, false),
    // One row at a time, as in generation.
    (1, 512, 2048, false, true),
    (4, 512, 2048, false, true),
];

fn matrix(rows: usize, columns: usize, transposed: bool) -> Array2<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    if transposed {
        Array2::from_shape_simple_fn((columns, rows), &mut next).reversed_axes()
    } else {
        Array2::from_shape_simple_fn((rows, columns), &mut next)
    }
}

fn products(c: &mut Criterion) {
    let level = simd::selection().level;
    for &(m, k, n, a_transposed, b_transposed) in SHAPES {
        let mark = |transposed| if transposed { "T" } else { "" };
        let name = format!("[{m},{k}]{}x[{k},{n}]{}", mark(a_transposed), mark(b_transposed));
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
        group.sample_size(20);
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(800));
        let a = matrix(m, k, a_transposed);
        let b = matrix(k, n, b_transposed);
        let mut out = Array2::<f32>::zeros((m, n));
        group.bench_function(BenchmarkId::from_parameter("chosen"), |bench| {
            bench.iter(|| {
                gemm(1.0, a.view(), b.view(), 0.0, out.view_mut(), Parallelism::Serial);
            });
        });
        for kernel in [KernelChoice::Tiled, KernelChoice::MatrixMultiply, KernelChoice::Faer] {
            group.bench_function(BenchmarkId::from_parameter(kernel), |bench| {
                bench.iter(|| {
                    gemm_with(kernel, level, 1.0, a.view(), b.view(), 0.0, None, out.view_mut());
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
