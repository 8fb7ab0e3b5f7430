//! Runs: a model, data and training settings from one TOML file, in one
//! folder.

mod held_out;
mod load;
mod training;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use specialformer_nn::names::closest;
use specialformer_tensor::Seed;
use specialformer_train::TrainConfig;

pub(crate) use self::held_out::HeldOutRows;
pub use self::held_out::{evaluate, evaluate_with_calibration};
pub use self::load::{load, load_weights};
pub use self::training::{Start, TASKS_FILE, TrainedRun, train};
use crate::config::ModelConfig;
use crate::data::{DataConfig, LoadedData};
use crate::error::{Error, Result};
use crate::grow::{GrowAt, stages};
use crate::models::Model;

/// The metadata key under which weights carry their model's configuration.
const MODEL_KEY: &str = "specialformer.model";

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
    /// The file of a run folder that says which number each label of `records`
    /// data has in this run ([`RunConfig::numbered_by`]); no part of the file
    /// of the configuration.
    #[serde(skip)]
    pub labels: Option<PathBuf>,
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
        Ok(Self { name, init_from, teacher, model, data, train, grow, labels: None })
    }
}

fn unknown_version(found: u32) -> String {
    format!("written in format version {found}, this build reads version {CONFIG_VERSION}")
}

impl RunConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ConfigFile`] with the file and the line or the
    /// field.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let file = |reason: String| Error::ConfigFile { path: name.clone(), reason };
        if path.as_ref().is_dir() {
            return Err(file("is a folder, not a configuration file".into()));
        }
        let bytes =
            std::fs::read(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| file("is no text, so it is no configuration file".into()))?;
        Self::parse(&text, &name).map_err(|error| match error {
            error @ Error::ConfigFile { .. } => error,
            error => file(error.to_string()),
        })
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
            let message = in_words(error.message());
            let reason = format!("{line}{message}{}", meant(error.message(), text));
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

    /// Checks that the name can be that of a folder: runs are kept by it.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check_name(&self) -> Result<()> {
        let name = self.name.as_str();
        let is_folder = !["", ".", ".."].contains(&name) && !name.contains(['/', '\\']);
        if is_folder && !name.contains(char::is_control) {
            return Ok(());
        }
        let reason = "must be the name of one folder, without slashes and control characters";
        Err(Error::Setting {
            path: "name".into(),
            value: format!("{name:?}"),
            reason: reason.into(),
        })
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

    /// The same, with labels numbered as the run in `folder` numbers them, so
    /// that they mean what its weights learned when the data has changed since.
    /// A label that the run does not have is an error then.
    pub fn numbered_by(mut self, folder: &Path) -> Self {
        let tasks = folder.join(TASKS_FILE);
        self.labels = tasks.is_file().then_some(tasks);
        self
    }

    /// Makes or reads the run's data and checks that the model takes it.
    ///
    /// # Errors
    /// As [`DataConfig::load`] and [`DataConfig::check_model`].
    pub fn load_data(&self) -> Result<LoadedData> {
        let data = self.data.load_numbered(self.train.seed, self.labels.as_deref())?;
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

/// What a parser says with the types of a program, in words.
fn in_words(message: &str) -> String {
    if let Some((number, _)) = message.split_once(" as i128, expected ") {
        return format!("{number}: the number is too large");
    }
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return message.into();
    };
    let words = match expected {
        "usize" | "u64" | "u32" | "u8" => "a whole number from 0 on",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a sequence" => "a list",
        "a map" => "a table",
        "a boolean" => "true or false",
        "nothing" => "no more",
        other => other,
    };
    format!("{found}, expected {words}")
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
