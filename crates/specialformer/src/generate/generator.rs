//! [`generate`]: continues texts token by token.

use specialformer_attention::CacheElement;
use specialformer_nn::{Ctx, TaskRows};
use specialformer_tensor::{Element, Parallelism, RngStream, Seed, Tape, TapeConfig};

use super::cache::TextCache;
use super::sampling::Sampling;
use crate::error::{Error, Result};
use crate::families::{PublishedModel, last_of_rows};
use crate::models::Tokens;

/// What is generated, and when it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateConfig {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// At most so many new tokens a text.
    pub max_tokens: usize,
    /// Tokens that end a text. They are part of it.
    pub stop_tokens: Vec<u32>,
    /// Each text draws from a stream of its own, so that what stands beside it
    /// in the batch changes nothing.
    pub seed: Seed,
    /// The task of each prompt, for models that answer rows of one batch with
    /// different experts; see [`Ctx::with_tasks`]. Empty for none.
    pub tasks: Vec<u32>,
}

impl GenerateConfig {
    /// Greedy, up to `max_tokens`.
    pub fn new(max_tokens: usize) -> Self {
        let sampling = Sampling::greedy();
        let (stop_tokens, tasks) = (Vec::new(), Vec::new());
        Self { sampling, max_tokens, stop_tokens, seed: Seed::new(0), tasks }
    }

    /// Ends texts with the tokens that the model's configuration names.
    #[must_use]
    pub fn stopping_as<E: Element>(mut self, model: &PublishedModel<E>) -> Self {
        if let Some(decoder) = model.config().family.decoder() {
            self.stop_tokens.extend(&decoder.eos_token_ids);
        }
        self
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// It has as many tokens as were asked for.
    MaxTokens,
    /// The model's window is full.
    Window,
    /// The caller ended it.
    Cancelled,
}

/// A text's continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
}

/// What to do after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End this text.
    EndText,
    /// End all texts.
    Cancel,
}

/// A text in work.
struct Row {
    /// Its number among the prompts.
    number: usize,
    /// Prompt and new tokens.
    text: Vec<u32>,
    rng: RngStream,
}

/// Continues prompts of any lengths in one batch. `on_token` is told each new
/// token and the number of its prompt, and may end that text or all. Texts
/// that ended take no further work. Keys and values are kept as `S`.
///
/// The result is that of each prompt by itself, up to rounding.
///
/// # Errors
/// If a prompt is empty, longer than the model's window or has a token out of
/// range, a setting is outside its range, or the model is not a decoder.
///
/// ```
/// use specialformer::checkpoint::HfConfig;
/// use specialformer::families::PublishedModel;
/// use specialformer::generate::{Finish, Flow, GenerateConfig, generate};
/// use specialformer::prelude::*;
///
/// let json = r#"{
///     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
///     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64
/// }"#;
/// let config = HfConfig::from_json("config.json", json.as_bytes())?;
/// let model = PublishedModel::<f32>::new(&config, Seed::new(1))?;
/// let prompts = [vec![3, 4, 5], vec![6]];
/// let config = GenerateConfig::new(4);
/// let texts = generate::<f32, f32>(&model, &prompts, &config, |_, _| Flow::Continue)?;
/// assert!(texts.iter().all(|text| text.tokens.len() == 4 && text.finish == Finish::MaxTokens));
/// # Ok::<(), specialformer::Error>(())
/// ```
pub fn generate<E: Element, S: CacheElement>(
    model: &PublishedModel<E>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32) -> Flow,
) -> Result<Vec<Generated>> {
    config.sampling.validate()?;
    check(model, prompts)?;
    if !config.tasks.is_empty() && config.tasks.len() != prompts.len() {
        let what = format!("{} tasks for {} prompts", config.tasks.len(), prompts.len());
        return Err(Error::Input { model: "generate", what });
    }
    let unfinished = Generated { tokens: Vec::new(), finish: Finish::MaxTokens };
    let mut results = vec![unfinished; prompts.len()];
    if prompts.is_empty() || config.max_tokens == 0 {
        return Ok(results);
    }
    let mut rows: Vec<Row> = prompts
        .iter()
        .enumerate()
        .map(|(number, prompt)| Row {
            number,
            text: prompt.clone(),
            rng: config.seed.stream_at("generate", number as u64),
        })
        .collect();
    let mut cache: TextCache<S> = model.new_cache(rows.len())?;
    let mut logits = prefill(model, prompts, &context(config, &rows)?, &mut cache)?;
    let mut cancelled = false;
    loop {
        let vocabulary = model.vocabulary();
        let mut going = Vec::with_capacity(rows.len());
        for (i, (row, logits)) in
            rows.iter_mut().zip(logits.chunks_exact_mut(vocabulary)).enumerate()
        {
            let result = &mut results[row.number];
            if cancelled {
                result.finish = Finish::Cancelled;
                continue;
            }
            let token = config.sampling.choose(logits, &row.text, &mut row.rng)?;
            row.text.push(token);
            result.tokens.push(token);
            let flow = on_token(row.number, token);
            cancelled |= flow == Flow::Cancel;
            let ended = if flow != Flow::Continue {
                Some(Finish::Cancelled)
            } else if config.stop_tokens.contains(&token) {
                Some(Finish::Stop)
            } else if result.tokens.len() >= config.max_tokens {
                Some(Finish::MaxTokens)
            } else {
                model.window().filter(|&w| row.text.len() > w).map(|_| Finish::Window)
            };
            match ended {
                Some(finish) => result.finish = finish,
                None => going.push(i),
            }
        }
        if cancelled {
            for &i in &going {
                results[rows[i].number].finish = Finish::Cancelled;
            }
        }
        if going.is_empty() || cancelled {
            return Ok(results);
        }
        if going.len() < rows.len() {
            cache.reorder(&going)?;
            let mut place = 0;
            rows.retain(|_| {
                place += 1;
                going.binary_search(&(place - 1)).is_ok()
            });
        }
        let last: Vec<u32> = rows.iter().filter_map(|row| row.text.last().copied()).collect();
        let ctx = context(config, &rows)?;
        let hidden =
            model.states_cached(&ctx, Tokens::new(&last, rows.len())?, None, &mut cache)?;
        logits = to_f32(model.head(&ctx, &hidden)?.value().as_slice());
    }
}

