//! [`RunFolder`]: the files of a run.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use specialformer_checkpoint::{TensorFile, atomic_write, is_leftover_name, remove_leftovers};

use crate::error::{Result, TrainError};

const LOCK: &str = ".lock";
const PREFIX: &str = "step-";
/// The file of an objective's own parameters.
pub(crate) const OBJECTIVE: &str = "objective.safetensors";

/// A run's folder, locked for this process.
///
/// | path | what |
/// |---|---|
/// | `config.toml` | the configuration, written by whoever starts the run |
/// | `metrics.jsonl` | one [`Record`](crate::Record) a line |
/// | `checkpoints/step-N/` | model, optimiser and state after N steps |
/// | `model.safetensors`, `optimizer.safetensors` | the same at the end |
/// | `objective.safetensors`, also in checkpoints | trained parameters of the objective, if it has any |
///
/// A checkpoint is written into a hidden folder that is renamed once all its
/// files are on the disk. So at every moment, also after a crash, the newest
/// checkpoint is complete and its files belong to one step; older ones are
/// removed.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held open: the lock goes with the process, whatever ends it.
    _lock: File,
}

impl RunFolder {
    /// Makes a new run folder. One that exists must be empty, but for what a
    /// killed process had not finished writing, which is removed.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if it holds files; [`TrainError::Io`] if it
    /// cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(TrainError::io(&path, "create the folder"))?;
        if !is_empty(&path)? {
            return Err(TrainError::RunExists { path });
        }
        let lock = lock(&path)?;
        remove_leftovers(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// Opens the folder of a run to be resumed. One that is empty, or in which
    /// a run left its lock and its configuration alone, is of a run that was
    /// killed before its first checkpoint.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] if there is none;
    /// [`TrainError::CheckpointsGone`] if what it made is there without its
    /// checkpoints; [`TrainError::RunLocked`] if another process trains in it;
    /// [`TrainError::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.is_dir() {
            let what = "the folder does not exist";
            return Err(TrainError::NoRun { path, what });
        }
        if !is_run(&path) && !is_empty(&path)? {
            let what = "the folder holds other files";
            return Err(TrainError::NoRun { path, what });
        }
        let lock = lock(&path)?;
        remove_leftovers(&path)?;
        let run = Self { path, _lock: lock };
        run.remove_hidden_checkpoints()?;
        run.check_checkpoints()?;
        Ok(run)
    }

    /// Opens the folder of a run, or makes it where there is none: with
    /// [`Trainer::resume_in`](crate::Trainer::resume_in) a program that goes on
    /// where it was stopped, however often it is started.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if the folder holds files that are not a
    /// run's; else as [`RunFolder::open`] and [`RunFolder::create`].
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self> {
        match Self::create(path) {
            Err(TrainError::RunExists { path }) if is_run(&path) => Self::open(path),
            made => made,
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the configuration is.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Where the metrics are.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Where the final weights are.
    pub fn model_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// Where the final state of the optimiser is.
    pub fn optimizer_path(&self) -> PathBuf {
        self.path.join("optimizer.safetensors")
    }

    /// Where the final parameters of the objective are, if it has any.
    pub fn objective_path(&self) -> PathBuf {
        self.path.join(OBJECTIVE)
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self, text: &str) -> Result<()> {
        Ok(atomic_write(self.config_path(), |file| file.write_all(text.as_bytes()))?)
    }

    /// The newest checkpoint of the run at `path`, with its step. The folder
    /// need not be locked: checkpoints only ever appear whole.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed.
    pub fn latest_checkpoint(path: impl AsRef<Path>) -> Result<Option<(u64, PathBuf)>> {
        Ok(checkpoints(path.as_ref())?.pop())
    }

    /// The newest weights of the run at `path`: the final ones of a run that
    /// ended, or those of its newest checkpoint where it goes on.
    ///
    /// # Errors
    /// [`TrainError::NoWeights`] if it has neither; [`TrainError::Io`];
    /// [`TrainError::Checkpoint`] if the final weights cannot be read.
    pub fn weights(path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        let last = path.join("model.safetensors");
        let checkpoint = Self::latest_checkpoint(path)?;
        match checkpoint {
            // A run that ended may have been gone on with.
            Some((step, checkpoint)) if !last.is_file() || step_of(&last)? < Some(step) => {
                Ok(checkpoint.join("model.safetensors"))
            }
            _ if last.is_file() => Ok(last),
            _ => Err(TrainError::NoWeights {
                path: path.to_owned(),
                what: match path.is_dir() {
                    true => "it holds neither model.safetensors nor a checkpoint",
                    false => "there is no such folder",
                },
            }),
        }
    }

    /// The step of the run's [`RunFolder::weights`]; `None` if their file does
    /// not say.
    ///
    /// # Errors
    /// As [`RunFolder::weights`].
    pub fn weights_step(path: impl AsRef<Path>) -> Result<Option<u64>> {
        step_of(&Self::weights(path)?)
    }

    /// The newest checkpoint older than this one, if there is one.
    pub(crate) fn checkpoint_before(&self, checkpoint: &Path) -> Option<PathBuf> {
        let mut all = checkpoints(&self.path).ok()?;
        all.retain(|(_, path)| path != checkpoint);
        Some(all.pop()?.1)
    }

    /// Makes the checkpoint of a step from what `write` puts into a folder,
    /// then removes older ones.
    pub(crate) fn save_checkpoint(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let parent = self.path.join("checkpoints");
        let name = format!("{PREFIX}{step:08}");
        let (hidden, folder) = (parent.join(format!(".{name}.part")), parent.join(&name));
        let first = !parent.exists();
        fs::create_dir_all(&hidden).map_err(TrainError::io(&hidden, "create the folder"))?;
        // What is half written would keep a full disk full.
        write(&hidden).inspect_err(|_| drop(fs::remove_dir_all(&hidden)))?;
        sync_folder(&hidden).map_err(TrainError::io(&hidden, "sync"))?;
        fs::rename(&hidden, &folder).map_err(TrainError::io(&folder, "rename a checkpoint to"))?;
        sync_folder(&parent).map_err(TrainError::io(&parent, "sync"))?;
        if first {
            sync_folder(&self.path).map_err(TrainError::io(&self.path, "sync"))?;
        }
        for (_, older) in checkpoints(&self.path)?.into_iter().filter(|(s, _)| *s < step) {
            // Hidden first: one that is half removed must not look like one.
            let mut hidden_name = std::ffi::OsString::from(".");
            hidden_name.push(older.file_name().unwrap_or_default());
            hidden_name.push(".old");
            let hidden = parent.join(hidden_name);
            fs::rename(&older, &hidden).map_err(TrainError::io(&older, "remove"))?;
            fs::remove_dir_all(&hidden).map_err(TrainError::io(&hidden, "remove"))?;
        }
        Ok(folder)
    }

    /// Fails if metrics or weights are there without a checkpoint. A run has
    /// one before it writes either, so somebody removed it, and going on would
    /// write a new run over what is left of the old one.
    fn check_checkpoints(&self) -> Result<()> {
        let begun = fs::metadata(self.metrics_path()).is_ok_and(|file| file.len() > 0)
            || self.model_path().exists();
        if begun && checkpoints(&self.path)?.is_empty() {
            return Err(TrainError::CheckpointsGone { path: self.path.clone() });
        }
        Ok(())
    }

    /// Removes what a killed process left of checkpoints that it was writing
    /// or removing.
    fn remove_hidden_checkpoints(&self) -> Result<()> {
        let parent = self.path.join("checkpoints");
        if !parent.is_dir() {
            return Ok(());
        }
        let list = || TrainError::io(&parent, "list the folder");
        for entry in fs::read_dir(&parent).map_err(list())? {
            let entry = entry.map_err(list())?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".step-") && (name.ends_with(".part") || name.ends_with(".old")) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(TrainError::io(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

/// True if a folder holds files that a run begins with. A configuration may be
/// anybody's, who would lose it; a run wrote it if the lock is there too.
fn is_run(path: &Path) -> bool {
    let has = |name| path.join(name).exists();
    has("metrics.jsonl") || has("checkpoints") || has("config.toml") && has(LOCK)
}

/// True if a folder holds nothing but a lock and what was half written.
fn is_empty(path: &Path) -> Result<bool> {
    let list = || TrainError::io(path, "list the folder");
    for entry in fs::read_dir(path).map_err(list())? {
        let entry = entry.map_err(list())?;
        let name = entry.file_name();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if name != LOCK && !(is_file && is_leftover_name(&name.to_string_lossy())) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The step that a file of weights says it is of.
fn step_of(weights: &Path) -> Result<Option<u64>> {
    let file = TensorFile::open(weights)?;
    Ok(file.metadata("step").and_then(|step| step.parse().ok()))
}

/// The whole checkpoints of a run by step.
fn checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let parent = run.join("checkpoints");
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let list = || TrainError::io(&parent, "list the folder");
    let mut found = Vec::new();
    for entry in fs::read_dir(&parent).map_err(list())? {
        let entry = entry.map_err(list())?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn lock(path: &Path) -> Result<File> {
    let file_path = path.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file_path)
        .map_err(TrainError::io(&file_path, "open"))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(TrainError::RunLocked { path: path.to_owned() }),
        // Where the file system has no locks, the run goes on without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Elsewhere a folder cannot be opened for syncing; the rename is journalled.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}
