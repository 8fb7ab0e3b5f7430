//! `specialformer inspect`.

use specialformer::families::ModelSummary;

use super::published::check_path;
use crate::args::text::InspectArgs;
use crate::failure::Failure;
use crate::table::{self, bytes};

pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    check_path(&args.model)?;
    let summary = ModelSummary::open(&args.model)?;
    if args.common.json {
        let text = serde_json::to_string_pretty(&summary);
        println!("{}", text.map_err(|e| Failure::work(e.to_string()))?);
        return Ok(());
    }
    print(&summary);
    if args.tensors {
        let row = |tensor: &specialformer::families::TensorSummary| {
            vec![
                tensor.name.clone(),
                tensor.kind.clone(),
                format!("{:?}", tensor.shape),
                bytes(tensor.bytes),
            ]
        };
        let head = ["tensor", "type", "shape", "size"].map(str::to_owned).to_vec();
        let rows: Vec<_> = [head].into_iter().chain(summary.tensors.iter().map(row)).collect();
        print!("\n{}", table::aligned(&rows));
    }
    Ok(())
}

fn print(summary: &ModelSummary) {
    let supported = if summary.supported { "" } else { " (not supported)" };
    let class = summary.architecture.as_deref().unwrap_or("no class given");
    println!("model        {} ({class}), {}{supported}", summary.model_type, summary.format);
    let window = summary.window.map_or(String::new(), |window| format!(", window {window}"));
    println!(
        "shape        {} layers of width {}, {} heads ({} of keys and values), {} tokens{window}",
        summary.layers,
        summary.width,
        summary.heads,
        summary.kv_heads,
        table::grouped(summary.vocabulary as u64)
    );
    let total = table::grouped(summary.parameters);
    match summary.active_parameters == summary.parameters {
        true => println!("parameters   {total}"),
        false => {
            let active = table::grouped(summary.active_parameters);
            println!("parameters   {total}, {active} of them for one token");
        }
    }
    if let Some(experts) = &summary.experts {
        println!(
            "experts      {} of hidden width {} in {} layers, {} for a token; in the file {}",
            experts.experts,
            experts.hidden,
            experts.sparse_layers.len(),
            experts.top_k,
            experts.layout
        );
    }
    let kinds = summary.kinds.iter().map(|(kind, (count, size))| {
        let tensors = if *count == 1 { "tensor" } else { "tensors" };
        format!("{kind} {count} {tensors} {}", bytes(*size))
    });
    println!("weights      {}", kinds.collect::<Vec<_>>().join(", "));
    println!(
        "memory       {} as stored, {} in single precision; {} for each token of a text",
        bytes(summary.file_bytes),
        bytes(summary.f32_bytes),
        bytes(summary.cache_bytes_per_token)
    );
}
