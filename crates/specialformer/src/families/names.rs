//! What published files call the parameters.

/// How a family names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// Llama and its relatives; experts stand in the module of this name.
    Decoder {
        experts: &'static str,
    },
    Bert,
    T5 {
        gated: bool,
    },
}

impl Naming {
    /// The published name of one of our parameters, stacks of experts under
    /// `experts.gate`, `experts.up` and `experts.down`; `None` if the family
    /// has no such tensor.
    pub(super) fn published(self, ours: &str) -> Option<String> {
        match self {
            Self::Decoder { experts } => decoder(ours, experts),
            Self::Bert => bert(ours),
            Self::T5 { gated } => t5(ours, gated),
        }
    }

    /// True for a tensor that holds nothing a model needs: buffers of older
    /// files, copies of a tied matrix.
    pub(super) fn is_redundant(self, published: &str, tied: bool) -> bool {
        match self {
            Self::Decoder { .. } => {
                (tied && published == "lm_head.weight")
                    || published.ends_with(".rotary_emb.inv_freq")
            }
            Self::Bert => published == "embeddings.position_ids",
            Self::T5 { .. } => {
                (tied && published == "lm_head.weight")
                    || matches!(published, "encoder.embed_tokens.weight" | "decoder.embed_tokens.weight")
                    // Early files have it; nothing ever read it.
                    || published.ends_with(".EncDecAttention.relative_attention_bias.weight")
            }
        }
    }
}

/// `blocks.N.rest` → (N, rest).
fn in_block(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("blocks.")?.split_once('.')
}

/// The name with its module, the longest that fits, put in place of ours.
fn replaced(name: &str, modules: &[(&str, &str)]) -> Option<String> {
    modules.iter().find_map(|(ours, published)| {
        let rest = name.strip_prefix(ours)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{published}{rest}"))
    })
}

fn decoder(ours: &str, experts: &str) -> Option<String> {
    const TOP: [(&str, &str); 3] =
        [("embedding", "model.embed_tokens"), ("norm", "model.norm"), ("head", "lm_head")];
    const MODULES: [(&str, &str); 6] = [
        ("attention_norm", "input_layernorm"),
        ("feed_forward_norm", "post_attention_layernorm"),
        ("attention", "self_attn"),
        ("feed_forward.gate", "mlp.gate_proj"),
        ("feed_forward.up", "mlp.up_proj"),
        ("feed_forward.down", "mlp.down_proj"),
    ];
    let Some((layer, rest)) = in_block(ours) else {
        return replaced(ours, &TOP);
    };
    let rest = match rest.strip_prefix("moe.") {
        Some("router.weight") => format!("{experts}.gate.weight"),
        Some(of_experts) => format!("{experts}.{of_experts}"),
        None => replaced(rest, &MODULES)?,
    };
    Some(format!("model.layers.{layer}.{rest}"))
}

fn bert(ours: &str) -> Option<String> {
    const TOP: [(&str, &str); 5] = [
        ("embedding", "embeddings.word_embeddings"),
        ("positions", "embeddings.position_embeddings.weight"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("embedding_norm", "embeddings.LayerNorm"),
        ("pooler", "pooler.dense"),
    ];
    const MODULES: [(&str, &str); 8] = [
        ("attention.q_proj", "attention.self.query"),
        ("attention.k_proj", "attention.self.key"),
        ("attention.v_proj", "attention.self.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("feed_forward.up", "intermediate.dense"),
        ("feed_forward.down", "output.dense"),
        ("feed_forward_norm", "output.LayerNorm"),
    ];
    match in_block(ours) {
        None => replaced(ours, &TOP),
        Some((layer, rest)) => Some(format!("encoder.layer.{layer}.{}", replaced(rest, &MODULES)?)),
    }
}

fn t5(ours: &str, gated: bool) -> Option<String> {
    const TOP: [(&str, &str); 2] = [("embedding", "shared"), ("head", "lm_head")];
    let sides = ["encoder", "decoder"].into_iter();
    let in_side = |side| Some((side, ours.strip_prefix(side)?.strip_prefix('.')?));
    let Some((side, rest)) = sides.filter_map(in_side).next() else {
        return replaced(ours, &TOP);
    };
    let Some((layer, rest)) = in_block(rest) else {
        let bias = "block.0.layer.0.SelfAttention.relative_attention_bias";
        let rest = replaced(rest, &[("relative", bias), ("norm", "final_layer_norm")])?;
        return Some(format!("{side}.{rest}"));
    };
    let last = if side == "encoder" { 1 } else { 2 };
    let projection = |rest: &str, module: &str| {
        let (name, parameter) = rest.split_once("_proj.")?;
        Some(format!("{module}.{name}.{parameter}"))
    };
    let rest = if let Some(rest) = rest.strip_prefix("attention.") {
        projection(rest, "layer.0.SelfAttention")?
    } else if let Some(rest) = rest.strip_prefix("cross_attention.") {
        projection(rest, "layer.1.EncDecAttention")?
    } else if let Some(rest) = rest.strip_prefix("feed_forward.") {
        let up = if gated { "wi_1" } else { "wi" };
        let rest = replaced(rest, &[("gate", "wi_0"), ("up", up), ("down", "wo")])?;
        format!("layer.{last}.DenseReluDense.{rest}")
    } else {
        let last = format!("layer.{last}.layer_norm");
        let norms = [
            ("attention_norm", "layer.0.layer_norm"),
            ("cross_attention_norm", "layer.1.layer_norm"),
            ("feed_forward_norm", last.as_str()),
        ];
        replaced(rest, &norms)?
    };
    Some(format!("{side}.block.{layer}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_family() {
        let mixtral = Naming::Decoder { experts: "block_sparse_moe" };
        let t5 = Naming::T5 { gated: true };
        for (naming, ours, published) in [
            (mixtral, "norm.weight", "model.norm.weight"),
            (mixtral, "blocks.3.attention.q_norm.weight", "model.layers.3.self_attn.q_norm.weight"),
            (mixtral, "blocks.0.moe.router.weight", "model.layers.0.block_sparse_moe.gate.weight"),
            (mixtral, "blocks.0.moe.experts.up", "model.layers.0.block_sparse_moe.experts.up"),
            (Naming::Bert, "positions", "embeddings.position_embeddings.weight"),
            (Naming::Bert, "embedding_norm.bias", "embeddings.LayerNorm.bias"),
            (
                Naming::Bert,
                "blocks.1.attention_norm.weight",
                "encoder.layer.1.attention.output.LayerNorm.weight",
            ),
            (
                t5,
                "encoder.relative.weight",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            (
                t5,
                "decoder.blocks.1.cross_attention.o_proj.weight",
                "decoder.block.1.layer.1.EncDecAttention.o.weight",
            ),
            (
                t5,
                "decoder.blocks.1.feed_forward_norm.weight",
                "decoder.block.1.layer.2.layer_norm.weight",
            ),
            (
                t5,
                "encoder.blocks.1.feed_forward.gate.weight",
                "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
            ),
        ] {
            assert_eq!(naming.published(ours).as_deref(), Some(published), "{ours}");
        }
        assert_eq!(mixtral.published("pooler.weight"), None);
    }
}
