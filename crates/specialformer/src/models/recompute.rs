//! Blocks that keep only their input for the backward pass and compute the
//! rest again (gradient checkpointing, Chen et al. 2016).

use specialformer_attention::Queries;
use specialformer_nn::{Ctx, Mode, NamedParameters, TaskRows};
use specialformer_routing::RouteInput;
use specialformer_tensor::{
    BackwardContext, Element, Grad, Parameter, RngStream, Tape, TapeConfig, Tensor, TensorError,
    Var, VariadicOp,
};

use super::block::{Block, BlockInput};
use crate::error::Result;

/// Name of the operation in errors.
const OP: &str = "recomputed_block";

/// The output of a block whose activations are not kept: the backward pass
/// runs the block again, with the same random numbers, so that a stack of L
/// blocks needs the memory of one block's activations and L inputs, for one
/// more forward pass.
///
/// # Gradient
/// That of [`Block::forward`], bit for bit.
pub(super) fn forward<E: Element>(
    block: &Block<E>,
    ctx: &Ctx<E>,
    x: &Var<E>,
    lengths: Option<&[usize]>,
) -> Result<Var<E>> {
    let start = ctx.with_rng(|rng| rng.clone());
    let tape = Tape::with_config(TapeConfig { record: false, ..ctx.tape().config().clone() });
    let pass = Replay {
        block: block.clone(),
        mode: ctx.mode(),
        tasks: ctx.tasks().cloned(),
        width: ctx.width_multiplier(),
        rng: start,
        x: x.value().clone(),
        lengths: lengths.map(<[usize]>::to_vec),
        parameters: Vec::new(),
    };
    let (inner, output, _) = pass.run(tape, false)?;
    // What the block drew, the pass has drawn.
    let end = inner.with_rng(|rng| rng.clone());
    ctx.with_rng(|rng| *rng = end);
    let named = NamedParameters::of(block);
    let parameters: Vec<Parameter<E>> = named.trainable().map(|(_, p)| p.clone()).collect();
    let vars: Vec<Var<E>> = parameters.iter().map(|parameter| ctx.parameter(parameter)).collect();
    let inputs: Vec<&Var<E>> = std::iter::once(x).chain(&vars).collect();
    let value = output.value().clone();
    Ok(ctx.tape().apply_variadic(&inputs, value, || Replay { parameters, ..pass })?)
}

/// What it takes to run a block again.
struct Replay<E: Element> {
    block: Block<E>,
    mode: Mode,
    tasks: Option<TaskRows>,
    width: f64,
    rng: RngStream,
    x: Tensor<E>,
    lengths: Option<Vec<usize>>,
    /// The operation's inputs after x.
    parameters: Vec<Parameter<E>>,
}

impl<E: Element> Replay<E> {
    /// Runs the block: the pass, its output, and x.
    fn run(&self, tape: Tape<E>, track: bool) -> Result<(Ctx<E>, Var<E>, Var<E>)> {
        let x = match track {
            true => tape.variable(self.x.clone()),
            false => tape.constant(self.x.clone()),
        };
        let ctx = match self.mode {
            Mode::Train => Ctx::train(tape, self.rng.clone()),
            Mode::Eval => Ctx::eval_on(tape),
        };
        let ctx = ctx.with_tasks(self.tasks.clone()).with_width_multiplier(self.width)?;
        let route = RouteInput::default();
        let lengths = self.lengths.as_deref();
        let input = BlockInput { lengths, route, ..BlockInput::new(Queries::All) };
        let output = self.block.forward(&ctx, &x, &input)?.output;
        Ok((ctx, output, x))
    }
}

impl<E: Element> VariadicOp<E> for Replay<E> {
    const NAME: &'static str = OP;

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<Vec<Grad<E>>, TensorError> {
        let tape = Tape::with_config(TapeConfig {
            parallelism: cx.parallelism(),
            pool: cx.pool().clone(),
            ..TapeConfig::default()
        });
        let failed = |what: String| TensorError::Backward { what: format!("{OP}: {what}") };
        let run = self.run(tape.clone(), true);
        let (_ctx, output, x) = run.map_err(|error| failed(error.to_string()))?;
        let mut gradients = tape.backward_from(&output, grad)?;
        let of_x = gradients.of(&x).cloned();
        // What the output did not depend on has no gradient.
        let mut all = vec![of_x.map_or(Grad::NotDifferentiable, Grad::Value)];
        for parameter in &self.parameters {
            let gradient = gradients.take_parameter(parameter);
            all.push(gradient.map_or(Grad::NotDifferentiable, Grad::Value));
        }
        Ok(all)
    }
}
