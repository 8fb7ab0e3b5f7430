//! The cisformer's attention layer.

use specialformer_nn::{Ctx, Module, NnError, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Var};

use crate::config::{AttentionConfig, Queries};
use crate::error::Result;
use crate::layer_core::{Core, check_input, scale_start};
use crate::per_position::PerPositionLinear;

/// The attention layer of the cisformer: every position of a fixed window has
/// its own W_Q, W_K, W_V and W_O (after arXiv 2508.04461). There is no
/// positional embedding: the parameters are what tells positions apart.
///
/// Parameters: `q_proj`, `kv_proj` (keys, then values) and `o_proj`,
/// each with `weight` [T, out, in] and, if configured, `bias` [T, out].
///
/// # Shapes
/// x [B, T, C] for the window's T → [B, T, C].
#[derive(Debug, Clone)]
pub struct PerPositionAttention<E: Element = f32> {
    core: Core<E>,
    q: PerPositionLinear<E>,
    kv: PerPositionLinear<E>,
    o: PerPositionLinear<E>,
}

impl<E: Element> PerPositionAttention<E> {
    /// A layer for a window of `window` positions.
    ///
    /// # Errors
    /// If a setting is outside its range, or queries and keys are to be normed
    /// or clipped, which this layer does not do.
    pub fn new(config: AttentionConfig, window: usize, rng: &mut RngStream) -> Result<Self> {
        const LAYER: &str = "PerPositionAttention";
        config.validate(LAYER)?;
        let unused =
            [("query_key_norm", config.query_key_norm.is_some()), ("clip", config.clip.is_some())];
        if let Some((field, _)) = unused.into_iter().find(|(_, given)| *given) {
            let reason = "is not for projections of each position's own";
            return Err(NnError::config(LAYER, field, "given", reason).into());
        }
        let (c, bias) = (config.width, config.bias);
        let output_bias = config.output_bias.unwrap_or(bias);
        let (q, kv) = (config.query_width(), 2 * config.kv_width());
        let layer = Self {
            q: PerPositionLinear::new(window, c, q, bias, rng)?,
            kv: PerPositionLinear::new(window, c, kv, bias, rng)?,
            o: PerPositionLinear::new(window, q, c, output_bias, rng)?,
            core: Core::new(config, window)?,
        };
        scale_start(layer.q.weight(), layer.core.config.query_key_scale);
        let (factor, keys) = (layer.core.config.query_key_scale, layer.core.config.kv_width() * c);
        if factor != 1.0 {
            layer.kv.weight().update(|values| {
                for position in values.chunks_exact_mut(2 * keys) {
                    position[..keys].iter_mut().for_each(|v| *v *= E::from_f64(factor));
                }
            });
        }
        Ok(layer)
    }

    /// The settings.
    pub fn config(&self) -> &AttentionConfig {
        &self.core.config
    }

    /// Number of positions.
    pub fn window(&self) -> usize {
        self.o.window()
    }

    /// The projections q|k|v of all positions, packed. For inspection.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn project_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        check_input("project_qkv", x, self.core.config.width)?;
        let q = self.q.forward(ctx, x, 0)?;
        let kv = self.kv.forward(ctx, x, 0)?;
        Ok(Var::concat(&[&q, &kv], 2)?)
    }

    /// Self-attention: all positions, or only the last query's output
    /// [B, 1, C].
    ///
    /// # Errors
    /// If the shapes do not fit or x is longer than the window.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, queries: Queries) -> Result<Var<E>> {
        check_input("per_position_attention", x, self.core.config.width)?;
        let kv = self.kv.forward(ctx, x, 0)?;
        let first = match queries {
            Queries::All => 0,
            Queries::Last => x.shape()[1].saturating_sub(1),
        };
        let q = match queries {
            Queries::All => self.q.forward(ctx, x, 0)?,
            Queries::Last => {
                let last = x.slice(1, first..x.shape()[1])?;
                self.q.forward(ctx, &last, first)?
            }
        };
        let mixed = self.core.some(ctx, &q, &kv, None)?;
        self.o.forward(ctx, &mixed, first)
    }
}

impl<E: Element> Module<E> for PerPositionAttention<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("q_proj", &self.q);
        visitor.module("kv_proj", &self.kv);
        visitor.module("o_proj", &self.o);
    }
}
