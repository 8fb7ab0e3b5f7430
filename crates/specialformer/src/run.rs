//! Runs: a model, data and training settings from one TOML file, in one
//! folder.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use specialformer_checkpoint::TensorFile;
use specialformer_nn::names::closest;
use specialformer_nn::{Ctx, NamedParameters};
use specialformer_tensor::{Element, Seed};
use specialformer_train::{
    Batch, BoxError, CrossEntropy, Dataset, Elastic, EvaluationRecord, HeldOut, ModelOutput,
    MultiTask, Observer, Outcome, Rows, RunFolder, Summary, TrainConfig, Trainer,
};

use crate::config::ModelConfig;
use crate::data::{DataConfig, LoadedData, save_specs};
use crate::error::{Error, Result};
use crate::grow::{GrowAt, grow, grows, stages};
use crate::models::{Model, Outputs, Tokens};

/// What a configuration file holds.
///
/// ```
/// let config = specialformer::RunConfig::parse(r#"
///     name = "small"
///     [model]
///     kind = "cisformer"
///     vocabulary = 14
///     outputs = 10
///     width = 16
///     layers = 2
///     heads = 2
///     feed_forward = 64
///     window = 16
///     attention = { kind = "expressive" }
///     [data]
///     kind = "iarc"
///     [train]
///     steps = 100
///     batch_size = 64
///     learning_rate = 5e-3
/// "#, "example.toml")?;
/// assert_eq!(config.train.steps, 100);
/// # Ok::<(), specialformer::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ConfigFile")]
pub struct RunConfig {
    /// The run's name.
    pub name: String,
    /// A run folder whose weights this run starts from, in place of random
    /// ones. If its model has fewer blocks or hidden units, it is
    /// [grown](crate::grow()): the answers are the same at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// The run folder of the teacher of `[train.multi_task.distillation]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<PathBuf>,
    /// The model.
    pub model: ModelConfig,
    /// The data.
    pub data: DataConfig,
    /// How to train.
    pub train: TrainConfig,
    /// When the model becomes deeper or wider, with the same answers at that
    /// moment ([`grow`](crate::grow())).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grow: Vec<GrowAt>,
}

/// The version of the configuration's layout, which run folders name.
const CONFIG_VERSION: u32 = 1;

/// [`RunConfig`] as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default = "config_version")]
    format_version: u32,
    name: String,
    #[serde(default)]
    init_from: Option<PathBuf>,
    #[serde(default)]
    teacher: Option<PathBuf>,
    model: ModelConfig,
    data: DataConfig,
    train: TrainConfig,
    #[serde(default)]
    grow: Vec<GrowAt>,
}

fn config_version() -> u32 {
    CONFIG_VERSION
}

impl TryFrom<ConfigFile> for RunConfig {
    type Error = String;

    fn try_from(file: ConfigFile) -> Result<Self, String> {
        let ConfigFile { format_version, name, init_from, teacher, model, data, train, grow } =
            file;
        if format_version != CONFIG_VERSION {
            return Err(unknown_version(format_version));
        }
        Ok(Self { name, init_from, teacher, model, data, train, grow })
    }
}

fn unknown_version(found: u32) -> String {
    format!("written in format version {found}, this build reads version {CONFIG_VERSION}")
}

