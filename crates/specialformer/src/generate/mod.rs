//! Text generation: a cache of keys and values, sampling, stopping.
//!
//! [`generate`] continues prompts of different lengths in one batch; a callback
//! sees every token as it comes and may stop a text or all of them. A
//! [`Session`] keeps what it has read from one call to the next, as a
//! conversation does.

mod cache;
mod from_source;
mod generator;
mod perplexity;
mod sampling;
mod session;
mod text_model;

pub use cache::TextCache;
pub use from_source::generate_from;
pub use generator::{Finish, Flow, GenerateConfig, Generated, generate};
pub use perplexity::{Perplexity, Reading, perplexity};
pub use sampling::Sampling;
pub use session::Session;
pub use text_model::TextModel;
