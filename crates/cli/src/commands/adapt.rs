//! `specialformer adapt`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use specialformer::adaptation::{
    AdaptedAnswer, AdaptiveModel, CLASSIFIER_FILE, CLASSIFIER_TASK, Choice, ExpertLibrary, Mixture,
    MixtureConfig, OTHERS, Strategy, TaskClassifier,
};
use specialformer::data::prompts::{
    GENERATED_TASKS, GeneratedTask, Phrasings, PromptExample, PromptFormat, Split, read_prompts,
};
use specialformer::svd_finetune::{ExpertVector, SearchConfig};

use super::svf::args::CacheArgs;
use super::svf::model;
use crate::args::{CommonArgs, model_path};
use crate::failure::Failure;
use crate::interrupt;
use crate::limits;
use crate::progress::Progress;

/// Prompts of each task that a classifier is trained on.
const CLASSIFIER_PROMPTS: usize = 48;

/// The most tokens of an answer that is scored.
const SCORED_TOKENS: usize = 32;

/// What `--shots` is where it is not given.
const SHOTS: usize = 8;

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StrategyName {
    /// The model is asked for the task's name.
    Prompt,
    /// A classifier on the prompt's hidden states.
    Classifier,
    /// An expert that was trained to name tasks (task `classifier`).
    ClassifierExpert,
    /// A mixture that answers the examples of `--examples`.
    Mixture,
}

/// `specialformer adapt`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer adapt MODEL --experts experts --strategy prompt --prompt 'What is 12 plus 30?'
  specialformer adapt MODEL --experts experts --strategy classifier --prompt 'What is 12 plus 30?'
  specialformer adapt MODEL --experts experts --strategy classifier --score initials
  specialformer adapt MODEL --experts experts --strategy mixture --examples few.jsonl \\
      --prompt 'Which domain does anna@example.org belong to?'

The first use of `classifier` trains it on prompts of the experts' tasks and keeps it in the
folder of experts. Tasks of your own need their prompts: --data TASK=FILE.jsonl.")]
pub(crate) struct AdaptArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    model: PathBuf,
    /// A folder of experts, made by `svf train`.
    #[arg(long, value_name = "DIR")]
    experts: PathBuf,
    /// How experts are chosen.
    #[arg(long, value_enum)]
    strategy: StrategyName,
    /// What is asked; may be given several times.
    #[arg(long, value_name = "TEXT", required_unless_present = "score")]
    prompt: Vec<String>,
    /// Score test prompts of a generated task in place of answering one.
    #[arg(long, value_name = "TASK", conflicts_with_all = ["prompt", "examples"])]
    score: Option<String>,
    /// Test prompts of `--score`.
    #[arg(long, value_name = "N", default_value_t = 64)]
    size: usize,
    /// Examples of the task that a mixture is searched with (`--score`).
    #[arg(long, value_name = "N", default_value_t = 8)]
    shots: usize,
    /// A JSONL file with a few examples (`prompt`, `answer`), for `mixture`.
    #[arg(long, value_name = "FILE")]
    examples: Option<PathBuf>,
    /// Candidates of an iteration of the search for a mixture.
    #[arg(long, value_name = "N", default_value_t = 16)]
    population: usize,
    /// Iterations of the search.
    #[arg(long, value_name = "N", default_value_t = 6)]
    iterations: usize,
    /// Search for weights of each layer's own in place of one set for all.
    #[arg(long)]
    per_layer: bool,
    /// Draw the candidates uniformly in place of the cross-entropy method.
    #[arg(long)]
    random_search: bool,
    /// Below this probability the classifier says `others`.
    #[arg(long, value_name = "P", default_value_t = 0.5)]
    threshold: f64,
    /// Prompts of a task that is not a generated one, to train the classifier
    /// on; may be given several times.
    #[arg(long, value_name = "TASK=FILE")]
    data: Vec<String>,
    /// The most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Draws the candidates of the search.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    cache: CacheArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// A model with its experts, and what chooses among them.
pub(crate) struct Prepared {
    pub(crate) adaptive: AdaptiveModel,
    strategy: StrategyName,
    classifier: Option<TaskClassifier>,
    mixture: Option<Mixture>,
    naming: Option<ExpertVector>,
}

/// What choosing needs besides the experts.
pub(crate) struct Settings<'a> {
    pub(crate) strategy: StrategyName,
    pub(crate) threshold: f64,
    pub(crate) data: &'a [String],
    pub(crate) examples: Option<&'a [PromptExample]>,
    pub(crate) mixture: MixtureConfig,
    pub(crate) quiet: bool,
}

