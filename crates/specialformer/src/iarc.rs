//! The IARC task-switching benchmark as a dataset for the trainer, and the
//! models of its study.

use serde::{Deserialize, Serialize};
use specialformer_attention::AttentionKind;
use specialformer_iarc_data as data;
use specialformer_iarc_data::{BatchOptions, Batches, Cursor, Iarc, Settings, Split, Subtask};
use specialformer_nn::Activation;
use specialformer_nn::names::choices;
use specialformer_train::{Batch, BoxError, Dataset, HeldOut, IGNORE};

use crate::config::{
    BaseConfig, CisformerConfig, LstmConfig, MlpConfig, ModelConfig, Positions, TransformerConfig,
};
use crate::error::{Error, Result};

/// Which positions of a training window carry a loss; scores are always of
/// the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// The token after the window.
    #[default]
    Last,
    /// Every digit whose sources lie in the window.
    All,
}

/// The `[data]` section of an IARC run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IarcConfig {
    /// N, the number of digits.
    pub digits: usize,
    /// T, the tokens that a model sees.
    pub window: usize,
    /// p, the probability of a task switch once it is allowed.
    pub switch_probability: f64,
    /// D, how far the context task points back.
    pub pointer_range: usize,
    /// Where the training signal is.
    pub scoring: Scoring,
}

impl Default for IarcConfig {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            digits: settings.digits,
            window: settings.window,
            switch_probability: settings.switch_probability,
            pointer_range: settings.pointer_range,
            scoring: Scoring::Last,
        }
    }
}

impl IarcConfig {
    /// The benchmark with these settings.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn benchmark(&self) -> Result<Iarc> {
        let settings = Settings {
            digits: self.digits,
            window: self.window,
            switch_probability: self.switch_probability,
            pointer_range: self.pointer_range,
            ..Settings::default()
        };
        Ok(Iarc::new(settings)?)
    }

    /// Number of tokens: digits and four controls.
    pub fn vocabulary(&self) -> usize {
        self.digits + Subtask::COUNT
    }
}

/// IARC windows as training batches.
#[derive(Debug)]
pub struct IarcDataset {
    iarc: Iarc,
    config: IarcConfig,
    seed: u64,
    /// Made when the batch size is known.
    batches: Option<Batches>,
    buffer: data::Batch,
    next: u64,
}

impl IarcDataset {
    /// Training windows drawn from `seed`; held-out sets are the same for all
    /// seeds.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn new(config: &IarcConfig, seed: u64) -> Result<Self> {
        Ok(Self {
            iarc: config.benchmark()?,
            config: config.clone(),
            seed,
            batches: None,
            buffer: data::Batch::zeros(0, config.window),
            next: 0,
        })
    }

    /// The benchmark itself.
    pub fn benchmark(&self) -> &Iarc {
        &self.iarc
    }

    fn batches(&mut self, rows: usize) -> Result<&mut Batches, BoxError> {
        let stale = self.batches.as_ref().is_none_or(|b| b.options().batch_size != rows);
        if stale {
            let scoring = match self.config.scoring {
                Scoring::Last => data::Scoring::Last,
                Scoring::All => data::Scoring::All,
            };
            let options =
                BatchOptions { split: Split::Train, scoring, batch_size: rows, seed: self.seed };
            let mut batches = self.iarc.batches(options)?;
            let fingerprint = batches.cursor().fingerprint;
            batches.seek(Cursor { next_batch: self.next, fingerprint })?;
            self.batches = Some(batches);
        }
        Ok(self.batches.as_mut().expect("it was just made"))
    }
}

/// Copies windows with P = 1 target (the last) or one at each position.
fn convert(from: &data::Batch, scoring: Scoring, to: &mut Batch) -> Result<(), BoxError> {
    let (rows, window) = from.tokens.dim();
    let positions = if scoring == Scoring::All { window } else { 1 };
    to.reset(rows, window, positions)?;
    let first = window - positions;
    for row in 0..rows {
        let tokens = &mut to.tokens_mut()[row * window..(row + 1) * window];
        for (out, &token) in tokens.iter_mut().zip(from.tokens.row(row)) {
            *out = token;
        }
        for t in 0..positions {
            let at = (row, first + t);
            let target = if from.loss_mask[at] { from.targets[at] } else { IGNORE };
            to.targets_mut()[row * positions + t] = target;
        }
    }
    let labels = to.labels_mut();
    for row in 0..rows {
        for t in 0..positions {
            labels[row * positions + t] = from.subtasks[(row, first + t)].index() as u16;
        }
    }
    Ok(())
}

