//! What a router is configured by.

use serde::{Deserialize, Serialize};

use crate::error::{Result, RoutingError};

/// A router, as it stands in a configuration file.
///
/// ```
/// use specialformer_routing::{Balance, GateKind, RouterConfig};
/// let config = RouterConfig {
///     gate: GateKind::SoftmaxTopK { normalize: true },
///     balance: Balance { load_balance: 0.01, ..Balance::default() },
///     ..RouterConfig::new(8, 2)
/// };
/// config.validate()?;
/// let error = RouterConfig { top_k: 9, ..config }.validate().unwrap_err();
/// assert_eq!(error.to_string(), "router: top_k = 9: must be at most the number of experts, 8");
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// Number of experts E.
    pub experts: usize,
    /// Experts that each token goes to, K; with [`GateKind::ExpertChoice`] the
    /// mean of that.
    pub top_k: usize,
    /// How scores become choices and weights.
    #[serde(default)]
    pub gate: GateKind,
    /// Logits are divided by this.
    #[serde(default = "one")]
    pub temperature: f64,
    /// In training each input of the router is multiplied by a number drawn
    /// uniformly from 1 ± jitter (Fedus et al. 2021, section 2.4).
    #[serde(default)]
    pub jitter: f64,
    /// Dropout on the router's input in training (Zoph et al. 2022, "input
    /// dropout").
    #[serde(default)]
    pub dropout: f64,
    /// In training each pass leaves every expert out with this probability (at
    /// least `top_k` stay), as if it did not exist; of experts that are
    /// [restricted](crate::Router::restricted), every one allowed, with a draw
    /// for each set where tokens have sets of their own. A model trained so keeps
    /// its quality on part of its experts, as with structured dropout of
    /// layers (LayerDrop, Fan et al. 2019).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expert_dropout: f64,
    /// The combine weights are multiplied by this (`routed_scaling_factor` of
    /// pretrained models).
    #[serde(default = "one")]
    pub weight_scale: f64,
    /// How many tokens an expert takes at most in training; all of them if
    /// absent. Evaluation never drops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Choose groups of experts first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// What keeps the experts' load even.
    #[serde(default)]
    pub balance: Balance,
    /// A learned bias on the logits \[E\].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias: bool,
}

fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// How a router's scores become choices and combine weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum GateKind {
    /// p = softmax(logits); the K largest are chosen and weigh p
    /// (OLMoE, Switch), or p divided by the sum of the K with `normalize`
    /// (Mixtral, Qwen3-MoE). K = 1 with `normalize` weighs 1 whatever the
    /// logits, so the router would get no gradient from the task: refused.
    SoftmaxTopK {
        /// Divide the kept probabilities by their sum.
        #[serde(default)]
        normalize: bool,
    },
    /// The K largest logits are chosen and weigh by a softmax over them alone.
    /// The values are those of [`GateKind::SoftmaxTopK`] with `normalize`;
    /// K = 1 is refused.
    TopKSoftmax,
    /// s = sigmoid(logits); the K largest are chosen and weigh s, or s divided
    /// by the sum of the K with `normalize` (DeepSeek-V3).
    Sigmoid {
        /// Divide the kept scores by their sum.
        #[serde(default)]
        normalize: bool,
    },
    /// Noisy top-k (Shazeer et al. 2017): in training, normal noise of
    /// standard deviation softplus(x·W_noiseᵀ) + 0.01 is added to the logits;
    /// the K largest are chosen and weigh by a softmax over them. Without
    /// noise in evaluation. K = 1 is refused.
    NoisyTopK,
    /// Expert choice (Zhou et al. 2022): each of the E experts that may be
    /// chosen picks its ⌈T·K/E⌉ tokens of largest p = softmax(logits) (over
    /// experts), and weighs them by p.
    /// Which tokens an expert picks depends on all tokens, later ones
    /// included, so a causal model must not use it:
    /// [`RouterConfig::validate_causal`] refuses it, and so does a router
    /// whose [`RouteInput`](crate::RouteInput) says `causal`.
    ExpertChoice,
    /// A fixed function of the token's id chooses K experts of weight 1/K
    /// (Roller et al. 2021). Nothing is learned.
    Hash {
        /// Which function.
        #[serde(default)]
        seed: u64,
    },
    /// K experts of weight 1/K at random. Nothing is learned.
    Random,
    /// As many experts as a token needs (Huang et al. 2024): of the K likeliest
    /// the fewest whose p = softmax(logits) sum to `mass`, at least one; they
    /// weigh p. Tokens that the router is unsure of get more.
    TopP {
        /// In (0, 1].
        mass: f64,
    },
    /// All experts, weighed by softmax(logits); `top_k` must be E.
    Soft,
}

