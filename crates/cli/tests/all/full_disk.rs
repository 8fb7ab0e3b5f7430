//! Disks that are full or cannot be written to: nothing that was there is
//! lost, and the error says what is wrong.
//!
//! `cargo test -p specialformer-cli --test all full_disk -- --ignored` mounts
//! small file systems for it, which only root may; it says so and does nothing
//! where it may not.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{cisformer_run, refused, specialformer, text};

/// A run whose checkpoints have about 330 kB.
const CONFIG: &str = cisformer_run!("tight", width 16, feed_forward 32, r#"
steps = 12
batch_size = 8
learning_rate = 5e-3
log_every = 1
eval_every = 3
eval_size = 16
checkpoint_every = 2
"#);

/// A file system in memory that is taken away at the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where it may not be mounted.
    fn new(kilobytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={kilobytes}k");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .status();
        if !status.is_ok_and(|status| status.success()) {
            println!("skipped: mounting a file system needs root");
            return None;
        }
        Some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.path())
            .status();
        assert!(status.unwrap().success(), "remount,{options}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// All files below a folder with what they hold.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

/// The configuration and the weights of the run that nothing disturbs.
fn whole() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.toml"), CONFIG).unwrap();
    let output = specialformer(folder.path(), &["train", "run.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let weights = fs::read(folder.path().join("runs/tight/model.safetensors")).unwrap();
    (folder, weights)
}

#[test]
#[ignore = "mounts file systems, which needs root"]
fn a_full_disk_loses_nothing() {
    let (folder, whole) = whole();
    let at = folder.path();
    let (mut full, mut sizes) = (0, Vec::new());
    for kilobytes in (8..1600).step_by(68) {
        let Some(disk) = Mounted::new(kilobytes) else { return };
        let run = disk.path().join("run");
        let out = run.display().to_string();
        let output = specialformer(at, &["train", "run.toml", "--quiet", "--csv", "--out", &out]);
        let said = text(&output.stderr);
        if output.status.success() {
            sizes.push(kilobytes);
        } else {
            full += 1;
            assert_eq!(output.status.code(), Some(1), "{kilobytes} kB: {said}");
            assert!(said.contains("No space left on device"), "{kilobytes} kB: {said}");
            assert!(said.contains(&out) && !said.contains("panicked"), "{kilobytes} kB: {said}");
            disk.remount("size=64m");
            let how = if run.join("config.toml").is_file() { "--resume" } else { "--quiet" };
            if how == "--quiet" && run.exists() {
                // Not even the configuration had room.
                fs::remove_dir_all(&run).unwrap();
            }
            let output = specialformer(at, &["train", "run.toml", "--out", &out, how]);
            assert!(output.status.success(), "{kilobytes} kB: {}", text(&output.stderr));
        }
        let same = fs::read(run.join("model.safetensors")).unwrap() == whole;
        assert!(same, "{kilobytes} kB: other weights");
        let left = files(&run).into_keys().filter(|path| path.to_string_lossy().contains(".part"));
        assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "{kilobytes} kB");
    }
    println!("{full} disks were full, {sizes:?} kB sufficed");
    assert!(full >= 4 && !sizes.is_empty());
}

#[test]
#[ignore = "mounts file systems, which needs root"]
fn a_disk_that_cannot_be_written_to_is_left_alone() {
    let (folder, _) = whole();
    let at = folder.path();
    let Some(disk) = Mounted::new(16 << 10) else { return };
    let copied = Command::new("cp").arg("-r").arg(at.join("runs/tight")).arg(disk.path()).status();
    assert!(copied.unwrap().success());
    let run = disk.path().join("tight");
    let before = files(&run);
    disk.remount("ro");
    let out = run.display().to_string();
    let other = disk.path().join("other").display().to_string();
    for arguments in [
        ["train", "run.toml", "--out", &out, "--resume"],
        ["train", "run.toml", "--out", &other, "-q"],
    ] {
        let said = refused(at, &arguments);
        assert!(said.contains("Read-only file system"), "{said}");
        assert!(said.contains(&disk.path().display().to_string()), "{said}");
    }
    assert_eq!(files(&run), before);
    let output = specialformer(at, &["eval", &out, "--size", "16"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}
