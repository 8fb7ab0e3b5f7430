//! `specialformer svf train`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use specialformer::adaptation::{
    CLASSIFIER_TASK, ExpertLibrary, GENERAL_PROMPTS, OTHERS, identification_examples,
};
use specialformer::data::prompts::{
    GeneratedTask, Phrasings, PromptData, PromptDataset, PromptFormat, PromptSizes, Split,
};
use specialformer::families::PublishedModel;
use specialformer::prelude::{Seed, TrainConfig};
use specialformer::svd_finetune::Parametrisation;
use specialformer::svf::{
    PromptPolicy, PromptScore, Rewards, TuneReport, Tuned, fine_tune, reinforce, score_prompts,
};
use specialformer::training::{Observer, Outcome, ReinforceConfig, StepReport};

use super::{model, report};
use crate::args::svf::{KL, MethodName, ObjectiveName, RANK, TrainArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::limits;
use crate::output::{check_free, make_parent};
use crate::progress::Progress;
use crate::table::{self, grouped};

/// Prompts answered together while scoring.
const TOGETHER: usize = 32;
/// Gradients are scaled down to this norm.
const CLIP: f64 = 1.0;
/// The least room for answers that are drawn.
const DRAWN_TOKENS: usize = 24;

/// Refuses counts without bound, and settings that would change nothing.
fn check(args: &TrainArgs) -> Result<(), Failure> {
    limits::check_count("--examples", args.examples)?;
    limits::check_count("--batch-size", args.batch_size)?;
    limits::check_most("--test", args.test)?;
    if args.method != MethodName::Lora && args.rank.is_some() {
        let method = args.method.said();
        return Err(Failure::input(format!("--rank is for --method lora; {method} has none")));
    }
    if args.objective == ObjectiveName::Supervised && args.kl.is_some() {
        return Err(Failure::input("--kl is for --objective reinforce"));
    }
    let of_svf = [("--sigmoid", args.sigmoid.is_some()), ("--trace", args.trace)];
    if args.method != MethodName::Svf {
        limits::check_unused(&of_svf, " is for --method svf")?;
    }
    if args.skip_base && args.test == 0 {
        return Err(Failure::input("--skip-base: nothing is scored with --test 0"));
    }
    Ok(())
}

pub(super) fn run(args: &TrainArgs) -> Result<(), Failure> {
    check(args)?;
    let sizes = PromptSizes { train: args.examples, validation: 0, test: args.test };
    let data = match (&args.data.task, &args.data.data, &args.data.naming) {
        (Some(task), ..) => PromptData::generated(task, sizes, args.seed)?,
        (_, Some(path), _) => PromptData::from_file(path, sizes, args.seed)?,
        (.., Some(folder)) => naming(folder, args)?,
        _ => return Err(Failure::input("give --task, --data or --naming")),
    };
    let out = out_path(args, &data.task);
    check_free(&out, Some(args.force))?;
    if let (Ok(out), Ok(model)) = (out.canonicalize(), args.model.canonicalize())
        && out == model
    {
        let what = "is the model itself, which is not written over";
        return Err(Failure::input(format!("{}: {what}", args.model.display())));
    }
    let mut opened = model::open(&args.model)?;
    opened.set_recompute(args.recompute);
    let format = PromptFormat::open(&args.model, &opened)?;
    // Answers are scored as they are generated, not token by token.
    let training = PromptData { validation: vec![], test: vec![], ..data.clone() };
    let dataset = PromptDataset::new(&training, &format, opened.window(), args.seed)?;
    let quiet = args.common.quiet;
    let score = |name: &str, model: &PublishedModel| -> Result<Option<PromptScore>, Failure> {
        if args.test == 0 {
            return Ok(None);
        }
        let mut bar = Progress::new(name, data.test.len() as u64, quiet);
        let score = score_prompts(model, &format, &data.test, TOGETHER, |done| {
            bar.at(done as u64, "");
            !interrupt::requested()
        });
        bar.clear();
        match score {
            Err(_) if interrupt::requested() => {
                Err(Failure::interrupted("stopped; nothing is written"))
            }
            score => Ok(Some(score?)),
        }
    };
    let _watch = interrupt::watch();
    let before = if args.skip_base { None } else { score("base", &opened)? };
    let tuned = tune(args, opened_with(&mut opened, args, quiet)?, opened)?;
    let trained = train(args, &data.task, &tuned, &format, dataset)?;
    let after = score("trained", tuned.model())?;

    let mut metrics = BTreeMap::new();
    for (name, score) in [("base_accuracy", &before), ("accuracy", &after)] {
        if let Some(score) = score {
            metrics.insert(name.to_owned(), score.accuracy());
        }
    }
    metrics.insert("examples".to_owned(), data.train.len() as f64);
    metrics.insert("steps".to_owned(), trained.steps as f64);
    make_parent(&out)?;
    tuned.save(&out, &data.task, metrics)?;
    let page = report::write(args, &data.task, &tuned, &trained, (&before, &after), &out)?;
    print(args, &tuned, &trained, (&before, &after), [&out, &page])
}

/// Prompts of the tasks of a folder's experts, and what they are called.
fn naming(folder: &Path, args: &TrainArgs) -> Result<PromptData, Failure> {
    let library = ExpertLibrary::open(folder)?;
    let tasks: Vec<&str> = library.experts.iter().map(|expert| expert.task.as_str()).collect();
    let outcomes: Vec<&str> = tasks.iter().copied().chain([OTHERS]).collect();
    if let Some(own) = tasks.iter().find(|task| GeneratedTask::named(task).is_err()) {
        let place = folder.display();
        return Err(Failure::input(format!(
            "{place}: the expert of `{own}` is no generated task's"
        )));
    }
    let examples = |split, count: usize, general: &[&str]| -> Result<Vec<_>, Failure> {
        let mut prompts = Vec::new();
        for task in &tasks {
            let count = count.div_ceil(outcomes.len());
            let of =
                GeneratedTask::named(task)?.examples(split, Phrasings::Usual, count, args.seed)?;
            prompts.push(((*task).to_owned(), of.into_iter().map(|e| e.prompt).collect()));
        }
        let general = general.iter().map(|&prompt| prompt.to_owned()).collect();
        prompts.push((OTHERS.to_owned(), general));
        Ok(identification_examples(&outcomes, &prompts))
    };
    let (trained, held_out) = GENERAL_PROMPTS.split_at(GENERAL_PROMPTS.len() * 4 / 5);
    Ok(PromptData {
        task: CLASSIFIER_TASK.to_owned(),
        train: examples(Split::Train, args.examples, trained)?,
        validation: Vec::new(),
        test: examples(Split::Test, args.test, held_out)?,
    })
}

/// What SVF needs of the model before its matrices are let go.
fn opened_with(
    opened: &mut PublishedModel,
    args: &TrainArgs,
    quiet: bool,
) -> Result<Option<specialformer::svd_finetune::Base>, Failure> {
    match args.method {
        MethodName::Svf => {
            let selection = model::selection(&args.matrices)?;
            model::base(opened, selection, &args.cache, quiet).map(Some)
        }
        _ => Ok(None),
    }
}

fn tune(
    args: &TrainArgs,
    base: Option<specialformer::svd_finetune::Base>,
    opened: PublishedModel,
) -> Result<Tuned, Failure> {
    let kind = args.sigmoid.map_or_else(Parametrisation::direct, Parametrisation::sigmoid);
    let parametrisation = if args.trace { kind.with_trace() } else { kind };
    Ok(match (args.method, base) {
        (MethodName::Svf, Some(base)) => Tuned::svf(opened, &base, parametrisation)?,
        (MethodName::Lora, _) => {
            let rank = args.rank.unwrap_or(RANK);
            let strength = (rank, 2.0 * rank as f64);
            let selection = model::selection(&args.matrices)?;
            Tuned::lora(opened, &selection, strength, Seed::new(args.seed))?
        }
        (MethodName::LastLayer, _) => Tuned::last_layer(opened)?,
        (MethodName::Full | MethodName::Svf, _) => Tuned::full(opened),
    })
}

fn train(
    args: &TrainArgs,
    task: &str,
    tuned: &Tuned,
    format: &PromptFormat,
    dataset: PromptDataset,
) -> Result<TuneReport, Failure> {
    let rate = args.learning_rate.unwrap_or(match args.method {
        MethodName::Svf => 2e-3,
        MethodName::Lora => 5e-4,
        MethodName::LastLayer => 1e-4,
        MethodName::Full => 2e-5,
    });
    let config = TrainConfig {
        seed: args.seed,
        clip_norm: Some(CLIP),
        shards: Some(1),
        log_every: (args.steps / 20).max(1),
        ..TrainConfig::new(args.steps, args.batch_size, rate)
    };
    let mut bar =
        Bar { progress: Some(Progress::new(task, args.steps, args.common.quiet)), loss: None };
    let (summary, report) = match args.objective {
        ObjectiveName::Supervised => {
            fine_tune(tuned, dataset, config, &mut bar, interrupt::requested)?
        }
        ObjectiveName::Reinforce => {
            let longest = dataset.train().iter().map(|one| one.answer.len()).max().unwrap_or(0);
            let policy = PromptPolicy {
                tuned,
                format,
                rewards: Rewards::default(),
                temperature: 1.0,
                max_tokens: (longest + 4).min(DRAWN_TOKENS.max(longest)),
            };
            let settings =
                ReinforceConfig { kl: args.kl.unwrap_or(KL), ..ReinforceConfig::default() };
            reinforce(&policy, dataset, config, settings, &mut bar, interrupt::requested)?
        }
    };
    bar.progress.take().into_iter().for_each(Progress::clear);
    if summary.outcome == Outcome::Interrupted {
        let made = format!("stopped after step {} of {}", summary.step, args.steps);
        return Err(Failure::interrupted(format!("{made}; nothing is written")));
    }
    if args.objective == ObjectiveName::Reinforce && report.no_signal() {
        return Err(Failure::work(
            "all answers of every step had the same reward: nothing was learned. Begin with \
             supervised training, or with a task that the base sometimes gets right",
        ));
    }
    Ok(report)
}

fn out_path(args: &TrainArgs, task: &str) -> PathBuf {
    let method = match args.method {
        MethodName::Svf => return args.out.clone().unwrap_or_else(|| expert_path(task)),
        MethodName::Lora => "lora",
        MethodName::LastLayer => "last-layer",
        MethodName::Full => "full",
    };
    let folder = || PathBuf::from("experts").join(format!("{task}-{method}"));
    args.out.clone().unwrap_or_else(folder)
}

fn expert_path(task: &str) -> PathBuf {
    PathBuf::from("experts").join(format!("{task}.safetensors"))
}

fn print(
    args: &TrainArgs,
    tuned: &Tuned,
    report: &TuneReport,
    (before, after): (&Option<PromptScore>, &Option<PromptScore>),
    [out, page]: [&Path; 2],
) -> Result<(), Failure> {
    let bytes = tuned.trained_bytes()?;
    if args.common.json {
        let score = |score: &Option<PromptScore>| {
            score.as_ref().map(|score| {
                json!({
                    "accuracy": score.accuracy(), "standard_error": score.standard_error(),
                    "count": score.count, "ended": score.ended, "seconds": score.seconds,
                })
            })
        };
        let value = json!({
            "path": out,
            "report": page,
            "trained_numbers": tuned.trained_numbers(),
            "bytes": bytes,
            "before": score(before),
            "after": score(after),
            "training": report,
        });
        println!("{value:#}");
        return Ok(());
    }
    if let (Some(before), Some(after)) = (before, after) {
        let percent = |score: &PromptScore| {
            format!("{:.1} ± {:.1} %", 100.0 * score.accuracy(), 100.0 * score.standard_error())
        };
        println!(
            "accuracy on {} test prompts: base {}, trained {}",
            before.count,
            percent(before),
            percent(after)
        );
    }
    println!(
        "{} trained numbers, {}; loss {:.3} → {:.3}; {:.2} s a step, {:.0} s in all{}",
        grouped(tuned.trained_numbers() as u64),
        table::bytes(bytes as u64),
        report.first_loss,
        report.last_loss,
        report.step_seconds,
        report.seconds,
        report
            .peak_memory
            .map_or_else(String::new, |peak| format!(", peak memory + {}", table::bytes(peak))),
    );
    println!("saved {}, report {}", out.display(), page.display());
    Ok(())
}

struct Bar {
    progress: Option<Progress>,
    loss: Option<f64>,
}

impl Observer for Bar {
    fn on_step(&mut self, step: &StepReport) {
        let blend = |old: f64| 0.8 * old + 0.2 * step.loss;
        let loss = *self.loss.insert(self.loss.map_or(step.loss, blend));
        let accuracy = 100.0 * step.score.accuracy().unwrap_or(0.0);
        if let Some(progress) = &mut self.progress {
            progress.at(step.step, &format!("loss {loss:.3} right {accuracy:.0}%"));
        }
    }
}
