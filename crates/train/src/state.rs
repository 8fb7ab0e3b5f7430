//! What a checkpoint holds besides tensors, and the metrics file that is cut
//! back to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use specialformer_checkpoint::{TensorFile, TensorWriter, atomic_write, check_json_version};
use specialformer_nn::NamedParameters;
use specialformer_nn::optim::{Optimizer, OptimizerState};
use specialformer_tensor::{Element, Shape, Tensor};

use crate::error::{Result, TrainError};
use crate::metrics::{EvaluationRecord, Interval, Record};
use crate::run_folder::OBJECTIVE;
use crate::trainer::Outcome;

const VERSION: u32 = 1;

/// Settings that change nothing but when a run pauses.
const FREE: [&str; 2] = ["train.time_budget_seconds", "train.checkpoint_every"];

/// Where a run is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) version: u32,
    /// Steps made.
    pub(crate) step: u64,
    /// Where the training data is.
    pub(crate) cursor: Vec<u64>,
    /// Tokens seen.
    pub(crate) tokens: u64,
    /// Seconds of training.
    pub(crate) seconds: f64,
    /// Length of `metrics.jsonl` in bytes.
    pub(crate) metrics_bytes: u64,
    /// Sums since the last record in it.
    pub(crate) interval: Interval,
    /// The last evaluation on validation data.
    pub(crate) validation: Option<EvaluationRecord>,
    /// The best of them.
    pub(crate) best: Option<Best>,
    /// How the run ended, if it did.
    pub(crate) finished: Option<Outcome>,
    /// All settings.
    pub(crate) settings: Value,
}

/// The best evaluation on validation data so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// After how many steps.
    pub step: u64,
    /// The accuracy.
    pub accuracy: f64,
    /// The loss; not in checkpoints of older builds.
    #[serde(default)]
    pub loss: Option<f64>,
}

impl State {
    pub(crate) fn new(cursor: Vec<u64>, settings: Value) -> Self {
        Self {
            version: VERSION,
            step: 0,
            cursor,
            tokens: 0,
            seconds: 0.0,
            metrics_bytes: 0,
            interval: Interval::default(),
            validation: None,
            best: None,
            finished: None,
            settings,
        }
    }

    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("state.json");
        Ok(atomic_write(path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            writeln!(file)
        })?)
    }

    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("state.json");
        let text = fs::read(&path).map_err(TrainError::io(&path, "read"))?;
        let bad = |what: String| TrainError::State { path: path.clone(), what };
        check_json_version(&path, &text, "version", VERSION)?;
        serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))
    }

    /// Fails unless the run was started with these settings.
    pub(crate) fn check_settings(&self, folder: &Path, now: &Value) -> Result<()> {
        let mut differences = Vec::new();
        compare("", &self.settings, now, &mut differences);
        differences.retain(|(name, _)| !FREE.contains(&name.as_str()));
        if differences.is_empty() {
            return Ok(());
        }
        let lines = differences.into_iter().map(|(name, what)| format!("{name}: {what}")).collect();
        Err(TrainError::ConfigChanged { path: folder.to_owned(), differences: lines })
    }
}

/// Lists the leaves in which two trees differ.
fn compare(name: &str, then: &Value, now: &Value, differences: &mut Vec<(String, String)>) {
    if let (Value::Array(a), Value::Array(b)) = (then, now)
        && a.iter().chain(b).any(Value::is_object)
    {
        for i in 0..a.len().max(b.len()) {
            let (then, now) = (a.get(i).unwrap_or(&Value::Null), b.get(i).unwrap_or(&Value::Null));
            compare(&format!("{name}.{i}"), then, now, differences);
        }
        return;
    }
    let (Value::Object(a), Value::Object(b)) = (then, now) else {
        if then != now {
            let what = format!("{} in the run, {} now", shown(then), shown(now));
            differences.push((name.to_string(), what));
        }
        return;
    };
    let added = b.keys().filter(|key| !a.contains_key(*key));
    for key in a.keys().chain(added) {
        let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        let (then, now) = (a.get(key), b.get(key));
        compare(&name, then.unwrap_or(&Value::Null), now.unwrap_or(&Value::Null), differences);
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_string(),
        value => value.to_string(),
    }
}

/// Writes the weights with some metadata.
pub(crate) fn save_model<E: Element>(
    path: &Path,
    parameters: &NamedParameters<E>,
    step: u64,
    metadata: &[(String, String)],
) -> Result<()> {
    let mut writer = TensorWriter::new();
    writer.metadata("step", step.to_string())?;
    for (key, value) in metadata {
        writer.metadata(key, value.as_str())?;
    }
    for (name, parameter) in parameters.iter() {
        writer.tensor(name, &parameter.value())?;
    }
    Ok(writer.save(path)?)
}

/// Writes the state of an optimiser.
pub(crate) fn save_optimizer<E: Element>(path: &Path, state: &OptimizerState<E>) -> Result<()> {
    let mut writer = TensorWriter::new();
    writer.metadata("optimizer", state.kind)?;
    writer.metadata("steps", state.steps.to_string())?;
    for (name, tensor) in &state.tensors {
        writer.tensor(name, tensor)?;
    }
    Ok(writer.save(path)?)
}

