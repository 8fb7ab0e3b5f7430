//! [`generate`]: continues texts token by token.

use specialformer_attention::CacheElement;
use specialformer_checkpoint::ModelFamily;
use specialformer_nn::{Ctx, TaskRows};
use specialformer_tensor::{Element, Parallelism, Pool, RngStream, Seed, Tape, TapeConfig};

use super::cache::TextCache;
use super::sampling::Sampling;
use super::text_model::TextModel;
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
    /// The task of each prompt, for models with parts of each task's own: a
    /// Specialformer's adapters and heads, or experts that answer rows of one
    /// batch ([`attach_bank`](crate::svf::attach_bank)); see
    /// [`Ctx::with_tasks`]. Empty for none.
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
        let family = &model.config().family;
        if let Some(decoder) = family.decoder() {
            self.stop_tokens.extend(&decoder.eos_token_ids);
        }
        if let ModelFamily::T5(t5) = family {
            self.stop_tokens.extend(&t5.eos_token_ids);
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
pub(super) struct Row {
    /// Its number among the prompts.
    pub number: usize,
    /// Prompt and new tokens.
    pub text: Vec<u32>,
    pub rng: RngStream,
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
    model: &impl TextModel<E>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    on_token: impl FnMut(usize, u32) -> Flow,
) -> Result<Vec<Generated>> {
    config.sampling.validate()?;
    check_tasks(config, prompts.len())?;
    for (number, prompt) in prompts.iter().enumerate() {
        check(model, number, prompt)?;
    }
    if prompts.is_empty() || config.max_tokens == 0 {
        let nothing = Generated { tokens: Vec::new(), finish: Finish::MaxTokens };
        return Ok(vec![nothing; prompts.len()]);
    }
    let pool = Pool::new();
    let rows = prompts.iter().enumerate();
    let rows = rows.map(|(number, prompt)| Row {
        number,
        text: prompt.clone(),
        rng: config.seed.stream_at("generate", number as u64),
    });
    let rows: Vec<Row> = rows.collect();
    let mut cache: TextCache<S> = model.new_cache(prompts.len())?;
    let logits = read(model, &pool, tasks_of(config, &rows)?, prompts, &mut cache)?;
    continue_rows(model, &pool, rows, logits, &mut cache, config, on_token)
}

/// Fails unless there is a task for each prompt, or none.
pub(super) fn check_tasks(config: &GenerateConfig, prompts: usize) -> Result<()> {
    if config.tasks.is_empty() || config.tasks.len() == prompts {
        return Ok(());
    }
    let what = format!("{} tasks for {prompts} prompts", config.tasks.len());
    Err(Error::Input { model: "generate", what })
}

/// The tasks of the rows that are left.
pub(super) fn tasks_of(config: &GenerateConfig, rows: &[Row]) -> Result<Option<TaskRows>> {
    let tasks = config.tasks.iter().filter(|&&task| task != TaskRows::NONE);
    let Some(&largest) = tasks.max() else { return Ok(None) };
    let ids: Vec<u32> = rows.iter().map(|row| config.tasks[row.number]).collect();
    Ok(Some(TaskRows::new(&ids, largest as usize + 1)?))
}

/// Runs a pass of a model, with a context that evaluates, records nothing and
/// uses all threads. The pass runs on a thread of the pool: a token is some
/// hundred short products, and each that starts from outside the pool would
/// hand over to it and wait.
pub(super) fn pass<E: Element, R: Send>(
    pool: &Pool<E>,
    of: impl FnOnce(&Ctx<E>) -> Result<R> + Send,
) -> Result<R> {
    rayon::scope(|_| {
        of(&Ctx::eval_on(Tape::with_config(TapeConfig {
            record: false,
            parallelism: Parallelism::Rayon,
            pool: pool.clone(),
            ..TapeConfig::default()
        })))
    })
}

/// Continues rows whose texts are in the cache but for the tokens that
/// `logits` lead to.
pub(super) fn continue_rows<E: Element, S: CacheElement>(
    model: &impl TextModel<E>,
    pool: &Pool<E>,
    rows: Vec<Row>,
    mut logits: Vec<f32>,
    cache: &mut TextCache<S>,
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32) -> Flow,
) -> Result<Vec<Generated>> {
    let mut batch = Batch::new(rows, model.vocabulary(), model.window());
    loop {
        let before = batch.rows.len();
        let going = batch.choose(&mut logits, config, &mut on_token)?;
        if batch.rows.is_empty() {
            return Ok(batch.results);
        }
        if going.len() < before {
            cache.reorder(&going)?;
        }
        let last = batch.rows.iter().map(|row| &row.text[row.text.len() - 1..]);
        let last: Vec<&[u32]> = last.collect();
        logits = read(model, pool, tasks_of(config, &batch.rows)?, &last, cache)?;
    }
}

