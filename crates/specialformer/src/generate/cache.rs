//! [`TextCache`]: the keys and values of texts that are being continued.

use specialformer_attention::{CacheElement, LayerCache};

use crate::error::Result;

/// Keys and values of every block, for rows of different lengths. It takes no
/// memory before the first tokens and grows by blocks of positions. `S` is
/// what it stores numbers as.
#[derive(Debug, Clone)]
pub struct TextCache<S: CacheElement = f32> {
    layers: Vec<LayerCache<S>>,
}

impl<S: CacheElement> TextCache<S> {
    pub(crate) fn new(layers: Vec<LayerCache<S>>) -> Self {
        Self { layers }
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [LayerCache<S>] {
        &mut self.layers
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::rows)
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> Vec<usize> {
        self.layers.first().map_or_else(Vec::new, LayerCache::lengths)
    }

    /// Position of the next token of each row.
    pub fn positions(&self) -> Vec<usize> {
        self.layers.first().map_or_else(Vec::new, LayerCache::positions)
    }

    /// Memory of all keys and values in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::memory_bytes).sum()
    }

    /// Makes row i a copy of what was row `sources[i]`.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| Ok(layer.reorder(sources)?))
    }

    /// Forgets all of row b's tokens but the first `lengths[b]`.
    ///
    /// # Errors
    /// If there is not one length for each row.
    pub fn truncate(&mut self, lengths: &[usize]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| Ok(layer.truncate(lengths)?))
    }
}
