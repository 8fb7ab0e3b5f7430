//! PyTorch's LSTM: outputs, final states and all gradients.

use std::collections::BTreeMap;

use specialformer::nn::{Ctx, Lstm, LstmState, NamedParameters};
use specialformer::tensor::{Seed, Tape};
use specialformer_testkit::GoldenCase;

use super::{array, tensor};
use crate::parity::judge::Judge;
use crate::shell::Result;

pub(super) fn run(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let rng = &mut Seed::new(0).stream("init");
    let lstm = Lstm::<f32>::new(case.dim("inp")?, case.dim("hid")?, case.dim("layers")?, rng)?;
    let parameters = NamedParameters::of(&lstm);
    let names = case.model().keys();
    let weights = names.map(|name| Ok((name.clone(), tensor(case.weight(name)?))));
    parameters.load(weights.collect::<Result<BTreeMap<_, _>>>()?)?;

    let tape = Tape::new();
    let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
    let variable = |name| -> Result<_> { Ok(tape.variable(tensor(case.f32(name)?))) };
    let constant = |name| -> Result<_> { Ok(tape.constant(tensor(case.f32(name)?))) };
    let x = variable("x")?;
    let state = LstmState { hidden: variable("h0")?, cell: variable("c0")? };
    let output = lstm.forward(&ctx, &x, Some(&state))?;
    let out = output.batch_first()?;
    let loss = out.mul(&constant("upstream")?)?.sum_all()?;
    let loss = loss.add(&output.state.hidden.mul(&constant("upstream_hn")?)?.sum_all()?)?;
    let loss = loss.add(&output.state.cell.mul(&constant("upstream_cn")?)?.sum_all()?)?;
    judge.check("out", &array(&out))?;
    judge.check("hn", &array(&output.state.hidden))?;
    judge.check("cn", &array(&output.state.cell))?;
    judge.check("loss", &array(&loss))?;

    let gradients = tape.backward(&loss)?;
    for (name, parameter) in parameters.iter() {
        let gradient = gradients.of_parameter(parameter).ok_or("no gradient")?;
        judge.check(&format!("grad.{name}"), &gradient.view())?;
    }
    for (name, variable) in [("x", &x), ("h0", &state.hidden), ("c0", &state.cell)] {
        let gradient = gradients.of(variable).ok_or("no gradient")?;
        judge.check(&format!("grad_{name}"), &gradient.view())?;
    }
    Ok(())
}
