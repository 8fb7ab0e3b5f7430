//! `specialformer info`.

use serde_json::json;
use specialformer::tensor::{gemm, simd};

use crate::args::InfoArgs;
use crate::failure::Failure;

pub(crate) fn run(args: &InfoArgs) -> Result<(), Failure> {
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
    println!("specialformer {}", env!("CARGO_PKG_VERSION"));
    println!("target      {}-{}", std::env::consts::ARCH, std::env::consts::OS);
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
