//! What a backward pass returns.

use std::collections::HashMap;

use super::parameter::{Parameter, ParameterId};
use super::tape::NodeId;
use super::var::Var;
use crate::element::Element;
use crate::tensor::Tensor;

/// The gradients of one backward pass: of parameters and of variables.
#[derive(Debug)]
pub struct Gradients<E: Element = f32> {
    pub(crate) parameters: HashMap<ParameterId, Tensor<E>>,
    pub(crate) variables: HashMap<NodeId, Tensor<E>>,
}

impl<E: Element> Gradients<E> {
    /// The gradient of a parameter; `None` if the loss does not depend on it.
    pub fn of_parameter(&self, parameter: &Parameter<E>) -> Option<&Tensor<E>> {
        self.parameters.get(&parameter.id())
    }

    /// Takes the gradient of a parameter out.
    pub fn take_parameter(&mut self, parameter: &Parameter<E>) -> Option<Tensor<E>> {
        self.parameters.remove(&parameter.id())
    }

    /// The gradient of a variable made by
    /// [`Tape::variable`](crate::Tape::variable); `None` if the loss does not
    /// depend on it.
    pub fn of(&self, variable: &Var<E>) -> Option<&Tensor<E>> {
        variable.node.and_then(|id| self.variables.get(&id))
    }
}
