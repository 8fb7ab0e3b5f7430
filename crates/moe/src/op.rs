//! The differentiable operation over an expert bank.

use std::cell::Cell;

use specialformer_nn::FeedForwardKind;
use specialformer_tensor::{
    BackwardContext, Element, Grad, Shape, Tensor, TensorError, Var, VariadicOp,
};

use crate::kernel::{self, BankValues, Gradients, Hidden, Wanted};
use specialformer_routing::DispatchPlan;

/// Name of the operation in errors.
const OP: &str = "moe_experts";

/// An expert bank on a tape: stacked weights and, if there are any, biases.
#[derive(Debug, Clone)]
pub struct ExpertVars<E: Element = f32> {
    /// What an expert computes.
    pub kind: FeedForwardKind,
    /// [E, F, C]; of gated kinds only.
    pub gate: Option<Var<E>>,
    /// [E, F, C].
    pub up: Var<E>,
    /// [E, C, F].
    pub down: Var<E>,
    /// [E, F].
    pub gate_bias: Option<Var<E>>,
    /// [E, F].
    pub up_bias: Option<Var<E>>,
    /// [E, C].
    pub down_bias: Option<Var<E>>,
}

impl<E: Element> ExpertVars<E> {
    fn values(&self) -> BankValues<E> {
        let value = |var: &Option<Var<E>>| var.as_ref().map(|var| var.value().clone());
        BankValues {
            kind: self.kind,
            gate: value(&self.gate),
            up: self.up.value().clone(),
            down: self.down.value().clone(),
            gate_bias: value(&self.gate_bias),
            up_bias: value(&self.up_bias),
            down_bias: value(&self.down_bias),
        }
    }

    fn check(&self, experts: usize, width: usize) -> Result<(), TensorError> {
        let up = self.up.shape();
        let fail = |what: String, shape: Shape| Err(TensorError::BadShape { op: OP, what, shape });
        if up.rank() != 3 || up[0] != experts || up[2] != width {
            let what = format!("x and the plan need up weights [{experts}, F, {width}]");
            return fail(what, up);
        }
        let hidden = up[1];
        let gated = matches!(self.kind, FeedForwardKind::Gated(_));
        if gated != self.gate.is_some() || (!gated && self.gate_bias.is_some()) {
            let what = if gated { "a gated expert needs" } else { "a plain expert has no" };
            let what = format!("{what} gate weights");
            return Err(TensorError::InvalidArgument { op: OP, what });
        }
        let check = |name: &str, var: Option<&Var<E>>, expected: &[usize]| match var
            .filter(|var| *var.shape() != *expected)
        {
            Some(var) => fail(format!("up weights {up} need {name} {expected:?}"), var.shape()),
            None => Ok(()),
        };
        check("gate weights", self.gate.as_ref(), &[experts, hidden, width])?;
        check("down weights", Some(&self.down), &[experts, width, hidden])?;
        check("a gate bias", self.gate_bias.as_ref(), &[experts, hidden])?;
        check("an up bias", self.up_bias.as_ref(), &[experts, hidden])?;
        check("a down bias", self.down_bias.as_ref(), &[experts, width])
    }
}

