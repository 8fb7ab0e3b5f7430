//! Optimisers, and what they share: gradients in parameter order, clipping,
//! saved state.

mod adam;
mod gradients;
mod sgd;

pub use adam::{Adam, AdamConfig};
pub use gradients::GradientSet;
pub use sgd::{Sgd, SgdConfig};

use std::collections::BTreeMap;

use specialformer_tensor::{Element, Parallelism, ParameterId, Tensor};

use crate::error::{NnError, Result};
use crate::module::NamedParameters;

/// Number of elements of one unit of parallel work in an update.
const CHUNK: usize = 1 << 14;

/// What an update may use besides gradients.
#[derive(Debug, Clone, Copy)]
pub struct UpdateArgs {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Every gradient is multiplied by this first (clipping).
    pub gradient_scale: f64,
    /// How much parallelism to use. While an update waits for the rayon pool,
    /// its thread may run other jobs of that pool; those must not read the
    /// parameters (see [`Parameter::update`](specialformer_tensor::Parameter::update)).
    pub parallelism: Parallelism,
}

/// Changes parameters by their gradients.
pub trait Optimizer<E: Element = f32>: Send {
    /// One update of all trainable parameters.
    ///
    /// # Errors
    /// If the gradients belong to other parameters than the optimiser's.
    fn step(&mut self, gradients: &GradientSet<E>, args: &UpdateArgs) -> Result<()>;

    /// The state as named tensors (`m.<parameter>`, …) and counters.
    fn state(&self) -> OptimizerState<E>;

    /// Restores what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// If it belongs to another optimiser or other parameters.
    fn load_state(&mut self, state: OptimizerState<E>) -> Result<()>;
}

/// Saved state of an optimiser.
#[derive(Debug, Clone)]
pub struct OptimizerState<E: Element = f32> {
    /// The optimiser's name.
    pub kind: &'static str,
    /// Number of updates made.
    pub steps: u64,
    /// Named tensors.
    pub tensors: BTreeMap<String, Tensor<E>>,
}

/// The parameters that an optimiser was made for, in their order.
#[derive(Debug)]
struct Targets {
    names: Vec<String>,
    ids: Vec<ParameterId>,
}

impl Targets {
    /// The trainable parameters.
    fn of<E: Element>(parameters: &NamedParameters<E>) -> Self {
        let all = parameters.trainable();
        let (names, ids) = all.map(|(name, p)| (name.to_string(), p.id())).unzip();
        Self { names, ids }
    }

    /// Checks that the gradients are of these parameters, in their order: the
    /// moments of one must not change another.
    fn check<E: Element>(&self, optimizer: &str, gradients: &GradientSet<E>) -> Result<()> {
        let (own, got) = (self.ids.len(), gradients.len());
        if own != got {
            let what =
                format!("{optimizer} holds moments of {own} parameters, got {got} gradients");
            return Err(NnError::State { what });
        }
        let mut pairs = self.ids.iter().zip(gradients.iter());
        match pairs.position(|(&id, (parameter, _))| id != parameter.id()) {
            Some(i) => {
                let what = format!(
                    "{optimizer}: gradient {i} is not of its parameter `{}`",
                    self.names[i]
                );
                Err(NnError::State { what })
            }
            None => Ok(()),
        }
    }
}

/// Moment tensors of every trainable parameter, in their order.
fn zero_moments<E: Element>(parameters: &NamedParameters<E>) -> Vec<Tensor<E>> {
    parameters.trainable().map(|(_, parameter)| Tensor::zeros(parameter.shape())).collect()
}

/// Takes `<prefix>.<name>` for each name out of a state.
fn take_moments<E: Element>(
    state: &mut OptimizerState<E>,
    prefix: &str,
    names: &[String],
    current: &[Tensor<E>],
) -> Result<Vec<Tensor<E>>> {
    let mut taken = Vec::with_capacity(names.len());
    for (name, now) in names.iter().zip(current) {
        let key = format!("{prefix}.{name}");
        let tensor = state.tensors.remove(&key).ok_or_else(|| NnError::State {
            what: format!("optimiser state: `{key}` is missing"),
        })?;
        if tensor.shape() != now.shape() {
            return Err(NnError::State {
                what: format!(
                    "optimiser state: `{key}` has shape {}, the parameter {}",
                    tensor.shape(),
                    now.shape()
                ),
            });
        }
        taken.push(tensor);
    }
    Ok(taken)
}