impl Default for GateKind {
    fn default() -> Self {
        Self::SoftmaxTopK { normalize: false }
    }
}

impl GateKind {
    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::SoftmaxTopK { .. } => "softmax-top-k",
            Self::TopKSoftmax => "top-k-softmax",
            Self::Sigmoid { .. } => "sigmoid",
            Self::NoisyTopK => "noisy-top-k",
            Self::ExpertChoice => "expert-choice",
            Self::Hash { .. } => "hash",
            Self::Random => "random",
            Self::TopP { .. } => "top-p",
            Self::Soft => "soft",
        }
    }

    /// True if the router has weights to learn.
    pub fn is_learned(self) -> bool {
        !matches!(self, Self::Hash { .. } | Self::Random)
    }

    /// True if the choice for a token depends on later tokens.
    pub fn sees_future(self) -> bool {
        matches!(self, Self::ExpertChoice)
    }

    /// True if a token's weights sum to 1 (before
    /// [`RouterConfig::weight_scale`]).
    pub fn is_normalized(self) -> bool {
        match self {
            Self::SoftmaxTopK { normalize } | Self::Sigmoid { normalize } => normalize,
            Self::ExpertChoice | Self::TopP { .. } => false,
            Self::TopKSoftmax | Self::NoisyTopK | Self::Hash { .. } | Self::Random | Self::Soft => {
                true
            }
        }
    }
}

/// A limit on the tokens that one expert takes in training:
/// ⌈factor·T·K/E⌉ of T live tokens, E the experts that may be chosen. Tokens over it are dropped: they skip the
/// expert, and the other weights stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// The capacity factor: 1 is just enough if the load is even.
    pub factor: f64,
    /// Which assignments are kept.
    #[serde(default)]
    pub keep: Keep,
}

/// Which assignments an expert over its capacity keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The first in order of tokens.
    #[default]
    FirstCome,
    /// Those of largest combine weight, the earlier token first among equals
    /// (batch prioritised routing, Riquelme et al. 2021).
    ByWeight,
}

/// Node-limited routing (DeepSeek-V2 and V3): the experts form `count` groups
/// of consecutive indices; a token may go to experts of the `keep` groups
/// whose two best selection scores have the largest sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// Number of groups.
    pub count: usize,
    /// Groups kept for each token.
    pub keep: usize,
}

/// Weights of the terms that a router adds to the loss, and the loss-free
/// alternative. A weight of 0 leaves a term out.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// Weight of the load-balancing loss of `variant`.
    pub load_balance: f64,
    /// Which load-balancing loss.
    pub variant: LoadBalance,
    /// Weight of the router z-loss, mean over tokens of logsumexp(logits)²
    /// (Zoph et al. 2022).
    pub z: f64,
    /// Weight of CV² of the importance, an expert's sum of combine weights
    /// (Shazeer et al. 2017).
    pub importance: f64,
    /// Weight of CV² of the smooth load (Shazeer et al. 2017); only with
    /// [`GateKind::NoisyTopK`], whose noise makes the load differentiable.
    pub load: f64,
    /// Weight of ln E − mean entropy of a token's probabilities: held against
    /// routers that decide too firmly. Negative sharpens.
    pub entropy: f64,
    /// Loss-free balancing (Wang et al. 2024): a bias for each expert that
    /// counts in the selection alone moves by this after each step, up where
    /// the load was below the [even one](crate::EvenLoad) and down where it
    /// was above; that of an expert that was not on offer stays. `None`: no
    /// bias; 0: a bias that stays as it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias_rate: Option<f64>,
}

