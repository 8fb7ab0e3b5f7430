//! `specialformer info`.

use serde_json::json;
use specialformer::tensor::{gemm, simd};

use crate::args::InfoArgs;
use crate::failure::Failure;

pub(crate) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let kernels: Vec<_> = PRODUCTS
        .iter()
        .map(|&(m, k, n)| (format!("[{m}, {k}] × [{k}, {n}]"), gemm::kernel_name::<f32>(m, k, n)))
        .collect();
    let threads = rayon_threads();
    let blas = gemm::blas_core_name();
    let warning = gemm::blas_warning();
    if args.common.json {
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "simd": simd::level_name(),
            "simd_note": simd::level_note(),
            "threads": threads,
            "blas": blas,
            "blas_warning": warning,
            "gemm_kernels": kernels.iter().map(|(shape, name)| json!({"product": shape, "kernel": name})).collect::<Vec<_>>(),
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("specialformer {}", env!("CARGO_PKG_VERSION"));
    println!("target      {}-{}", std::env::consts::ARCH, std::env::consts::OS);
    println!("SIMD level  {}", simd::level_name());
    if let Some(note) = simd::level_note() {
        println!("            {note}");
    }
    println!("threads     {threads}");
    println!("BLAS        {}", blas.as_deref().unwrap_or("none (embedded kernels only)"));
    if let Some(warning) = warning {
        println!("            warning: {warning}");
    }
    println!("GEMM kernels by shape (f32, one thread):");
    for (shape, name) in kernels {
        println!("  {shape:<28} {name}");
    }
    Ok(())
}

/// Shapes that show which kernel serves what.
const PRODUCTS: [(usize, usize, usize); 5] =
    [(1, 512, 512), (256, 16, 16), (4096, 16, 64), (6144, 64, 256), (2048, 512, 2048)];

fn rayon_threads() -> usize {
    specialformer::threads()
}
