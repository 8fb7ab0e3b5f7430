//! Steps of singular-value fine-tuning on request, for comparisons:
//! `svf_steps MODEL` reads a word a line and answers each with a JSON line.
//! `decompose` decomposes all feed-forward matrices anew, `step` makes a
//! training step of 16 rows of 32 tokens of which the last four are scored,
//! `switch` applies another expert, `memory` tells the peak above the loaded
//! model.

use std::error::Error;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use specialformer::PeakMemory;
use specialformer::families::PublishedModel;
use specialformer::prelude::*;
use specialformer::svd_finetune::Parametrisation;
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
    let path = std::env::args().nth(1).ok_or("give a model")?;
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
    let go_on = |_: specialformer::svd_finetune::Progress<'_>| ControlFlow::Continue(());
    let settings = Decomposition::default();
    let mut lines = std::io::stdin().lock().lines();
    let say = |seconds: f64| {
        println!("{{\"seconds\": {seconds}}}");
        std::io::stdout().flush()
    };
    let mut base = None;
    let mut next = lines.next().transpose()?;
    while next.as_deref() == Some("decompose") {
        let start = Instant::now();
        base = Some(decompose(&mut model, &settings, go_on)?);
        say(start.elapsed().as_secs_f64())?;
        next = lines.next().transpose()?;
    }
    let base = match base {
        Some(base) => base,
        None => decompose(&mut model, &settings, go_on)?,
    };
    let tuned = Tuned::svf(model, &base, Parametrisation::direct())?;
    let expert = tuned.expert("switched")?;
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
            "switch" => tuned.apply(Some(&expert))?,
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
