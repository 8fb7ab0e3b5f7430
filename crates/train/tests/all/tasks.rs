//! Several tasks of different kinds in one batch.

use crate::common::heads::{Heads, Mixed};
use crate::common::{hash, untimed_metrics};
use specialformer_nn::NamedParameters;
use specialformer_nn::optim::SgdConfig;
use specialformer_train::{
    Batch, BoxError, Dataset, HeldOut, OptimizerConfig, RunFolder, TrainConfig, Trainer,
};

fn config() -> TrainConfig {
    TrainConfig { shards: Some(2), accumulation: 2, ..TrainConfig::new(20, 24, 0.02) }
}

#[test]
fn every_kind_of_task_is_learnt_and_reported() {
    let model = Heads::<f32>::new(48, 1);
    let config = TrainConfig {
        log_every: 100,
        eval_every: 300,
        eval_size: 300,
        ..TrainConfig::new(600, 48, 0.01)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let trainer = Trainer::new(&model, Mixed::new(2), config).unwrap();
    let run = RunFolder::create(&path).unwrap();
    let summary = trainer.start_in(run, &()).unwrap().run().unwrap();
    let test = summary.test.unwrap().evaluation;
    let classes = |task: &str| test.tasks[task].classes.unwrap();
    assert!(classes("sum").accuracy > 0.9, "{test:?}");
    assert!(classes("copy").accuracy > 0.9, "{test:?}");
    assert_eq!((classes("sum").count, classes("copy").count), (100, 300));
    let mean = test.tasks["mean"].values.unwrap();
    assert!(mean.r_squared.unwrap() > 0.9, "{test:?}");
    assert_eq!(mean.values, 100);
    assert!((test.tasks["mean"].loss - mean.mean_squared_error).abs() < 1e-6);
    assert_eq!(test.overall.count, 400);
    // The loss is the mean over all targets.
    let sum = |task: &str, count: f64| test.tasks[task].loss * count;
    let mean_loss = (sum("sum", 100.0) + sum("copy", 300.0) + sum("mean", 100.0)) / 500.0;
    assert!((test.loss - mean_loss).abs() < 1e-6);

    let records = untimed_metrics(&path);
    let tasks = records[0]["tasks"].as_object().unwrap();
    assert_eq!(tasks.keys().collect::<Vec<_>>(), ["copy", "mean", "sum"]);
    // Four shards of 12 rows.
    assert_eq!(records[0]["statistics"]["rows"], 12.0);
}

#[test]
fn counters_reach_the_model_after_each_step_and_live_through_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let run = |stop: u64| {
        let model = Heads::<f32>::new(8, 1);
        let seen = std::sync::atomic::AtomicU64::new(0);
        let next = || seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let trainer = Trainer::new(&model, Mixed::new(2), config()).unwrap();
        let trainer = trainer.stop_when(|| next() >= stop);
        let mut trainer = if path.exists() {
            trainer.resume_in(RunFolder::open(&path).unwrap(), &()).unwrap()
        } else {
            trainer.start_in(RunFolder::create(&path).unwrap(), &()).unwrap()
        };
        trainer.run().unwrap();
        let seen = NamedParameters::of(&model).get("seen").unwrap().value();
        seen.as_slice().to_vec()
    };
    assert_eq!(run(7), [7.0 * 8.0; 3]);
    assert_eq!(run(u64::MAX), [20.0 * 8.0; 3]);
}

#[test]
fn shards_add_up_and_threads_change_nothing() {
    let after = |shards, accumulation, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let model = Heads::<f64>::new(8, 1);
        let config = TrainConfig {
            shards: Some(shards),
            accumulation,
            optimizer: OptimizerConfig::Sgd(SgdConfig::default()),
            ..TrainConfig::new(3, 24, 0.1)
        };
        let mut trainer = Trainer::new(&model, Mixed::new(2), config).unwrap();
        let report = pool.install(|| trainer.step()).unwrap();
        (report.loss, hash(trainer.parameters()), trainer.parameters().tensors())
    };
    let whole = after(1, 1, 1);
    for (shards, accumulation) in [(2, 1), (3, 2), (24, 1)] {
        let one = after(shards, accumulation, 1);
        assert_eq!(one.1, after(shards, accumulation, 2).1);
        assert!((one.0 - whole.0).abs() < 1e-12);
        for (name, tensor) in &one.2 {
            for (a, b) in tensor.as_slice().iter().zip(whole.2[name].as_slice()) {
                assert!((a - b).abs() < 1e-12, "{name}: {a} {b}");
            }
        }
    }
}

#[test]
fn a_step_without_some_task_leaves_its_parameters_alone() {
    let model = Heads::<f32>::new(8, 1);
    let parameters = NamedParameters::of(&model);
    let before = parameters.tensors();
    let data = Mixed::of_tasks(2, &[0, 2]);
    Trainer::new(&model, data, config()).unwrap().step().unwrap();
    for (name, tensor) in parameters.tensors() {
        let same = tensor.as_slice() == before[&name].as_slice();
        assert_eq!(same, name.starts_with("heads.copy"), "{name}");
    }
}

#[test]
fn tasks_that_do_not_exist_are_errors() {
    let model = Heads::<f32>::new(8, 1);
    let data = Mixed::of_tasks(2, &[0, 3]);
    let error = Trainer::new(&model, data, config()).unwrap().step().unwrap_err();
    assert_eq!(error.to_string(), "batch: task id 3: the data names only 3 tasks");
}

/// The regression task alone.
struct Means(Mixed);

impl Dataset for Means {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.0.next_batch(rows, batch)
    }

    fn cursor(&self) -> Vec<u64> {
        self.0.cursor()
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.0.seek(cursor)
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let all = self.0.held_out(set, 3 * size)?.unwrap();
        let rows: Vec<usize> = (0..size).map(|i| 3 * i + 2).collect();
        let mut batch = Batch::default();
        all.select(&rows, &mut batch);
        Ok(Some(batch))
    }

    fn task_names(&self) -> Vec<String> {
        self.0.task_names()
    }
}

#[test]
fn regression_alone_is_evaluated_and_the_best_has_the_least_loss() {
    let model = Heads::<f32>::new(8, 1);
    let data = Means(Mixed::of_tasks(2, &[2]));
    let config = TrainConfig { eval_every: 10, eval_size: 50, ..config() };
    let summary = Trainer::new(&model, data, config).unwrap().run().unwrap();
    let validation = summary.validation.unwrap().evaluation;
    assert_eq!((validation.overall.count, validation.values.unwrap().values), (0, 50));
    assert_eq!(summary.best.unwrap().step, 20);
    assert_eq!(summary.best.unwrap().loss, Some(validation.loss));
}