/// Which load-balancing loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadBalance {
    /// Of each layer by itself (Switch, GShard): E·Σ_e f_e·P_e with f_e the
    /// share of assignments and P_e the mean probability. 1 if even.
    #[default]
    Switch,
    /// As `transformers` computes it: the tokens of all layers pooled, f_e the
    /// assignments per token, which sum to K. K if even. A router by itself
    /// adds no term; the model does, by
    /// [`balance::add_aux_loss`](crate::balance::add_aux_loss) or
    /// [`balance::terms`](crate::balance::terms).
    Transformers,
}

impl RouterConfig {
    /// Softmax → top-k without renormalisation, dropless, without balance
    /// losses.
    pub fn new(experts: usize, top_k: usize) -> Self {
        Self {
            experts,
            top_k,
            gate: GateKind::default(),
            temperature: 1.0,
            jitter: 0.0,
            dropout: 0.0,
            expert_dropout: 0.0,
            weight_scale: 1.0,
            capacity: None,
            groups: None,
            balance: Balance::default(),
            bias: false,
        }
    }

    /// The fewest experts that a token can be left to choose from.
    pub(crate) fn fewest(&self) -> usize {
        match self.gate {
            GateKind::Soft | GateKind::ExpertChoice => 1,
            _ => self.top_k,
        }
    }

    /// Checks every entry and their combinations.
    ///
    /// # Errors
    /// [`RoutingError::Config`] naming the first entry that does not fit.
    pub fn validate(&self) -> Result<()> {
        let fail = |field, value: &dyn std::fmt::Display, reason: String| {
            Err(RoutingError::config(field, value, reason))
        };
        if self.experts == 0 {
            return fail("experts", &0, "there must be at least one".into());
        }
        if u32::try_from(self.experts).is_err() {
            return fail("experts", &self.experts, "must fit 32 bits".into());
        }
        if self.top_k == 0 {
            return fail("top_k", &0, "each token needs at least one expert".into());
        }
        if self.top_k > self.experts {
            let reason = format!("must be at most the number of experts, {}", self.experts);
            return fail("top_k", &self.top_k, reason);
        }
        for (field, value) in
            [("temperature", self.temperature), ("weight_scale", self.weight_scale)]
        {
            if !(value.is_finite() && value > 0.0) {
                return fail(field, &value, "must be positive".into());
            }
        }
        for (field, value) in [
            ("jitter", self.jitter),
            ("dropout", self.dropout),
            ("expert_dropout", self.expert_dropout),
        ] {
            if !(0.0..1.0).contains(&value) {
                return fail(field, &value, "must be at least 0 and below 1".into());
            }
        }
        if self.bias && !self.gate.is_learned() {
            let reason = format!("gate `{}` has no logits", self.gate.name());
            return fail("bias", &true, reason);
        }
        self.validate_gate()?;
        self.validate_limits()?;
        self.validate_balance()
    }

    /// [`RouterConfig::validate`] for a causal (decoder) model, in which a
    /// token must not depend on later ones.
    ///
    /// # Errors
    /// Also [`RoutingError::SeesFuture`] for [`GateKind::ExpertChoice`].
    pub fn validate_causal(&self) -> Result<()> {
        self.validate()?;
        if self.gate.sees_future() {
            let gate = self.gate.name();
            return Err(RoutingError::SeesFuture { scope: String::new(), gate });
        }
        Ok(())
    }

