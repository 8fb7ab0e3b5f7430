//! `specialformer info`.

use serde_json::json;
use specialformer::tensor::simd;

use crate::args::InfoArgs;
use crate::failure::Failure;

pub(crate) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let threads = rayon_threads();
    if args.common.json {
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "simd": simd::level_name(),
            "simd_note": simd::selection().note.as_deref(),
            "threads": threads,
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
    Ok(())
}

fn rayon_threads() -> usize {
    specialformer::threads()
}
