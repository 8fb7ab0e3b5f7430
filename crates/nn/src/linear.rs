//! [`Linear`] over a [`Weight`].

use std::fmt;
use std::sync::Arc;

use specialformer_tensor::{Element, Parameter, RngStream, Shape, Tensor, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::init;
use crate::module::{Module, ParameterVisitor};

/// A linear map that is not a plain matrix: low-rank, factored, quantised, …
///
/// This is how other crates give [`Linear`] another kind of weight without a
/// second linear layer.
pub trait WeightOperator<E: Element = f32>: Module<E> + fmt::Debug + Send + Sync {
    /// Number of inputs.
    fn in_features(&self) -> usize;
    /// Number of outputs.
    fn out_features(&self) -> usize;
    /// y = x·Wᵀ + b for x [..., in].
    ///
    /// # Errors
    /// If `x` has another width.
    fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, bias: Option<&Var<E>>) -> Result<Var<E>>;
    /// The matrix W [out, in] that this operator stands for.
    ///
    /// # Errors
    /// If it cannot be computed.
    fn to_dense(&self) -> Result<Tensor<E>>;
    /// Rows of W by index, for an [`Embedding`](crate::Embedding): indices of
    /// shape S → [S, in].
    ///
    /// Unless an operator says otherwise, rows of [`WeightOperator::to_dense`],
    /// without gradient.
    ///
    /// # Errors
    /// If an index is out of range or there are not as many as `shape` says.
    fn lookup(&self, ctx: &Ctx<E>, indices: &[usize], shape: Shape) -> Result<Var<E>> {
        Ok(ctx.constant(self.to_dense()?).embedding(indices, shape)?)
    }
}

/// The weight of a [`Linear`].
#[derive(Debug, Clone)]
pub enum Weight<E: Element = f32> {
    /// A matrix [out, in].
    Dense(Parameter<E>),
    /// Something that acts like one.
    Operator(Arc<dyn WeightOperator<E>>),
}

impl<E: Element> Weight<E> {
    /// The matrix, if it is a plain one.
    pub fn dense(&self) -> Option<&Parameter<E>> {
        match self {
            Self::Dense(parameter) => Some(parameter),
            Self::Operator(_) => None,
        }
    }
}

/// y = x·Wᵀ + b. PyTorch: `torch.nn.Linear`.
///
/// # Shapes
/// x [..., in] → [..., out]; `weight` [out, in], `bias` \[out\].
#[derive(Debug, Clone)]
pub struct Linear<E: Element = f32> {
    weight: Weight<E>,
    bias: Option<Parameter<E>>,
    in_features: usize,
    out_features: usize,
}

impl<E: Element> Linear<E> {
    /// A dense layer with weights and bias uniform in ±1/√in.
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn new(
        in_features: usize,
        out_features: usize,
        bias: bool,
        rng: &mut RngStream,
    ) -> Result<Self> {
        for (field, value) in [("in_features", in_features), ("out_features", out_features)] {
            if value == 0 {
                return Err(NnError::config("Linear", field, value, "must be positive"));
            }
        }
        let weight = init::linear_default([out_features, in_features], in_features, rng);
        let bias = bias.then(|| init::linear_default(out_features, in_features, rng));
        Self::from_tensors(weight, bias)
    }

    /// A dense layer with given values: `weight` [out, in], `bias` \[out\].
    ///
    /// # Errors
    /// [`NnError::Config`] if the shapes do not fit.
    pub fn from_tensors(weight: Tensor<E>, bias: Option<Tensor<E>>) -> Result<Self> {
        let shape = weight.shape();
        if shape.rank() != 2 {
            return Err(NnError::config("Linear", "weight", shape, "must be [out, in]"));
        }
        if let Some(bias) = bias.as_ref().filter(|b| *b.shape() != [shape[0]]) {
            let reason = format!("must be [{}]", shape[0]);
            return Err(NnError::config("Linear", "bias", bias.shape(), reason));
        }
        Ok(Self {
            in_features: shape[1],
            out_features: shape[0],
            weight: Weight::Dense(Parameter::new(weight)),
            bias: bias.map(Parameter::new),
        })
    }

