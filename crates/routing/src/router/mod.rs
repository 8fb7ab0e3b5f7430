//! [`Router`]: gates as a differentiable layer.

mod decision;

use std::sync::Arc;

use specialformer_nn::{Ctx, Mode, Module, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Tensor, Var};

use self::decision::Decision;
use crate::balance::{self, BalanceTerm, LayerLoad};
use crate::capacity::keep_within;
use crate::config::{GateKind, LoadBalance, RouterConfig};
use crate::error::{Result, RoutingError};
use crate::even::{EvenLoad, LoadSurplus};
use crate::expert_set::{Allowed, ExpertSet};
use crate::gate::SelectArgs;
use crate::noise;
use crate::plan::DispatchPlan;

const OP: &str = "router";

/// What a router is told besides its input.
///
/// ```
/// use specialformer_routing::RouteInput;
/// let live = [true, true, false];
/// let input = RouteInput { live: Some(&live), causal: true, ..RouteInput::default() };
/// assert!(input.tokens.is_none());
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteInput<'a> {
    /// False for padding, which is not routed and counts nowhere \[T\].
    pub live: Option<&'a [bool]>,
    /// Token ids, for the hash gate \[T\].
    pub tokens: Option<&'a [u32]>,
    /// Experts that may be scored and chosen.
    pub allowed: Option<Allowed<'a>>,
    /// True in a decoder: gates that see later tokens are refused.
    pub causal: bool,
}

/// What a router decided.
#[derive(Debug, Clone)]
pub struct Routing<E: Element = f32> {
    /// Router logits, with the bias if there is one, divided by the temperature
    /// and without noise; −1e30
    /// where an expert is not allowed [T, E]. Zero for gates that learn
    /// nothing.
    pub logits: Var<E>,
    /// What the gate's scores normalise to, with the noise of training:
    /// softmax(logits), or sigmoid scores over their sum. Of gates that learn
    /// nothing, each choice's weight [T, E].
    pub probabilities: Var<E>,
    /// Combine weights of all choices in their order, differentiable \[A\].
    pub weights: Var<E>,
    /// The choices and their order through the experts.
    pub plan: DispatchPlan,
    /// Terms for the loss, each a mean over live tokens. Empty in evaluation
    /// on a tape that does not record. [`balance::add_aux_loss`] adds them, and
    /// what a model's routers have together.
    pub losses: Vec<BalanceTerm<E>>,
    /// Assignments that each expert was asked for, before drops \[E\].
    pub load: Vec<u64>,
    /// The load if the experts that each token may go to shared evenly: what
    /// `load` is to be compared with.
    pub even: EvenLoad,
    /// Assignments that capacity dropped.
    pub dropped: u64,
    /// The live tokens, if some are not \[T\].
    pub live: Option<Arc<[bool]>>,
}

impl<E: Element> Routing<E> {
    /// Dropped share of all assignments.
    pub fn drop_share(&self) -> f64 {
        self.dropped as f64 / (self.plan.choices().len().max(1)) as f64
    }

    /// Mean entropy of a live token's probabilities, in nats.
    pub fn entropy(&self) -> f64 {
        balance::mean_entropy(self.probabilities.value(), self.live.as_deref())
    }

    /// What [`balance::pooled_load_balance`] takes.
    pub fn layer_load(&self) -> LayerLoad<'_, E> {
        LayerLoad {
            probabilities: &self.probabilities,
            load: &self.load,
            even: Some(&self.even),
            live: self.live.as_deref(),
        }
    }
}