    fn validate_gate(&self) -> Result<()> {
        let gate = self.gate;
        let weighs_one = match gate {
            GateKind::SoftmaxTopK { normalize } | GateKind::Sigmoid { normalize } => normalize,
            GateKind::TopKSoftmax | GateKind::NoisyTopK => true,
            _ => false,
        };
        if weighs_one && self.top_k == 1 {
            let reason = format!(
                "with gate `{}` and weights that sum to 1 the only weight is always 1, so the \
                 router gets no gradient from the task; do not normalise, or use more experts",
                gate.name()
            );
            return Err(RoutingError::config("top_k", 1, reason));
        }
        if let GateKind::TopP { mass } = gate
            && !(mass > 0.0 && mass <= 1.0)
        {
            return Err(RoutingError::config("gate.mass", mass, "must be in (0, 1]"));
        }
        if self.expert_dropout != 0.0 && gate == GateKind::Soft {
            let reason = "gate `soft` uses all experts";
            return Err(RoutingError::config("expert_dropout", self.expert_dropout, reason));
        }
        if gate == GateKind::Soft && self.top_k != self.experts {
            let reason = format!("gate `soft` uses all {} experts", self.experts);
            return Err(RoutingError::config("top_k", self.top_k, reason));
        }
        if gate.is_learned() {
            return Ok(());
        }
        let balance = &self.balance;
        for (field, value) in [
            ("jitter", self.jitter),
            ("dropout", self.dropout),
            ("expert_dropout", self.expert_dropout),
            ("balance.load_balance", balance.load_balance),
            ("balance.z", balance.z),
            ("balance.importance", balance.importance),
            ("balance.load", balance.load),
            ("balance.entropy", balance.entropy),
            ("balance.bias_rate", balance.bias_rate.unwrap_or(0.0)),
        ] {
            if value != 0.0 {
                let reason = format!("gate `{}` has no scores that it could act on", gate.name());
                return Err(RoutingError::config(field, value, reason));
            }
        }
        if balance.bias_rate.is_some() {
            let reason = format!("gate `{}` has no scores that it could act on", gate.name());
            return Err(RoutingError::config("balance.bias_rate", 0, reason));
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<()> {
        if let Some(capacity) = &self.capacity {
            if !(capacity.factor.is_finite() && capacity.factor > 0.0) {
                let reason = "must be positive";
                return Err(RoutingError::config("capacity.factor", capacity.factor, reason));
            }
            if self.gate == GateKind::ExpertChoice {
                let reason = "gate `expert-choice` fills every expert evenly; leave it out";
                return Err(RoutingError::config("capacity.factor", capacity.factor, reason));
            }
        }
        let Some(Groups { count, keep }) = self.groups else {
            return Ok(());
        };
        if !matches!(self.gate, GateKind::SoftmaxTopK { .. } | GateKind::Sigmoid { .. }) {
            let reason = format!("gate `{}` does not choose groups", self.gate.name());
            return Err(RoutingError::config("groups.count", count, reason));
        }
        if count == 0 || !self.experts.is_multiple_of(count) {
            let reason = format!("must divide the number of experts, {}", self.experts);
            return Err(RoutingError::config("groups.count", count, reason));
        }
        if keep == 0 || keep > count {
            let reason = format!("must be between 1 and the number of groups, {count}");
            return Err(RoutingError::config("groups.keep", keep, reason));
        }
        if self.expert_dropout != 0.0 {
            let reason = "could leave too few experts in the groups that are kept";
            return Err(RoutingError::config("expert_dropout", self.expert_dropout, reason));
        }
        let available = keep * (self.experts / count);
        if available < self.top_k {
            let reason = format!(
                "{keep} groups hold {available} experts, fewer than top_k = {}",
                self.top_k
            );
            return Err(RoutingError::config("groups.keep", keep, reason));
        }
        Ok(())
    }

    fn validate_balance(&self) -> Result<()> {
        let balance = &self.balance;
        for (field, value) in [
            ("balance.load_balance", balance.load_balance),
            ("balance.z", balance.z),
            ("balance.importance", balance.importance),
            ("balance.load", balance.load),
            ("balance.bias_rate", balance.bias_rate.unwrap_or(0.0)),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(RoutingError::config(field, value, "must be at least 0"));
            }
        }
        if !balance.entropy.is_finite() {
            return Err(RoutingError::config("balance.entropy", balance.entropy, "must be finite"));
        }
        if balance.load != 0.0 && self.gate != GateKind::NoisyTopK {
            let reason = format!(
                "the load of gate `{}` is a count without gradient; only `noisy-top-k` has a \
                 smooth one",
                self.gate.name()
            );
            return Err(RoutingError::config("balance.load", balance.load, reason));
        }
        if balance.bias_rate.is_some()
            && matches!(self.gate, GateKind::Soft | GateKind::ExpertChoice)
        {
            let reason =
                format!("gate `{}` has no choice that a bias could change", self.gate.name());
            let rate = balance.bias_rate.unwrap_or(0.0);
            return Err(RoutingError::config("balance.bias_rate", rate, reason));
        }
        Ok(())
    }
}
