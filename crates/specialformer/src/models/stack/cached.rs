//! Texts that go on where their cached keys and values end.

use specialformer_attention::{CacheElement, LayerCache};
use specialformer_nn::Ctx;
use specialformer_routing::RouteInput;
use specialformer_tensor::{Element, Var};

use super::Stack;
use crate::error::{Error, Result};
use crate::generate::TextCache;
use crate::models::Tokens;

impl<E: Element> Stack<E> {
    /// Fails if tokens do not continue texts of these lengths.
    pub(crate) fn check_cached(
        &self,
        model: &'static str,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        positions: &[usize],
    ) -> Result<()> {
        let rows = positions.len();
        if tokens.batch() != rows || counts.is_some_and(|counts| counts.len() != rows) {
            return Err(Error::Input { model, what: format!("the cache has {rows} rows") });
        }
        let new = |row: usize| counts.map_or(tokens.length(), |counts| counts[row]);
        let longest = positions.iter().enumerate().map(|(row, &n)| n + new(row)).max();
        self.check_length(model, longest.unwrap_or(0))
    }

    /// Empty caches of `rows` rows, one for each block.
    pub(crate) fn new_caches<S: CacheElement>(&self, rows: usize) -> Result<Vec<LayerCache<S>>> {
        let what = if self.config.cross_attention {
            "an encoder-decoder answers a source; it does not continue texts"
        } else if !self.config.attention.causal {
            "an encoder sees all tokens at once; it does not continue texts"
        } else if self.relative.is_some() {
            "texts are not continued with relative biases"
        } else if !self.between.is_empty() {
            "texts are not continued with parts between the blocks"
        } else {
            return self.blocks.iter().map(|block| block.new_cache(rows)).collect();
        };
        Err(Error::Input { model: "text", what: what.into() })
    }

    /// The output of the blocks, before the last norm, of new positions x
    /// [B, Tnew, C] behind those in the caches; row b has `counts[b]` of them.
    /// For inference.
    pub(crate) fn forward_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        x: Var<E>,
        counts: Option<&[usize]>,
        caches: &mut [LayerCache<S>],
        tokens: &[u32],
    ) -> Result<Var<E>> {
        let length = x.shape()[1];
        let live: Option<Vec<bool>> = counts
            .map(|counts| counts.iter().flat_map(|&n| (0..length).map(move |t| t < n)).collect());
        let route = RouteInput {
            live: live.as_deref(),
            tokens: Some(tokens),
            causal: true,
            ..RouteInput::default()
        };
        let blocks = self.blocks.iter().zip(caches).enumerate();
        let mut x = x;
        for (i, (block, cache)) in blocks {
            let _scope = ctx.indexed_scope("blocks", i);
            x = block.forward_cached(ctx, &x, counts, cache, route)?.output;
        }
        Ok(x)
    }

    /// The normed states of tokens, embedded in x [B, Tnew, C], that continue
    /// the texts in the cache. For inference.
    pub(crate) fn continue_texts<S: CacheElement>(
        &self,
        model: &'static str,
        ctx: &Ctx<E>,
        x: Var<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>> {
        let positions = cache.positions();
        self.check_cached(model, tokens, counts, &positions)?;
        let x = self.add_positions(ctx, x, Some(&positions))?;
        let x = self.forward_cached(ctx, x, counts, cache.layers_mut(), tokens.ids())?;
        self.finish(ctx, &x)
    }
}
