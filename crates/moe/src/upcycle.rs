//! Sparse upcycling (Komatsuzaki et al. 2022): a mixture of experts from a
//! trained dense layer.

use specialformer_nn::{FeedForward, Linear, Weight};
use specialformer_tensor::{Element, RngStream, Tensor};

use crate::bank::{ExpertBank, Stack};
use crate::config::MoeConfig;
use crate::error::{MoeError, Result};
use crate::layer::MoeFeedForward;

impl<E: Element> MoeFeedForward<E> {
    /// A layer each of whose experts is a copy of the dense layer, with a
    /// fresh router; so that its output equals the dense layer's whatever the
    /// router decides, as long as nothing is dropped. `kind`, `hidden` and
    /// `bias` of the configuration must be those of the dense layer.
    ///
    /// With `noise` σ > 0, each weight (not bias) of the experts gets normal
    /// noise of σ times its matrix's root mean square, so that experts differ
    /// from the start.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a gate whose weights do not sum to 1 (the
    /// output would be scaled), a weight scale other than 1, a shared expert
    /// (it would be added) or a noise that is negative or not finite;
    /// [`MoeError::Argument`] if the dense layer is not what the configuration
    /// describes.
    pub fn upcycle(
        config: MoeConfig,
        dense: &FeedForward<E>,
        noise: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        config.validate()?;
        let gate = config.router.gate;
        if !gate.is_normalized() {
            let reason = "weights must sum to 1 for the output to be the dense layer's";
            return Err(MoeError::config("router.gate", gate.name(), reason));
        }
        if config.router.weight_scale != 1.0 {
            let reason = "must be 1 for the output to be the dense layer's";
            let value = config.router.weight_scale;
            return Err(MoeError::config("router.weight_scale", value, reason));
        }
        if config.shared > 0 {
            let reason = "must be 0: a shared expert would be added to the dense layer's output";
            return Err(MoeError::config("shared", config.shared, reason));
        }
        if !(noise.is_finite() && noise >= 0.0) {
            return Err(MoeError::config("noise", noise, "must be finite and at least 0"));
        }
        let experts = config.router.experts;
        let mut stack = |linear: &Linear<E>| copies(linear, experts, noise, rng);
        let gate = dense.gate().map(&mut stack).transpose()?;
        let up = stack(dense.up())?;
        let down = stack(dense.down())?;
        let experts = ExpertBank::from_stacks(dense.kind(), gate, up, down)?;
        Self::with_experts(config, experts, rng)
    }
}

fn copies<E: Element>(
    linear: &Linear<E>,
    count: usize,
    noise: f64,
    rng: &mut RngStream,
) -> Result<Stack<E>> {
    let weight = match linear.weight() {
        Weight::Dense(weight) => weight.value(),
        Weight::Operator(operator) => operator.to_dense()?,
    };
    let mut stacked = repeated(&weight, count);
    if noise > 0.0 {
        let squares: f64 = weight.as_slice().iter().map(|w| w.to_f64().powi(2)).sum();
        let deviation = noise * (squares / weight.len().max(1) as f64).sqrt();
        for w in stacked.make_mut() {
            *w += E::from_f64(deviation * rng.normal());
        }
    }
    let bias = linear.bias().map(|bias| repeated(&bias.value(), count));
    Stack::new(stacked, bias)
}

fn repeated<E: Element>(x: &Tensor<E>, count: usize) -> Tensor<E> {
    let shape = x.shape().with_axis(0, count);
    Tensor::from_vec(x.as_slice().repeat(count), shape).expect("as many elements as the shape")
}
