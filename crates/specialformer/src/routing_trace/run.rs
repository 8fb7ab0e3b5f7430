//! Running models for their traces.

use std::path::Path;

use rayon::prelude::*;
use specialformer_routing::RoutingTrace;
use specialformer_train::HeldOut;

use super::model::RoutedModel;
use super::part::PromptTrace;
use super::prompts::Prompt;
use super::writer::{TraceInfo, TraceWriter};
use crate::error::{Error, Result};
use crate::run::HeldOutRows;

/// Prompts that are run at the same time.
const AT_ONCE: usize = 32;

/// How prompts are traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceOptions {
    /// Tokens that the model adds to each prompt, greedily.
    pub generate: usize,
    /// Prompts are cut to so many tokens; the model's window if absent.
    pub most_tokens: Option<usize>,
    /// Whether what each token stands for is kept, for showing.
    pub pieces: bool,
}

/// Runs prompts through a model and writes where their tokens go. Memory holds
/// a few prompts and one part of the trace.
///
/// # Errors
/// If a prompt cannot be read or does not fit the model, or a part cannot be
/// written.
pub fn trace_prompts(
    model: &RoutedModel,
    prompts: impl Iterator<Item = Result<Prompt>>,
    options: TraceOptions,
    mut writer: TraceWriter,
) -> Result<TraceInfo> {
    let mut prompts = prompts.peekable();
    while prompts.peek().is_some() {
        let some: Vec<Prompt> = prompts.by_ref().take(AT_ONCE).collect::<Result<_>>()?;
        let traced: Vec<Result<(PromptTrace, RoutingTrace)>> =
            some.into_par_iter().map(|prompt| trace_one(model, prompt, options)).collect();
        for result in traced {
            let (prompt, trace) = result?;
            writer.add(prompt, &trace)?;
        }
    }
    writer.finish()
}

fn trace_one(
    model: &RoutedModel,
    prompt: Prompt,
    options: TraceOptions,
) -> Result<(PromptTrace, RoutingTrace)> {
    let id = prompt.id.unwrap_or_default();
    let mut tokens = match (&prompt.text, prompt.tokens) {
        (_, Some(tokens)) => tokens,
        (Some(text), None) => model.encode(text)?,
        (None, None) => Vec::new(),
    };
    if tokens.is_empty() {
        let reason = "is empty".into();
        return Err(Error::Data { place: format!("prompt {id}"), reason });
    }
    let room = |most: usize| most.saturating_sub(options.generate).max(1);
    tokens.truncate(options.most_tokens.unwrap_or(usize::MAX));
    tokens.truncate(model.window().map_or(usize::MAX, room));
    let vocabulary = model.vocabulary() as u32;
    if let Some(bad) = tokens.iter().find(|&&token| token >= vocabulary) {
        let reason = format!("token {bad} is unknown: the model has {vocabulary} tokens");
        return Err(Error::Data { place: format!("prompt {id}"), reason });
    }
    let own = tokens.len();
    if options.generate > 0 {
        tokens.extend(model.continue_text(&tokens, options.generate)?);
    }
    let trace = model.trace(&tokens)?;
    let pieces = if options.pieces { model.pieces(&tokens) } else { Vec::new() };
    let positions = tokens.len();
    Ok((PromptTrace { id, label: prompt.label, tokens, pieces, positions, own }, trace))
}

/// Runs rows of a run's held-out data and writes where their tokens go into a
/// trace folder; each row is a prompt, and its task the label.
///
/// # Errors
/// [`Error::Data`] if the model is no run, or its data has no such set: then
/// an old trace in the folder is left as it is. As [`TraceWriter`].
pub fn trace_held_out(
    model: &RoutedModel,
    (set, size): (HeldOut, usize),
    pieces: bool,
    folder: &Path,
) -> Result<TraceInfo> {
    let fail = |reason: &str| Error::Data { place: model.name().into(), reason: reason.into() };
    let config = model.run_config().ok_or_else(|| {
        fail("a pretrained model has no held-out data: give prompts with --prompts")
    })?;
    let rows =
        HeldOutRows::of(config, set, size)?.ok_or_else(|| fail("the data has no such set"))?;
    let mut writer = TraceWriter::create(folder, model)?.of_set(set);
    for first in (0..rows.rows()).step_by(AT_ONCE) {
        let last = rows.rows().min(first + AT_ONCE);
        let traced: Vec<Result<(PromptTrace, RoutingTrace)>> = (first..last)
            .into_par_iter()
            .map(|number| {
                let row = rows.row(number);
                let trace = model.trace_rows(&row)?;
                let most = trace.layers.iter().map(|layer| layer.tokens()).max().unwrap_or(0);
                // Positions of padding route nowhere; those at the end go.
                let live = |t: &usize| {
                    trace.layers.iter().any(|l| *t < l.tokens() && !l.slices(*t).0.is_empty())
                };
                let positions = (0..most).rev().find(live).map_or(0, |last| last + 1);
                let plain = row.source().is_none() && row.tokens().len() == most;
                let tokens = if plain { row.tokens()[..positions].to_vec() } else { Vec::new() };
                let label = row.task_ids().and_then(|ids| rows.tasks.get(ids[0] as usize)).cloned();
                let pieces = if pieces { model.pieces(&tokens) } else { Vec::new() };
                let id = format!("row {number}");
                Ok((PromptTrace { id, label, tokens, pieces, positions, own: positions }, trace))
            })
            .collect();
        for result in traced {
            let (prompt, trace) = result?;
            writer.add(prompt, &trace)?;
        }
    }
    writer.finish()
}
