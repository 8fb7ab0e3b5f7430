//! [`MoeFeedForward`]: router, experts and shared expert.

use specialformer_nn::{Ctx, FeedForward, FeedForwardKind, Linear, Module, ParameterVisitor};
use specialformer_routing::{Balance, ExpertSet, RouteInput, Router, Routing, balance};
use specialformer_tensor::{Element, RngStream, Var};

use crate::apart::ApartExperts;
use crate::bank::ExpertBank;
use crate::config::MoeConfig;
use crate::error::{MoeError, Result};
use crate::op::moe_experts;

/// A feed-forward layer whose tokens go through a few of many experts:
///
/// y = Σ_k w_k·expert_k(x) [+ shared(x), or sigmoid(x·v)·shared(x)]
///
/// with the experts k and the weights w from the router.
///
/// # Shapes
/// [..., C] → [..., C]; all positions are tokens.
#[derive(Debug, Clone)]
pub struct MoeFeedForward<E: Element = f32> {
    pub(crate) config: MoeConfig,
    pub(crate) router: Router<E>,
    experts: Experts<E>,
    pub(crate) shared: Option<FeedForward<E>>,
    pub(crate) shared_gate: Option<Linear<E>>,
}

#[derive(Debug, Clone)]
enum Experts<E: Element> {
    Stacked(ExpertBank<E>),
    Apart(ApartExperts<E>),
}

/// What a [`MoeFeedForward`] returns.
#[derive(Debug, Clone)]
pub struct MoeOutput<E: Element = f32> {
    /// [..., C].
    pub output: Var<E>,
    /// What the router decided, with its balance losses. Tokens are the
    /// positions in row-major order.
    pub routing: Routing<E>,
    /// How the configuration balances the experts.
    pub balance: Balance,
}

impl<E: Element> MoeOutput<E> {
    /// The loss with the layer's balance terms, each times its weight. Where
    /// several layers are balanced together
    /// ([`LoadBalance::Transformers`](specialformer_routing::LoadBalance)),
    /// [`balance::add_aux_loss`] takes the routings of them all instead.
    ///
    /// # Shapes
    /// loss scalar → scalar.
    ///
    /// # Errors
    /// If the loss is no scalar.
    pub fn add_aux_loss(&self, loss: &Var<E>) -> Result<Var<E>> {
        Ok(balance::add_aux_loss(loss, &self.balance, [&self.routing])?)
    }
}

impl<E: Element> MoeFeedForward<E> {
    /// A layer with random start values.
    ///
    /// # Errors
    /// [`MoeError::Config`] or the router's or a layer's if the configuration
    /// or the width does not fit.
    pub fn new(config: MoeConfig, width: usize, rng: &mut RngStream) -> Result<Self> {
        config.validate()?;
        let MoeConfig { kind, hidden, bias, .. } = config;
        let experts = ExpertBank::new(kind, config.router.experts, width, hidden, bias, rng)?;
        Self::with_experts(config, experts, rng)
    }

    /// A layer of given experts; the router, and the shared expert if there is
    /// one, get random start values.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if the experts are not those of the
    /// configuration.
    pub fn with_experts(
        config: MoeConfig,
        experts: ExpertBank<E>,
        rng: &mut RngStream,
    ) -> Result<Self> {
        config.validate()?;
        let width = experts.width();
        let described = (config.router.experts, config.hidden, config.kind, config.bias);
        let given =
            (experts.experts(), experts.hidden(), experts.kind(), experts.up().bias().is_some());
        if described != given {
            let what = format!(
                "the configuration describes (experts, hidden, kind, bias) {described:?}, the \
                 experts are {given:?}"
            );
            return Err(MoeError::argument("MoeFeedForward", what));
        }
        let router = Router::new(config.router.clone(), width, rng)?;
        let shared = (config.shared > 0)
            .then(|| FeedForward::new(config.kind, width, config.shared, config.bias, rng))
            .transpose()?;
        let shared_gate =
            config.shared_gate.then(|| Linear::new(width, 1, false, rng)).transpose()?;
        Ok(Self { config, router, experts: Experts::Stacked(experts), shared, shared_gate })
    }

    /// The configuration.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// The router.
    pub fn router(&self) -> &Router<E> {
        &self.router
    }

    /// The experts, unless they are [apart](Self::set_apart).
    pub fn experts(&self) -> Option<&ExpertBank<E>> {
        match &self.experts {
            Experts::Stacked(bank) => Some(bank),
            Experts::Apart(_) => None,
        }
    }

    /// The experts, if they are [apart](Self::set_apart).
    pub fn apart(&self) -> Option<&ApartExperts<E>> {
        match &self.experts {
            Experts::Stacked(_) => None,
            Experts::Apart(experts) => Some(experts),
        }
    }

