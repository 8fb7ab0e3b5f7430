//! Steps of fine-tuning a pretrained model's feed-forward matrices on request,
//! for comparisons: `tune_steps MODEL svf|lora` reads a word a line and answers
//! each with a JSON line. `decompose` decomposes all feed-forward matrices anew
//! (`svf`), `step` makes a training step of 16 rows of 32 tokens of which the
//! last four are scored, `switch` applies another expert (`svf`), `memory` tells
//! the peak above the loaded model. LoRA has rank 16.

use std::error::Error;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use specialformer::PeakMemory;
use specialformer::families::PublishedModel;
use specialformer::prelude::*;
use specialformer::svd_finetune::{Parametrisation, Selection};
use specialformer::svf::{AnswerLoss, Decomposition, Tuned, decompose};
use specialformer::training::{Batch, BoxError, Dataset, HeldOut, Trainer};

const ROWS: usize = 16;
const LENGTH: usize = 32;
const SCORED: usize = 4;

/// The same random rows at every step.
struct Fixed(Batch);

impl Dataset for Fixed {
    fn next_batch(&mut self, _: usize, batch: &mut Batch) -> Result<(), BoxError> {
        batch.clone_from(&self.0);
        Ok(())
    }
    fn cursor(&self) -> Vec<u64> {
        Vec::new()
    }
    fn seek(&mut self, _: &[u64]) -> Result<(), BoxError> {
        Ok(())
    }
    fn held_out(&self, _: HeldOut, _: usize) -> Result<Option<Batch>, BoxError> {
        Ok(None)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("give a model")?;
    let method = arguments.next().ok_or("give a method, svf or lora")?;
    let mut model = PublishedModel::<f32>::open(path)?;
    let mut rng = Seed::new(1).stream("tokens");
    let mut batch = Batch::new(ROWS, LENGTH, LENGTH)?;
    let vocabulary = model.vocabulary();
    batch.tokens_mut().fill_with(|| rng.below(vocabulary) as u32);
    let tokens = batch.all().tokens().to_vec();
    for (row, targets) in batch.targets_mut().chunks_exact_mut(LENGTH).enumerate() {
        let at = LENGTH - 1 - SCORED;
        targets[at..at + SCORED].copy_from_slice(&tokens[row * LENGTH + at + 1..][..SCORED]);
    }
    let mut lines = std::io::stdin().lock().lines();
    let say = |seconds: f64| {
        println!("{{\"seconds\": {seconds}}}");
        std::io::stdout().flush()
    };
    let mut next = lines.next().transpose()?;
    let selection = Selection::default();
    let tuned = match method.as_str() {
        "svf" => {
            let settings = Decomposition { selection, ..Decomposition::default() };
            let mut decomposed = || decompose(&mut model, &settings, |_| ControlFlow::Continue(()));
            let mut base = None;
            while next.as_deref() == Some("decompose") {
                let start = Instant::now();
                base = Some(decomposed()?);
                say(start.elapsed().as_secs_f64())?;
                next = lines.next().transpose()?;
            }
            let base = base.map_or_else(decomposed, Ok)?;
            Tuned::svf(model, &base, Parametrisation::direct())?
        }
        "lora" => Tuned::lora(model, &selection, (16, 32.0), Seed::new(1))?,
        other => return Err(format!("the method is svf or lora, not `{other}`").into()),
    };
    let expert = (method == "svf").then(|| tuned.expert("switched")).transpose()?;
    let config = TrainConfig {
        shards: Some(1),
        clip_norm: Some(1.0),
        ..TrainConfig::new(1_000_000, ROWS, 2e-3)
    };
    let memory = PeakMemory::watch();
    let mut trainer = Trainer::with_objective(&tuned, Fixed(batch), config, AnswerLoss)?;
    while let Some(word) = next {
        let start = Instant::now();
        match word.as_str() {
            "step" => drop(trainer.step()?),
            "switch" if expert.is_some() => tuned.apply(expert.as_ref())?,
            "memory" => {
                println!("{{\"bytes\": {}}}", memory.rise().unwrap_or(0));
                std::io::stdout().flush()?;
                next = lines.next().transpose()?;
                continue;
            }
            other => return Err(format!("what is `{other}`?").into()),
        }
        say(start.elapsed().as_secs_f64())?;
        next = lines.next().transpose()?;
    }
    Ok(())
}
