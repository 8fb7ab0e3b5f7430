//! [`Embedding`]: rows of a table.

use specialformer_tensor::{Element, Parameter, RngStream, Shape, Tensor, TokenIndex, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::init;
use crate::linear::Weight;
use crate::module::{Module, ParameterVisitor};

/// A table of vectors looked up by index. PyTorch: `torch.nn.Embedding`.
///
/// # Shapes
/// indices of any shape S → [S, C]; `weight` [V, C].
#[derive(Debug, Clone)]
pub struct Embedding<E: Element = f32> {
    weight: Weight<E>,
    count: usize,
    width: usize,
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
        Self::from_tensor(init::normal([count, width], std, rng))
    }

    /// A table with given values [V, C].
    ///
    /// # Errors
    /// [`NnError::Config`] if it has not two axes.
    pub fn from_tensor(weight: Tensor<E>) -> Result<Self> {
        Self::from_weight(Weight::Dense(Parameter::new(weight)))
    }

    /// A table over another kind of weight [V, C], e.g. a quantised one or one
    /// that is also a head's.
    ///
    /// # Errors
    /// [`NnError::Config`] if a dense weight has not two axes.
    pub fn from_weight(weight: Weight<E>) -> Result<Self> {
        let (count, width) = match &weight {
            Weight::Dense(parameter) if parameter.shape().rank() == 2 => {
                (parameter.shape()[0], parameter.shape()[1])
            }
            Weight::Dense(parameter) => {
                let shape = parameter.shape();
                return Err(NnError::config("Embedding", "weight", shape, "must be [V, C]"));
            }
            Weight::Operator(operator) => (operator.out_features(), operator.in_features()),
        };
        Ok(Self { weight, count, width })
    }

    /// The table.
    pub fn weight(&self) -> &Weight<E> {
        &self.weight
    }

    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Width of a vector.
    pub fn width(&self) -> usize {
        self.width
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
        match &self.weight {
            Weight::Dense(weight) => Ok(ctx.parameter(weight).embedding(indices, shape)?),
            Weight::Operator(operator) => {
                let indices: Vec<usize> = indices.iter().map(|index| index.index()).collect();
                operator.lookup(ctx, &indices, shape.into())
            }
        }
    }
}

impl<E: Element> Module<E> for Embedding<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        match &self.weight {
            Weight::Dense(weight) => visitor.parameter("weight", weight),
            Weight::Operator(operator) => visitor.module("weight", operator.as_ref()),
        }
    }
}
