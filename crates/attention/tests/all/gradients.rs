//! Gradient checks in f64 of every operation that this crate declares.

use std::collections::BTreeSet;

use ndarray::{Array4, ArrayD};
use specialformer_attention::{
    AttentionArgs, AttentionKind, Dropout, QueryOffset, RopeArgs, RopePairing, RopeTable,
    alibi_slopes, attention, attention_kv, attention_qkv, per_position_linear, rope, rope_with,
};
use specialformer_tensor::{Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, op_names_in, random_array};

const KINDS: [AttentionKind; 2] = [AttentionKind::Softmax, AttentionKind::expressive()];

/// Checks an operation of all its inputs, each of them used twice.
fn check(check: GradientCheck, inputs: &[ArrayD<f64>], op: impl Fn(&[Var<f64>]) -> Var<f64>) {
    check.run(inputs, |values| {
        let tape = Tape::new();
        let variable = |x: &ArrayD<f64>| tape.variable(Tensor::from_array(x.clone()));
        let inputs: Vec<_> = values.iter().map(variable).collect();
        // A second consumer of every input: its plain sum.
        let mut y = op(&inputs);
        for x in &inputs {
            y = y.add(&x.sum_all().unwrap().scale(0.1).unwrap()).unwrap();
        }
        (y.value().view().to_owned(), move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            inputs.iter().map(|x| gradients.of(x).map(|g| g.view().to_owned())).collect()
        })
    });
}

fn random(seed: u64, shape: &[usize]) -> ArrayD<f64> {
    random_array(seed, shape, -1.5, 1.5)
}

#[test]
fn attention_with_every_argument() {
    let mask = Array4::from_shape_fn((1, 1, 3, 5), |(_, _, i, j)| (i + 2 * j) % 5 != 1);
    let slopes = alibi_slopes(4);
    let lengths = [5, 3];
    for kind in KINDS {
        let base = AttentionArgs::<f64> { kind, ..AttentionArgs::default() };
        let dropout = Some(Dropout::new(0.3, 7).unwrap());
        let cases = [
            base,
            AttentionArgs { causal: true, query_offset: 2.into(), ..base },
            AttentionArgs { mask: Some(&mask), scale: Some(0.7), ..base },
            AttentionArgs { key_lengths: Some(&lengths), ..base },
            AttentionArgs {
                alibi_slopes: Some(&slopes),
                causal: true,
                query_offset: 2.into(),
                ..base
            },
            AttentionArgs { dropout, ..base },
            AttentionArgs { causal: true, query_offset: QueryOffset::PerRow(&[2, 0]), ..base },
        ];
        for (i, args) in cases.iter().enumerate() {
            // Grouped queries, and values of another width.
            let inputs =
                [random(1, &[2, 3, 4, 3]), random(2, &[2, 5, 2, 3]), random(3, &[2, 5, 2, 2])];
            check(GradientCheck::new(format!("attention {kind:?} case {i}")), &inputs, |x| {
                attention(&x[0], &x[1], &x[2], args).unwrap()
            });
        }
    }
}

#[test]
fn bias_has_a_gradient_in_every_broadcast() {
    for shape in [[2, 2, 3, 4], [1, 2, 3, 4], [1, 1, 3, 4], [2, 1, 3, 4]] {
        let inputs = [
            random(1, &[2, 3, 2, 3]),
            random(2, &[2, 4, 2, 3]),
            random(3, &[2, 4, 2, 3]),
            random(4, &shape),
        ];
        check(GradientCheck::new(format!("attention_bias {shape:?}")), &inputs, |x| {
            let args = AttentionArgs { bias: Some(&x[3]), ..AttentionArgs::default() };
            attention(&x[0], &x[1], &x[2], &args).unwrap()
        });
    }
}

#[test]
fn packed_projections() {
    for kind in KINDS {
        let args = AttentionArgs { kind, causal: true, ..AttentionArgs::default() };
        // Four heads of width 2 over two key heads.
        let qkv = random(1, &[2, 5, 16]);
        check(GradientCheck::new("attention_qkv"), &[qkv], |x| {
            attention_qkv(&x[0], 4, 2, &args).unwrap()
        });
        let args = AttentionArgs { query_offset: 4.into(), ..args };
        let inputs = [random(1, &[2, 1, 8]), random(2, &[2, 5, 8])];
        check(GradientCheck::new("attention_kv"), &inputs, |x| {
            attention_kv(&x[0], &x[1], 4, 2, &args).unwrap()
        });
    }
}

