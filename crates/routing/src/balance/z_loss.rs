//! The router z-loss.

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Tensor, Var};

use super::{count_live, exp, is_live, sizes};
use crate::error::Result;

struct ZLoss<E: Element> {
    logits: Tensor<E>,
    log_sums: Vec<f64>,
    live: Option<Vec<bool>>,
    count: usize,
}

impl<E: Element> Op<E, 1> for ZLoss<E> {
    const NAME: &'static str = "router_z_loss";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> specialformer_tensor::Result<[Grad<E>; 1]> {
        let shape = self.logits.shape();
        let factor = 2.0 * grad.item()?.to_f64() / self.count.max(1) as f64;
        let mut d = Tensor::zeros_in(cx.pool(), shape);
        let rows = d.make_mut_in(cx.pool()).chunks_exact_mut(shape[1]);
        let logits = self.logits.as_slice().chunks_exact(shape[1]);
        for (token, ((row, logits), &log_sum)) in rows.zip(logits).zip(&self.log_sums).enumerate() {
            if is_live(self.live.as_deref(), token) {
                let (shift, scale) = (E::from_f64(log_sum), E::from_f64(factor * log_sum));
                for (d, &x) in row.iter_mut().zip(logits) {
                    *d = scale * exp(x - shift);
                }
            }
        }
        Ok([Grad::Value(d)])
    }
}

/// The router z-loss (Zoph et al. 2022): mean over live tokens of
/// (ln Σ_e exp(logit_e))², which keeps logits small.
///
/// # Shapes
/// logits [T, E], `live` \[T\] → scalar.
///
/// # Errors
/// [`RoutingError::Shape`](crate::RoutingError::Shape) for other shapes.
///
/// # Gradient
/// 2·z·softmax(logits)/T in each live row, z its logsumexp.
pub fn z_loss<E: Element>(logits: &Var<E>, live: Option<&[bool]>) -> Result<Var<E>> {
    let [tokens, experts] = sizes("z_loss", logits, live)?;
    let tape = logits.tape();
    let count = count_live(live, tokens);
    let log_sum = |row: &[E]| {
        let max = row.iter().copied().fold(E::NEG_INFINITY, E::maximum);
        let sum: E = row.iter().map(|&x| exp(x - max)).sum();
        max.to_f64() + sum.to_f64().ln()
    };
    let log_sums: Vec<f64> = match experts {
        0 => vec![0.0; tokens],
        _ => logits.value().as_slice().chunks_exact(experts).map(log_sum).collect(),
    };
    let squares = log_sums.iter().enumerate().filter(|(t, _)| is_live(live, *t));
    let total: f64 = squares.map(|(_, z)| z * z).sum();
    let value = Tensor::scalar(E::from_f64(total / count.max(1) as f64));
    Ok(tape.apply([logits], value, || ZLoss {
        logits: logits.value().clone(),
        log_sums,
        live: live.map(<[bool]>::to_vec),
        count,
    })?)
}
