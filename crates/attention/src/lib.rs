//! Softmax and expressive attention: tiled kernels with backward, masks,
//! RoPE, ALiBi, grouped queries, per-position layers and the KV cache.
//!
//! Shape letters: B batch, T sequence length (Tq queries, Tk keys), C model
//! width, H heads, Hkv key and value heads, D head width.
//!
//! ```
//! use specialformer_attention::{AttentionConfig, AttentionKind, MultiHeadAttention, Queries};
//! use specialformer_nn::Ctx;
//! use specialformer_tensor::{Seed, Tensor};
//!
//! let mut rng = Seed::new(1).stream("init");
//! let config = AttentionConfig {
//!     kind: AttentionKind::expressive(),
//!     ..AttentionConfig::new(16, 2)
//! };
//! let layer = MultiHeadAttention::<f32>::new(config, 8, &mut rng)?;
//! let ctx = Ctx::eval();
//! let x = ctx.constant(Tensor::from_fn([3, 8, 16], || rng.normal() as f32));
//! let all = layer.forward(&ctx, &x, Queries::All)?;
//! let last = layer.forward(&ctx, &x, Queries::Last)?;
//! assert_eq!(all.shape().to_vec(), [3, 8, 16]);
//! assert_eq!(last.shape().to_vec(), [3, 1, 16]);
//! # Ok::<(), specialformer_attention::AttentionError>(())
//! ```

mod alibi;
mod config;
mod error;
pub mod kernel;
mod kv_cache;
mod layer_cache;
mod layer_core;
mod multi_head;
mod op;
mod per_position;
mod per_position_attention;
pub mod reference;
mod relative;
mod rope;
mod rotary;

pub use alibi::alibi_slopes;
pub use config::{AttentionConfig, Position, Queries, QueryKeyNorm};
pub use error::{AttentionError, Result};
pub use kernel::{AttentionKind, Dropout, QueryOffset};
pub use kv_cache::KvCache;
pub use layer_cache::{CacheElement, LayerCache};
pub use multi_head::{MultiHeadAttention, SelfAttentionArgs};
pub use op::{AttentionArgs, attention, attention_kv, attention_qkv};
pub use per_position::{PerPositionLinear, per_position_linear};
pub use per_position_attention::PerPositionAttention;
pub use relative::{RelativeBias, RelativeBuckets};
pub use rope::{RopeArgs, RopePairing, RopeTable, rope, rope_with};
pub use rotary::RopeScaling;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
