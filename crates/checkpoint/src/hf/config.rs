//! [`HfConfig`]: a model's `config.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::decoder::{DecoderConfig, Defaults, ExpertDefaults, QueryKeyNorm, Window};
use super::encoder::{BertConfig, T5Config};
use super::fields::{Fields, parse_object, read_object};
use crate::error::{CheckpointError, Result};
use crate::storage::StorageType;

/// A model's `config.json`: what every model has, the typed entries of the
/// families that are supported, and the file's own entries.
///
/// Old and new spellings read alike: `rope_parameters` or `rope_theta` and
/// `rope_scaling`, `dtype` or `torch_dtype`, `num_local_experts` or
/// `num_experts`, a `head_dim` that is null or absent.
///
/// ```
/// use specialformer_checkpoint::{HfConfig, ModelFamily};
/// let json = r#"{
///     "model_type": "llama", "vocab_size": 96, "hidden_size": 32,
///     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
///     "max_position_embeddings": 512, "rope_theta": 500000.0, "torch_dtype": "bfloat16"
/// }"#;
/// let config = HfConfig::from_json("config.json", json.as_bytes())?;
/// let ModelFamily::Llama(llama) = &config.family else { unreachable!() };
/// assert_eq!((llama.head_dim, llama.kv_heads, llama.rope.theta), (8, 4, 500_000.0));
/// # Ok::<(), specialformer_checkpoint::CheckpointError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HfConfig {
    /// The classes that the model was saved from (`LlamaForCausalLM`).
    pub architectures: Vec<String>,
    /// The model's type (`llama`).
    pub model_type: String,
    /// The form that the weights were saved in, if the file says.
    pub dtype: Option<StorageType>,
    /// The typed entries.
    pub family: ModelFamily,
    /// All entries of the file.
    pub entries: Map<String, Value>,
    /// Names the file in errors.
    path: PathBuf,
}

/// The families of models that are supported, with their configurations.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelFamily {
    /// Llama and its likes (SmolLM2).
    Llama(DecoderConfig),
    /// Qwen3, dense.
    Qwen3(DecoderConfig),
    /// Mixtral.
    Mixtral(DecoderConfig),
    /// OLMoE.
    Olmoe(DecoderConfig),
    /// Qwen3 with experts.
    Qwen3Moe(DecoderConfig),
    /// BERT.
    Bert(BertConfig),
    /// T5.
    T5(T5Config),
}

/// Model types and what their classes' names start with.
const TYPES: [(&str, &str); 7] = [
    ("llama", "Llama"),
    ("qwen3", "Qwen3"),
    ("mixtral", "Mixtral"),
    ("olmoe", "Olmoe"),
    ("qwen3_moe", "Qwen3Moe"),
    ("bert", "Bert"),
    ("t5", "T5"),
];

const DENSE: Defaults = Defaults {
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    head_dim: None,
    query_key_norm: QueryKeyNorm::None,
    experts: None,
    window: Window::Never,
};

impl HfConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] and those of [`HfConfig::from_json`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_entries(path, read_object(path)?)
    }

    /// Reads JSON that is in memory; `path` names it in errors.
    ///
    /// # Errors
    /// [`CheckpointError::Json`] if it is not a JSON object;
    /// [`CheckpointError::UnsupportedModel`], with a list of what is supported;
    /// [`CheckpointError::Config`] with key and value of an entry that is
    /// missing or cannot be.
    pub fn from_json(path: impl Into<PathBuf>, json: &[u8]) -> Result<Self> {
        let path = path.into();
        let entries = parse_object(&path, json)?;
        Self::from_entries(path, entries)
    }

    /// Takes the entries of a configuration; `path` names it in errors.
    ///
    /// # Errors
    /// Those of [`HfConfig::from_json`] but the first.
    pub fn from_entries(path: impl Into<PathBuf>, entries: Map<String, Value>) -> Result<Self> {
        let path = path.into();
        let fields = Fields::new(&path, &entries);
        let architectures: Vec<String> = fields
            .strings("architectures")?
            .unwrap_or_default()
            .iter()
            .map(|s| (*s).into())
            .collect();
        let model_type = model_type(&path, fields.string("model_type")?, &architectures)?;
        let family = family(&fields, model_type)?;
        let dtype = dtype(&fields)?;
        let model_type = model_type.to_owned();
        Ok(Self { architectures, model_type, dtype, family, entries, path })
    }

    /// The path that names the file in errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about an entry, for callers that find a value unusable.
    pub fn error(&self, key: &str, what: impl Into<String>) -> CheckpointError {
        let path = self.path.clone();
        CheckpointError::Config { path, key: key.to_owned(), what: what.into() }
    }
}

