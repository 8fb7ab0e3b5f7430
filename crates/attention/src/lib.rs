//! Softmax and expressive attention: tiled kernels with backward, masks, RoPE, ALiBi, grouped queries, per-position layers and KV cache.

mod error;
pub mod kernel;
pub mod reference;

pub use error::{AttentionError, Result};
