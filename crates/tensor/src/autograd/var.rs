//! [`Var`]: a tensor on a tape.

use super::tape::{NodeId, Tape};
use crate::element::Element;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// A tensor on a [`Tape`], on which differentiable operations are methods.
///
/// A `Var` that depends on no parameter and no variable is a plain constant:
/// operations on constants compute and record nothing.
#[derive(Debug, Clone)]
pub struct Var<E: Element = f32> {
    pub(crate) value: Tensor<E>,
    pub(crate) node: Option<NodeId>,
    pub(crate) tape: Tape<E>,
}

impl<E: Element> Var<E> {
    /// The value.
    pub fn value(&self) -> &Tensor<E> {
        &self.value
    }

    /// The value, without the tape.
    pub fn into_value(self) -> Tensor<E> {
        self.value
    }

    /// The shape of the value.
    pub fn shape(&self) -> Shape {
        self.value.shape()
    }

    /// The tape this variable is on.
    pub fn tape(&self) -> &Tape<E> {
        &self.tape
    }

    /// True if a gradient flows to this variable.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    /// The same value as a constant: no gradient flows through it.
    pub fn detach(&self) -> Self {
        Self { value: self.value.clone(), node: None, tape: self.tape.clone() }
    }
}
