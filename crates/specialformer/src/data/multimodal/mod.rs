//! The `multimodal` data: questions about images and series, answered in text,
//! and words in two scripts.

mod images;
mod tasks;
pub(crate) mod words;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use specialformer_embedding::{MultimodalBatch, Segment, StreamType, image_patches};
use specialformer_iarc_data::Split;
use specialformer_nn::names::choices;
use specialformer_train::{Batch, BoxError, Dataset, HeldOut, IGNORE};

pub use self::tasks::{MULTIMODAL_TASKS, MultimodalExample};

use self::images::Images;
use self::tasks::{PIECE, Source};
use crate::config::Head;
use crate::data::draws::Draws;
use crate::data::layout::TaskHead;
use crate::data::vocabulary::{BOS, EOS, SEP};
use crate::error::{Error, Result};

/// The `[data]` section of a run over several modalities; every field may be
/// left out.
///
/// A row is BOS, the images or the series, the question, SEP and the answer,
/// whose tokens are predicted. Images are split into training, validation and
/// test (70, 10 and 20 %: an image whose index ends in 4 or 9 is for testing,
/// in 5 for validation) before they are paired.
///
/// | task | shown | answer |
/// |---|---|---|
/// | `digit` | an image | the digit |
/// | `parity` | an image | even, odd |
/// | `half` | an image | the half with more ink: upper, lower |
/// | `larger` | two images | left, right, same |
/// | `sum` | two images | 0 to 18 |
/// | `series` | 32 numbers | rises, falls, wave, step, flat |
/// | `script` | letters of two scripts | the word backwards, each letter in the other script |
///
/// ```
/// use specialformer::data::MultimodalConfig;
/// let config: MultimodalConfig = toml::from_str("tasks = ['digit', 'sum']")?;
/// assert_eq!(config.types()?[3].grid, Some([4, 4]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultimodalConfig {
    /// The tasks that rows are drawn of, each as often. Task ids are those of
    /// [`MULTIMODAL_TASKS`], whichever are drawn.
    pub tasks: Vec<String>,
    /// A CSV file of images in place of the 8×8 digits: on each line the
    /// pixels of a square image, 0 to 255, and its digit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// Width and height of a patch.
    pub patch: usize,
    /// Training images are moved by a pixel now and then, and have some noise.
    pub augment: bool,
    /// Held-out variants: moved images with more noise, noisier series, one
    /// script in place of an even mix.
    pub shifted: bool,
}

impl Default for MultimodalConfig {
    fn default() -> Self {
        Self {
            tasks: MULTIMODAL_TASKS.map(String::from).to_vec(),
            images: None,
            patch: 2,
            augment: true,
            shifted: false,
        }
    }
}

