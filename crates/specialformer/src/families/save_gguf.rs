//! Saving pretrained models as GGUF files.

use std::path::Path;

use specialformer_checkpoint::{
    Activation, ChatTemplate, CheckpointError, DecoderConfig, GgufFile, GgufNames, GgufWriter,
    HfConfig, RawTensor, RopeScaling, RotaryRows, StorageType, Tokenizer, halves_to_pairs_order,
    reorder_rows,
};
use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Tensor};

use super::load::is_gguf;
use super::model::PublishedModel;
use super::save::published;
use crate::error::{Error, Result};

/// Model type, GGUF architecture.
const ARCHITECTURES: [(&str, &str); 5] = [
    ("llama", "llama"),
    ("mixtral", "llama"),
    ("qwen3", "qwen3"),
    ("olmoe", "olmoe"),
    ("qwen3_moe", "qwen3moe"),
];

impl<E: Element> PublishedModel<E> {
    /// Saves a GGUF file with matrices as `F32`, `F16` or `Q8_0`, with the
    /// tokenizer and the chat template of where the model came from. Vectors
    /// and routers are in single precision; matrices whose rows are not whole
    /// blocks of `Q8_0` are in half precision.
    ///
    /// # Errors
    /// If the family or one of its settings has no form in GGUF files, the
    /// tokenizer is of a kind that they have not, a matrix has an adapter that
    /// is not merged, or the file cannot be written.
    pub fn save_gguf(&self, path: impl AsRef<Path>, kind: StorageType) -> Result<()> {
        if !matches!(kind, StorageType::F32 | StorageType::F16 | StorageType::Q8_0) {
            let reason = "GGUF files are made of F32, F16 or Q8_0";
            return Err(Error::config("save", "type", kind, reason));
        }
        let config = self.config();
        let (architecture, decoder) = describable(config)?;
        let mut writer = GgufWriter::new(architecture);
        let file_type: u32 = match kind {
            StorageType::F32 => 0,
            StorageType::F16 => 1,
            _ => 7,
        };
        writer.metadata("general.file_type", file_type)?;
        write_config(&mut writer, architecture, decoder)?;
        self.write_tokenizer(&mut writer, decoder)?;
        let names = GgufNames::of_architecture(architecture, decoder.experts.is_some());
        let names = names.expect("every architecture of the table has names");
        let model = self.to_dense()?;
        for (ours, parameter) in NamedParameters::of(&model).iter() {
            let name = published(self.architecture.naming, ours)?;
            let stored = names.to_gguf(&name).ok_or_else(|| CheckpointError::Layout {
                tensor: name.clone(),
                what: "has no name in GGUF files".into(),
            })?;
            let mut tensor: Tensor<f32> = parameter.value().cast();
            if let Some(rows) = names.rotary_rows(&name) {
                let heads = match rows {
                    RotaryRows::Query => decoder.heads,
                    RotaryRows::Key => decoder.kv_heads,
                };
                tensor =
                    reorder_rows(&name, &tensor, &halves_to_pairs_order(heads, decoder.head_dim))?;
            }
            writer.tensor(&stored, &encoded(&stored, &tensor, kind)?)?;
        }
        Ok(writer.save(path)?)
    }

    fn write_tokenizer(&self, writer: &mut GgufWriter, decoder: &DecoderConfig) -> Result<()> {
        let Some(source) = &self.source else { return Ok(()) };
        if is_gguf(source) {
            let file = GgufFile::map(source)?;
            let entries = file.metadata().filter(|(key, _)| key.starts_with("tokenizer."));
            for (key, value) in entries {
                writer.metadata(key, value.clone())?;
            }
            return Ok(());
        }
        let path = source.join("tokenizer.json");
        if !path.is_file() {
            return Ok(());
        }
        for (key, value) in Tokenizer::open(path)?.gguf_metadata()? {
            writer.metadata(key, value)?;
        }
        let eos = decoder.eos_token_ids.first().copied();
        for (name, id) in
            [("bos", decoder.bos_token_id), ("eos", eos), ("padding", decoder.pad_token_id)]
        {
            if let Some(id) = id {
                writer.metadata(&format!("tokenizer.ggml.{name}_token_id"), id)?;
            }
        }
        if let Some(template) = ChatTemplate::open(source)? {
            writer.metadata("tokenizer.chat_template", template.source())?;
        }
        Ok(())
    }
}

