//! Softmax cross-entropy over the logits of a shard.

use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Result, Tensor, TensorError, Var,
};

use crate::batch::IGNORE;

/// Σ_i −log p_i(target_i) / divisor over the targets that are not ignored.
struct CrossEntropyOp<E: Element> {
    /// d loss / d logits.
    gradient: Tensor<E>,
}

impl<E: Element> Op<E, 1> for CrossEntropyOp<E> {
    const NAME: &'static str = "cross_entropy";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let factor = grad.item()?;
        let gradient = Tensor::build_in(cx.pool(), self.gradient.shape(), |out| {
            for (o, &g) in out.iter_mut().zip(self.gradient.as_slice()) {
                *o = g * factor;
            }
        });
        Ok([Grad::Value(gradient)])
    }
}

pub(crate) fn cross_entropy<E: Element>(
    logits: &Var<E>,
    targets: &[u32],
    divisor: f64,
    smoothing: f64,
) -> Result<Var<E>> {
    let shape = logits.shape();
    let classes = shape.last_size();
    if classes == 0 || shape.elements() / classes != targets.len() {
        return Err(TensorError::BadShape {
            op: "cross_entropy",
            what: format!("{} targets need as many rows of logits", targets.len()),
            shape,
        });
    }
    let tape = logits.tape().clone();
    let mut total = 0.0f64;
    let uniform = smoothing / classes as f64;
    let gradient = Tensor::try_build_in(tape.pool(), shape, |out| {
        let rows = logits.value().as_slice().chunks_exact(classes);
        for (i, ((row, out), &target)) in
            rows.zip(out.chunks_exact_mut(classes)).zip(targets).enumerate()
        {
            if target == IGNORE {
                out.fill(E::ZERO);
                continue;
            }
            let target = target as usize;
            if target >= classes {
                return Err(TensorError::IndexOutOfRange {
                    op: "cross_entropy",
                    index: target,
                    position: i,
                    size: classes,
                });
            }
            let max = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.to_f64()));
            let sum: f64 = row.iter().map(|v| (v.to_f64() - max).exp()).sum();
            let log_sum = max + sum.ln();
            for (j, (o, v)) in out.iter_mut().zip(row).enumerate() {
                let wanted = uniform + if j == target { 1.0 - smoothing } else { 0.0 };
                let log_p = v.to_f64() - log_sum;
                total -= wanted * log_p;
                *o = E::from_f64((log_p.exp() - wanted) / divisor);
            }
        }
        Ok(())
    })?;
    let loss = Tensor::scalar(E::from_f64(total / divisor));
    tape.apply([logits], loss, || CrossEntropyOp { gradient })
}
