//! Training that is killed at random moments: every checkpoint on the disk
//! loads, and resuming reaches the same end as the run that nobody killed.
//!
//! `SPECIALFORMER_KILLS=50 cargo test -p specialformer-train --test kill`
//! kills as often as it says.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mlp, Sums, untimed_metrics};
use specialformer_checkpoint::TensorFile;
use specialformer_tensor::Seed;
use specialformer_train::{RunFolder, TrainConfig, Trainer};

/// What a training process prints before its first step.
const READY: &str = "the first step is next";

const CHILD: &str = "SPECIALFORMER_KILL_TEST_RUN";

fn config() -> TrainConfig {
    TrainConfig {
        checkpoint_every: 2,
        log_every: 3,
        eval_every: 7,
        eval_size: 64,
        ..TrainConfig::new(60, 32, 0.01)
    }
}

/// Trains to the end, from wherever the run is.
fn train(path: &Path) {
    let model = Mlp::<f32>::new(64, 1).with_noise(0.1);
    let trainer = Trainer::new(&model, Sums::new(2), config()).unwrap();
    let mut trainer = if path.exists() {
        trainer.resume_in(RunFolder::open(path).unwrap(), &())
    } else {
        trainer.start_in(RunFolder::create(path).unwrap(), &())
    }
    .unwrap();
    println!("{READY}");
    trainer.run().unwrap();
}

/// Does nothing as a test; the other test runs it in a process of its own.
#[test]
fn training_process() {
    if let Some(path) = std::env::var_os(CHILD) {
        train(&PathBuf::from(path));
    }
}

/// When to kill a process.
#[derive(Clone, Copy)]
enum Kill {
    /// After this much time since its start.
    FromStart(Duration),
    /// After this much time of training.
    FromFirstStep(Duration),
    Never,
}

/// Starts training in another process and kills it, or lets it run to its
/// end. True if it was killed; and how long it trained.
fn train_in_process(path: &Path, kill: Kill) -> (bool, Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "training_process", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Kill::FromStart(delay) = kill {
        std::thread::sleep(delay);
        child.kill().unwrap();
    }
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    lines.find(|line| line.contains(READY));
    let start = Instant::now();
    if let Kill::FromFirstStep(delay) = kill {
        std::thread::sleep(delay);
        child.kill().unwrap();
    }
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    let trained = start.elapsed();
    let killed = output.status.code().is_none();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "training failed: {errors}");
    (killed, trained)
}

/// Reads every checkpoint on the disk; each must be of one step throughout.
fn check_checkpoints(run: &Path) -> usize {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else {
        return 0;
    };
    let mut found = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(step) = name.strip_prefix("step-") else {
            continue;
        };
        let step: u64 = step.parse().unwrap();
        for (file, key) in [("model", "step"), ("optimizer", "steps")] {
            let file = TensorFile::open(path.join(format!("{file}.safetensors"))).unwrap();
            assert_eq!(file.metadata(key), Some(step.to_string().as_str()));
            let names: Vec<String> = file.names().map(str::to_owned).collect();
            assert!(names.len() >= 4);
            for name in names {
                file.tensor::<f32>(&name).unwrap();
            }
        }
        let state = fs::read(path.join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        assert_eq!((&state["step"], &state["cursor"][0]), (&step.into(), &step.into()));
        let metrics = fs::metadata(run.join("metrics.jsonl")).unwrap().len();
        assert!(state["metrics_bytes"].as_u64().unwrap() <= metrics);
        found += 1;
    }
    found
}

#[test]
fn killed_runs_reach_the_same_end() {
    let wanted: usize = std::env::var("SPECIALFORMER_KILLS").map_or(5, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let start = Instant::now();
    let (_, training) = train_in_process(&whole, Kill::Never);
    let all = start.elapsed();

    let mut rng = Seed::new(9).stream("kills");
    let (mut kills, mut run, mut checked) = (0, 0, 0);
    while kills < wanted {
        run += 1;
        let path = folder.path().join(format!("run-{run}"));
        loop {
            let delay = rng.uniform();
            let kill = if kills >= wanted {
                Kill::Never
            } else if rng.below(4) == 0 {
                Kill::FromStart(all.mul_f64(delay / 2.0))
            } else {
                Kill::FromFirstStep(training.mul_f64(delay / 3.0))
            };
            let (killed, _) = train_in_process(&path, kill);
            kills += usize::from(killed);
            checked += check_checkpoints(&path);
            if !killed {
                break;
            }
        }
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let same = fs::read(whole.join(file)).unwrap() == fs::read(path.join(file)).unwrap();
            assert!(same, "{file} differs after kills");
        }
        assert_eq!(untimed_metrics(&whole), untimed_metrics(&path));
    }
    println!("{kills} kills over {run} runs, {checked} checkpoints read");
}
