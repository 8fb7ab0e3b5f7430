//! The ready configurations: every file is valid, and its run trains.

use std::path::PathBuf;

use specialformer::prelude::Schedule;
use specialformer::{RunConfig, Start};

fn files() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

#[test]
fn every_file_is_valid_and_named_after_its_run() {
    let files = files();
    assert!(files.len() >= 8);
    for path in files {
        let config = RunConfig::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(path.file_stem().unwrap().to_str(), Some(config.name.as_str()));
    }
}

#[test]
fn multitask_runs_train_and_are_loaded_again() {
    for path in files() {
        let mut config = RunConfig::load(&path).unwrap();
        if !config.name.starts_with("multitask-") {
            continue;
        }
        config.train.steps = 2;
        config.train.batch_size = 26;
        config.train.schedule = Schedule::Constant { warmup: 0 };
        (config.train.eval_size, config.train.test_size) = (13, Some(13));
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("run");
        let run = specialformer::train(&config, &folder, Start::New, (), || false);
        let run = run.unwrap_or_else(|e| panic!("{}: {e}", config.name));
        assert_eq!(run.summary.step, 2, "{}", config.name);
        let (loaded, _) = specialformer::load(&folder).unwrap();
        assert_eq!(loaded.model, config.model);
    }
}