impl MultimodalConfig {
    /// Checks every field that needs no file.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let fail =
            |field, value: &str, reason: String| Err(Error::config("data", field, value, reason));
        if self.tasks.is_empty() {
            return fail("tasks", "[]", "there must be at least one".into());
        }
        for (i, name) in self.tasks.iter().enumerate() {
            if !MULTIMODAL_TASKS.contains(&name.as_str()) {
                let reason =
                    format!("no such task; there are {}", choices(name, &MULTIMODAL_TASKS));
                return fail("tasks", name, reason);
            }
            if self.tasks[..i].contains(name) {
                return fail("tasks", name, "named twice".into());
            }
        }
        if self.patch == 0 {
            return fail("patch", "0", "must be positive".into());
        }
        if self.images.is_none() && !8usize.is_multiple_of(self.patch) {
            let reason = "must divide the images' side, 8".into();
            return fail("patch", &self.patch.to_string(), reason);
        }
        Ok(())
    }

    fn load_images(&self) -> Result<Images> {
        self.validate()?;
        let images = match &self.images {
            None => Images::digits(),
            Some(path) => Images::load(path)?,
        };
        if !images.side.is_multiple_of(self.patch) {
            let reason = format!("must divide the images' side, {}", images.side);
            return Err(Error::config("data", "patch", self.patch, reason));
        }
        Ok(images)
    }

    /// What the positions of rows are: what a model's `input.types` must be,
    /// but for widths and shared projections.
    ///
    /// # Errors
    /// If the images cannot be read.
    pub fn types(&self) -> Result<Vec<StreamType>> {
        Ok(words::types(self.load_images()?.side, self.patch, PIECE))
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        words::VOCABULARY
    }

    /// Positions of the longest row, for images of `side`.
    fn window(&self, side: usize) -> usize {
        let patches = (side / self.patch) * (side / self.patch);
        // BOS, two images, the longest question of two images, SEP, answer.
        (1 + 2 * patches + 6 + 1 + 1).max(1 + 8 + 8 + 1 + 8)
    }

    /// The longest row.
    ///
    /// # Errors
    /// If the images cannot be read.
    pub fn longest(&self) -> Result<usize> {
        Ok(self.window(self.load_images()?.side))
    }

    /// What answers each task.
    pub(crate) fn heads(&self) -> Vec<TaskHead> {
        let head = |name: &&str| TaskHead {
            name: (*name).into(),
            head: Head::LanguageModel,
            outputs: words::VOCABULARY,
        };
        MULTIMODAL_TASKS.iter().map(head).collect()
    }

    /// The data; training rows are drawn from `seed`.
    ///
    /// # Errors
    /// As [`MultimodalConfig::validate`], or if the images cannot be read.
    pub fn dataset(&self, seed: u64) -> Result<MultimodalDataset> {
        let images = self.load_images()?;
        let types = words::types(images.side, self.patch, PIECE);
        let ids = self.tasks.iter().map(|name| {
            MULTIMODAL_TASKS.iter().position(|task| task == name).expect("checked") as u32
        });
        // Examples are made as they are wanted: the tasks never end.
        let counts: Vec<_> = self.tasks.iter().map(|name| (name.as_str(), None)).collect();
        let draws = Draws::new(&specialformer_train::Sampling::Uniform, seed, &counts)?;
        Ok(MultimodalDataset {
            tasks: ids.collect(),
            source: Source::new(images, self.augment, self.shifted, seed),
            layout: RowLayout { types, patch: self.patch },
            draws,
        })
    }
}

/// How an example becomes a row.
#[derive(Debug, Clone)]
pub(crate) struct RowLayout {
    pub(crate) types: Vec<StreamType>,
    pub(crate) patch: usize,
}

/// A row in parts that segments can be made of.
#[derive(Debug, Default)]
pub(crate) struct RowParts {
    images: Vec<Vec<f32>>,
    series: Vec<f32>,
    /// From the question to the answer's last token but one.
    text: Vec<u32>,
    /// What is predicted at the row's last positions.
    targets: Vec<u32>,
}

impl RowParts {
    /// Ends the row where its answer's token `count` is to be predicted.
    pub(crate) fn ends_before(&mut self, count: usize) {
        let separator = self.text.iter().position(|&token| token == SEP).unwrap_or(0);
        self.text.truncate(separator + 1 + count);
        self.targets.clear();
    }
}

impl RowLayout {
    /// The side of the images.
    pub(crate) fn side(&self) -> usize {
        self.types[words::IMAGE].grid.map_or(0, |grid| grid[0] * self.patch)
    }

    /// The parts of an example's row. Without an answer it ends at SEP.
    pub(crate) fn parts(&self, example: &MultimodalExample) -> Result<RowParts> {
        let side = self.side();
        let images = example
            .images
            .iter()
            .map(|pixels| Ok(image_patches(pixels, [side, side], 1, self.patch)?));
        let mut text = example.question.clone();
        text.push(SEP);
        let mut targets = example.answer.clone();
        // An answer of one token needs no end.
        if targets.len() > 1 {
            targets.push(EOS);
        }
        text.extend(targets.iter().take(targets.len().saturating_sub(1)));
        Ok(RowParts {
            images: images.collect::<Result<_>>()?,
            series: example.series.clone(),
            text,
            targets,
        })
    }

