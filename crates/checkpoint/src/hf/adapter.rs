//! LoRA adapters in the folders that PEFT reads and writes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use specialformer_tensor::Tensor;

use super::fields::{Fields, MAX_WIDTH, parse_object, read_bytes};
use super::writer::write_json;
use crate::error::{CheckpointError, Result};
use crate::reader::TensorFile;
use crate::writer::TensorWriter;

const CONFIG_FILE: &str = "adapter_config.json";
const TENSORS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// Entries that change what an adapter computes and are not supported: they
/// have to be absent, null, false, empty, or this.
const REFUSED: [(&str, &str); 12] = [
    ("use_dora", ""),
    ("use_qalora", ""),
    ("use_bdlora", ""),
    ("lora_bias", ""),
    ("bias", "none"),
    ("modules_to_save", ""),
    ("layer_replication", ""),
    ("trainable_token_indices", ""),
    ("target_parameters", ""),
    ("alora_invocation_tokens", ""),
    ("megatron_config", ""),
    ("fan_in_fan_out", ""),
];

/// The configuration of a LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of the updates, R.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// True if the scale is α/√R and not α/R.
    pub use_rslora: bool,
    /// Dropout on the adapter's input in training.
    pub dropout: f64,
    /// The last parts of the names of the adapted modules (`q_proj`).
    pub target_modules: Vec<String>,
    /// Ranks of single modules that differ, by the end of the module's name. Of
    /// several that fit the first counts, as in PEFT.
    pub rank_pattern: Vec<(String, usize)>,
    /// Numerators of single modules that differ, by the end of the module's
    /// name. Of several that fit the first counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// What the model is for (`CAUSAL_LM`).
    pub task_type: Option<String>,
    /// Where the adapted model came from.
    pub base_model: Option<String>,
}

