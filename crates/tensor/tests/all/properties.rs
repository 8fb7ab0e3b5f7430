//! Properties that hold for any input.

use ndarray::{ArrayD, Axis};
use proptest::collection::vec;
use proptest::prelude::*;
use specialformer_tensor::{KeepAxes, Parallelism, Tape, TapeConfig, Tensor, Var};
use specialformer_testkit::{random_array, random_array_f32};

fn tensor(rows: usize, columns: usize, size: f32) -> impl Strategy<Value = Tensor<f32>> {
    vec(-size..size, rows * columns)
        .prop_map(move |values| Tensor::from_vec(values, [rows, columns]).unwrap())
}

fn matrix(size: f32) -> impl Strategy<Value = Tensor<f32>> {
    (1usize..40, 1usize..90).prop_flat_map(move |(rows, columns)| tensor(rows, columns, size))
}

/// A shape, and two that broadcast with it: sizes dropped to 1 or cut off.
fn broadcastable() -> impl Strategy<Value = [Vec<usize>; 2]> {
    let axis = (0usize..6, any::<bool>(), any::<bool>());
    (vec(axis, 0..5), 0usize..4, 0usize..4).prop_map(|(axes, cut_a, cut_b)| {
        let size = |size, single| if single { 1 } else { size };
        let a: Vec<usize> = axes.iter().map(|&(s, single, _)| size(s, single)).collect();
        let b: Vec<usize> = axes.iter().map(|&(s, _, single)| size(s, single)).collect();
        [a[cut_a.min(a.len())..].to_vec(), b[cut_b.min(b.len())..].to_vec()]
    })
}

