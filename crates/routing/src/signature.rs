//! Routing signatures: what a prompt's tokens chose, as a vector over all
//! layers × experts.
//!
//! A [`SignatureSum`] adds up tokens one by one in integers, so partial sums
//! merge exactly: any split of a prompt, in any order, gives the same bits.
//! [`SignatureSum::signature`] normalises the sums.

use serde::{Deserialize, Serialize};

use crate::error::{Result, RoutingError};
use crate::statistics::shares_of;
use crate::trace::RoutingTrace;

const OP: &str = "routing signature";

/// Combine weights are added up in units of 2⁻⁶⁰: an `f32` in [2⁻³⁶, 1] has no
/// digit below that, and a sum of 2⁶⁸ weights of 1 does not overflow.
const UNIT: f64 = (1u64 << 60) as f64;

/// What a choice counts in a signature. In each layer the entries are divided
/// by their sum, so they are shares that sum to 1 (all 0 where no token chose
/// any expert).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureKind {
    /// 1: the share of (token, slot) assignments that went to the expert.
    #[default]
    Count,
    /// The combine weight: the expert's share of the summed weights.
    Weight,
    /// The rank from the end: of a token's n choices in their order, the first
    /// counts n, the last 1. Gates list the best first.
    Rank,
}

/// A layer that has experts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerShape {
    /// The layer's name, e.g. `blocks.2`.
    pub name: String,
    /// Number of experts E.
    pub experts: usize,
}

impl LayerShape {
    /// A layer of that name and number of experts.
    pub fn new(name: impl Into<String>, experts: usize) -> Self {
        Self { name: name.into(), experts }
    }
}

/// The sums of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LayerSum {
    tokens: u64,
    counts: Vec<u64>,
    ranks: Vec<u64>,
    /// In units of 2⁻⁶⁰.
    weights: Vec<u128>,
}

/// What tokens chose, added up.
///
/// ```
/// use specialformer_routing::{SignatureKind, SignatureSum};
/// let mut sum = SignatureSum::new(&[3]);
/// sum.add_token(0, [(2, 0.75), (0, 0.25)])?;
/// sum.add_token(0, [(2, 0.5), (1, 0.5)])?;
/// assert_eq!(sum.signature(SignatureKind::Count), [0.25, 0.25, 0.5]);
/// assert_eq!(sum.signature(SignatureKind::Weight), [0.125, 0.25, 0.625]);
/// assert_eq!(sum.signature(SignatureKind::Rank), [1.0 / 6.0, 1.0 / 6.0, 4.0 / 6.0]);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureSum {
    layers: Vec<LayerSum>,
}

impl SignatureSum {
    /// Nothing counted yet, for layers of so many experts each.
    pub fn new(experts: &[usize]) -> Self {
        let layer = |&experts: &usize| LayerSum {
            tokens: 0,
            counts: vec![0; experts],
            ranks: vec![0; experts],
            weights: vec![0; experts],
        };
        Self { layers: experts.iter().map(layer).collect() }
    }

    /// Nothing counted yet, for these layers.
    pub fn of_layers(layers: &[LayerShape]) -> Self {
        Self::new(&layers.iter().map(|layer| layer.experts).collect::<Vec<_>>())
    }

