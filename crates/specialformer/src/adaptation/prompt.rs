//! Asking the model which task a prompt is of.

use std::time::Instant;

use specialformer_nn::Ctx;
use specialformer_svd_finetune::ExpertVector;

use super::{AdaptiveModel, Choice};
use crate::data::prompts::PromptExample;
use crate::error::Result;
use crate::families::PublishedModel;
use crate::generate::{TextCache, TextModel};
use crate::models::Tokens;
use crate::svf::eval_ctx;

/// A task's name as words.
fn words(task: &str) -> String {
    task.replace(['-', '_'], " ")
}

/// The question that makes a model name the task of a prompt; the outcomes
/// are the names to choose from.
pub fn identification_prompt(outcomes: &[&str], prompt: &str) -> String {
    let names: Vec<String> = outcomes.iter().map(|name| words(name)).collect();
    format!("Name the kind of this task.\nKinds: {}\nTask: {prompt}", names.join(", "))
}

/// What an expert is trained on to name the tasks of prompts.
pub fn identification_examples(
    outcomes: &[&str],
    prompts: &[(String, Vec<String>)],
) -> Vec<PromptExample> {
    let of_task = |(task, prompts): &(String, Vec<String>)| -> Vec<PromptExample> {
        let one = |prompt: &String| PromptExample {
            prompt: identification_prompt(outcomes, prompt),
            answer: words(task),
        };
        prompts.iter().map(one).collect()
    };
    prompts.iter().flat_map(of_task).collect()
}

pub(super) fn identify(
    adaptive: &AdaptiveModel,
    expert: Option<&ExpertVector>,
    prompt: &str,
) -> Result<Choice> {
    let start = Instant::now();
    let outcomes = adaptive.outcomes();
    adaptive.tuned.apply(expert)?;
    let scores = |prompt: &str| -> Result<Vec<f64>> {
        let text = identification_prompt(&outcomes, prompt);
        let tokens = adaptive.format.prompt_tokens(&text)?;
        let names = outcomes.iter().map(|name| adaptive.format.answer_tokens(&words(name)));
        log_probabilities(adaptive.model(), &tokens, &names.collect::<Result<Vec<_>>>()?)
    };
    let mut found = scores(prompt)?;
    if expert.is_none() {
        // Some names are probable whatever the question.
        let known = match adaptive.without_question.get() {
            Some(known) => known.clone(),
            None => {
                let measured = scores("")?;
                adaptive.without_question.get_or_init(|| measured).clone()
            }
        };
        found.iter_mut().zip(&known).for_each(|(score, known)| *score -= known);
    }
    let scores: Vec<(String, f64)> =
        outcomes.iter().map(|name| (*name).to_owned()).zip(found).collect();
    let best = scores.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name.clone());
    Ok(Choice::one(best.as_deref().unwrap_or(super::OTHERS), scores, start))
}

/// log P of each continuation of a text. The text is read once.
pub(super) fn log_probabilities(
    model: &PublishedModel,
    text: &[u32],
    continuations: &[Vec<u32>],
) -> Result<Vec<f64>> {
    let ctx: Ctx = eval_ctx();
    let mut cache: TextCache<f32> = model.new_cache(1)?;
    let hidden = model.states_cached(&ctx, Tokens::new(text, 1)?, None, &mut cache)?;
    let length = text.len();
    let last = hidden.slice(1, length - 1..length)?;
    let first = model.head(&ctx, &last)?.log_softmax(2)?;
    cache.reorder(&vec![0; continuations.len()])?;
    let longest = continuations.iter().map(Vec::len).max().unwrap_or(1);
    let mut tokens = vec![0u32; continuations.len() * longest];
    for (row, continuation) in tokens.chunks_exact_mut(longest).zip(continuations) {
        row[..continuation.len()].copy_from_slice(continuation);
    }
    let counts: Vec<usize> = continuations.iter().map(Vec::len).collect();
    let rows = Tokens::new(&tokens, continuations.len())?;
    let hidden = model.states_cached(&ctx, rows, Some(&counts), &mut cache)?;
    let next = model.head(&ctx, &hidden)?.log_softmax(2)?;
    let vocabulary = model.vocabulary();
    let (first, next) = (first.value().as_slice(), next.value().as_slice());
    let sum = |(row, continuation): (usize, &Vec<u32>)| {
        let begun = continuation.first().map_or(0.0, |&token| f64::from(first[token as usize]));
        let rest =
            continuation.iter().skip(1).enumerate().map(|(t, &token)| {
                f64::from(next[(row * longest + t) * vocabulary + token as usize])
            });
        begun + rest.sum::<f64>()
    };
    Ok(continuations.iter().enumerate().map(sum).collect())
}
