//! [`TaskLinear`]: a linear layer of each task's own.

use specialformer_tensor::{Element, Parameter, RngStream, Segments, Tensor, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::init;
use crate::module::{Module, ParameterVisitor};

/// y = W\[s\]·x + b\[s\] for the tokens of rows of task s: linear layers of
/// several tasks as one stack, applied to a batch of mixed tasks as one
/// product over segments.
///
/// # Shapes
/// x [B, ..., in] → [B, ..., out]; `weight` [S, out, in], `bias` [S, out] for
/// S tasks.
#[derive(Debug, Clone)]
pub struct TaskLinear<E: Element = f32> {
    weight: Parameter<E>,
    bias: Option<Parameter<E>>,
}

impl<E: Element> TaskLinear<E> {
    /// Layers with weights and biases uniform in ±1/√in.
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn new(
        tasks: usize,
        in_features: usize,
        out_features: usize,
        bias: bool,
        rng: &mut RngStream,
    ) -> Result<Self> {
        check_sizes("TaskLinear", tasks, in_features, out_features)?;
        let weight = init::linear_default([tasks, out_features, in_features], in_features, rng);
        let bias = bias.then(|| init::linear_default([tasks, out_features], in_features, rng));
        Ok(Self { weight: Parameter::new(weight), bias: bias.map(Parameter::new) })
    }

    /// Layers that start at zero.
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn zeros(
        tasks: usize,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Self> {
        check_sizes("TaskLinear", tasks, in_features, out_features)?;
        let weight = Parameter::new(Tensor::zeros([tasks, out_features, in_features]));
        let bias = bias.then(|| Parameter::new(Tensor::zeros([tasks, out_features])));
        Ok(Self { weight, bias })
    }

    /// Number of tasks S.
    pub fn tasks(&self) -> usize {
        self.weight.shape()[0]
    }

    /// The weights [S, out, in].
    pub fn weight(&self) -> &Parameter<E> {
        &self.weight
    }

    /// The biases [S, out], if there are any.
    pub fn bias(&self) -> Option<&Parameter<E>> {
        self.bias.as_ref()
    }

    /// Applies each task's layer to its segment of `x` [N, in].
    ///
    /// # Errors
    /// If the shapes or the number of segments do not fit.
    pub fn forward_segments(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        segments: &Segments,
    ) -> Result<Var<E>> {
        let bias = self.bias.as_ref().map(|bias| ctx.parameter(bias));
        Ok(x.segment_linear(&ctx.parameter(&self.weight), bias.as_ref(), segments)?)
    }
}

impl<E: Element> Module<E> for TaskLinear<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.weight);
        if let Some(bias) = &self.bias {
            visitor.parameter("bias", bias);
        }
    }
}

fn check_sizes(
    layer: &'static str,
    tasks: usize,
    in_features: usize,
    out_features: usize,
) -> Result<()> {
    let sizes = [("tasks", tasks), ("in_features", in_features), ("out_features", out_features)];
    match sizes.into_iter().find(|(_, size)| *size == 0) {
        Some((field, _)) => Err(NnError::config(layer, field, 0, "must be positive")),
        None => Ok(()),
    }
}