/// The weighted outputs of each token's experts: out\[t\] = Σ w·expert(x\[t\])
/// over the choices of token t that the plan did not drop, where expert(x) is
/// W_down·(f(W_gate·x) ⊙ W_up·x) for gated kinds and W_down·f(W_up·x) for
/// plain ones, with biases where the bank has them.
///
/// The rows of each expert are contiguous (see
/// [`DispatchPlan`]), so nothing is copied per expert and no [E, T] mask
/// exists.
///
/// # Shapes
/// `x` [T, C], `combine` \[A\] in the plan's order of choices → [T, C].
///
/// # Errors
/// [`TensorError`] if the shapes do not fit one another or the plan.
///
/// # Gradient
/// To x, the combine weights and every weight and bias; zero for the weight
/// of a dropped choice and for an expert without tokens.
///
/// # Numerics
/// The sum over a token's experts is in the order of its choices. Results are
/// the same bit for bit with any number of threads.
pub fn moe_experts<E: Element>(
    x: &Var<E>,
    combine: &Var<E>,
    bank: &ExpertVars<E>,
    plan: &DispatchPlan,
) -> Result<Var<E>, TensorError> {
    let xs = x.shape();
    if xs.rank() != 2 || xs[0] != plan.tokens() {
        let what = format!("the plan needs x to be [{}, C]", plan.tokens());
        return Err(TensorError::BadShape { op: OP, what, shape: xs });
    }
    let choices = plan.slot_of().len();
    if *combine.shape() != [choices] {
        let what = format!("the plan needs {choices} combine weights");
        return Err(TensorError::BadShape { op: OP, what, shape: combine.shape() });
    }
    bank.check(plan.segments().len(), xs[1])?;
    let tape = x.tape();
    let values = bank.values();
    let optional = [&bank.gate, &bank.gate_bias, &bank.up_bias, &bank.down_bias];
    let mut inputs = vec![x, combine, &bank.up, &bank.down];
    inputs.extend(optional.iter().filter_map(|var| var.as_ref()));
    let keep = inputs.iter().any(|var| var.is_tracked());
    let (y, hidden) = kernel::forward(
        x.value(),
        combine.value().as_slice(),
        &values,
        plan,
        keep,
        tape.pool(),
        tape.parallelism(),
    );
    tape.apply_variadic(&inputs, y, || Experts {
        x: x.value().clone(),
        combine: combine.value().clone(),
        bank: values,
        hidden: Cell::new(hidden),
        plan: plan.clone(),
    })
}

struct Experts<E: Element> {
    x: Tensor<E>,
    combine: Tensor<E>,
    bank: BankValues<E>,
    /// Taken by the backward pass, which writes to it. A tape runs backwards
    /// once.
    hidden: Cell<Option<Hidden<E>>>,
    plan: DispatchPlan,
}

impl<E: Element> VariadicOp<E> for Experts<E> {
    const NAME: &'static str = "moe_experts";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<Vec<Grad<E>>, TensorError> {
        let bank = &self.bank;
        let mut next = 4;
        let mut optional = |tensor: &Option<Tensor<E>>| {
            let index = tensor.as_ref().map(|_| next);
            next += usize::from(index.is_some());
            index.is_some_and(|index| cx.needs(index))
        };
        let wanted = Wanted {
            x: cx.needs(0),
            combine: cx.needs(1),
            up: cx.needs(2),
            down: cx.needs(3),
            gate: optional(&bank.gate),
            gate_bias: optional(&bank.gate_bias),
            up_bias: optional(&bank.up_bias),
            down_bias: optional(&bank.down_bias),
        };
        let hidden = self.hidden.take().ok_or_else(|| TensorError::Backward {
            what: format!("{OP}: what the forward pass kept is used up"),
        })?;
        let combine = self.combine.as_slice();
        let (pool, parallelism) = (cx.pool(), cx.parallelism());
        let Gradients { x, combine, gate, up, down, gate_bias, up_bias, down_bias } =
            kernel::backward(
                &grad,
                &self.x,
                combine,
                bank,
                hidden,
                &self.plan,
                wanted,
                pool,
                parallelism,
            );
        let given = |gradient: Option<Tensor<E>>| gradient.map_or(Grad::NotNeeded, Grad::Value);
        let mut gradients = vec![given(x), given(combine), given(up), given(down)];
        let optional = [
            (&bank.gate, gate),
            (&bank.gate_bias, gate_bias),
            (&bank.up_bias, up_bias),
            (&bank.down_bias, down_bias),
        ];
        let present = optional.into_iter().filter(|(tensor, _)| tensor.is_some());
        gradients.extend(present.map(|(_, gradient)| given(gradient)));
        Ok(gradients)
    }
}
