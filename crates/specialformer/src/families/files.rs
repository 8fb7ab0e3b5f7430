//! Opening and saving published models.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use specialformer_checkpoint::{
    Access, CheckpointError, ExpertNaming, GgufFile, HfConfig, Mismatch, ModelFolder,
    ModelFolderWriter, RotaryRows, StorageType, Tokenizer, pairs_to_halves_order, reorder_rows,
    stack_experts, unstack_experts,
};
use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Seed, Shape, Tensor};

use super::architecture::HeadKind;
use super::model::PublishedModel;
use super::names::Naming;
use crate::error::{Error, Result};

/// Files of a folder that are saved with the model as they are.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

type Tensors = BTreeMap<String, Tensor<f32>>;

impl<E: Element> PublishedModel<E> {
    /// Opens a published model: a folder with `config.json` and safetensors
    /// files, or a `.gguf` file.
    ///
    /// # Errors
    /// [`CheckpointError::UnsupportedModel`] with a list of what is supported;
    /// [`CheckpointError::Mismatch`] with every tensor that is missing,
    /// unexpected or of a wrong shape; what is wrong with a file.
    ///
    /// ```no_run
    /// use specialformer::families::PublishedModel;
    /// let model = PublishedModel::<f32>::open("models/SmolLM2-135M-Instruct")?;
    /// println!("{} tokens", model.vocabulary());
    /// # Ok::<(), specialformer::Error>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("gguf") && !path.is_dir() => {
                Self::open_gguf(path)
            }
            _ => Self::open_folder(path),
        }
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let folder = ModelFolder::open(path, Access::Map)?;
        let config = folder.config();
        let set = folder.tensors();
        let is_number = |name: &&str| {
            let kind = set.element_type(name);
            !kind.is_some_and(|kind| {
                kind.starts_with('I') || kind.starts_with('U') || kind == "BOOL"
            })
        };
        let mut tensors = Tensors::new();
        for name in set.names().filter(is_number) {
            tensors.insert(name.to_owned(), set.tensor(name)?);
        }
        let mut model = Self::from_tensors(config, set.path(), tensors)?;
        model.source = Some(path.to_owned());
        Ok(model)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::map(path)?;
        let config = file.config()?;
        let names = file.tensor_names()?;
        let mut tensors = Tensors::new();
        for (stored, name) in file.folder_names()? {
            let mut tensor = file.tensor(stored)?;
            if let (Some(rows), Some(decoder)) = (names.rotary_rows(&name), config.family.decoder())
            {
                let heads = match rows {
                    RotaryRows::Query => decoder.heads,
                    RotaryRows::Key => decoder.kv_heads,
                };
                tensor =
                    reorder_rows(&name, &tensor, &pairs_to_halves_order(heads, decoder.head_dim))?;
            }
            tensors.insert(name, tensor);
        }
        let mut model = Self::from_tensors(&config, path, tensors)?;
        if file.value("tokenizer.ggml.model").is_some() {
            model.tokenizer = Some(Tokenizer::from_gguf(&file)?);
        }
        Ok(model)
    }

    /// A model with the tensors of a file, by their published names, experts
    /// one by one or stacked; `path` names the file in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_tensors(
        config: &HfConfig,
        path: impl AsRef<Path>,
        tensors: BTreeMap<String, Tensor<f32>>,
    ) -> Result<Self> {
        let bert = config.model_type == "bert";
        let mut carried = Tensors::new();
        let (prefix, mut tensors) = match bert {
            true => plain_bert(tensors, &mut carried),
            false => ("", stack_experts(tensors)?),
        };
        let pooler = bert && tensors.keys().any(|name| name.starts_with("pooler."));
        let mut model = Self::build(config, pooler, Seed::new(0))?;
        (model.prefix, model.carried) = (prefix, carried);
        let tied = model.architecture.head == HeadKind::Tied;
        let naming = model.architecture.naming;
        tensors.retain(|name, _| !naming.is_redundant(name, tied));
        let parameters = NamedParameters::of(&model);
        let mut mismatch = Mismatch::default();
        let mut loaded = BTreeMap::new();
        for (ours, parameter) in parameters.iter() {
            let published = published(naming, ours)?;
            match tensors.remove(&published) {
                None => mismatch.missing.push((published, parameter.shape())),
                Some(tensor) if tensor.shape() != parameter.shape() => {
                    let found = tensor.shape().to_vec();
                    mismatch.wrong_shape.push((published, parameter.shape(), found));
                }
                Some(tensor) => {
                    loaded.insert(ours.to_owned(), tensor.cast());
                }
            }
        }
        let rest = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec()));
        mismatch.unexpected.extend(rest);
        if !mismatch.is_empty() {
            let path = path.as_ref().to_owned();
            return Err(CheckpointError::Mismatch { path, mismatch: Box::new(mismatch) }.into());
        }
        parameters.load(loaded)?;
        Ok(model)
    }

    /// The weights by their published names, experts one by one.
    ///
    /// # Errors
    /// If a matrix has an adapter that is not merged.
    pub fn published_tensors(&self) -> Result<BTreeMap<String, Tensor<f32>>> {
        let naming = self.architecture.naming;
        let mut tensors = Tensors::new();
        for (ours, parameter) in NamedParameters::of(self).iter() {
            tensors.insert(published(naming, ours)?, parameter.value().cast());
        }
        let experts = match naming {
            Naming::Decoder { experts: "block_sparse_moe" } => ExpertNaming::Numbered,
            _ => ExpertNaming::Projections,
        };
        let tensors = unstack_experts(tensors, experts)?;
        let with_prefix = |(name, tensor)| (format!("{}{name}", self.prefix), tensor);
        Ok(tensors.into_iter().map(with_prefix).chain(self.carried.clone()).collect())
    }

    /// Saves a folder that other tools load: configuration, weights under
    /// their published names, tokenizer. A folder that is there is replaced in
    /// one step.
    ///
    /// # Errors
    /// If a matrix has an adapter that is not merged, or a file cannot be
    /// written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_as(folder, StorageType::F32)
    }

    /// [`save`](Self::save) with weights of another type: F32, F16 or BF16.
    ///
    /// # Errors
    /// As [`save`](Self::save), and for any other type.
    pub fn save_as(&self, folder: impl AsRef<Path>, kind: StorageType) -> Result<()> {
        let dtype = match kind {
            StorageType::F32 => "float32",
            StorageType::F16 => "float16",
            StorageType::BF16 => "bfloat16",
            _ => {
                let reason = "folders hold F32, F16 or BF16";
                return Err(Error::config("save", "type", format!("{kind:?}"), reason));
            }
        };
        let mut entries = self.config.entries.clone();
        entries.remove("torch_dtype");
        entries.insert("dtype".into(), Value::from(dtype));
        let mut writer = ModelFolderWriter::new(&entries);
        for (name, tensor) in self.published_tensors()? {
            match kind {
                StorageType::F32 => writer.tensor(&name, &tensor)?,
                kind => writer.tensor_as(&name, &tensor, kind)?,
            };
        }
        if let Some(tokenizer) = &self.tokenizer {
            writer.file("tokenizer.json", tokenizer.to_json()?)?;
        }
        let companions = self
            .source
            .iter()
            .flat_map(|source| COMPANIONS.iter().map(move |name| (*name, source.join(name))));
        for (name, path) in companions.filter(|(_, path)| path.is_file()) {
            let io = |source| Error::Io { path: path.display().to_string(), source };
            writer.file(name, fs::read(&path).map_err(io)?)?;
        }
        Ok(writer.save(folder)?)
    }

    /// The names and shapes of the model's tensors in a file, experts stacked.
    ///
    /// # Errors
    /// If a matrix has an adapter that is not merged.
    pub fn published_shapes(&self) -> Result<Vec<(String, Shape)>> {
        let naming = self.architecture.naming;
        let parameters = NamedParameters::of(self);
        parameters
            .iter()
            .map(|(ours, parameter)| {
                Ok((format!("{}{}", self.prefix, published(naming, ours)?), parameter.shape()))
            })
            .collect()
    }
}