    /// A batch of rows.
    pub(crate) fn batch(&self, rows: &[RowParts], tasks: &[u32], batch: &mut Batch) -> Result<()> {
        let segments: Vec<Vec<Segment<'_>>> = rows
            .iter()
            .map(|row| {
                let mut all = vec![Segment::Tokens { of: words::TEXT, tokens: &[BOS] }];
                let image = |values| Segment::Features { of: words::IMAGE, values };
                all.extend(row.images.iter().map(|image| image.as_slice()).map(image));
                if !row.series.is_empty() {
                    let values = row.series.as_slice();
                    all.push(Segment::Features { of: words::SERIES, values });
                }
                let runs = row.text.chunk_by(|a, b| words::type_of(*a) == words::type_of(*b));
                all.extend(
                    runs.map(|tokens| Segment::Tokens { of: words::type_of(tokens[0]), tokens }),
                );
                all
            })
            .collect();
        let made = MultimodalBatch::new(&self.types, &segments)?;
        let length = made.streams.length;
        batch.reset(rows.len(), length, length)?;
        batch.tokens_mut().copy_from_slice(&made.tokens);
        batch.task_ids_mut().copy_from_slice(tasks);
        for (row, (parts, &n)) in rows.iter().zip(&made.streams.lengths).enumerate() {
            batch.lengths_mut()[row] = n as u32;
            let first = row * length + n - parts.targets.len().min(n);
            batch.targets_mut()[first..first + parts.targets.len()].copy_from_slice(&parts.targets);
        }
        let streams = made.streams;
        batch.set_streams(streams.types, streams.places, made.feature_width, made.features)?;
        debug_assert!(batch.all().targets().iter().all(|&t| t == IGNORE || t < 1 << 16));
        Ok(())
    }
}

/// Questions and answers over several modalities. Every row depends on the
/// seed, its task and the number of the task's rows before it alone.
#[derive(Debug)]
pub struct MultimodalDataset {
    tasks: Vec<u32>,
    source: Source,
    layout: RowLayout,
    draws: Draws,
}

impl MultimodalDataset {
    /// Example `index` of a task's held-out data.
    ///
    /// # Errors
    /// If there is no such task or example.
    pub fn held_out_example(
        &self,
        task: usize,
        set: HeldOut,
        index: usize,
    ) -> Result<MultimodalExample> {
        let split = split(set);
        if task >= MULTIMODAL_TASKS.len() || index >= self.source.held_out(task, split) {
            let reason = format!("no task {task} with an example {index}");
            return Err(Error::Data { place: "multimodal".into(), reason });
        }
        Ok(self.source.example(task, split, index as u64))
    }

    fn rows(&self, rows: &[(u32, MultimodalExample)], batch: &mut Batch) -> Result<()> {
        let parts = rows
            .iter()
            .map(|(_, example)| self.layout.parts(example))
            .collect::<Result<Vec<_>>>()?;
        let tasks: Vec<u32> = rows.iter().map(|(task, _)| *task).collect();
        self.layout.batch(&parts, &tasks, batch)
    }
}

fn split(set: HeldOut) -> Split {
    match set {
        HeldOut::Validation => Split::Validation,
        HeldOut::Test => Split::Test,
    }
}

impl Dataset for MultimodalDataset {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.draws.next_batch(rows);
        let mut examples = Vec::with_capacity(rows);
        for row in 0..rows {
            let choice = self.draws.task(row);
            let (task, index) = (self.tasks[choice], self.draws.next_example(choice));
            examples.push((task, self.source.example(task as usize, Split::Train, index)));
        }
        Ok(self.rows(&examples, batch)?)
    }

    fn cursor(&self) -> Vec<u64> {
        self.draws.cursor()
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.draws.seek(cursor)
    }

    /// The tasks take turns; one with too few held-out examples gives what it
    /// has.
    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let split = split(set);
        let mut examples = Vec::new();
        for index in 0.. {
            let before = examples.len();
            for &task in &self.tasks {
                let left = index < self.source.held_out(task as usize, split);
                if left && examples.len() < size {
                    examples.push((task, self.source.example(task as usize, split, index as u64)));
                }
            }
            if examples.len() == before {
                break;
            }
        }
        let mut batch = Batch::default();
        self.rows(&examples, &mut batch)?;
        Ok(Some(batch))
    }

    fn task_names(&self) -> Vec<String> {
        MULTIMODAL_TASKS.map(String::from).to_vec()
    }
}
