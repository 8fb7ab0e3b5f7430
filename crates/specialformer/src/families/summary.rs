//! [`ModelSummary`]: what is in a pretrained model's files, without loading it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use specialformer_checkpoint::{Access, GgufFile, HfConfig, ModelFamily, ModelFolder};

use super::load::is_gguf;
use crate::error::Result;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// Its name in the file.
    pub name: String,
    /// The form of its values.
    pub kind: String,
    /// Sizes of the axes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
}

impl TensorSummary {
    /// Number of values.
    pub fn values(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// The experts of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpertsSummary {
    /// Experts E of a layer.
    pub experts: usize,
    /// Experts K that a token goes to.
    pub top_k: usize,
    /// Hidden width of an expert.
    pub hidden: usize,
    /// Layers that have experts.
    pub sparse_layers: Vec<usize>,
    /// How the file names their matrices: `numbered` (w1, w2, w3),
    /// `projections`, `fused` or `stacked`.
    pub layout: &'static str,
}

/// What is in a pretrained model's files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSummary {
    /// `safetensors` or `gguf`.
    pub format: &'static str,
    /// The family (`llama`).
    pub model_type: String,
    /// The class that it is published as.
    pub architecture: Option<String>,
    /// True if [`PublishedModel::open`](super::PublishedModel::open) takes it.
    pub supported: bool,
    /// Number of layers, of the decoder where there are two stacks.
    pub layers: usize,
    /// Model width C.
    pub width: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Size V of the vocabulary.
    pub vocabulary: usize,
    /// The longest text.
    pub window: Option<usize>,
    /// Values of all tensors; a tied matrix counts once.
    pub parameters: u64,
    /// Those that act on one token.
    pub active_parameters: u64,
    /// Bytes of all tensors in the file.
    pub file_bytes: u64,
    /// Bytes of all weights in single precision.
    pub f32_bytes: u64,
    /// Bytes of keys and values for each token of a text, in single precision;
    /// 0 for a model that does not continue texts.
    pub cache_bytes_per_token: u64,
    /// Number of tensors and bytes of each kind.
    pub kinds: BTreeMap<String, (usize, u64)>,
    /// The experts, of a mixture.
    pub experts: Option<ExpertsSummary>,
    /// Every tensor, in the order of the names.
    pub tensors: Vec<TensorSummary>,
}

impl ModelSummary {
    /// Reads headers and configuration, not the weights.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (format, config, tensors) = if is_gguf(path) {
            let file = GgufFile::map(path)?;
            let entry = |name: &str| {
                let raw = file.raw(name)?;
                Ok(tensor(name, raw.kind().to_string(), &raw.shape(), raw.bytes().len()))
            };
            let tensors = file.names().map(entry).collect::<Result<Vec<_>>>()?;
            ("gguf", file.config()?, tensors)
        } else {
            let folder = ModelFolder::open(path, Access::Map)?;
            let set = folder.tensors();
            let entry = |name: &str| {
                let kind = set.element_type(name).unwrap_or_default();
                let shape = set.sizes(name).unwrap_or_default();
                let bytes = set.raw(name).map_or(0, |raw| raw.bytes().len());
                tensor(name, kind, shape, bytes)
            };
            let tensors = set.names().map(entry).collect();
            ("safetensors", folder.config().clone(), tensors)
        };
        Ok(Self::of(format, &config, tensors))
    }

    fn of(format: &'static str, config: &HfConfig, tensors: Vec<TensorSummary>) -> Self {
        let mut kinds: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        for tensor in &tensors {
            let (count, bytes) = kinds.entry(tensor.kind.clone()).or_default();
            (*count, *bytes) = (*count + 1, *bytes + tensor.bytes);
        }
        let parameters: u64 = tensors.iter().map(TensorSummary::values).sum();
        let experts = experts(config, &tensors);
        let in_experts = tensors.iter().filter(|tensor| is_expert(&tensor.name));
        let in_experts: u64 = in_experts.map(TensorSummary::values).sum();
        let idle = experts.as_ref().map_or(0, |all| {
            in_experts - in_experts / all.experts.max(1) as u64 * all.top_k as u64
        });
        let shape = Shape::of(config);
        let cached = usize::from(config.family.decoder().is_some());
        let cache_width = cached * shape.layers * shape.kv_heads * shape.head_width;
        Self {
            format,
            model_type: config.model_type.clone(),
            architecture: config.architectures.first().cloned(),
            supported: super::architecture::Architecture::of(config).is_ok(),
            layers: shape.layers,
            width: shape.width,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            vocabulary: shape.vocabulary,
            window: shape.window,
            parameters,
            active_parameters: parameters - idle,
            file_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
            f32_bytes: 4 * parameters,
            cache_bytes_per_token: 8 * cache_width as u64,
            kinds,
            experts,
            tensors,
        }
    }
}

fn tensor(name: &str, kind: String, shape: &[usize], bytes: usize) -> TensorSummary {
    TensorSummary { name: name.to_owned(), kind, shape: shape.to_vec(), bytes: bytes as u64 }
}

fn is_expert(name: &str) -> bool {
    name.contains(".experts.") || name.contains("_exps.")
}

fn experts(config: &HfConfig, tensors: &[TensorSummary]) -> Option<ExpertsSummary> {
    let decoder = config.family.decoder()?;
    let experts = decoder.experts.as_ref()?;
    let has = |part: &str| tensors.iter().any(|tensor| tensor.name.contains(part));
    let layout = if has("_exps.") {
        "stacked"
    } else if has(".experts.gate_up_proj") {
        "fused"
    } else if has(".w1.weight") {
        "numbered"
    } else {
        "projections"
    };
    let sparse = |layer: &usize| experts.sparse_layers.get(*layer).copied().unwrap_or(true);
    Some(ExpertsSummary {
        experts: experts.experts,
        top_k: experts.top_k,
        hidden: experts.hidden,
        sparse_layers: (0..decoder.layers).filter(sparse).collect(),
        layout,
    })
}

/// Sizes of a configuration.
struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    vocabulary: usize,
    window: Option<usize>,
}

impl Shape {
    fn of(config: &HfConfig) -> Self {
        match &config.family {
            ModelFamily::Bert(bert) => Self {
                layers: bert.layers,
                width: bert.hidden_size,
                heads: bert.heads,
                kv_heads: bert.heads,
                head_width: bert.hidden_size / bert.heads.max(1),
                vocabulary: bert.vocab_size,
                window: Some(bert.max_position_embeddings),
            },
            ModelFamily::T5(t5) => Self {
                layers: t5.layers,
                width: t5.d_model,
                heads: t5.heads,
                kv_heads: t5.heads,
                head_width: t5.d_kv,
                vocabulary: t5.vocab_size,
                window: None,
            },
            family => match family.decoder() {
                Some(decoder) => Self {
                    layers: decoder.layers,
                    width: decoder.hidden_size,
                    heads: decoder.heads,
                    kv_heads: decoder.kv_heads,
                    head_width: decoder.head_dim,
                    vocabulary: decoder.vocab_size,
                    window: Some(decoder.max_position_embeddings),
                },
                None => Self {
                    layers: 0,
                    width: 0,
                    heads: 0,
                    kv_heads: 0,
                    head_width: 0,
                    vocabulary: 0,
                    window: None,
                },
            },
        }
    }
}
