//! [`TextModel`]: what can be asked to continue a text.

use specialformer_attention::CacheElement;
use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Var};

use super::cache::TextCache;
use crate::error::Result;
use crate::models::Tokens;

/// A causal model that continues texts from cached keys and values.
pub trait TextModel<E: Element = f32>: Sync {
    /// Size V of the vocabulary.
    fn vocabulary(&self) -> usize;

    /// The most tokens of a text, if there is a bound.
    fn window(&self) -> Option<usize>;

    /// An empty cache of `rows` texts.
    ///
    /// # Errors
    /// If the model cannot continue texts.
    fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<TextCache<S>>;

    /// The last hidden states of tokens that continue the texts in the cache,
    /// for inference: row b has `counts[b]` new tokens, or all.
    ///
    /// # Shapes
    /// [B, Tnew] → [B, Tnew, C].
    ///
    /// # Errors
    /// If a token is out of range, a text gets longer than the window, or the
    /// context trains or records.
    fn states_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>>;

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// [..., C] → [..., V].
    ///
    /// # Errors
    /// If the width differs.
    fn head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>>;
}
