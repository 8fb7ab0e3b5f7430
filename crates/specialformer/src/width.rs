//! A part of a model whose blocks are elastic, as a model of its own.

use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Parameter, Seed, Shape, Tensor};

use crate::config::{ModelConfig, SpecialformerConfig};
use crate::error::{Error, Result};
use crate::models::{Model, part};

impl ModelConfig {
    /// The shares of their heads and hidden units that blocks are trained to
    /// work with; 1 alone for a model without elastic blocks.
    pub fn widths(&self) -> &[f64] {
        let widths = match self {
            Self::Specialformer(model) => model.dynamic.as_ref().map(|dynamic| &dynamic.widths[..]),
            _ => None,
        };
        widths.filter(|widths| !widths.is_empty()).unwrap_or(&[1.0])
    }

    /// The configuration of the model that uses a share of the heads and
    /// hidden units, of one width then.
    ///
    /// # Errors
    /// [`Error::Config`] if it is none of [`widths`](Self::widths).
    pub fn at_width(&self, share: f64) -> Result<Self> {
        if !self.widths().contains(&share) {
            let reason = format!("the model is trained at {:?}", self.widths());
            return Err(Error::config("model.dynamic", "widths", share, reason));
        }
        let Self::Specialformer(model) = self else {
            return Ok(self.clone());
        };
        let mut narrow: Box<SpecialformerConfig> = model.clone();
        let head_width = model.head_width.unwrap_or(model.base.width / model.base.heads);
        narrow.head_width = (share != 1.0).then_some(head_width).or(model.head_width);
        narrow.kv_heads = model.kv_heads.map(|heads| part(heads, share));
        narrow.base.heads = part(model.base.heads, share);
        narrow.base.feed_forward = part(model.base.feed_forward, share);
        if let Some(dynamic) = &mut narrow.dynamic {
            dynamic.widths.clear();
        }
        Ok(Self::Specialformer(narrow))
    }
}

/// The model that uses a share of the heads and hidden units of one with
/// elastic blocks: the first of them, copied. It answers as that does in a
/// pass of that width ([`Ctx::with_width_multiplier`](specialformer_nn::Ctx::with_width_multiplier)),
/// with the parameters and the time of a smaller model.
///
/// # Errors
/// [`Error::Config`] if the model is not trained at the share.
pub fn at_width<E: Element>(
    model: &Model<E>,
    config: &ModelConfig,
    share: f64,
) -> Result<(ModelConfig, Model<E>)> {
    let narrow = config.at_width(share)?;
    let made = Model::new(&narrow, Seed::new(0))?;
    let (from, to) = (NamedParameters::of(model), NamedParameters::of(&made));
    let all = from.tensors();
    let cut = |(name, parameter): (&str, &Parameter<E>)| {
        let value = all.get(name).map(|value| first(value, parameter.shape()));
        value.map(|value| (name.to_string(), value))
    };
    to.load(to.iter().filter_map(cut).collect())?;
    Ok((narrow, made))
}

/// The first rows and columns.
fn first<E: Element>(value: &Tensor<E>, shape: Shape) -> Tensor<E> {
    if value.shape() == shape {
        return value.clone();
    }
    let (all, columns) = (value.shape().last_size(), shape.last_size());
    let rows = value.as_slice().chunks_exact(all).take(shape.elements() / columns);
    let mut values = rows.flat_map(|row| row[..columns].iter().copied());
    Tensor::from_fn(shape, || values.next().unwrap_or(E::ZERO))
}
