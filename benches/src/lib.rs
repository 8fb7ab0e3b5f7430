//! What the benchmarks measure: whole training steps of the models in the
//! README's tables, how much memory they take, and what the machine allows.

pub mod cases;
pub mod limits;
pub mod peak_rss;

pub use cases::Case;
