//! Training on several tasks: terms, projection, resuming, threads.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::heads::{Heads, Mixed, TASKS};
use crate::common::{hash, untimed_metrics};
use specialformer_nn::NamedParameters;
use specialformer_nn::optim::SgdConfig;
use specialformer_tensor::{Element, Seed};
use specialformer_train::{
    MultiTask, MultiTaskConfig, OptimizerConfig, RunFolder, TrainConfig, TrainError, Trainer,
};

fn multi_task(text: &str) -> MultiTaskConfig {
    serde_json::from_str(text).unwrap()
}

/// Every term, uncertainty and PCGrad.
const EVERYTHING: &str = r#"{
    "weights": {"kind": "uncertainty", "initial": 0.1},
    "label_smoothing": 0.1,
    "pcgrad": {"exclude": ["offset"]},
    "alignment": {"weight": 0.1},
    "sharing": [{"pattern": "offset", "weight": 0.01}],
    "distillation": {"weight": 0.5, "temperature": 2.0, "hidden": {"weight": 0.1,
        "projection": {"kind": "learned", "student": 8, "teacher": 12}}},
    "contrastive": {"weight": 0.1}
}"#;

fn with_settings(text: &str, change: impl FnOnce(&mut MultiTaskConfig)) -> MultiTaskConfig {
    let mut config = multi_task(text);
    change(&mut config);
    config
}

fn names() -> Vec<String> {
    TASKS.map(String::from).to_vec()
}

fn objective<'a, E: Element>(
    config: MultiTaskConfig,
    model: &Heads<E>,
    teacher: &'a Heads<E>,
) -> MultiTask<'a, E> {
    let parameters = NamedParameters::of(model);
    MultiTask::new(config, names(), &parameters, Seed::new(1)).unwrap().with_teacher(teacher)
}

fn config() -> TrainConfig {
    TrainConfig {
        shards: Some(2),
        accumulation: 2,
        log_every: 4,
        eval_every: 10,
        eval_size: 60,
        clip_norm: Some(1.0),
        ..TrainConfig::new(24, 24, 0.02)
    }
}

fn train(folder: &Path, stop: u64) {
    let (model, teacher) = (Heads::<f32>::new(8, 1), Heads::<f32>::new(12, 2));
    let objective = objective(multi_task(EVERYTHING), &model, &teacher);
    let asked = AtomicU64::new(0);
    let trainer = Trainer::with_objective(&model, Mixed::new(3), config(), objective).unwrap();
    let trainer = trainer.stop_when(|| asked.fetch_add(1, Ordering::Relaxed) >= stop);
    let mut trainer = if folder.exists() {
        trainer.resume_in(RunFolder::open(folder).unwrap(), &()).unwrap()
    } else {
        trainer.start_in(RunFolder::create(folder).unwrap(), &()).unwrap()
    };
    trainer.run().unwrap();
}

#[test]
fn resuming_changes_nothing_with_everything_on() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    train(&whole, u64::MAX);
    train(&parts, 9);
    train(&parts, 6);
    train(&parts, u64::MAX);
    for file in ["model.safetensors", "optimizer.safetensors", "objective.safetensors"] {
        let same = fs::read(whole.join(file)).unwrap() == fs::read(parts.join(file)).unwrap();
        assert!(same, "{file} differs");
    }
    let records = untimed_metrics(&whole);
    assert_eq!(records, untimed_metrics(&parts));
    let terms = records[0]["terms"].as_object().unwrap();
    let keys: Vec<_> = terms.keys().map(String::as_str).collect();
    let wanted = [
        "alignment",
        "contrastive",
        "distillation",
        "hidden_match",
        "loss.copy",
        "loss.mean",
        "loss.sum",
        "sharing",
    ];
    assert_eq!(keys, wanted);
    let sum: f64 = terms.values().map(|v| v.as_f64().unwrap()).sum();
    assert!((sum - records[0]["loss"].as_f64().unwrap()).abs() < 1e-5);
    let statistics = records[0]["statistics"].as_object().unwrap();
    let keys: Vec<_> = statistics.keys().map(String::as_str).collect();
    let wanted = [
        "gradient_conflicts",
        "gradient_cosine",
        "gradient_cosine_min",
        "rows",
        "weight.copy",
        "weight.mean",
        "weight.sum",
    ];
    assert_eq!(keys, wanted);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let after = |text: &str, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (model, teacher) = (Heads::<f32>::new(8, 1), Heads::<f32>::new(12, 2));
        let objective = objective(multi_task(text), &model, &teacher);
        let mut trainer =
            Trainer::with_objective(&model, Mixed::new(3), config(), objective).unwrap();
        pool.install(|| trainer.run()).unwrap();
        (hash(trainer.parameters()), hash(trainer.objective_parameters()))
    };
    let without_pcgrad = EVERYTHING.replace(r#""pcgrad": {"exclude": ["offset"]},"#, "");
    for text in [EVERYTHING, &without_pcgrad] {
        assert_eq!(after(text, 1), after(text, 2));
    }
    assert_ne!(after(EVERYTHING, 1), after(&without_pcgrad, 1));
}

