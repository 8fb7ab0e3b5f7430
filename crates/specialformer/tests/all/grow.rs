//! Runs whose model grows on the way.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use specialformer::nn::{Ctx, NamedParameters};
use specialformer::prelude::{Model, Seed};
use specialformer::training::{Batch, CrossEntropy, Objective, Shard};
use specialformer::{GrowAt, RunConfig, Start, grow, load, train};

const RUN: &str = "name = 'growing'
    grow = [{ at = 3, layers = 3 }, { at = 5, feed_forward = 32 }]
    [model]
    kind = 'specialformer'
    topology = 'decoder'
    vocabulary = 20
    width = 16
    layers = 1
    heads = 2
    feed_forward = 24
    window = 34
    [[model.tasks]]
    name = 'sort'
    head = 'language-model'
    [[model.tasks]]
    name = 'bracket-depth'
    head = 'labelling'
    outputs = 7
    [data]
    kind = 'multitask'
    layout = 'decoder'
    tasks = ['sort', 'bracket-depth']
    [train]
    steps = 8
    batch_size = 32
    learning_rate = 3e-3
    log_every = 2
    eval_size = 64
    checkpoint_every = 2
";

/// The bytes of a run's weights.
pub(crate) fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

/// Stops when it was asked so many times, which is once before each step.
pub(crate) fn stop_at(asked: u64) -> impl Fn() -> bool + Send {
    let count = AtomicU64::new(0);
    move || count.fetch_add(1, Ordering::Relaxed) == asked
}

fn batch() -> Batch {
    let mut batch = Batch::new(4, 9, 9).unwrap();
    for (i, (token, target)) in (0..36).zip([(5, 7); 36]) {
        batch.tokens_mut()[i as usize] = i * token % 20;
        batch.targets_mut()[i as usize] = i * target % 20;
    }
    batch.task_ids_mut().fill(0);
    batch
}

fn loss(model: &Model) -> f64 {
    let batch = batch();
    let shard = Shard::whole(batch.all()).unwrap();
    let loss = CrossEntropy::default().loss(&Ctx::eval(), model, &shard).unwrap().loss;
    f64::from(loss.value().item().unwrap())
}

#[test]
fn a_run_grows_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig::parse(RUN, "grow.toml").unwrap();
    let whole = folder.path().join("whole");
    let run = train(&config, &whole, Start::New, (), || false).unwrap();
    assert_eq!(run.summary.step, 8);
    let (loaded, model) = load(&whole).unwrap();
    let base = loaded.model.base().unwrap();
    assert_eq!((base.layers, base.feed_forward), (3, 32));
    assert!(loaded.grow.is_empty());
    assert_eq!(loss(&model), loss(&run.model));
    // Before, at and after the moments of change.
    for asked in [2, 3, 5, 6] {
        let part = folder.path().join(format!("part-{asked}"));
        let stopped = train(&config, &part, Start::New, (), stop_at(asked)).unwrap();
        assert!(stopped.summary.step < 8);
        let (_, model) = load(&part).unwrap();
        assert!(loss(&model).is_finite());
        train(&config, &part, Start::Resume, (), || false).unwrap();
        assert_eq!(weights(&whole), weights(&part), "stopped when asked {asked} times");
    }
}

#[test]
fn the_loss_is_the_same_at_the_moment_of_change() {
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig::parse(RUN, "grow.toml").unwrap();
    let part = folder.path().join("part");
    let stopped = train(&config, &part, Start::New, (), stop_at(3)).unwrap();
    assert_eq!(stopped.summary.step, 3);
    let (small, model) = load(&part).unwrap();
    assert_eq!(small.model.base().unwrap().layers, 1);
    let text = RUN.replace("layers = 1", "layers = 3").replace("grow =", "# grow =");
    let large = RunConfig::parse(&text, "grow.toml").unwrap();
    let grown = Model::new(&large.model, Seed::new(large.train.seed)).unwrap();
    let before = loss(&grown);
    grow(&model, &small.model, &grown, &large.model).unwrap();
    assert!(NamedParameters::of(&grown).count() > NamedParameters::of(&model).count());
    assert_eq!(loss(&grown), loss(&model));
    assert_ne!(loss(&grown), before);
    let text = text.replace("feed_forward = 24", "feed_forward = 32");
    let wide = RunConfig::parse(&text, "grow.toml").unwrap();
    let wider = Model::new(&wide.model, Seed::new(wide.train.seed)).unwrap();
    grow(&grown, &large.model, &wider, &wide.model).unwrap();
    assert!((loss(&wider) - loss(&model)).abs() < 1e-6);
}

#[test]
fn models_that_cannot_grow_are_refused() {
    let fail = |from: &str, to: &str| {
        let text = RUN.replace(from, to);
        RunConfig::parse(&text, "grow.toml").unwrap_err().to_string()
    };
    let error = fail("at = 5", "at = 2");
    assert!(error.starts_with("grow.at = 2: must rise"), "{error}");
    let error = fail("at = 5", "at = 8");
    assert!(error.contains("within the run's 8 steps"), "{error}");
    let error = fail("feed_forward = 32", "feed_forward = 8");
    assert!(error.contains("the model that it grows from has 24"), "{error}");
    let config = RunConfig::parse(RUN, "grow.toml").unwrap();
    assert_eq!(config.grow[0], GrowAt { at: 3, layers: Some(3), feed_forward: None });
}
