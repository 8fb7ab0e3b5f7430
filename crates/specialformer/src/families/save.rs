//! Saving pretrained models.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use specialformer_checkpoint::{
    ChatTemplate, ExpertNaming, GgufFile, ModelFolderWriter, StorageType, Tokenizer,
    unstack_experts,
};
use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Shape, Tensor};

use super::load::is_gguf;
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

impl<E: Element> PublishedModel<E> {
    /// The weights by their published names, experts one by one.
    ///
    /// # Errors
    /// If a matrix has an adapter that is not merged.
    pub fn published_tensors(&self) -> Result<BTreeMap<String, Tensor<f32>>> {
        let naming = self.architecture.naming;
        let model = self.to_dense()?;
        let mut tensors = BTreeMap::new();
        for (ours, parameter) in NamedParameters::of(&model).iter() {
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
        for (name, content) in self.companions()? {
            writer.file(&name, content)?;
        }
        Ok(writer.save(folder)?)
    }

    /// What goes with the weights: the folder's own files, or those that stand
    /// for the metadata of a GGUF file.
    fn companions(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let Some(source) = &self.source else { return Ok(Vec::new()) };
        if is_gguf(source) {
            return from_metadata(&GgufFile::map(source)?);
        }
        let paths = COMPANIONS.iter().map(|name| (*name, source.join(name)));
        let files = paths.filter(|(_, path)| path.is_file()).map(|(name, path)| {
            let io = |source| Error::Io { path: path.display().to_string(), source };
            Ok((name.to_owned(), fs::read(&path).map_err(io)?))
        });
        files.collect()
    }

    /// The names and shapes of the model's tensors in a file, experts stacked.
    ///
    /// # Errors
    /// If a matrix has an adapter that is not merged.
    pub fn published_shapes(&self) -> Result<Vec<(String, Shape)>> {
        let naming = self.architecture.naming;
        let model = self.to_dense()?;
        let parameters = NamedParameters::of(&model);
        parameters
            .iter()
            .map(|(ours, parameter)| {
                Ok((format!("{}{}", self.prefix, published(naming, ours)?), parameter.shape()))
            })
            .collect()
    }
}

/// A folder's tokenizer files from the metadata of a GGUF file.
fn from_metadata(file: &GgufFile) -> Result<Vec<(String, Vec<u8>)>> {
    if file.value("tokenizer.ggml.model").is_none() {
        return Ok(Vec::new());
    }
    let tokenizer = Tokenizer::from_gguf(file)?;
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    for (key, name) in [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")] {
        let id = file.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
        let token = id.and_then(|id| tokenizer.token(u32::try_from(id).ok()?));
        if let Some(token) = token {
            config[key] = token.into();
        }
    }
    let mut files = vec![("tokenizer.json".to_owned(), tokenizer.to_json()?.into_bytes())];
    if let Some(template) = ChatTemplate::from_gguf(file)? {
        config["chat_template"] = template.source().into();
        files.push(("chat_template.jinja".to_owned(), template.source().as_bytes().to_vec()));
    }
    files.push(("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes()));
    Ok(files)
}

pub(super) fn published(naming: Naming, ours: &str) -> Result<String> {
    let adapted = [".weight.base", ".weight.lora_a", ".weight.lora_b"];
    let name = naming.published(ours).filter(|_| !adapted.iter().any(|end| ours.ends_with(end)));
    name.ok_or_else(|| {
        let what = format!("`{ours}` has no published name; merge adapters before saving");
        Error::Input { model: "pretrained model", what }
    })
}
