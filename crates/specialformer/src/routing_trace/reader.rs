//! [`TraceReader`]: a trace folder, a part at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::json;
use specialformer_checkpoint::{TensorFile, check_json_version};
use specialformer_routing::analysis::{PromptRecord, PromptSignatures};
use specialformer_routing::{LayerShape, SignatureSum};
use specialformer_tensor::Tensor;

use super::part::{LayerPart, PromptTrace, TracePart};
use super::writer::{FORMAT_VERSION, INFO_FILE, TraceInfo, part_path};
use crate::error::{Error, Result};

/// The most experts of a layer that a trace can name.
const MOST_EXPERTS: usize = 1 << 16;

/// Which positions of a prompt count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenScope {
    /// All.
    #[default]
    All,
    /// The prompt's own.
    Prompt,
    /// Those that the model generated.
    Generated,
    /// The first so many.
    First(usize),
}

impl TokenScope {
    fn range(self, prompt: &PromptTrace) -> std::ops::Range<usize> {
        match self {
            Self::All => 0..prompt.positions,
            Self::Prompt => 0..prompt.own,
            Self::Generated => prompt.own..prompt.positions,
            Self::First(count) => 0..count.min(prompt.positions),
        }
    }
}

/// Reads a trace folder.
#[derive(Debug, Clone)]
pub struct TraceReader {
    folder: PathBuf,
    info: TraceInfo,
}

impl TraceReader {
    /// Opens a trace.
    ///
    /// # Errors
    /// [`Error::Data`] if the folder is no trace, one that was not finished, or
    /// of a newer version.
    pub fn open(folder: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Data { place: folder.display().to_string(), reason };
        let text = std::fs::read_to_string(folder.join(INFO_FILE))
            .map_err(|_| fail(format!("no {INFO_FILE}: not a trace, or not a finished one")))?;
        let path = folder.join(INFO_FILE);
        check_json_version(path, text.as_bytes(), "format_version", FORMAT_VERSION)?;
        let info: TraceInfo =
            serde_json::from_str(&text).map_err(|e| fail(format!("{INFO_FILE}: {e}")))?;
        // The experts of a part are two bytes each.
        if let Some(layer) = info.layers.iter().find(|layer| layer.experts > MOST_EXPERTS) {
            let LayerShape { name, experts } = layer;
            return Err(fail(format!("{INFO_FILE}: {name} has {experts} experts, too many")));
        }
        Ok(Self { folder: folder.to_owned(), info })
    }

    /// What it holds.
    pub fn info(&self) -> &TraceInfo {
        &self.info
    }

