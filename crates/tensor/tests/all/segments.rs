//! Products over segments against one plain product for each segment.

use ndarray::{Array2, Array3, ArrayView2, Axis, s};
use proptest::prelude::*;
use specialformer_tensor::gemm::{gemm_segments, gemm_segments_weight};
use specialformer_tensor::{Parallelism, Segments, Tape, Tensor, TensorError};
use specialformer_testkit::random_array_f32;

fn random2(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    random_array_f32(seed, &[rows, columns], -1.0, 1.0).into_dimensionality().unwrap()
}

fn random3(seed: u64, count: usize, rows: usize, columns: usize) -> Array3<f32> {
    random_array_f32(seed, &[count, rows, columns], -1.0, 1.0).into_dimensionality().unwrap()
}

/// A·B by the definition.
fn naive(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
    Array2::from_shape_fn((a.nrows(), b.ncols()), |(i, j)| {
        (0..a.ncols()).map(|p| a[[i, p]] * b[[p, j]]).sum()
    })
}

fn assert_close(got: ArrayView2<'_, f32>, expected: &Array2<f32>, k: usize) {
    assert_eq!(got.dim(), expected.dim());
    for (got, expected) in got.iter().zip(expected) {
        let tolerance = f32::EPSILON * (8.0 + 2.0 * k as f32);
        assert!((got - expected).abs() <= tolerance, "{got} and {expected}");
    }
}

fn on_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

fn counts() -> impl Strategy<Value = Vec<usize>> {
    let count = prop_oneof![Just(0usize), 1usize..10, 10usize..70];
    proptest::collection::vec(count, 1..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_segment_is_a_product_of_its_own(
        counts in counts(), k in 0usize..80, n in 1usize..90, transposed in any::<bool>(), bias in any::<bool>(),
    ) {
        let segments = Segments::from_counts(counts);
        let (rows, count) = (segments.rows(), segments.len());
        let a = random2(1, rows, k);
        let stored = if transposed { random3(2, count, n, k) } else { random3(2, count, k, n) };
        let b = if transposed { stored.view().permuted_axes([0, 2, 1]) } else { stored.view() };
        let biases = random2(3, count, n);
        let mut c = random2(4, rows, n);
        let before = c.clone();
        let bias = bias.then(|| biases.view());
        gemm_segments(2.0, a.view(), b, 0.5, bias, c.view_mut(), &segments, Parallelism::Rayon);
        for (s, range) in segments.iter().enumerate() {
            let product = naive(a.slice(s![range.clone(), ..]), b.index_axis(Axis(0), s));
            let mut expected = 2.0 * product + 0.5 * &before.slice(s![range.clone(), ..]);
            if bias.is_some() {
                expected += &biases.row(s);
            }
            assert_close(c.slice(s![range, ..]), &expected, k + 2);
        }
    }

    #[test]
    fn weight_gradients_are_products_of_each_segment(
        counts in counts(), m in 1usize..60, n in 1usize..70, beta in prop_oneof![Just(0.0f32), Just(0.5)],
    ) {
        let segments = Segments::from_counts(counts);
        let (rows, count) = (segments.rows(), segments.len());
        let (a, b) = (random2(1, rows, m), random2(2, rows, n));
        let mut c = random3(3, count, m, n);
        let before = c.clone();
        let view = c.view_mut();
        gemm_segments_weight(1.5, a.view(), b.view(), beta, view, &segments, Parallelism::Rayon);
        for (s, range) in segments.iter().enumerate() {
            let rows = range.len();
            let product = naive(a.slice(s![range.clone(), ..]).t(), b.slice(s![range, ..]));
            let expected = 1.5 * product + beta * &before.index_axis(Axis(0), s);
            assert_close(c.index_axis(Axis(0), s), &expected, rows + 2);
        }
    }
}

/// Large enough to be cut, with one segment that has most rows.
#[test]
fn bits_do_not_depend_on_threads() {
    let segments = Segments::from_counts([3, 700, 0, 65, 140]);
    let (rows, count, k, n) = (segments.rows(), segments.len(), 130, 300);
    let (x, w) = (random2(1, rows, k), random3(2, count, n, k));
    let g = random2(3, rows, n);
    let run = || {
        let tape = Tape::with_config(specialformer_tensor::TapeConfig {
            parallelism: Parallelism::Rayon,
            ..Default::default()
        });
        let x = tape.variable(Tensor::from_array(x.clone()));
        let w = tape.variable(Tensor::from_array(w.clone()));
        let bias = tape.variable(Tensor::full([count, n], 0.25));
        let y = x.segment_linear(&w, Some(&bias), &segments).unwrap();
        let value = y.value().clone();
        let gradients = tape.backward_from(&y, Tensor::from_array(g.clone())).unwrap();
        let of = |x| gradients.of(x).unwrap().clone().into_vec();
        (value.into_vec(), of(&x), of(&w), of(&bias))
    };
    let one = on_threads(1, run);
    assert_eq!(one, on_threads(3, run));
    assert_eq!(one, on_threads(8, run));
}

#[test]
fn wrong_shapes_are_named() {
    let tape = Tape::<f32>::new();
    let tensor = |shape: &[usize]| tape.constant(Tensor::zeros(shape));
    let segments = Segments::from_counts([2, 1]);
    let (x, w) = (tensor(&[3, 4]), tensor(&[2, 5, 4]));
    let message = |x: specialformer_tensor::Result<_>| x.map(|_: _| ()).unwrap_err().to_string();
    assert_eq!(
        message(tensor(&[4, 4]).segment_linear(&w, None, &segments)),
        "segment_linear: the segments need x to be [3, in], got [4, 4]"
    );
    assert_eq!(
        message(x.segment_linear(&tensor(&[3, 5, 4]), None, &segments)),
        "segment_linear: the segments need weights [2, out, in], got [3, 5, 4]"
    );
    assert_eq!(
        message(x.segment_linear(&tensor(&[2, 5, 6]), None, &segments)),
        "segment_linear: inner dimensions differ: lhs [3, 4] (k = 4), rhs [2, 5, 6] (k = 6)"
    );
    let error = x.segment_linear(&w, Some(&tensor(&[5])), &segments).unwrap_err();
    assert!(matches!(error, TensorError::ShapeMismatch { .. }), "{error}");
    for (offsets, what) in [
        (&[][..], "segments: offsets must hold at least the 0 to start from"),
        (&[1, 2], "segments: offsets must start at 0, they start at 1"),
        (&[0, 3, 2], "segments: offsets must not fall: 3 then 2 at segment 1"),
    ] {
        assert_eq!(Segments::new(offsets).unwrap_err().to_string(), what);
    }
}