#[test]
fn packed_and_separate_agree() {
    let args = AttentionArgs::<f64> { causal: true, ..AttentionArgs::default() };
    let tape = Tape::no_grad();
    let qkv = tape.constant(Tensor::from_array(random(1, &[2, 5, 16])));
    let part = |range, heads| qkv.slice(2, range).unwrap().reshape([2usize, 5, heads, 2]).unwrap();
    let (q, k, v) = (part(0..8, 4), part(8..12, 2), part(12..16, 2));
    let separate = attention(&q, &k, &v, &args).unwrap();
    let packed = attention_qkv(&qkv, 4, 2, &args).unwrap();
    assert_eq!(packed.value().as_slice(), separate.value().as_slice());
}

#[test]
fn rotary_positions() {
    let table = RopeTable::<f64>::new(4, 100.0, 8).unwrap();
    check(GradientCheck::new("rope"), &[random(1, &[2, 3, 12])], |x| {
        rope(&x[0], 3, 2, &table, 2).unwrap()
    });
    // Each row's own positions, padding, and a part of the width.
    for pairing in [RopePairing::Halves, RopePairing::Adjacent] {
        let args = RopeArgs {
            offset: QueryOffset::PerRow(&[4, 0]),
            lengths: Some(&[3, 2]),
            pairing,
            head_width: Some(6),
            ..RopeArgs::new(3, 2)
        };
        check(GradientCheck::new(format!("rope {pairing:?}")), &[random(1, &[2, 3, 18])], |x| {
            rope_with(&x[0], &table, &args).unwrap()
        });
    }
}

#[test]
fn rotated_products_depend_on_distance_alone() {
    let table = RopeTable::<f64>::new(6, 100.0, 40).unwrap();
    let tape = Tape::no_grad();
    let at = |x: &ArrayD<f64>, position| {
        let x = tape.constant(Tensor::from_array(x.clone()));
        rope(&x, 1, 1, &table, position).unwrap().into_value()
    };
    let (q, k) = (random(1, &[1, 1, 6]), random(2, &[1, 1, 6]));
    let product = |i, j| -> f64 {
        let (q, k) = (at(&q, i), at(&k, j));
        q.as_slice().iter().zip(k.as_slice()).map(|(a, b)| a * b).sum()
    };
    for shift in [0, 1, 17, 30] {
        assert!((product(5 + shift, 2 + shift) - product(5, 2)).abs() < 1e-12);
    }
}

#[test]
fn per_position_layers_with_and_without_bias() {
    for first in [0, 2] {
        let inputs = [random(1, &[3, 2, 4]), random(2, &[4, 5, 4]), random(3, &[4, 5])];
        check(GradientCheck::new("per_position_linear_bias"), &inputs, |x| {
            per_position_linear(&x[0], &x[1], Some(&x[2]), first).unwrap()
        });
        check(GradientCheck::new("per_position_linear"), &inputs[..2], |x| {
            per_position_linear(&x[0], &x[1], None, first).unwrap()
        });
    }
}

#[test]
fn per_position_layers_equal_a_loop_over_positions() {
    let tape = Tape::no_grad();
    let constant = |x| tape.constant(Tensor::from_array(x));
    let (x, w) = (constant(random(1, &[3, 4, 5])), constant(random(2, &[4, 2, 5])));
    let y = per_position_linear(&x, &w, None, 0).unwrap();
    for t in 0..4 {
        let row = x.slice(1, t..t + 1).unwrap();
        let weight = w.slice(0, t..t + 1).unwrap().reshape([2, 5]).unwrap();
        let want = row.linear(&weight, None).unwrap();
        let got = y.slice(1, t..t + 1).unwrap();
        specialformer_testkit::assert_close(&got.value().view(), &want.value().view(), 1e-12, 0.0);
    }
}

#[test]
fn errors_name_what_does_not_fit() {
    let tape = Tape::<f32>::no_grad();
    let zeros = |shape: &[usize]| tape.constant(Tensor::zeros(shape));
    let args = AttentionArgs::default();
    let error =
        attention(&zeros(&[2, 3, 3, 4]), &zeros(&[2, 3, 2, 4]), &zeros(&[2, 3, 2, 4]), &args);
    assert!(error.unwrap_err().to_string().contains("multiple"));
    let error = per_position_linear(&zeros(&[2, 3, 4]), &zeros(&[2, 5, 4]), None, 0);
    assert_eq!(
        error.unwrap_err().to_string(),
        "per_position_linear: positions 0..3 do not fit the window of 2 positions"
    );
    let bias = zeros(&[1, 1, 3, 3]);
    let args = AttentionArgs { kind: AttentionKind::expressive(), bias: Some(&bias), ..args };
    let q = zeros(&[2, 3, 2, 4]);
    assert!(attention(&q, &q, &q, &args).unwrap_err().to_string().contains("bias"));
}

#[test]
fn every_operation_has_a_check() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let checked = [
        "attention",
        "attention_bias",
        "attention_qkv",
        "attention_kv",
        "rope",
        "per_position_linear",
        "per_position_linear_bias",
    ];
    assert_eq!(declared, BTreeSet::from(checked.map(String::from)));
}
