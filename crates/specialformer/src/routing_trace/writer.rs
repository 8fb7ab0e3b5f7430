//! [`TraceWriter`]: a trace folder as it is made.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use specialformer_checkpoint::{TensorWriter, atomic_write, remove_leftovers};
use specialformer_routing::{LayerShape, RoutingTrace};
use specialformer_tensor::Tensor;
use specialformer_train::HeldOut;

use super::model::RoutedModel;
use super::part::{PromptTrace, TracePart};
use crate::error::{Error, Result};

/// The file of a trace folder that says what it holds. It is written last: a
/// folder without it is a trace that was not finished.
pub(super) const INFO_FILE: &str = "trace.json";

/// The version of the layout that this program writes.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Size of a part at most, in choices (position × layer × expert), unless a
/// single prompt has more.
const PART_CHOICES: usize = 1 << 22;

/// What a position counts besides its choices: its token and what that stands
/// for are in the part's header, which is held as a whole.
const POSITION: usize = 16;

/// What a trace holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceInfo {
    /// Version of the layout.
    pub format_version: u32,
    /// The model's name.
    pub model: String,
    /// [`RoutedModel::fingerprint`].
    pub fingerprint: String,
    /// The layers with experts.
    pub layers: Vec<LayerShape>,
    /// Number of files `part-NNNNN.safetensors`.
    pub parts: usize,
    /// The number of the first of them: not 0 if the trace took another's place.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_part: usize,
    /// Number of prompts.
    pub prompts: usize,
    /// Number of positions.
    pub positions: u64,
    /// Which of a run's held-out data the prompts are, if they are that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<HeldOut>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl TraceInfo {
    /// The numbers of its parts.
    fn numbers(&self) -> std::ops::Range<usize> {
        self.first_part..self.first_part + self.parts
    }
}

/// Writes a trace folder: `part-00000.safetensors` and so on, which any tool
/// opens, and `trace.json` at the end. No more than one part is in memory.
///
/// A trace that was in the folder stays whole until [`finish`](Self::finish)
/// puts the new one in its place: the new parts have numbers of their own.
/// Dropped before, the writer takes its parts away.
///
/// A part has for each layer L the number of choices of every position
/// (`L.choices`, u8), the experts of all choices, best first (`L.experts`, u8;
/// with more than 256 experts also `L.experts_high`) and their combine weights
/// (`L.weights`, f32). Its metadata entry `prompts` lists the prompts as JSON:
/// id, label, token ids, number of positions, how many of them are the prompt's
/// own.
#[derive(Debug)]
pub struct TraceWriter {
    folder: PathBuf,
    info: TraceInfo,
    part: TracePart,
    choices: usize,
    finished: bool,
}

impl TraceWriter {
    /// A trace of a model in a folder, which is made; an old trace in it is
    /// replaced at the end.
    ///
    /// # Errors
    /// If the folder cannot be made or holds something else, which is left as
    /// it is.
    pub fn create(folder: &Path, model: &RoutedModel) -> Result<Self> {
        Self::new(folder, model.name(), model.fingerprint(), model.layers())
    }

