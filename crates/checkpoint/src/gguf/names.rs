//! Names of tensors in GGUF files of the llama family, and in folders.

use crate::error::{CheckpointError, Result};
use crate::gguf::GgufFile;

/// Which heads the rows of a tensor belong to that a file stores in
/// adjacent-pairs order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryRows {
    /// One group of rows per query head.
    Query,
    /// One group of rows per key head.
    Key,
}

/// The names of one GGUF architecture: `llama` (Llama, SmolLM2, Mixtral),
/// `qwen3`, `olmoe`, `qwen3moe`.
///
/// Expert matrices are stacked in GGUF files; in folders they have no name as
/// one tensor, so they are called as [`crate::stack_experts`] calls them,
/// `….experts.gate`, `.up` and `.down`.
///
/// ```
/// use specialformer_checkpoint::GgufNames;
/// let names = GgufNames::of_architecture("llama", false).unwrap();
/// let folder = "model.layers.3.self_attn.q_proj.weight";
/// assert_eq!(names.to_folder("blk.3.attn_q.weight").as_deref(), Some(folder));
/// assert_eq!(names.to_gguf(folder).as_deref(), Some("blk.3.attn_q.weight"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufNames {
    /// What stands before `gate` and `experts`.
    experts: &'static str,
    pairs: bool,
}

/// A supported architecture.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) gguf: &'static str,
    pub(super) with_experts: bool,
    /// `model_type` of a folder's configuration.
    pub(super) model_type: &'static str,
    /// The class of `transformers`.
    pub(super) class: &'static str,
    names: GgufNames,
}

const fn architecture(
    gguf: &'static str,
    with_experts: bool,
    [model_type, class]: [&'static str; 2],
    names: GgufNames,
) -> Architecture {
    Architecture { gguf, with_experts, model_type, class, names }
}

const MLP: GgufNames = GgufNames { experts: "mlp", pairs: false };

const ARCHITECTURES: [Architecture; 5] = [
    architecture("llama", false, ["llama", "LlamaForCausalLM"], GgufNames { pairs: true, ..MLP }),
    architecture(
        "llama",
        true,
        ["mixtral", "MixtralForCausalLM"],
        GgufNames { experts: "block_sparse_moe", pairs: true },
    ),
    architecture("qwen3", false, ["qwen3", "Qwen3ForCausalLM"], MLP),
    architecture("olmoe", true, ["olmoe", "OlmoeForCausalLM"], MLP),
    architecture("qwen3moe", true, ["qwen3_moe", "Qwen3MoeForCausalLM"], MLP),
];

impl Architecture {
    /// The one of this name in GGUF files.
    pub(super) fn find(gguf: &str, with_experts: bool) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.gguf == gguf && a.with_experts == with_experts)
    }

    /// The names of all, as an error lists them.
    pub(super) fn supported() -> String {
        let name = |a: &Self| match (a.gguf, a.with_experts) {
            ("llama", true) => "llama with experts".to_owned(),
            (gguf, _) => gguf.to_owned(),
        };
        ARCHITECTURES.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Outside of layers: GGUF, folder.
const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// In layers, without `.weight` or `.bias`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// In layers, after the name of the expert module: GGUF with `.weight`.
const EXPERTS: [(&str, &str); 4] = [
    ("ffn_gate_inp.weight", "gate.weight"),
    ("ffn_gate_exps.weight", "experts.gate"),
    ("ffn_up_exps.weight", "experts.up"),
    ("ffn_down_exps.weight", "experts.down"),
];

/// The tensor with factors that divide rotary frequencies, which folders have
/// in their configuration instead.
pub(super) const ROTARY_FACTORS: &str = "rope_freqs.weight";

impl GgufNames {
    /// The names of an architecture (`general.architecture`), `None` if it is
    /// not supported. `with_experts` tells Mixtral from Llama.
    pub fn of_architecture(architecture: &str, with_experts: bool) -> Option<Self> {
        Architecture::find(architecture, with_experts).map(|architecture| architecture.names)
    }

    /// The name that folders have for a tensor of a GGUF file, `None` if they
    /// have none.
    pub fn to_folder(&self, gguf: &str) -> Option<String> {
        if let Some((_, folder)) = TOP.iter().find(|(name, _)| *name == gguf) {
            return Some((*folder).to_owned());
        }
        let (layer, rest) = layer_and_rest(gguf.strip_prefix("blk.")?)?;
        if let Some((_, folder)) = EXPERTS.iter().find(|(name, _)| *name == rest) {
            return Some(format!("model.layers.{layer}.{}.{folder}", self.experts));
        }
        let (module, parameter) = module_and_parameter(rest)?;
        let (_, folder) = LAYER.iter().find(|(name, _)| *name == module)?;
        Some(format!("model.layers.{layer}.{folder}.{parameter}"))
    }

    /// The name that GGUF files have for a tensor of a folder, `None` if they
    /// have none.
    pub fn to_gguf(&self, folder: &str) -> Option<String> {
        if let Some((gguf, _)) = TOP.iter().find(|(_, name)| *name == folder) {
            return Some((*gguf).to_owned());
        }
        let (layer, rest) = layer_and_rest(folder.strip_prefix("model.layers.")?)?;
        let in_experts = rest.strip_prefix(self.experts).and_then(|rest| rest.strip_prefix('.'));
        let expert = EXPERTS.iter().find(|(_, name)| Some(*name) == in_experts);
        if let Some((gguf, _)) = expert {
            return Some(format!("blk.{layer}.{gguf}"));
        }
        let (module, parameter) = module_and_parameter(rest)?;
        let (gguf, _) = LAYER.iter().find(|(_, name)| *name == module)?;
        Some(format!("blk.{layer}.{gguf}.{parameter}"))
    }

    /// Which heads' rows a tensor has that GGUF files of this architecture
    /// store in adjacent-pairs order; `None` if its rows are in the same order
    /// in both. `folder` is the folder's name.
    pub fn rotary_rows(&self, folder: &str) -> Option<RotaryRows> {
        let (module, _) = module_and_parameter(folder)?;
        match module.rsplit_once("self_attn.")?.1 {
            "q_proj" if self.pairs => Some(RotaryRows::Query),
            "k_proj" if self.pairs => Some(RotaryRows::Key),
            _ => None,
        }
    }
}

fn layer_and_rest(name: &str) -> Option<(u32, &str)> {
    let (layer, rest) = name.split_once('.')?;
    let number: u32 = layer.parse().ok()?;
    // Only the usual spelling, so that names map one to one.
    (number.to_string() == layer).then_some((number, rest))
}

fn module_and_parameter(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, parameter)| matches!(*parameter, "weight" | "bias"))
}

