//! [`perplexity`]: how well a model predicts a text.

use rayon::prelude::*;
use specialformer_tensor::{Element, Pool};

use super::cache::TextCache;
use super::generator::pass;
use super::text_model::TextModel;
use crate::error::{Error, Result};
use crate::logits::loss;
use crate::models::Tokens;

/// Positions whose logits are held at a time.
const HEAD_ROWS: usize = 64;

/// How a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// All of a window at once.
    Whole,
    /// Token by token, as texts are generated: by the kernels for few rows.
    TokenByToken,
}

/// How well a text was predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Tokens that were predicted: all but the first.
    pub tokens: usize,
    /// Mean of −ln p.
    pub loss: f64,
}

impl Perplexity {
    /// exp of the mean loss.
    pub fn value(&self) -> f64 {
        self.loss.exp()
    }
}

/// The perplexity of a text of at least two tokens, cut into windows of
/// `window` tokens that know nothing of one another; each token but the first
/// is predicted once. `on_token` is told how many were predicted.
///
/// # Errors
/// If the text or the window is too short, the window is longer than the
/// model's, or a token is out of range.
pub fn perplexity<E: Element>(
    model: &impl TextModel<E>,
    text: &[u32],
    window: usize,
    reading: Reading,
    mut progress: impl FnMut(usize),
) -> Result<Perplexity> {
    let fail = |what: String| Err(Error::Input { model: "perplexity", what });
    if text.len() < 2 {
        return fail(format!("a text of {} tokens leaves nothing to predict", text.len()));
    }
    if window == 0 || model.window().is_some_and(|most| window > most) {
        let most = model.window().map_or(String::new(), |most| format!(" and at most {most}"));
        return fail(format!("a window of {window} tokens: must be at least 1{most}"));
    }
    let pool = Pool::new();
    let (mut sum, mut done) = (0.0, 0);
    for start in (0..text.len() - 1).step_by(window) {
        let end = (start + window).min(text.len() - 1);
        let (inputs, targets) = (&text[start..end], &text[start + 1..=end]);
        let mut cache: TextCache<f32> = model.new_cache(1)?;
        let step = match reading {
            Reading::Whole => inputs.len(),
            Reading::TokenByToken => 1,
        };
        for (inputs, targets) in inputs.chunks(step).zip(targets.chunks(step)) {
            let losses = pass(&pool, |ctx| {
                let tokens = Tokens::new(inputs, 1)?;
                let hidden = model.states_cached(ctx, tokens, None, &mut cache)?;
                let mut losses = Vec::with_capacity(targets.len());
                for (i, targets) in targets.chunks(HEAD_ROWS).enumerate() {
                    let first = i * HEAD_ROWS;
                    let rows = hidden.slice(1, first..first + targets.len())?;
                    let logits = model.head(ctx, &rows)?;
                    let rows = logits.value().as_slice().par_chunks_exact(model.vocabulary());
                    let all = rows.zip(targets).map(|(row, &id)| loss(row, id));
                    losses.par_extend(all);
                }
                Ok(losses)
            })?;
            sum += losses.iter().sum::<f64>();
            done += losses.len();
            progress(done);
        }
    }
    Ok(Perplexity { tokens: done, loss: sum / done as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perplexity_is_that_of_the_mean_loss() {
        let both = Perplexity { tokens: 2, loss: 3.0f64.ln() };
        assert!((both.value() - 3.0).abs() < 1e-12);
    }
}