/// The architecture's name and the decoder, if a GGUF file can say all of it.
fn describable(config: &HfConfig) -> Result<(&'static str, &DecoderConfig)> {
    let refuse = |field, reason: &str| {
        Err(Error::config("save", field, &config.model_type, format!("GGUF files {reason}")))
    };
    let known = ARCHITECTURES.iter().find(|(model, _)| *model == config.model_type);
    let (Some((_, architecture)), Some(decoder)) = (known, config.family.decoder()) else {
        return refuse("model_type", "are made of llama, mixtral, qwen3, olmoe and qwen3_moe");
    };
    if decoder.rope.partial_factor != 1.0 {
        return refuse("partial_rotary_factor", "are made of models that rotate whole heads");
    }
    if !matches!(decoder.rope.scaling, RopeScaling::None | RopeScaling::Linear { .. }) {
        return refuse("rope_scaling", "are made without scaling of rotary positions, or linear");
    }
    if decoder.mlp_bias {
        return refuse("mlp_bias", "are made without biases of feed-forward layers");
    }
    if !matches!(decoder.activation, Activation::Silu) {
        return refuse("hidden_act", "are made of models with SiLU");
    }
    if decoder.windows.iter().any(Option::is_some) {
        return refuse("sliding_window", "are made of models without sliding windows");
    }
    // Files do not say it: it goes by the architecture.
    let normalizes = config.model_type != "olmoe";
    if decoder.experts.as_ref().is_some_and(|all| all.normalize != normalizes) {
        return refuse("norm_topk_prob", "have no entry for it, and other models' value is meant");
    }
    let dense = decoder.experts.as_ref().is_some_and(|all| all.sparse_layers.contains(&false));
    if dense {
        return refuse("mlp_only_layers", "have experts in all layers or in none");
    }
    Ok((architecture, decoder))
}

fn write_config(
    writer: &mut GgufWriter,
    architecture: &str,
    decoder: &DecoderConfig,
) -> Result<()> {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut sizes = vec![
        ("context_length", decoder.max_position_embeddings),
        ("embedding_length", decoder.hidden_size),
        ("block_count", decoder.layers),
        ("feed_forward_length", decoder.intermediate_size),
        ("attention.head_count", decoder.heads),
        ("attention.head_count_kv", decoder.kv_heads),
        ("attention.key_length", decoder.head_dim),
        ("attention.value_length", decoder.head_dim),
        ("rope.dimension_count", decoder.head_dim),
        ("vocab_size", decoder.vocab_size),
    ];
    if let Some(experts) = &decoder.experts {
        sizes.push(("expert_count", experts.experts));
        sizes.push(("expert_used_count", experts.top_k));
        sizes.push(("expert_feed_forward_length", experts.hidden));
    }
    for (name, size) in sizes {
        let reason = "is too large for a GGUF file";
        let size =
            u32::try_from(size).map_err(|_| Error::config("save", "config", size, reason))?;
        writer.metadata(&key(name), size)?;
    }
    let eps = decoder.rms_norm_eps as f32;
    writer.metadata(&key("attention.layer_norm_rms_epsilon"), eps)?;
    writer.metadata(&key("rope.freq_base"), decoder.rope.theta as f32)?;
    if let Some(clip) = decoder.clip_qkv {
        writer.metadata(&key("attention.clamp_kqv"), clip as f32)?;
    }
    if let RopeScaling::Linear { factor } = decoder.rope.scaling {
        writer.metadata(&key("rope.scaling.type"), "linear")?;
        writer.metadata(&key("rope.scaling.factor"), factor as f32)?;
    }
    Ok(())
}

/// A tensor in the form that it has in the file.
fn encoded(name: &str, tensor: &Tensor<f32>, kind: StorageType) -> Result<RawTensor> {
    let shape = tensor.shape();
    let kind = match kind {
        _ if shape.rank() < 2 || name.contains("ffn_gate_inp") => StorageType::F32,
        StorageType::Q8_0 if !shape.last_size().is_multiple_of(kind.block_len()) => {
            StorageType::F16
        }
        kind => kind,
    };
    Ok(RawTensor::encode(tensor, kind)?)
}
