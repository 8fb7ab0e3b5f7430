//! Times of one published decoder, as JSON:
//! `cargo run --release --example published_times -- MODEL [WHAT…]`, where WHAT
//! is `load`, `prefill`, `decode`, `batched` or `train`, with `f32` before it
//! for weights in single precision (the default is as the file stores them).
//! One WHAT a process tells its peak memory, too. `RAYON_NUM_THREADS` sets the
//! threads.

use std::error::Error;
use std::time::Instant;

use specialformer::families::{PublishedModel, TextInput};
use specialformer::generate::{Flow, GenerateConfig, generate};
use specialformer::prelude::*;
use specialformer::tensor::quantized::Precision;
use specialformer::tensor::{CrossEntropy, TapeConfig};

/// Tokens of a prompt that is read.
const PREFILL: usize = 256;
/// Tokens that are generated behind a prompt of as many.
const DECODE: usize = 64;
/// Texts in a batch.
const BATCH: usize = 32;
/// Tokens of a training step.
const TRAIN: usize = 512;
/// Repeats; the fastest counts.
const REPEATS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, wanted @ ..] = arguments.as_slice() else {
        return Err("give a model".into());
    };
    let (dense, wanted) = match wanted {
        [first, rest @ ..] if first == "f32" => (true, rest),
        all => (false, all),
    };
    let open = || match dense {
        true => PublishedModel::<f32>::open(path),
        false => PublishedModel::open_stored(path, Precision::Fast),
    };
    let start = Instant::now();
    let model = open()?;
    let load = start.elapsed().as_secs_f64();
    println!("{{\"what\": \"load\", \"seconds\": {load:.4}, \"peak_mb\": {:.1}}}", peak_mb());
    for what in wanted {
        let speed = match what.as_str() {
            "load" => {
                let seconds = fastest(|| open().map(drop))?;
                println!("{{\"what\": \"load again\", \"seconds\": {seconds:.4}}}");
                continue;
            }
            "prefill" => PREFILL as f64 / fastest(|| continued(&model, 1, PREFILL, 1).map(drop))?,
            "decode" => decode_speed(&model, 1)?,
            "batched" => decode_speed(&model, BATCH)?,
            "train" => TRAIN as f64 / fastest(|| train_step(&model))?,
            other => return Err(format!("`{other}` is nothing to measure").into()),
        };
        let peak = peak_mb();
        println!(
            "{{\"what\": \"{what}\", \"tokens_per_second\": {speed:.2}, \"peak_mb\": {peak:.1}}}"
        );
    }
    Ok(())
}

fn fastest<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn text(model: &PublishedModel, length: usize, row: usize) -> Vec<u32> {
    let most = model.vocabulary().min(20_000) as u32;
    (0..length as u32).map(|i| (i * 7919 + 13 * row as u32 + 5) % most).collect()
}

/// Seconds to the first token, and from it to the last.
fn continued(
    model: &PublishedModel,
    rows: usize,
    prompt: usize,
    new: usize,
) -> specialformer::Result<(f64, f64)> {
    let prompts: Vec<Vec<u32>> = (0..rows).map(|row| text(model, prompt, row)).collect();
    let (start, mut first) = (Instant::now(), 0.0);
    generate::<f32, f32>(model, &prompts, &GenerateConfig::new(new), |_, _| {
        if first == 0.0 {
            first = start.elapsed().as_secs_f64();
        }
        Flow::Continue
    })?;
    Ok((first, start.elapsed().as_secs_f64() - first))
}

fn decode_speed(model: &PublishedModel, rows: usize) -> specialformer::Result<f64> {
    let mut best: f64 = 0.0;
    for _ in 0..REPEATS {
        let (_, seconds) = continued(model, rows, DECODE, DECODE)?;
        best = best.max((rows * (DECODE - 1)) as f64 / seconds);
    }
    Ok(best)
}

/// Forward and backward of one row.
fn train_step(model: &PublishedModel) -> Result<(), Box<dyn Error>> {
    let config = TapeConfig { parallelism: Parallelism::Rayon, ..TapeConfig::default() };
    let tape = Tape::with_config(config);
    let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("train"));
    let ids = text(model, TRAIN + 1, 0);
    let logits = model.logits(&ctx, &TextInput::new(Tokens::new(&ids[..TRAIN], 1)?))?;
    let targets: Vec<usize> = ids[1..].iter().map(|&id| id as usize).collect();
    let logits = logits.reshape([TRAIN, model.vocabulary()])?;
    let loss = logits.cross_entropy(&targets, &CrossEntropy::default())?;
    tape.backward(&loss)?;
    Ok(())
}

/// Most memory that was resident, of the process so far; 0 where the system
/// does not say.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1.024e-3
}