impl RunConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ConfigFile`] with line and field, or
    /// [`Error::Config`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: name.clone(), source })?;
        Self::parse(&text, &name)
    }

    /// Parses and checks a text; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::ConfigFile`] with line and field, or [`Error::Config`].
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        // Before fields that only a later version knows are called unknown.
        #[derive(Deserialize)]
        struct Version {
            format_version: Option<u32>,
        }
        if let Ok(Version { format_version: Some(found) }) = toml::from_str(text)
            && found != CONFIG_VERSION
        {
            return Err(Error::ConfigFile { path: name.into(), reason: unknown_version(found) });
        }
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let line = line.map_or(String::new(), |line| format!("line {line}: "));
            let reason = format!("{line}{}{}", error.message(), meant(error.message(), text));
            Error::ConfigFile { path: name.into(), reason }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as TOML, with the version of its layout.
    ///
    /// # Errors
    /// [`Error::ConfigFile`] if it cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        let text = toml::to_string_pretty(self)
            .map_err(|e| Error::ConfigFile { path: self.name.clone(), reason: e.to_string() })?;
        Ok(format!("format_version = {CONFIG_VERSION}\n{text}"))
    }

    /// Checks every section and that they fit together.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, or what a section reports.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.train.validate()?;
        stages(&self.model, &self.grow, self.train.steps)?;
        let multi_task = self.train.multi_task.as_ref();
        let distils = multi_task.is_some_and(|config| config.distillation.is_some());
        match &self.teacher {
            None if distils => {
                let reason = "needs a teacher: teacher = \"RUN FOLDER\" above the sections";
                return Err(Error::config("train", "multi_task.distillation", "set", reason));
            }
            Some(teacher) if !distils => {
                let reason = "teaches nothing without a section [train.multi_task.distillation]";
                return Err(Error::config("run", "teacher", teacher.display(), reason));
            }
            _ => {}
        }
        match self.data.shape()? {
            Some(shape) => self.data.check_model(&self.model, &shape),
            // Only the files say: checked when they are read.
            None => Ok(()),
        }
    }

    /// Makes or reads the run's data and checks that the model takes it.
    ///
    /// # Errors
    /// As [`DataConfig::load`] and [`DataConfig::check_model`].
    pub fn load_data(&self) -> Result<LoadedData> {
        let data = self.data.load(self.train.seed)?;
        self.data.check_model(&self.model, &data.shape)?;
        Ok(data)
    }

    /// The run on the held-out variants of its tasks, with `examples` of each
    /// to adapt to.
    ///
    /// # Errors
    /// [`Error::Config`] if the data has no such variants.
    pub fn shifted(&self, examples: u64) -> Result<Self> {
        match &self.data {
            DataConfig::Multitask(data) => {
                Ok(Self { data: DataConfig::Multitask(data.shifted(examples)), ..self.clone() })
            }
            DataConfig::Multimodal(data) => {
                let data = crate::data::MultimodalConfig { shifted: true, ..data.clone() };
                Ok(Self { data: DataConfig::Multimodal(data), ..self.clone() })
            }
            other => {
                let kind = match other {
                    DataConfig::Iarc(_) => "iarc",
                    DataConfig::Text(_) => "text",
                    _ => "records",
                };
                let reason = "only multitask and multimodal data have a held-out domain";
                Err(Error::config("data", "kind", kind, reason))
            }
        }
    }

    /// Builds the model with the start values of the run's seed.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn build_model(&self) -> Result<Model> {
        self.model_of(&self.model)
    }

    /// A model of other settings with the start values of the run's seed.
    fn model_of(&self, model: &ModelConfig) -> Result<Model> {
        Model::new(model, Seed::new(self.train.seed))
    }
}

