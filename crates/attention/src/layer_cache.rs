//! Keys and values kept from one decoding step to the next.
//!
//! A layer's keys lie in one contiguous buffer [B, capacity, Wk] and its
//! values in another [B, capacity, Wv], which is what the kernels read without
//! a copy; W is Hkv·D. The capacity grows by whole blocks of positions when a
//! row needs them. Growing copies what is there: once a block, which is little
//! beside the attention over as many positions at every step.

use std::any::Any;
use std::fmt::Debug;

use ndarray::{ArrayView1, ArrayView3, ArrayView4, ArrayViewMut3, ArrayViewMut4, s};
use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Shape, Tensor};

use crate::error::{AttentionError, Result};
use crate::kernel::{self, KernelArgs, QueryOffset};

/// What a cache stores its numbers as, which need not be what the model
/// computes in: a 16-bit type halves the memory of an `f32` model's cache.
///
/// Where both are the same type, attention reads the cache in place; otherwise
/// it converts the rows in use at every step.
pub trait CacheElement: Copy + Default + Debug + Send + Sync + 'static {
    /// The type's name.
    const NAME: &'static str;

    /// The nearest value of this type.
    fn store<E: Element>(value: E) -> Self;

    /// The value as the model computes with it.
    fn load<E: Element>(self) -> E;
}

impl CacheElement for f32 {
    const NAME: &'static str = "f32";

    fn store<E: Element>(value: E) -> Self {
        value.to_f64() as f32
    }

    fn load<E: Element>(self) -> E {
        E::from_f64(f64::from(self))
    }
}

impl CacheElement for f64 {
    const NAME: &'static str = "f64";

    fn store<E: Element>(value: E) -> Self {
        value.to_f64()
    }

    fn load<E: Element>(self) -> E {
        E::from_f64(self)
    }
}

/// One batch row of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Row {
    /// Position of its first key.
    start: usize,
    /// Number of its keys.
    length: usize,
}

/// The cached keys and values of one attention layer.
///
/// Every row of the batch has its own length and position, so that prompts of
/// different lengths share a batch.
///
/// ```
/// use ndarray::Array3;
/// use specialformer_attention::LayerCache;
/// let mut cache = LayerCache::<f32>::new(2, 4, 4)?;
/// let k = Array3::<f32>::ones((2, 3, 4));
/// cache.append(k.view(), k.view(), Some(&[3, 1]))?;
/// assert_eq!(cache.lengths(), [3, 1]);
/// # Ok::<(), specialformer_attention::AttentionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct LayerCache<S: CacheElement = f32> {
    keys: Vec<S>,
    values: Vec<S>,
    key_width: usize,
    value_width: usize,
    block: usize,
    capacity: usize,
    rows: Vec<Row>,
}

impl<S: CacheElement> LayerCache<S> {
    /// Positions that a cache grows by unless said otherwise.
    pub const DEFAULT_BLOCK: usize = 32;

    /// An empty cache of `rows` batch rows, for keys of width Hkv·D and values
    /// of width Hkv·Dv. It takes no memory before the first keys come.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if a width is 0.
    pub fn new(rows: usize, key_width: usize, value_width: usize) -> Result<Self> {
        for (name, width) in [("key_width", key_width), ("value_width", value_width)] {
            if width == 0 {
                return Err(AttentionError::argument("kv_cache", name, width, "must be positive"));
            }
        }
        Ok(Self {
            keys: Vec::new(),
            values: Vec::new(),
            key_width,
            value_width,
            block: Self::DEFAULT_BLOCK,
            capacity: 0,
            rows: vec![Row::default(); rows],
        })
    }

    /// The same cache growing by `positions` at a time.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if `positions` is 0.
    pub fn with_block(mut self, positions: usize) -> Result<Self> {
        if positions == 0 {
            let what = "must be positive";
            return Err(AttentionError::argument("kv_cache", "block", positions, what));
        }
        self.block = positions;
        Ok(self)
    }

    /// Number of batch rows B.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Width Hkv·D of the keys of a position.
    pub fn key_width(&self) -> usize {
        self.key_width
    }

    /// Width Hkv·Dv of the values of a position.
    pub fn value_width(&self) -> usize {
        self.value_width
    }