impl ModelFamily {
    /// The configuration if it is a decoder's.
    pub fn decoder(&self) -> Option<&DecoderConfig> {
        match self {
            Self::Llama(config)
            | Self::Qwen3(config)
            | Self::Mixtral(config)
            | Self::Olmoe(config)
            | Self::Qwen3Moe(config) => Some(config),
            Self::Bert(_) | Self::T5(_) => None,
        }
    }
}

fn model_type(path: &Path, found: Option<&str>, architectures: &[String]) -> Result<&'static str> {
    // Some old files have no model type; the class tells.
    let by_class = |name: &str| {
        let starts = |start: &str| {
            name.strip_prefix(start).is_some_and(|rest| rest == "Model" || rest.starts_with("For"))
        };
        TYPES.iter().find(|(_, start)| starts(start))
    };
    let entry = match found {
        Some(found) => TYPES.iter().find(|(name, _)| *name == found),
        None => architectures.iter().find_map(|name| by_class(name)),
    };
    entry.map(|(name, _)| *name).ok_or_else(|| {
        let found = match (found, architectures.first()) {
            (Some(found), _) => format!("the model type `{}`", found.escape_debug()),
            (None, Some(class)) => format!("the architecture `{}`", class.escape_debug()),
            (None, None) => "a configuration without `model_type` and `architectures`".into(),
        };
        let supported = TYPES.map(|(name, _)| name).join(", ");
        CheckpointError::UnsupportedModel { path: path.to_owned(), found, supported }
    })
}

fn family(fields: &Fields<'_>, model_type: &str) -> Result<ModelFamily> {
    let qwen = Defaults { query_key_norm: QueryKeyNorm::PerHead, window: Window::Upper, ..DENSE };
    Ok(match model_type {
        "llama" => ModelFamily::Llama(DecoderConfig::read(fields, DENSE)?),
        "qwen3" => {
            let defaults = Defaults { head_dim: Some(128), ..qwen };
            ModelFamily::Qwen3(DecoderConfig::read(fields, defaults)?)
        }
        "mixtral" => {
            let experts = ExpertDefaults {
                experts: 8,
                top_k: 2,
                hidden: "intermediate_size",
                normalize: Some(true),
                balance_coefficient: 0.001,
            };
            let defaults = Defaults {
                rms_norm_eps: 1e-5,
                rope_theta: 1e6,
                experts: Some(experts),
                window: Window::All,
                ..DENSE
            };
            ModelFamily::Mixtral(DecoderConfig::read(fields, defaults)?)
        }
        "olmoe" => {
            let experts = ExpertDefaults {
                experts: 64,
                top_k: 8,
                hidden: "intermediate_size",
                normalize: None,
                balance_coefficient: 0.01,
            };
            let defaults = Defaults {
                rms_norm_eps: 1e-5,
                query_key_norm: QueryKeyNorm::AllHeads,
                experts: Some(experts),
                ..DENSE
            };
            ModelFamily::Olmoe(DecoderConfig::read(fields, defaults)?)
        }
        "qwen3_moe" => {
            let experts = ExpertDefaults {
                experts: 128,
                top_k: 8,
                hidden: "moe_intermediate_size",
                normalize: None,
                balance_coefficient: 0.001,
            };
            let defaults = Defaults { experts: Some(experts), ..qwen };
            ModelFamily::Qwen3Moe(DecoderConfig::read(fields, defaults)?)
        }
        "bert" => ModelFamily::Bert(BertConfig::read(fields)?),
        "t5" => ModelFamily::T5(T5Config::read(fields)?),
        _ => unreachable!("the table of types has no other"),
    })
}

fn dtype(fields: &Fields<'_>) -> Result<Option<StorageType>> {
    let (key, _) = fields.either(["dtype", "torch_dtype"])?;
    let Some(name) = fields.string(key)? else { return Ok(None) };
    let known = [
        ("float32", StorageType::F32),
        ("float16", StorageType::F16),
        ("bfloat16", StorageType::BF16),
        ("float64", StorageType::F64),
    ];
    let plain = name.strip_prefix("torch.").unwrap_or(name);
    match known.iter().find(|(known, _)| *known == plain) {
        Some((_, kind)) => Ok(Some(*kind)),
        None if plain == "auto" => Ok(None),
        None => {
            let names = known.map(|(name, _)| name).join(", ");
            Err(fields.error(key, format!("is \"{name}\"; supported are {names}")))
        }
    }
}
