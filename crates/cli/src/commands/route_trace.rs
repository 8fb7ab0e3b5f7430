//! `specialformer route trace`.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use specialformer::Error;
use specialformer::checkpoint::atomic_write;
use specialformer::routing_trace::{
    RoutedModel, TraceOptions, TraceReader, TraceWriter, read_prompts, trace_held_out,
    trace_prompts,
};

use crate::args::route::RouteTraceArgs;
use crate::failure::Failure;
use crate::limits;
use crate::output::{check_free, make_parent};
use crate::progress::Progress;

/// Traces prompts or held-out rows.
pub(crate) fn run(args: &RouteTraceArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    let in_prompts =
        [("--generate", args.generate > 0), ("--most-tokens", args.most_tokens.is_some())];
    if args.prompts.is_none() {
        limits::check_unused(&in_prompts, ": is for prompts, and there is no --prompts")?;
    }
    let out = args.out.clone().unwrap_or_else(|| beside(&args.model));
    if let Some(path) = &args.jsonl {
        check_jsonl(path, &out, args)?;
    }
    let model = RoutedModel::open(&args.model)?;
    let info = match &args.prompts {
        Some(path) => {
            if path.exists() && !path.is_file() {
                let what = "must be a file, which is read twice";
                return Err(Failure::input(format!("{}: {what}", path.display())));
            }
            // Looked at first, so that a wrong file leaves an old trace alone.
            let total = read_prompts(path)?.try_fold(0, |n, prompt| prompt.map(|_| n + 1))?;
            if total == 0 {
                return Err(Failure::input(format!(
                    "{}: there is no prompt in it",
                    path.display()
                )));
            }
            let writer = TraceWriter::create(&out, &model)?;
            let options = TraceOptions {
                generate: args.generate,
                most_tokens: args.most_tokens,
                pieces: true,
            };
            let quiet = args.common.quiet || args.common.json;
            let (mut bar, mut read) = (Progress::new("tracing", total, quiet), 0);
            let prompts = read_prompts(path)?.inspect(|_| {
                bar.at(read, "");
                read += 1;
            });
            let info = trace_prompts(&model, prompts, options, writer);
            bar.clear();
            // A prompt is named by its line; the file it is in only here.
            info.map_err(|error| match &error {
                Error::Data { place, .. } if place.starts_with("prompt ") => {
                    Failure::input(format!("{}: {error}", path.display()))
                }
                _ => error.into(),
            })?
        }
        None if model.run_config().is_none() => {
            let what = "a pretrained model has no held-out data: give prompts with --prompts";
            return Err(Failure::input(format!("{}: {what}", args.model.display())));
        }
        None => trace_held_out(&model, (args.set.into(), args.size), true, &out)?,
    };
    if let Some(path) = &args.jsonl {
        let reader = TraceReader::open(&out)?;
        make_parent(path)?;
        atomic_write(path, |file| reader.write_jsonl(file).map_err(io::Error::other))
            .map_err(specialformer::Error::from)?;
    }
    if args.common.json {
        println!("{:#}", json!({"trace": out, "info": info}));
    } else {
        println!(
            "{}: {} prompts, {} tokens, {} layers with experts\ntrace {}",
            info.model,
            info.prompts,
            info.positions,
            info.layers.len(),
            out.display()
        );
    }
    Ok(())
}

/// Refuses a file for the JSONL that would cost another one, or spoil the trace.
fn check_jsonl(path: &Path, out: &Path, args: &RouteTraceArgs) -> Result<(), Failure> {
    let same =
        |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().ok() == Some(a));
    if args.prompts.as_ref().is_some_and(|prompts| same(prompts, path)) {
        return Err(Failure::input(format!("{}: holds the prompts", path.display())));
    }
    if path.parent().is_some_and(|parent| parent == out || same(parent, out)) {
        let what = "is in the folder of the trace, which holds nothing else";
        return Err(Failure::input(format!("{}: {what}", path.display())));
    }
    check_free(path, Some(args.force))
}

fn beside(model: &Path) -> PathBuf {
    match model.is_dir() {
        true => model.join("trace"),
        false => model.with_extension("trace"),
    }
}
