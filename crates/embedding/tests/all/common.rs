//! What several tests use.

use ndarray::ArrayD;
use specialformer_embedding::Result;
use specialformer_nn::{Ctx, Module, NamedParameters};
use specialformer_tensor::{RngStream, Seed, Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, random_array};

pub(crate) fn rng() -> RngStream {
    Seed::new(5).stream("init")
}

/// Checks all of a layer's parameters, drawn anew so that none is at a start
/// value of zero, and the inputs.
pub(crate) fn check_layer(
    name: &str,
    layer: &dyn Module<f64>,
    inputs: &[&[usize]],
    forward: impl Fn(&Ctx<f64>, &[Var<f64>]) -> Result<Var<f64>>,
) {
    let parameters = NamedParameters::of(layer);
    let mut values: Vec<ArrayD<f64>> =
        (1..).zip(inputs).map(|(seed, shape)| random_array(seed, shape, -1.0, 1.0)).collect();
    values.extend(
        parameters
            .iter()
            .enumerate()
            .map(|(i, (_, parameter))| random_array(100 + i as u64, &parameter.shape(), -0.8, 0.8)),
    );
    let report = GradientCheck::new(name).max_elements(120).try_run(&values, |values| {
        let (given, own) = values.split_at(inputs.len());
        for ((_, parameter), value) in parameters.iter().zip(own) {
            parameter.set(Tensor::from_array(value.clone())).unwrap();
        }
        let tape = Tape::<f64>::new();
        let ctx = Ctx::eval_on(tape.clone());
        let vars: Vec<_> =
            given.iter().map(|x| tape.variable(Tensor::from_array(x.clone()))).collect();
        let y = forward(&ctx, &vars).unwrap();
        let value = y.value().view().to_owned();
        let parameters = &parameters;
        let pullback = move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let inputs = vars.iter().map(|x| gradients.of(x).map(|g| g.view().to_owned()));
            let own = parameters
                .iter()
                .map(|(_, p)| gradients.of_parameter(p).map(|g| g.view().to_owned()));
            inputs.chain(own).collect::<Vec<_>>()
        };
        (value, pullback)
    });
    if let Err(message) = report {
        panic!("{message}");
    }
}
