//! The autograd tape: recording, the trait for differentiable operations,
//! parameters and the backward pass.

mod gradients;
mod op;
mod parameter;
mod tape;
mod var;

pub use gradients::Gradients;
pub use op::{BackwardContext, Grad, Op, VariadicOp};
pub use parameter::{Parameter, ParameterId};
pub use tape::{ScopeGuard, Tape, TapeConfig};
pub use var::Var;
