//! `specialformer convert`.

use std::path::Path;

use specialformer::checkpoint::{LoraFolder, StorageType};
use specialformer::families::PublishedModel;
use specialformer::prelude::Model;

use super::published::{check_path, is_named_gguf};
use crate::args::text::{ConvertArgs, Target};
use crate::failure::Failure;
use crate::output::{check_free, make_parent};

pub(crate) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let is_run = args.model.join("config.toml").is_file();
    if !is_run {
        check_path(&args.model)?;
    }
    let out = &args.out;
    check_free(out, None)?;
    check_form(args.to, out)?;
    let mut model = match is_run {
        true => trained(&args.model)?,
        false => PublishedModel::open(&args.model)?,
    };
    if let Some(adapter) = &args.adapter {
        let adapter = LoraFolder::open(adapter).map_err(|e| Failure::input(e.to_string()))?;
        model.apply_lora(&adapter)?;
        model.merge_adapters()?;
    }
    save(&model, args.to, out)?;
    if args.common.json {
        println!("{:#}", serde_json::json!({ "saved": out }));
    } else {
        println!("saved {}", out.display());
    }
    Ok(())
}

/// Fails if a path's name does not say what the form is.
pub(crate) fn check_form(form: Target, out: &Path) -> Result<(), Failure> {
    let what = match (form.is_gguf(), is_named_gguf(out)) {
        (true, false) => "a GGUF file's name ends in .gguf",
        (false, true) => "the form is a folder's; for a .gguf file give --to gguf-f16 or another",
        _ => return Ok(()),
    };
    Err(Failure::input(format!("{}: {what}", out.display())))
}

/// Saves a model in a form.
pub(crate) fn save(model: &PublishedModel, form: Target, out: &Path) -> Result<(), Failure> {
    make_parent(out)?;
    match form {
        Target::F32 => model.save_as(out, StorageType::F32)?,
        Target::F16 => model.save_as(out, StorageType::F16)?,
        Target::Bf16 => model.save_as(out, StorageType::BF16)?,
        Target::GgufF32 => model.save_gguf(out, StorageType::F32)?,
        Target::GgufF16 => model.save_gguf(out, StorageType::F16)?,
        Target::GgufQ8_0 => model.save_gguf(out, StorageType::Q8_0)?,
    }
    Ok(())
}

/// The pretrained model that a run trained further.
fn trained(run: &Path) -> Result<PublishedModel, Failure> {
    match specialformer::load(run)?.1 {
        Model::Published(model) => Ok(*model),
        _ => {
            let what = "is a run, but not of a pretrained model";
            Err(Failure::input(format!("{}: {what}", run.display())))
        }
    }
}
