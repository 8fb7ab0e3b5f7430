//! An interrupted and resumed run is the run that was never interrupted.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{Mlp, Sums, untimed_metrics};
use specialformer_nn::Schedule;
use specialformer_nn::optim::SgdConfig;
use specialformer_train::{
    Batch, BoxError, Dataset, HeldOut, Observer, OptimizerConfig, Outcome, RunFolder, StepReport,
    Summary, TrainConfig, Trainer,
};

fn config() -> TrainConfig {
    TrainConfig {
        schedule: Schedule::Cosine { warmup: 5, floor: 0.1 },
        clip_norm: Some(1.0),
        shards: Some(3),
        accumulation: 2,
        log_every: 4,
        eval_every: 10,
        eval_size: 100,
        ..TrainConfig::new(40, 25, 0.02)
    }
}

/// Counts steps; the trainer is asked to stop at some of them.
struct Counter<'a>(&'a AtomicU64);

impl Observer for Counter<'_> {
    fn on_step(&mut self, step: &StepReport) {
        self.0.store(step.step, Ordering::Relaxed);
    }
}

/// Starts or continues a run that is stopped after `stop` steps.
fn train(folder: &Path, config: TrainConfig, stop: u64) -> Summary {
    let model = Mlp::<f32>::new(16, 1).with_noise(0.1);
    let seen = AtomicU64::new(0);
    let resume = folder.exists();
    let run = if resume { RunFolder::open(folder) } else { RunFolder::create(folder) }.unwrap();
    let trainer = Trainer::new(&model, Sums::new(2), config)
        .unwrap()
        .observer(Counter(&seen))
        .stop_when(|| seen.load(Ordering::Relaxed) >= stop);
    let trainer =
        if resume { trainer.resume_in(run, &"toy") } else { trainer.start_in(run, &"toy") };
    trainer.unwrap().run().unwrap()
}

#[test]
fn resuming_changes_nothing() {
    for optimizer in [OptimizerConfig::default(), OptimizerConfig::Sgd(SgdConfig::default())] {
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        let config = TrainConfig { optimizer, ..config() };
        assert_eq!(train(&whole, config.clone(), u64::MAX).outcome, Outcome::Completed);

        // 17 lies between two records and two evaluations.
        let summary = train(&parts, config.clone(), 17);
        assert_eq!((summary.outcome, summary.step), (Outcome::Interrupted, 17));
        assert!(!parts.join("model.safetensors").exists());
        // What a killed run wrote after its last checkpoint goes.
        let metrics = parts.join("metrics.jsonl");
        let mut text = fs::read_to_string(&metrics).unwrap();
        text.push_str("{\"kind\":\"train\",\"step\":18,\"lo");
        fs::write(&metrics, text).unwrap();
        let summary = train(&parts, config, u64::MAX);
        assert_eq!((summary.outcome, summary.step), (Outcome::Completed, 40));

        for file in ["model.safetensors", "optimizer.safetensors"] {
            let same = fs::read(whole.join(file)).unwrap() == fs::read(parts.join(file)).unwrap();
            assert!(same, "{file} differs");
        }
        let metrics = untimed_metrics(&whole);
        assert_eq!(metrics, untimed_metrics(&parts));
        // 40 / 4 records, 40 / 10 evaluations, one test.
        assert_eq!(metrics.len(), 10 + 4 + 1);
        assert_eq!(metrics.last().unwrap()["set"], "test");
        let checkpoints = fs::read_dir(parts.join("checkpoints")).unwrap();
        let names: Vec<_> = checkpoints.map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["step-00000040"]);
    }
}

#[test]
fn a_finished_run_resumes_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let config = TrainConfig { target_accuracy: Some(0.2), ..config() };
    let first = train(&path, config.clone(), u64::MAX);
    assert_eq!((first.outcome, first.step), (Outcome::TargetReached, 10));
    let metrics = untimed_metrics(&path);
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let second = train(&path, config, u64::MAX);
    assert_eq!((second.outcome, second.step), (Outcome::TargetReached, 10));
    assert_eq!(untimed_metrics(&path), metrics);
    assert!(path.join("model.safetensors").is_file());
}

#[test]
fn a_larger_time_budget_continues_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let budget = |seconds| TrainConfig { time_budget_seconds: Some(seconds), ..config() };
    let summary = train(&path, budget(1e-9), u64::MAX);
    assert_eq!((summary.outcome, summary.step), (Outcome::TimeBudget, 1));
    let summary = train(&path, budget(1e-9), u64::MAX);
    assert_eq!((summary.outcome, summary.step), (Outcome::TimeBudget, 1));
    let summary = train(&path, budget(1e9), u64::MAX);
    assert_eq!((summary.outcome, summary.step), (Outcome::Completed, 40));
}

#[test]
fn a_run_without_a_checkpoint_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, path) = (folder.path().join("whole"), folder.path().join("run"));
    train(&whole, config(), u64::MAX);
    drop(RunFolder::create(&path).unwrap());
    fs::write(path.join("metrics.jsonl"), "").unwrap();
    train(&path, config(), u64::MAX);
    let model = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
    assert!(model(&whole) == model(&path));
    assert_eq!(untimed_metrics(&whole), untimed_metrics(&path));
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    train(&path, config(), u64::MAX);
    fs::remove_dir_all(path.join("checkpoints")).unwrap();
    let gone = format!("{}: its checkpoints are gone; it cannot be resumed", path.display());
    let refused = || {
        assert_eq!(RunFolder::open(&path).unwrap_err().to_string(), gone);
        assert_eq!(RunFolder::open_or_create(&path).unwrap_err().to_string(), gone);
    };
    let model = fs::read(path.join("model.safetensors")).unwrap();
    refused();
    fs::write(path.join("metrics.jsonl"), "").unwrap();
    refused();
    assert!(fs::read(path.join("model.safetensors")).unwrap() == model);
}