fn check<E: Element>(model: &PublishedModel<E>, prompts: &[Vec<u32>]) -> Result<()> {
    for (number, prompt) in prompts.iter().enumerate() {
        let what = if prompt.is_empty() {
            "has no token to begin with".to_owned()
        } else if let Some(window) = model.window().filter(|&window| prompt.len() > window) {
            format!("has {} tokens, the model's window is {window}", prompt.len())
        } else if let Some(id) = prompt.iter().find(|&&id| id as usize >= model.vocabulary()) {
            format!("has token {id}, the vocabulary has {}", model.vocabulary())
        } else {
            continue;
        };
        return Err(Error::Input { model: "generate", what: format!("prompt {number} {what}") });
    }
    Ok(())
}

/// Reads the prompts; the logits [B, V] that follow each.
fn prefill<E: Element, S: CacheElement>(
    model: &PublishedModel<E>,
    prompts: &[Vec<u32>],
    ctx: &Ctx<E>,
    cache: &mut TextCache<S>,
) -> Result<Vec<f32>> {
    let counts: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let longest = counts.iter().copied().max().unwrap_or(0);
    let mut tokens = vec![0u32; prompts.len() * longest];
    for (row, prompt) in tokens.chunks_exact_mut(longest).zip(prompts) {
        row[..prompt.len()].copy_from_slice(prompt);
    }
    let padded = counts.iter().any(|&count| count != longest).then_some(counts.as_slice());
    let tokens = Tokens::new(&tokens, prompts.len())?;
    let hidden = model.states_cached(ctx, tokens, padded, cache)?;
    // The head is the largest product of small models: only where it counts.
    let last = last_of_rows(&hidden, padded)?;
    Ok(to_f32(model.head(ctx, &last)?.value().as_slice()))
}

/// The context of a pass over the rows that are left.
fn context<E: Element>(config: &GenerateConfig, rows: &[Row]) -> Result<Ctx<E>> {
    let parallelism = Parallelism::Rayon;
    let tape = TapeConfig { record: false, parallelism, ..TapeConfig::default() };
    let ctx = Ctx::eval_on(Tape::with_config(tape));
    let Some(largest) = config.tasks.iter().filter(|&&task| task != TaskRows::NONE).max() else {
        return Ok(ctx);
    };
    let tasks: Vec<u32> = rows.iter().map(|row| config.tasks[row.number]).collect();
    Ok(ctx.with_tasks(Some(TaskRows::new(&tasks, *largest as usize + 1)?)))
}

fn to_f32<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|value| value.to_f64() as f32).collect()
}