    /// The experts as one bank.
    pub(crate) fn bank(&self, op: &'static str) -> Result<&ExpertBank<E>> {
        let what = "the experts are apart, as for stored weights; it needs a bank of them";
        self.experts().ok_or_else(|| MoeError::argument(op, what))
    }

    /// Replaces the experts by a bank of the same kind and sizes.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if they are not those of the configuration.
    pub fn set_bank(&mut self, experts: ExpertBank<E>) -> Result<()> {
        let sizes = (experts.experts(), experts.width(), experts.hidden(), experts.kind());
        self.check_experts(sizes)?;
        self.experts = Experts::Stacked(experts);
        Ok(())
    }

    /// Replaces the experts by layers of their own, of the same kind and
    /// sizes, e.g. with quantised weights.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if they are not those of the configuration.
    pub fn set_apart(&mut self, experts: ApartExperts<E>) -> Result<()> {
        let all = experts.experts();
        self.check_experts((all.len(), experts.width(), experts.hidden(), all[0].kind()))?;
        self.experts = Experts::Apart(experts);
        Ok(())
    }

    fn check_experts(&self, given: (usize, usize, usize, FeedForwardKind)) -> Result<()> {
        let wanted =
            (self.config.router.experts, self.width(), self.config.hidden, self.config.kind);
        if given == wanted {
            return Ok(());
        }
        let what =
            format!("the layer has (experts, width, hidden, kind) {wanted:?}, got {given:?}");
        Err(MoeError::argument("MoeFeedForward", what))
    }

    fn width(&self) -> usize {
        match &self.experts {
            Experts::Stacked(bank) => bank.width(),
            Experts::Apart(experts) => experts.width(),
        }
    }

    /// The expert that every token goes through.
    pub fn shared(&self) -> Option<&FeedForward<E>> {
        self.shared.as_ref()
    }

    /// The layer with only these experts scored and chosen, as if the others
    /// did not exist. All parameters are shared; [`prune`](Self::prune) gives
    /// the layer that computes the same without the others in memory.
    ///
    /// # Errors
    /// If the set is for another number of experts or leaves too few to choose
    /// from.
    pub fn restricted(&self, allowed: ExpertSet) -> Result<Self> {
        Ok(Self { router: self.router.restricted(allowed)?, ..self.clone() })
    }

    /// The layer with a bias of its own on the router's logits, at 0 unless
    /// there was one. All other parameters are shared.
    ///
    /// # Errors
    /// For a gate that learns nothing.
    pub fn with_router_bias(&self) -> Result<Self> {
        let router = self.router.with_bias()?;
        let config = MoeConfig { router: router.config().clone(), ..self.config.clone() };
        Ok(Self { config, router, ..self.clone() })
    }

    /// The layer's output and what the router decided. A token that is not
    /// live goes through the shared expert alone.
    ///
    /// # Errors
    /// If the width differs, or the router cannot route.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        input: &RouteInput<'_>,
    ) -> Result<MoeOutput<E>> {
        let shape = x.shape();
        let width = self.width();
        if shape.rank() == 0 || shape.last_size() != width {
            let what = format!("x must be [..., {width}], got {shape}");
            return Err(MoeError::argument("MoeFeedForward", what));
        }
        let rows = x.reshape([shape.elements() / width, width])?;
        let routing = self.router.forward(ctx, &rows, input)?;
        let mut output = {
            let _scope = ctx.scope("experts");
            match &self.experts {
                Experts::Stacked(bank) => {
                    moe_experts(&rows, &routing.weights, &bank.on_tape(ctx), &routing.plan)?
                }
                Experts::Apart(experts) => experts.forward(ctx, &rows, &routing)?,
            }
        };
        if let Some(shared) = &self.shared {
            let _scope = ctx.scope("shared");
            let mut y = shared.forward(ctx, &rows)?;
            if let Some(gate) = &self.shared_gate {
                y = y.mul(&gate.forward(ctx, &rows)?.sigmoid()?)?;
            }
            output = output.add(&y)?;
        }
        let balance = self.config.router.balance;
        Ok(MoeOutput { output: output.reshape(shape)?, routing, balance })
    }
}

impl<E: Element> Module<E> for MoeFeedForward<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("router", &self.router);
        match &self.experts {
            Experts::Stacked(bank) => visitor.module("experts", bank),
            Experts::Apart(experts) => visitor.module("experts", experts),
        }
        if let Some(shared) = &self.shared {
            visitor.module("shared", shared);
        }
        if let Some(gate) = &self.shared_gate {
            visitor.module("shared_gate", gate);
        }
    }
}
