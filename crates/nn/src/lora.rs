//! Low-rank adaptation (LoRA; Hu et al. 2021), of one task or of several.

use specialformer_tensor::{Element, Parameter, RngStream, Tape, Tensor, Var};

use crate::adapter::pick;
use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::init;
use crate::linear::{Weight, WeightOperator};
use crate::module::{Module, ParameterVisitor};

/// A matrix with a low-rank change: y = x·Wᵀ + (α/R)·(x·Aᵀ)·Bᵀ. B starts at
/// zero, so that it changes nothing at first.
///
/// # Shapes
/// x [..., in] → [..., out]; `base` W [out, in], `lora_a` A [R, in], `lora_b`
/// B [out, R].
///
/// ```
/// use specialformer_nn::{Linear, Lora, NamedParameters, Weight};
/// use specialformer_tensor::Seed;
/// use std::sync::Arc;
/// let mut rng = Seed::new(1).stream("init");
/// let mut layer = Linear::<f32>::new(8, 4, true, &mut rng)?;
/// let lora = Lora::new(layer.weight(), 2, 4.0, &mut rng)?;
/// layer.set_weight(Weight::Operator(Arc::new(lora)))?;
/// let parameters = NamedParameters::of(&layer);
/// let names: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["weight.base", "weight.lora_a", "weight.lora_b", "bias"]);
/// # Ok::<(), specialformer_nn::NnError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Lora<E: Element = f32> {
    base: Parameter<E>,
    a: Parameter<E>,
    b: Parameter<E>,
    scale: f64,
}

impl<E: Element> Lora<E> {
    /// A change of rank `rank` and strength `alpha` to a dense weight, which
    /// stays the same parameter.
    ///
    /// # Errors
    /// [`NnError::Config`] if the weight is no dense matrix, or the rank not in
    /// 1..=min(out, in).
    pub fn new(weight: &Weight<E>, rank: usize, alpha: f64, rng: &mut RngStream) -> Result<Self> {
        let (base, out, input) = check("Lora", weight, rank, alpha)?;
        Ok(Self {
            base,
            a: Parameter::new(init::linear_default([rank, input], input, rng)),
            b: Parameter::new(Tensor::zeros([out, rank])),
            scale: alpha / rank as f64,
        })
    }

    /// The dense weight W + (α/R)·B·A.
    ///
    /// # Errors
    /// As [`WeightOperator::to_dense`].
    pub fn merge(&self) -> Result<Weight<E>> {
        Ok(Weight::Dense(Parameter::new(self.to_dense()?)))
    }
}

/// W + scale·B·A.
fn merged<E: Element>(
    base: Tensor<E>,
    a: Tensor<E>,
    b: Tensor<E>,
    scale: f64,
) -> Result<Tensor<E>> {
    let tape = Tape::no_grad();
    let change = tape.constant(b).matmul(&tape.constant(a))?.scale(E::from_f64(scale))?;
    Ok(tape.constant(base).add(&change)?.into_value())
}

fn check<E: Element>(
    layer: &'static str,
    weight: &Weight<E>,
    rank: usize,
    alpha: f64,
) -> Result<(Parameter<E>, usize, usize)> {
    let Weight::Dense(base) = weight else {
        return Err(NnError::config(layer, "weight", "an operator", "must be dense"));
    };
    let &[out, input] = &*base.shape() else {
        return Err(NnError::config(layer, "weight", base.shape(), "must be [out, in]"));
    };
    if rank == 0 || rank > out.min(input) {
        let reason = format!("must be in 1..={} for a weight [{out}, {input}]", out.min(input));
        return Err(NnError::config(layer, "rank", rank, reason));
    }
    if !(alpha.is_finite() && alpha != 0.0) {
        return Err(NnError::config(layer, "alpha", alpha, "must be finite and not 0"));
    }
    Ok((base.clone(), out, input))
}

impl<E: Element> WeightOperator<E> for Lora<E> {
    fn in_features(&self) -> usize {
        self.base.shape()[1]
    }