fn on_tape<R>(parallelism: Parallelism, run: impl FnOnce(&Tape<f32>) -> R) -> R {
    run(&Tape::with_config(TapeConfig { parallelism, ..TapeConfig::default() }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn softmax_rows_sum_to_one(x in matrix(1e4)) {
        let tape = Tape::no_grad();
        let y = tape.constant(x).softmax(1).unwrap();
        prop_assert!(y.value().as_slice().iter().all(|p| (0.0..=1.0).contains(p)));
        for sum in y.value().view().sum_axis(Axis(1)) {
            prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
        }
    }

    #[test]
    fn softmax_ignores_a_shift_and_log_softmax_is_its_logarithm(x in matrix(20.0)) {
        let tape = Tape::no_grad();
        let x = tape.constant(x);
        let y = x.softmax(1).unwrap();
        let shifted = x.affine(1.0, 64.0).unwrap().softmax(1).unwrap();
        let log = x.log_softmax(1).unwrap().exp().unwrap();
        for (y, other) in [(&y, &shifted), (&y, &log)] {
            for (a, b) in y.value().as_slice().iter().zip(other.value().as_slice()) {
                prop_assert!((a - b).abs() < 2e-5, "{} {}", a, b);
            }
        }
    }

    #[test]
    fn layer_norm_rows_have_mean_zero_and_variance_one(
        rows in 1usize..80, columns in 8usize..200, seed in any::<u64>(), shift in -10.0f32..10.0,
    ) {
        let x = random_array_f32(seed, &[rows, columns], shift - 2.0, shift + 2.0);
        let y = Tape::no_grad().constant(x.into()).layer_norm(None, None, 1e-6).unwrap();
        for row in y.value().view().rows() {
            let mean = row.mean().unwrap();
            let variance = row.mapv(|v| (v - mean) * (v - mean)).mean().unwrap();
            prop_assert!(mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3, "{} {}", mean, variance);
        }
    }

    #[test]
    fn rms_norm_rows_have_mean_square_one(rows in 1usize..80, columns in 1usize..200, seed in any::<u64>()) {
        let x = random_array_f32(seed, &[rows, columns], 0.5, 3.0);
        let y = Tape::no_grad().constant(x.into()).rms_norm(None, 1e-9).unwrap();
        for row in y.value().view().rows() {
            let square = row.mapv(|v| v * v).mean().unwrap();
            prop_assert!((square - 1.0).abs() < 1e-4, "{}", square);
        }
    }

    #[test]
    fn top_k_picks_k_sorted_and_none_larger_is_left(x in matrix(3.0), share in 0.0f64..1.0) {
        let (rows, columns) = (x.shape()[0], x.shape()[1]);
        // Coarse values, so that there are ties.
        let x = Tensor::from_array(x.view().mapv(|v| (v * 4.0).round()));
        let k = 1 + (share * (columns - 1) as f64) as usize;
        let top = Tape::no_grad().constant(x.clone()).top_k(k).unwrap();
        prop_assert_eq!(top.values.shape().to_vec(), [rows, k]);
        prop_assert_eq!(top.indices.len(), rows * k);
        for (row, (values, picked)) in x.as_slice().chunks(columns).zip(
            top.values.value().as_slice().chunks(k).zip(top.indices.chunks(k)),
        ) {
            let chosen: Vec<f32> = picked.iter().map(|&i| row[i]).collect();
            prop_assert_eq!(&chosen[..], values);
            let ordered = |(i, j): (usize, usize)| row[i] > row[j] || (row[i] == row[j] && i < j);
            prop_assert!(picked.iter().copied().zip(picked.iter().copied().skip(1)).all(ordered));
            let last = picked[k - 1];
            prop_assert!((0..columns).filter(|i| !picked.contains(i)).all(|i| ordered((last, i))));
        }
    }

    #[test]
    fn concat_undoes_slice(
        sizes in vec(0usize..5, 1..5), axis in 0usize..4, cut in 0.0f64..1.0, seed in any::<u64>(),
    ) {
        let axis = axis.min(sizes.len() - 1);
        let cut = (cut * sizes[axis] as f64).round() as usize;
        let tape = Tape::no_grad();
        let x = tape.constant(random_array_f32(seed, &sizes, -1.0, 1.0).into());
        let parts = [x.slice(axis, 0..cut).unwrap(), x.slice(axis, cut..sizes[axis]).unwrap()];
        let joined = Var::concat(&parts.each_ref(), axis).unwrap();
        prop_assert_eq!(joined.shape(), x.shape());
        prop_assert_eq!(joined.value().as_slice(), x.value().as_slice());
    }

    #[test]
    fn broadcasting_equals_ndarrays([a, b] in broadcastable(), seed in any::<u64>()) {
        let x: ArrayD<f64> = random_array(seed, &a, 0.5, 2.0);
        let y: ArrayD<f64> = random_array(seed ^ 1, &b, 0.5, 2.0);
        let tape = Tape::no_grad();
        let (vx, vy) = (tape.constant(x.clone().into()), tape.constant(y.clone().into()));
        for (got, want) in [
            (vx.add(&vy), &x + &y),
            (vx.sub(&vy), &x - &y),
            (vx.mul(&vy), &x * &y),
            (vx.div(&vy), &x / &y),
        ] {
            prop_assert_eq!(got.unwrap().into_value().into_array(), want);
        }
    }

    #[test]
    fn threads_change_no_bit(rows in 1usize..600, columns in 1usize..200, seed in any::<u64>()) {
        let x = random_array_f32(seed, &[rows, columns], -2.0, 2.0);
        let run = |parallelism| {
            on_tape(parallelism, |tape| {
                let x = tape.variable(x.clone().into());
                let parts = [
                    x.softmax(1).unwrap(),
                    x.softmax(0).unwrap(),
                    x.rms_norm(None, 1e-6).unwrap(),
                    x.mul(&x.mean(&[0], KeepAxes::Yes).unwrap()).unwrap(),
                    x.sub(&x.max(&[1], KeepAxes::Yes).unwrap()).unwrap(),
                ];
                let y = Var::stack(&parts.each_ref(), 0).unwrap();
                let loss = y.mul(&y).unwrap().mean_all().unwrap();
                let gradients = tape.backward(&loss).unwrap();
                (loss.value().item().unwrap().to_bits(), gradients.of(&x).unwrap().clone().into_vec())
            })
        };
        prop_assert_eq!(run(Parallelism::Serial), run(Parallelism::Rayon));
    }
}

#[test]
fn products_over_no_elements_are_zero_whatever_the_pool_held() {
    let tape = Tape::<f32>::new();
    let dirty = || drop(Tensor::build_in(tape.pool(), [2, 3, 5], |out| out.fill(7.0)));
    let empty = |shape: &[usize]| tape.variable(Tensor::zeros(shape));
    let bias = tape.variable(Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3]).unwrap());
    dirty();
    let y = empty(&[2, 5, 0]).linear(&empty(&[3, 0]), None).unwrap();
    assert_eq!(y.value().as_slice(), [0.0; 30]);
    dirty();
    let y = empty(&[2, 0]).linear(&empty(&[3, 0]), Some(&bias)).unwrap();
    assert_eq!(y.value().as_slice(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    dirty();
    let y = empty(&[2, 3, 0]).matmul(&empty(&[0, 5])).unwrap();
    assert_eq!(y.value().as_slice(), [0.0; 30]);
}
