//! Adam and AdamW.

use serde::{Deserialize, Serialize};
use specialformer_tensor::simd::{Kernel, Level, dispatch};
use specialformer_tensor::{Element, Tensor};

use crate::error::{NnError, Result};
use crate::module::NamedParameters;
use crate::optim::{
    CHUNK, GradientSet, Optimizer, OptimizerState, Targets, UpdateArgs, take_moments, zero_moments,
};

/// Settings of [`Adam`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, decoupled from the gradient as in AdamW (Loshchilov &
    /// Hutter 2019): θ ← θ·(1 − lr·decay). 0 is plain Adam.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam (Kingma & Ba 2015), with AdamW's decoupled weight decay.
///
/// m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g²,
/// θ ← θ·(1 − lr·decay) − lr·m̂/(√v̂ + eps) with bias-corrected m̂ and v̂. One
/// pass over memory. PyTorch: `torch.optim.AdamW`, or `Adam` without decay.
#[derive(Debug)]
pub struct Adam<E: Element = f32> {
    config: AdamConfig,
    targets: Targets,
    m: Vec<Tensor<E>>,
    v: Vec<Tensor<E>>,
    steps: u64,
}

impl<E: Element> Adam<E> {
    /// An optimiser of the trainable parameters.
    ///
    /// # Errors
    /// [`NnError::Config`] if a setting is outside its range.
    pub fn new(config: AdamConfig, parameters: &NamedParameters<E>) -> Result<Self> {
        for (field, value) in [("beta1", config.beta1), ("beta2", config.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(NnError::config("Adam", field, value, "must be in [0, 1)"));
            }
        }
        if config.eps.is_nan() || config.eps <= 0.0 {
            return Err(NnError::config("Adam", "eps", config.eps, "must be positive"));
        }
        if !(config.weight_decay >= 0.0 && config.weight_decay.is_finite()) {
            let value = config.weight_decay;
            return Err(NnError::config("Adam", "weight_decay", value, "must not be negative"));
        }
        Ok(Self {
            config,
            targets: Targets::of(parameters),
            m: zero_moments(parameters),
            v: zero_moments(parameters),
            steps: 0,
        })
    }
}

/// The numbers of one update.
#[derive(Clone, Copy)]
struct Coefficients<E> {
    scale: E,
    beta1: E,
    beta2: E,
    one_minus_beta1: E,
    one_minus_beta2: E,
    /// lr / (1 − β₁ᵗ).
    rate: E,
    /// 1 / √(1 − β₂ᵗ).
    root_correction: E,
    eps: E,
    keep: E,
}

struct Update<'a, E> {
    c: Coefficients<E>,
    gradient: &'a [E],
    value: &'a mut [E],
    m: &'a mut [E],
    v: &'a mut [E],
}

impl<E: Element> Kernel for Update<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let c = self.c;
        let moments = self.m.iter_mut().zip(self.v.iter_mut());
        for ((value, &g), (m, v)) in self.value.iter_mut().zip(self.gradient).zip(moments) {
            let g = g * c.scale;
            *m = c.beta1.mul_add_in::<L>(*m, c.one_minus_beta1 * g);
            *v = c.beta2.mul_add_in::<L>(*v, c.one_minus_beta2 * g * g);
            let denominator = v.sqrt().mul_add_in::<L>(c.root_correction, c.eps);
            *value = *value * c.keep - c.rate * *m / denominator;
        }
    }
}

impl<E: Element> Optimizer<E> for Adam<E> {
    fn step(&mut self, gradients: &GradientSet<E>, args: &UpdateArgs) -> Result<()> {
        self.targets.check("Adam", gradients)?;
        self.steps += 1;
        let t = self.steps as f64;
        let config = &self.config;
        let e = E::from_f64;
        let c = Coefficients {
            scale: e(args.gradient_scale),
            beta1: e(config.beta1),
            beta2: e(config.beta2),
            one_minus_beta1: e(1.0 - config.beta1),
            one_minus_beta2: e(1.0 - config.beta2),
            rate: e(args.learning_rate / (1.0 - config.beta1.powf(t))),
            root_correction: e(1.0 / (1.0 - config.beta2.powf(t)).sqrt()),
            eps: e(config.eps),
            keep: e(1.0 - args.learning_rate * config.weight_decay),
        };
        let moments = self.m.iter_mut().zip(self.v.iter_mut());
        for ((parameter, gradient), (m, v)) in gradients.iter().zip(moments) {
            let (m, v) = (m.make_mut(), v.make_mut());
            parameter.update(|value| {
                let update = |value, gradient, m, v| dispatch(Update { c, gradient, value, m, v });
                if args.parallelism.is_parallel() && value.len() > CHUNK {
                    use rayon::prelude::*;
                    let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
                    let values = value.par_chunks_mut(CHUNK);
                    let gradients = gradient.as_slice().par_chunks(CHUNK);
                    values.zip(gradients).zip(moments).for_each(|((value, g), (m, v))| {
                        update(value, g, m, v);
                    });
                } else {
                    update(value, gradient.as_slice(), m, v);
                }
            });
        }
        Ok(())
    }

    fn state(&self) -> OptimizerState<E> {
        let named = |prefix: &'static str, tensors: &[Tensor<E>]| {
            let pairs = self.targets.names.iter().zip(tensors.to_vec());
            pairs.map(move |(name, t)| (format!("{prefix}.{name}"), t)).collect::<Vec<_>>()
        };
        let tensors = named("m", &self.m).into_iter().chain(named("v", &self.v)).collect();
        OptimizerState { kind: "adam", steps: self.steps, tensors }
    }

    fn load_state(&mut self, mut state: OptimizerState<E>) -> Result<()> {
        if state.kind != "adam" {
            let what = format!("optimiser state is of `{}`, this is `adam`", state.kind);
            return Err(NnError::State { what });
        }
        let m = take_moments(&mut state, "m", &self.targets.names, &self.m)?;
        let v = take_moments(&mut state, "v", &self.targets.names, &self.v)?;
        (self.m, self.v, self.steps) = (m, v, state.steps);
        Ok(())
    }
}
