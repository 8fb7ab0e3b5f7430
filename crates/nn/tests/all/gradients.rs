//! Gradient checks in f64 of the operations that this crate adds, and of its
//! layers as a whole.

use std::collections::BTreeSet;

use ndarray::ArrayD;
use specialformer_nn::{Activation, Module, Norm, NormKind};
use specialformer_nn::{Ctx, FeedForward, FeedForwardKind, Lstm, LstmState, NamedParameters};
use specialformer_tensor::{Seed, Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, op_names_in, random_array};

/// Checks `forward` with respect to its inputs and all parameters of `module`.
fn check(
    name: &str,
    module: &impl Module<f64>,
    inputs: &[ArrayD<f64>],
    forward: impl Fn(&Ctx<f64>, &[Var<f64>]) -> Var<f64>,
) {
    let parameters = NamedParameters::of(module);
    let mut all = inputs.to_vec();
    all.extend(parameters.iter().map(|(_, p)| p.value().into_array()));
    GradientCheck::new(name).run(&all, |values| {
        let (given, weights) = values.split_at(inputs.len());
        for ((_, parameter), value) in parameters.iter().zip(weights) {
            parameter.set(Tensor::from_array(value.clone())).unwrap();
        }
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
        let variables: Vec<_> =
            given.iter().map(|x| tape.variable(Tensor::from_array(x.clone()))).collect();
        let y = forward(&ctx, &variables);
        let value = y.value().view().to_owned();
        let parameters = &parameters;
        (value, move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let of_inputs = variables.iter().map(|x| gradients.of(x));
            let of_parameters = parameters.iter().map(|(_, p)| gradients.of_parameter(p));
            let all = of_inputs.chain(of_parameters);
            all.map(|g| g.map(|g| g.view().to_owned())).collect()
        })
    });
}

#[test]
fn lstm_with_states_over_two_layers() {
    let lstm = Lstm::<f64>::new(3, 4, 2, &mut Seed::new(1).stream("init")).unwrap();
    let inputs = [
        random_array(1, &[2, 5, 3], -1.0, 1.0),
        random_array(2, &[2, 2, 4], -1.0, 1.0),
        random_array(3, &[2, 2, 4], -1.0, 1.0),
    ];
    check("lstm", &lstm, &inputs, |ctx, x| {
        let state = LstmState { hidden: x[1].clone(), cell: x[2].clone() };
        let output = lstm.forward(ctx, &x[0], Some(&state)).unwrap();
        let flat = |x: &Var<f64>| x.reshape(x.value().len()).unwrap();
        // Every output is used, the steps twice.
        let steps = flat(&output.batch_first().unwrap());
        let parts = [&steps, &flat(&output.state.hidden), &flat(&output.state.cell), &steps];
        Var::concat(&parts, 0).unwrap()
    });
}

#[test]
fn lstm_of_tokens_equals_lstm_of_their_embeddings() {
    let lstm = Lstm::<f64>::new(3, 4, 1, &mut Seed::new(1).stream("init")).unwrap();
    let ctx = Ctx::eval();
    let table = ctx.constant(Tensor::from_array(random_array(1, &[6, 3], -1.0, 1.0)));
    // Time-major: three steps of a batch of two.
    let tokens = [0u32, 5, 2, 2, 4, 1];
    let fast = lstm.forward_tokens(&ctx, &table, &tokens, 2).unwrap();
    let x = table.embedding(&tokens, [3, 2]).unwrap().permute(&[1, 0, 2]).unwrap();
    let slow = lstm.forward(&ctx, &x, None).unwrap();
    specialformer_testkit::assert_close(
        &fast.batch_first().unwrap().value().view(),
        &slow.batch_first().unwrap().value().view(),
        1e-12,
        1e-12,
    );
}

#[test]
fn feed_forward_plain_and_gated() {
    for kind in [FeedForwardKind::Plain(Activation::Gelu), FeedForwardKind::Gated(Activation::Silu)]
    {
        let rng = &mut Seed::new(1).stream("init");
        let layer = FeedForward::<f64>::new(kind, 3, 5, true, rng).unwrap();
        let x = random_array(1, &[2, 4, 3], -1.0, 1.0);
        check("feed_forward", &layer, &[x], |ctx, x| layer.forward(ctx, &x[0]).unwrap());
    }
}

#[test]
fn norms() {
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        let layer = Norm::<f64>::new(kind, 6, 1e-5).unwrap();
        let x = random_array(1, &[3, 6], -1.0, 1.0);
        check("norm", &layer, &[x], |ctx, x| layer.forward(ctx, &x[0]).unwrap());
    }
}

#[test]
fn every_operation_has_a_check() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    // `quantized_linear` computes in single precision only: module `quantized`
    // compares its gradients with those of the dense layer.
    let checked = ["lstm", "quantized_linear"].map(str::to_string);
    assert_eq!(declared, BTreeSet::from(checked));
}
