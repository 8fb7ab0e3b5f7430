//! The cache of a whole model: one [`LayerCache`] a layer, in step.

use crate::error::{AttentionError, Result};
use crate::layer_cache::{CacheElement, LayerCache};

/// The cached keys and values of all layers of a model.
///
/// Keys and values are functions of the weights: after a change of the model
/// or of the expert in use they are worthless. [`KvCache::use_generation`]
/// says which weights are in use and drops what other weights computed.
///
/// A pass that fails halfway leaves the first layers longer than the last;
/// [`KvCache::truncate`] to the lengths before it brings them in step again.
///
/// ```
/// use specialformer_attention::KvCache;
/// let mut cache = KvCache::<f32>::new(12, 1, 64, 64)?;
/// assert!(!cache.use_generation(7)); // empty: nothing to keep
/// assert!(cache.use_generation(7));
/// assert!(!cache.use_generation(8));
/// assert_eq!(cache.lengths()?, [0]);
/// # Ok::<(), specialformer_attention::AttentionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct KvCache<S: CacheElement = f32> {
    layers: Vec<LayerCache<S>>,
    generation: Option<u64>,
}

impl<S: CacheElement> KvCache<S> {
    /// `layers` equal empty caches; see [`LayerCache::new`].
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if a width or the number of layers is 0.
    pub fn new(layers: usize, rows: usize, key_width: usize, value_width: usize) -> Result<Self> {
        let layer = LayerCache::new(rows, key_width, value_width)?;
        Self::from_layers(vec![layer; layers])
    }

    /// A cache of given layers, whose widths may differ.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if there is no layer or the layers' rows
    /// differ in number, length or position.
    pub fn from_layers(layers: Vec<LayerCache<S>>) -> Result<Self> {
        if layers.is_empty() {
            let what = "must be at least one";
            return Err(AttentionError::argument("kv_cache", "layers", 0, what));
        }
        let cache = Self { layers, generation: None };
        cache.check_in_step()?;
        Ok(cache)
    }

    fn check_in_step(&self) -> Result<()> {
        let first = &self.layers[0];
        let different = |layer: &LayerCache<S>| {
            layer.lengths() != first.lengths() || layer.positions() != first.positions()
        };
        match self.layers.iter().position(different) {
            Some(i) => {
                let (got, want) = (self.layers[i].lengths(), first.lengths());
                let what = format!("layer {i} is not in step with layer 0, {want:?}");
                Err(AttentionError::argument("kv_cache", "lengths", format!("{got:?}"), what))
            }
            None => Ok(()),
        }
    }

    /// The layers' caches, first to last.
    pub fn layers(&self) -> &[LayerCache<S>] {
        &self.layers
    }

    /// The layers' caches for a forward pass, which appends to each of them.
    pub fn layers_mut(&mut self) -> &mut [LayerCache<S>] {
        &mut self.layers
    }

    /// Number of batch rows B.
    pub fn rows(&self) -> usize {
        self.layers[0].rows()
    }

    /// Number of keys of each row \[B\].
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if the layers are not in step.
    pub fn lengths(&self) -> Result<Vec<usize>> {
        self.check_in_step()?;
        Ok(self.layers[0].lengths())
    }

    /// Position of the next token of each row \[B\].
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if the layers are not in step.
    pub fn positions(&self) -> Result<Vec<usize>> {
        self.check_in_step()?;
        Ok(self.layers[0].positions())
    }

    /// Memory of all keys and values in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::memory_bytes).sum()
    }

    /// Makes room for `positions` a row in every layer.
    pub fn reserve(&mut self, positions: usize) {
        self.layers.iter_mut().for_each(|layer| layer.reserve(positions));
    }

    /// [`LayerCache::reorder`] of every layer.
    ///
    /// # Errors
    /// As [`LayerCache::reorder`].
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.reorder(sources))
    }

    /// [`LayerCache::add_rows`] of every layer.
    pub fn add_rows(&mut self, count: usize) {
        self.layers.iter_mut().for_each(|layer| layer.add_rows(count));
    }

    /// [`LayerCache::truncate`] of every layer.
    ///
    /// # Errors
    /// As [`LayerCache::truncate`].
    pub fn truncate(&mut self, lengths: &[usize]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.truncate(lengths))
    }

    /// [`LayerCache::start_at`] of every layer.
    ///
    /// # Errors
    /// As [`LayerCache::start_at`].
    pub fn start_at(&mut self, starts: &[usize]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.start_at(starts))
    }

    /// Empties all rows and keeps the memory and the generation.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::reset);
    }

    /// Which weights computed the content, if that was said.
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// Says that the weights in use from now on are those of `generation`, a
    /// number that its owner changes with the model or expert. Content of
    /// another or unknown generation is dropped; true if the content stays.
    pub fn use_generation(&mut self, generation: u64) -> bool {
        let stays = self.generation == Some(generation);
        if !stays {
            self.reset();
            self.generation = Some(generation);
        }
        stays
    }

    /// Drops the content and forgets which weights computed it.
    pub fn invalidate(&mut self) {
        self.reset();
        self.generation = None;
    }
}