    /// Number of keys of each row \[B\].
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.length).collect()
    }

    /// Position of the next token of each row \[B\]: where the row started plus
    /// its length.
    pub fn positions(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.start + row.length).collect()
    }

    /// Number of keys of the longest row.
    pub fn longest(&self) -> usize {
        self.rows.iter().map(|row| row.length).max().unwrap_or(0)
    }

    /// Positions a row can hold before the buffers grow.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Memory of the keys and values in bytes.
    pub fn memory_bytes(&self) -> usize {
        (self.keys.capacity() + self.values.capacity()) * size_of::<S>()
    }

    /// Makes room for `positions` a row, rounded up to whole blocks.
    pub fn reserve(&mut self, positions: usize) {
        if positions > self.capacity {
            let sources: Vec<_> = (0..self.rows()).map(Some).collect();
            self.rebuild(&sources, positions);
        }
    }

    /// New buffers whose rows are copies of old ones, or empty.
    fn rebuild(&mut self, sources: &[Option<usize>], positions: usize) {
        let capacity = positions.next_multiple_of(self.block);
        let copy = |old: &[S], width: usize| {
            let mut new = vec![S::default(); sources.len() * capacity * width];
            for (i, source) in sources.iter().enumerate() {
                if let Some(b) = *source {
                    let used = self.rows[b].length * width;
                    let (from, to) = (b * self.capacity * width, i * capacity * width);
                    new[to..to + used].copy_from_slice(&old[from..from + used]);
                }
            }
            new
        };
        let (keys, values) =
            (copy(&self.keys, self.key_width), copy(&self.values, self.value_width));
        self.rows =
            sources.iter().map(|source| source.map(|b| self.rows[b]).unwrap_or_default()).collect();
        (self.keys, self.values, self.capacity) = (keys, values, capacity);
    }

    /// Appends to row b the first `counts[b]` of Tnew new keys and values, or
    /// all of them. What lies behind is padding and is not read.
    ///
    /// # Shapes
    /// `k` [B, Tnew, Hkv·D], `v` [B, Tnew, Hkv·Dv], any strides.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] and [`AttentionError::Argument`]; the cache is
    /// then as it was.
    pub fn append<E: Element>(
        &mut self,
        k: ArrayView3<'_, E>,
        v: ArrayView3<'_, E>,
        counts: Option<&[usize]>,
    ) -> Result<()> {
        const OP: &str = "kv_cache append";
        let (rows, new) = (self.rows(), k.shape()[1]);
        for (name, got, width) in
            [("k", k.shape(), self.key_width), ("v", v.shape(), self.value_width)]
        {
            let want = [rows, new, width];
            if got != want {
                return Err(AttentionError::shape(OP, name, got, format!("must be {want:?}")));
            }
        }
        self.check_counts(OP, counts, new)?;
        let count = |b: usize| counts.map_or(new, |counts| counts[b]);
        let needed = self.rows.iter().enumerate().map(|(b, row)| row.length + count(b)).max();
        self.reserve(needed.unwrap_or(0));
        for b in 0..rows {
            for t in 0..count(b) {
                let position = b * self.capacity + self.rows[b].length + t;
                store(&mut self.keys, position, self.key_width, k.slice(s![b, t, ..]));
                store(&mut self.values, position, self.value_width, v.slice(s![b, t, ..]));
            }
            self.rows[b].length += count(b);
        }
        Ok(())
    }

    fn check_counts(&self, op: &'static str, counts: Option<&[usize]>, new: usize) -> Result<()> {
        let Some(counts) = counts else { return Ok(()) };
        self.check_per_row(op, "counts", counts.len())?;
        match counts.iter().find(|&&count| count > new) {
            Some(count) => {
                let what = format!("there are only {new} new positions");
                Err(AttentionError::argument(op, "counts", count, what))
            }
            None => Ok(()),
        }
    }

    fn check_per_row(&self, op: &'static str, name: &'static str, entries: usize) -> Result<()> {
        if entries == self.rows() {
            return Ok(());
        }
        let what = format!("needs one entry for each of the cache's {} rows", self.rows());
        Err(AttentionError::argument(op, name, format!("{entries} entries"), what))
    }

    /// Attention of the newest positions' queries over all cached keys and
    /// values, **for inference only**: no gradient flows through a cache.
    ///
    /// Row b's queries stand at its last `counts[b]` keys (the last Tq without
    /// counts); what lies behind them is padding, whose output is finite if
    /// its queries are and otherwise without meaning. `args.query_offset` and
    /// `args.key_lengths` come from the cache and must be left alone; Tk of a
    /// mask or bias is [`longest`](Self::longest).
    ///
    /// # Shapes
    /// `q` [B, Tq, H, D], any strides → [B, Tq, H, Dv].
    ///
    /// # Errors
    /// [`AttentionError::Shape`] and [`AttentionError::Argument`].
    pub fn attend_inference<E: Element>(
        &self,
        ctx: &Ctx<E>,
        q: ArrayView4<'_, E>,
        counts: Option<&[usize]>,
        args: &KernelArgs<'_, E>,
    ) -> Result<Tensor<E>> {
        const OP: &str = "kv_cache attention";
        let &[b, queries, heads, width] = q.shape() else { unreachable!("a view of four axes") };
        if b != self.rows() || width == 0 || !self.key_width.is_multiple_of(width) {
            let what =
                format!("must be [{}, Tq, H, D], D a divisor of {}", self.rows(), self.key_width);
            return Err(AttentionError::shape(OP, "q", q.shape(), what));
        }
        let kv_heads = self.key_width / width;
        if !self.value_width.is_multiple_of(kv_heads) {
            let what = format!("must be a multiple of the {kv_heads} key heads");
            return Err(AttentionError::argument(OP, "value_width", self.value_width, what));
        }
        if args.key_lengths.is_some() || args.query_offset != QueryOffset::Uniform(0) {
            let what = "come from the cache and must not be given";
            return Err(AttentionError::argument(OP, "key_lengths, query_offset", "given", what));
        }
        self.check_counts(OP, counts, queries)?;
        let mut offsets = Vec::with_capacity(b);
        for (i, row) in self.rows.iter().enumerate() {
            let count = counts.map_or(queries, |counts| counts[i]);
            let Some(offset) = row.length.checked_sub(count) else {
                let what = format!("row {i} of the cache has only {} keys", row.length);
                return Err(AttentionError::argument(OP, "queries", count, what));
            };
            offsets.push(offset);
        }
        let lengths = self.lengths();
        let args = KernelArgs {
            query_offset: QueryOffset::PerRow(&offsets),
            key_lengths: Some(&lengths),
            ..*args
        };
        let value_width = self.value_width / kv_heads;
        let pool = ctx.tape().pool();
        let mut out = Tensor::zeros_in(pool, Shape::scalar());
        self.with_views(ctx, kv_heads, |k, v| {
            let mut statistics = ndarray::Array3::from_elem((b, heads, queries), E::ZERO);
            out = Tensor::try_build_in(pool, [b, queries, heads, value_width], |out| {
                let sizes = (b, queries, heads, value_width);
                let out = ArrayViewMut4::from_shape(sizes, out).expect("the sizes are the same");
                kernel::forward(
                    q.permuted_axes(TO_KERNEL),
                    k.permuted_axes(TO_KERNEL),
                    v.permuted_axes(TO_KERNEL),
                    &args,
                    out.permuted_axes(TO_KERNEL),
                    statistics.view_mut(),
                    ctx.tape().parallelism(),
                )
            })?;
            Ok(())
        })?;
        Ok(out)
    }

    /// Gives `read` the keys and values [B, longest, Hkv, D]: in place if they
    /// are stored as E, converted otherwise.
    fn with_views<E: Element>(
        &self,
        ctx: &Ctx<E>,
        kv_heads: usize,
        read: impl FnOnce(ArrayView4<'_, E>, ArrayView4<'_, E>) -> Result<()>,
    ) -> Result<()> {
        let by_head = |data, positions: usize, width: usize| {
            let sizes = (self.rows(), positions, kv_heads, width / kv_heads);
            let all = ArrayView4::from_shape(sizes, data).expect("the sizes are the cache's");
            all.slice_move(s![.., ..self.longest(), .., ..])
        };
        let (keys, values): (&dyn Any, &dyn Any) = (&self.keys, &self.values);
        if let (Some(keys), Some(values)) =
            (keys.downcast_ref::<Vec<E>>(), values.downcast_ref::<Vec<E>>())
        {
            return read(
                by_head(keys, self.capacity, self.key_width),
                by_head(values, self.capacity, self.value_width),
            );
        }
        let converted = |data: &[S], width: usize| {
            let sizes = (self.rows(), self.longest(), width);
            Tensor::build_in(ctx.tape().pool(), [sizes.0, sizes.1, sizes.2], |out| {
                let mut out = ArrayViewMut3::from_shape(sizes, out).expect("the same sizes");
                for (b, row) in self.rows.iter().enumerate() {
                    let from = b * self.capacity * width;
                    let used = &data[from..from + row.length * width];
                    let mut out = out.slice_mut(s![b, .., ..]);
                    let stored = used.iter().map(|x| x.load());
                    // What lies behind a row's length is not attended to.
                    let padded = stored.chain(std::iter::repeat(E::ZERO));
                    out.iter_mut().zip(padded).for_each(|(to, from)| *to = from);
                }
            })
        };
        let keys = converted(&self.keys, self.key_width);
        let values = converted(&self.values, self.value_width);
        read(
            by_head(keys.as_slice(), self.longest(), self.key_width),
            by_head(values.as_slice(), self.longest(), self.value_width),
        )
    }

    /// Makes row i a copy of what was row `sources[i]`, for beam search and
    /// continuous batching; rows may repeat, be left out, and change in number.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if there is no such row.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        if let Some(row) = sources.iter().find(|&&row| row >= self.rows()) {
            let what = format!("the cache has {} rows", self.rows());
            return Err(AttentionError::argument("kv_cache reorder", "row", row, what));
        }
        if !sources.iter().copied().eq(0..self.rows()) {
            let longest = sources.iter().map(|&b| self.rows[b].length).max().unwrap_or(0);
            let sources: Vec<_> = sources.iter().copied().map(Some).collect();
            self.rebuild(&sources, longest);
        }
        Ok(())
    }

    /// Adds `count` empty rows behind the others.
    pub fn add_rows(&mut self, count: usize) {
        let old = (0..self.rows()).map(Some);
        let sources: Vec<_> = old.chain(std::iter::repeat_n(None, count)).collect();
        self.rebuild(&sources, self.capacity);
    }

    /// Forgets all of row b's keys but the first `lengths[b]`.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if there is not one length for each row.
    pub fn truncate(&mut self, lengths: &[usize]) -> Result<()> {
        self.check_per_row("kv_cache truncate", "lengths", lengths.len())?;
        for (row, &length) in self.rows.iter_mut().zip(lengths) {
            row.length = row.length.min(length);
        }
        Ok(())
    }

    /// Empties all rows and keeps the memory.
    pub fn reset(&mut self) {
        self.rows.fill(Row::default());
    }

    /// Lets the next key of row b, which must be empty, stand at position
    /// `starts[b]`.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if there is not one start for each row or a
    /// row has keys.
    pub fn start_at(&mut self, starts: &[usize]) -> Result<()> {
        const OP: &str = "kv_cache start_at";
        self.check_per_row(OP, "starts", starts.len())?;
        if let Some(b) = self.rows.iter().position(|row| row.length > 0) {
            let what = format!("has {} keys already", self.rows[b].length);
            return Err(AttentionError::argument(OP, "row", b, what));
        }
        self.rows.iter_mut().zip(starts).for_each(|(row, &start)| row.start = start);
        Ok(())
    }
}

/// [B, T, H, D] as the kernels want it: [B, H, T, D].
const TO_KERNEL: [usize; 4] = [0, 2, 1, 3];

fn store<S: CacheElement, E: Element>(
    buffer: &mut [S],
    position: usize,
    width: usize,
    values: ArrayView1<'_, E>,
) {
    let to = &mut buffer[position * width..(position + 1) * width];
    to.iter_mut().zip(values).for_each(|(to, &value)| *to = S::store(value));
}
