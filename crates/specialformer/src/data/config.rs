//! The `[data]` section of a run, and what data asks of a model.

use std::path::Path;

use serde::{Deserialize, Serialize};
use specialformer_train::Dataset;

use crate::config::{Head, ModelConfig, SpecialformerConfig, TaskConfig, Topology};
use crate::data::example::TaskSpec;
use crate::data::layout::{Layout, TaskHead};
use crate::data::multimodal::MultimodalConfig;
use crate::data::multitask::MultitaskConfig;
use crate::data::records::RecordsConfig;
use crate::data::text::TextConfig;
use crate::error::{Error, Result};
use crate::iarc::{IarcConfig, IarcDataset, Scoring};

/// The `[data]` section.
///
/// ```
/// use specialformer::DataConfig;
/// let data: DataConfig = toml::from_str(r#"
///     kind = "multitask"
///     tasks = ["sort", "keyword"]
///     answers = "tokens"
/// "#)?;
/// let shape = data.load(1)?.shape;
/// assert_eq!(shape.vocabulary, 4 + 2 + 10 + 12 + 4);
/// assert_eq!(shape.window, 2 + 16 + 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DataConfig {
    /// The IARC task-switching benchmark.
    Iarc(IarcConfig),
    /// Conflicting tasks made from random words.
    Multitask(MultitaskConfig),
    /// Questions about images and series, and words in two scripts.
    Multimodal(MultimodalConfig),
    /// Plain text files.
    Text(TextConfig),
    /// JSONL and CSV files.
    Records(RecordsConfig),
}

/// What data asks of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataShape {
    /// Number of tokens.
    pub vocabulary: usize,
    /// The longest row.
    pub window: usize,
    /// The longest source; 0 unless the layout is that of an encoder-decoder.
    pub source_window: usize,
    /// Which kind of model reads the rows.
    pub layout: Layout,
    /// What answers each task, in the order of task ids.
    pub heads: Vec<TaskHead>,
}

/// Data that is ready to be trained on.
pub struct LoadedData {
    /// Where batches come from.
    pub dataset: Box<dyn Dataset>,
    /// What it asks of a model.
    pub shape: DataShape,
    /// What each task is, with symbols and labels; empty for data that is not
    /// made of examples.
    pub tasks: Vec<TaskSpec>,
}

