//! What a stack of blocks is built from, whichever model it is for.

use serde::{Deserialize, Serialize};
use specialformer_attention::{AttentionConfig, RelativeBuckets};
use specialformer_moe::MoeConfig;
use specialformer_nn::{FeedForwardKind, NormKind};

use super::specialformer::AdapterConfig;

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPosition {
    /// x + f(norm(x)), and a norm after the last block.
    #[default]
    Pre,
    /// norm(x + f(x)), as in the original transformer and BERT.
    Post,
}

/// What a block has besides, or in place of, its dense feed-forward layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BlockParts {
    /// A dense feed-forward layer.
    pub dense: bool,
    /// Experts, whose output is added to the dense layer's if there is one.
    pub experts: Option<MoeConfig>,
    /// Adapters of each task's own.
    pub adapter: Option<AdapterConfig>,
}

impl Default for BlockParts {
    fn default() -> Self {
        Self { dense: true, experts: None, adapter: None }
    }
}

/// A stack of blocks.
#[derive(Debug, Clone)]
pub(crate) struct StackConfig {
    /// One for each block.
    pub blocks: Vec<BlockParts>,
    /// Longest sequence.
    pub window: usize,
    /// Number of learned positions; 0 for none.
    pub positions: usize,
    /// A learned bias by distance, shared by the blocks.
    pub relative: Option<RelativeBuckets>,
    /// Parameters of each position's own.
    pub per_position: bool,
    /// Each block also attends to another stack's output.
    pub cross_attention: bool,
    /// Hidden width of the feed-forward layers.
    pub feed_forward: usize,
    pub feed_forward_kind: FeedForwardKind,
    pub feed_forward_bias: bool,
    pub norm: NormKind,
    pub norm_eps: f64,
    pub norm_position: NormPosition,
    pub attention: AttentionConfig,
    pub dropout: f64,
    /// Number of tasks that adapters are for.
    pub tasks: usize,
}
