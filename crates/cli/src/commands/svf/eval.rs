//! `specialformer svf eval`.

use std::fs;

use serde_json::{Value, json};
use specialformer::data::prompts::{
    GENERATED_TASKS, GeneratedTask, Phrasings, PromptExample, PromptFormat, Split, read_prompts,
};
use specialformer::families::PublishedModel;
use specialformer::generate::{Reading, perplexity};
use specialformer::svd_finetune::Parametrisation;
use specialformer::svf::{Tuned, check_expert, score_prompts};

use super::model;
use crate::args::svf::EvalArgs;
use crate::failure::Failure;
use crate::interrupt;
use crate::limits;
use crate::progress::Progress;
use crate::table;

/// Tokens of a text that are read, and how many at a time.
const TEXT_TOKENS: usize = 4096;
const TEXT_WINDOW: usize = 512;

/// What is scored.
struct Scored {
    tasks: Vec<(String, Vec<PromptExample>)>,
    text: Option<Vec<u32>>,
}

/// The results of one expert, or of the base.
struct Row {
    name: String,
    scores: Vec<(f64, f64)>,
    perplexity: Option<f64>,
}

pub(super) fn run(args: &EvalArgs) -> Result<(), Failure> {
    if args.task.is_empty() && args.data.is_empty() && args.text.is_none() {
        return Err(Failure::input("nothing to score: give --task, --data or --text"));
    }
    if args.experts_only && args.expert.is_empty() {
        return Err(Failure::input("--experts-only: there is no --expert"));
    }
    limits::check_count("--size", args.size)?;
    limits::check_count("--batch-size", args.batch_size)?;
    let tasks = tasks(args)?;
    let experts =
        args.expert.iter().map(|path| model::expert(path)).collect::<Result<Vec<_>, _>>()?;
    let mut opened = model::open(&args.model)?;
    for expert in &experts {
        check_expert(&mut opened, expert)?;
    }
    let format = PromptFormat::open(&args.model, &opened)?;
    let scored = Scored { tasks, text: text(args, &format)? };
    let _watch = interrupt::watch();
    let mut rows = Vec::new();
    if !args.experts_only {
        rows.push(row("base", &opened, &format, &scored, args)?);
    }
    if !experts.is_empty() {
        let base = model::base_of(&mut opened, &experts, &args.cache, args.common.quiet)?;
        // What an expert does is the same however it was trained.
        let tuned = Tuned::svf(opened, &base, Parametrisation::direct())?;
        for (expert, path) in experts.iter().zip(&args.expert) {
            tuned.apply(Some(expert))?;
            let name =
                path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
            rows.push(row(&name, tuned.model(), &format, &scored, args)?);
        }
    }
    print(&rows, &scored, args.common.json);
    Ok(())
}

fn tasks(args: &EvalArgs) -> Result<Vec<(String, Vec<PromptExample>)>, Failure> {
    let mut tasks = Vec::new();
    let all = args.task.iter().any(|name| name == "all");
    let known = GENERATED_TASKS.iter().map(GeneratedTask::name).map(str::to_owned);
    let names = if all { known.collect() } else { args.task.clone() };
    for name in names {
        let task = GeneratedTask::named(&name)?;
        let examples = task.examples(Split::Test, Phrasings::Usual, args.size, 0)?;
        tasks.push((name, examples));
    }
    for path in &args.data {
        let mut examples = read_prompts(path)?;
        examples.truncate(args.size);
        let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        tasks.push((name, examples));
    }
    Ok(tasks)
}

fn text(args: &EvalArgs, format: &PromptFormat) -> Result<Option<Vec<u32>>, Failure> {
    let Some(path) = &args.text else { return Ok(None) };
    let wrong = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    // The tokenizer takes long texts whole; more than this is not read.
    let start: String = text.chars().take(16 * TEXT_TOKENS).collect();
    let mut tokens = format.tokenizer().encode(&start, true).map_err(|e| wrong(e.to_string()))?;
    tokens.truncate(TEXT_TOKENS);
    if tokens.len() < 2 {
        return Err(wrong("holds no text".into()));
    }
    Ok(Some(tokens))
}

fn row(
    name: &str,
    model: &PublishedModel,
    format: &PromptFormat,
    scored: &Scored,
    args: &EvalArgs,
) -> Result<Row, Failure> {
    let total = scored.tasks.iter().map(|(_, examples)| examples.len() as u64).sum();
    let mut bar = Progress::new(name, total, args.common.quiet);
    let mut scores = Vec::new();
    let mut before = 0;
    for (task, examples) in &scored.tasks {
        let score = score_prompts(model, format, examples, args.batch_size, |done| {
            bar.at(before + done as u64, task);
            !interrupt::requested()
        });
        if interrupt::requested() {
            bar.clear();
            return Err(Failure::interrupted("stopped"));
        }
        let score = score?;
        before += examples.len() as u64;
        scores.push((score.accuracy(), score.standard_error()));
    }
    bar.clear();
    let window = model.window().unwrap_or(TEXT_WINDOW).min(TEXT_WINDOW);
    let perplexity = match &scored.text {
        Some(tokens) => Some(perplexity(model, tokens, window, Reading::Whole, |_| ())?.value()),
        None => None,
    };
    Ok(Row { name: name.to_owned(), scores, perplexity })
}

fn print(rows: &[Row], scored: &Scored, json: bool) {
    if json {
        let of_row = |row: &Row| {
            let tasks = scored.tasks.iter().zip(&row.scores);
            let tasks = tasks.map(|((name, examples), (accuracy, error))| {
                let count = examples.len();
                let value = json!({"accuracy": accuracy, "standard_error": error, "count": count});
                (name.clone(), value)
            });
            json!({
                "name": row.name,
                "tasks": Value::Object(tasks.collect()),
                "perplexity": row.perplexity,
            })
        };
        println!("{:#}", json!({"rows": rows.iter().map(of_row).collect::<Vec<_>>()}));
        return;
    }
    let mut head = vec!["accuracy in %".to_owned()];
    head.extend(scored.tasks.iter().map(|(name, _)| name.clone()));
    head.extend(scored.text.as_ref().map(|_| "perplexity".to_owned()));
    let mut lines = vec![head];
    for row in rows {
        let mut line = vec![row.name.clone()];
        line.extend(row.scores.iter().map(|(accuracy, _)| format!("{:.1}", 100.0 * accuracy)));
        line.extend(row.perplexity.map(|value| format!("{value:.2}")));
        lines.push(line);
    }
    print!("{}", table::aligned(&lines));
}
