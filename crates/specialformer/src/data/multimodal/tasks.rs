//! Questions about images and series, and words in two scripts.

use specialformer_iarc_data::Split;

use super::images::{Change, Images, normal};
use super::words::{self, LETTERS};
use crate::data::words::{Purpose, Words, hash_bytes};

/// The tasks, in the order of their ids.
pub const MULTIMODAL_TASKS: [&str; 7] =
    ["digit", "parity", "half", "larger", "sum", "series", "script"];

/// Numbers of a series, and of one of its positions.
pub(crate) const SERIES_LENGTH: usize = 32;
pub(crate) const PIECE: usize = 4;

const SHAPES: [&str; 5] = ["rises", "falls", "wave", "step", "flat"];

/// An example before it is laid out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MultimodalExample {
    /// Pixels of each image, row by row, in [0, 1].
    pub images: Vec<Vec<f32>>,
    /// The numbers of a series.
    pub series: Vec<f32>,
    /// Tokens of the question.
    pub question: Vec<u32>,
    /// Tokens of the answer.
    pub answer: Vec<u32>,
}

/// Where examples come from and how they are changed.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) images: Images,
    /// The images of each split: training, validation, test.
    splits: [Vec<usize>; 3],
    pub(crate) augment: bool,
    pub(crate) shifted: bool,
    pub(crate) seed: u64,
}

fn index_of(split: Split) -> usize {
    match split {
        Split::Train => 0,
        Split::Validation => 1,
        Split::Test => 2,
    }
}

/// Held-out examples of a task whose examples are drawn.
const DRAWN: usize = 1000;

impl Source {
    pub(crate) fn new(images: Images, augment: bool, shifted: bool, seed: u64) -> Self {
        let splits = [Split::Train, Split::Validation, Split::Test].map(|split| images.of(split));
        Self { images, splits, augment, shifted, seed }
    }

    /// Number of held-out examples of a task: of a task over one image its
    /// images, each once.
    pub(crate) fn held_out(&self, task: usize, split: Split) -> usize {
        if task < 3 { self.splits[index_of(split)].len() } else { DRAWN }
    }

    /// Example `index` of a task.
    pub(crate) fn example(&self, task: usize, split: Split, index: u64) -> MultimodalExample {
        let stream = hash_bytes(MULTIMODAL_TASKS[task].as_bytes());
        let (purpose, seed) = match split {
            Split::Train => (Purpose::Train, self.seed),
            Split::Validation => (Purpose::Validation, 0),
            Split::Test => (Purpose::Test, 0),
        };
        let words = &mut Words::new(seed, purpose, stream, index);
        let own = &self.splits[index_of(split)];
        let pick = |words: &mut Words| match split {
            Split::Train => own[words.below(own.len() as u32) as usize],
            _ => own[index as usize % own.len()],
        };
        let any = |words: &mut Words| own[words.below(own.len() as u32) as usize];
        let change = match (self.shifted, split) {
            (true, _) => Change { translate: 1.0, noise: 0.2 },
            (false, Split::Train) if self.augment => Change { translate: 0.2, noise: 0.06 },
            (false, _) => Change::NONE,
        };
        let side = self.images.side;
        let show = |image, words: &mut Words| change.apply(self.images.pixels(image), side, words);
        let mut example = MultimodalExample::default();
        let ask = |questions: &[&str], words: &mut Words| {
            let question = questions[words.below(questions.len() as u32) as usize];
            question.split(' ').map(words::word).collect()
        };
        match MULTIMODAL_TASKS[task] {
            name @ ("digit" | "parity" | "half") => {
                let image = pick(words);
                let shown = show(image, words);
                let digit = u32::from(self.images.label(image));
                (example.question, example.answer) = match name {
                    "digit" => {
                        let question = ask(&["which digit ?", "what digit is this ?"], words);
                        (question, vec![words::number(digit)])
                    }
                    "parity" => {
                        let question = ask(&["even or odd ?", "is it even or odd ?"], words);
                        let parity = if digit.is_multiple_of(2) { "even" } else { "odd" };
                        (question, vec![words::word(parity)])
                    }
                    _ => {
                        let question = ask(&["more ink in the upper or lower half ?"], words);
                        let ink = |rows: &[f32]| rows.iter().map(|&p| f64::from(p)).sum::<f64>();
                        let (upper, lower) = shown.split_at(shown.len() / 2);
                        let half = if ink(upper) > ink(lower) { "upper" } else { "lower" };
                        (question, vec![words::word(half)])
                    }
                };
                example.images.push(shown);
            }
            name @ ("larger" | "sum") => {
                let pair = [any(words), any(words)];
                example.images = pair.map(|image| show(image, words)).into();
                let [a, b] = pair.map(|image| u32::from(self.images.label(image)));
                (example.question, example.answer) = if name == "sum" {
                    let question = ask(&["what is the sum ?", "how much is the sum ?"], words);
                    (question, vec![words::number(a + b)])
                } else {
                    let question = ask(&["which is larger ?", "which digit is larger ?"], words);
                    let which = match a.cmp(&b) {
                        std::cmp::Ordering::Greater => "left",
                        std::cmp::Ordering::Less => "right",
                        std::cmp::Ordering::Equal => "same",
                    };
                    (question, vec![words::word(which)])
                };
            }
            "series" => {
                let shape = words.below(SHAPES.len() as u32) as usize;
                example.series = self.series(shape, words);
                example.question = ask(&["what does the series do ?", "which shape ?"], words);
                example.answer = vec![words::word(SHAPES[shape])];
            }
            _ => {
                // One letter in two is Greek; one in six where shifted.
                let greek = if self.shifted { 6 } else { 2 };
                let count = words.between(3, 8);
                let letters: Vec<(bool, u32)> =
                    (0..count).map(|_| (words.below(greek) == 0, words.below(LETTERS))).collect();
                let text = letters.iter().map(|&(greek, i)| words::letter(greek, i));
                let question: Vec<u32> =
                    ask(&["write the word in the other script backwards"], words);
                example.question = text.chain(question).collect();
                example.answer =
                    letters.iter().rev().map(|&(greek, i)| words::letter(!greek, i)).collect();
            }
        }
        example
    }

    /// A series of a shape, with noise.
    fn series(&self, shape: usize, words: &mut Words) -> Vec<f32> {
        let unit = |words: &mut Words| f64::from(words.word()) / 4_294_967_296.0;
        let noise = if self.shifted { 0.45 } else { 0.3 };
        let size = 0.6 + 0.6 * unit(words);
        let level = unit(words) - 0.5;
        let phase = unit(words);
        let turns = 1.0 + 1.5 * unit(words);
        let up = if words.below(2) == 0 { 1.0 } else { -1.0 };
        let last = (SERIES_LENGTH - 1) as f64;
        (0..SERIES_LENGTH)
            .map(|i| {
                let t = i as f64 / last;
                let value = match SHAPES[shape] {
                    "rises" => size * (2.0 * t - 1.0),
                    "falls" => -size * (2.0 * t - 1.0),
                    "wave" => size * (std::f64::consts::TAU * (turns * t + phase)).sin(),
                    "step" if t < 0.25 + 0.5 * phase => -up * size,
                    "step" => up * size,
                    _ => 0.0,
                };
                (level + value + noise * normal(words)) as f32
            })
            .collect()
    }
}
