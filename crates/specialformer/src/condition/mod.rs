//! Task-conditioned routing: run only the experts that a task needs.
//!
//! [`Conditions::fit`] chooses for every task and layer the experts that cover
//! a share of the task's mean signature, and fits a classifier that tells the
//! task from the first tokens' signature. [`Conditions::restrict`] masks the
//! other experts, [`Conditions::prune`] leaves them out of memory and of the
//! files that are saved; both route and compute the same. [`learn_bias`] trains
//! a bias on the router's logits for the experts that are left, and
//! [`tune_experts`] those themselves. [`evaluate`] says what all this costs.

mod conditions;
mod evaluate;
mod soft;

pub use conditions::{Conditions, Detector, FitOptions, TaskExperts};
pub use evaluate::{ConditionCurve, ConditionPoint, EvaluateOptions, Selection, evaluate};
pub use soft::{SoftOptions, learn_bias, tune_experts};
