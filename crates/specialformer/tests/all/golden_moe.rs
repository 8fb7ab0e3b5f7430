//! Whole mixture-of-experts decoders against PyTorch: hidden states, router
//! logits, logits, losses and the gradient of every weight.

use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis};
use specialformer::attention::QueryKeyNorm;
use specialformer::moe::MoeConfig;
use specialformer::nn::{Activation, NormKind};
use specialformer::prelude::*;
use specialformer::routing::{Balance, GateKind, LoadBalance, RouterConfig};
use specialformer::tensor::{CrossEntropy, Reduction};
use specialformer::training::{Batch, IGNORE};
use specialformer::{ExpertsConfig, Specialformer, Specialisation};
use specialformer_testkit::GoldenCase;

/// What differs between the published families.
struct Family {
    case: &'static str,
    /// The feed-forward layer's name.
    mlp: &'static str,
    /// An expert's gate, up and down.
    expert: [&'static str; 3],
    normalize: bool,
    query_key_norm: Option<fn(f64) -> QueryKeyNorm>,
}

const MIXTRAL: Family = Family {
    case: "04_mixtral",
    mlp: "block_sparse_moe",
    expert: ["w1", "w3", "w2"],
    normalize: true,
    query_key_norm: None,
};
const OLMOE: Family = Family {
    case: "05_olmoe",
    mlp: "mlp",
    expert: ["gate_proj", "up_proj", "down_proj"],
    normalize: false,
    query_key_norm: Some(|eps| QueryKeyNorm::All { eps }),
};
const QWEN3_MOE: Family = Family {
    case: "06_qwen3_moe",
    mlp: "mlp",
    expert: ["gate_proj", "up_proj", "down_proj"],
    normalize: true,
    query_key_norm: Some(|eps| QueryKeyNorm::Head { eps }),
};

fn config(family: &Family, case: &GoldenCase) -> SpecialformerConfig {
    let published = case.config().unwrap();
    let size = |name: &str| published[name].as_u64().map(|n| n as usize);
    let number = |name: &str| published[name].as_f64().unwrap();
    let need = |name: &str| size(name).unwrap_or_else(|| panic!("{name}"));
    let hidden = size("moe_intermediate_size").unwrap_or(need("intermediate_size"));
    let experts = size("num_local_experts").or(size("num_experts")).unwrap();
    let eps = number("rms_norm_eps");
    let router = RouterConfig {
        gate: GateKind::SoftmaxTopK { normalize: family.normalize },
        balance: Balance {
            load_balance: number("router_aux_loss_coef"),
            variant: LoadBalance::Transformers,
            ..Balance::default()
        },
        ..RouterConfig::new(experts, need("num_experts_per_tok"))
    };
    let base = BaseConfig::new(
        need("vocab_size"),
        need("hidden_size"),
        need("num_hidden_layers"),
        need("num_attention_heads"),
        hidden,
        need("max_position_embeddings"),
    );
    SpecialformerConfig {
        kv_heads: size("num_key_value_heads"),
        head_width: size("head_dim"),
        positions: Positions::Rope,
        rope_theta: published["rope_parameters"]["rope_theta"].as_f64().unwrap(),
        query_key_norm: family.query_key_norm.map(|norm| norm(eps)),
        norm: NormKind::RmsNorm,
        norm_eps: eps,
        gated: true,
        bias: false,
        specialisation: Specialisation::Moe,
        moe: Some(ExpertsConfig { moe: MoeConfig::new(router, hidden), layers: None }),
        ..SpecialformerConfig::new(
            Topology::Decoder,
            BaseConfig { activation: Activation::Silu, ..base },
        )
    }
}

/// The published tensors under our names, experts stacked.
fn ours(
    family: &Family,
    experts: usize,
    names: impl Iterator<Item = String>,
    tensor: impl Fn(&str) -> ArrayD<f32>,
) -> BTreeMap<String, ArrayD<f32>> {
    let mut found = BTreeMap::new();
    for name in names {
        let Some(rest) = name.strip_prefix("model.layers.") else {
            let ours = name
                .replace("model.embed_tokens", "embedding")
                .replace("model.norm", "norm")
                .replace("lm_head", "head");
            found.insert(ours, tensor(&name));
            continue;
        };
        let (layer, rest) = rest.split_once('.').unwrap();
        let mlp = format!("{}.", family.mlp);
        let ours = match rest.strip_prefix(&mlp) {
            Some("gate.weight") => "moe.router.weight".to_string(),
            Some(expert) => {
                let mut parts = expert.split('.').skip(1);
                if parts.next() != Some("0") {
                    continue;
                }
                let part = parts.next().unwrap();
                let which = family.expert.iter().position(|name| *name == part).unwrap();
                let each: Vec<_> = (0..experts)
                    .map(|e| tensor(&name.replace("experts.0.", &format!("experts.{e}."))))
                    .collect();
                let views: Vec<_> = each.iter().map(|e| e.view()).collect();
                let stacked = ndarray::stack(Axis(0), &views).unwrap();
                let ours = ["gate", "up", "down"][which];
                found.insert(format!("blocks.{layer}.moe.experts.{ours}"), stacked);
                continue;
            }
            None => rest
                .replace("input_layernorm", "attention_norm")
                .replace("post_attention_layernorm", "feed_forward_norm")
                .replace("self_attn", "attention"),
        };
        found.insert(format!("blocks.{layer}.{ours}"), tensor(&name));
    }
    found
}

fn check(family: &Family) {
    let case = GoldenCase::committed(family.case).unwrap();
    let config = config(family, &case);
    let experts = config.moe.as_ref().unwrap().moe.router.experts;
    let model = ModelConfig::Specialformer(Box::new(config));
    let model = Model::<f32>::new(&model, Seed::new(1)).unwrap();
    let parameters = NamedParameters::of(&model);
    let weights = case.model().keys().cloned();
    let weights = ours(family, experts, weights, |name| case.weight(name).unwrap().clone());
    let tensors = weights.into_iter().map(|(name, w)| (name, Tensor::from_array(w)));
    parameters.load(tensors.collect()).unwrap();
    let Model::Specialformer(model) = &model else { unreachable!() };

    let ids = case.i64("input_ids").unwrap();
    let (rows, length) = (ids.shape()[0], ids.shape()[1]);
    let tokens: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    // The next token, of all but the last.
    let next = |(i, _): (usize, &u32)| match (i + 1) % length {
        0 => IGNORE,
        _ => tokens[i + 1],
    };
    let targets: Vec<u32> = tokens.iter().enumerate().map(next).collect();
    let batch = Batch::from_vecs(rows, tokens.clone(), targets.clone()).unwrap();

    states(model, &case, &batch);
    let run = |part: &str| {
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("dropout"));
        let output = model.forward(&ctx, &batch.all()).unwrap();
        let logits = &output.answers[0].output;
        let options = CrossEntropy {
            reduction: Reduction::Divisor((rows * (length - 1)) as f64),
            label_smoothing: 0.0,
        };
        let entropy = logits.cross_entropy(&targets, &options).unwrap();
        let [term] = output.losses.as_slice() else { panic!("one balance term") };
        let aux = &term.value;
        let loss = entropy.add(&aux.scale(term.weight as f32).unwrap()).unwrap();
        if part == "grad" {
            case.assert_close("logits", &logits.value().view());
            case.assert_close("loss_ce", &entropy.value().view());
            case.assert_close("aux_loss", &aux.value().view());
            case.assert_close("loss", &loss.value().view());
        }
        let gradients = ctx.tape().backward(if part == "grad" { &loss } else { aux }).unwrap();
        compare(family, &case, experts, part, |name| {
            let parameter = parameters.get(name).unwrap_or_else(|| panic!("{name}"));
            gradients.of_parameter(parameter).map(|g| g.view().to_owned())
        });
    };
    run("grad");
    run("grad_aux");
}

