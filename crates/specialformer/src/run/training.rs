//! Training a run, in stages where its model grows.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use specialformer_nn::NamedParameters;
use specialformer_tensor::Seed;
use specialformer_train::{
    CrossEntropy, Dataset, Elastic, MultiTask, Observer, Outcome, RunFolder, Summary, TrainConfig,
    TrainError, Trainer,
};

use super::{MODEL_KEY, RunConfig, load, load_weights};
use crate::config::ModelConfig;
use crate::data::{LoadedData, TaskSpec, load_specs, save_specs};
use crate::error::{Error, Result};
use crate::grow::{grow, grows, stages};
use crate::memory::check_training;
use crate::models::Model;

/// How to treat a run folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Make a new run; a folder with files in it is refused.
    New,
    /// Continue the run in the folder.
    Resume,
}

/// A trained run.
#[derive(Debug)]
pub struct TrainedRun {
    /// The model with its final weights.
    pub model: Model,
    /// How the training went.
    pub summary: Summary,
}

/// The file of a run folder that says what the tasks are: their symbols and
/// labels, as [`save_specs`] writes them.
pub const TASKS_FILE: &str = "tasks.json";

/// Trains what `config` describes in `folder`. A run that was killed before
/// its first checkpoint begins anew when it is resumed, from the same weights.
///
/// # Errors
/// If the configuration is invalid, the folder cannot be used, or training
/// fails.
pub fn train<'a>(
    config: &'a RunConfig,
    folder: &Path,
    start: Start,
    observer: impl Observer + 'a,
    stop: impl Fn() -> bool + Send + 'a,
) -> Result<TrainedRun> {
    config.validate()?;
    let config = &match start {
        Start::New => {
            config.check_name()?;
            config.clone()
        }
        Start::Resume => config.clone().numbered_by(folder),
    };
    check_training(config)?;
    let data = config.load_data()?;
    let model = config.build_model()?;
    let fresh = start == Start::New || RunFolder::latest_checkpoint(folder)?.is_none();
    let init_from = if fresh { init_from(config, folder, start)? } else { None };
    if let Some(from) = &init_from {
        check_labels("init_from", from, &data.tasks)?;
        start_from(from, config, &model)?;
    }
    // What may fail goes first, so that it leaves no folder behind.
    let teacher = config.teacher.as_deref().map(|from| {
        check_labels("teacher", from, &data.tasks)?;
        load_teacher(from, config)
    });
    let teacher = teacher.transpose()?;
    let run_folder = match start {
        Start::New => RunFolder::create(folder)?,
        Start::Resume => RunFolder::open(folder)?,
    };
    if fresh {
        // Also over that of a start that failed.
        run_folder.write_config(&RunConfig { init_from, ..config.clone() }.to_toml()?)?;
    }
    drop(run_folder);
    // Also of a run that was killed before it had written them.
    let tasks = folder.join(TASKS_FILE);
    if !data.tasks.is_empty() && !tasks.is_file() {
        save_specs(&tasks, &data.tasks)?;
    }
    let run = Run { config, folder, teacher: teacher.as_ref() };
    let stop = Mutex::new(stop);
    let stop = || (stop.lock().unwrap_or_else(PoisonError::into_inner))();
    let mut observer = observer;
    if config.grow.is_empty() {
        let begin = if start == Start::New { Begin::New } else { Begin::Resume };
        let summary = run.stage(&model, &config.model, data, begin, None, &mut observer, stop)?;
        return Ok(TrainedRun { model, summary });
    }
    let stages = stages(&config.model, &config.grow, config.train.steps)?;
    let made = match start {
        Start::New => 0,
        Start::Resume => RunFolder::latest_checkpoint(folder)?.map_or(0, |(step, _)| step),
    };
    // A checkpoint of the moment of a change is of the model before it.
    let mut stage = stages.iter().rposition(|(at, _)| *at < made).unwrap_or(0);
    let mut begin = if start == Start::New { Begin::New } else { Begin::Resume };
    let mut data = Some(data);
    let mut model = if stage == 0 { model } else { config.model_of(&stages[stage].1)? };
    loop {
        let (of, next) = (&stages[stage].1, stages.get(stage + 1));
        let data = data.take().map_or_else(|| config.load_data(), Ok)?;
        let until = next.map(|(at, _)| *at);
        let summary = run.stage(&model, of, data, begin, until, &mut observer, stop)?;
        match next {
            Some((at, larger))
                if summary.outcome == Outcome::Interrupted && summary.step >= *at =>
            {
                let grown = config.model_of(larger)?;
                grow(&model, of, &grown, larger)?;
                (model, begin) = (grown, Begin::Grown);
                stage += 1;
            }
            _ => return Ok(TrainedRun { model, summary }),
        }
    }
}

/// How a stage of a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    New,
    Resume,
    /// From the checkpoint of a smaller model, whose weights were grown.
    Grown,
}

/// What all stages of a run have in common.
struct Run<'a> {
    config: &'a RunConfig,
    folder: &'a Path,
    teacher: Option<&'a Model>,
}

