//! Entropy of a token's probabilities.

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Tensor, Var};

use super::{count_live, is_live, ln, sizes};
use crate::error::Result;

/// The smallest probability whose logarithm is taken.
const TINY: f64 = 1e-37;

struct Entropy<E: Element> {
    p: Tensor<E>,
    live: Option<Vec<bool>>,
    count: usize,
}

impl<E: Element> Op<E, 1> for Entropy<E> {
    const NAME: &'static str = "routing_entropy";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> specialformer_tensor::Result<[Grad<E>; 1]> {
        let shape = self.p.shape();
        let factor = -grad.item()? / E::from_usize(self.count.max(1));
        let tiny = E::from_f64(TINY);
        let mut d = Tensor::zeros_in(cx.pool(), shape);
        let rows = d.make_mut_in(cx.pool()).chunks_exact_mut(shape[1]);
        for (token, (row, p)) in rows.zip(self.p.as_slice().chunks_exact(shape[1])).enumerate() {
            if is_live(self.live.as_deref(), token) {
                for (d, &p) in row.iter_mut().zip(p) {
                    *d = factor * (ln(p.maximum(tiny)) + E::ONE);
                }
            }
        }
        Ok([Grad::Value(d)])
    }
}

/// Mean over live tokens of the entropy of a token's probabilities,
/// −Σ_e p·ln p, in nats.
///
/// # Shapes
/// probabilities [T, E], `live` \[T\] → scalar.
///
/// # Errors
/// [`RoutingError::Shape`](crate::RoutingError::Shape) for other shapes.
///
/// # Gradient
/// −(ln p + 1)/T in each live row; ln p counts as ln 1e-37 below that, so that
/// it stays finite at p = 0 (where a softmax makes nothing of it).
pub fn entropy<E: Element>(probabilities: &Var<E>, live: Option<&[bool]>) -> Result<Var<E>> {
    let [tokens, _] = sizes("entropy", probabilities, live)?;
    let tape = probabilities.tape();
    let value = mean_entropy(probabilities.value(), live);
    Ok(tape.apply([probabilities], Tensor::scalar(E::from_f64(value)), || Entropy {
        p: probabilities.value().clone(),
        live: live.map(<[bool]>::to_vec),
        count: count_live(live, tokens),
    })?)
}

/// Mean entropy over live rows, in nats.
pub(crate) fn mean_entropy<E: Element>(p: &Tensor<E>, live: Option<&[bool]>) -> f64 {
    let experts = p.shape().last_size().max(1);
    let tiny = E::from_f64(TINY);
    let row = |row: &[E]| -> E { row.iter().map(|&p| p * ln(p.maximum(tiny))).sum() };
    let rows = p.as_slice().chunks_exact(experts);
    let tokens = rows.len();
    let live_rows = rows.enumerate().filter(|(t, _)| is_live(live, *t));
    let total: f64 = live_rows.map(|(_, p)| -row(p).to_f64()).sum();
    total / count_live(live, tokens).max(1) as f64
}
