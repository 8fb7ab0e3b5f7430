//! [`ApartExperts`]: experts that are layers of their own, not one stack.

use specialformer_nn::{Ctx, FeedForward, Module, ParameterVisitor};
use specialformer_routing::{DispatchPlan, Routing};
use specialformer_tensor::{Element, Tensor, Var};

use crate::combine::combine_slots;
use crate::error::{MoeError, Result};

/// Experts as feed-forward layers, each with weights of any kind: quantised as
/// a file stores them, or with adapters. Rows go through one expert after the
/// other, so weights that learn are better off in an
/// [`ExpertBank`](crate::ExpertBank).
///
/// # Shapes
/// Every expert maps [..., C] → [..., C].
#[derive(Debug, Clone)]
pub struct ApartExperts<E: Element = f32> {
    experts: Vec<FeedForward<E>>,
}

impl<E: Element> ApartExperts<E> {
    /// These experts.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if there is none, or they differ in kind or in
    /// width.
    pub fn new(experts: Vec<FeedForward<E>>) -> Result<Self> {
        const OP: &str = "experts apart";
        let of = |expert: &FeedForward<E>| {
            let (up, down) = (expert.up(), expert.down());
            (expert.kind(), up.in_features(), up.out_features(), down.out_features())
        };
        let Some(first) = experts.first().map(of) else {
            return Err(MoeError::argument(OP, "there is no expert"));
        };
        match experts.iter().position(|expert| of(expert) != first) {
            Some(other) => {
                let what = format!("expert {other} differs from expert 0 in kind or width");
                Err(MoeError::argument(OP, what))
            }
            None => Ok(Self { experts }),
        }
    }

    /// The experts.
    pub fn experts(&self) -> &[FeedForward<E>] {
        &self.experts
    }

    /// Model width C.
    pub fn width(&self) -> usize {
        self.experts[0].up().in_features()
    }

    /// Hidden width F.
    pub fn hidden(&self) -> usize {
        self.experts[0].up().out_features()
    }

    /// out\[t\] = Σ w·expert(x\[t\]) over the choices of token t, in their order.
    ///
    /// # Shapes
    /// `x` [T, C] → [T, C].
    pub(crate) fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, routing: &Routing<E>) -> Result<Var<E>> {
        let plan: &DispatchPlan = &routing.plan;
        let mut outputs = Vec::new();
        for (number, expert) in self.experts.iter().enumerate() {
            let slots = plan.slots_of(number);
            let count = slots.len();
            if count == 0 {
                continue;
            }
            let rows = x.embedding(&plan.token_of()[slots], [count])?;
            outputs.push(expert.forward(ctx, &rows)?);
        }
        if outputs.is_empty() {
            return Ok(ctx.constant(Tensor::zeros([plan.tokens(), self.width()])));
        }
        // Expert after expert: the order of the slots.
        let rows = Var::concat(&outputs.iter().collect::<Vec<_>>(), 0)?;
        Ok(combine_slots(&rows, &routing.weights, plan)?)
    }
}

impl<E: Element> Module<E> for ApartExperts<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (number, expert) in self.experts.iter().enumerate() {
            visitor.module(&number.to_string(), expert);
        }
    }
}