    /// A trace of the model of that name and fingerprint.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn new(
        folder: &Path,
        model: impl Into<String>,
        fingerprint: impl Into<String>,
        layers: Vec<LayerShape>,
    ) -> Result<Self> {
        let io = |source| Error::Io { path: folder.display().to_string(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        // Of a trace that was killed while it wrote a part.
        remove_leftovers(folder)?;
        let old = FolderContents::list(folder)?;
        // Parts without that file are of a trace that was killed.
        let first_part = match old.whole {
            true => old.parts.iter().max().map_or(0, |last| last + 1),
            false => {
                remove_parts(folder, &old.parts)?;
                0
            }
        };
        let part = TracePart::new(layers.len());
        let info = TraceInfo {
            format_version: FORMAT_VERSION,
            model: model.into(),
            fingerprint: fingerprint.into(),
            layers,
            parts: 0,
            first_part,
            prompts: 0,
            positions: 0,
            set: None,
        };
        Ok(Self { folder: folder.to_owned(), info, part, choices: 0, finished: false })
    }

    /// Says that the prompts are this set of a run's held-out data.
    #[must_use]
    pub fn of_set(mut self, set: HeldOut) -> Self {
        self.info.set = Some(set);
        self
    }

    /// Adds a prompt and where its positions went.
    ///
    /// # Errors
    /// [`Error::Data`] if the trace is not of the model's layers; if a part
    /// cannot be written.
    pub fn add(&mut self, prompt: PromptTrace, trace: &RoutingTrace) -> Result<()> {
        let layers = trace.layers.iter().map(|l| LayerShape::new(l.layer(), l.experts()));
        if !layers.eq(self.info.layers.iter().cloned()) {
            let reason = format!("the routing of prompt {} is of another model", prompt.id);
            return Err(Error::Data { place: self.folder.display().to_string(), reason });
        }
        self.choices += trace.layers.iter().map(|layer| layer.chosen().len()).sum::<usize>();
        self.choices += POSITION * prompt.positions;
        self.info.prompts += 1;
        self.info.positions += prompt.positions as u64;
        self.part.push(prompt, trace);
        self.flush_if_full()
    }

    /// Adds what a part holds.
    pub(super) fn add_part(&mut self, part: TracePart) -> Result<()> {
        self.flush()?;
        self.info.prompts += part.prompts.len();
        self.info.positions += part.positions() as u64;
        self.part = part;
        self.flush()
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.choices >= PART_CHOICES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.part.prompts.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, TracePart::new(self.info.layers.len()));
        let mut file = TensorWriter::new();
        for (shape, layer) in self.info.layers.iter().zip(&part.layers) {
            let name = |what: &str| format!("{}.{what}", shape.name);
            let counts: Vec<u8> = layer
                .starts
                .windows(2)
                .map(|pair| u8::try_from(pair[1] - pair[0]).unwrap_or(u8::MAX))
                .collect();
            if layer.starts.windows(2).any(|pair| pair[1] - pair[0] > u32::from(u8::MAX)) {
                let reason = "a token went to more than 255 experts of a layer".into();
                return Err(Error::Data { place: self.folder.display().to_string(), reason });
            }
            file.integers(&name("choices"), &counts)?;
            let low: Vec<u8> = layer.experts.iter().map(|&expert| expert as u8).collect();
            file.integers(&name("experts"), &low)?;
            if shape.experts > 256 {
                let high: Vec<u8> = layer.experts.iter().map(|&e| (e >> 8) as u8).collect();
                file.integers(&name("experts_high"), &high)?;
            }
            let weights = Tensor::from_vec(layer.weights.clone(), [layer.weights.len()])?;
            file.tensor(&name("weights"), &weights)?;
        }
        file.metadata_json("prompts", &part.prompts)?;
        file.save(part_path(&self.folder, self.info.first_part + self.info.parts))?;
        self.info.parts += 1;
        self.choices = 0;
        Ok(())
    }

    /// Writes what is left and the file that makes the trace whole, and removes
    /// the parts of the trace it replaces.
    ///
    /// # Errors
    /// [`Error::Data`] if there is no prompt; if a file cannot be written.
    pub fn finish(mut self) -> Result<TraceInfo> {
        self.flush()?;
        if self.info.prompts == 0 {
            let reason = "there is no prompt to trace".into();
            return Err(Error::Data { place: self.folder.display().to_string(), reason });
        }
        let text = serde_json::to_string_pretty(&self.info)
            .map_err(|e| Error::Data { place: INFO_FILE.into(), reason: e.to_string() })?;
        // Even if this fails its parts may be named now: better some that nobody
        // names, which the next trace removes.
        self.finished = true;
        atomic_write(self.folder.join(INFO_FILE), |file| file.write_all(text.as_bytes()))?;
        let mut old = FolderContents::list(&self.folder)?.parts;
        old.retain(|number| !self.info.numbers().contains(number));
        remove_parts(&self.folder, &old)?;
        Ok(self.info.clone())
    }
}

impl Drop for TraceWriter {
    fn drop(&mut self) {
        if !self.finished {
            let written: Vec<usize> = self.info.numbers().collect();
            // What cannot be removed is taken for a killed trace's later.
            let _ = remove_parts(&self.folder, &written);
        }
    }
}

/// What a trace folder holds.
struct FolderContents {
    /// Whether it has the file that makes a trace whole.
    whole: bool,
    /// The numbers of its parts.
    parts: Vec<usize>,
}

impl FolderContents {
    /// Lists a folder, which must hold nothing but a trace.
    fn list(folder: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: folder.display().to_string(), source };
        let mut contents = Self { whole: false, parts: Vec::new() };
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            match part_number(&name) {
                Some(number) => contents.parts.push(number),
                None if name == INFO_FILE => contents.whole = true,
                None => {
                    let reason = format!("holds `{name}`, which is no part of a trace");
                    return Err(Error::Data { place: folder.display().to_string(), reason });
                }
            }
        }
        Ok(contents)
    }
}

fn remove_parts(folder: &Path, numbers: &[usize]) -> Result<()> {
    for &number in numbers {
        let path = part_path(folder, number);
        std::fs::remove_file(&path)
            .map_err(|source| Error::Io { path: path.display().to_string(), source })?;
    }
    Ok(())
}

pub(super) fn part_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(part_name(number))
}

fn part_name(number: usize) -> String {
    format!("part-{number:05}.safetensors")
}

/// The number in a part's name.
fn part_number(name: &str) -> Option<usize> {
    let number: u32 = name.strip_prefix("part-")?.strip_suffix(".safetensors")?.parse().ok()?;
    let number = number as usize;
    (part_name(number) == name).then_some(number)
}