/// Sends each token to some of E experts.
///
/// logits = (x·Wᵀ [+ b])/temperature; the configured [`GateKind`] turns them into
/// choices and combine weights.
///
/// ```
/// use specialformer_nn::Ctx;
/// use specialformer_routing::{GateKind, RouteInput, Router, RouterConfig};
/// use specialformer_tensor::{Seed, Tensor};
///
/// let mut rng = Seed::new(1).stream("init");
/// let config = RouterConfig {
///     gate: GateKind::SoftmaxTopK { normalize: true },
///     ..RouterConfig::new(4, 2)
/// };
/// let router = Router::<f32>::new(config, 8, &mut rng)?;
/// let ctx = Ctx::eval();
/// let x = ctx.constant(Tensor::from_fn([5, 8], || rng.normal() as f32));
/// let routing = router.forward(&ctx, &x, &RouteInput::default())?;
/// assert_eq!(routing.plan.slots(), 5 * 2);
/// assert_eq!(routing.load.iter().sum::<u64>(), 10);
/// let first: f32 = routing.weights.value().as_slice()[..2].iter().sum();
/// assert!((first - 1.0).abs() < 1e-6);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
///
/// # Parameters
/// `weight` [E, C] of gates that learn, and their `bias` \[E\] with
/// [`RouterConfig::bias`]; `noise.weight` [E, C] of the noisy gate;
/// `balance_bias` \[E\] with [`bias_rate`](crate::Balance::bias_rate), frozen:
/// it is saved and loaded and gets no gradient.
#[derive(Debug, Clone)]
pub struct Router<E: Element = f32> {
    config: RouterConfig,
    width: usize,
    weight: Option<Parameter<E>>,
    bias: Option<Parameter<E>>,
    noise: Option<Parameter<E>>,
    balance_bias: Option<Parameter<E>>,
    /// The only experts that are scored, where the input names none.
    allowed: Option<ExpertSet>,
}

impl<E: Element> Router<E> {
    /// A router for tokens of this width. The weight starts uniform in ±1/√C,
    /// the noise weight and the bias at 0.
    ///
    /// # Errors
    /// [`RoutingError::Config`] as [`RouterConfig::validate`], or if `width`
    /// is zero.
    pub fn new(config: RouterConfig, width: usize, rng: &mut RngStream) -> Result<Self> {
        config.validate()?;
        if width == 0 {
            return Err(RoutingError::config("width", width, "must be positive"));
        }
        let shape = [config.experts, width];
        let weight = config.gate.is_learned();
        let weight = weight.then(|| Parameter::new(init::linear_default(shape, width, rng)));
        let bias = (config.bias && weight.is_some())
            .then(|| Parameter::new(Tensor::zeros(config.experts)));
        let noise = config.gate == GateKind::NoisyTopK;
        let noise = noise.then(|| Parameter::new(Tensor::zeros(shape)));
        let balance_bias = config.balance.bias_rate.map(|_| {
            let bias = Parameter::new(Tensor::zeros(config.experts));
            bias.set_frozen(true);
            bias
        });
        Ok(Self { config, width, weight, bias, noise, balance_bias, allowed: None })
    }

    /// The configuration.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// Width of the tokens, C.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The weight [E, C], if the gate learns.
    pub fn weight(&self) -> Option<&Parameter<E>> {
        self.weight.as_ref()
    }

    /// The router with only these experts scored and chosen wherever its input
    /// does not name a set, as if the others did not exist. Parameters are
    /// shared.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the set is for another number of experts
    /// or leaves too few to choose from.
    pub fn restricted(&self, allowed: ExpertSet) -> Result<Self> {
        Allowed::from(&allowed).check(OP, 0, self.config.experts, self.config.fewest())?;
        Ok(Self { allowed: Some(allowed), ..self.clone() })
    }

    /// The only experts that are scored where the input names none, if the
    /// router is [restricted](Self::restricted).
    pub fn allowed(&self) -> Option<&ExpertSet> {
        self.allowed.as_ref()
    }

    /// The router with a bias of its own on the logits, which starts at 0 (or
    /// as a copy of the one it has). All other parameters are shared.
    ///
    /// # Errors
    /// [`RoutingError::Config`] for a gate that learns nothing.
    pub fn with_bias(&self) -> Result<Self> {
        let config = RouterConfig { bias: true, ..self.config.clone() };
        config.validate()?;
        let value = match &self.bias {
            Some(bias) => bias.value(),
            None => Tensor::zeros(self.config.experts),
        };
        Ok(Self { config, bias: Some(Parameter::new(value)), ..self.clone() })
    }

