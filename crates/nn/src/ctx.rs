//! [`Ctx`]: what a forward pass carries besides its activations.

use std::cell::RefCell;
use std::rc::Rc;

use crate::error::{NnError, Result};
use crate::tasks::TaskRows;
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
/// parallelism), the mode, the random stream and the rows' tasks. It is passed
/// down explicitly; no layer keeps state in globals.
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
    rng: Rc<RefCell<RngStream>>,
    tasks: Option<Rc<TaskRows>>,
    width_multiplier: f64,
}

impl<E: Element> Ctx<E> {
    /// A context for training: `rng` feeds dropout and other noise.
    pub fn train(tape: Tape<E>, rng: RngStream) -> Self {
        Self {
            tape,
            mode: Mode::Train,
            rng: Rc::new(RefCell::new(rng)),
            tasks: None,
            width_multiplier: 1.0,
        }
    }

    /// A context for inference on a tape of its own that records nothing.
    pub fn eval() -> Self {
        Self::eval_on(Tape::no_grad())
    }

    /// A context for evaluation on a given tape.
    pub fn eval_on(tape: Tape<E>) -> Self {
        let rng = Seed::new(0).stream("evaluation");
        Self {
            tape,
            mode: Mode::Eval,
            rng: Rc::new(RefCell::new(rng)),
            tasks: None,
            width_multiplier: 1.0,
        }
    }

    /// The same pass (tape, mode, random stream) for rows of these tasks.
    #[must_use]
    pub fn with_tasks(&self, tasks: Option<TaskRows>) -> Self {
        Self { tasks: tasks.map(Rc::new), ..self.same() }
    }

    /// The same pass in which elastic blocks use this share of their heads and
    /// hidden units, the first ones: 1 is all.
    ///
    /// # Errors
    /// [`NnError::Config`] unless it is in (0, 1].
    pub fn with_width_multiplier(&self, width_multiplier: f64) -> Result<Self> {
        if !(width_multiplier > 0.0 && width_multiplier <= 1.0) {
            let (field, reason) = ("width_multiplier", "must be in (0, 1]");
            return Err(NnError::config("Ctx", field, width_multiplier, reason));
        }
        Ok(Self { width_multiplier, ..self.same() })
    }

    fn same(&self) -> Self {
        Self {
            tape: self.tape.clone(),
            mode: self.mode,
            rng: Rc::clone(&self.rng),
            tasks: self.tasks.clone(),
            width_multiplier: self.width_multiplier,
        }
    }

    /// The share of their heads and hidden units that elastic blocks use.
    pub fn width_multiplier(&self) -> f64 {
        self.width_multiplier
    }

    /// The tasks of the batch's rows, if they are known.
    pub fn tasks(&self) -> Option<&TaskRows> {
        self.tasks.as_deref()
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
