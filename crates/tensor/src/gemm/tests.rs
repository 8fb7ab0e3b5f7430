//! Every path against a naive triple loop.

use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};
use proptest::prelude::*;

use super::*;
use crate::element::Element;
use crate::parallel::Parallelism;
use crate::simd::LevelId;

const KERNELS: &[KernelChoice] = &[
    KernelChoice::Tiled,
    KernelChoice::Dots,
    KernelChoice::MatrixMultiply,
    #[cfg(feature = "linalg")]
    KernelChoice::Faer,
    #[cfg(feature = "blas")]
    KernelChoice::Blas,
];

/// How an operand lies in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    RowMajor,
    ColumnMajor,
    /// Every other row and third column of a larger matrix.
    Scattered,
    /// A part of a larger matrix.
    Sliced,
    /// Rows from last to first.
    Reversed,
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![
        Just(Layout::RowMajor),
        Just(Layout::ColumnMajor),
        Just(Layout::Scattered),
        Just(Layout::Sliced),
        Just(Layout::Reversed),
    ]
}

/// A matrix in some layout, surrounded by NaN.
#[derive(Clone)]
struct Padded<E> {
    data: Array2<E>,
    rows: usize,
    columns: usize,
    layout: Layout,
}

macro_rules! inside {
    ($x:expr, $slice:ident) => {{
        let (m, n) = ($x.rows, $x.columns);
        match $x.layout {
            Layout::RowMajor => $x.data.$slice(s![..m, ..n]),
            Layout::ColumnMajor => $x.data.$slice(s![..n, ..m]).reversed_axes(),
            Layout::Scattered => $x.data.$slice(s![1..1 + 2 * m; 2, 2..2 + 3 * n; 3]),
            Layout::Sliced => $x.data.$slice(s![3..3 + m, 5..5 + n]),
            Layout::Reversed => $x.data.$slice(s![1..1 + m; -1, 1..1 + n]),
        }
    }};
}

impl<E: Element> Padded<E> {
    fn new(rows: usize, columns: usize, layout: Layout, seed: u64) -> Self {
        let shape = match layout {
            Layout::RowMajor => (rows, columns),
            Layout::ColumnMajor => (columns, rows),
            Layout::Scattered => (2 * rows + 3, 3 * columns + 5),
            Layout::Sliced => (rows + 6, columns + 11),
            Layout::Reversed => (rows + 2, columns + 2),
        };
        let nan = E::from_f64(f64::NAN);
        let mut padded = Self { data: Array2::from_elem(shape, nan), rows, columns, layout };
        padded.view_mut().assign(&random((rows, columns), seed));
        padded
    }

    fn view(&self) -> ArrayView2<'_, E> {
        inside!(self, slice)
    }

    fn view_mut(&mut self) -> ArrayViewMut2<'_, E> {
        inside!(self, slice_mut)
    }

    /// Number of elements that are not NaN, inside and around.
    fn numbers(&self) -> usize {
        self.data.iter().filter(|x| x.to_f64().is_finite()).count()
    }
}

fn random<E: Element>(shape: (usize, usize), seed: u64) -> Array2<E> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    Array2::from_shape_simple_fn(shape, || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        E::from_f64((state >> 40) as f64 / (1u64 << 24) as f64 - 0.5)
    })
}

/// α·A·B + β·C + bias in `f64`.
fn naive<E: Element>(
    alpha: f64,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: f64,
    bias: Option<&Array1<E>>,
    c: ArrayView2<'_, E>,
) -> Array2<f64> {
    Array2::from_shape_fn(c.dim(), |(i, j)| {
        let mut sum = 0.0;
        for p in 0..a.ncols() {
            sum += a[[i, p]].to_f64() * b[[p, j]].to_f64();
        }
        let old = if beta == 0.0 { 0.0 } else { beta * c[[i, j]].to_f64() };
        alpha * sum + old + bias.map_or(0.0, |bias| bias[j].to_f64())
    })
}