    /// The bias on the logits \[E\], if it is configured.
    pub fn bias(&self) -> Option<&Parameter<E>> {
        self.bias.as_ref()
    }

    /// The bias of loss-free balancing \[E\], if it is configured.
    pub fn balance_bias(&self) -> Option<&Parameter<E>> {
        self.balance_bias.as_ref()
    }

    /// Routes tokens.
    ///
    /// # Shapes
    /// x [T, C].
    ///
    /// # Errors
    /// [`RoutingError::Shape`] and [`RoutingError::Argument`] if x or an entry
    /// of `input` does not fit; [`RoutingError::NonFinite`] naming the layer's
    /// scope if a logit is NaN or infinite; [`RoutingError::SeesFuture`] for
    /// an expert-choice gate in a causal model.
    ///
    /// # Gradient
    /// Flows through weights, probabilities and losses to x and the router's
    /// weights. Which experts are chosen has none.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, input: &RouteInput<'_>) -> Result<Routing<E>> {
        let _scope = ctx.scope("router");
        let config = &self.config;
        let shape = x.shape();
        if shape.rank() != 2 || shape[1] != self.width {
            let what = format!("must be [T, {}]", self.width);
            return Err(RoutingError::shape(OP, "x", &shape, what));
        }
        if input.causal && config.gate.sees_future() {
            let scope = ctx.tape().scope_path();
            return Err(RoutingError::SeesFuture { scope, gate: config.gate.name() });
        }
        let live = input.live.filter(|live| live.contains(&false));
        let allowed = input.allowed.or(self.allowed.as_ref().map(Allowed::Same));
        self.select_args(&RouteInput { allowed, ..*input }).check(
            OP,
            shape[0],
            config.experts,
            config.fewest(),
        )?;
        let drawn = self.expert_dropout(ctx, allowed)?;
        let allowed = match &drawn {
            None => allowed,
            Some(sets) => Some(match allowed {
                Some(Allowed::PerToken { set_of, .. }) => Allowed::PerToken { sets, set_of },
                _ => Allowed::Same(&sets[0]),
            }),
        };
        let input = RouteInput { live, allowed, ..*input };
        let decision = match &self.weight {
            Some(weight) => self.decide(ctx, x, weight, &input)?,
            None => self.decide_blindly(ctx, shape[0], &input)?,
        };
        let load = decision.choices.load();
        // Experts that are left out count nowhere.
        let even = EvenLoad::new(&decision.choices, allowed, live)?;
        let used = even.used();
        let losses = self.losses(ctx, &decision, &load, live, used)?;
        let kept = self.within_capacity(ctx, &decision, used)?;
        let plan = DispatchPlan::new(decision.choices, kept.as_deref())?;
        Ok(Routing {
            logits: decision.logits,
            probabilities: decision.probabilities,
            weights: decision.weights,
            losses,
            load,
            even,
            dropped: plan.dropped() as u64,
            live: live.map(Arc::from),
            plan,
        })
    }

    /// The experts of one pass in training, with
    /// [`RouterConfig::expert_dropout`]: for each set of those allowed, what
    /// stays of it.
    fn expert_dropout(
        &self,
        ctx: &Ctx<E>,
        allowed: Option<Allowed<'_>>,
    ) -> Result<Option<Vec<ExpertSet>>> {
        let RouterConfig { experts, expert_dropout: share, .. } = self.config;
        if share == 0.0 || ctx.mode() == Mode::Eval {
            return Ok(None);
        }
        let all = ExpertSet::all(experts)?;
        let sets = match &allowed {
            None => std::slice::from_ref(&all),
            Some(Allowed::Same(set)) => std::slice::from_ref(*set),
            Some(Allowed::PerToken { sets, .. }) => sets,
        };
        // A draw for each: one for all could leave too few of a small set.
        let fewest = self.config.fewest();
        let draw = |rng: &mut RngStream| -> Result<Vec<ExpertSet>> {
            sets.iter().map(|set| noise::kept_experts(set, share, fewest, rng)).collect()
        };
        ctx.with_rng(draw).map(Some)
    }

    fn select_args<'a>(&self, input: &RouteInput<'a>) -> SelectArgs<'a, E> {
        SelectArgs {
            live: input.live,
            allowed: input.allowed,
            bias: None,
            groups: self.config.groups,
        }
    }

    /// Which choices capacity keeps; `None` for all.
    fn within_capacity(
        &self,
        ctx: &Ctx<E>,
        decision: &Decision<E>,
        used: usize,
    ) -> Result<Option<Vec<bool>>> {
        let Some(capacity) = self.config.capacity.filter(|_| ctx.mode() == Mode::Train) else {
            return Ok(None);
        };
        let choices = &decision.choices;
        let limit = capacity.tokens_per_expert(choices.len(), used);
        let weights = decision.weights.value().as_slice();
        keep_within(choices, weights, limit, capacity.keep).map(Some)
    }

    /// The terms for the loss, of `used` experts.
    fn losses(
        &self,
        ctx: &Ctx<E>,
        decision: &Decision<E>,
        load: &[u64],
        live: Option<&[bool]>,
        used: usize,
    ) -> Result<Vec<BalanceTerm<E>>> {
        let mut losses = Vec::new();
        if ctx.mode() == Mode::Eval && !ctx.tape().config().record {
            return Ok(losses);
        }
        let balance = &self.config.balance;
        let mut term = |name, weight: f64, value: &dyn Fn() -> Result<Var<E>>| {
            if weight != 0.0 {
                losses.push(BalanceTerm { name, weight, value: value()? });
            }
            Ok::<_, RoutingError>(())
        };
        let probabilities = &decision.probabilities;
        if balance.variant == LoadBalance::Switch {
            term("load_balance", balance.load_balance, &|| {
                balance::load_balance_among(probabilities, load, live, used)
            })?;
        }
        term("router_z", balance.z, &|| balance::z_loss(&decision.logits, live))?;
        term("importance", balance.importance, &|| {
            let importance = balance::importance(&decision.weights, &decision.choices)?;
            balance::cv_squared_among(&importance, used)
        })?;
        if let Some((width, noisy)) = &decision.noise {
            term("load", balance.load, &|| {
                let k = self.config.top_k;
                let load = noise::smooth_load(&decision.logits, width, noisy, k, live)?;
                balance::cv_squared_among(&load, used)
            })?;
        }
        term("router_entropy", balance.entropy, &|| {
            let most = E::from_f64((used as f64).ln());
            Ok(balance::entropy(probabilities, live)?.affine(-E::ONE, most)?)
        })?;
        Ok(losses)
    }

    /// Moves the bias of loss-free balancing one step, given how far each
    /// expert's load was from the even one since the last (Wang et al. 2024):
    /// b_e −= rate·sign(load_e − even_e). Without a bias, or where the load is
    /// even, nothing changes; so the bias of an expert that was not on offer
    /// stays.
    ///
    /// # Errors
    /// [`RoutingError::Shape`] unless there is one surplus for each expert.
    pub fn update_balance(&self, surplus: &LoadSurplus) -> Result<()> {
        let experts = self.config.experts;
        if surplus.values().len() != experts {
            let what = format!("must have one entry for each of {experts} experts");
            let shape = [surplus.values().len()];
            return Err(RoutingError::shape("update_balance", "surplus", &shape, what));
        }
        let (Some(bias), Some(rate)) = (&self.balance_bias, self.config.balance.bias_rate) else {
            return Ok(());
        };
        bias.update(|bias| {
            for (bias, sign) in bias.iter_mut().zip(surplus.signs()) {
                *bias += E::from_f64(-rate * sign);
            }
        });
        Ok(())
    }
}

impl<E: Element> Module<E> for Router<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (name, parameter) in [
            ("weight", &self.weight),
            ("bias", &self.bias),
            ("noise.weight", &self.noise),
            ("balance_bias", &self.balance_bias),
        ] {
            if let Some(parameter) = parameter {
                visitor.parameter(name, parameter);
            }
        }
    }
}