/// Weights after one plain step, so that they show the gradient.
fn step(config: MultiTaskConfig, train: TrainConfig) -> (f64, Vec<f64>) {
    let (model, teacher) = (Heads::<f64>::new(8, 1), Heads::<f64>::new(12, 2));
    let objective = objective(config, &model, &teacher);
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let train = TrainConfig { optimizer, clip_norm: None, ..train };
    let mut trainer = Trainer::with_objective(&model, Mixed::new(3), train, objective).unwrap();
    let report = trainer.step().unwrap();
    let parameters = trainer.parameters().iter().chain(trainer.objective_parameters().iter());
    (report.loss, parameters.flat_map(|(_, p)| p.value().as_slice().to_vec()).collect())
}

fn assert_same(a: &(f64, Vec<f64>), b: &(f64, Vec<f64>)) {
    assert!((a.0 - b.0).abs() < 1e-12, "{} {}", a.0, b.0);
    assert_eq!(a.1.len(), b.1.len());
    for (x, y) in a.1.iter().zip(&b.1) {
        assert!((x - y).abs() < 1e-12, "{x} {y}");
    }
}

#[test]
fn shards_add_up_to_the_step_where_terms_do_not_couple_rows() {
    let one = TrainConfig { shards: Some(1), accumulation: 1, ..config() };
    for average in ["task", "target"] {
        let settings = || {
            let mut config = with_settings(EVERYTHING, |c| {
                (c.pcgrad, c.alignment, c.contrastive) = (None, None, None);
            });
            config.average = serde_json::from_str(&format!("\"{average}\"")).unwrap();
            config
        };
        let whole = step(settings(), one.clone());
        for (shards, accumulation) in [(2, 1), (3, 2), (8, 3)] {
            let cut = TrainConfig { shards: Some(shards), accumulation, ..config() };
            assert_same(&step(settings(), cut), &whole);
        }
    }
}

