//! Softmax and expressive attention: outputs and gradients.

use specialformer::attention::{AttentionArgs, AttentionKind, attention};
use specialformer::tensor::{Tape, Tensor};
use specialformer_testkit::GoldenCase;

use crate::parity::judge::Judge;
use crate::shell::Result;

/// The golden arrays are [B, H, T, D], the op's [B, T, H, D].
const SWAP: [usize; 4] = [0, 2, 1, 3];

pub(super) fn run(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let input = |name| -> Result<Tensor> {
        Ok(Tensor::from_view(case.f32(name)?.view().permuted_axes(&SWAP[..])))
    };
    let (q, k, v, upstream) = (input("q")?, input("k")?, input("v")?, input("upstream")?);
    // The reference has no ε; its inputs are drawn so that 1e-7 is invisible.
    let variants = [
        ("softmax_causal", AttentionKind::Softmax, true),
        ("softmax_full", AttentionKind::Softmax, false),
        ("expressive_causal", AttentionKind::expressive(), true),
        ("expressive_full", AttentionKind::expressive(), false),
    ];
    for (name, kind, causal) in variants {
        if !case.outputs().iter().any(|output| output.starts_with(name)) {
            continue;
        }
        let tape = Tape::new();
        let [q, k, v] = [&q, &k, &v].map(|x| tape.variable(x.clone()));
        let args = AttentionArgs { kind, causal, ..AttentionArgs::default() };
        let y = attention(&q, &k, &v, &args)?;
        let gradients = tape.backward_from(&y, upstream.clone())?;
        let back = |x: &Tensor| x.view().permuted_axes(&SWAP[..]).to_owned();
        judge.check(&format!("{name}.out"), &back(y.value()))?;
        for (input, variable) in [("q", &q), ("k", &k), ("v", &v)] {
            let gradient = gradients.of(variable).ok_or("no gradient")?;
            judge.check(&format!("{name}.grad_{input}"), &back(gradient))?;
        }
    }
    Ok(())
}
