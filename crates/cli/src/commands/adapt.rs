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
use crate::args::adapt::{AdaptArgs, SHOTS, StrategyName};
use crate::args::svf::CacheArgs;
use crate::args::text::ModelArgs;
use crate::failure::Failure;
use crate::interrupt;
use crate::limits;
use crate::progress::Progress;

/// Prompts of each task that a classifier is trained on.
const CLASSIFIER_PROMPTS: usize = 48;

/// The least probability that a classifier's choice must have at first.
const THRESHOLD: f64 = 0.5;

/// The most tokens of an answer that is scored.
const SCORED_TOKENS: usize = 32;

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
    pub(crate) data: &'a [String],
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

/// Finds out what each prompt is of, and answers it.
pub(crate) fn run(args: &AdaptArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    limits::check_count("--shots", args.shots.unwrap_or(SHOTS))?;
    if args.strategy != StrategyName::Mixture && args.shots.is_some() {
        return Err(Failure::input("--shots is for --strategy mixture"));
    }
    if let Some(bad) = args.threshold.filter(|threshold| !(0.0..1.0).contains(threshold)) {
        return Err(Failure::input(format!("--threshold = {bad}: must be in [0, 1)")));
    }
    let library = ExpertLibrary::open(&args.experts)?;
    let is_expert = |task: &str| library.experts.iter().any(|expert| expert.task == task);
    if let Some(bad) =
        args.data.iter().find(|data| !data.split_once('=').is_some_and(|(task, _)| is_expert(task)))
    {
        return Err(Failure::input(format!("--data {bad}: must be TASK=FILE of an expert's task")));
    }
    let scored = args.score.as_deref().map(GeneratedTask::named).transpose()?;
    let examples = match (&args.examples, scored) {
        (Some(path), _) => Some(read_prompts(path)?),
        (None, Some(task)) => Some(task.examples(
            Split::Train,
            Phrasings::Usual,
            args.shots.unwrap_or(SHOTS),
            args.seed,
        )?),
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
    let model = ModelArgs { model: args.model.clone(), weights: None, adapter: None, width: None };
    let (prepared, _) = Prepared::open(&model, library, &args.cache, &settings)?;
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

/// The folder's classifier, trained now if there is none for its experts and
/// the model of this hash.
fn classifier(
    settings: &Settings<'_>,
    library: &ExpertLibrary,
    adaptive: &AdaptiveModel,
    base: MatrixHash,
) -> Result<TaskClassifier, Failure> {
    let tasks: Vec<&str> = library.experts.iter().map(|expert| expert.task.as_str()).collect();
    if let Some(known) = &library.classifier
        && settings.data.is_empty()
        && known.may_be_of(&base)
        && tasks.iter().all(|task| known.outcomes().iter().any(|outcome| outcome == task))
    {
        let known = known.clone();
        return Ok(match settings.threshold {
            Some(threshold) => known.with_threshold(threshold)?,
            None => known,
        });
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
    let threshold = settings.threshold.unwrap_or(THRESHOLD);
    let classifier = TaskClassifier::train(model, format, &prompts, threshold)?.of_base(base);
    classifier.save(library.path.join(CLASSIFIER_FILE))?;
    Ok(classifier)
}
