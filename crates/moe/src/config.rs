//! What a mixture-of-experts layer is configured by.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Activation, FeedForwardKind};
use specialformer_routing::RouterConfig;

use crate::error::{MoeError, Result};

/// A mixture-of-experts layer, as it stands in a configuration file.
///
/// Fine-grained experts (Dai et al. 2024) are more and narrower ones: m times
/// the experts and K, 1/m of `hidden`. Several shared experts side by side are
/// one of their joint width.
///
/// ```
/// use specialformer_moe::MoeConfig;
/// use specialformer_routing::RouterConfig;
/// let config = MoeConfig { shared: 64, ..MoeConfig::new(RouterConfig::new(8, 2), 32) };
/// config.validate()?;
/// assert!(MoeConfig::new(RouterConfig::new(2, 3), 32).validate().is_err());
/// # Ok::<(), specialformer_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// The router, which says how many experts there are.
    pub router: RouterConfig,
    /// Hidden width F of one expert.
    pub hidden: usize,
    /// What an expert computes: SwiGLU by default.
    #[serde(default = "swiglu")]
    pub kind: FeedForwardKind,
    /// Biases in the experts.
    #[serde(default)]
    pub bias: bool,
    /// Hidden width of the shared expert, which every token goes through
    /// besides those that it is routed to; 0 for none.
    #[serde(default)]
    pub shared: usize,
    /// Multiply the shared expert's output by sigmoid(x·w) (Qwen2-MoE).
    #[serde(default)]
    pub shared_gate: bool,
}

fn swiglu() -> FeedForwardKind {
    FeedForwardKind::Gated(Activation::Silu)
}

impl MoeConfig {
    /// SwiGLU experts of hidden width `hidden` without biases and without a
    /// shared expert.
    pub fn new(router: RouterConfig, hidden: usize) -> Self {
        let kind = swiglu();
        Self { router, hidden, kind, bias: false, shared: 0, shared_gate: false }
    }

    /// Checks every entry.
    ///
    /// # Errors
    /// [`MoeError::Config`], or the router's
    /// [`RoutingError`](specialformer_routing::RoutingError).
    pub fn validate(&self) -> Result<()> {
        self.router.validate()?;
        if self.hidden == 0 {
            return Err(MoeError::config("hidden", 0, "must be positive"));
        }
        if self.shared_gate && self.shared == 0 {
            let reason = "there is no shared expert to gate; give `shared` a width";
            return Err(MoeError::config("shared_gate", true, reason));
        }
        Ok(())
    }
}