impl Run<'_> {
    /// Trains a model of these settings up to a step, or to the end.
    #[allow(clippy::too_many_arguments)]
    fn stage(
        &self,
        model: &Model,
        of: &ModelConfig,
        data: LoadedData,
        begin: Begin,
        until: Option<u64>,
        observer: &mut (dyn Observer + '_),
        stop: impl Fn() -> bool + Send,
    ) -> Result<Summary> {
        let config = self.config;
        let folder = RunFolder::open(self.folder)?;
        let description = serde_json::to_string(of)
            .map_err(|e| Error::ConfigFile { path: config.name.clone(), reason: e.to_string() })?;
        let trainer = trainer(model, data.dataset, &config.train, of.widths(), self.teacher)?
            .observer(observer)
            .stop_when(stop)
            .model_metadata(MODEL_KEY, description);
        let trainer = match until {
            Some(step) => trainer.until(step),
            None => trainer,
        };
        // A run that does not grow has the settings that it always had.
        let settings = match config.grow.is_empty() {
            true => serde_json::to_value((&config.model, &config.data)),
            false => serde_json::to_value((&config.model, &config.data, &config.grow)),
        };
        let settings = settings
            .map_err(|e| Error::ConfigFile { path: config.name.clone(), reason: e.to_string() })?;
        let mut trainer = match begin {
            Begin::New => trainer.start_in(folder, &settings),
            Begin::Resume => trainer.resume_in(folder, &settings),
            Begin::Grown => trainer.resume_grown_in(folder, &settings),
        }
        .map_err(with_sections)?;
        Ok(trainer.run()?)
    }
}

/// The run whose weights a run without weights of its own starts with.
fn init_from(config: &RunConfig, folder: &Path, start: Start) -> Result<Option<PathBuf>> {
    // As it was when the run was begun.
    let begun = folder.join("config.toml");
    let begun = (start == Start::Resume && begun.is_file()).then(|| RunConfig::load(begun));
    let begun = begun.transpose()?.and_then(|begun| begun.init_from);
    Ok(config.init_from.clone().or(begun))
}

/// Settings that differ by their sections: a run keeps them as a list.
fn with_sections(error: TrainError) -> TrainError {
    let TrainError::ConfigChanged { path, differences } = error else { return error };
    let named = |line: String| {
        let sections = [("run.0.", "model."), ("run.1.", "data."), ("run.2", "grow")];
        let found = sections.iter().find_map(|(number, section)| {
            line.strip_prefix(number).map(|rest| format!("{section}{rest}"))
        });
        found.unwrap_or(line)
    };
    TrainError::ConfigChanged { path, differences: differences.into_iter().map(named).collect() }
}

/// Gives a model the weights of another run, whose model may be smaller.
fn start_from(folder: &Path, config: &RunConfig, model: &Model) -> Result<()> {
    let path = folder.join("config.toml");
    if path.is_file() {
        let other = RunConfig::load(path)?;
        if grows(&other.model, &config.model) {
            let small = other.build_model()?;
            load_weights(folder, &small)?;
            return grow(&small, &other.model, model, &config.model);
        }
    }
    load_weights(folder, model)
}

/// Fails if a task has its classes under other numbers in the run that weights
/// or answers come from: they would stand for others.
fn check_labels(field: &'static str, folder: &Path, tasks: &[TaskSpec]) -> Result<()> {
    let path = folder.join(TASKS_FILE);
    if !path.is_file() {
        return Ok(());
    }
    for theirs in load_specs(&path)? {
        let Some(ours) = tasks.iter().find(|ours| ours.name == theirs.name) else { continue };
        let pairs = theirs.labels.iter().zip(&ours.labels).enumerate();
        if let Some((number, (theirs, own))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
            let reason = format!(
                "class {number} of task `{}` is `{theirs}` there and `{own}` here; \
                 data.specs = \"{}\" numbers classes as there",
                ours.name,
                path.display()
            );
            return Err(Error::config("run", field, folder.display(), reason));
        }
    }
    Ok(())
}

/// A trainer with the objective of the configuration.
fn trainer<'a>(
    model: &'a Model,
    dataset: impl Dataset + 'a,
    config: &TrainConfig,
    widths: &[f64],
    teacher: Option<&'a Model>,
) -> Result<Trainer<'a, Model>> {
    let seed = Seed::new(config.seed);
    let objective = config.multi_task.as_ref().map(|multi_task| {
        let parameters = NamedParameters::of(model);
        MultiTask::new(multi_task.clone(), dataset.task_names(), &parameters, seed)
    });
    let objective = objective.transpose()?.map(|objective| match teacher {
        Some(teacher) => objective.with_teacher(teacher),
        None => objective,
    });
    let config = config.clone();
    Ok(match (objective, widths) {
        (None, [_]) => Trainer::new(model, dataset, config)?,
        (Some(objective), [_]) => Trainer::with_objective(model, dataset, config, objective)?,
        (None, widths) => {
            let objective = Elastic::new(CrossEntropy::default(), widths.to_vec())?;
            Trainer::with_objective(model, dataset, config, objective)?
        }
        (Some(objective), widths) => {
            let objective = Elastic::new(objective, widths.to_vec())?;
            Trainer::with_objective(model, dataset, config, objective)?
        }
    })
}

/// The teacher of a run, if it reads the same tokens.
fn load_teacher(folder: &Path, student: &RunConfig) -> Result<Model> {
    let (config, model) = load(folder)?;
    let (theirs, ours) = (config.model.vocabulary(), student.model.vocabulary());
    if theirs != ours {
        let reason = format!("the teacher has {theirs} tokens, the model {ours}");
        return Err(Error::config("run", "teacher", folder.display(), reason));
    }
    Ok(model)
}
