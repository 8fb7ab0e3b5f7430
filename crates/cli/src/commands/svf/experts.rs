//! `specialformer svf merge`, `mix` and `info`.

use std::fs;

use serde_json::json;
use specialformer::svd_finetune::{
    Alpha, ExpertVector, Parametrisation, ScaleKind, add, mix as mixed,
};
use specialformer::svf::{Tuned, check_expert};

use super::model;
use crate::args::svf::{InfoArgs, MergeArgs, MixArgs, MixMode};
use crate::args::text::Target;
use crate::commands::convert;
use crate::commands::published::is_named_gguf;
use crate::failure::Failure;
use crate::output::{check_free, make_parent};
use crate::table::{self, grouped};

/// Folds an expert into a model and saves it.
pub(super) fn merge(args: &MergeArgs) -> Result<(), Failure> {
    check_free(&args.out, None)?;
    let form = args.to.unwrap_or(match is_named_gguf(&args.out) {
        true => Target::GgufF16,
        false => Target::F32,
    });
    convert::check_form(form, &args.out)?;
    let expert = model::expert(&args.expert)?;
    let mut opened = model::open(&args.model)?;
    let experts = std::slice::from_ref(&expert);
    let base = model::base_of(&mut opened, experts, &args.cache, args.common.quiet)?;
    let tuned = Tuned::svf(opened, &base, Parametrisation::direct())?;
    tuned.apply(Some(&expert))?;
    let mut merged = tuned.into_model();
    merged.merge_adapters()?;
    convert::save(&merged, form, &args.out)?;
    if args.common.json {
        println!("{:#}", json!({"path": args.out, "matrices": expert.matrices.len()}));
    } else {
        let count = expert.matrices.len();
        println!("folded `{}` into {count} matrices; saved {}", expert.task, args.out.display());
    }
    Ok(())
}

/// Combines experts.
pub(super) fn mix(args: &MixArgs) -> Result<(), Failure> {
    check_free(&args.out, None)?;
    let experts =
        args.experts.iter().map(|path| model::expert(path)).collect::<Result<Vec<_>, _>>()?;
    let references: Vec<&ExpertVector> = experts.iter().collect();
    let weights = match (args.weights.is_empty(), args.mode) {
        (false, _) => args.weights.clone(),
        (true, MixMode::Mix) => vec![1.0 / experts.len() as f64; experts.len()],
        (true, MixMode::Add) => vec![1.0; experts.len()],
    };
    let alpha = Alpha::Global(weights);
    let (expert, warning) = match args.mode {
        MixMode::Mix => {
            let mixed = mixed(&references, &alpha).map_err(model::input)?;
            (mixed.expert, mixed.warning)
        }
        MixMode::Add => (add(&references, &alpha).map_err(model::input)?, None),
    };
    if let Some(warning) = &warning {
        tracing::warn!("{warning}");
    }
    make_parent(&args.out)?;
    expert.save(&args.out).map_err(model::input)?;
    if args.common.json {
        let value = json!({"path": args.out, "task": expert.task, "warning": warning});
        println!("{value:#}");
    } else {
        println!("{}: saved {}", expert.task, args.out.display());
    }
    Ok(())
}

/// Prints what an expert is.
pub(super) fn info(args: &InfoArgs) -> Result<(), Failure> {
    let expert = model::expert(&args.expert)?;
    let bytes = fs::metadata(&args.expert).map_or(0, |found| found.len());
    if let Some(path) = &args.model {
        check_expert(&mut model::open(path)?, &expert)?;
    }
    let all = || expert.matrices.values().flat_map(|matrix| &matrix.z).map(|&z| f64::from(z));
    let count = expert.len().max(1) as f64;
    let (low, high) =
        all().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), z| (l.min(z), h.max(z)));
    let change = (all().map(|z| (z - 1.0).powi(2)).sum::<f64>() / count).sqrt();
    if args.common.json {
        let value = json!({
            "task": expert.task,
            "base": expert.base_hash().as_str(),
            "matrices": expert.matrices.keys().collect::<Vec<_>>(),
            "numbers": expert.len(),
            "bytes": bytes,
            "parametrisation": expert.parametrisation,
            "metrics": expert.metrics,
            "z": {"min": low, "max": high, "root_mean_square_change": change},
            "fits_model": args.model.as_ref().map(|_| true),
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("task            {}", expert.task);
    println!("base            {}", expert.base_hash().short());
    println!("matrices        {}", expert.matrices.len());
    println!("numbers         {}", grouped(expert.len() as u64));
    println!("file            {}", table::bytes(bytes));
    let kind = match expert.parametrisation.kind {
        ScaleKind::Direct => "z = p".to_owned(),
        ScaleKind::Sigmoid { ceiling } => format!("z = {ceiling}·sigmoid(p)"),
    };
    let trace = if expert.parametrisation.trace { ", keeping the trace" } else { "" };
    println!("trained as      {kind}{trace}");
    println!("z               {low:.3} to {high:.3}, root mean square of z − 1: {change:.4}");
    for (name, value) in &expert.metrics {
        println!("{name:<15} {value}");
    }
    if let Some(path) = &args.model {
        println!("belongs to      {}", path.display());
    }
    Ok(())
}
