//! What attention layers do between their projections.

use specialformer_nn::{Ctx, Mode};
use specialformer_tensor::{Element, Parameter, Var};

use crate::alibi::alibi_slopes;
use crate::config::{AttentionConfig, Position};
use crate::error::{AttentionError, Result};
use crate::kernel::{Dropout, QueryOffset};
use crate::op::{AttentionArgs, attention, attention_kv, attention_qkv};
use crate::rope::{RopeArgs, rope_with};
use crate::rotary::Rotary;

/// Attention itself, with its positions.
#[derive(Debug, Clone)]
pub(crate) struct Core<E: Element> {
    pub(crate) config: AttentionConfig,
    pub(crate) slopes: Option<Vec<f64>>,
    pub(crate) rotary: Option<Rotary<E>>,
}

impl<E: Element> Core<E> {
    pub(crate) fn new(config: AttentionConfig, max_length: usize) -> Result<Self> {
        let slopes = (config.position == Position::Alibi).then(|| alibi_slopes(config.heads));
        let rotary = match config.position {
            Position::Rope { theta } => {
                let width = config.rotary_width.unwrap_or(config.head_width());
                let scaling = config.rope_scaling;
                let frequencies = scaling.frequencies(width, theta)?;
                Some(Rotary::new(frequencies, scaling.magnitude(), max_length)?)
            }
            _ => None,
        };
        // Some of the heads alone are as wide as they are among all.
        let config = AttentionConfig { head_width: Some(config.head_width()), ..config };
        Ok(Self { config, slopes, rotary })
    }

    /// The first heads alone.
    pub(crate) fn first(&self, heads: usize, kv_heads: usize) -> Self {
        let slopes = self.slopes.as_ref().map(|slopes| slopes[..heads].to_vec());
        let config = AttentionConfig { heads, kv_heads, ..self.config.clone() };
        Self { config, slopes, rotary: self.rotary.clone() }
    }

    /// x with the first `rotated` of `heads` heads rotated, if positions are
    /// rotary.
    pub(crate) fn rotate(
        &self,
        x: &Var<E>,
        heads: usize,
        rotated: usize,
        offset: QueryOffset<'_>,
        lengths: Option<&[usize]>,
    ) -> Result<Var<E>> {
        let Some(rotary) = &self.rotary else {
            return Ok(x.clone());
        };
        let shape = x.shape();
        let end = |row: usize| {
            let count = lengths.map_or(shape[1], |lengths| lengths[row]);
            offset.of(row).saturating_add(count)
        };
        let rows = lengths.map_or(shape[0], |lengths| lengths.len().min(shape[0]));
        let table = rotary.up_to((0..rows).map(end).max().unwrap_or(0))?;
        let head_width = self.config.head_width;
        let args = RopeArgs { offset, lengths, head_width, ..RopeArgs::new(heads, rotated) };
        rope_with(x, &table, &args)
    }

    /// Packed projections q|k|v with queries and keys rotated, if positions are
    /// rotary.
    pub(crate) fn rotate_packed(&self, qkv: &Var<E>) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        self.rotate(qkv, heads + 2 * kv_heads, heads + kv_heads, 0.into(), None)
    }

    fn args<'a>(
        &'a self,
        ctx: &Ctx<E>,
        query_offset: usize,
        key_lengths: Option<&'a [usize]>,
    ) -> Result<AttentionArgs<'a, E>> {
        let config = &self.config;
        let dropout = if config.dropout > 0.0 && ctx.mode() == Mode::Train {
            Some(Dropout::new(config.dropout, ctx.with_rng(|rng| rng.next_u64()))?)
        } else {
            None
        };
        Ok(AttentionArgs {
            kind: config.kind,
            scale: config.scale,
            causal: config.causal,
            query_offset: query_offset.into(),
            key_lengths,
            alibi_slopes: self.slopes.as_deref(),
            dropout,
            ..AttentionArgs::default()
        })
    }

    /// Attention from one packed projection [B, T, (H + 2·Hkv)·D].
    pub(crate) fn all(
        &self,
        ctx: &Ctx<E>,
        qkv: &Var<E>,
        key_lengths: Option<&[usize]>,
    ) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        let qkv = self.rotate_packed(qkv)?;
        let args = self.args(ctx, 0, key_lengths)?;
        attention_qkv(&qkv, heads, kv_heads, &args)
    }

    /// Attention of queries [B, Tq, H·D] at the end of the keys and values
    /// [B, Tk, 2·Hkv·D].
    pub(crate) fn some(
        &self,
        ctx: &Ctx<E>,
        q: &Var<E>,
        kv: &Var<E>,
        key_lengths: Option<&[usize]>,
    ) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        let offset = kv.shape()[1].saturating_sub(q.shape()[1]);
        let args = self.args(ctx, offset, key_lengths)?;
        let q = self.rotate(q, heads, heads, offset.into(), None)?;
        let kv = self.rotate(kv, 2 * kv_heads, kv_heads, 0.into(), None)?;
        attention_kv(&q, &kv, heads, kv_heads, &args)
    }

    /// Attention of memory [B, Tk, 2·Hkv·D] without a common order of queries
    /// and keys.
    pub(crate) fn cross(
        &self,
        ctx: &Ctx<E>,
        q: &Var<E>,
        kv: &Var<E>,
        key_lengths: Option<&[usize]>,
    ) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        attention_kv(q, kv, heads, kv_heads, &self.args(ctx, 0, key_lengths)?)
    }

    /// [`some`](Self::some) for queries, keys and values that are apart, with
    /// an additive bias.
    pub(crate) fn apart(
        &self,
        ctx: &Ctx<E>,
        [q, k, v]: [&Var<E>; 3],
        key_lengths: Option<&[usize]>,
        bias: Option<&Var<E>>,
    ) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        let head_width = self.config.head_width();
        let offset = k.shape()[1].saturating_sub(q.shape()[1]);
        let args = AttentionArgs { bias, ..self.args(ctx, offset, key_lengths)? };
        let q = self.rotate(q, heads, heads, offset.into(), None)?;
        let k = self.rotate(k, kv_heads, kv_heads, 0.into(), None)?;
        let by_head = |x: &Var<E>, heads| {
            let shape = x.shape();
            x.reshape([shape[0], shape[1], heads, head_width])
        };
        let shape = q.shape();
        let (q, k, v) = (by_head(&q, heads)?, by_head(&k, kv_heads)?, by_head(v, kv_heads)?);
        Ok(attention(&q, &k, &v, &args)?.reshape(shape)?)
    }
}

/// Checks that x is [B, T, width].
pub(crate) fn check_input<E: Element>(op: &'static str, x: &Var<E>, width: usize) -> Result<()> {
    let shape = x.shape();
    if shape.rank() == 3 && shape[2] == width {
        return Ok(());
    }
    Err(AttentionError::shape(op, "x", &shape, format!("must be [B, T, {width}]")))
}

/// Scales the start values of query and key projections.
pub(crate) fn scale_start<E: Element>(parameter: &Parameter<E>, factor: f64) {
    if factor != 1.0 {
        let factor = E::from_f64(factor);
        parameter.update(|values| values.iter_mut().for_each(|v| *v *= factor));
    }
}
