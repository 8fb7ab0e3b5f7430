//! [`Embedding`]: rows of a table.

use specialformer_tensor::{Element, Parameter, RngStream, Shape, Tensor, TokenIndex, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::init;
use crate::module::{Module, ParameterVisitor};

/// A table of vectors looked up by index. PyTorch: `torch.nn.Embedding`.
///
/// # Shapes
/// indices of any shape S → [S, C]; `weight` [V, C].
#[derive(Debug, Clone)]
pub struct Embedding<E: Element = f32> {
    weight: Parameter<E>,
}

impl<E: Element> Embedding<E> {
    /// A table of `count` vectors, normal with standard deviation `std`
    /// (PyTorch's default is 1).
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn new(count: usize, width: usize, std: f64, rng: &mut RngStream) -> Result<Self> {
        for (field, value) in [("count", count), ("width", width)] {
            if value == 0 {
                return Err(NnError::config("Embedding", field, value, "must be positive"));
            }
        }
        Ok(Self { weight: Parameter::new(init::normal([count, width], std, rng)) })
    }

    /// A table with given values [V, C].
    ///
    /// # Errors
    /// [`NnError::Config`] if it has not two axes.
    pub fn from_tensor(weight: Tensor<E>) -> Result<Self> {
        if weight.shape().rank() != 2 {
            return Err(NnError::config("Embedding", "weight", weight.shape(), "must be [V, C]"));
        }
        Ok(Self { weight: Parameter::new(weight) })
    }

    /// The table.
    pub fn weight(&self) -> &Parameter<E> {
        &self.weight
    }

    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Width of a vector.
    pub fn width(&self) -> usize {
        self.weight.shape()[1]
    }

    /// The vectors of `indices`, which stand in `shape`.
    ///
    /// # Errors
    /// If an index is out of range or there are not as many as `shape` says.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        indices: &[impl TokenIndex],
        shape: impl Into<Shape>,
    ) -> Result<Var<E>> {
        Ok(ctx.parameter(&self.weight).embedding(indices, shape)?)
    }
}

impl<E: Element> Module<E> for Embedding<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.weight);
    }
}
