//! Text generation: a cache of keys and values, sampling, stopping.
//!
//! [`generate`] continues prompts of different lengths in one batch; a callback
//! sees every token as it comes and may stop a text or all of them.

mod cache;
mod generator;
mod sampling;

pub use cache::TextCache;
pub use generator::{Finish, Flow, GenerateConfig, Generated, generate};
pub use sampling::Sampling;
