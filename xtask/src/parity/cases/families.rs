//! Pretrained models: logits, hidden states, losses, routers and the gradient
//! of every tensor.

use std::collections::BTreeMap;

use ndarray::ArrayD;
use specialformer::Tokens;
use specialformer::checkpoint::{ExpertNaming, LoraFolder, unstack_experts};
use specialformer::families::{PublishedModel, TextInput};
use specialformer::nn::{Ctx, NamedParameters};
use specialformer::tensor::{CrossEntropy, Gradients, Reduction, Tape, Tensor};
use specialformer::training::IGNORE;
use specialformer_testkit::GoldenCase;

use super::array;
use crate::parity::judge::Judge;
use crate::shell::Result;

/// Token ids [B, T].
struct Ids {
    ids: Vec<u32>,
    rows: usize,
}

impl Ids {
    fn of(case: &GoldenCase, name: &str) -> Result<Self> {
        let array = case.i64(name)?;
        let ids = array.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>()?;
        Ok(Self { ids, rows: array.shape()[0] })
    }

    fn tokens(&self) -> Result<Tokens<'_>> {
        Ok(Tokens::new(&self.ids, self.rows)?)
    }
}

/// Lengths of the rows of a mask that pads at the end.
fn lengths(case: &GoldenCase) -> Result<Vec<usize>> {
    let mask = case.i64("attention_mask")?;
    let rows = mask.rows().into_iter().map(|row| {
        let length = row.iter().filter(|&&live| live != 0).count();
        match row.iter().take(length).all(|&live| live != 0) {
            true => Ok(length),
            false => Err("`attention_mask` pads elsewhere than at the end".into()),
        }
    });
    rows.collect()
}

pub(super) fn decoder(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let model = PublishedModel::<f32>::open(case.folder())?;
    let ids = Ids::of(case, "input_ids")?;
    let input = TextInput::new(ids.tokens()?);
    let wants = |name: &str| case.outputs().iter().any(|output| output == name);
    // Recorded, but as in evaluation: nothing is dropped.
    let ctx = Ctx::eval_on(Tape::new());
    let states = model.states(&ctx, &input)?;
    let logits = model.head(&ctx, &states.hidden)?;
    judge.check("logits", &array(&logits))?;
    if wants("last_hidden_state") {
        judge.check("last_hidden_state", &array(&states.hidden))?;
    }
    for (layer, routing) in &states.routings {
        let name = format!("router_logits.{layer}");
        if wants(&name) {
            judge.check(&name, &array(&routing.logits))?;
        }
    }
    let length = ids.ids.len() / ids.rows;
    // The next token, of all but the last.
    let target = |i: usize| if (i + 1).is_multiple_of(length) { IGNORE } else { ids.ids[i + 1] };
    let targets: Vec<u32> = (0..ids.ids.len()).map(target).collect();
    let scored = (ids.rows * (length - 1)) as f64;
    let options = CrossEntropy { reduction: Reduction::Divisor(scored), label_smoothing: 0.0 };
    let entropy = logits.cross_entropy(&targets, &options)?;
    let balance = model.balance_loss(&states.routings)?;
    let loss = match &balance {
        Some(term) => entropy.add(&term.value.scale(term.weight as f32)?)?,
        None => entropy.clone(),
    };
    judge.check("loss", &array(&loss))?;
    if wants("loss_ce") {
        judge.check("loss_ce", &array(&entropy))?;
    }
    gradients(case, judge, &model, "grad", &ctx.tape().backward(&loss)?)?;
    if let Some(term) = balance {
        if wants("aux_loss") {
            judge.check("aux_loss", &array(&term.value))?;
        }
        // A tape runs back once.
        let ctx = Ctx::eval_on(Tape::new());
        let states = model.states(&ctx, &input)?;
        let term = model.balance_loss(&states.routings)?.ok_or("no balance loss")?;
        gradients(case, judge, &model, "grad_aux", &ctx.tape().backward(&term.value)?)?;
    }
    Ok(())
}

/// The gradients that the case names, by the names of the files.
fn gradients(
    case: &GoldenCase,
    judge: &mut Judge<'_>,
    model: &PublishedModel,
    part: &str,
    gradients: &Gradients,
) -> Result<()> {
    let mut found = BTreeMap::new();
    for (ours, parameter) in NamedParameters::of(model).iter() {
        let name = model.published_name(ours).ok_or(format!("`{ours}` has no name"))?;
        let gradient = gradients.of_parameter(parameter).map(|gradient| gradient.view().to_owned());
        let gradient = gradient.unwrap_or_else(|| ArrayD::zeros(&*parameter.shape()));
        found.insert(name, Tensor::from_view(gradient.view()));
    }
    let numbered = case.outputs().iter().any(|name| name.ends_with(".w1.weight"));
    let naming = if numbered { ExpertNaming::Numbered } else { ExpertNaming::Projections };
    let found = unstack_experts(found, naming)?;
    let prefix = format!("{part}.");
    for output in case.outputs() {
        let Some(name) = output.strip_prefix(&prefix) else { continue };
        let gradient = found.get(name).ok_or(format!("the model has no tensor `{name}`"))?;
        judge.check(output, &gradient.view())?;
    }
    Ok(())
}

pub(super) fn bert(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let model = PublishedModel::<f32>::open(case.folder())?;
    let (ids, types) = (Ids::of(case, "input_ids")?, Ids::of(case, "token_type_ids")?);
    let lengths = lengths(case)?;
    let input =
        TextInput::new(ids.tokens()?).with_lengths(&lengths)?.with_token_types(&types.ids)?;
    let ctx = Ctx::eval();
    let states = model.states(&ctx, &input)?;
    judge.check("last_hidden_state", &array(&states.hidden))?;
    judge.check("pooler_output", &array(&model.pooled(&ctx, &states.hidden)?))
}

pub(super) fn t5(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let model = PublishedModel::<f32>::open(case.folder())?;
    let (source, ids) = (Ids::of(case, "input_ids")?, Ids::of(case, "decoder_input_ids")?);
    let lengths = lengths(case)?;
    for (end, lengths) in [("", None), ("_masked", Some(lengths.as_slice()))] {
        let input = TextInput::new(ids.tokens()?).with_source(source.tokens()?, lengths)?;
        let ctx = Ctx::eval();
        let states = model.states(&ctx, &input)?;
        let encoder = states.encoder.as_ref().ok_or("no encoder")?;
        judge.check(&format!("encoder_last_hidden_state{end}"), &array(encoder))?;
        let logits = model.head(&ctx, &states.hidden)?;
        judge.check(&format!("logits{end}"), &array(&logits))?;
    }
    Ok(())
}

pub(super) fn lora(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let mut model = PublishedModel::<f32>::open(case.folder())?;
    let ids = Ids::of(case, "input_ids")?;
    let input = TextInput::new(ids.tokens()?);
    judge.check("base_logits", &array(&model.logits(&Ctx::eval(), &input)?))?;
    model.apply_lora(&LoraFolder::open(case.folder().join("adapter"))?)?;
    judge.check("adapter_logits", &array(&model.logits(&Ctx::eval(), &input)?))?;
    model.merge_adapters()?;
    judge.check("merged_logits", &array(&model.logits(&Ctx::eval(), &input)?))?;
    let weights = model.published_tensors()?;
    for output in case.outputs() {
        if let Some(name) = output.strip_prefix("merged.") {
            let weight = weights.get(name).ok_or(format!("the model has no tensor `{name}`"))?;
            judge.check(output, &weight.view())?;
        }
    }
    Ok(())
}