/// What a name that a parser refused may have meant: `unknown field `widht`,
/// expected one of `width`, …` gives `; did you mean `width`?`, or nothing. For
/// a missing field it is what the text has in its place.
fn meant(message: &str, text: &str) -> String {
    if let Some(field) = message.strip_prefix("missing field `").and_then(|m| m.split('`').next()) {
        let keys = text.lines().filter_map(|line| Some(line.split_once('=')?.0.trim()));
        let like = closest(field, keys.filter(|key| *key != field));
        return like.map_or_else(String::new, |key| format!("; is `{key}` meant for it?"));
    }
    let Some((_, rest)) = message.split_once("unknown ") else { return String::new() };
    // Every second piece stands between backticks; the first is the name.
    let mut names = rest.split('`').skip(1).step_by(2);
    let closest = names.next().and_then(|name| closest(name, names));
    closest.map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

impl<E: Element> specialformer_train::Model<E> for Model<E> {
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError> {
        match self {
            Self::Specialformer(model) => return Ok(model.forward(ctx, input)?),
            Self::Published(model) => {
                return specialformer_train::Model::forward(model.as_ref(), ctx, input);
            }
            _ => {}
        }
        let tokens = Tokens::new(input.tokens(), input.rows())?;
        let (rows, length) = (tokens.batch(), tokens.length());
        let padded = input.lengths().filter(|all| all.iter().any(|&n| (n as usize) < length));
        let logits = match (input.positions(), padded) {
            (1, None) => self.logits(ctx, tokens, Outputs::Last)?,
            (1, Some(lengths)) => {
                // The last token of each row, not of the padding after it.
                let all = self.logits(ctx, tokens, Outputs::All)?;
                let places = lengths.iter().enumerate();
                let last: Vec<usize> = places.map(|(i, &n)| i * length + n as usize - 1).collect();
                let classes = all.shape().last_size();
                all.reshape([rows * length, classes])?.embedding(&last, [rows, 1])?
            }
            _ => self.logits(ctx, tokens, Outputs::All)?,
        };
        Ok(ModelOutput::new(logits))
    }

    fn after_step(&self, counters: &[f64]) -> Result<(), BoxError> {
        match self {
            Self::Specialformer(model) => Ok(model.update_balance(counters)?),
            _ => Ok(()),
        }
    }
}

/// How to treat a run folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Make a new run; a folder with files in it is refused.
    New,
    /// Continue the run in the folder.
    Resume,
}

/// A trained run.
#[derive(Debug)]
pub struct TrainedRun {
    /// The model with its final weights.
    pub model: Model,
    /// How the training went.
    pub summary: Summary,
}

/// The metadata key under which weights carry their model's configuration.
const MODEL_KEY: &str = "specialformer.model";

/// The file of a run folder that says what the tasks are: their symbols and
/// labels, as [`save_specs`] writes them.
pub const TASKS_FILE: &str = "tasks.json";

/// Trains what `config` describes in `folder`.
///
/// # Errors
/// If the configuration is invalid, the folder cannot be used, or training
/// fails.
pub fn train<'a>(
    config: &'a RunConfig,
    folder: &Path,
    start: Start,
    observer: impl Observer + 'a,
    stop: impl Fn() -> bool + Send + 'a,
) -> Result<TrainedRun> {
    config.validate()?;
    let data = config.load_data()?;
    let model = config.build_model()?;
    if let (Start::New, Some(from)) = (start, &config.init_from) {
        start_from(from, config, &model)?;
    }
    match start {
        Start::New => RunFolder::create(folder)?.write_config(&config.to_toml()?)?,
        Start::Resume => drop(RunFolder::open(folder)?),
    }
    // Also of a run that was killed before it had written them.
    let tasks = folder.join(TASKS_FILE);
    if !data.tasks.is_empty() && !tasks.is_file() {
        save_specs(&tasks, &data.tasks)?;
    }
    let teacher = config.teacher.as_deref().map(|from| load_teacher(from, config)).transpose()?;
    let run = Run { config, folder, teacher: teacher.as_ref() };
    let stop = Mutex::new(stop);
    let stop = || (stop.lock().unwrap_or_else(PoisonError::into_inner))();
    let mut observer = observer;
    if config.grow.is_empty() {
        let begin = if start == Start::New { Begin::New } else { Begin::Resume };
        let summary = run.stage(&model, &config.model, data, begin, None, &mut observer, stop)?;
        return Ok(TrainedRun { model, summary });
    }
    let stages = stages(&config.model, &config.grow, config.train.steps)?;
    let made = match start {
        Start::New => 0,
        Start::Resume => RunFolder::latest_checkpoint(folder)?.map_or(0, |(step, _)| step),
    };
    // A checkpoint of the moment of a change is of the model before it.
    let mut stage = stages.iter().rposition(|(at, _)| *at < made).unwrap_or(0);
    let mut begin = if start == Start::New { Begin::New } else { Begin::Resume };
    let mut data = Some(data);
    let mut model = if stage == 0 { model } else { config.model_of(&stages[stage].1)? };
    loop {
        let (of, next) = (&stages[stage].1, stages.get(stage + 1));
        let data = data.take().map_or_else(|| config.load_data(), Ok)?;
        let until = next.map(|(at, _)| *at);
        let summary = run.stage(&model, of, data, begin, until, &mut observer, stop)?;
        match next {
            Some((at, larger))
                if summary.outcome == Outcome::Interrupted && summary.step >= *at =>
            {
                let grown = config.model_of(larger)?;
                grow(&model, of, &grown, larger)?;
                (model, begin) = (grown, Begin::Grown);
                stage += 1;
            }
            _ => return Ok(TrainedRun { model, summary }),
        }
    }
}

