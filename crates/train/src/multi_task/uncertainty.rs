//! Task weights by homoscedastic uncertainty.

use specialformer_tensor::{Element, Result, Var};

use crate::answer::AnswerKind;

/// A task's loss weighed by its uncertainty s = ln σ² (Kendall et al. 2018):
///
/// e^(−s)·L + w·s/2 for classes, ½e^(−s)·L + w·s/2 for values, with w the share
/// of the task's targets that L is about, so that parts add up.
///
/// # Shapes
/// L and s scalars → scalar.
///
/// # Gradient
/// Of both. Of s it vanishes at e^s = 2L for classes, and at σ² = e^s = L, the
/// mean squared error, for values (w = 1).
pub(crate) fn uncertain<E: Element>(
    loss: &Var<E>,
    s: &Var<E>,
    kind: AnswerKind,
    share: f64,
) -> Result<Var<E>> {
    let factor = match kind {
        AnswerKind::Classes => 1.0,
        AnswerKind::Values => 0.5,
    };
    let precision = s.scale(E::from_f64(-1.0))?.exp()?;
    let weighed = loss.mul(&precision)?.scale(E::from_f64(factor))?;
    weighed.add(&s.scale(E::from_f64(share / 2.0))?)
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::super::checks::{check, run};
    use super::*;

    #[test]
    fn has_the_papers_form_and_gradient() {
        let scalar = |value| ArrayD::from_elem(IxDyn(&[]), value);
        let inputs = [scalar(1.7), scalar(-0.4)];
        for (kind, factor) in [(AnswerKind::Classes, 1.0), (AnswerKind::Values, 0.5)] {
            let f = |x: &[Var<f64>]| uncertain(&x[0], &x[1], kind, 0.25).unwrap();
            let want = factor * (0.4f64).exp() * 1.7 - 0.25 * 0.2;
            assert!((run(&inputs, f) - want).abs() < 1e-14);
            check("uncertain", &inputs, f);
        }
    }
}
