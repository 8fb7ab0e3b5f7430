//! The same elements under another shape.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

struct Reshape {
    from: Shape,
}

impl<E: Element> Op<E, 1> for Reshape {
    const NAME: &'static str = "reshape";

    fn backward(&self, _: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        Ok([Grad::Value(grad.reshape(self.from)?)])
    }
}

impl<E: Element> Var<E> {
    /// The same elements under another shape, sharing memory.
    ///
    /// # Errors
    /// [`TensorError::BadShape`](crate::TensorError::BadShape) if the number
    /// of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let y = self.value().reshape(shape)?;
        let from = self.shape();
        self.tape().apply([self], y, || Reshape { from })
    }
}
