//! Trains a model of one's own on data of one's own, stops halfway, resumes
//! from the checkpoint, and ends with the same bytes as a run without a stop:
//! `cargo run --release -p specialformer-train --example resume`

use std::error::Error;
use std::path::Path;

use specialformer_nn::{Ctx, Embedding, Linear, Lstm, Module, ParameterVisitor, Result, Schedule};
use specialformer_tensor::Seed;
use specialformer_train::{
    Batch, BoxError, Dataset, HeldOut, Model, ModelOutput, Rows, RunFolder, Summary, TrainConfig,
    Trainer,
};

const DIGITS: usize = 10;
const LENGTH: usize = 5;
const WIDTH: usize = 32;
const STEPS: u64 = 300;
const STOP: u64 = 170;
const SEED: u64 = 1;

/// An LSTM that reads digits and answers with one.
struct Reader {
    digits: Embedding,
    lstm: Lstm,
    head: Linear,
}

impl Reader {
    fn new() -> Result<Self> {
        let mut rng = Seed::new(SEED).stream("init");
        Ok(Self {
            digits: Embedding::new(DIGITS, WIDTH, 1.0, &mut rng)?,
            lstm: Lstm::new(WIDTH, WIDTH, 1, &mut rng)?,
            head: Linear::new(WIDTH, DIGITS, true, &mut rng)?,
        })
    }
}

impl Module for Reader {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.module("digits", &self.digits);
        visitor.module("lstm", &self.lstm);
        visitor.module("head", &self.head);
    }
}

impl Model for Reader {
    fn forward(&self, ctx: &Ctx, input: &Rows<'_>) -> Result<ModelOutput, BoxError> {
        let x = self.digits.forward(ctx, input.tokens(), [input.rows(), input.length()])?;
        let last = self.lstm.forward(ctx, &x, None)?.last()?;
        let logits = self.head.forward(ctx, &last)?;
        Ok(ModelOutput::new(logits.reshape([input.rows(), 1, DIGITS])?))
    }
}

/// Rows of random digits, of which the largest is asked for. The position is
/// the number of rows drawn.
struct Largest(u64);

/// Row `index` of a stream: the same whenever it is asked for.
fn fill(batch: &mut Batch, stream: &str, first: u64, rows: usize) -> Result<(), BoxError> {
    batch.reset(rows, LENGTH, 1)?;
    for row in 0..rows {
        let mut rng = Seed::new(SEED).stream_at(stream, first + row as u64);
        let tokens = &mut batch.tokens_mut()[row * LENGTH..][..LENGTH];
        tokens.fill_with(|| rng.below(DIGITS) as u32);
        let largest = tokens.iter().copied().max().unwrap_or_default();
        batch.targets_mut()[row] = largest;
    }
    Ok(())
}

impl Dataset for Largest {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        fill(batch, "training", self.0, rows)?;
        self.0 += rows as u64;
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        vec![self.0]
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        let &[rows] = cursor else { return Err("not a position in this data".into()) };
        self.0 = rows;
        Ok(())
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let mut batch = Batch::default();
        fill(&mut batch, if set == HeldOut::Test { "test" } else { "validation" }, 0, size)?;
        Ok(Some(batch))
    }
}

/// A run in a folder, from its newest checkpoint if it has one, to step `until`.
fn run(folder: &Path, until: u64) -> Result<Summary, Box<dyn Error>> {
    let config = TrainConfig {
        schedule: Schedule::Cosine { warmup: 20, floor: 0.05 },
        clip_norm: Some(1.0),
        eval_every: 75,
        eval_size: 1000,
        checkpoint_every: 100,
        ..TrainConfig::new(STEPS, 64, 1e-2)
    };
    let model = Reader::new()?;
    let trainer = Trainer::new(&model, Largest(0), config)?.until(until);
    // The second argument is what must not have changed when a run goes on.
    let settings = ("largest digit", WIDTH);
    let mut trainer = trainer.resume_in(RunFolder::open_or_create(folder)?, &settings)?;
    Ok(trainer.run()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let [stopped, whole] = ["stopped", "whole"].map(|name| folder.path().join(name));
    println!("run             outcome      step  validation loss  test accuracy");
    let mut accuracy = 0.0;
    for (name, folder, until) in [
        ("stopped", &stopped, STOP),
        ("resumed", &stopped, STEPS),
        ("without a stop", &whole, STEPS),
    ] {
        let Summary { outcome, step, validation, test, .. } = run(folder, until)?;
        let loss = validation.ok_or("nothing was evaluated")?.evaluation.loss;
        let test = test.map(|record| record.evaluation.overall.accuracy);
        let shown = test.map_or("–".into(), |accuracy| format!("{accuracy:.3}"));
        println!("{name:14}  {:11}  {step:4}  {loss:15.3}  {shown:>13}", format!("{outcome:?}"));
        accuracy = test.unwrap_or_default();
    }

    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert_eq!(std::fs::read(stopped.join(file))?, std::fs::read(whole.join(file))?);
    }
    println!("\nBoth ended with the same weights and the same state of the optimiser.");
    assert!(accuracy > 0.9);
    Ok(())
}
