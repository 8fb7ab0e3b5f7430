//! Bottleneck adapters, of one task or of several.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{Element, RngStream, Tensor, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::feed_forward::Activation;
use crate::linear::Linear;
use crate::module::{Module, ParameterVisitor};
use crate::task_linear::TaskLinear;

/// What an adapter reads, when it stands beside a layer f.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterPlacement {
    /// The layer's output: f(x) + adapter(f(x)) (Houlsby et al. 2019).
    #[default]
    Sequential,
    /// The layer's input: f(x) + adapter(x) (He et al. 2022).
    Parallel,
}

impl AdapterPlacement {
    /// Which of a layer's two ends the adapter reads.
    fn reads<'a, T>(self, input: &'a T, output: &'a T) -> &'a T {
        match self {
            Self::Sequential => output,
            Self::Parallel => input,
        }
    }
}

/// A bottleneck adapter: up(activation(down(x))), to be added to a layer's
/// output. The up projection starts at zero, so that it changes nothing at
/// first.
///
/// # Shapes
/// [..., C] → [..., C] through R; `down.weight` [R, C], `up.weight` [C, R],
/// both with a bias.
///
/// ```
/// use specialformer_nn::{Activation, Adapter, AdapterPlacement, Ctx};
/// use specialformer_tensor::{Seed, Tensor};
/// let adapter = Adapter::<f32>::new(8, 2, Activation::Gelu, &mut Seed::new(1).stream("init"))?;
/// let ctx = Ctx::eval();
/// let (x, y) = (ctx.constant(Tensor::ones([3, 8])), ctx.constant(Tensor::zeros([3, 8])));
/// let adapted = adapter.forward(&ctx, AdapterPlacement::Parallel, &x, &y)?;
/// assert_eq!(adapted.value().as_slice(), y.value().as_slice());
/// # Ok::<(), specialformer_nn::NnError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Adapter<E: Element = f32> {
    activation: Activation,
    down: Linear<E>,
    up: Linear<E>,
}

impl<E: Element> Adapter<E> {
    /// An adapter for vectors of `width` through `bottleneck` numbers.
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn new(
        width: usize,
        bottleneck: usize,
        activation: Activation,
        rng: &mut RngStream,
    ) -> Result<Self> {
        check_sizes("Adapter", width, bottleneck)?;
        let down = Linear::new(width, bottleneck, true, rng)?;
        let up =
            Linear::from_tensors(Tensor::zeros([width, bottleneck]), Some(Tensor::zeros([width])))?;
        Ok(Self { activation, down, up })
    }

    /// What the adapter adds: up(activation(down(x))).
    ///
    /// # Errors
    /// If the width differs.
    pub fn change(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        self.up.forward(ctx, &self.activation.apply(&self.down.forward(ctx, x)?)?)
    }

    /// The adapted output of a layer that maps `input` to `output`.
    ///
    /// # Errors
    /// If the width differs.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        placement: AdapterPlacement,
        input: &Var<E>,
        output: &Var<E>,
    ) -> Result<Var<E>> {
        Ok(output.add(&self.change(ctx, placement.reads(input, output))?)?)
    }
}

impl<E: Element> Module<E> for Adapter<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("down", &self.down);
        visitor.module("up", &self.up);
    }
}

/// An [`Adapter`] for each of several tasks. Rows of a batch use that of
/// their task (see [`Ctx::with_tasks`]); rows of no task pass unchanged.
///
/// # Shapes
/// [B, ..., C] → [B, ..., C]; `down.weight` [S, R, C], `down.bias` [S, R],
/// `up.weight` [S, C, R], `up.bias` [S, C] for S tasks.
#[derive(Debug, Clone)]
pub struct AdapterBank<E: Element = f32> {
    activation: Activation,
    down: TaskLinear<E>,
    up: TaskLinear<E>,
}

impl<E: Element> AdapterBank<E> {
    /// Adapters of `tasks` tasks.
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn new(
        tasks: usize,
        width: usize,
        bottleneck: usize,
        activation: Activation,
        rng: &mut RngStream,
    ) -> Result<Self> {
        check_sizes("AdapterBank", width, bottleneck)?;
        let down = TaskLinear::new(tasks, width, bottleneck, true, rng)?;
        let up = TaskLinear::zeros(tasks, bottleneck, width, true)?;
        Ok(Self { activation, down, up })
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.down.tasks()
    }

    /// The adapter of one task, with copies of its weights.
    ///
    /// # Errors
    /// [`NnError::Config`] if there is no such task.
    pub fn task(&self, task: usize) -> Result<Adapter<E>> {
        let linear = |layer: &TaskLinear<E>| {
            let bias = layer.bias().map(|bias| pick(&bias.value(), task)).transpose()?;
            Linear::from_tensors(pick(&layer.weight().value(), task)?, bias)
        };
        Ok(Adapter {
            activation: self.activation,
            down: linear(&self.down)?,
            up: linear(&self.up)?,
        })
    }

    /// The adapted output of a layer that maps `input` to `output`.
    ///
    /// # Errors
    /// If the shapes or the context's tasks do not fit.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        placement: AdapterPlacement,
        input: &Var<E>,
        output: &Var<E>,
    ) -> Result<Var<E>> {
        let Some(tasks) = ctx.tasks() else {
            return Ok(output.clone());
        };
        let change = tasks.apply(placement.reads(input, output), |x, segments| {
            let hidden = self.activation.apply(&self.down.forward_segments(ctx, x, segments)?)?;
            self.up.forward_segments(ctx, &hidden, segments)
        })?;
        Ok(output.add(&change)?)
    }
}

impl<E: Element> Module<E> for AdapterBank<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("down", &self.down);
        visitor.module("up", &self.up);
    }
}

/// The part of a stack [S, ...] that belongs to one task.
pub(crate) fn pick<E: Element>(stack: &Tensor<E>, task: usize) -> Result<Tensor<E>> {
    let shape = stack.shape();
    if task >= shape[0] {
        let reason = format!("there are {} tasks", shape[0]);
        return Err(NnError::config("task bank", "task", task, reason));
    }
    let one = shape.without_axis(0);
    let size = one.elements();
    Ok(Tensor::from_vec(stack.as_slice()[task * size..(task + 1) * size].to_vec(), one)?)
}

fn check_sizes(layer: &'static str, width: usize, bottleneck: usize) -> Result<()> {
    for (field, value) in [("width", width), ("bottleneck", bottleneck)] {
        if value == 0 {
            return Err(NnError::config(layer, field, value, "must be positive"));
        }
    }
    Ok(())
}