/// Texts in work, and what has become of all.
pub(super) struct Batch {
    pub rows: Vec<Row>,
    pub results: Vec<Generated>,
    vocabulary: usize,
    window: Option<usize>,
}

impl Batch {
    pub(super) fn new(rows: Vec<Row>, vocabulary: usize, window: Option<usize>) -> Self {
        let unfinished = Generated { tokens: Vec::new(), finish: Finish::MaxTokens };
        let results = vec![unfinished; rows.len()];
        Self { rows, results, vocabulary, window }
    }

    /// Gives each row the token that its logits [B, V] lead to, and drops the
    /// rows that end. The places of those that go on.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
        config: &GenerateConfig,
        on_token: &mut impl FnMut(usize, u32) -> Flow,
    ) -> Result<Vec<usize>> {
        let mut going = Vec::with_capacity(self.rows.len());
        let mut cancelled = false;
        let parts = logits.chunks_exact_mut(self.vocabulary);
        for (i, (row, logits)) in self.rows.iter_mut().zip(parts).enumerate() {
            let result = &mut self.results[row.number];
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
                self.window.filter(|&w| row.text.len() > w).map(|_| Finish::Window)
            };
            match ended {
                Some(finish) => result.finish = finish,
                None => going.push(i),
            }
        }
        if cancelled {
            for &i in &going {
                self.results[self.rows[i].number].finish = Finish::Cancelled;
            }
            going.clear();
        }
        let mut place = 0;
        self.rows.retain(|_| {
            place += 1;
            going.binary_search(&(place - 1)).is_ok()
        });
        Ok(going)
    }
}

pub(super) fn check<E: Element>(
    model: &impl TextModel<E>,
    number: usize,
    prompt: &[u32],
) -> Result<()> {
    let what = if prompt.is_empty() {
        "has no token to begin with".to_owned()
    } else if let Some(window) = model.window().filter(|&window| prompt.len() > window) {
        format!("has {} tokens, the model's window is {window}", prompt.len())
    } else if let Some(id) = prompt.iter().find(|&&id| id as usize >= model.vocabulary()) {
        format!("has token {id}, the vocabulary has {}", model.vocabulary())
    } else {
        return Ok(());
    };
    Err(Error::Input { model: "generate", what: format!("prompt {number} {what}") })
}

/// Reads tokens behind those in the cache; the logits [B, V] that follow each
/// row.
pub(super) fn read<E: Element, S: CacheElement>(
    model: &impl TextModel<E>,
    pool: &Pool<E>,
    tasks: Option<TaskRows>,
    rows: &[impl AsRef<[u32]>],
    cache: &mut TextCache<S>,
) -> Result<Vec<f32>> {
    let counts: Vec<usize> = rows.iter().map(|row| row.as_ref().len()).collect();
    let longest = counts.iter().copied().max().unwrap_or(0);
    let mut tokens = vec![0u32; rows.len() * longest];
    for (place, row) in tokens.chunks_exact_mut(longest).zip(rows) {
        place[..row.as_ref().len()].copy_from_slice(row.as_ref());
    }
    let padded = counts.iter().any(|&count| count != longest).then_some(counts.as_slice());
    let tokens = Tokens::new(&tokens, rows.len())?;
    pass(pool, |ctx| {
        let ctx = &ctx.with_tasks(tasks);
        let hidden = model.states_cached(ctx, tokens, padded, cache)?;
        // The head is the largest product of small models: only where it counts.
        let last = last_of_rows(&hidden, padded)?;
        Ok(to_f32(model.head(ctx, &last)?.value().as_slice()))
    })
}

pub(super) fn to_f32<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|value| value.to_f64() as f32).collect()
}
