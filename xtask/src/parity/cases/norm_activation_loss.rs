//! Norms, activations, softmax and cross-entropy: values and gradients.

use specialformer::tensor::{CrossEntropy, Reduction, Tape, Var};
use specialformer_testkit::GoldenCase;

use super::{array, tensor};
use crate::parity::judge::Judge;
use crate::shell::Result;

/// Epsilon of both norms.
const EPSILON: f64 = 1e-5;

type Function = fn(&Var) -> specialformer::tensor::Result<Var>;

pub(super) fn run(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    norms(case, judge)?;
    let activations: [(&str, Function); 6] = [
        ("gelu", |x| x.gelu()),
        ("gelu_tanh", |x| x.gelu_tanh()),
        ("silu", |x| x.silu()),
        ("sigmoid", |x| x.sigmoid()),
        ("tanh", |x| x.tanh()),
        ("softplus", |x| x.softplus()),
    ];
    for (name, f) in activations {
        function(case, judge, name, "points", f)?;
    }
    function(case, judge, "softmax", "logits", |x| x.softmax(1))?;
    function(case, judge, "log_softmax", "logits", |x| x.log_softmax(1))?;
    losses(case, judge)
}

fn function(
    case: &GoldenCase,
    judge: &mut Judge<'_>,
    name: &str,
    input: &str,
    f: Function,
) -> Result<()> {
    let tape = Tape::new();
    let x = tape.variable(tensor(case.f32(input)?));
    let y = f(&x)?;
    let upstream = tensor(case.f32(&format!("{input}_upstream"))?);
    let gradients = tape.backward_from(&y, upstream)?;
    judge.check(&format!("{name}.out"), &array(&y))?;
    let gradient = gradients.of(&x).ok_or("no gradient")?;
    judge.check(&format!("{name}.grad_{input}"), &gradient.view())
}

fn norms(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    for name in ["layer_norm", "rms_norm"] {
        let tape = Tape::new();
        let input = |name| -> Result<Var> { Ok(tape.variable(tensor(case.f32(name)?))) };
        let (x, weight, bias) = (input("x")?, input("weight")?, input("bias")?);
        let y = match name {
            "layer_norm" => x.layer_norm(Some(&weight), Some(&bias), EPSILON)?,
            _ => x.rms_norm(Some(&weight), EPSILON)?,
        };
        let gradients = tape.backward_from(&y, tensor(case.f32("upstream")?))?;
        judge.check(&format!("{name}.out"), &array(&y))?;
        for (input, variable) in [("x", &x), ("weight", &weight), ("bias", &bias)] {
            if let Some(gradient) = gradients.of(variable) {
                judge.check(&format!("{name}.grad_{input}"), &gradient.view())?;
            }
        }
    }
    Ok(())
}

fn losses(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let targets = case.i64("targets")?.iter();
    let targets: Vec<u32> = targets.map(|&t| u32::try_from(t).unwrap_or(u32::MAX)).collect();
    for (word, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
        for label_smoothing in [0.0, 0.1] {
            let tape = Tape::new();
            let logits = tape.variable(tensor(case.f32("logits")?));
            let options = CrossEntropy { reduction, label_smoothing };
            let loss = logits.cross_entropy(&targets, &options)?;
            let gradients = tape.backward(&loss)?;
            let name = format!("cross_entropy_{word}_smoothing_{label_smoothing:.1}");
            judge.check(&format!("{name}.out"), &array(&loss))?;
            let gradient = gradients.of(&logits).ok_or("no gradient")?;
            judge.check(&format!("{name}.grad_logits"), &gradient.view())?;
        }
    }
    Ok(())
}