    /// A layer over another kind of weight.
    ///
    /// # Errors
    /// [`NnError::Config`] if the bias does not fit.
    pub fn from_weight(weight: Weight<E>, bias: Option<Parameter<E>>) -> Result<Self> {
        let (out_features, in_features) = match &weight {
            Weight::Dense(parameter) if parameter.shape().rank() == 2 => {
                (parameter.shape()[0], parameter.shape()[1])
            }
            Weight::Dense(parameter) => {
                let shape = parameter.shape();
                return Err(NnError::config("Linear", "weight", shape, "must be [out, in]"));
            }
            Weight::Operator(operator) => (operator.out_features(), operator.in_features()),
        };
        if let Some(bias) = bias.as_ref().filter(|b| *b.shape() != [out_features]) {
            let reason = format!("must be [{out_features}]");
            return Err(NnError::config("Linear", "bias", bias.shape(), reason));
        }
        Ok(Self { weight, bias, in_features, out_features })
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The weight.
    pub fn weight(&self) -> &Weight<E> {
        &self.weight
    }

    /// The bias, if there is one.
    pub fn bias(&self) -> Option<&Parameter<E>> {
        self.bias.as_ref()
    }

    /// Replaces the weight by another of the same size, e.g. an adapted one.
    ///
    /// # Errors
    /// [`NnError::Config`] if the sizes differ.
    pub fn set_weight(&mut self, weight: Weight<E>) -> Result<()> {
        let new = Self::from_weight(weight, self.bias.clone())?;
        if (new.in_features, new.out_features) != (self.in_features, self.out_features) {
            let value = format!("[{}, {}]", new.out_features, new.in_features);
            let reason = format!("must stay [{}, {}]", self.out_features, self.in_features);
            return Err(NnError::config("Linear", "weight", value, reason));
        }
        *self = new;
        Ok(())
    }

    /// y = x·Wᵀ + b.
    ///
    /// # Errors
    /// If `x` is not [..., in].
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let bias = self.bias.as_ref().map(|bias| ctx.parameter(bias));
        match &self.weight {
            Weight::Dense(weight) => Ok(x.linear(&ctx.parameter(weight), bias.as_ref())?),
            Weight::Operator(operator) => operator.forward(ctx, x, bias.as_ref()),
        }
    }

    /// The first `outputs` of the outputs, made of the first `inputs` of the
    /// inputs: what a layer of that part of the weight would give. The rest of
    /// the weight gets a gradient of exactly zero.
    ///
    /// # Shapes
    /// x [..., `inputs`] → [..., `outputs`].
    ///
    /// # Errors
    /// If x does not fit, the layer is smaller, or its weight is no matrix.
    pub fn forward_part(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        inputs: usize,
        outputs: usize,
    ) -> Result<Var<E>> {
        if (inputs, outputs) == (self.in_features, self.out_features) {
            return self.forward(ctx, x);
        }
        let Weight::Dense(weight) = &self.weight else {
            let reason = "parts are of dense weights";
            return Err(NnError::config("Linear", "outputs", outputs, reason));
        };
        let mut weight = ctx.parameter(weight);
        if outputs != self.out_features {
            weight = weight.slice(0, 0..outputs)?;
        }
        if inputs != self.in_features {
            weight = weight.slice(1, 0..inputs)?;
        }
        let bias = self.bias.as_ref().map(|bias| ctx.parameter(bias).slice(0, 0..outputs));
        Ok(x.linear(&weight, bias.transpose()?.as_ref())?)
    }
}

impl<E: Element> Module<E> for Linear<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        match &self.weight {
            Weight::Dense(weight) => visitor.parameter("weight", weight),
            Weight::Operator(operator) => visitor.module("weight", operator.as_ref()),
        }
        if let Some(bias) = &self.bias {
            visitor.parameter("bias", bias);
        }
    }
}
