//! Importance, and the squared coefficient of variation.

use std::sync::Arc;

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Tensor, Var};

use crate::choices::Choices;
use crate::error::{Result, RoutingError};

struct Importance {
    choices: Arc<Choices>,
}

impl<E: Element> Op<E, 1> for Importance {
    const NAME: &'static str = "importance";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> specialformer_tensor::Result<[Grad<E>; 1]> {
        let grad = grad.as_slice();
        Ok([Grad::Value(Tensor::build_in(cx.pool(), self.choices.len(), |d| {
            for (d, &expert) in d.iter_mut().zip(self.choices.expert_of()) {
                *d = grad[expert as usize];
            }
        }))])
    }
}

/// Each expert's importance, the sum of its combine weights.
///
/// # Shapes
/// weights \[A\] → \[E\].
///
/// # Errors
/// [`RoutingError::Shape`] unless there is one weight for each choice.
///
/// # Gradient
/// Of a weight: that of its expert's importance.
pub fn importance<E: Element>(weights: &Var<E>, choices: &Arc<Choices>) -> Result<Var<E>> {
    if *weights.shape() != [choices.len()] {
        let what = format!("must be [{}], one for each choice", choices.len());
        return Err(RoutingError::shape("importance", "weights", &weights.shape(), what));
    }
    let mut sums = vec![0.0f64; choices.experts()];
    for (&w, &expert) in weights.value().as_slice().iter().zip(choices.expert_of()) {
        sums[expert as usize] += w.to_f64();
    }
    let mut sums = sums.into_iter();
    let value = Tensor::from_fn(choices.experts(), || E::from_f64(sums.next().unwrap_or(0.0)));
    let op = || Importance { choices: Arc::clone(choices) };
    Ok(weights.tape().apply([weights], value, op)?)
}

struct CvSquared<E: Element> {
    x: Tensor<E>,
    used: usize,
}

impl<E: Element> Op<E, 1> for CvSquared<E> {
    const NAME: &'static str = "cv_squared";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> specialformer_tensor::Result<[Grad<E>; 1]> {
        let (sum, squares) = moments(self.x.as_slice());
        let n = self.used as f64;
        let g = grad.item()?.to_f64();
        Ok([Grad::Value(Tensor::build_in(cx.pool(), self.x.shape(), |d| {
            for (d, &x) in d.iter_mut().zip(self.x.as_slice()) {
                // d/dx of n·Σx²/(Σx)² − 1.
                let slope = if sum == 0.0 {
                    0.0
                } else {
                    2.0 * n / (sum * sum) * (x.to_f64() - squares / sum)
                };
                *d = E::from_f64(g * slope);
            }
        }))])
    }
}

/// Σx and Σx².
fn moments<E: Element>(x: &[E]) -> (f64, f64) {
    let values = x.iter().map(|x| x.to_f64());
    values.fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x))
}

/// The squared coefficient of variation, variance/mean² with the population
/// variance (Shazeer et al. 2017): of importance or load. 0 if all are equal,
/// and where the mean is 0.
///
/// # Shapes
/// \[E\] → scalar.
///
/// # Errors
/// Only in checked mode.
///
/// # Gradient
/// 2n/(Σx)²·(x − Σx²/Σx).
pub fn cv_squared<E: Element>(x: &Var<E>) -> Result<Var<E>> {
    cv_squared_among(x, x.value().as_slice().len())
}

/// [`cv_squared`] where only `used` of the E experts may be chosen, and the
/// others are 0.
pub(crate) fn cv_squared_among<E: Element>(x: &Var<E>, used: usize) -> Result<Var<E>> {
    let (sum, squares) = moments(x.value().as_slice());
    let value = if sum == 0.0 { 0.0 } else { used as f64 * squares / (sum * sum) - 1.0 };
    let value = Tensor::scalar(E::from_f64(value));
    Ok(x.tape().apply([x], value, || CvSquared { x: x.value().clone(), used })?)
}
