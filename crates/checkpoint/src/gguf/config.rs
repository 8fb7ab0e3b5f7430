//! A model's configuration from the metadata of a GGUF file.

use serde_json::{Map, Value, json};

use super::file::GgufFile;
use super::names::{Architecture, ROTARY_FACTORS};
use crate::error::{CheckpointError, Result};
use crate::hf::HfConfig;

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

impl GgufFile {
    /// The model's configuration as a `config.json` would say it, from the
    /// metadata and, for what it leaves out, the tensors: tied embeddings,
    /// biases, the size of the vocabulary. Saving its
    /// [`entries`](HfConfig::entries) makes a folder's `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError::UnsupportedModel`]; [`CheckpointError::Metadata`] for
    /// an entry that is missing or something else;
    /// [`CheckpointError::MissingTensor`] without a token embedding; those of
    /// [`HfConfig::from_json`], by the keys of `config.json`;
    /// [`CheckpointError::Gguf`] if rotary frequencies have factors of their
    /// own, from which the configuration cannot be told.
    pub fn config(&self) -> Result<HfConfig> {
        let key = "general.architecture";
        let architecture = self.required(key, self.string(key)?)?;
        let entry = |name: &str| format!("{architecture}.{name}");
        let optional = |name: &str| self.unsigned(&entry(name));
        let size = |name: &str| self.required(&entry(name), optional(name)?);
        let experts = optional("expert_count")?.unwrap_or(0);
        let Some(Architecture { model_type, class, .. }) =
            Architecture::find(architecture, experts > 0)
        else {
            return Err(CheckpointError::UnsupportedModel {
                path: self.path().to_owned(),
                found: format!("the GGUF architecture `{architecture}` with {experts} experts"),
                supported: Architecture::supported(),
            });
        };
        let embedding = self.shape(EMBEDDING).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path().to_owned(),
            tensor: EMBEDDING.into(),
        })?;
        let heads = size("attention.head_count")?;
        let feed_forward = optional("feed_forward_length")?;
        let expert_hidden = optional("expert_feed_forward_length")?;
        let has_bias = |name: &str| self.names().any(|tensor| tensor.ends_with(name));
        let mut config = json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": embedding.first(),
            "hidden_size": size("embedding_length")?,
            "num_hidden_layers": size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": optional("attention.head_count_kv")?.unwrap_or(heads),
            "max_position_embeddings": size("context_length")?,
            "hidden_act": "silu",
            "tie_word_embeddings": self.shape(HEAD).is_none(),
            "attention_bias": has_bias("attn_q.bias"),
            "rope_parameters": self.rope(architecture)?,
        });
        let object = config.as_object_mut().expect("made as an object");
        let head_dim = optional("attention.key_length")?.or(optional("rope.dimension_count")?);
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        set("head_dim", head_dim.map(Value::from));
        let eps = self.float(&entry("attention.layer_norm_rms_epsilon"))?;
        set("rms_norm_eps", eps.map(single_as_written));
        set("clip_qkv", self.float(&entry("attention.clamp_kqv"))?.map(single_as_written));
        if experts > 0 {
            // Mixtral's and OLMoE's only width is the experts'.
            let hidden = if *model_type == "qwen3_moe" { feed_forward } else { None };
            set("intermediate_size", hidden.or(expert_hidden).or(feed_forward).map(Value::from));
            set("num_experts", Some(experts.into()));
            set("num_experts_per_tok", Some(size("expert_used_count")?.into()));
            set("moe_intermediate_size", expert_hidden.map(Value::from));
            set("norm_topk_prob", Some((*model_type != "olmoe").into()));
        } else {
            set("intermediate_size", Some(size("feed_forward_length")?.into()));
        }
        for (key, name) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
            let id = self.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
            set(&format!("{key}_token_id"), id.map(Value::from));
        }
        HfConfig::from_entries(self.path(), std::mem::take(object))
    }

    fn rope(&self, architecture: &str) -> Result<Value> {
        let entry = |name: &str| format!("{architecture}.rope.{name}");
        if self.shape(ROTARY_FACTORS).is_some() {
            return Err(CheckpointError::Gguf {
                path: self.path().to_owned(),
                what: format!(
                    "tensor `{ROTARY_FACTORS}` scales rotary frequencies, which is supported \
                     from model folders only"
                ),
            });
        }
        let mut rope = Map::new();
        if let Some(theta) = self.float(&entry("freq_base"))? {
            rope.insert("rope_theta".into(), single_as_written(theta));
        }
        let kind = self.string(&entry("scaling.type"))?.unwrap_or("none");
        rope.insert("rope_type".into(), if kind == "none" { "default" } else { kind }.into());
        for (key, name) in [("factor", "factor"), ("attention_factor", "attn_factor")] {
            if let Some(value) = self.float(&entry(&format!("scaling.{name}")))? {
                rope.insert(key.into(), single_as_written(value));
            }
        }
        let original = self.unsigned(&entry("scaling.original_context_length"))?;
        if let Some(original) = original {
            rope.insert("original_max_position_embeddings".into(), original.into());
        }
        Ok(Value::Object(rope))
    }
}

/// Metadata has single precision: 1e-5 comes back as 0.00001, not as
/// 0.0000099999997….
fn single_as_written(value: f64) -> Value {
    let single = value as f32;
    let shortest = if f64::from(single) == value { single.to_string().parse() } else { Ok(value) };
    shortest.unwrap_or(value).into()
}