fn states(model: &Specialformer, case: &GoldenCase, batch: &Batch) {
    let states = model.states(&Ctx::eval(), &batch.all()).unwrap();
    case.assert_close("last_hidden_state", &states.hidden.value().view());
    for (layer, (name, routing)) in states.routings.iter().enumerate() {
        assert_eq!(*name, format!("blocks.{layer}"));
        case.assert_close(&format!("router_logits.{layer}"), &routing.logits.value().view());
    }
}

/// Our gradients against the published ones, one expert at a time.
fn compare(
    family: &Family,
    case: &GoldenCase,
    experts: usize,
    part: &str,
    gradient: impl Fn(&str) -> Option<ArrayD<f32>>,
) {
    let prefix = format!("{part}.");
    let names = case.outputs().iter().filter_map(|name| name.strip_prefix(&prefix));
    let mut compared = 0;
    for name in names {
        let expert = name.split("experts.").nth(1).map(|rest| {
            let index = rest.split('.').next().unwrap();
            (index.parse::<usize>().unwrap(), format!("experts.{index}."))
        });
        let found = match &expert {
            None => ours(family, 0, std::iter::once(name.to_string()), |_| ArrayD::zeros(vec![])),
            Some((_, index)) => {
                let first = name.replace(index.as_str(), "experts.0.");
                ours(family, 1, std::iter::once(first), |_| ArrayD::zeros(vec![1]))
            }
        };
        let own = found.keys().next().unwrap();
        let got = gradient(own).unwrap_or_else(|| panic!("{own} has no gradient"));
        let got = match expert {
            Some((index, _)) => got.index_axis(Axis(0), index).to_owned(),
            None => got,
        };
        case.assert_close(&format!("{part}.{name}"), &got);
        compared += 1;
    }
    assert!(compared > experts, "{part}: only {compared} gradients were compared");
}

#[test]
fn mixtral() {
    check(&MIXTRAL);
}

#[test]
fn olmoe() {
    check(&OLMOE);
}

#[test]
fn qwen3_moe() {
    check(&QWEN3_MOE);
}
