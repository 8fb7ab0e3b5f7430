//! Embeddings that know their input: what a position becomes before, and
//! between, the blocks of a transformer depends on its type, on a condition,
//! on a gate or on itself.
//!
//! Shape letters: B rows, T positions of a row, N positions of all rows, C
//! model width, V vocabulary, K types, M tables of a mixture, R rank, Z
//! features of a condition, F numbers of a position, P learned tokens.
//!
//! ```
//! use specialformer_embedding::{
//!     FeatureProjection, MultimodalBatch, Segment, StreamType, TokenType, TypeModulation,
//!     TypedEmbedding, assemble, image_patches,
//! };
//! use specialformer_nn::Ctx;
//! use specialformer_tensor::Seed;
//!
//! // A question about a 4×4 image in patches of 2×2.
//! let types = [StreamType::tokens("text", 20), StreamType::features("image", 4)];
//! let image = image_patches(&[0.5; 16], [4, 4], 1, 2)?;
//! let row = vec![
//!     Segment::Features { of: 1, values: &image },
//!     Segment::Tokens { of: 0, tokens: &[7, 11] },
//! ];
//! let batch = MultimodalBatch::new(&types, &[row])?;
//!
//! let mut rng = Seed::new(1).stream("init");
//! let text = TokenType { name: "text".into(), tokens: 20, width: Some(3) };
//! let tokens = TypedEmbedding::<f32>::new(&[text], 8, 1.0, &mut rng)?;
//! let patches = FeatureProjection::new(4, None, 8, &mut rng)?;
//! let ctx = Ctx::eval();
//! let parts = vec![
//!     ((0..4).collect(), patches.forward(&ctx, &batch.features[..4 * 4], 4)?),
//!     (vec![4, 5], tokens.forward(&ctx, &batch.tokens[4..])?),
//! ];
//! let x = assemble(&ctx, parts, 6, 8)?;
//! let x = TypeModulation::new(2, 8)?.forward(&ctx, &x, &batch.streams.types)?;
//! assert_eq!(x.shape().to_vec(), [6, 8]);
//! # Ok::<(), specialformer_embedding::EmbeddingError>(())
//! ```

mod adaptive;
mod assemble;
mod batch;
mod bottleneck;
mod conditional;
mod error;
mod features;
mod mixture;
mod modulate;
mod positions;
mod prefix;
mod rows;
mod stream;
mod types;
mod weighted;

pub use adaptive::{AdaptiveConfig, AdaptiveModulation};
pub use assemble::assemble;
pub use batch::{MultimodalBatch, Segment};
pub use conditional::{ConditionConfig, ConditionTable, ConditionalEmbedding, ConditionalUpdate};
pub use error::{EmbeddingError, Result};
pub use features::{FeatureProjection, check_series, image_patches};
pub use mixture::{MixtureConfig, MixtureEmbedding, MixtureOutput};
pub use modulate::{UNCHANGED, modulate};
pub use positions::{PositionEmbedding, PositionKind};
pub use prefix::{Inserted, PREFIX_PLACE, PrefixConfig, PrefixTokens};
pub use stream::{StreamType, Streams};
pub use types::{NO_TYPE, Partition, TokenType, TypeModulation, TypeVectors, TypedEmbedding};
pub use weighted::weighted_lookup;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