impl std::fmt::Debug for LoadedData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedData").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl DataConfig {
    /// Checks what can be said without reading files.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, or what the benchmark reports.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Iarc(data) => data.benchmark().map(|_| ()),
            Self::Multitask(data) => data.validate(),
            Self::Multimodal(data) => data.validate(),
            Self::Text(data) => data.validate(),
            Self::Records(data) => data.validate(),
        }
    }

    /// Makes or reads the data; what is random in it is drawn from `seed`.
    ///
    /// # Errors
    /// As [`DataConfig::validate`], or naming the file, line and field that
    /// cannot be used.
    pub fn load(&self, seed: u64) -> Result<LoadedData> {
        self.load_numbered(seed, None)
    }

    /// The same, with the labels of records numbered by a file of a run.
    pub(crate) fn load_numbered(&self, seed: u64, labels: Option<&Path>) -> Result<LoadedData> {
        let of_tasks = |data: crate::data::TaskDataset| LoadedData {
            shape: DataShape {
                vocabulary: data.vocabulary().size(),
                window: data.window(),
                source_window: data.source_window(),
                layout: data.format().layout,
                heads: data.heads(),
            },
            tasks: data.tasks().to_vec(),
            dataset: Box::new(data),
        };
        Ok(match self {
            Self::Iarc(data) => LoadedData {
                dataset: Box::new(IarcDataset::new(data, seed)?),
                shape: iarc_shape(data),
                tasks: Vec::new(),
            },
            Self::Multitask(data) => of_tasks(data.dataset(seed)?),
            Self::Multimodal(data) => LoadedData {
                dataset: Box::new(data.dataset(seed)?),
                shape: multimodal_shape(data)?,
                tasks: Vec::new(),
            },
            Self::Records(data) => of_tasks(data.dataset_numbered(seed, labels)?),
            Self::Text(data) => {
                let dataset = data.dataset(seed)?;
                LoadedData {
                    dataset: Box::new(dataset),
                    shape: text_shape(data)?,
                    tasks: Vec::new(),
                }
            }
        })
    }

    /// What the data asks of a model; `None` if only its files say.
    ///
    /// # Errors
    /// As [`DataConfig::validate`].
    pub fn shape(&self) -> Result<Option<DataShape>> {
        self.validate()?;
        Ok(match self {
            Self::Iarc(data) => Some(iarc_shape(data)),
            Self::Text(data) => Some(text_shape(data)?),
            Self::Multimodal(data) if data.images.is_none() => Some(multimodal_shape(data)?),
            Self::Multitask(data) => Some(DataShape {
                vocabulary: data.joint_vocabulary()?.size(),
                window: data.window()?,
                source_window: data.source_window()?,
                layout: data.layout,
                heads: data.heads()?,
            }),
            Self::Records(_) | Self::Multimodal(_) => None,
        })
    }

    /// Checks that a model takes data of that shape.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field of the model, or of the data.
    pub fn check_model(&self, model: &ModelConfig, shape: &DataShape) -> Result<()> {
        let fail =
            |field, value: usize, reason: String| Err(Error::config("model", field, value, reason));
        // Pretrained models have rows for tokens that their tokenizer lacks.
        let spare = model.published().is_some() && model.vocabulary() > shape.vocabulary;
        if model.vocabulary() != shape.vocabulary && !spare {
            let reason = format!("the data has {} tokens", shape.vocabulary);
            return fail("vocabulary", model.vocabulary(), reason);
        }
        let longest = match self {
            Self::Iarc(_) | Self::Text(_) => format!("data.window = {} is longer", shape.window),
            _ => format!("the longest row of the data has {} tokens", shape.window),
        };
        if let Some(window) = model.window().filter(|&window| window < shape.window) {
            return fail("window", window, longest);
        }
        match (model, self) {
            (ModelConfig::Mlp(mlp), Self::Iarc(data)) => {
                if mlp.window != data.window {
                    let reason =
                        format!("data.window = {}, and an MLP sees whole windows", data.window);
                    return fail("window", mlp.window, reason);
                }
                if data.scoring == Scoring::All {
                    let reason = "an MLP sees whole windows and learns from the last position only";
                    return Err(Error::config("data", "scoring", "all", reason));
                }
            }
            (ModelConfig::Mlp(_), _) => {
                let reason = "sees whole windows of one length: it is for data.kind = iarc";
                return Err(Error::config("model", "kind", model.kind(), reason));
            }
            (ModelConfig::Specialformer(model), Self::Multimodal(data)) => {
                check_input(model, data)?;
                return specialformer(model, shape);
            }
            (_, Self::Multimodal(_)) => {
                let reason = "a Specialformer alone reads several modalities";
                return Err(Error::config("model", "kind", model.kind(), reason));
            }
            (ModelConfig::Specialformer(model), _) => return specialformer(model, shape),
            _ => {}
        }
        one_head(model, shape)
    }
}

/// A Specialformer answers task i of the data with its own task i.
fn specialformer(model: &SpecialformerConfig, shape: &DataShape) -> Result<()> {
    let fail = |field, value: &dyn std::fmt::Display, reason: String| {
        Err(Error::config("model", field, value, reason))
    };
    let (topology, layout) = match model.topology {
        Topology::Decoder => ("decoder", Layout::Decoder),
        Topology::Encoder => ("encoder", Layout::Encoder),
        Topology::EncoderDecoder => ("encoder-decoder", Layout::EncoderDecoder),
    };
    if layout != shape.layout {
        return fail("topology", &topology, "data.layout must be the same".into());
    }
    let source_window = model.source_window.unwrap_or(model.base.window);
    if source_window < shape.source_window {
        let reason = format!("the longest source of the data has {} tokens", shape.source_window);
        return fail("source_window", &source_window, reason);
    }
    let single = TaskConfig::new("", Head::LanguageModel);
    for (i, wanted) in shape.heads.iter().enumerate() {
        let task = match model.tasks.get(i) {
            Some(task) if task.name == wanted.name => task,
            _ if model.tasks.is_empty() => &single,
            other => {
                let found = other.map_or("none", |task| task.name.as_str());
                let reason = format!("task {i} of the data is {}", wanted.name);
                return fail("tasks.name", &found, reason);
            }
        };
        if task.head != wanted.head {
            let reason = format!("task {} of the data needs {}", wanted.name, name(wanted.head));
            return fail("tasks.head", &name(task.head), reason);
        }
        let outputs = task.outputs(model.base.outputs());
        if outputs < wanted.outputs {
            let reason = format!("task {} of the data needs {}", wanted.name, wanted.outputs);
            return fail("tasks.outputs", &outputs, reason);
        }
    }
    Ok(())
}