#[test]
fn by_target_the_loss_is_that_of_the_default_objective() {
    let ours = step(multi_task(r#"{"average": "target"}"#), config());
    let model = Heads::<f64>::new(8, 1);
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let train = TrainConfig { optimizer, clip_norm: None, ..config() };
    let mut trainer = Trainer::new(&model, Mixed::new(3), train).unwrap();
    let report = trainer.step().unwrap();
    let weights = trainer.parameters().iter();
    let weights = weights.flat_map(|(_, p)| p.value().as_slice().to_vec()).collect();
    assert_same(&ours, &(report.loss, weights));
}

#[test]
fn without_conflict_projection_adds_up_all_gradients() {
    // All that is shared is excluded, so nothing is projected.
    let settings = |pcgrad: bool| {
        with_settings(EVERYTHING, |c| {
            c.pcgrad = pcgrad.then(|| serde_json::from_str(r#"{"exclude": ["*"]}"#).unwrap());
            if let Some(alignment) = &mut c.alignment {
                alignment.global = true;
            }
            if let Some(contrastive) = &mut c.contrastive {
                contrastive.global = true;
            }
        })
    };
    let one = TrainConfig { shards: None, accumulation: 1, ..config() };
    assert_same(&step(settings(true), one.clone()), &step(settings(false), one));
}

#[test]
fn measuring_conflicts_changes_nothing_else() {
    let after = |every: u64| {
        let model = Heads::<f32>::new(8, 1);
        let multi_task = MultiTaskConfig { measure_conflict_every: every, ..Default::default() };
        let train = TrainConfig { multi_task: Some(multi_task), ..config() };
        let mut trainer = Trainer::new(&model, Mixed::new(3), train).unwrap();
        trainer.run().unwrap();
        hash(trainer.parameters())
    };
    assert_eq!(after(0), after(5));
}

#[test]
fn uncertainties_go_where_their_gradient_vanishes() {
    let model = Heads::<f64>::new(8, 1);
    NamedParameters::of(&model).freeze(|_| true);
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::create(folder.path().join("run")).unwrap();
    let multi_task = multi_task(r#"{"weights": {"kind": "uncertainty"}}"#);
    let train = TrainConfig {
        multi_task: Some(multi_task),
        optimizer: OptimizerConfig::Sgd(SgdConfig::default()),
        clip_norm: None,
        log_every: 300,
        eval_every: 0,
        ..TrainConfig::new(600, 24, 0.0)
    };
    let train = TrainConfig { learning_rate: 0.2, ..train };
    let trainer = Trainer::new(&model, Mixed::constant(3), train).unwrap();
    let mut trainer = trainer.start_in(run, &()).unwrap();
    trainer.run().unwrap();
    let s = trainer.objective_parameters().get("log_variance").unwrap().value();
    let records = untimed_metrics(&folder.path().join("run"));
    let loss = |task: &str| records[0]["tasks"][task]["loss"].as_f64().unwrap();
    for (task, want) in [(0, 2.0 * loss("sum")), (1, 2.0 * loss("copy")), (2, loss("mean"))] {
        let got = s.as_slice()[task].exp();
        assert!((got / want - 1.0).abs() < 1e-3, "{}: {got} {want}", TASKS[task]);
    }
}

#[test]
fn tasks_without_a_step_stay_as_they_are() {
    let model = Heads::<f32>::new(8, 1);
    let train = TrainConfig {
        multi_task: Some(multi_task(r#"{"weights": {"kind": "uncertainty"}}"#)),
        ..config()
    };
    let mut trainer = Trainer::new(&model, Mixed::of_tasks(3, &[0, 2]), train).unwrap();
    trainer.step().unwrap();
    let s = trainer.objective_parameters().get("log_variance").unwrap().value();
    let moved: Vec<bool> = s.as_slice().iter().map(|&s| s != 0.0).collect();
    assert_eq!(moved, [true, false, true]);
}

#[test]
fn a_student_learns_from_its_teacher_alone() {
    let teacher = Heads::<f32>::new(48, 1);
    let train = TrainConfig { eval_size: 300, log_every: 100, ..TrainConfig::new(600, 48, 0.01) };
    Trainer::new(&teacher, Mixed::new(2), train.clone()).unwrap().run().unwrap();
    let student = Heads::<f32>::new(48, 5);
    let settings = r#"{"weights": {"kind": "fixed", "tasks": {"sum": 0, "copy": 0, "mean": 0}},
        "distillation": {"weight": 1, "hidden": {"weight": 0.1}}}"#;
    let objective = objective(multi_task(settings), &student, &teacher);
    let mut trainer = Trainer::with_objective(&student, Mixed::new(7), train, objective).unwrap();
    let test = trainer.run().unwrap().test.unwrap().evaluation;
    assert!(test.tasks["copy"].classes.unwrap().accuracy > 0.9, "{test:?}");
    assert!(test.tasks["sum"].classes.unwrap().accuracy > 0.8, "{test:?}");
    assert!(test.tasks["mean"].values.unwrap().r_squared.unwrap() > 0.8, "{test:?}");
}

#[test]
fn what_cannot_work_is_named() {
    let model = Heads::<f32>::new(8, 1);
    let error = |text: &str, change: fn(&mut TrainConfig)| -> TrainError {
        let mut train = TrainConfig { multi_task: Some(multi_task(text)), ..config() };
        change(&mut train);
        match Trainer::new(&model, Mixed::new(3), train) {
            Ok(mut trainer) => trainer.step().unwrap_err(),
            Err(error) => error,
        }
    };
    let message = |text: &str| error(text, |_| {}).to_string();
    assert_eq!(
        message(r#"{"contrastive": {"weight": 1, "global": true}}"#),
        "train: shards = 2: must be 1: a global term goes over the whole step at once"
    );
    let accumulated = error(r#"{"alignment": {"weight": 1, "global": true}}"#, |c| c.shards = None);
    assert_eq!(
        accumulated.to_string(),
        "train: accumulation = 2: must be 1: a global term goes over the whole step at once"
    );
    assert_eq!(
        message(r#"{"distillation": {"weight": 1}}"#),
        "train: multi_task.distillation = set: no teacher was given; see MultiTask::with_teacher"
    );
    assert_eq!(
        message(r#"{"weights": {"kind": "fixed", "tasks": {"sort": 1}}}"#),
        "train: multi_task.weights.tasks = sort: there is no such task; there are sum, copy, mean"
    );
    assert_eq!(
        message(r#"{"contrastive": {"weight": 1, "representation": "routers"}}"#),
        "model: the model has no representation `routers`"
    );
}
