//! Measures routing traces: `route_scale analyze` writes a synthetic trace of
//! 10⁶ tokens × 16 layers × 64 experts (8 for each token), reads it and
//! analyses it; `route_scale overhead [MODEL]` compares forward passes with and
//! without a trace, over 30 alternating pairs.

use std::error::Error;
use std::time::Instant;

use specialformer::checkpoint::HfConfig;
use specialformer::families::PublishedModel;
use specialformer::prelude::*;
use specialformer::routing::analysis::{AnalysisConfig, analyze};
use specialformer::routing_trace::{
    PromptTrace, RoutedModel, TokenScope, TraceReader, TraceWriter, read_signatures,
    synthetic_trace,
};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("analyze") => scale(),
        Some("overhead") => overhead(words.get(1).map(String::as_str)),
        _ => Err("route_scale analyze | overhead [MODEL]".into()),
    }
}

/// The most memory that the process ever had, where the system says.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn scale() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let start = Instant::now();
    let info = synthetic_trace(folder.path(), [3907, 256, 4], [16, 64, 8], Seed::new(1))?;
    println!("made {} positions in {:.1} s", info.positions, start.elapsed().as_secs_f64());
    let start = Instant::now();
    let data = read_signatures(&TraceReader::open(folder.path())?, TokenScope::All)?;
    println!("read in {:.1} s", start.elapsed().as_secs_f64());
    let found = analyze(&data, &AnalysisConfig::default())?;
    println!(
        "read and analysed in {:.1} s; peak memory {:.0} MiB; accuracy {:.3}, d {:.2}, p {:.1e}",
        start.elapsed().as_secs_f64(),
        peak_mib().unwrap_or(f64::NAN),
        found.classifier.accuracy,
        found.similarity.cohens_d,
        found.permutation.p_value
    );
    Ok(())
}

fn overhead(path: Option<&str>) -> Result<(), Box<dyn Error>> {
    const PAIRS: usize = 30;
    const LENGTH: u32 = 256;
    let model = match path {
        Some(path) => RoutedModel::open(path.as_ref())?,
        None => {
            let json = r#"{
                "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 1000,
                "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8,
                "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 64,
                "num_experts_per_tok": 8, "max_position_embeddings": 512
            }"#;
            let config = HfConfig::from_json("config.json", json.as_bytes())?;
            let model = PublishedModel::new(&config, Seed::new(1))?;
            RoutedModel::of_published("olmoe of random weights", model, None)?
        }
    };
    let length = model.window().map_or(LENGTH, |window| LENGTH.min(window as u32));
    let tokens: Vec<u32> = (0..length).map(|i| i * 7 % 200).collect();
    let folder = tempfile::tempdir()?;
    let mut writer = TraceWriter::create(folder.path(), &model)?;
    let plain = || -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        model.hidden(&tokens)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let mut traced = || -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        let trace = model.trace(&tokens)?;
        let positions = tokens.len();
        let prompt =
            PromptTrace { tokens: tokens.clone(), positions, own: positions, ..Default::default() };
        writer.add(prompt, &trace)?;
        Ok(start.elapsed().as_secs_f64())
    };
    plain()?;
    traced()?;
    let mut ratios = Vec::with_capacity(PAIRS);
    for pair in 0..PAIRS {
        // Each is a minimum of three, and they take turns in being first.
        let three = |time: &mut dyn FnMut() -> Result<f64, Box<dyn Error>>| {
            (0..3).map(|_| time()).try_fold(f64::INFINITY, |least, t| t.map(|t| least.min(t)))
        };
        let (a, b) = match pair % 2 {
            0 => (three(&mut || plain())?, three(&mut traced)?),
            _ => {
                let b = three(&mut traced)?;
                (three(&mut || plain())?, b)
            }
        };
        ratios.push(b / a - 1.0);
    }
    let n = PAIRS as f64;
    let mean = ratios.iter().sum::<f64>() / n;
    let std = (ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    // 1.699: the 95 % point of Student's t with 29 degrees of freedom.
    let bound = mean + 1.699 * std / n.sqrt();
    println!(
        "{}: {length} tokens, overhead {:.2} % of the forward pass, upper 95 % bound {:.2} %",
        model.name(),
        100.0 * mean,
        100.0 * bound
    );
    Ok(())
}
