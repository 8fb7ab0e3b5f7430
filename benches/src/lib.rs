//! What the benchmarks measure: whole training steps of the models in the
//! README's tables, and how much memory they take.

pub mod cases;
pub mod limits;
pub mod timing;

pub use cases::Case;