/// A model of the data's types.
fn check_input(model: &SpecialformerConfig, data: &MultimodalConfig) -> Result<()> {
    let types = data.types()?;
    let given = model.input.as_ref().map_or(&[][..], |input| &input.types);
    let fits = given.len() == types.len()
        && given.iter().zip(&types).all(|(own, data)| {
            // A model need not know the places of patches.
            let grid = own.grid.is_none() || own.grid == data.grid;
            own.name == data.name
                && own.tokens == data.tokens
                && own.features == data.features
                && grid
        });
    if fits {
        return Ok(());
    }
    let name = |of: &specialformer_embedding::StreamType| match of.tokens {
        0 => match of.grid {
            Some([rows, columns]) => {
                format!("{} of {} features, grid [{rows}, {columns}]", of.name, of.features)
            }
            None => format!("{} of {} features", of.name, of.features),
        },
        n => format!("{} of {n} tokens", of.name),
    };
    let wanted: Vec<_> = types.iter().map(name).collect();
    let found: Vec<_> = given.iter().map(name).collect();
    let reason = format!("the data has {}", wanted.join(", "));
    Err(Error::config("model.input", "types", format!("[{}]", found.join(", ")), reason))
}

/// The head's name as it stands in a file.
fn name(head: Head) -> &'static str {
    match head {
        Head::LanguageModel => "language-model",
        Head::Classification => "classification",
        Head::Regression => "regression",
        Head::Labelling => "labelling",
    }
}

/// What a causal model with a single head answers.
fn one_head(model: &ModelConfig, shape: &DataShape) -> Result<()> {
    if shape.layout != Layout::Decoder {
        let reason = "the model is a decoder: data.layout must be that too";
        return Err(Error::config("model", "kind", model.kind(), reason));
    }
    for task in &shape.heads {
        let alone = shape.heads.len() == 1 && task.head == Head::Classification;
        if task.head != Head::LanguageModel && !alone {
            let reason = format!(
                "has one head for all tasks, but task {} needs its own; data.answers = \"tokens\" \
                 is for classes and labels",
                task.name
            );
            return Err(Error::config("model", "kind", model.kind(), reason));
        }
        if model.outputs() < task.outputs {
            let reason = format!("the data has {} classes", task.outputs);
            return Err(Error::config("model", "outputs", model.outputs(), reason));
        }
    }
    Ok(())
}

fn iarc_shape(data: &IarcConfig) -> DataShape {
    DataShape {
        vocabulary: data.vocabulary(),
        window: data.window,
        source_window: 0,
        layout: Layout::Decoder,
        heads: vec![TaskHead {
            name: "iarc".into(),
            head: Head::LanguageModel,
            outputs: data.digits,
        }],
    }
}

fn text_shape(data: &TextConfig) -> Result<DataShape> {
    let vocabulary = data.vocabulary()?;
    let head = |task: &crate::data::TextTask| TaskHead {
        name: task.name.clone(),
        head: Head::LanguageModel,
        outputs: vocabulary,
    };
    Ok(DataShape {
        vocabulary,
        window: data.window,
        source_window: 0,
        layout: Layout::Decoder,
        heads: data.tasks.iter().map(head).collect(),
    })
}

fn multimodal_shape(data: &MultimodalConfig) -> Result<DataShape> {
    Ok(DataShape {
        vocabulary: data.vocabulary(),
        window: data.longest()?,
        source_window: 0,
        layout: Layout::Decoder,
        heads: data.heads(),
    })
}