impl LoraConfig {
    /// A configuration with the scale α/R and without dropout.
    pub fn new(r: usize, alpha: f64, target_modules: &[&str]) -> Self {
        Self {
            r,
            alpha,
            use_rslora: false,
            dropout: 0.0,
            target_modules: target_modules.iter().map(|name| (*name).to_owned()).collect(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            task_type: Some("CAUSAL_LM".into()),
            base_model: None,
        }
    }

    /// The rank of a module.
    pub fn rank(&self, module: &str) -> usize {
        by_pattern(&self.rank_pattern, module).copied().unwrap_or(self.r)
    }

    /// What a module's update B·A is multiplied by: α/R, or α/√R.
    pub fn scale(&self, module: &str) -> f64 {
        let alpha = by_pattern(&self.alpha_pattern, module).copied().unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    fn read(path: &Path) -> Result<Self> {
        let json = read_bytes(path)?;
        let entries = parse_object(path, &json)?;
        let fields = Fields::new(path, &entries);
        let kind = fields.string("peft_type")?.unwrap_or("LORA");
        if kind != "LORA" {
            return Err(fields.error("peft_type", format!("is \"{kind}\"; supported is LORA")));
        }
        for (key, allowed) in REFUSED {
            let plain = match fields.get(key) {
                None | Some(Value::Bool(false)) => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(object)) => object.is_empty(),
                Some(Value::String(text)) => text == allowed,
                Some(_) => false,
            };
            if !plain {
                return Err(fields.error(key, "is set, which is not supported"));
            }
        }
        let (ranks, alphas) = (fields.object("rank_pattern")?, fields.object("alpha_pattern")?);
        let keys: PatternKeys = serde_json::from_slice(&json).map_err(|error| {
            CheckpointError::Json { path: path.to_owned(), what: error.to_string() }
        })?;
        let ranks = patterns(ranks, keys.rank_pattern, |f, key| f.size(key, MAX_WIDTH))?;
        let alphas = patterns(alphas, keys.alpha_pattern, |f, key| {
            f.positive(key)?.ok_or_else(|| f.error(key, "is null"))
        })?;
        let text = |key| Ok::<_, CheckpointError>(fields.string(key)?.map(str::to_owned));
        let targets = match fields.get("target_modules") {
            None => Vec::new(),
            // A regular expression, or `all-linear`: the tensors tell.
            Some(Value::String(_)) => Vec::new(),
            Some(_) => fields.strings("target_modules")?.unwrap_or_default(),
        };
        Ok(Self {
            r: fields.size("r", MAX_WIDTH)?,
            alpha: fields
                .positive("lora_alpha")?
                .ok_or_else(|| fields.error("lora_alpha", "is missing"))?,
            use_rslora: fields.boolean("use_rslora", false)?,
            dropout: fields.probability("lora_dropout")?.unwrap_or(0.0),
            target_modules: targets.into_iter().map(str::to_owned).collect(),
            rank_pattern: ranks,
            alpha_pattern: alphas,
            task_type: text("task_type")?,
            base_model: text("base_model_name_or_path")?,
        })
    }

    /// An error if a pattern is there twice. The first counts, but of a file
    /// the last is read.
    fn check_patterns(&self, path: &Path) -> Result<()> {
        let ranks = self.rank_pattern.iter().map(|(key, _)| ("rank_pattern", key));
        let alphas = self.alpha_pattern.iter().map(|(key, _)| ("alpha_pattern", key));
        let mut seen = HashSet::new();
        match ranks.chain(alphas).find(|entry| !seen.insert(*entry)) {
            None => Ok(()),
            Some((field, key)) => Err(CheckpointError::Config {
                path: path.to_owned(),
                key: format!("{field}.{key}"),
                what: "is there twice".into(),
            }),
        }
    }

    fn to_file(&self) -> File {
        let alphas = self.alpha_pattern.iter();
        let alphas = alphas.map(|(key, alpha)| (key.clone(), whole_if_possible(*alpha)));
        let ranks = self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank)));
        let rest = json!({
            "peft_type": "LORA",
            "task_type": self.task_type,
            "base_model_name_or_path": self.base_model,
            "r": self.r,
            "lora_alpha": whole_if_possible(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "target_modules": self.target_modules,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
            "use_dora": false,
        });
        File {
            rank_pattern: Ordered(ranks.collect()),
            alpha_pattern: Ordered(alphas.collect()),
            rest,
        }
    }
}

/// What is written of a configuration.
#[derive(Serialize)]
struct File {
    rank_pattern: Ordered,
    alpha_pattern: Ordered,
    #[serde(flatten)]
    rest: Value,
}

/// An object whose entries keep their order, which a map of JSON does not.
struct Ordered(Vec<(String, Value)>);

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// The keys of a configuration's patterns as the file orders them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PatternKeys {
    rank_pattern: Keys,
    alpha_pattern: Keys,
}

/// The keys of an object, none of null.
#[derive(Default)]
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(Keys(keys))
    }
}

/// PEFT's α is an integer in most files.
fn whole_if_possible(value: f64) -> Value {
    let whole = value.fract() == 0.0 && value.abs() < 2f64.powi(53);
    if whole { json!(value as i64) } else { json!(value) }
}

fn by_pattern<'a, T>(patterns: &'a [(String, T)], module: &str) -> Option<&'a T> {
    patterns.iter().find(|(pattern, _)| ends_with_parts(module, pattern)).map(|(_, value)| value)
}