impl GgufFile {
    /// The names of this file's architecture.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if the entries that tell are missing or
    /// something else; [`CheckpointError::UnsupportedModel`].
    pub fn tensor_names(&self) -> Result<GgufNames> {
        const KEY: &str = "general.architecture";
        let architecture = self.required(KEY, self.string(KEY)?)?;
        let experts = self.unsigned(&format!("{architecture}.expert_count"))?.unwrap_or(0);
        GgufNames::of_architecture(architecture, experts > 0).ok_or_else(|| {
            CheckpointError::UnsupportedModel {
                path: self.path().to_owned(),
                found: format!("the GGUF architecture `{architecture}` with {experts} experts"),
                supported: Architecture::supported(),
            }
        })
    }

    /// Every tensor's name in this file and the one that folders have for it,
    /// in the order of the file's names. The factors of rotary frequencies
    /// (`rope_freqs.weight`) are left out: folders have them in their
    /// configuration.
    ///
    /// # Errors
    /// Those of [`GgufFile::tensor_names`]; [`CheckpointError::Gguf`] if a
    /// tensor has no such name.
    pub fn folder_names(&self) -> Result<Vec<(&str, String)>> {
        let names = self.tensor_names()?;
        let unknown = |name| CheckpointError::Gguf {
            path: self.path().to_owned(),
            what: format!("tensor `{name}` is not one of its architecture"),
        };
        self.names()
            .filter(|name| *name != ROTARY_FACTORS)
            .map(|name| Ok((name, names.to_folder(name).ok_or_else(|| unknown(name))?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_there_and_back() {
        let llama = GgufNames::of_architecture("llama", false).unwrap();
        let mixtral = GgufNames::of_architecture("llama", true).unwrap();
        for name in [
            "token_embd.weight",
            "output.weight",
            "output_norm.weight",
            "blk.0.attn_norm.weight",
            "blk.12.ffn_norm.weight",
            "blk.7.attn_k.bias",
            "blk.7.attn_q_norm.weight",
            "blk.1.ffn_down.weight",
            "blk.1.ffn_gate_inp.weight",
            "blk.1.ffn_up_exps.weight",
        ] {
            for names in [llama, mixtral] {
                let folder = names.to_folder(name).unwrap();
                assert_eq!(names.to_gguf(&folder).as_deref(), Some(name), "{folder}");
            }
        }
        assert_eq!(
            mixtral.to_folder("blk.1.ffn_gate_inp.weight").as_deref(),
            Some("model.layers.1.block_sparse_moe.gate.weight")
        );
        for name in ["blk.01.attn_q.weight", "blk.x.attn_q.weight", "blk.0.attn_q", "attn_q"] {
            assert_eq!(llama.to_folder(name), None, "{name}");
        }
    }

    #[test]
    fn only_llama_files_have_pairs() {
        let llama = GgufNames::of_architecture("llama", false).unwrap();
        let qwen = GgufNames::of_architecture("qwen3", false).unwrap();
        let query = "model.layers.0.self_attn.q_proj.bias";
        assert_eq!(llama.rotary_rows(query), Some(RotaryRows::Query));
        assert_eq!(qwen.rotary_rows(query), None);
        let key = "model.layers.0.self_attn.k_proj.weight";
        assert_eq!(llama.rotary_rows(key), Some(RotaryRows::Key));
        for other in ["model.layers.0.self_attn.v_proj.weight", "model.norm.weight", "q_proj"] {
            assert_eq!(llama.rotary_rows(other), None);
        }
        assert_eq!(GgufNames::of_architecture("mamba", false), None);
    }
}
