//! [`ExpertBank`]: the experts' weights, stacked.

use specialformer_nn::{Ctx, FeedForwardKind, Module, NnError, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Tensor};

use crate::error::{MoeError, Result};
use crate::op::ExpertVars;

/// E feed-forward networks of one shape, each weight stacked along the first
/// axis.
///
/// # Shapes
/// `gate` (gated kinds) and `up` [E, F, C], `down` [E, C, F]; with biases
/// `gate_bias` and `up_bias` [E, F], `down_bias` [E, C].
#[derive(Debug, Clone)]
pub struct ExpertBank<E: Element = f32> {
    kind: FeedForwardKind,
    gate: Option<Stack<E>>,
    up: Stack<E>,
    down: Stack<E>,
}

/// One map of all experts: weights [E, out, in] and biases [E, out].
#[derive(Debug, Clone)]
pub struct Stack<E: Element = f32> {
    weight: Parameter<E>,
    bias: Option<Parameter<E>>,
}

impl<E: Element> Stack<E> {
    /// `weight` [E, out, in], `bias` [E, out].
    ///
    /// # Errors
    /// [`MoeError::Nn`] if the shapes do not fit.
    pub fn new(weight: Tensor<E>, bias: Option<Tensor<E>>) -> Result<Self> {
        let shape = weight.shape();
        if shape.rank() != 3 || shape.contains(&0) {
            let reason = "must be [experts, out, in], none of them 0";
            return Err(NnError::config("ExpertBank", "weight", shape, reason).into());
        }
        if let Some(bias) = bias.as_ref().filter(|bias| *bias.shape() != [shape[0], shape[1]]) {
            let reason = format!("must be [{}, {}]", shape[0], shape[1]);
            return Err(NnError::config("ExpertBank", "bias", bias.shape(), reason).into());
        }
        Ok(Self { weight: Parameter::new(weight), bias: bias.map(Parameter::new) })
    }

    fn random(shape: [usize; 3], bias: bool, rng: &mut RngStream) -> Result<Self> {
        let weight = init::linear_default(shape, shape[2], rng);
        let bias = bias.then(|| init::linear_default([shape[0], shape[1]], shape[2], rng));
        Self::new(weight, bias)
    }

    /// The weights [E, out, in].
    pub fn weight(&self) -> &Parameter<E> {
        &self.weight
    }

    /// The biases [E, out], if there are any.
    pub fn bias(&self) -> Option<&Parameter<E>> {
        self.bias.as_ref()
    }

    /// The same map with other experts: `make(numbers, out)` writes one expert
    /// of the new stack from all of the old.
    pub(crate) fn remake(
        &self,
        experts: usize,
        mut make: impl FnMut(usize, &[E], &mut [E]),
    ) -> Result<Self> {
        let mut stacked = |old: &Parameter<E>| {
            let old = old.value();
            let size = old.len() / old.shape()[0];
            let mut new = Tensor::zeros(old.shape().with_size(0, experts));
            for (expert, out) in new.make_mut().chunks_exact_mut(size).enumerate() {
                make(expert, old.as_slice(), out);
            }
            new
        };
        let weight = stacked(&self.weight);
        let bias = self.bias.as_ref().map(&mut stacked);
        Self::new(weight, bias)
    }

    fn visit(&self, name: &str, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter(name, &self.weight);
        if let Some(bias) = &self.bias {
            visitor.parameter(&format!("{name}_bias"), bias);
        }
    }
}

impl<E: Element> ExpertBank<E> {
    /// Experts with PyTorch's default start values, each as a dense layer's.
    ///
    /// # Errors
    /// [`MoeError::Nn`] if a size is zero.
    pub fn new(
        kind: FeedForwardKind,
        experts: usize,
        width: usize,
        hidden: usize,
        bias: bool,
        rng: &mut RngStream,
    ) -> Result<Self> {
        for (field, value) in [("experts", experts), ("width", width), ("hidden", hidden)] {
            if value == 0 {
                return Err(NnError::config("ExpertBank", field, value, "must be positive").into());
            }
        }
        let mut stack = |out, input| Stack::random([experts, out, input], bias, rng);
        let gate = match kind {
            FeedForwardKind::Gated(_) => Some(stack(hidden, width)?),
            FeedForwardKind::Plain(_) => None,
        };
        let up = stack(hidden, width)?;
        let down = stack(width, hidden)?;
        Self::from_stacks(kind, gate, up, down)
    }

    /// Experts of given values.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if the shapes do not fit one another or the
    /// kind.
    pub fn from_stacks(
        kind: FeedForwardKind,
        gate: Option<Stack<E>>,
        up: Stack<E>,
        down: Stack<E>,
    ) -> Result<Self> {
        const OP: &str = "expert bank";
        let (us, ds) = (up.weight.shape(), down.weight.shape());
        if *ds != [us[0], us[2], us[1]] {
            let what = format!("up {us} needs down [{}, {}, {}], got {ds}", us[0], us[2], us[1]);
            return Err(MoeError::argument(OP, what));
        }
        if matches!(kind, FeedForwardKind::Gated(_)) != gate.is_some() {
            let what = "gated kinds have gate weights, plain ones have none";
            return Err(MoeError::argument(OP, what));
        }
        if let Some(gate) = gate.as_ref().filter(|gate| gate.weight.shape() != us) {
            let what = format!("up {us} needs the same of gate, got {}", gate.weight.shape());
            return Err(MoeError::argument(OP, what));
        }
        Ok(Self { kind, gate, up, down })
    }

    /// What an expert computes.
    pub fn kind(&self) -> FeedForwardKind {
        self.kind
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.up.weight.shape()[0]
    }

    /// Model width C.
    pub fn width(&self) -> usize {
        self.up.weight.shape()[2]
    }

    /// Hidden width F.
    pub fn hidden(&self) -> usize {
        self.up.weight.shape()[1]
    }

    /// The map that the activation is applied to in gated kinds.
    pub fn gate(&self) -> Option<&Stack<E>> {
        self.gate.as_ref()
    }

    /// The map into the hidden width.
    pub fn up(&self) -> &Stack<E> {
        &self.up
    }

    /// The map out of the hidden width.
    pub fn down(&self) -> &Stack<E> {
        &self.down
    }

    /// The bank on a pass's tape, for [`moe_experts`](crate::moe_experts).
    pub fn on_tape(&self, ctx: &Ctx<E>) -> ExpertVars<E> {
        let bias = |stack: &Stack<E>| stack.bias.as_ref().map(|bias| ctx.parameter(bias));
        ExpertVars {
            kind: self.kind,
            gate: self.gate.as_ref().map(|gate| ctx.parameter(&gate.weight)),
            up: ctx.parameter(&self.up.weight),
            down: ctx.parameter(&self.down.weight),
            gate_bias: self.gate.as_ref().and_then(bias),
            up_bias: bias(&self.up),
            down_bias: bias(&self.down),
        }
    }

    /// A bank of `experts` experts of the same shape; see [`Stack::remake`].
    pub(crate) fn remake(
        &self,
        experts: usize,
        mut make: impl FnMut(usize, &[E], &mut [E]),
    ) -> Result<Self> {
        let gate = self.gate.as_ref().map(|gate| gate.remake(experts, &mut make)).transpose()?;
        let up = self.up.remake(experts, &mut make)?;
        let down = self.down.remake(experts, &mut make)?;
        Self::from_stacks(self.kind, gate, up, down)
    }
}

impl<E: Element> Module<E> for ExpertBank<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(gate) = &self.gate {
            gate.visit("gate", visitor);
        }
        self.up.visit("up", visitor);
        self.down.visit("down", visitor);
    }
}