impl Prepared {
    pub(crate) fn open(
        model_path: &Path,
        library: ExpertLibrary,
        cache: &CacheArgs,
        settings: &Settings<'_>,
    ) -> Result<Self, Failure> {
        let strategy = settings.strategy;
        if strategy == StrategyName::Mixture && settings.examples.is_none() {
            return Err(Failure::input("a mixture is searched with examples: `adapt --examples`"));
        }
        if strategy == StrategyName::ClassifierExpert && library.naming.is_none() {
            let place = library.path.display();
            let what = format!("{place}: holds no expert of the task `{CLASSIFIER_TASK}`");
            return Err(Failure::input(what));
        }
        let mut opened = model::open(model_path)?;
        let format = PromptFormat::open(model_path, &opened)?;
        let mut all = library.experts.clone();
        all.extend(library.naming.clone());
        let base = model::base_of(&mut opened, &all, cache, settings.quiet)?;
        let adaptive = AdaptiveModel::new(opened, &base, format, library.experts.clone())?;
        let classifier = match strategy {
            StrategyName::Classifier => Some(classifier(settings, &library, &adaptive)?),
            _ => None,
        };
        let mixture = match (strategy, settings.examples) {
            (StrategyName::Mixture, Some(examples)) => {
                Some(Mixture::find(&adaptive, examples, &settings.mixture)?)
            }
            _ => None,
        };
        Ok(Self { adaptive, strategy, classifier, mixture, naming: library.naming })
    }

    fn strategy(&self) -> Strategy<'_> {
        match (&self.classifier, &self.mixture, &self.naming) {
            (Some(classifier), ..) => Strategy::Classifier(classifier),
            (_, Some(mixture), _) => Strategy::Mixture(mixture),
            (.., Some(expert)) if self.strategy == StrategyName::ClassifierExpert => {
                Strategy::ExpertPrompt(expert)
            }
            _ => Strategy::Prompt,
        }
    }

    /// The first pass.
    pub(crate) fn identify(&self, prompt: &str) -> Result<Choice, Failure> {
        Ok(self.adaptive.identify(&self.strategy(), prompt)?)
    }
}

/// Finds out what each prompt is of, and answers it.
pub(crate) fn run(args: &AdaptArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    limits::check_count("--shots", args.shots)?;
    if args.strategy != StrategyName::Mixture && args.shots != SHOTS {
        return Err(Failure::input("--shots is for --strategy mixture"));
    }
    let library = ExpertLibrary::open(&args.experts)?;
    let scored = args.score.as_deref().map(GeneratedTask::named).transpose()?;
    let examples = match (&args.examples, scored) {
        (Some(path), _) => Some(read_prompts(path)?),
        (None, Some(task)) => {
            Some(task.examples(Split::Train, Phrasings::Usual, args.shots, args.seed)?)
        }
        (None, None) => None,
    };
    let (population, iterations) = (args.population, args.iterations);
    let search = SearchConfig { population, iterations, ..SearchConfig::default() };
    let settings = Settings {
        strategy: args.strategy,
        threshold: args.threshold,
        data: &args.data,
        examples: examples.as_deref(),
        mixture: MixtureConfig {
            search,
            per_layer: args.per_layer,
            random: args.random_search,
            seed: args.seed,
            ..MixtureConfig::default()
        },
        quiet: args.common.quiet,
    };
    let prepared = Prepared::open(&args.model, library, &args.cache, &settings)?;
    if let Some(task) = scored {
        return score(args, &prepared, task);
    }
    let mut answers = Vec::new();
    for prompt in &args.prompt {
        let choice = prepared.identify(prompt)?;
        let answer = prepared.adaptive.answer(&choice, prompt, args.max_tokens)?;
        if !args.common.json {
            print(prompt, &choice, &answer);
        }
        answers.push(json!({"prompt": prompt, "choice": choice, "answer": answer}));
    }
    if args.common.json {
        println!("{:#}", json!({"answers": answers}));
    }
    Ok(())
}

/// The chosen experts for people.
pub(crate) fn described(choice: &Choice) -> String {
    match choice.weights.as_slice() {
        [] => format!("{OTHERS} (the base)"),
        [(task, 1.0)] => task.clone(),
        weights => {
            let part = |(task, weight): &(String, f64)| format!("{weight:.2}·{task}");
            weights.iter().map(part).collect::<Vec<_>>().join(" + ")
        }
    }
}

