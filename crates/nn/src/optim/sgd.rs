//! Stochastic gradient descent.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{Element, Tensor};

use crate::error::{NnError, Result};
use crate::module::NamedParameters;
use crate::optim::{
    CHUNK, GradientSet, Optimizer, OptimizerState, Targets, UpdateArgs, take_moments, zero_moments,
};

/// Settings of [`Sgd`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Momentum μ: u ← μu + g. 0 is plain descent.
    pub momentum: f64,
    /// L2 penalty: g ← g + decay·θ.
    pub weight_decay: f64,
}

/// θ ← θ − lr·u with u ← μu + g. PyTorch: `torch.optim.SGD`.
#[derive(Debug)]
pub struct Sgd<E: Element = f32> {
    config: SgdConfig,
    targets: Targets,
    velocity: Vec<Tensor<E>>,
    steps: u64,
}

impl<E: Element> Sgd<E> {
    /// An optimiser of the trainable parameters.
    ///
    /// # Errors
    /// [`NnError::Config`] if a setting is outside its range.
    pub fn new(config: SgdConfig, parameters: &NamedParameters<E>) -> Result<Self> {
        if !(0.0..1.0).contains(&config.momentum) {
            return Err(NnError::config("Sgd", "momentum", config.momentum, "must be in [0, 1)"));
        }
        if !(config.weight_decay >= 0.0 && config.weight_decay.is_finite()) {
            let value = config.weight_decay;
            return Err(NnError::config("Sgd", "weight_decay", value, "must not be negative"));
        }
        Ok(Self {
            config,
            targets: Targets::of(parameters),
            velocity: zero_moments(parameters),
            steps: 0,
        })
    }
}

impl<E: Element> Optimizer<E> for Sgd<E> {
    fn step(&mut self, gradients: &GradientSet<E>, args: &UpdateArgs) -> Result<()> {
        self.targets.check("Sgd", gradients)?;
        self.steps += 1;
        let e = E::from_f64;
        let (rate, scale) = (e(args.learning_rate), e(args.gradient_scale));
        let (momentum, decay) = (e(self.config.momentum), e(self.config.weight_decay));
        for ((parameter, gradient), velocity) in gradients.iter().zip(&mut self.velocity) {
            let (velocity, gradient) = (velocity.make_mut(), gradient.as_slice());
            parameter.update(|value| {
                args.parallelism.for_each_chunk_pair(
                    (value, CHUNK),
                    (velocity, CHUNK),
                    |i, value, velocity| {
                        let gradient = &gradient[i * CHUNK..];
                        for ((x, &g), u) in value.iter_mut().zip(gradient).zip(velocity) {
                            *u = momentum * *u + g * scale + decay * *x;
                            *x -= rate * *u;
                        }
                    },
                );
            });
        }
        Ok(())
    }

    fn state(&self) -> OptimizerState<E> {
        let pairs = self.targets.names.iter().zip(&self.velocity);
        let tensors = pairs.map(|(name, t)| (format!("velocity.{name}"), t.clone())).collect();
        OptimizerState { kind: "sgd", steps: self.steps, tensors }
    }

    fn load_state(&mut self, mut state: OptimizerState<E>) -> Result<()> {
        if state.kind != "sgd" {
            let what = format!("optimiser state is of `{}`, this is `sgd`", state.kind);
            return Err(NnError::State { what });
        }
        let names = &self.targets.names;
        self.velocity = take_moments(&mut state, "velocity", names, &self.velocity)?;
        self.steps = state.steps;
        Ok(())
    }
}
