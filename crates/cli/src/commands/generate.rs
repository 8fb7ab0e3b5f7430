//! `specialformer generate`.

use std::time::Instant;

use serde_json::json;
use specialformer::checkpoint::ChatMessage;
use specialformer::families::PublishedModel;
use specialformer::generate::{Generated, generate, generate_from};
use specialformer::nn::names::choices;
use specialformer::prelude::Model;

use super::picture;
use super::published::{self, Live, Opened, finish_name};
use crate::args::CommonArgs;
use crate::args::text::GenerateArgs;
use crate::failure::Failure;
use crate::terminal::say;
use crate::{interrupt, limits, terminal};

/// New tokens, temperature and top-p where nothing else is said.
const DEFAULTS: (usize, f64, f64) = (128, 0.0, 1.0);

pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let prompts = match &args.prompt_file {
        Some(path) => vec![published::read_text(path)?],
        None => args.prompt.clone(),
    };
    if picture::wanted(&args.picture, &args.model.model) {
        check_of_text(args)?;
        let CommonArgs { json, quiet, .. } = args.common;
        return picture::run(&args.picture, &args.model, &prompts, json, quiet);
    }
    let start = Instant::now();
    let opened = published::open(&args.model)?;
    let Opened { model, files } = &opened;
    let mut config = published::settings(&args.sampling, files, DEFAULTS)?;
    if args.no_stop {
        config.stop_tokens.clear();
    }
    if let Some(name) = &args.task {
        config.tasks = vec![task(model, name)?; prompts.len()];
    }
    let load_seconds = start.elapsed().as_secs_f64();
    let ids = prompts.iter().map(|prompt| tokens(&opened, args, prompt));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let live = ids.len() == 1 && !args.common.json;
    let mut shown = Live::new(files, live);
    if live && !args.chat && encoder_decoder(model).is_none() {
        terminal::show(&prompts[0])?;
    }
    let (start, mut first) = (Instant::now(), None);
    let _watch = interrupt::watch();
    let mut on_token = |_, token| {
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        shown.push(token)
    };
    let texts = match encoder_decoder(model) {
        Some(model) => generate_from(model, &ids, &config, &mut on_token)?,
        None => generate::<f32, f32>(model, &ids, &config, &mut on_token)?,
    };
    shown.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let first = first.unwrap_or(seconds);
    let prompt_tokens: usize = ids.iter().map(Vec::len).sum();
    let new_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    let prompt_speed = prompt_tokens as f64 / first;
    let speed = new_tokens.saturating_sub(ids.len()) as f64 / (seconds - first).max(1e-9);
    if args.common.json {
        let text = |(prompt, text): (&String, &Generated)| {
            let decoded = files.tokenizer().decode(&text.tokens, true);
            Ok(json!({
                "prompt": prompt,
                "text": decoded.map_err(|e| Failure::work(e.to_string()))?,
                "tokens": text.tokens,
                "finish": finish_name(text.finish),
            }))
        };
        let all = prompts.iter().zip(&texts).map(text).collect::<Result<Vec<_>, Failure>>()?;
        let value = json!({
            "texts": all,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "load_seconds": load_seconds,
            "prompt_tokens_per_second": prompt_speed,
            "new_tokens_per_second": speed,
        });
        println!("{value:#}");
    } else if !live {
        for (number, (prompt, text)) in prompts.iter().zip(&texts).enumerate() {
            let decoded = files.tokenizer().decode(&text.tokens, true);
            let decoded = decoded.map_err(|e| Failure::work(e.to_string()))?;
            let prompt = if args.chat { "" } else { prompt };
            println!("--- {}\n{prompt}{decoded}", number + 1);
        }
    }
    if !args.common.json && !args.common.quiet {
        say!(
            "[opened in {load_seconds:.2} s, prompt {prompt_speed:.0} tokens/s, {new_tokens} new \
             tokens at {speed:.1}/s]"
        );
    }
    match interrupt::requested() {
        true => Err(Failure::interrupted("interrupted")),
        false => Ok(()),
    }
}

/// Refuses flags that change nothing in an answer that is one of few.
fn check_of_text(args: &GenerateArgs) -> Result<(), Failure> {
    let sampling = &args.sampling;
    let of_text = [
        ("--task", args.task.is_some()),
        ("--chat", args.chat),
        ("--no-stop", args.no_stop),
        ("--adapter", args.model.adapter.is_some()),
        ("--weights", args.model.weights.is_some()),
        ("--max-tokens", sampling.max_tokens.is_some()),
        ("--temperature", sampling.temperature.is_some()),
        ("--top-k", sampling.top_k > 0),
        ("--top-p", sampling.top_p.is_some()),
        ("--repetition-penalty", (sampling.repetition_penalty - 1.0).abs() > 0.0),
        ("--seed", sampling.seed > 0),
    ];
    limits::check_unused(&of_text, " is for runs on text")
}

/// The model if it answers prompts in place of continuing them.
fn encoder_decoder(model: &Model) -> Option<&PublishedModel> {
    match model {
        Model::Published(model) if model.is_encoder_decoder() => Some(model),
        _ => None,
    }
}

/// The number of a model's task.
fn task(model: &Model, name: &str) -> Result<u32, Failure> {
    let tasks = match model {
        Model::Specialformer(model) => model.config().tasks.as_slice(),
        _ => &[],
    };
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    if names.is_empty() {
        return Err(Failure::input(format!("--task {name}: the model has no tasks")));
    }
    names.iter().position(|&known| known == name).map(|task| task as u32).ok_or_else(|| {
        let known = choices(name, &names);
        Failure::input(format!("--task {name}: the model has no such task; there are {known}"))
    })
}

/// The tokens of a prompt, or of a conversation with it.
fn tokens(opened: &Opened, args: &GenerateArgs, prompt: &str) -> Result<Vec<u32>, Failure> {
    if !args.chat {
        let ids = opened.files.tokenizer().encode(prompt, true);
        return ids.map_err(|e| Failure::input(e.to_string()));
    }
    let system = args.system.iter().map(|text| ChatMessage::new("system", text.clone()));
    let messages: Vec<_> = system.chain([ChatMessage::new("user", prompt)]).collect();
    Ok(opened.files.chat(&messages)?)
}