/// How a stage of a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    New,
    Resume,
    /// From the checkpoint of a smaller model, whose weights were grown.
    Grown,
}

/// What all stages of a run have in common.
struct Run<'a> {
    config: &'a RunConfig,
    folder: &'a Path,
    teacher: Option<&'a Model>,
}

impl Run<'_> {
    /// Trains a model of these settings up to a step, or to the end.
    #[allow(clippy::too_many_arguments)]
    fn stage(
        &self,
        model: &Model,
        of: &ModelConfig,
        data: LoadedData,
        begin: Begin,
        until: Option<u64>,
        observer: &mut (dyn Observer + '_),
        stop: impl Fn() -> bool + Send,
    ) -> Result<Summary> {
        let config = self.config;
        let folder = RunFolder::open(self.folder)?;
        let description = serde_json::to_string(of)
            .map_err(|e| Error::ConfigFile { path: config.name.clone(), reason: e.to_string() })?;
        let trainer = trainer(model, data.dataset, &config.train, of.widths(), self.teacher)?
            .observer(observer)
            .stop_when(stop)
            .model_metadata(MODEL_KEY, description);
        let trainer = match until {
            Some(step) => trainer.until(step),
            None => trainer,
        };
        // A run that does not grow has the settings that it always had.
        let settings = match config.grow.is_empty() {
            true => serde_json::to_value((&config.model, &config.data)),
            false => serde_json::to_value((&config.model, &config.data, &config.grow)),
        };
        let settings = settings
            .map_err(|e| Error::ConfigFile { path: config.name.clone(), reason: e.to_string() })?;
        let mut trainer = match begin {
            Begin::New => trainer.start_in(folder, &settings)?,
            Begin::Resume => trainer.resume_in(folder, &settings)?,
            Begin::Grown => trainer.resume_grown_in(folder, &settings)?,
        };
        Ok(trainer.run()?)
    }
}

/// Gives a model the weights of another run, whose model may be smaller.
fn start_from(folder: &Path, config: &RunConfig, model: &Model) -> Result<()> {
    let path = folder.join("config.toml");
    if path.is_file() {
        let other = RunConfig::load(path)?;
        if grows(&other.model, &config.model) {
            let small = other.build_model()?;
            load_weights(folder, &small)?;
            return grow(&small, &other.model, model, &config.model);
        }
    }
    load_weights(folder, model)
}

/// A trainer with the objective of the configuration.
fn trainer<'a>(
    model: &'a Model,
    dataset: impl Dataset + 'a,
    config: &TrainConfig,
    widths: &[f64],
    teacher: Option<&'a Model>,
) -> Result<Trainer<'a, Model>> {
    let seed = Seed::new(config.seed);
    let objective = config.multi_task.as_ref().map(|multi_task| {
        let parameters = NamedParameters::of(model);
        MultiTask::new(multi_task.clone(), dataset.task_names(), &parameters, seed)
    });
    let objective = objective.transpose()?.map(|objective| match teacher {
        Some(teacher) => objective.with_teacher(teacher),
        None => objective,
    });
    let config = config.clone();
    Ok(match (objective, widths) {
        (None, [_]) => Trainer::new(model, dataset, config)?,
        (Some(objective), [_]) => Trainer::with_objective(model, dataset, config, objective)?,
        (None, widths) => {
            let objective = Elastic::new(CrossEntropy::default(), widths.to_vec())?;
            Trainer::with_objective(model, dataset, config, objective)?
        }
        (Some(objective), widths) => {
            let objective = Elastic::new(objective, widths.to_vec())?;
            Trainer::with_objective(model, dataset, config, objective)?
        }
    })
}

