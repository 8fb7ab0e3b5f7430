//! `specialformer svf decompose`.

use std::time::Instant;

use serde_json::json;
use specialformer::svd_finetune::truncate;

use super::model;
use crate::args::svf::DecomposeArgs;
use crate::failure::Failure;
use crate::table;

pub(super) fn run(args: &DecomposeArgs) -> Result<(), Failure> {
    let mut opened = model::open(&args.model)?;
    let start = Instant::now();
    let selection = model::selection(&args.matrices)?;
    let base = model::base(&mut opened, selection, &args.cache, args.common.quiet)?;
    let seconds = start.elapsed().as_secs_f64();
    let truncations = match args.energy {
        None => Vec::new(),
        Some(energy) => base
            .iter()
            .map(|(name, factors)| {
                let (_, kept) = truncate(&factors.to_svd(), energy).map_err(model::input)?;
                Ok((name.to_owned(), kept))
            })
            .collect::<Result<Vec<_>, Failure>>()?,
    };
    let folder = model::cache(&args.cache);
    if args.common.json {
        let truncations: serde_json::Map<_, _> =
            truncations.into_iter().map(|(name, kept)| (name, json!(kept))).collect();
        let value = json!({
            "matrices": base.len(),
            "singular_values": base.singular_values(),
            "base": base.hash().as_str(),
            "seconds": seconds,
            "cache": folder,
            "truncation": truncations,
        });
        println!("{value:#}");
        return Ok(());
    }
    println!(
        "{} matrices, {} singular values, base {}, {seconds:.1} s",
        base.len(),
        table::grouped(base.singular_values() as u64),
        base.hash().short()
    );
    if let Some(folder) = folder {
        println!("kept in {}", folder.display());
    }
    if !truncations.is_empty() {
        let head = ["matrix", "rank", "kept", "relative error", "spectral error"];
        let mut rows = vec![head.map(String::from).to_vec()];
        rows.extend(truncations.into_iter().map(|(name, kept)| {
            let numbers = [kept.relative_error, kept.spectral_error].map(|x| format!("{x:.4}"));
            let ranks = [kept.full_rank, kept.rank].map(|rank| rank.to_string());
            std::iter::once(name).chain(ranks).chain(numbers).collect()
        }));
        print!("\n{}", table::aligned(&rows));
    }
    Ok(())
}
