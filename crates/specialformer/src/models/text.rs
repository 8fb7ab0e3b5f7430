//! Continuing texts with models from a configuration.

use specialformer_attention::CacheElement;
use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Var};

use super::{Model, Tokens};
use crate::error::{Error, Result};
use crate::generate::{TextCache, TextModel};

impl<E: Element> Model<E> {
    fn cannot<T>(&self) -> Result<T> {
        let what = match self {
            Self::Lstm(_) => "an LSTM does not continue texts",
            _ => "an MLP sees whole windows and does not continue texts",
        };
        Err(Error::Input { model: "text", what: what.into() })
    }
}

/// A transformer, a Specialformer that is a decoder (texts are of the tasks that
/// the context names, or of none, which takes a language-model head that tasks
/// share), or a published decoder.
impl<E: Element> TextModel<E> for Model<E> {
    fn vocabulary(&self) -> usize {
        match self {
            Self::Transformer(model) => model.outputs(),
            Self::Specialformer(model) => model.config().base.outputs(),
            Self::Published(model) => TextModel::vocabulary(model.as_ref()),
            Self::Lstm(_) | Self::Mlp(_) => 0,
        }
    }

    fn window(&self) -> Option<usize> {
        match self {
            Self::Transformer(model) => Some(model.window()),
            Self::Specialformer(model) => Some(model.config().base.window),
            Self::Published(model) => TextModel::window(model.as_ref()),
            Self::Lstm(_) | Self::Mlp(_) => None,
        }
    }

    fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<TextCache<S>> {
        match self {
            Self::Transformer(model) => model.new_cache(rows),
            Self::Specialformer(model) => model.new_cache(rows),
            Self::Published(model) => model.new_cache(rows),
            Self::Lstm(_) | Self::Mlp(_) => self.cannot(),
        }
    }

    fn states_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>> {
        match self {
            Self::Transformer(model) => model.states_cached(ctx, tokens, counts, cache),
            Self::Specialformer(model) => model.states_cached(ctx, tokens, counts, cache),
            Self::Published(model) => model.states_cached(ctx, tokens, counts, cache),
            Self::Lstm(_) | Self::Mlp(_) => self.cannot(),
        }
    }

    fn head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        match self {
            Self::Transformer(model) => model.head_of(ctx, hidden),
            Self::Specialformer(model) => model.text_head(ctx, hidden),
            Self::Published(model) => model.head(ctx, hidden),
            Self::Lstm(_) | Self::Mlp(_) => self.cannot(),
        }
    }
}