    /// Sums of single choices of weight 1, given how often each expert of each
    /// layer was chosen.
    pub fn from_counts<'a>(counts: impl IntoIterator<Item = &'a [u64]>) -> Self {
        let layer = |counts: &[u64]| LayerSum {
            tokens: counts.iter().sum(),
            counts: counts.to_vec(),
            ranks: counts.to_vec(),
            weights: counts.iter().map(|&n| u128::from(n) * UNIT as u128).collect(),
        };
        Self { layers: counts.into_iter().map(layer).collect() }
    }

    /// Number of layers L.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of experts of each layer \[L\].
    pub fn experts(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.counts.len()).collect()
    }

    /// Tokens that were counted in a layer; those without a choice are not.
    pub fn tokens(&self, layer: usize) -> u64 {
        self.layers[layer].tokens
    }

    /// Assignments of a layer's experts \[E\].
    pub fn counts(&self, layer: usize) -> &[u64] {
        &self.layers[layer].counts
    }

    /// Adds one token's choices in a layer, best first, with their combine
    /// weights.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the layer or an expert does not exist, or
    /// a weight is negative or not finite; then nothing was counted.
    pub fn add_token(
        &mut self,
        layer: usize,
        choices: impl IntoIterator<Item = (usize, f32), IntoIter: ExactSizeIterator + Clone>,
    ) -> Result<()> {
        let layers = self.layers.len();
        let Some(sum) = self.layers.get_mut(layer) else {
            let what = format!("there are {layers} layers");
            return Err(RoutingError::argument(OP, "layer", layer, what));
        };
        let choices = choices.into_iter();
        let experts = sum.counts.len();
        for (expert, weight) in choices.clone() {
            if expert >= experts {
                let what = format!("layer {layer} has {experts} experts");
                return Err(RoutingError::argument(OP, "expert", expert, what));
            }
            if !(weight >= 0.0 && weight.is_finite()) {
                let what = "must be finite and not negative";
                return Err(RoutingError::argument(OP, "weight", weight, what));
            }
        }
        sum.add_checked(choices);
        Ok(())
    }

    /// Adds the tokens of a trace that `wanted` accepts by their number.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the trace has other layers; as
    /// [`add_token`](Self::add_token).
    pub fn add_trace(
        &mut self,
        trace: &RoutingTrace,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let of_trace: Vec<usize> = trace.layers.iter().map(|layer| layer.experts()).collect();
        self.check_shape("experts of the trace's layers", &of_trace)?;
        for (number, layer) in trace.layers.iter().enumerate() {
            for token in (0..layer.tokens()).filter(|&token| wanted(token)) {
                let (chosen, weights) = layer.slices(token);
                let choices = chosen.iter().zip(weights).map(|(&e, &w)| (e as usize, w));
                self.add_token(number, choices)?;
            }
        }
        Ok(())
    }

    /// Adds what another sum counted. Exact: the result is that of adding all
    /// tokens to one sum, in any order.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the layers differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.check_shape("experts of the other's layers", &other.experts())?;
        fn add<T: Copy + std::ops::AddAssign>(sums: &mut [T], more: &[T]) {
            sums.iter_mut().zip(more).for_each(|(sum, &more)| *sum += more);
        }
        for (own, other) in self.layers.iter_mut().zip(&other.layers) {
            own.tokens += other.tokens;
            add(&mut own.counts, &other.counts);
            add(&mut own.ranks, &other.ranks);
            add(&mut own.weights, &other.weights);
        }
        Ok(())
    }

    /// The shares of one layer's experts \[E\]; see [`SignatureKind`].
    pub fn layer(&self, kind: SignatureKind, layer: usize) -> Vec<f64> {
        let sum = &self.layers[layer];
        match kind {
            SignatureKind::Count => shares_of(sum.counts.iter().map(|&n| u128::from(n))),
            SignatureKind::Rank => shares_of(sum.ranks.iter().map(|&n| u128::from(n))),
            SignatureKind::Weight => shares_of(sum.weights.iter().copied()),
        }
    }

    /// The shares of all layers, one layer after the other [Σ E].
    pub fn signature(&self, kind: SignatureKind) -> Vec<f64> {
        (0..self.layers.len()).flat_map(|layer| self.layer(kind, layer)).collect()
    }

    fn check_shape(&self, name: &'static str, other: &[usize]) -> Result<()> {
        let own = self.experts();
        if own == other {
            return Ok(());
        }
        let what = format!("must be {own:?}");
        Err(RoutingError::argument(OP, name, format!("{other:?}"), what))
    }
}

impl LayerSum {
    fn add_checked(&mut self, choices: impl ExactSizeIterator<Item = (usize, f32)>) {
        let n = choices.len() as u64;
        self.tokens += u64::from(n > 0);
        for (rank, (expert, weight)) in choices.enumerate() {
            self.counts[expert] += 1;
            self.ranks[expert] += n - rank as u64;
            self.weights[expert] += (f64::from(weight) * UNIT) as u128;
        }
    }
}