/// The teacher of a run, if it reads the same tokens.
fn load_teacher(folder: &Path, student: &RunConfig) -> Result<Model> {
    let (config, model) = load(folder)?;
    let (theirs, ours) = (config.model.vocabulary(), student.model.vocabulary());
    if theirs != ours {
        let reason = format!("the teacher has {theirs} tokens, the model {ours}");
        return Err(Error::config("run", "teacher", folder.display(), reason));
    }
    Ok(model)
}

/// Loads the configuration and the weights of a run: the final ones, or those
/// of its newest checkpoint.
///
/// # Errors
/// If the folder holds no run, or its weights do not fit the configuration
/// (naming every tensor that does not).
pub fn load(folder: &Path) -> Result<(RunConfig, Model)> {
    let config_path = folder.join("config.toml");
    if !config_path.is_file() {
        return Err(Error::ConfigFile {
            path: config_path.display().to_string(),
            reason: "no such file: not a run folder".into(),
        });
    }
    let config = RunConfig::load(config_path)?;
    let config = match config.grow.is_empty() {
        true => config,
        // The weights say how far their model has grown.
        false => {
            let weights = TensorFile::open(RunFolder::weights(folder)?)?;
            let model = weights.metadata_json(MODEL_KEY)?;
            RunConfig { model, grow: Vec::new(), ..config }
        }
    };
    let model = config.build_model()?;
    load_weights(folder, &model)?;
    Ok((config, model))
}

/// Gives a model the newest weights of a run.
///
/// # Errors
/// If the folder holds no weights, or they do not fit the model (naming every
/// tensor that does not).
pub fn load_weights(folder: &Path, model: &Model) -> Result<()> {
    let path = RunFolder::weights(folder)?;
    let parameters = NamedParameters::of(model);
    let file = TensorFile::open(&path)?;
    let weights = file.load::<f32, _>(parameters.iter().map(|(name, p)| (name, p.shape())))?;
    let in_file = |error| Error::Weights { path: path.display().to_string(), error };
    parameters.load(weights).map_err(in_file)
}

/// Scores a model on held-out data.
///
/// # Errors
/// If the model does not fit the data.
pub fn evaluate(
    config: &RunConfig,
    model: &Model,
    set: HeldOut,
    size: usize,
) -> Result<Option<EvaluationRecord>> {
    let mut train = TrainConfig { eval_size: size, test_size: None, ..config.train.clone() };
    if let Some(multi_task) = &mut train.multi_task {
        // It counts in training only, and needs the teacher.
        multi_task.distillation = None;
    }
    Ok(Trainer::new(model, config.load_data()?.dataset, train)?.evaluate(set)?)
}

/// Rows of held-out data, for looking at what a model does with them.
pub(crate) struct HeldOutRows {
    batch: Batch,
    /// The tasks' names.
    pub(crate) tasks: Vec<String>,
}

impl HeldOutRows {
    /// Rows of one pass.
    const ROWS: usize = 128;

    pub(crate) fn of(config: &RunConfig, set: HeldOut, size: usize) -> Result<Option<Self>> {
        let data = config.load_data()?.dataset;
        let batch = data.held_out(set, size).map_err(|error| Error::Data {
            place: config.name.clone(),
            reason: error.to_string(),
        })?;
        Ok(batch.map(|batch| Self { batch, tasks: data.task_names() }))
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// One of them.
    pub(crate) fn row(&self, number: usize) -> Rows<'_> {
        self.batch.slice(number..number + 1)
    }

    /// Shows the rows, some at a time.
    pub(crate) fn each(&self, mut see: impl FnMut(&Rows<'_>) -> Result<()>) -> Result<()> {
        for first in (0..self.rows()).step_by(Self::ROWS) {
            see(&self.batch.slice(first..self.rows().min(first + Self::ROWS)))?;
        }
        Ok(())
    }
}
