//! Activations, the position-wise feed-forward layer, and the MLP.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{Element, RngStream, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::linear::Linear;
use crate::module::{Module, ParameterVisitor};

/// An elementwise activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// Exact GELU.
    Gelu,
    /// GELU in its tanh form.
    GeluTanh,
    /// x·sigmoid(x).
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Applies the activation.
    ///
    /// # Errors
    /// Only in checked mode.
    pub fn apply<E: Element>(self, x: &Var<E>) -> Result<Var<E>> {
        Ok(match self {
            Self::Relu => x.relu()?,
            Self::Gelu => x.gelu()?,
            Self::GeluTanh => x.gelu_tanh()?,
            Self::Silu => x.silu()?,
            Self::Tanh => x.tanh()?,
        })
    }
}

/// Which feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForwardKind {
    /// down(activation(up(x))).
    Plain(Activation),
    /// Gated: down(activation(gate(x)) ⊙ up(x)); with SiLU this is SwiGLU
    /// (Shazeer 2020).
    Gated(Activation),
}

/// The position-wise feed-forward layer of a transformer block.
///
/// # Shapes
/// [..., C] → [..., C] through a hidden width F.
#[derive(Debug, Clone)]
pub struct FeedForward<E: Element = f32> {
    activation: Activation,
    gate: Option<Linear<E>>,
    up: Linear<E>,
    down: Linear<E>,
}

impl<E: Element> FeedForward<E> {
    /// A layer with PyTorch's default start values.
    ///
    /// # Errors
    /// [`NnError::Config`](crate::NnError::Config) if a size is zero.
    pub fn new(
        kind: FeedForwardKind,
        width: usize,
        hidden: usize,
        bias: bool,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let (activation, gated) = match kind {
            FeedForwardKind::Plain(activation) => (activation, false),
            FeedForwardKind::Gated(activation) => (activation, true),
        };
        let gate = gated.then(|| Linear::new(width, hidden, bias, rng)).transpose()?;
        let up = Linear::new(width, hidden, bias, rng)?;
        let down = Linear::new(hidden, width, bias, rng)?;
        Ok(Self { activation, gate, up, down })
    }

    /// A layer of given maps; gated kinds have a `gate`.
    ///
    /// # Errors
    /// [`NnError::Config`] if the maps do not fit one another or the kind.
    pub fn from_linears(
        kind: FeedForwardKind,
        gate: Option<Linear<E>>,
        up: Linear<E>,
        down: Linear<E>,
    ) -> Result<Self> {
        let sizes = |linear: &Linear<E>| (linear.in_features(), linear.out_features());
        let refuse = |field, value: (usize, usize), reason: &str| {
            Err(NnError::config("FeedForward", field, format!("{value:?}"), reason))
        };
        let (activation, gated) = match kind {
            FeedForwardKind::Plain(activation) => (activation, false),
            FeedForwardKind::Gated(activation) => (activation, true),
        };
        if gated != gate.is_some() {
            let reason = "gated kinds have a gate, plain ones have none";
            return refuse("up", sizes(&up), reason);
        }
        if let Some(gate) = gate.as_ref().filter(|gate| sizes(gate) != sizes(&up)) {
            return refuse("gate", sizes(gate), "must have the inputs and outputs of up");
        }
        if sizes(&down) != (up.out_features(), up.in_features()) {
            return refuse("down", sizes(&down), "must lead back from up");
        }
        Ok(Self { activation, gate, up, down })
    }

    /// Which layer this is.
    pub fn kind(&self) -> FeedForwardKind {
        match self.gate {
            Some(_) => FeedForwardKind::Gated(self.activation),
            None => FeedForwardKind::Plain(self.activation),
        }
    }

    /// The map that the activation is applied to in gated kinds.
    pub fn gate(&self) -> Option<&Linear<E>> {
        self.gate.as_ref()
    }

    /// The map into the hidden width.
    pub fn up(&self) -> &Linear<E> {
        &self.up
    }

    /// The map out of the hidden width.
    pub fn down(&self) -> &Linear<E> {
        &self.down
    }

    /// The linear layers by name, for giving them other weights.
    pub fn projections_mut(&mut self) -> Vec<(&'static str, &mut Linear<E>)> {
        let mut all: Vec<_> = self.gate.iter_mut().map(|gate| ("gate", gate)).collect();
        all.extend([("up", &mut self.up), ("down", &mut self.down)]);
        all
    }

    /// The layer's output.
    ///
    /// # Errors
    /// If the width differs.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let up = self.up.forward(ctx, x)?;
        let hidden = match &self.gate {
            Some(gate) => self.activation.apply(&gate.forward(ctx, x)?)?.mul(&up)?,
            None => self.activation.apply(&up)?,
        };
        self.down.forward(ctx, &hidden)
    }

    /// The output with the first `units` of the hidden units alone (Yu et al.
    /// 2019); the parameters of the others get a gradient of exactly zero.
    ///
    /// # Errors
    /// If the width differs, or there are not as many units.
    pub fn forward_units(&self, ctx: &Ctx<E>, x: &Var<E>, units: usize) -> Result<Var<E>> {
        let width = self.up.in_features();
        let up = self.up.forward_part(ctx, x, width, units)?;
        let hidden = match &self.gate {
            Some(gate) => {
                let gate = gate.forward_part(ctx, x, width, units)?;
                self.activation.apply(&gate)?.mul(&up)?
            }
            None => self.activation.apply(&up)?,
        };
        self.down.forward_part(ctx, &hidden, units, width)
    }
}

impl<E: Element> Module<E> for FeedForward<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(gate) = &self.gate {
            visitor.module("gate", gate);
        }
        visitor.module("up", &self.up);
        visitor.module("down", &self.down);
    }
}

/// Linear layers with an activation between them.
///
/// # Shapes
/// [..., sizes\[0\]] → [..., sizes.last()].
#[derive(Debug, Clone)]
pub struct Mlp<E: Element = f32> {
    activation: Activation,
    layers: Vec<Linear<E>>,
}

impl<E: Element> Mlp<E> {
    /// Layers of these sizes, input first.
    ///
    /// # Errors
    /// [`NnError::Config`] if there are fewer than two sizes or one is zero.
    pub fn new(activation: Activation, sizes: &[usize], rng: &mut RngStream) -> Result<Self> {
        if sizes.len() < 2 {
            let value = format!("{sizes:?}");
            return Err(NnError::config("Mlp", "sizes", value, "needs an input and an output"));
        }
        let pairs = sizes.windows(2);
        let layers = pairs.map(|s| Linear::new(s[0], s[1], true, rng)).collect::<Result<_>>()?;
        Ok(Self { activation, layers })
    }

    /// The layers, input first.
    pub fn layers(&self) -> &[Linear<E>] {
        &self.layers
    }

    /// The output of the last layer.
    ///
    /// # Errors
    /// If the width differs.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let first = self.layers[0].forward(ctx, x)?;
        self.after_first(ctx, first)
    }

    /// The rest of the network from the first layer's output on; for callers
    /// who compute the first product in a cheaper way (a one-hot input).
    ///
    /// # Errors
    /// If the width differs.
    pub fn after_first(&self, ctx: &Ctx<E>, first: Var<E>) -> Result<Var<E>> {
        self.layers[1..]
            .iter()
            .try_fold(first, |x, layer| layer.forward(ctx, &self.activation.apply(&x)?))
    }
}

impl<E: Element> Module<E> for Mlp<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.modules("layers", &self.layers);
    }
}
