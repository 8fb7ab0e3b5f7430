//! `specialformer adapt`.

use std::collections::BTreeMap;

use serde_json::json;
use specialformer::adaptation::{
    AdaptedAnswer, AdaptiveModel, CLASSIFIER_FILE, CLASSIFIER_TASK, Choice, ExpertLibrary, Mixture,
    MixtureConfig, OTHERS, Strategy, TaskClassifier,
};
use specialformer::data::prompts::{
    GENERATED_TASKS, GeneratedTask, Phrasings, PromptExample, PromptFormat, Split, read_prompts,
};
use specialformer::families::TextFiles;
use specialformer::svd_finetune::{ExpertVector, MatrixHash, SearchConfig};
use specialformer::svf::model_hash;

use super::published;
use super::svf::model;
use crate::args::adapt::{AdaptArgs, StrategyName};
use crate::args::svf::CacheArgs;
use crate::args::text::ModelArgs;
use crate::failure::Failure;
use crate::interrupt;
use crate::limits;
use crate::progress::Progress;
use crate::terminal::say;

/// Prompts of each task that a classifier is trained on.
const CLASSIFIER_PROMPTS: usize = 48;

/// The least probability that a classifier's choice must have at first.
const THRESHOLD: f64 = 0.5;

/// The most tokens of an answer, and of one that is scored.
const ANSWER_TOKENS: usize = 64;
const SCORED_TOKENS: usize = 32;

/// Examples that a mixture of a scored task is searched with, and how many
/// prompts of it are scored.
const SHOTS: usize = 8;
const SCORED: usize = 64;

/// Candidates of an iteration of the search for a mixture, and iterations.
const POPULATION: usize = 16;
const ITERATIONS: usize = 6;

/// What a folder of experts is opened for where nothing else is asked.
pub(crate) fn usual_strategy(library: &ExpertLibrary) -> StrategyName {
    match library.naming {
        Some(_) => StrategyName::ClassifierExpert,
        None => StrategyName::Classifier,
    }
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
    /// That of the classifier that is kept if absent.
    pub(crate) threshold: Option<f64>,
    /// Prompts to train the classifier on, by task.
    pub(crate) data: BTreeMap<String, Vec<String>>,
    pub(crate) examples: Option<&'a [PromptExample]>,
    pub(crate) mixture: MixtureConfig,
    pub(crate) quiet: bool,
}