    fn out_features(&self) -> usize {
        self.base.shape()[0]
    }

    fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, bias: Option<&Var<E>>) -> Result<Var<E>> {
        let y = x.linear(&ctx.parameter(&self.base), bias)?;
        let low = x.linear(&ctx.parameter(&self.a), None)?.scale(E::from_f64(self.scale))?;
        Ok(y.add(&low.linear(&ctx.parameter(&self.b), None)?)?)
    }

    fn to_dense(&self) -> Result<Tensor<E>> {
        merged(self.base.value(), self.a.value(), self.b.value(), self.scale)
    }
}

impl<E: Element> Module<E> for Lora<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("base", &self.base);
        visitor.parameter("lora_a", &self.a);
        visitor.parameter("lora_b", &self.b);
    }
}

/// A matrix with a low-rank change of each task's own:
/// y = x·Wᵀ + (α/R)·(x·A\[s\]ᵀ)·B\[s\]ᵀ for the tokens of rows of task s (see
/// [`Ctx::with_tasks`]), and x·Wᵀ for rows of no task.
///
/// # Shapes
/// x [B, ..., in] → [B, ..., out]; `base` W [out, in], `lora_a` [S, R, in],
/// `lora_b` [S, out, R] for S tasks.
#[derive(Debug, Clone)]
pub struct LoraBank<E: Element = f32> {
    base: Parameter<E>,
    a: Parameter<E>,
    b: Parameter<E>,
    scale: f64,
}

impl<E: Element> LoraBank<E> {
    /// Changes of `tasks` tasks to a dense weight, which stays the same
    /// parameter.
    ///
    /// # Errors
    /// As [`Lora::new`], and if there is no task.
    pub fn new(
        weight: &Weight<E>,
        tasks: usize,
        rank: usize,
        alpha: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        if tasks == 0 {
            return Err(NnError::config("LoraBank", "tasks", tasks, "must be positive"));
        }
        let (base, out, input) = check("LoraBank", weight, rank, alpha)?;
        Ok(Self {
            base,
            a: Parameter::new(init::linear_default([tasks, rank, input], input, rng)),
            b: Parameter::new(Tensor::zeros([tasks, out, rank])),
            scale: alpha / rank as f64,
        })
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.a.shape()[0]
    }

    /// The change of one task alone, with copies of its A and B and the same
    /// base.
    ///
    /// # Errors
    /// [`NnError::Config`] if there is no such task.
    pub fn task(&self, task: usize) -> Result<Lora<E>> {
        Ok(Lora {
            base: self.base.clone(),
            a: Parameter::new(pick(&self.a.value(), task)?),
            b: Parameter::new(pick(&self.b.value(), task)?),
            scale: self.scale,
        })
    }
}

impl<E: Element> WeightOperator<E> for LoraBank<E> {
    fn in_features(&self) -> usize {
        self.base.shape()[1]
    }

    fn out_features(&self) -> usize {
        self.base.shape()[0]
    }

    fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, bias: Option<&Var<E>>) -> Result<Var<E>> {
        let y = x.linear(&ctx.parameter(&self.base), bias)?;
        let Some(tasks) = ctx.tasks() else {
            return Ok(y);
        };
        let change = tasks.apply(x, |x, segments| {
            let low = x.segment_linear(&ctx.parameter(&self.a), None, segments)?;
            let low = low.scale(E::from_f64(self.scale))?;
            Ok(low.segment_linear(&ctx.parameter(&self.b), None, segments)?)
        })?;
        Ok(y.add(&change)?)
    }

    /// The matrix of rows of no task; [`LoraBank::task`] has the others.
    fn to_dense(&self) -> Result<Tensor<E>> {
        Ok(self.base.value())
    }
}

impl<E: Element> Module<E> for LoraBank<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("base", &self.base);
        visitor.parameter("lora_a", &self.a);
        visitor.parameter("lora_b", &self.b);
    }
}
