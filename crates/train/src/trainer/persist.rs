//! What a run keeps on the disk, and continuing from it.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use specialformer_checkpoint::CheckpointError;
use specialformer_nn::Module;
use specialformer_tensor::Element;

use super::{Run, Trainer};
use crate::error::{Result, TrainError};
use crate::metrics::Record;
use crate::run_folder::{OBJECTIVE, RunFolder};
use crate::state::{MetricsFile, State, load_grown, load_tensors, save_model, save_optimizer};

impl<M, E> Trainer<'_, M, E>
where
    M: Module<E> + Sync + ?Sized,
    E: Element,
{
    /// Keeps metrics and checkpoints in a new run folder. `settings` are the
    /// caller's own (model, data): resuming with others is refused.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be written to.
    pub fn start_in(mut self, folder: RunFolder, settings: &impl Serialize) -> Result<Self> {
        self.state.settings = self.settings(&folder, settings)?;
        self.open_run(folder, None)?;
        self.checkpoint()?;
        Ok(self)
    }

    /// Continues the run in a folder from its newest checkpoint, as if it had
    /// never been interrupted. A run that was killed before its first
    /// checkpoint begins anew.
    ///
    /// # Errors
    /// [`TrainError::ConfigChanged`] listing every setting that differs;
    /// [`TrainError::Checkpoint`] naming the file and every tensor that does
    /// not fit the model; [`TrainError::Damaged`] with a remedy if files
    /// of the checkpoint are missing or not whole; [`TrainError::State`]; [`TrainError::Io`].
    pub fn resume_in(mut self, folder: RunFolder, settings: &impl Serialize) -> Result<Self> {
        let settings = self.settings(&folder, settings)?;
        let Some((step, checkpoint)) = RunFolder::latest_checkpoint(folder.path())? else {
            self.state.settings = settings;
            self.open_run(folder, None)?;
            self.checkpoint()?;
            return Ok(self);
        };
        let state = State::load(&checkpoint).map_err(|e| damaged(e, &folder, &checkpoint))?;
        state.check_settings(&checkpoint, &settings)?;
        load_tensors(&checkpoint, &self.parameters, &self.own, self.optimizer.as_mut())
            .map_err(|e| damaged(e, &folder, &checkpoint))?;
        self.feed.seek(&state.cursor)?;
        tracing::info!(step, folder = %checkpoint.display(), "resuming");
        self.state = State { settings, ..state };
        self.open_run(folder, Some((step, checkpoint)))?;
        Ok(self)
    }

    /// Continues the run in a folder, whose newest checkpoint is of a smaller
    /// model, with the weights that this trainer's model has: those of the
    /// checkpoint, grown. The optimiser's state of what is new is zero. The
    /// checkpoint stays as it is, so that a run that is interrupted here grows
    /// again when it is resumed.
    ///
    /// # Errors
    /// As [`Trainer::resume_in`]; [`TrainError::State`] if there is no
    /// checkpoint, or one of a larger model.
    pub fn resume_grown_in(mut self, folder: RunFolder, settings: &impl Serialize) -> Result<Self> {
        let settings = self.settings(&folder, settings)?;
        let Some((step, checkpoint)) = RunFolder::latest_checkpoint(folder.path())? else {
            let path = folder.path().to_owned();
            return Err(TrainError::State { path, what: "no checkpoint to grow from".into() });
        };
        let state = State::load(&checkpoint).map_err(|e| damaged(e, &folder, &checkpoint))?;
        state.check_settings(&checkpoint, &settings)?;
        load_grown(&checkpoint, &self.own, self.optimizer.as_mut())
            .map_err(|e| damaged(e, &folder, &checkpoint))?;
        self.feed.seek(&state.cursor)?;
        tracing::info!(step, folder = %checkpoint.display(), "the model grows");
        self.state = State { settings, ..state };
        self.open_run(folder, Some((step, checkpoint)))?;
        Ok(self)
    }

    pub(super) fn settings(&self, folder: &RunFolder, settings: &impl Serialize) -> Result<Value> {
        // Through text, so that numbers compare as they were stored.
        let text = serde_json::to_string(settings).and_then(|run| {
            let run: Value = serde_json::from_str(&run)?;
            let all = json!({
                "train": self.config,
                "run": run,
                "precision": E::NAME,
            });
            serde_json::from_str(&all.to_string())
        });
        text.map_err(|e| TrainError::State {
            path: folder.path().to_owned(),
            what: format!("settings: {e}"),
        })
    }

    pub(super) fn open_run(
        &mut self,
        folder: RunFolder,
        checkpoint: Option<(u64, PathBuf)>,
    ) -> Result<()> {
        let metrics = MetricsFile::open_at(folder.metrics_path(), self.state.metrics_bytes)?;
        self.run = Some(Run { folder, metrics, checkpoint });
        Ok(())
    }

    pub(super) fn write(&mut self, record: &Record) -> Result<()> {
        match &mut self.run {
            Some(run) => run.metrics.write(record),
            None => Ok(()),
        }
    }

    /// Saves model, optimiser and state of this step, if there is a run folder
    /// and it was not done yet.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        let step = self.state.step;
        let Some(run) = &mut self.run else {
            return Ok(());
        };
        let saved = run.checkpoint.as_ref().map(|(step, _)| *step);
        if saved == Some(step) {
            return Ok(());
        }
        let optimizer = self.optimizer.state();
        let weights = self.all.iter().map(|(name, p)| (name, p.value()));
        let moments = optimizer.tensors.iter();
        let moments = moments.map(|(name, tensor)| (name.as_str(), tensor.clone()));
        for (name, tensor) in weights.chain(moments) {
            let count = tensor.count_non_finite();
            if count > 0 {
                let total = tensor.len();
                let origin = format!("`{name}` holds {count} non-finite values of {total}");
                return Err(self.non_finite(step, "what was to be saved", origin));
            }
        }
        self.state.metrics_bytes = run.metrics.sync()?;
        self.state.cursor = self.feed.cursor().to_vec();
        let (state, metadata) = (&self.state, &self.metadata);
        let (parameters, own) = (&self.parameters, &self.own);
        let path = run.folder.save_checkpoint(step, |folder| {
            save_model(&folder.join("model.safetensors"), parameters, step, metadata)?;
            save_optimizer(&folder.join("optimizer.safetensors"), &optimizer)?;
            if !own.is_empty() {
                save_model(&folder.join(OBJECTIVE), own, step, &[])?;
            }
            state.save(folder)
        })?;
        tracing::debug!(step, folder = %path.display(), "saved a checkpoint");
        self.observer.on_checkpoint(step, &path);
        run.checkpoint = Some((step, path));
        Ok(())
    }
}

/// True if a file is not there or not whole. A system that refuses to read it
/// says nothing of what is in it.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | UnexpectedEof | InvalidData)
}

/// Says what to do about a checkpoint whose files are not what was written.
fn damaged(source: TrainError, folder: &RunFolder, checkpoint: &Path) -> TrainError {
    let is_damaged = match &source {
        TrainError::Io { source, .. }
        | TrainError::Checkpoint(CheckpointError::Io { source, .. }) => is_damage(source),
        TrainError::Checkpoint(error) => !matches!(
            error,
            CheckpointError::NewerVersion { .. } | CheckpointError::Mismatch { .. }
        ),
        TrainError::State { .. } => true,
        _ => false,
    };
    if !is_damaged {
        return source;
    }
    let remedy = match folder.checkpoint_before(checkpoint) {
        Some(older) => format!("remove {} to go on from {}", checkpoint.display(), older.display()),
        None => "there is no older checkpoint to go on from: train anew in another folder".into(),
    };
    TrainError::Damaged { source: Box::new(source), remedy }
}