fn assert_close<E: Element>(got: ArrayView2<'_, E>, expected: &Array2<f64>, k: usize, what: &str) {
    let tolerance = E::EPSILON.to_f64() * (8.0 + k as f64);
    for ((i, j), &expected) in expected.indexed_iter() {
        let got = got[[i, j]].to_f64();
        let error = (got - expected).abs();
        assert!(error <= tolerance, "{what}: [{i}, {j}] is {got}, expected {expected}");
    }
}

#[derive(Debug, Clone)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    layouts: [Layout; 3],
    alpha: f64,
    beta: f64,
    bias: bool,
    seed: u64,
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..4, 1usize..20, 15usize..18, 30usize..80]
}

fn cases() -> impl Strategy<Value = Case> {
    (
        (sizes(), prop_oneof![sizes(), 250usize..600], sizes()),
        [layouts(), layouts(), layouts()],
        prop_oneof![Just(1.0), Just(0.0), Just(-0.5)],
        prop_oneof![Just(0.0), Just(1.0), Just(0.25)],
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|((m, k, n), layouts, alpha, beta, bias, seed)| Case {
            m,
            k,
            n,
            layouts,
            alpha,
            beta,
            bias,
            seed,
        })
}

fn check<E: Element>(case: &Case) {
    let Case { m, k, n, alpha, beta, seed, .. } = *case;
    let a = Padded::<E>::new(m, k, case.layouts[0], seed);
    let b = Padded::<E>::new(k, n, case.layouts[1], seed ^ 1);
    let c = Padded::<E>::new(m, n, case.layouts[2], seed ^ 2);
    // A reversed bias, so that its stride counts.
    let bias = random::<E>((1, n), seed ^ 3).row(0).to_owned();
    let reversed = bias.iter().rev().copied().collect::<Array1<E>>();
    let bias = case.bias.then_some(&bias);
    let expected = naive(alpha, a.view(), b.view(), beta, bias, c.view());
    for &kernel in KERNELS {
        for level in LevelId::ALL {
            let mut c = c.clone();
            if beta == 0.0 {
                c.view_mut().fill(E::from_f64(f64::NAN));
            }
            let ran = gemm_with(
                kernel,
                level,
                E::from_f64(alpha),
                a.view(),
                b.view(),
                E::from_f64(beta),
                case.bias.then(|| reversed.slice(s![..;-1])),
                c.view_mut(),
            );
            let what = format!("{ran} at {level} of {m} x {k} x {n}");
            assert_close(c.view(), &expected, k, &what);
            assert_eq!(c.numbers(), m * n, "{what} wrote outside C");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_kernel_matches_a_naive_loop_in_f32(case in cases()) {
        check::<f32>(&case);
    }

    #[test]
    fn every_kernel_matches_a_naive_loop_in_f64(case in cases()) {
        check::<f64>(&case);
    }
}

/// Shapes that are cut for threads, or that the kernels treat specially.
const SHAPES: [(usize, usize, usize); 9] = [
    (4096, 16, 64),
    (600, 600, 300),
    (64, 3000, 256),
    (8, 512, 3000),
    (3000, 512, 2),
    (1, 700, 5000),
    (1000, 1, 1500),
    (333, 777, 17),
    (5000, 70, 33),
];

#[test]
fn threads_do_not_change_a_bit() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for (m, k, n) in SHAPES {
        for transposed in 0..4 {
            let row_or_column = |t: bool| if t { Layout::ColumnMajor } else { Layout::RowMajor };
            let a = Padded::<f32>::new(m, k, row_or_column(transposed & 1 != 0), 1);
            let b = Padded::<f32>::new(k, n, row_or_column(transposed & 2 != 0), 2);
            let bias = random::<f32>((1, n), 3);
            let bias = Some(bias.row(0));
            let of = |c: ArrayViewMut2<'_, f32>, parallelism| {
                gemm_bias(0.5, a.view(), b.view(), 1.0, bias, c, parallelism);
            };
            let by_row = random::<f32>((m, n), 4);
            let by_column = random::<f32>((n, m), 4).reversed_axes();
            for c in [by_row, by_column] {
                let (mut one, mut many) = (c.clone(), c);
                of(one.view_mut(), Parallelism::Serial);
                pool.install(|| of(many.view_mut(), Parallelism::Rayon));
                assert!(same_bits(&one, &many), "{m} x {k} x {n}, {transposed}");
            }
        }
    }
}