fn published(naming: Naming, ours: &str) -> Result<String> {
    let adapted = [".weight.base", ".weight.lora_a", ".weight.lora_b"];
    let name = naming.published(ours).filter(|_| !adapted.iter().any(|end| ours.ends_with(end)));
    name.ok_or_else(|| {
        let what = format!("`{ours}` has no published name; merge adapters before saving");
        Error::Input { model: "published model", what }
    })
}

/// BERT's tensors without the prefix that files of models with a head have,
/// and with today's names; the head's own go to `carried`.
fn plain_bert(tensors: Tensors, carried: &mut Tensors) -> (&'static str, Tensors) {
    let with_head = tensors.keys().any(|name| name.starts_with("bert."));
    let prefix = if with_head { "bert." } else { "" };
    let mut plain = Tensors::new();
    for (name, tensor) in tensors {
        let name = match name.rsplit_once("LayerNorm.") {
            Some((module, "gamma")) => format!("{module}LayerNorm.weight"),
            Some((module, "beta")) => format!("{module}LayerNorm.bias"),
            _ => name,
        };
        match name.strip_prefix(prefix) {
            _ if with_head && name.starts_with("cls.") => carried.insert(name, tensor),
            Some(rest) => plain.insert(rest.to_owned(), tensor),
            None => plain.insert(name, tensor),
        };
    }
    (prefix, plain)
}