/// The accuracy of both passes on a task's test prompts.
fn score(args: &AdaptArgs, prepared: &Prepared, task: &GeneratedTask) -> Result<(), Failure> {
    let adaptive = &prepared.adaptive;
    let examples = task.examples(Split::Test, Phrasings::Usual, args.size, 0)?;
    let mut bar = Progress::new(task.name(), examples.len() as u64, args.common.quiet);
    let _watch = interrupt::watch();
    let mut chosen: BTreeMap<String, usize> = BTreeMap::new();
    let (mut right, mut identify, mut answering) = (0, 0.0, 0.0);
    for (i, example) in examples.iter().enumerate() {
        if interrupt::requested() {
            return Err(Failure::interrupted("stopped"));
        }
        let choice = prepared.identify(&example.prompt)?;
        let answer = adaptive.answer(&choice, &example.prompt, SCORED_TOKENS)?;
        right += usize::from(answer.first_line == example.answer);
        *chosen.entry(choice.task().to_owned()).or_default() += 1;
        identify += choice.seconds;
        answering += answer.seconds;
        bar.at(i as u64 + 1, choice.task());
    }
    bar.clear();
    let count = examples.len().max(1) as f64;
    let (accuracy, identify, answering) =
        (right as f64 / count, identify / count, answering / count);
    let known = adaptive.experts().iter().any(|expert| expert.task == task.name());
    let wanted = if known { task.name() } else { OTHERS };
    let identified = chosen.get(wanted).copied().unwrap_or(0) as f64 / count;
    if args.common.json {
        let weights = prepared.mixture.as_ref().map(|mixture| &mixture.weights);
        let value = json!({
            "task": task.name(), "count": examples.len(), "accuracy": accuracy,
            "identified": identified, "chosen": chosen, "weights": weights,
            "identify_seconds": identify, "answer_seconds": answering,
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("{}: {:.1} % right of {}", task.name(), 100.0 * accuracy, examples.len());
    println!("chosen as `{wanted}`: {:.1} %", 100.0 * identified);
    for (task, count) in chosen {
        println!("  {task} {count}");
    }
    println!("{identify:.2} s to identify, {answering:.2} s to answer");
    Ok(())
}

fn print(prompt: &str, choice: &Choice, answer: &AdaptedAnswer) {
    let experts = described(choice);
    let scores = choice.scores.iter().take(3).map(|(task, score)| format!("{task} {score:.2}"));
    println!("> {prompt}");
    println!("  experts  {experts}");
    println!("  scores   {}", scores.collect::<Vec<_>>().join(", "));
    println!("  answer   {}", answer.text);
    println!("  time     {:.2} s to identify, {:.2} s to answer", choice.seconds, answer.seconds);
}

/// The folder's classifier, trained now if there is none for its experts.
fn classifier(
    settings: &Settings<'_>,
    library: &ExpertLibrary,
    adaptive: &AdaptiveModel,
) -> Result<TaskClassifier, Failure> {
    let tasks: Vec<&str> = library.experts.iter().map(|expert| expert.task.as_str()).collect();
    if let Some(known) = &library.classifier
        && settings.data.is_empty()
        && tasks.iter().all(|task| known.outcomes().iter().any(|outcome| outcome == task))
    {
        return Ok(known.clone());
    }
    let mut prompts = Vec::new();
    for task in tasks {
        let own = settings.data.iter().find_map(|data| data.strip_prefix(task)?.strip_prefix('='));
        let examples = match own {
            Some(path) => read_prompts(path)?,
            None if GENERATED_TASKS.iter().any(|known| known.name() == task) => {
                let (split, phrasings) = (Split::Train, Phrasings::Usual);
                GeneratedTask::named(task)?.examples(split, phrasings, CLASSIFIER_PROMPTS, 0)?
            }
            None => {
                let what = format!("the classifier needs prompts: --data {task}=FILE.jsonl");
                return Err(Failure::input(format!("expert `{task}`: {what}")));
            }
        };
        prompts.push((task.to_owned(), examples.into_iter().map(|e| e.prompt).collect()));
    }
    let (model, format) = (adaptive.model(), adaptive.format());
    let classifier = TaskClassifier::train(model, format, &prompts, settings.threshold)?;
    classifier.save(library.path.join(CLASSIFIER_FILE))?;
    Ok(classifier)
}