/// A part of one column is no reason to compute in another order.
#[test]
fn parts_do_not_choose_their_own_orientation() {
    let (m, k, n) = (96, 40, 129);
    let (a, b) = (random::<f32>((m, k), 1), random::<f32>((k, n), 2));
    let bias = random::<f32>((1, n), 3);
    let bias = Some(bias.row(0));
    for c in [random::<f32>((m, n), 4), random::<f32>((n, m), 4).reversed_axes()] {
        let (mut whole, mut parts) = (c.clone(), c);
        let run = |c: ArrayViewMut2<'_, f32>, cut| {
            let parallelism = Parallelism::Rayon;
            product::gemm_cut(0.5, a.view(), b.view(), 1.0, bias, c, cut, parallelism);
        };
        run(whole.view_mut(), (m, n));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| run(parts.view_mut(), (48, 64)));
        assert!(same_bits(&whole, &parts));
    }
}

fn same_bits<D: ndarray::Dimension>(
    x: &ndarray::Array<f32, D>,
    y: &ndarray::Array<f32, D>,
) -> bool {
    x.iter().zip(y).all(|(x, y)| x.to_bits() == y.to_bits())
}

#[test]
fn large_products_match_a_second_kernel() {
    for (m, k, n) in SHAPES {
        let a = random::<f32>((m, k), 1);
        let b = random::<f32>((n, k), 2);
        let run = |kernel| {
            let mut c = Array2::<f32>::zeros((m, n));
            gemm_with(kernel, LevelId::Avx512, 1.0, a.view(), b.t(), 0.0, None, c.view_mut());
            c
        };
        let (x, y) = (run(KernelChoice::Tiled), run(KernelChoice::MatrixMultiply));
        let worst = (&x - &y).fold(0.0f32, |worst, d| worst.max(d.abs()));
        assert!(worst < 2e-4, "{m} x {k} x {n}: {worst}");
    }
}

/// Those that the tiled kernel computes transposed.
#[test]
fn few_rows_against_stored_transposed_weights() {
    fn run<E: Element>() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (m, k, n) in [
            (9, 512, 100),
            (16, 130, 300),
            (33, 700, 250),
            (64, 512, 1024),
            (100, 1030, 333),
            (192, 64, 1500),
        ] {
            assert!(policy::prefers_swap(m, k, n));
            let (a, b) = (random::<E>((m, k), 1), random::<E>((n, k), 2));
            let bias = random::<E>((1, n), 3);
            for bias in [None, Some(bias.row(0))] {
                let alpha = E::from_f64(0.5);
                let mut c = Padded::<E>::new(m, n, Layout::Sliced, 4);
                let (numbers, mut many) = (c.numbers(), c.clone());
                let view = c.view_mut();
                gemm_bias(alpha, a.view(), b.t(), E::ZERO, bias, view, Parallelism::Serial);
                assert_eq!(c.numbers(), numbers, "written outside, or NaN");
                let bias = bias.map(|bias| bias.to_owned());
                let expected = naive(0.5, a.view(), b.t(), 0.0, bias.as_ref(), c.view());
                let bias = bias.as_ref().map(|bias| bias.view());
                assert_close(c.view(), &expected, k, &format!("{m} x {k} x {n}"));
                pool.install(|| {
                    let view = many.view_mut();
                    gemm_bias(alpha, a.view(), b.t(), E::ZERO, bias, view, Parallelism::Rayon);
                });
                assert!(c.view() == many.view(), "{m} x {k} x {n}: threads changed it");
            }
        }
    }
    run::<f32>();
    run::<f64>();
}

