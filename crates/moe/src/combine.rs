//! The weighted sum of a token's experts as an operation by itself.

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Tensor, TensorError, Var};

use crate::kernel::{combine_rows, spread_rows};
use specialformer_routing::DispatchPlan;

struct CombineSlots<E: Element> {
    rows: Tensor<E>,
    weights: Tensor<E>,
    plan: DispatchPlan,
}

impl<E: Element> Op<E, 2> for CombineSlots<E> {
    const NAME: &'static str = "combine_slots";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 2], TensorError> {
        let (shape, dy) = (self.rows.shape(), grad.as_slice());
        let width = shape[1];
        let rows = cx.grad_of(0, || {
            Ok(Tensor::build_in(cx.pool(), shape, |out| {
                let weights = self.weights.as_slice();
                spread_rows(dy, width, weights, &self.plan, out, cx.parallelism());
            }))
        })?;
        let weights = cx.grad_of(1, || {
            let mut d = Tensor::zeros_in(cx.pool(), self.weights.shape());
            let out = d.make_mut_in(cx.pool());
            let slots = self.plan.token_of().iter().zip(self.plan.choice_of());
            for (row, (&token, &choice)) in self.rows.as_slice().chunks_exact(width).zip(slots) {
                let dy = &dy[token as usize * width..][..width];
                out[choice as usize] = row.iter().zip(dy).map(|(&y, &g)| y * g).sum();
            }
            Ok(d)
        })?;
        Ok([rows, weights])
    }
}

/// out\[t\] = Σ weight(choice)·rows\[slot of the choice\] over the choices of
/// token t that have a slot, in their order.
///
/// # Shapes
/// `rows` [S, C], `weights` \[A\] → [T, C].
///
/// # Gradient
/// Of a row: its weight times that of its token; of a weight: the product of
/// its row with that of the token, 0 for a dropped choice.
pub(crate) fn combine_slots<E: Element>(
    rows: &Var<E>,
    weights: &Var<E>,
    plan: &DispatchPlan,
) -> Result<Var<E>, TensorError> {
    let (tape, width) = (rows.tape(), rows.shape()[1]);
    let value = Tensor::build_in(tape.pool(), [plan.tokens(), width], |out| {
        let weights = Some(weights.value().as_slice());
        let parallelism = tape.parallelism();
        combine_rows(rows.value().as_slice(), width, weights, plan, out, parallelism);
    });
    tape.apply([rows, weights], value, || CombineSlots {
        rows: rows.value().clone(),
        weights: weights.value().clone(),
        plan: plan.clone(),
    })
}
