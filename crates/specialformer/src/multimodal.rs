//! Answers of a trained model to questions about images, series and words.

use std::path::Path;

use serde::Serialize;
use specialformer_nn::Ctx;
use specialformer_train::{Batch, HeldOut};

use crate::data::multimodal::{RowLayout, words};
use crate::data::{DataConfig, EOS, MULTIMODAL_TASKS, MultimodalConfig, MultimodalExample};
use crate::error::{Error, Result};
use crate::inspect::{RowAttention, row_attention};
use crate::logits::largest;
use crate::models::Model;
use crate::run::{RunConfig, load};

/// The longest answer: eight letters and their end.
const LONGEST: usize = 9;

/// What a model answers to a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MultimodalAnswer {
    /// The question as the model reads it.
    pub question: String,
    /// The answer.
    pub text: String,
    /// The product of its tokens' probabilities, and of its end's.
    pub probability: f64,
    /// How much the position that answers attends to each patch: of every
    /// image rows by columns, averaged over layers and heads. They sum to the
    /// share that goes to images.
    pub patches: Vec<Vec<f64>>,
}

/// A test example with a model's answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MultimodalSample {
    /// The task's name.
    pub task: String,
    /// Pixels of each image, row by row, in [0, 1].
    pub images: Vec<Vec<f32>>,
    /// The series, if there is one.
    pub series: Vec<f32>,
    /// What should have been answered.
    pub expected: String,
    /// What the model answered.
    pub answer: MultimodalAnswer,
}

/// Tokens as text; letters of one word stand side by side.
fn text_of(tokens: &[u32]) -> String {
    tokens.iter().map(|&token| words::name(token)).collect()
}

/// Answers questions with a model that a run trained on several modalities.
///
/// # Example
/// ```no_run
/// use specialformer::MultimodalPredictor;
/// let model = MultimodalPredictor::open("runs/mpt-combined".as_ref())?;
/// let image = vec![0.0; 64];
/// let answer = model.answer(&[image], &[], "which digit?")?;
/// println!("{} ({:.0} %)", answer.text, 100.0 * answer.probability);
/// # Ok::<(), specialformer::Error>(())
/// ```
#[derive(Debug)]
pub struct MultimodalPredictor {
    model: Model,
    layout: RowLayout,
    window: usize,
    tasks: usize,
}