#[test]
fn a_folder_of_something_else_is_no_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letter.txt"), "Dear").unwrap();
    let error = RunFolder::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("no run to resume here: the folder holds other files"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_run_that_was_killed_in_its_first_write_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    for open in [RunFolder::create, RunFolder::open, RunFolder::open_or_create] {
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(".lock"), "").unwrap();
        fs::write(path.join(".config.toml.abc123.part"), "kind").unwrap();
        drop(open(path.clone()).unwrap());
        let names = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [".lock"]);
    }
}

/// Also alone: whoever put it there would find another in its place.
#[test]
fn a_configuration_that_no_run_wrote_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exp");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config.toml"), "mine").unwrap();
    for more in ["letter.txt", ".letter.txt.abc123.part"] {
        let error = RunFolder::open(&path).unwrap_err().to_string();
        assert!(error.ends_with("the folder holds other files"), "{error}");
        let error = RunFolder::open_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("already holds files"), "{error}");
        fs::write(path.join(more), "Dear").unwrap();
    }
    assert_eq!(fs::read_to_string(path.join("config.toml")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 3);
    // The same from a run, which locked its folder first.
    fs::write(path.join(".lock"), "").unwrap();
    drop(RunFolder::open(&path).unwrap());
}

#[test]
fn a_folder_is_opened_or_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    drop(RunFolder::open_or_create(&path).unwrap());
    fs::write(path.join("metrics.jsonl"), "").unwrap();
    let held = RunFolder::open_or_create(&path).unwrap();
    let error = RunFolder::open_or_create(&path).unwrap_err().to_string();
    assert!(error.ends_with("another process is training in this run folder"), "{error}");
    drop(held);
    // Of a run that was killed when it had written its configuration.
    fs::remove_file(path.join("metrics.jsonl")).unwrap();
    fs::write(path.join("config.toml"), "").unwrap();
    drop(RunFolder::open_or_create(&path).unwrap());
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("letter.txt"), "Dear").unwrap();
    let error = RunFolder::open_or_create(&other).unwrap_err().to_string();
    assert!(error.contains("already holds files"), "{error}");
}

#[test]
fn runs_are_guarded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    train(&path, config(), 3);
    let shown = path.display();
    let message = |error: specialformer_train::TrainError| error.to_string();

    let before = fs::read(path.join("metrics.jsonl")).unwrap();
    assert_eq!(
        message(RunFolder::create(&path).unwrap_err()),
        format!("{shown}: already holds files; resume the run, or choose another folder")
    );
    let held = RunFolder::open(&path).unwrap();
    assert_eq!(
        message(RunFolder::open(&path).unwrap_err()),
        format!("{shown}: another process is training in this run folder")
    );
    drop(held);
    let missing = folder.path().join("missing");
    assert_eq!(
        message(RunFolder::open(&missing).unwrap_err()),
        format!("{}: no run to resume here: the folder does not exist", missing.display())
    );
    fs::write(folder.path().join("file"), "").unwrap();
    let below = folder.path().join("file/run");
    let error = message(RunFolder::create(&below).unwrap_err());
    assert!(error.starts_with(&format!("{}: cannot create the folder: ", below.display())));

    let model = Mlp::<f32>::new(16, 1);
    let changed = TrainConfig { learning_rate: 0.5, ..config() };
    let error = Trainer::new(&model, Sums::new(2), changed)
        .unwrap()
        .resume_in(RunFolder::open(&path).unwrap(), &"other")
        .unwrap_err();
    let checkpoint = path.join("checkpoints/step-00000003");
    assert_eq!(
        message(error),
        format!(
            "{}: the settings differ from the run's: run: \"toy\" in the run, \"other\" now; \
             train.learning_rate: 0.02 in the run, 0.5 now",
            checkpoint.display()
        )
    );

    let model = Mlp::<f32>::new(17, 1);
    let error = Trainer::new(&model, Sums::new(2), config())
        .unwrap()
        .resume_in(RunFolder::open(&path).unwrap(), &"toy")
        .unwrap_err();
    let error = message(error);
    let file = checkpoint.join("model.safetensors");
    assert!(error.starts_with(&format!("{}: tensors do not match: ", file.display())), "{error}");
    assert!(error.contains("`hidden.weight`"), "{error}");
    assert_eq!(fs::read(path.join("metrics.jsonl")).unwrap(), before);
}

/// Refuses its own cursor.
struct Stubborn(Sums);

impl Dataset for Stubborn {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.0.next_batch(rows, batch)
    }

    fn cursor(&self) -> Vec<u64> {
        vec![1, 2]
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.0.seek(cursor)
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        self.0.held_out(set, size)
    }
}

#[test]
fn an_unusable_cursor_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let model = Mlp::<f32>::new(4, 1);
    let make = || Trainer::new(&model, Stubborn(Sums::new(1)), config()).unwrap();
    make().start_in(RunFolder::create(&path).unwrap(), &()).unwrap();
    let error = make().resume_in(RunFolder::open(&path).unwrap(), &()).unwrap_err();
    assert_eq!(error.to_string(), "dataset: a cursor of 2 numbers");
}