impl Dataset for IarcDataset {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        let mut buffer = std::mem::replace(&mut self.buffer, data::Batch::zeros(0, 0));
        self.batches(rows)?.fill(&mut buffer)?;
        convert(&buffer, self.config.scoring, batch)?;
        self.buffer = buffer;
        self.next += 1;
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        vec![self.next, self.seed]
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        match cursor {
            &[next, seed] if seed == self.seed => {
                (self.next, self.batches) = (next, None);
                Ok(())
            }
            _ => {
                Err(format!("cursor {cursor:?} is not of IARC data with seed {}", self.seed).into())
            }
        }
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let split = match set {
            HeldOut::Validation => Split::Validation,
            HeldOut::Test => Split::Test,
        };
        let mut batch = Batch::default();
        convert(&self.iarc.evaluation_set(split, size)?, Scoring::Last, &mut batch)?;
        Ok(Some(batch))
    }

    fn label_names(&self) -> Vec<String> {
        Subtask::ALL.iter().map(ToString::to_string).collect()
    }
}

/// How models of the study are made comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matching {
    /// Width 16, 2 heads, 2 layers, feed-forward 64: the cisformer then has
    /// about T times the transformer's parameters.
    SameShape,
    /// About 103,000 parameters each.
    SameParameters,
}

/// A model of the study with the learning rate that it is trained with.
#[derive(Debug, Clone, PartialEq)]
pub struct StudyModel {
    /// Its name, as `--models` takes it.
    pub name: &'static str,
    /// What it is made comparable by.
    pub matching: Matching,
    /// The model.
    pub config: ModelConfig,
    /// Peak learning rate.
    pub learning_rate: f64,
}

/// The models of the study for a benchmark with these settings.
pub fn study_models(data: &IarcConfig) -> Vec<StudyModel> {
    let expressive = AttentionKind::Expressive { epsilon: 1e-7 };
    let base = |attention, width, heads, feed_forward| BaseConfig {
        outputs: Some(data.digits),
        attention,
        ..BaseConfig::new(data.vocabulary(), width, 2, heads, feed_forward, data.window)
    };
    let transformer = |positions, attention, width, heads, feed_forward| {
        let base = base(attention, width, heads, feed_forward);
        ModelConfig::Transformer(TransformerConfig { base, kv_heads: None, positions })
    };
    let cisformer =
        |attention| ModelConfig::Cisformer(CisformerConfig { base: base(attention, 16, 2, 64) });
    let lstm = |embedding, hidden| {
        ModelConfig::Lstm(LstmConfig {
            vocabulary: data.vocabulary(),
            outputs: Some(data.digits),
            embedding,
            hidden,
            layers: 1,
        })
    };
    let mlp = ModelConfig::Mlp(MlpConfig {
        vocabulary: data.vocabulary(),
        outputs: Some(data.digits),
        window: data.window,
        hidden: vec![440],
        activation: Activation::Gelu,
    });
    let small = |positions, attention| transformer(positions, attention, 16, 2, 64);
    let large = |positions, attention| transformer(positions, attention, 64, 4, 256);
    let softmax = AttentionKind::Softmax;
    use Matching::{SameParameters, SameShape};
    use Positions::{Alibi, Learned, Rope};
    let model = |name, matching, config, learning_rate| StudyModel {
        name,
        matching,
        config,
        learning_rate,
    };
    vec![
        model("cisformer-expressive", SameShape, cisformer(expressive), 5e-3),
        model("cisformer-softmax", SameShape, cisformer(softmax), 5e-3),
        model("transformer-softmax", SameShape, small(Learned, softmax), 5e-3),
        model("transformer-expressive", SameShape, small(Learned, expressive), 5e-3),
        model("transformer-softmax-none", SameShape, small(Positions::None, softmax), 5e-3),
        model("transformer-expressive-none", SameShape, small(Positions::None, expressive), 5e-3),
        model("transformer-softmax-alibi", SameShape, small(Alibi, softmax), 5e-3),
        model("transformer-expressive-alibi", SameShape, small(Alibi, expressive), 5e-3),
        model("transformer-softmax-rope", SameShape, small(Rope, softmax), 5e-3),
        model("transformer-expressive-rope", SameShape, small(Rope, expressive), 5e-3),
        model("lstm-small", SameShape, lstm(16, 32), 5e-3),
        model("transformer-softmax-large", SameParameters, large(Learned, softmax), 2e-3),
        model("transformer-expressive-large", SameParameters, large(Learned, expressive), 2e-3),
        model(
            "transformer-softmax-none-large",
            SameParameters,
            large(Positions::None, softmax),
            2e-3,
        ),
        model(
            "transformer-expressive-none-large",
            SameParameters,
            large(Positions::None, expressive),
            2e-3,
        ),
        model("lstm-large", SameParameters, lstm(16, 144), 4e-3),
        model("mlp", SameParameters, mlp, 2e-3),
    ]
}

/// The models of those names, in their order.
///
/// # Errors
/// [`Error::Config`] listing the known names if one is unknown.
pub fn models_named(names: &[String], data: &IarcConfig) -> Result<Vec<StudyModel>> {
    let known = study_models(data);
    let find = |name: &String| {
        known.iter().find(|model| model.name == name).cloned().ok_or_else(|| {
            let known: Vec<_> = known.iter().map(|model| model.name).collect();
            let reason = format!("no such model; there are {}", choices(name, &known));
            Error::config("iarc", "models", name, reason)
        })
    };
    names.iter().map(find).collect()
}
