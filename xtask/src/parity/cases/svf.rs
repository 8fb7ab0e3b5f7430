//! Singular-value fine-tuning: outputs, matrices and gradients of z, with the
//! case's factors.

use std::sync::Arc;

use ndarray::Ix2;
use specialformer::nn::{Ctx, WeightOperator};
use specialformer::tensor::{Seed, Tape};
use specialformer_svd_finetune::{Factors, MatrixHash, Parametrisation, Svd, SvfLinear};
use specialformer_testkit::GoldenCase;

use super::{array, tensor};
use crate::parity::judge::Judge;
use crate::shell::Result;

pub(super) fn run(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let shapes = case.dims()["shapes"].as_object().ok_or("no shapes")?;
    for shape in shapes.keys() {
        let input = |name: &str| case.f32(&format!("{shape}.{name}"));
        let matrix = |name| -> Result<_> { Ok(input(name)?.clone().into_dimensionality::<Ix2>()?) };
        let singular_values = input("S")?.clone().into_dimensionality()?;
        let svd = Svd { u: matrix("U")?, singular_values, v: matrix("V")? };
        let factors = Factors::from_svd(svd, MatrixHash::of(&tensor(input("W")?)))?;
        let factors = Arc::new(factors);
        let direct = Parametrisation::direct();
        for (suffix, parametrisation) in [("", direct), ("_norm", direct.with_trace())] {
            let layer = SvfLinear::new(Arc::clone(&factors), parametrisation)?;
            layer.parameter().set(tensor(input("z")?))?;
            let tape = Tape::new();
            let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
            let y = layer.forward(&ctx, &ctx.constant(tensor(input("x")?)), None)?;
            judge.check(&format!("{shape}.y{suffix}"), &array(&y))?;
            judge.check(&format!("{shape}.Wz{suffix}"), &layer.to_dense()?.view())?;
            let gradients = tape.backward_from(&y, tensor(input("upstream")?))?;
            let gradient = gradients.of_parameter(layer.parameter()).ok_or("no gradient")?;
            judge.check(&format!("{shape}.grad_z{suffix}"), &gradient.view())?;
        }
    }
    Ok(())
}
