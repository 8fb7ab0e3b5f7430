//! What a run computes: the same bits whatever the threads, the shards'
//! arithmetic, learning, stopping.

use crate::common::{Mlp, Sums, hash};
use specialformer_nn::optim::SgdConfig;
use specialformer_train::{OptimizerConfig, Outcome, TrainConfig, Trainer};

fn config() -> TrainConfig {
    TrainConfig { clip_norm: Some(1.0), seed: 5, ..TrainConfig::new(20, 24, 0.02) }
}

fn weights_after(config: &TrainConfig, threads: usize) -> u64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let model = Mlp::<f32>::new(33, 1).with_noise(0.1);
    let mut trainer = Trainer::new(&model, Sums::new(2), config.clone()).unwrap();
    pool.install(|| trainer.run()).unwrap();
    hash(trainer.parameters())
}

#[test]
fn weights_do_not_depend_on_the_number_of_threads() {
    for shards in [1, 2, 5] {
        let config = TrainConfig { shards: Some(shards), ..config() };
        let one = weights_after(&config, 1);
        for threads in [2, 4] {
            assert_eq!(weights_after(&config, threads), one, "{shards} shards, {threads} threads");
        }
    }
}

#[test]
fn shards_and_accumulation_add_up_to_the_whole_batch() {
    let gradients = |shards, accumulation| {
        let model = Mlp::<f64>::new(8, 1);
        let config = TrainConfig {
            shards: Some(shards),
            accumulation,
            // One plain step: the weights move by the gradient.
            optimizer: OptimizerConfig::Sgd(SgdConfig::default()),
            ..TrainConfig::new(1, 23, 1.0)
        };
        let mut trainer = Trainer::new(&model, Sums::new(2), config).unwrap();
        let report = trainer.step().unwrap();
        (report, trainer.parameters().tensors())
    };
    let (report, whole) = gradients(1, 1);
    for (shards, accumulation) in [(4, 1), (1, 4), (3, 5), (23, 1)] {
        let (other, tensors) = gradients(shards, accumulation);
        assert!((report.loss - other.loss).abs() < 1e-12);
        assert!((report.gradient_norm - other.gradient_norm).abs() < 1e-12);
        assert_eq!(report.score, other.score);
        for (name, tensor) in &tensors {
            for (a, b) in tensor.as_slice().iter().zip(whole[name].as_slice()) {
                assert!((a - b).abs() < 1e-12, "{shards} × {accumulation}: {name}: {a} {b}");
            }
        }
    }
}

#[test]
fn a_run_learns_until_its_target() {
    let model = Mlp::<f32>::new(64, 1);
    let config = TrainConfig {
        eval_every: 50,
        eval_size: 500,
        target_accuracy: Some(0.97),
        ..TrainConfig::new(5000, 64, 0.01)
    };
    let summary = Trainer::new(&model, Sums::new(2), config).unwrap().run().unwrap();
    assert_eq!(summary.outcome, Outcome::TargetReached);
    assert!(summary.step < 5000 && summary.step % 50 == 0);
    let validation = summary.validation.unwrap();
    assert_eq!(validation.step, summary.step);
    assert!(validation.evaluation.overall.accuracy >= 0.97);
    let test = summary.test.unwrap().evaluation;
    assert!(test.overall.accuracy > 0.9);
    assert_eq!(test.overall.count, 500);
    let labels: Vec<_> = test.labels.keys().map(String::as_str).collect();
    assert_eq!(labels, ["last", "sum"]);
    assert_eq!(test.labels.values().map(|l| l.count).sum::<u64>(), 500);
}
