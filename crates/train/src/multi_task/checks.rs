//! What the terms' tests share.

use ndarray::ArrayD;
use specialformer_tensor::{Tape, Tensor, Var};
use specialformer_testkit::check_gradients;

/// The value of a scalar function.
pub(crate) fn run(inputs: &[ArrayD<f64>], f: impl Fn(&[Var<f64>]) -> Var<f64>) -> f64 {
    let tape = Tape::new();
    let inputs: Vec<_> = inputs.iter().map(|x| tape.variable(x.clone().into())).collect();
    f(&inputs).value().item().unwrap()
}

/// Checks a scalar function's gradients.
#[track_caller]
pub(crate) fn check(name: &str, inputs: &[ArrayD<f64>], f: impl Fn(&[Var<f64>]) -> Var<f64>) {
    check_gradients(name, inputs, |inputs| {
        let tape = Tape::new();
        let vars: Vec<_> = inputs.iter().map(|x| tape.variable(x.clone().into())).collect();
        let y = f(&vars);
        let value = y.value().clone().into_array();
        let pullback = move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            vars.iter().map(|v| gradients.of(v).map(|g| g.clone().into_array())).collect()
        };
        (value, pullback)
    });
}
