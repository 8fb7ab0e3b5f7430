//! `specialformer info`.

use std::path::Path;

use serde_json::json;
use specialformer::tensor::{gemm, simd};
use specialformer::{Inventory, ParameterCount, RunConfig};

use crate::args::InfoArgs;
use crate::build_info;
use crate::failure::Failure;
use crate::table::grouped;

pub(crate) fn run(args: &InfoArgs) -> Result<(), Failure> {
    if let Some(config) = &args.config {
        return model(config, args.common.json);
    }
    let threads = specialformer::threads();
    let blas = gemm::blas_info();
    let kernels = PRODUCTS.map(|(m, k, n, transposed)| {
        let right = if transposed { format!("[{n}, {k}]ᵀ") } else { format!("[{k}, {n}]") };
        (format!("[{m}, {k}] × {right}"), gemm::kernel_for(m, k, n, transposed).to_string())
    });
    if args.common.json {
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "build": build_info::as_json(),
            "simd": simd::level_name(),
            "simd_note": simd::selection().note.as_deref(),
            "threads": threads,
            "blas": blas.as_ref().map(|blas| json!({
                "core": blas.core,
                "configuration": blas.config,
                "warning": blas.warning,
            })),
            "gemm_kernels": kernels
                .iter()
                .map(|(product, kernel)| json!({"product": product, "kernel": kernel}))
                .collect::<Vec<_>>(),
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("specialformer {}", build_info::short());
    println!("target      {}", build_info::TARGET);
    println!("build       {}, {}", build_info::PROFILE, build_info::RUSTC);
    println!("SIMD level  {}", simd::level_name());
    if let Some(note) = simd::selection().note.as_deref() {
        println!("            {note}");
    }
    println!("threads     {threads}");
    match blas {
        None => println!("BLAS        none: embedded kernels only"),
        Some(blas) => {
            println!("BLAS        OpenBLAS for core type {} ({})", blas.core, blas.config.trim());
            if let Some(warning) = blas.warning {
                println!("            warning: {warning}");
            }
        }
    }
    println!("kernels of matrix products (f32):");
    for (product, kernel) in kernels {
        println!("  {product:<26} {kernel}");
    }
    Ok(())
}

/// Products (m, k, n, right side transposed) that show which kernel serves
/// what.
const PRODUCTS: [(usize, usize, usize, bool); 5] = [
    (1, 512, 512, true),
    (256, 16, 16, true),
    (4096, 16, 64, true),
    (6144, 64, 256, false),
    (2048, 512, 2048, false),
];

/// What the model of a configuration consists of.
fn model(path: &Path, as_json: bool) -> Result<(), Failure> {
    let config = RunConfig::load(path)?;
    let model = config.build_model()?;
    let (inventory, count) = (Inventory::of(&model), ParameterCount::of(&model));
    let widths = widths(&config)?;
    if as_json {
        let value = json!({
            "name": config.name,
            "inventory": inventory,
            "parts": count.parts,
            "widths": widths
                .iter()
                .map(|(share, inventory)| json!({ "share": share, "inventory": inventory }))
                .collect::<Vec<_>>(),
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("{}: {} parameters", config.name, grouped(inventory.total as u64));
    println!("{}", count.layout());
    println!("used by several parts: {}", grouped(inventory.shared as u64));
    println!();
    println!("{:<12} {:>12} {:>16}", "position", "active", "FLOPs a token");
    for of in &inventory.types {
        let (active, flops) = (grouped(of.active as u64), grouped(of.flops as u64));
        println!("{:<12} {active:>12} {flops:>16}", of.name);
    }
    for (share, inventory) in &widths {
        println!();
        println!("at width {share}: {} parameters", grouped(inventory.total as u64));
        for of in &inventory.types {
            let (active, flops) = (grouped(of.active as u64), grouped(of.flops as u64));
            println!("{:<12} {active:>12} {flops:>16}", of.name);
        }
    }
    Ok(())
}

/// The parts of a model with elastic blocks, by share.
fn widths(config: &RunConfig) -> Result<Vec<(f64, Inventory)>, Failure> {
    let mut all = Vec::new();
    for &share in config.model.widths().iter().filter(|&&share| share != 1.0) {
        let narrow = RunConfig { model: config.model.at_width(share)?, ..config.clone() };
        all.push((share, Inventory::of(&narrow.build_model()?)));
    }
    Ok(all)
}
