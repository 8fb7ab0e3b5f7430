//! Mixture of experts.
mod kernel;
mod op;
mod plan;
pub use op::{ExpertVars, moe_experts};
pub use plan::DispatchPlan;
