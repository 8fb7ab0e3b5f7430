//! [`generate_from`]: texts from what an encoder reads.

use specialformer_tensor::{Element, Pool};

use super::generator::{Batch, Flow, GenerateConfig, Generated, Row, pass, to_f32};
use crate::error::{Error, Result};
use crate::families::{PublishedModel, last_of_rows};
use crate::models::Tokens;

/// Texts that an encoder-decoder (T5) makes of sources of any lengths, in one
/// batch. `on_token` is told each new token and the number of its source.
///
/// The encoder reads once; the decoder reads its text anew for each token.
///
/// # Errors
/// If a source is empty or has a token out of range, a setting is outside its
/// range, or the model is not an encoder-decoder.
///
/// ```
/// use specialformer::checkpoint::HfConfig;
/// use specialformer::families::PublishedModel;
/// use specialformer::generate::{Flow, GenerateConfig, generate_from};
/// use specialformer::prelude::*;
///
/// let json = r#"{
///     "model_type": "t5", "vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32,
///     "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 1
/// }"#;
/// let config = HfConfig::from_json("config.json", json.as_bytes())?;
/// let model = PublishedModel::<f32>::new(&config, Seed::new(1))?;
/// let sources = [vec![3, 4, 5], vec![6]];
/// let texts = generate_from(&model, &sources, &GenerateConfig::new(4), |_, _| Flow::Continue)?;
/// assert!(texts.iter().all(|text| text.tokens.len() == 4));
/// # Ok::<(), specialformer::Error>(())
/// ```
pub fn generate_from<E: Element>(
    model: &PublishedModel<E>,
    sources: &[Vec<u32>],
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32) -> Flow,
) -> Result<Vec<Generated>> {
    config.sampling.validate()?;
    let fail = |what: String| Err(Error::Input { model: "generate", what });
    let Some(first) = model.decoder_start() else {
        return fail("the model has no encoder: it continues texts".into());
    };
    for (number, source) in sources.iter().enumerate() {
        if source.is_empty() {
            return fail(format!("source {number} has no token"));
        }
        if let Some(id) = source.iter().find(|&&id| id as usize >= model.vocabulary()) {
            let most = model.vocabulary();
            return fail(format!("source {number} has token {id}, the vocabulary has {most}"));
        }
    }
    let rows = sources.iter().enumerate().map(|(number, _)| Row {
        number,
        text: vec![first],
        rng: config.seed.stream_at("generate", number as u64),
    });
    let mut batch = Batch::new(rows.collect(), model.vocabulary(), None);
    if sources.is_empty() || config.max_tokens == 0 {
        return Ok(batch.results);
    }
    let pool = Pool::new();
    let mut lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut tokens = vec![0; sources.len() * longest];
    for (place, source) in tokens.chunks_exact_mut(longest).zip(sources) {
        place[..source.len()].copy_from_slice(source);
    }
    let sources = Tokens::new(&tokens, sources.len())?;
    let mut states = pass(&pool, |ctx| Ok(model.encoded(ctx, sources, &lengths)?.value().clone()))?;
    loop {
        let count = batch.rows.len();
        let texts: Vec<u32> = batch.rows.iter().flat_map(|row| row.text.iter().copied()).collect();
        let texts = Tokens::new(&texts, count)?;
        let mut logits = pass(&pool, |ctx| {
            let hidden = model.decoded(ctx, texts, &ctx.constant(states.clone()), &lengths)?;
            let logits = model.head(ctx, &last_of_rows(&hidden, None)?)?;
            Ok(to_f32(logits.value().as_slice()))
        })?;
        let going = batch.choose(&mut logits, config, &mut on_token)?;
        if going.is_empty() {
            return Ok(batch.results);
        }
        if going.len() < count {
            states = pass(&pool, |ctx| {
                let (states, shape) = (ctx.constant(states.clone()), states.shape());
                let flat = states.reshape([count, shape[1] * shape[2]])?;
                let left = flat.embedding(&going, going.len())?;
                Ok(left.reshape([going.len(), shape[1], shape[2]])?.value().clone())
            })?;
            lengths = going.iter().map(|&i| lengths[i]).collect();
        }
    }
}
