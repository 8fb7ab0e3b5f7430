//! [`MetricsExport`]: `metrics.jsonl` for other tools.

mod events;
mod scalars;

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use specialformer_checkpoint::atomic_write;

use crate::error::{Result, TrainError};
use crate::metrics::{EvaluationRecord, Record, TrainRecord};
use crate::observer::Observer;
use scalars::Scalars;

/// The CSV file of a run.
const CSV: &str = "metrics.csv";
/// The event file of a run. TensorBoard wants `tfevents` in the name; that it
/// is always the same lets a resumed run replace it.
const EVENTS: &str = "events.out.tfevents.0.specialformer";

/// A form that metrics are exported in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExportFormat {
    /// `metrics.csv`, a line for each number: `step,seconds,set,name,value`.
    Csv,
    /// An event file that TensorBoard reads, with tags such as `train/loss`
    /// and `validation/tasks/sort/accuracy`.
    TensorBoard,
}

/// Keeps other forms of `metrics.jsonl` beside it while a run goes on.
///
/// They are made from that file alone: from its beginning when a run starts or
/// is resumed, and then by what is added to it. So they hold exactly its
/// records, each once, whatever interrupted the run before, and also where a
/// run began without them.
///
/// # Errors
/// What fails while the run goes on ends the export and not the run;
/// [`finish`](Self::finish) tells.
///
/// ```no_run
/// use specialformer_train::{ExportFormat, MetricsExport};
/// # fn example<M, E>(trainer: specialformer_train::Trainer<'_, M, E>)
/// # -> specialformer_train::Result<()>
/// # where M: specialformer_nn::Module<E> + Sync, E: specialformer_tensor::Element {
/// let mut export = MetricsExport::new("runs/mine", &[ExportFormat::TensorBoard]);
/// trainer.observer(&mut export).run()?;
/// export.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MetricsExport {
    folder: PathBuf,
    targets: Vec<Target>,
    /// Bytes of `metrics.jsonl` that are exported.
    done: u64,
    failed: Option<TrainError>,
}

#[derive(Debug)]
struct Target {
    format: ExportFormat,
    path: PathBuf,
    /// Open once what was there before is written.
    file: Option<File>,
    /// When the run began, in seconds since 1970.
    start: f64,
}

impl MetricsExport {
    /// Exports the metrics of the run in `folder`. Nothing is touched before
    /// the run does something.
    pub fn new(folder: impl Into<PathBuf>, formats: &[ExportFormat]) -> Self {
        let folder = folder.into();
        let mut targets: Vec<Target> = Vec::new();
        for &format in formats {
            let name = match format {
                ExportFormat::Csv => CSV,
                ExportFormat::TensorBoard => EVENTS,
            };
            if targets.iter().all(|target| target.format != format) {
                targets.push(Target { format, path: folder.join(name), file: None, start: 0.0 });
            }
        }
        Self { folder, targets, done: 0, failed: None }
    }

    /// The files that are kept.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.targets.iter().map(|target| target.path.as_path())
    }

    /// Exports what is left.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Checkpoint`] naming the file, also
    /// of what failed earlier.
    pub fn finish(mut self) -> Result<()> {
        self.update();
        self.failed.map_or(Ok(()), Err)
    }

    fn update(&mut self) {
        if self.failed.is_some() || self.targets.is_empty() {
            return;
        }
        if let Err(error) = self.try_update() {
            tracing::warn!("metrics are no longer exported: {error}");
            self.failed = Some(error);
        }
    }

    fn try_update(&mut self) -> Result<()> {
        let path = self.folder.join("metrics.jsonl");
        let text = added(&path, self.done).map_err(TrainError::io(&path, "read"))?;
        // A line that is still being written waits for the next time.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        if whole.is_empty() && self.targets.iter().all(|target| target.file.is_some()) {
            return Ok(());
        }
        let records = whole.lines().map(|line| {
            let record: Record = serde_json::from_str(line).map_err(|e| TrainError::State {
                path: path.clone(),
                what: format!("a line that is no record: {e}"),
            })?;
            Ok(Scalars::of(&record))
        });
        let records = records.collect::<Result<Vec<_>>>()?;
        for target in &mut self.targets {
            target.write(&records)?;
        }
        self.done += whole.len() as u64;
        Ok(())
    }
}

impl Target {
    fn write(&mut self, records: &[Scalars]) -> Result<()> {
        if let Some(file) = &mut self.file {
            let bytes = encode(self.format, self.start, records);
            return file.write_all(&bytes).map_err(TrainError::io(&self.path, "write"));
        }
        let mut bytes = Vec::new();
        match self.format {
            ExportFormat::Csv => bytes.extend(b"step,seconds,set,name,value\n"),
            ExportFormat::TensorBoard => {
                let old = fs::read(&self.path).ok().and_then(|file| events::start_of(&file));
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.map_or(0.0, |since| since.as_secs_f64());
                let trained = records.last().map_or(0.0, |record| record.seconds);
                self.start = old.unwrap_or(now - trained);
                events::header(&mut bytes, self.start);
            }
        }
        bytes.extend(encode(self.format, self.start, records));
        atomic_write(&self.path, |file| file.write_all(&bytes))?;
        let file = File::options().append(true).open(&self.path);
        self.file = Some(file.map_err(TrainError::io(&self.path, "open"))?);
        Ok(())
    }
}

fn encode(format: ExportFormat, start: f64, records: &[Scalars]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match format {
        ExportFormat::TensorBoard => {
            for Scalars { set, step, seconds, values } in records {
                let values = values.iter().map(|(name, value)| (*set, name.as_str(), *value));
                events::scalars(&mut bytes, start + seconds, *step, values);
            }
        }
        ExportFormat::Csv => {
            let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(&mut bytes);
            for Scalars { set, step, seconds, values } in records {
                for (name, value) in values {
                    // Memory takes everything.
                    let _ = csv.serialize((step, seconds, set, name, value));
                }
            }
            let _ = csv.flush();
        }
    }
    bytes
}

/// What a file holds after so many bytes; nothing if there is no file yet.
fn added(path: &Path, from: u64) -> io::Result<String> {
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => {
            let mut file = file?;
            file.seek(SeekFrom::Start(from))?;
            file.read_to_string(&mut text)?;
        }
    }
    Ok(text)
}

impl Observer for MetricsExport {
    fn on_train_record(&mut self, _record: &TrainRecord) {
        self.update();
    }

    fn on_evaluation(&mut self, _record: &EvaluationRecord) {
        self.update();
    }

    fn on_checkpoint(&mut self, _step: u64, _folder: &Path) {
        self.update();
    }
}