impl Prepared {
    /// Opens a model with its experts; also what reads and writes its text.
    pub(crate) fn open(
        of: &ModelArgs,
        library: ExpertLibrary,
        cache: &CacheArgs,
        settings: &Settings<'_>,
    ) -> Result<(Self, TextFiles), Failure> {
        let strategy = settings.strategy;
        if strategy == StrategyName::Mixture && settings.examples.is_none() {
            return Err(Failure::input("a mixture is searched with examples: `adapt --examples`"));
        }
        if strategy == StrategyName::ClassifierExpert && library.naming.is_none() {
            let place = library.path.display();
            let what = format!("{place}: holds no expert of the task `{CLASSIFIER_TASK}`");
            return Err(Failure::input(what));
        }
        let (mut opened, files) = published::open_for_experts(of)?;
        let format = PromptFormat::of(&files, &opened)?;
        let mut all = library.experts.clone();
        all.extend(library.naming.clone());
        // Of the matrices as they are, before experts scale them.
        let hash = match strategy {
            StrategyName::Classifier => Some(model_hash(&mut opened)?),
            _ => None,
        };
        let base = model::base_of(&mut opened, &all, cache, settings.quiet)?;
        let adaptive = AdaptiveModel::new(opened, &base, format, library.experts.clone())?;
        let classifier =
            hash.map(|hash| classifier(settings, &library, &adaptive, hash)).transpose()?;
        let mixture = match (strategy, settings.examples) {
            (StrategyName::Mixture, Some(examples)) => {
                Some(Mixture::find(&adaptive, examples, &settings.mixture)?)
            }
            _ => None,
        };
        Ok((Self { adaptive, strategy, classifier, mixture, naming: library.naming }, files))
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

/// Refuses counts without bound, and flags that would change nothing.
fn check(args: &AdaptArgs, strategy: StrategyName) -> Result<(), Failure> {
    for (flag, count) in [
        ("--size", args.size),
        ("--shots", args.shots),
        ("--population", args.population),
        ("--iterations", args.iterations),
        ("--max-tokens", args.max_tokens),
    ] {
        limits::check_count(flag, count.unwrap_or(1))?;
    }
    if let Some(bad) = args.threshold.filter(|threshold| !(0.0..1.0).contains(threshold)) {
        return Err(Failure::input(format!("--threshold = {bad}: must be in [0, 1)")));
    }
    if args.size.is_some() && args.score.is_none() {
        return Err(Failure::input("--size is for --score"));
    }
    let of_classifier =
        [("--threshold", args.threshold.is_some()), ("--data", !args.data.is_empty())];
    let of_mixture = [
        ("--examples", args.examples.is_some()),
        ("--shots", args.shots.is_some()),
        ("--population", args.population.is_some()),
        ("--iterations", args.iterations.is_some()),
        ("--per-layer", args.per_layer),
        ("--random-search", args.random_search),
        ("--seed", args.seed.is_some()),
    ];
    if strategy != StrategyName::Classifier {
        limits::check_unused(&of_classifier, " is for --strategy classifier")?;
    }
    if strategy != StrategyName::Mixture {
        limits::check_unused(&of_mixture, " is for --strategy mixture")?;
    }
    Ok(())
}

/// The prompts of `--data`, by task.
fn prompts_by_task(
    data: &[String],
    library: &ExpertLibrary,
) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let mut by_task = BTreeMap::new();
    for given in data {
        let is_expert = |task: &str| library.experts.iter().any(|expert| expert.task == task);
        let Some((task, path)) = given.split_once('=').filter(|(task, _)| is_expert(task)) else {
            let what = "must be TASK=FILE of an expert's task";
            return Err(Failure::input(format!("--data {given}: {what}")));
        };
        let prompts = read_prompts(path)?.into_iter().map(|example| example.prompt).collect();
        if by_task.insert(task.to_owned(), prompts).is_some() {
            return Err(Failure::input(format!("--data {given}: `{task}` is given twice")));
        }
    }
    Ok(by_task)
}

/// Finds out what each prompt is of, and answers it.
pub(crate) fn run(args: &AdaptArgs) -> Result<(), Failure> {
    let named = args.strategy.or(args.examples.as_ref().map(|_| StrategyName::Mixture));
    // Before the folder is read, if it is clear.
    named.map_or(Ok(()), |strategy| check(args, strategy))?;
    let library = ExpertLibrary::open(&args.experts)?;
    let strategy = match named {
        Some(strategy) => strategy,
        None => {
            let usual = usual_strategy(&library);
            check(args, usual)?;
            usual
        }
    };
    let data = prompts_by_task(&args.data, &library)?;
    let scored = args.score.as_deref().map(GeneratedTask::named).transpose()?;
    let seed = args.seed.unwrap_or(1);
    let examples = match (&args.examples, scored) {
        (Some(path), _) => Some(read_prompts(path)?),
        (None, Some(task)) => {
            let shots = args.shots.unwrap_or(SHOTS);
            Some(task.examples(Split::Train, Phrasings::Usual, shots, seed)?)
        }
        (None, None) => None,
    };
    let search = SearchConfig {
        population: args.population.unwrap_or(POPULATION),
        iterations: args.iterations.unwrap_or(ITERATIONS),
        ..SearchConfig::default()
    };
    let settings = Settings {
        strategy,
        threshold: args.threshold,
        data,
        examples: examples.as_deref(),
        mixture: MixtureConfig {
            search,
            per_layer: args.per_layer,
            random: args.random_search,
            seed,
            ..MixtureConfig::default()
        },
        quiet: args.common.quiet,
    };
    let model = ModelArgs { model: args.model.clone(), weights: None, adapter: None, width: None };
    let (prepared, _) = Prepared::open(&model, library, &args.cache, &settings)?;
    if let Some(task) = scored {
        return score(args, &prepared, task);
    }
    let mut answers = Vec::new();
    for prompt in &args.prompt {
        let choice = prepared.identify(prompt)?;
        let most = args.max_tokens.unwrap_or(ANSWER_TOKENS);
        let answer = prepared.adaptive.answer(&choice, prompt, most)?;
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
    let examples = task.examples(Split::Test, Phrasings::Usual, args.size.unwrap_or(SCORED), 0)?;
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

/// The folder's classifier, trained now if there is none for its experts, the
/// model of this hash and the prompts that are known.
fn classifier(
    settings: &Settings<'_>,
    library: &ExpertLibrary,
    adaptive: &AdaptiveModel,
    base: MatrixHash,
) -> Result<TaskClassifier, Failure> {
    let (model, format) = (adaptive.model(), adaptive.format());
    let mut known = library.classifier.as_ref().filter(|known| known.is_of(&base));
    let (mut prompts, mut missing) = (Vec::new(), None);
    for expert in &library.experts {
        let task = expert.task.as_str();
        let own = match settings.data.get(task) {
            Some(own) => own.clone(),
            None if GENERATED_TASKS.iter().any(|known| known.name() == task) => {
                let (split, phrasings) = (Split::Train, Phrasings::Usual);
                let examples = GeneratedTask::named(task)?;
                let examples = examples.examples(split, phrasings, CLASSIFIER_PROMPTS, 0)?;
                examples.into_iter().map(|example| example.prompt).collect()
            }
            None => {
                known = known.filter(|known| known.outcomes().iter().any(|name| name == task));
                missing = Some(task);
                continue;
            }
        };
        if let Some(kept) = known
            && !kept.learned_from(task, format, &own)?
        {
            known = None;
        }
        prompts.push((task.to_owned(), own));
    }
    match (known, missing) {
        (Some(known), missing) => {
            if let (Some(task), false) = (missing, settings.quiet) {
                let place = library.path.display();
                say!("{place}: the classifier that was trained there knows `{task}`");
            }
            let known = known.clone();
            Ok(match settings.threshold {
                Some(threshold) => known.with_threshold(threshold)?,
                None => known,
            })
        }
        (None, Some(task)) => {
            let what = "the classifier needs prompts of it: specialformer adapt MODEL --experts";
            let place = library.path.display();
            let how =
                format!("{place} --strategy classifier --data {task}=FILE.jsonl --prompt TEXT");
            Err(Failure::input(format!("expert `{task}`: {what} {how}")))
        }
        (None, None) => {
            if !settings.quiet {
                say!("training the classifier of {} tasks", prompts.len());
            }
            let threshold = settings.threshold.unwrap_or(THRESHOLD);
            let classifier = TaskClassifier::train(model, format, &prompts, threshold)?;
            let classifier = classifier.of_base(base);
            classifier.save(library.path.join(CLASSIFIER_FILE))?;
            Ok(classifier)
        }
    }
}