/// Reads weights, the objective's parameters and optimiser state; changes all
/// or none.
pub(crate) fn load_tensors<E: Element>(
    folder: &Path,
    parameters: &NamedParameters<E>,
    own: &NamedParameters<E>,
    optimizer: &mut dyn Optimizer<E>,
) -> Result<()> {
    let model = TensorFile::open(folder.join("model.safetensors"))?;
    let weights = model.load::<E, _>(parameters.iter().map(|(n, p)| (n, p.shape())))?;
    let objective = objective_tensors(folder, own)?;
    let (file, mut state) = optimizer_state(folder, optimizer)?;
    let shapes: Vec<_> = state.tensors.iter().map(|(n, t)| (n.clone(), t.shape())).collect();
    state.tensors = file.load::<E, _>(shapes)?;
    optimizer.load_state(state)?;
    parameters.load(weights)?;
    if let Some(objective) = objective {
        own.load(objective)?;
    }
    Ok(())
}

/// Reads the objective's parameters, and the optimiser state of a smaller
/// model: moments begin with the smaller ones, and are zero where those end.
pub(crate) fn load_grown<E: Element>(
    folder: &Path,
    own: &NamedParameters<E>,
    optimizer: &mut dyn Optimizer<E>,
) -> Result<()> {
    let objective = objective_tensors(folder, own)?;
    let (file, mut state) = optimizer_state(folder, optimizer)?;
    for (name, tensor) in &mut state.tensors {
        if file.sizes(name).is_some() {
            let small = file.tensor::<E>(name)?;
            *tensor = grown(&small, tensor.shape()).ok_or_else(|| TrainError::State {
                path: file.path().to_owned(),
                what: format!("`{name}` {} does not fit in {}", small.shape(), tensor.shape()),
            })?;
        }
    }
    optimizer.load_state(state)?;
    if let Some(objective) = objective {
        own.load(objective)?;
    }
    Ok(())
}

/// A matrix or vector that begins with a smaller one and is zero elsewhere.
fn grown<E: Element>(small: &Tensor<E>, shape: Shape) -> Option<Tensor<E>> {
    let from = small.shape();
    if from == shape {
        return Some(small.clone());
    }
    let fits = from.rank() == shape.rank() && from.iter().zip(shape.iter()).all(|(s, l)| s <= l);
    if !fits || shape.rank() == 0 || shape.rank() > 2 {
        return None;
    }
    let mut all = Tensor::zeros(shape);
    let rows = small.as_slice().chunks_exact(from.last_size().max(1));
    for (out, row) in all.make_mut().chunks_exact_mut(shape.last_size().max(1)).zip(rows) {
        out[..row.len()].copy_from_slice(row);
    }
    Some(all)
}

fn objective_tensors<E: Element>(
    folder: &Path,
    own: &NamedParameters<E>,
) -> Result<Option<BTreeMap<String, Tensor<E>>>> {
    if own.is_empty() {
        return Ok(None);
    }
    let file = TensorFile::open(folder.join(OBJECTIVE))?;
    Ok(Some(file.load::<E, _>(own.iter().map(|(n, p)| (n, p.shape())))?))
}

/// The file of an optimiser's state, and the state with the steps made and
/// tensors that are not read yet.
fn optimizer_state<E: Element>(
    folder: &Path,
    optimizer: &dyn Optimizer<E>,
) -> Result<(TensorFile, OptimizerState<E>)> {
    let path = folder.join("optimizer.safetensors");
    let file = TensorFile::open(&path)?;
    let mut state = optimizer.state();
    if file.metadata("optimizer") != Some(state.kind) {
        return Err(TrainError::State {
            path,
            what: format!(
                "state of optimizer `{}`, this run's is `{}`",
                file.metadata("optimizer").unwrap_or("unknown"),
                state.kind
            ),
        });
    }
    let steps = file.metadata("steps").and_then(|steps| steps.parse().ok());
    state.steps = steps.ok_or_else(|| TrainError::State {
        path,
        what: "metadata `steps` is missing or not a number".into(),
    })?;
    Ok((file, state))
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsFile {
    /// Opens the file and cuts it back to `bytes`.
    pub(crate) fn open_at(path: PathBuf, bytes: u64) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "open"))?;
        let metadata = file.metadata().map_err(TrainError::io(&path, "read"))?;
        if metadata.len() < bytes {
            let found = metadata.len();
            return Err(TrainError::State {
                path,
                what: format!("{found} bytes, the checkpoint was made at {bytes}"),
            });
        }
        file.set_len(bytes).map_err(TrainError::io(&path, "cut back"))?;
        Ok(Self { path, file, bytes })
    }

    pub(crate) fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|e| TrainError::State {
            path: self.path.clone(),
            what: format!("cannot write a record: {e}"),
        })?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        written.map_err(TrainError::io(&self.path, "write"))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes the file safe from a crash; returns its length.
    pub(crate) fn sync(&self) -> Result<u64> {
        self.file.sync_data().map_err(TrainError::io(&self.path, "sync"))?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_difference_is_listed() {
        let then = json!({"train": {"steps": 10, "time_budget_seconds": 3.0}, "run": {"d": 4}});
        let now = json!({"train": {"steps": 11, "clip_norm": 1.5}, "run": {"d": 4}});
        let state = State::new(vec![], then.clone());
        let error = state.check_settings(Path::new("x"), &now).unwrap_err();
        assert_eq!(
            error.to_string(),
            "x: the settings differ from the run's: train.steps: 10 in the run, 11 now; \
             train.clip_norm: not set in the run, 1.5 now"
        );
        let mut free = then;
        free["train"]["time_budget_seconds"] = json!(99.0);
        state.check_settings(Path::new("x"), &free).unwrap();
    }

    #[test]
    fn metrics_are_cut_back_but_never_made_longer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "one\ntwo\n").unwrap();
        MetricsFile::open_at(path.clone(), 4).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
        let error = MetricsFile::open_at(path.clone(), 5).unwrap_err().to_string();
        let wanted = format!("{}: 4 bytes, the checkpoint was made at 5", path.display());
        assert_eq!(error, wanted);
    }
}