    /// Fails unless the trace is of that model.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check_model(&self, model: &super::RoutedModel) -> Result<()> {
        if self.info.fingerprint == model.fingerprint() && self.info.layers == model.layers() {
            return Ok(());
        }
        let reason = format!(
            "is a trace of another model: {} ({}), not {} ({})",
            self.info.model,
            self.info.fingerprint,
            model.name(),
            model.fingerprint()
        );
        Err(Error::Data { place: self.folder.display().to_string(), reason })
    }

    /// Reads a part.
    ///
    /// # Errors
    /// If the file is missing or does not hold what it should.
    pub fn part(&self, number: usize) -> Result<TracePart> {
        let path = part_path(&self.folder, self.info.first_part.saturating_add(number));
        let file = TensorFile::open(&path)?;
        let bad =
            |reason: &str| Error::Data { place: path.display().to_string(), reason: reason.into() };
        let prompts: Vec<PromptTrace> = file.metadata_json("prompts")?;
        let positions = prompts.iter().try_fold(0usize, |n, p| n.checked_add(p.positions));
        let positions = positions.ok_or_else(|| bad("more positions than can be"))?;
        if prompts.iter().any(|prompt| prompt.own > prompt.positions) {
            return Err(bad("a prompt has fewer positions than tokens of its own"));
        }
        let mut layers = Vec::with_capacity(self.info.layers.len());
        for shape in &self.info.layers {
            let name = |what: &str| format!("{}.{what}", shape.name);
            let counts: Vec<u8> = file.integers(&name("choices"))?;
            let low: Vec<u8> = file.integers(&name("experts"))?;
            let mut experts: Vec<u16> = low.into_iter().map(u16::from).collect();
            if shape.experts > 256 {
                let high: Vec<u8> = file.integers(&name("experts_high"))?;
                if high.len() != experts.len() {
                    return Err(bad("the two bytes of experts differ in number"));
                }
                experts.iter_mut().zip(high).for_each(|(e, high)| *e |= u16::from(high) << 8);
            }
            let weights: Tensor<f32> = file.tensor(&name("weights"))?;
            let mut starts = Vec::with_capacity(counts.len() + 1);
            let mut end = 0u32;
            starts.push(0);
            starts.extend(counts.iter().map(|&count| {
                end += u32::from(count);
                end
            }));
            let fits = counts.len() == positions
                && end as usize == experts.len()
                && weights.len() == experts.len()
                && experts.iter().all(|&expert| usize::from(expert) < shape.experts);
            if !fits {
                return Err(bad(&format!("the choices of {} do not fit together", shape.name)));
            }
            layers.push(LayerPart { starts, experts, weights: weights.as_slice().to_vec() });
        }
        Ok(TracePart { prompts, layers })
    }

    /// Writes the trace as JSONL: a line for each position, with prompt, label,
    /// position, whether it was generated, token, and by layer the experts and
    /// their weights.
    ///
    /// # Errors
    /// If a part cannot be read or the output cannot be written.
    pub fn write_jsonl(&self, mut out: impl Write) -> Result<()> {
        for number in 0..self.info.parts {
            let part = self.part(number)?;
            for (start, prompt) in part.prompts() {
                for position in 0..prompt.positions {
                    let layers: Vec<_> = (0..self.info.layers.len())
                        .map(|layer| {
                            let choices = part.choices(layer, start + position);
                            let (experts, weights): (Vec<usize>, Vec<f32>) = choices.unzip();
                            json!({"layer": self.info.layers[layer].name,
                                   "experts": experts, "weights": weights})
                        })
                        .collect();
                    let line = json!({
                        "prompt": prompt.id,
                        "label": prompt.label,
                        "position": position,
                        "generated": position >= prompt.own,
                        "token": prompt.tokens.get(position),
                        "routing": layers,
                    });
                    writeln!(out, "{line}")
                        .map_err(|source| Error::Io { path: "JSONL".into(), source })?;
                }
            }
        }
        Ok(())
    }
}

/// The signatures of a trace's prompts, and of each how often its tokens occur.
/// One part is in memory at a time.
///
/// # Errors
/// If a part cannot be read, or a weight in it is negative or not finite.
pub fn read_signatures(reader: &TraceReader, scope: TokenScope) -> Result<PromptSignatures> {
    let layers = reader.info.layers.clone();
    let mut prompts = Vec::new();
    for number in 0..reader.info.parts {
        let part = reader.part(number)?;
        let starts: Vec<(usize, &PromptTrace)> = part.prompts().collect();
        let records: Vec<Result<PromptRecord>> = starts
            .into_par_iter()
            .map(|(start, prompt)| {
                let mut sum = SignatureSum::of_layers(&layers);
                let range = scope.range(prompt);
                for layer in 0..layers.len() {
                    for position in range.clone() {
                        sum.add_token(layer, part.choices(layer, start + position))?;
                    }
                }
                let mut bag = BTreeMap::new();
                for &token in prompt.tokens.get(range.clone()).unwrap_or_default() {
                    *bag.entry(token).or_default() += 1;
                }
                let tokens = range.len() as u64;
                let (id, label) = (prompt.id.clone(), prompt.label.clone());
                Ok(PromptRecord { id, label, sum, tokens, bag })
            })
            .collect();
        prompts.extend(records.into_iter().collect::<Result<Vec<_>>>()?);
    }
    Ok(PromptSignatures { layers, prompts })
}