impl MultimodalPredictor {
    /// Of the run in a folder.
    ///
    /// # Errors
    /// As [`load`] and [`MultimodalPredictor::new`].
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, model) = load(folder)?;
        Self::new(&config, model)
    }

    /// Of a model and its run's configuration.
    ///
    /// # Errors
    /// [`Error::Data`] if the run's data are not of several modalities.
    pub fn new(config: &RunConfig, model: Model) -> Result<Self> {
        let DataConfig::Multimodal(data) = &config.data else {
            let reason = "the run's data are not multimodal: the model reads no images";
            return Err(Error::Data { place: config.name.clone(), reason: reason.into() });
        };
        let tasks = match &config.model {
            crate::ModelConfig::Specialformer(model) => model.tasks.len(),
            _ => 0,
        };
        let layout = RowLayout { types: data.types()?, patch: data.patch };
        let window = config.model.window().unwrap_or(usize::MAX);
        Ok(Self { model, layout, window, tasks })
    }

    /// Width and height of the images that the model reads.
    pub fn side(&self) -> usize {
        self.layout.side()
    }

    /// The answer to a question about images (pixels in [0, 1], ink is 1) or a
    /// series.
    ///
    /// # Errors
    /// [`Error::Data`] naming a word that the model does not know;
    /// [`Error::Embedding`] for an image or series of the wrong size;
    /// [`Error::Input`] if an image or series is missing or all together are
    /// too long.
    pub fn answer(
        &self,
        images: &[Vec<f32>],
        series: &[f32],
        question: &str,
    ) -> Result<MultimodalAnswer> {
        self.answer_example(MultimodalExample {
            images: images.to_vec(),
            series: series.to_vec(),
            question: words::parse(question)?,
            answer: Vec::new(),
        })
    }

    /// The model's answers to the first `each` test examples of every task that
    /// the data draw.
    ///
    /// # Errors
    /// As [`MultimodalPredictor::answer`].
    pub fn samples(&self, data: &MultimodalConfig, each: usize) -> Result<Vec<MultimodalSample>> {
        let dataset = data.dataset(0)?;
        let mut samples = Vec::new();
        for (task, name) in MULTIMODAL_TASKS.iter().enumerate() {
            if !data.tasks.iter().any(|drawn| drawn == name) {
                continue;
            }
            for index in 0..each {
                let example = dataset.held_out_example(task, HeldOut::Test, index)?;
                let expected = text_of(&example.answer);
                let (images, series) = (example.images.clone(), example.series.clone());
                let answer = self.answer_example(example)?;
                let task = (*name).to_string();
                samples.push(MultimodalSample { task, images, series, expected, answer });
            }
        }
        Ok(samples)
    }

    /// The answer to an example, whose own answer is not looked at.
    fn answer_example(&self, mut example: MultimodalExample) -> Result<MultimodalAnswer> {
        let images = example.images.len();
        let task = task_of(&example)?;
        let asked: Vec<String> = example.question.iter().map(|&t| words::name(t)).collect();
        let ctx = Ctx::eval();
        let mut probability = 1.0;
        let mut attention = None;
        let mut answer: Vec<u32> = Vec::new();
        loop {
            // One token more than is answered, whose place is predicted.
            example.answer.clone_from(&answer);
            example.answer.push(EOS);
            let mut batch = Batch::default();
            let mut parts = self.layout.parts(&example)?;
            parts.ends_before(answer.len());
            self.layout.batch(&[parts], &[task], &mut batch)?;
            if batch.length() > self.window {
                let what = format!(
                    "question and images take {} positions, the model has {}",
                    batch.length(),
                    self.window
                );
                return Err(Error::Input { model: "specialformer", what });
            }
            let Model::Specialformer(model) = &self.model else {
                let what = "a Specialformer alone reads several modalities".to_string();
                return Err(Error::Input { model: "multimodal", what });
            };
            if self.tasks == 0 {
                batch.task_ids_mut().fill(0);
            }
            if attention.is_none() {
                attention = Some(row_attention(model, &ctx, &batch.all())?);
            }
            let output = model.forward(&ctx, &batch.all())?;
            let logits = output.answers[0].output.value();
            let classes = logits.shape().last_size();
            let last = &logits.as_slice()[logits.len() - classes..];
            let (token, share) = likeliest(last);
            probability *= share;
            let is_letter = words::type_of(token) != words::TEXT;
            if token != EOS {
                answer.push(token);
            }
            if token == EOS || !is_letter || answer.len() >= LONGEST {
                break;
            }
        }
        let attention = attention.expect("there was a first pass");
        Ok(MultimodalAnswer {
            question: asked.join(" "),
            text: text_of(&answer),
            probability,
            patches: self.patches(&attention, images),
        })
    }

    /// What the last position attends to of each image.
    fn patches(&self, attention: &RowAttention, images: usize) -> Vec<Vec<f64>> {
        let grid = self.layout.types[words::IMAGE].grid.unwrap_or([0, 0]);
        let count = grid[0] * grid[1];
        // Behind the row's first token.
        (0..images).map(|i| attention.last[1 + i * count..][..count].to_vec()).collect()
    }
}

/// The task whose kind of question it is.
fn task_of(example: &MultimodalExample) -> Result<u32> {
    let asks = |word: &str| example.question.contains(&words::word(word));
    let name = match () {
        () if asks("series") || asks("shape") => "series",
        () if asks("script") || asks("backwards") => "script",
        () if asks("sum") => "sum",
        () if asks("larger") => "larger",
        () if asks("half") => "half",
        () if asks("even") || asks("odd") => "parity",
        () => "digit",
    };
    let wanted = match name {
        "series" | "script" => 0,
        "sum" | "larger" => 2,
        _ => 1,
    };
    let missing = |what: String| Err(Error::Input { model: "multimodal", what });
    if example.images.len() != wanted {
        let given = example.images.len();
        return missing(format!("images that the question is about: {wanted}; given: {given}"));
    }
    if name == "series" && example.series.is_empty() {
        return missing("the question is about a series, and none is given".into());
    }
    Ok(MULTIMODAL_TASKS.iter().position(|task| *task == name).expect("listed") as u32)
}

/// The likeliest class and its probability.
fn likeliest(logits: &[f32]) -> (u32, f64) {
    let best = largest(logits);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - logits[best]).exp()).sum();
    (best as u32, 1.0 / sum)
}
