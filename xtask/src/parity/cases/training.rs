//! Ten training steps of small models: logits, every gradient, losses, norms
//! and final weights.

use std::collections::BTreeMap;

use ndarray::{Array1, ArrayD, Axis, concatenate};
use specialformer::attention::AttentionKind;
use specialformer::nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer::nn::{Ctx, NamedParameters};
use specialformer::tensor::{CrossEntropy, Parallelism, Seed, Tape};
use specialformer::{
    BaseConfig, CisformerConfig, Model, ModelConfig, Outputs, Positions, Tokens, TransformerConfig,
};
use specialformer_testkit::GoldenCase;

use super::{array, tensor};
use crate::parity::judge::Judge;
use crate::shell::Result;

pub(super) fn transformer(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    run(case, judge, |attention| {
        let base = base(case, attention)?;
        let positions = Positions::Learned;
        Ok(ModelConfig::Transformer(TransformerConfig { base, kv_heads: None, positions }))
    })
}

pub(super) fn cisformer(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    run(case, judge, |attention| {
        Ok(ModelConfig::Cisformer(CisformerConfig { base: base(case, attention)? }))
    })
}

fn base(case: &GoldenCase, attention: AttentionKind) -> Result<BaseConfig> {
    let [vocabulary, width, layers] =
        [case.dim("vocabulary")?, case.dim("width")?, case.dim("layers")?];
    let [heads, hidden, length] = [case.dim("heads")?, case.dim("hidden")?, case.dim("length")?];
    let outputs = Some(case.dim("classes")?);
    let base = BaseConfig::new(vocabulary, width, layers, heads, hidden, length);
    Ok(BaseConfig { outputs, attention, ..base })
}

/// Our name of one of the reference's weights, and which half of ours it is
/// where ours packs two (the cisformer's keys and values).
fn ours(name: &str, per_position: bool) -> (String, Option<usize>) {
    let name = name
        .replace("token_embedding.", "embedding.")
        .replace("position_embedding.weight", "positions")
        .replace("layers.", "blocks.")
        .replace("attention.query", "attention.q_proj")
        .replace("attention.output", "attention.o_proj");
    for (i, (from, to)) in [("key", "k_proj"), ("value", "v_proj")].iter().enumerate() {
        let from = format!("attention.{from}");
        if name.contains(&from) {
            return if per_position {
                (name.replace(&from, "attention.kv_proj"), Some(i))
            } else {
                (name.replace(&from, &format!("attention.{to}")), None)
            };
        }
    }
    (name, None)
}

fn run(
    case: &GoldenCase,
    judge: &mut Judge<'_>,
    config: impl Fn(AttentionKind) -> Result<ModelConfig>,
) -> Result<()> {
    for (kernel, kind) in
        [("softmax", AttentionKind::Softmax), ("expressive", AttentionKind::expressive())]
    {
        for (mode, outputs) in [("last", Outputs::Last), ("all", Outputs::All)] {
            let variant = format!("{kernel}_{mode}");
            if case.outputs().iter().any(|output| output.starts_with(&variant)) {
                let model = Model::<f32>::new(&config(kind)?, Seed::new(0))?;
                steps(case, judge, &variant, &model, outputs)?;
            }
        }
    }
    Ok(())
}

/// Loads the reference's weights: the cisformer's keys and values are packed
/// in ours.
fn load(case: &GoldenCase, parameters: &NamedParameters, per_position: bool) -> Result<()> {
    let mut weights: BTreeMap<String, ArrayD<f32>> = BTreeMap::new();
    for name in case.model().keys() {
        let value = case.weight(name)?.clone();
        let (ours, _) = ours(name, per_position);
        let joined = match weights.remove(&ours) {
            // Keys come before values in the order of names.
            Some(keys) => concatenate(Axis(1), &[keys.view(), value.view()])?,
            None => value,
        };
        weights.insert(ours, joined);
    }
    let weights = weights.into_iter().map(|(name, value)| (name, tensor(&value)));
    Ok(parameters.load(weights.collect())?)
}

fn steps(
    case: &GoldenCase,
    judge: &mut Judge<'_>,
    variant: &str,
    model: &Model,
    outputs: Outputs,
) -> Result<()> {
    let per_position = case.name().contains("cisformer");
    let parameters = NamedParameters::of(model);
    load(case, &parameters, per_position)?;
    let tokens: Vec<u32> = case.i64("tokens")?.iter().map(|&t| t as u32).collect();
    let mode = if outputs == Outputs::Last { "targets_last" } else { "targets_all" };
    let targets = case.i64(mode)?.iter();
    let targets: Vec<u32> = targets.map(|&t| u32::try_from(t).unwrap_or(u32::MAX)).collect();
    let number = |name: &str| case.dims()[name].as_f64().ok_or(format!("dims have no `{name}`"));
    let config = AdamConfig { eps: number("adam_epsilon")?, ..AdamConfig::default() };
    let mut adam = Adam::new(config, &parameters)?;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..10 {
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
        let tokens = Tokens::new(&tokens, case.dim("batch")?)?;
        let logits = model.logits(&ctx, tokens, outputs)?;
        let classes = logits.shape().last_size();
        let rows = logits.value().len() / classes;
        let loss =
            logits.reshape([rows, classes])?.cross_entropy(&targets, &CrossEntropy::default())?;
        losses.push(loss.value().item()?);
        let gradients = tape.backward(&loss)?;
        if step == 0 {
            let wanted = case.tensor(&format!("{variant}.logits"))?.shape().to_vec();
            let logits = array(&logits).into_shape_with_order(wanted)?;
            judge.check(&format!("{variant}.logits"), &logits)?;
            for name in case.model().keys() {
                let (ours, part) = ours(name, per_position);
                let parameter = parameters.get(&ours).ok_or(format!("no parameter {ours}"))?;
                let gradient = gradients.of_parameter(parameter).ok_or("no gradient")?;
                let gradient = part_of(gradient.view().to_owned(), part);
                judge.check(&format!("{variant}.grad.{name}"), &gradient)?;
            }
        }
        drop((logits, loss, ctx, tape));
        let gradients = GradientSet::sum(&parameters, vec![gradients], Parallelism::Serial)?;
        let norm = gradients.norm(Parallelism::Serial);
        norms.push(norm);
        let args = UpdateArgs {
            learning_rate: number("learning_rate")?,
            gradient_scale: GradientSet::<f32>::clip_factor(norm, number("clip")?),
            parallelism: Parallelism::Serial,
        };
        adam.step(&gradients, &args)?;
    }
    judge.check(&format!("{variant}.losses"), &Array1::from(losses))?;
    judge.check(&format!("{variant}.gradient_norms"), &Array1::from(norms))?;
    for name in case.model().keys() {
        let (ours, part) = ours(name, per_position);
        let parameter = parameters.get(&ours).ok_or(format!("no parameter {ours}"))?;
        let value = part_of(parameter.value().into_array(), part);
        judge.check(&format!("{variant}.after.{name}"), &value)?;
    }
    Ok(())
}

/// Half of the outputs of a packed parameter, or all of it.
fn part_of(value: ArrayD<f32>, part: Option<usize>) -> ArrayD<f32> {
    match part {
        None => value,
        Some(part) => {
            let half = value.shape()[1] / 2;
            let range = ndarray::Slice::from(part * half..(part + 1) * half);
            value.slice_axis(Axis(1), range).to_owned()
        }
    }
}
