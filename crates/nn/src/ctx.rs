//! [`Ctx`]: what a forward pass carries besides its activations.

use std::cell::RefCell;

use crate::error::Result;
use specialformer_tensor::{Element, Parameter, RngStream, ScopeGuard, Seed, Tape, Tensor, Var};

/// Training or evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dropout and other noise are on.
    Train,
    /// The model is a plain function of its input.
    Eval,
}

/// The context of one forward pass: the tape (with its memory pool and
/// parallelism), the mode and the random stream. It is passed down explicitly;
/// no layer keeps state in globals.
///
/// ```
/// use specialformer_nn::{Ctx, Mode};
/// let ctx = Ctx::<f32>::eval();
/// assert_eq!(ctx.mode(), Mode::Eval);
/// ```
#[derive(Debug)]
pub struct Ctx<E: Element = f32> {
    tape: Tape<E>,
    mode: Mode,
    rng: RefCell<RngStream>,
}

impl<E: Element> Ctx<E> {
    /// A context for training: `rng` feeds dropout and other noise.
    pub fn train(tape: Tape<E>, rng: RngStream) -> Self {
        Self { tape, mode: Mode::Train, rng: RefCell::new(rng) }
    }

    /// A context for inference on a tape of its own that records nothing.
    pub fn eval() -> Self {
        Self::eval_on(Tape::no_grad())
    }

    /// A context for evaluation on a given tape.
    pub fn eval_on(tape: Tape<E>) -> Self {
        let rng = Seed::new(0).stream("evaluation");
        Self { tape, mode: Mode::Eval, rng: RefCell::new(rng) }
    }

    /// The tape.
    pub fn tape(&self) -> &Tape<E> {
        &self.tape
    }

    /// Training or evaluation.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A parameter on this pass's tape.
    pub fn parameter(&self, parameter: &Parameter<E>) -> Var<E> {
        self.tape.parameter(parameter)
    }

    /// A value without gradient.
    pub fn constant(&self, value: Tensor<E>) -> Var<E> {
        self.tape.constant(value)
    }

    /// Enters a named part of the model; see [`Tape::scope`].
    #[must_use]
    pub fn scope(&self, name: &'static str) -> ScopeGuard<E> {
        self.tape.scope(name)
    }

    /// Enters the `index`-th of several parts; see [`Tape::indexed_scope`].
    #[must_use]
    pub fn indexed_scope(&self, name: &'static str, index: usize) -> ScopeGuard<E> {
        self.tape.indexed_scope(name, index)
    }

    /// Dropout with probability `p` in training; `x` itself in evaluation.
    ///
    /// # Errors
    /// If `p` is not in [0, 1).
    pub fn dropout(&self, x: Var<E>, p: f64) -> Result<Var<E>> {
        if p == 0.0 || self.mode == Mode::Eval {
            return Ok(x);
        }
        Ok(self.with_rng(|rng| x.dropout(p, rng))?)
    }

    /// Draws from the pass's random stream.
    pub fn with_rng<R>(&self, draw: impl FnOnce(&mut RngStream) -> R) -> R {
        draw(&mut self.rng.borrow_mut())
    }
}
