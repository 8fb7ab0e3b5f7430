//! Gradients of all trainable parameters, in parameter order.

use specialformer_tensor::{Element, Gradients, Parallelism, Parameter, Tensor};

use crate::error::{NnError, Result};
use crate::module::NamedParameters;
use crate::optim::CHUNK;

/// That a parameter has no gradient is an error.
fn missing<E: Element>(name: &str, parameter: &Parameter<E>) -> Result<Tensor<E>> {
    Err(NnError::MissingGradient { name: name.to_string(), shape: parameter.shape() })
}

/// One gradient for each trainable parameter of a model.
#[derive(Debug)]
pub struct GradientSet<E: Element = f32> {
    entries: Vec<(Parameter<E>, Tensor<E>)>,
}

impl<E: Element> GradientSet<E> {
    /// Adds up the gradients of several shards of a batch, in shard order, so
    /// that the sum does not depend on which finished first.
    ///
    /// # Errors
    /// [`NnError::MissingGradient`] for a trainable parameter that no shard
    /// has a gradient of.
    pub fn sum(
        parameters: &NamedParameters<E>,
        shards: Vec<Gradients<E>>,
        parallelism: Parallelism,
    ) -> Result<Self> {
        Self::sum_with(parameters, shards, parallelism, missing)
    }

    /// [`GradientSet::sum`], with a gradient of zero where no shard has one:
    /// for models of several tasks with parameters of their own, of which a
    /// batch need not hold all.
    pub fn sum_or_zero(
        parameters: &NamedParameters<E>,
        shards: Vec<Gradients<E>>,
        parallelism: Parallelism,
    ) -> Self {
        let sum = Self::sum_with(parameters, shards, parallelism, |_, parameter| {
            Ok(Tensor::zeros(parameter.shape()))
        });
        sum.expect("every missing gradient is replaced")
    }

    fn sum_with(
        parameters: &NamedParameters<E>,
        mut shards: Vec<Gradients<E>>,
        parallelism: Parallelism,
        missing: impl Fn(&str, &Parameter<E>) -> Result<Tensor<E>>,
    ) -> Result<Self> {
        let mut entries = Vec::with_capacity(parameters.len());
        for (name, parameter) in parameters.trainable() {
            let mut parts = shards.iter_mut().filter_map(|shard| shard.take_parameter(parameter));
            let mut sum = parts.next().map_or_else(|| missing(name, parameter), Ok)?;
            for part in parts {
                let part = part.as_slice();
                parallelism.for_each_chunk(sum.make_mut(), CHUNK, |i, out| {
                    for (s, v) in out.iter_mut().zip(&part[i * CHUNK..]) {
                        *s += *v;
                    }
                });
            }
            entries.push((parameter.clone(), sum));
        }
        Ok(Self { entries })
    }

    /// One tensor for each trainable parameter, in their order.
    ///
    /// # Errors
    /// [`NnError::MissingGradient`] for one that is `None`; [`NnError::State`]
    /// if there are more or fewer than parameters, or one has another shape.
    pub fn from_tensors(
        parameters: &NamedParameters<E>,
        tensors: Vec<Option<Tensor<E>>>,
    ) -> Result<Self> {
        Self::from_tensors_with(parameters, tensors, missing)
    }

    /// [`GradientSet::from_tensors`], with zeros for `None`.
    ///
    /// # Errors
    /// [`NnError::State`] as there.
    pub fn from_tensors_or_zero(
        parameters: &NamedParameters<E>,
        tensors: Vec<Option<Tensor<E>>>,
    ) -> Result<Self> {
        Self::from_tensors_with(parameters, tensors, |_, parameter| {
            Ok(Tensor::zeros(parameter.shape()))
        })
    }

    fn from_tensors_with(
        parameters: &NamedParameters<E>,
        tensors: Vec<Option<Tensor<E>>>,
        missing: impl Fn(&str, &Parameter<E>) -> Result<Tensor<E>>,
    ) -> Result<Self> {
        let (own, got) = (parameters.trainable().count(), tensors.len());
        if own != got {
            let what = format!("{got} gradients for {own} trainable parameters");
            return Err(NnError::State { what });
        }
        let mut entries = Vec::with_capacity(own);
        for ((name, parameter), tensor) in parameters.trainable().zip(tensors) {
            let tensor = tensor.map_or_else(|| missing(name, parameter), Ok)?;
            let (own, got) = (parameter.shape(), tensor.shape());
            if own != got {
                let what = format!("the gradient of `{name}` {own} has shape {got}");
                return Err(NnError::State { what });
            }
            entries.push((parameter.clone(), tensor));
        }
        Ok(Self { entries })
    }

    /// Parameters with their gradients.
    pub fn iter(&self) -> impl Iterator<Item = (&Parameter<E>, &Tensor<E>)> {
        self.entries.iter().map(|(parameter, gradient)| (parameter, gradient))
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds another set of the same parameters (gradient accumulation).
    ///
    /// # Errors
    /// [`NnError::State`] if the parameters differ.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        let same = self.len() == other.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| a.0.id() == b.0.id());
        if !same {
            return Err(NnError::State { what: "gradients of different parameters".into() });
        }
        for ((_, sum), (_, part)) in self.entries.iter_mut().zip(&other.entries) {
            for (s, v) in sum.make_mut().iter_mut().zip(part.as_slice()) {
                *s += *v;
            }
        }
        Ok(())
    }

    /// The global norm √Σg² over all parameters, accumulated in f64 in an order
    /// that does not depend on the number of threads.
    pub fn norm(&self, parallelism: Parallelism) -> f64 {
        let square = |chunk: &[E]| {
            // Eight lanes: vectorisable, and the same order everywhere.
            let mut lanes = [0.0f64; 8];
            let mut exact = chunk.chunks_exact(8);
            for eight in &mut exact {
                for (lane, v) in lanes.iter_mut().zip(eight) {
                    *lane += v.to_f64() * v.to_f64();
                }
            }
            let tail: f64 = exact.remainder().iter().map(|v| v.to_f64() * v.to_f64()).sum();
            lanes.iter().sum::<f64>() + tail
        };
        let of_one = |gradient: &Tensor<E>| {
            let values = gradient.as_slice();
            let mut parts = vec![0.0; values.len().div_ceil(CHUNK)];
            parallelism.for_each_chunk(&mut parts, 1, |i, part| {
                let end = values.len().min((i + 1) * CHUNK);
                part[0] = square(&values[i * CHUNK..end]);
            });
            parts.iter().sum::<f64>()
        };
        self.iter().map(|(_, gradient)| of_one(gradient)).sum::<f64>().sqrt()
    }

    /// The factor that brings the global norm down to `max_norm` (1 if it is
    /// below). PyTorch: `clip_grad_norm_`, which adds 1e-6 to the norm.
    pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
        (max_norm / (norm + 1e-6)).min(1.0)
    }
}