#[test]
fn batches_match_single_products() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    // Per-position weights: the batch axis is the middle one of [B, T, C].
    for (g, m, k, n) in
        [(24, 256, 16, 16), (3, 600, 64, 200), (5, 7, 3, 2), (0, 4, 4, 4), (4, 0, 3, 3)]
    {
        let a = random::<f32>((m * g, k), 1).into_shape_with_order((m, g, k)).unwrap();
        let a = a.view().permuted_axes([1, 0, 2]);
        let b = random::<f32>((g * n, k), 2).into_shape_with_order((g, n, k)).unwrap();
        let b = b.view().permuted_axes([0, 2, 1]);
        let bias = random::<f32>((g, n), 3);
        let mut expected = Array3::<f32>::zeros((g, m, n));
        for (i, c) in expected.axis_iter_mut(Axis(0)).enumerate() {
            let (a, b) = (a.index_axis(Axis(0), i), b.index_axis(Axis(0), i));
            gemm_bias(2.0, a, b, 0.0, Some(bias.row(i)), c, Parallelism::Serial);
        }
        for parallelism in [Parallelism::Serial, Parallelism::Rayon] {
            let mut c = Array3::<f32>::zeros((m, g, n));
            pool.install(|| {
                let c = c.view_mut().permuted_axes([1, 0, 2]);
                gemm_batched_bias(2.0, a, b, 0.0, Some(bias.view()), c, parallelism);
            });
            let got = c.permuted_axes([1, 0, 2]);
            assert!(same_bits(&got.to_owned(), &expected), "{g} of {m} x {k} x {n}");
        }
    }
}

#[test]
fn a_shared_operand_may_be_broadcast() {
    let (a, b) = (random::<f64>((5 * 7, 3), 1), random::<f64>((3, 4), 2));
    let a3 = a.view().into_shape_with_order((5, 7, 3)).unwrap();
    let b3 = b.broadcast((5, 3, 4)).unwrap();
    let mut c = Array3::<f64>::zeros((5, 7, 4));
    gemm_batched(1.0, a3, b3, 0.0, c.view_mut(), Parallelism::Serial);
    let c = c.into_shape_with_order((35, 4)).unwrap();
    assert_close(c.view(), &naive(1.0, a.view(), b.view(), 0.0, None, c.view()), 3, "broadcast");
}

#[test]
fn nothing_is_read_when_alpha_is_zero() {
    let a = Array2::from_elem((3, 4), f32::NAN);
    let b = Array2::from_elem((4, 5), f32::NAN);
    for &kernel in KERNELS {
        let mut c = Array2::<f32>::ones((3, 5));
        gemm_with(kernel, LevelId::Avx512, 0.0, a.view(), b.view(), 2.0, None, c.view_mut());
        assert!(c.iter().all(|&c| c == 2.0), "{kernel}");
    }
}

#[test]
#[should_panic(expected = "gemm: (2, 3) x (4, 5) -> (2, 5)")]
fn shapes_that_do_not_fit_panic() {
    let (a, b) = (Array2::<f32>::ones((2, 3)), Array2::<f32>::ones((4, 5)));
    let mut c = Array2::<f32>::ones((2, 5));
    gemm(1.0, a.view(), b.view(), 0.0, c.view_mut(), Parallelism::Serial);
}

#[test]
fn the_kernel_is_named_by_shape() {
    assert_eq!(kernel_for(4096, 16, 64, true), KernelChoice::Tiled);
    assert_eq!(kernel_for(1, 512, 512, true), KernelChoice::Dots);
    assert_eq!(kernel_for(1, 512, 512, false).to_string(), "tiled");
    let large = if cfg!(feature = "blas") { "openblas" } else { "tiled" };
    assert_eq!(kernel_for(1024, 1024, 1024, true).to_string(), large);
    assert_eq!(blas_info().is_some(), cfg!(feature = "blas"));
}
