//! What a report shows of routing signatures.

use serde::Serialize;

use super::{ReportError, Result};

/// Signatures of labelled prompts, and what they know.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Signatures {
    /// The labels.
    pub(crate) labels: Vec<String>,
    /// The layers with experts, in order.
    pub(crate) layers: Vec<SignatureLayer>,
    /// Each label's mean share by layer and expert [labels][L][E].
    pub(crate) means: Vec<Vec<Vec<f32>>>,
    /// The prompts in the plane of their largest differences.
    pub(crate) points: Vec<SignaturePoint>,
    /// The share of variance of the plane's two axes.
    pub(crate) explained: Vec<f64>,
    /// Prompts whose routing is shown over their text.
    pub(crate) texts: Vec<RoutedText>,
    /// Signatures and what they are compared with.
    #[serde(skip)]
    pub(crate) comparison: Vec<SignatureRow>,
    /// The same by layer.
    #[serde(skip)]
    pub(crate) by_layer: Vec<SignatureRow>,
    /// Prompts of label r that the classifier takes for c, at \[r\]\[c\].
    #[serde(skip)]
    pub(crate) confusion: Vec<Vec<u64>>,
    /// The permutation test in words.
    #[serde(skip)]
    pub(crate) test: String,
    /// The experts that carry each label, each with its interval.
    #[serde(skip)]
    pub(crate) carriers: Vec<Vec<(String, [f64; 3])>>,
}

/// A layer with experts.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SignatureLayer {
    /// Its name.
    pub(crate) name: String,
    /// Number of its experts.
    pub(crate) experts: usize,
}

/// A prompt in the plane.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SignaturePoint {
    /// Its name.
    pub(crate) id: String,
    /// Its label's number.
    pub(crate) label: usize,
    /// Its place.
    pub(crate) at: [f32; 2],
}

/// A prompt and where its tokens went.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct RoutedText {
    /// Its name.
    pub(crate) id: String,
    /// Its label's number.
    pub(crate) label: usize,
    /// What each token stands for.
    pub(crate) pieces: Vec<String>,
    /// How many of them are the prompt's own; the rest was generated.
    pub(crate) own: usize,
    /// Each token's experts, best first, by layer [L][T][K].
    pub(crate) experts: Vec<Vec<Vec<u16>>>,
    /// Their weights in percent.
    pub(crate) weights: Vec<Vec<Vec<u8>>>,
}

/// A line of a table of similarities.
#[derive(Debug, Clone, Default)]
pub(crate) struct SignatureRow {
    /// What it is of.
    pub(crate) name: String,
    /// Mean and spread of cosines within labels, then across.
    pub(crate) cosines: Option<[f64; 4]>,
    /// Cohen's d.
    pub(crate) effect: Option<f64>,
    /// Accuracy of a classifier and its spread.
    pub(crate) accuracy: [f64; 2],
}

impl Signatures {
    /// Checks that every list has its labels, layers and experts.
    pub(super) fn check(&self) -> Result<()> {
        let fail = |what: &str| {
            Err(ReportError::Inconsistent { at: "signatures".into(), what: what.into() })
        };
        let by_layer = |mean: &Vec<Vec<f32>>| {
            mean.len() == self.layers.len()
                && mean.iter().zip(&self.layers).all(|(row, layer)| row.len() == layer.experts)
        };
        if self.means.len() != self.labels.len() || !self.means.iter().all(by_layer) {
            return fail("the means are not of these labels and layers");
        }
        if self.points.iter().any(|point| point.label >= self.labels.len()) {
            return fail("a prompt has a label that is not listed");
        }
        let fits = |text: &RoutedText| {
            let per_token = |rows: usize| rows == text.pieces.len();
            text.label < self.labels.len()
                && text.experts.len() == self.layers.len()
                && text.weights.len() == self.layers.len()
                && text.experts.iter().all(|layer| per_token(layer.len()))
                && text.weights.iter().all(|layer| per_token(layer.len()))
        };
        if !self.texts.iter().all(fits) {
            return fail("a text's routing is not of its tokens and these layers");
        }
        Ok(())
    }
}
