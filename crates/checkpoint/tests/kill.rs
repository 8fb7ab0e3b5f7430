//! A process killed while saving: the file is whole, old or new.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use specialformer_checkpoint::{TensorFile, TensorWriter, remove_leftovers};
use specialformer_tensor::Tensor;

const TARGET: &str = "SPECIALFORMER_TEST_SAVE_TO";

fn save(path: &Path, generation: u64) {
    let mut writer = TensorWriter::new();
    writer.tensor("w", &Tensor::full([1 << 18], generation as f32)).unwrap();
    writer.metadata_json("generation", &generation).unwrap();
    writer.save(path).unwrap();
}

/// Runs in the child process that the test below starts: saves until killed.
#[test]
fn child_saving_forever() {
    let Some(path) = std::env::var_os(TARGET).map(PathBuf::from) else { return };
    for generation in 1.. {
        save(&path, generation);
    }
}

#[test]
fn a_killed_save_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save(&path, 0);
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_saving_forever"])
            .env(TARGET, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(15 + 7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let file = TensorFile::open(&path).unwrap();
        let generation: u64 = file.metadata_json("generation").unwrap();
        let weights: Tensor<f32> = file.tensor("w").unwrap();
        assert!(weights.as_slice().iter().all(|&v| v == generation as f32), "round {round}");
    }
    remove_leftovers(folder.path()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