/// True if `end` are the last dotted parts of `module`.
fn ends_with_parts(module: &str, end: &str) -> bool {
    module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The entries of an object in the order of its keys.
fn patterns<T>(
    object: Option<Fields<'_>>,
    Keys(names): Keys,
    read: impl Fn(&Fields<'_>, &str) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let Some(object) = object else { return Ok(Vec::new()) };
    let mut out = Vec::with_capacity(names.len());
    for name in names {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.chars().all(plain) {
            let what = "is a regular expression; supported are ends of module names";
            return Err(object.error(&name, what));
        }
        let value = read(&object, &name)?;
        out.push((name, value));
    }
    Ok(out)
}

/// The two matrices of a module's update, which is scale · B·A.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// A, shape `[R, in]`.
    pub a: Tensor<f32>,
    /// B, shape `[out, R]`.
    pub b: Tensor<f32>,
}

/// A LoRA adapter: its configuration and the matrices of each module, by the
/// module's name in the model (`model.layers.0.self_attn.q_proj`). Applying it
/// is the model's business.
#[derive(Debug, Clone)]
pub struct LoraFolder {
    /// The configuration.
    pub config: LoraConfig,
    /// The matrices, by module.
    pub pairs: BTreeMap<String, LoraPair>,
}

impl LoraFolder {
    /// Reads a folder with `adapter_config.json` and
    /// `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] for values that cannot be and for variants
    /// that are not supported (DoRA, biases, `modules_to_save`,
    /// `fan_in_fan_out`, …); [`CheckpointError::Tensor`] if a tensor is not
    /// one half of a pair or its shape does not fit the rank; those of
    /// [`TensorFile::open`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG_FILE);
        let config = LoraConfig::read(&path)?;
        let file = TensorFile::open(folder.join(TENSORS_FILE))?;
        let pairs = read_pairs(&file, &config)?;
        Ok(Self { config, pairs })
    }

    /// Writes the folder, each file in one atomic step, the configuration
    /// last. The folder is made if it is not there. A crash between the two
    /// files leaves new tensors with an old configuration where an adapter was
    /// there before: for one in use, save into another folder.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Layout`] if a pair's shapes
    /// do not fit its rank; [`CheckpointError::Config`] for a pattern that is
    /// there twice.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.config.check_patterns(&folder.join(CONFIG_FILE))?;
        let mut writer = TensorWriter::published();
        for (module, pair) in &self.pairs {
            let wrong = check_pair(pair, self.config.rank(module));
            wrong.map_err(|what| CheckpointError::Layout { tensor: module.clone(), what })?;
            writer.tensor(&format!("{PREFIX}{module}{A}"), &pair.a)?;
            writer.tensor(&format!("{PREFIX}{module}{B}"), &pair.b)?;
        }
        std::fs::create_dir_all(folder).map_err(|source| CheckpointError::Io {
            path: folder.to_owned(),
            operation: "make the folder",
            source,
        })?;
        writer.save(folder.join(TENSORS_FILE))?;
        write_json(&folder.join(CONFIG_FILE), &self.config.to_file())
    }
}

fn check_pair(pair: &LoraPair, rank: usize) -> Result<(), String> {
    match (&*pair.a.shape(), &*pair.b.shape()) {
        ([a, _], [_, b]) if *a == rank && *b == rank => Ok(()),
        (a, b) => Err(format!("A of shape {a:?} and B of shape {b:?} do not fit rank {rank}")),
    }
}

fn read_pairs(file: &TensorFile, config: &LoraConfig) -> Result<BTreeMap<String, LoraPair>> {
    let failed = |name: &str, what: String| CheckpointError::Tensor {
        path: PathBuf::from(file.path()),
        tensor: name.to_owned(),
        what,
    };
    let mut pairs = BTreeMap::new();
    for name in file.names() {
        let module = |end| name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(end));
        if let Some(module) = module(B) {
            let other = format!("{PREFIX}{module}{A}");
            if file.sizes(&other).is_none() {
                return Err(failed(name, format!("its other half `{other}` is missing")));
            }
            continue;
        }
        let Some(module) = module(A) else {
            let what = format!(
                "is not `{PREFIX}MODULE{A}` or `…{B}`; other kinds of adapter \
                                tensors are not supported"
            );
            return Err(failed(name, what));
        };
        let other = format!("{PREFIX}{module}{B}");
        if file.sizes(&other).is_none() {
            return Err(failed(name, format!("its other half `{other}` is missing")));
        }
        let pair = LoraPair { a: file.tensor(name)?, b: file.tensor(&other)? };
        check_pair(&pair, config.rank(module)).map_err(|what| failed(name, what))?;
        pairs.insert(module.to_owned(), pair);
    }
    Ok(pairs)
}
