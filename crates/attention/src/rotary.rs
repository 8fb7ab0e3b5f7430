//! Rotary positions of a layer: frequencies, scaled for long texts, and a
//! table that grows with the longest text seen.

use std::f64::consts::TAU;
use std::sync::{Arc, PoisonError, RwLock};

use specialformer_nn::NnError;
use specialformer_tensor::Element;

use crate::error::Result;
use crate::rope::RopeTable;

/// Positions that a table begins with.
const FIRST_POSITIONS: usize = 128;

/// How rotary frequencies f_i = θ^(−2i/D) are changed for texts longer than
/// those of the first training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: those of long waves divided by the factor, those of short
    /// waves kept, and a ramp between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves longer than `original_positions` over this are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original_positions` over this are kept.
        high_freq_factor: f64,
        /// Positions in the first training.
        original_positions: usize,
    },
    /// YaRN (Peng et al. 2023): a ramp over the pairs, and a factor on cosines
    /// and sines.
    Yarn {
        /// The factor.
        factor: f64,
        /// Pairs with more rotations over the first training are kept.
        beta_fast: f64,
        /// Pairs with fewer rotations over the first training are divided.
        beta_slow: f64,
        /// Factor on cosines and sines; 1 + 0.1·ln(factor) if `None`.
        attention_factor: Option<f64>,
        /// Positions in the first training.
        original_positions: usize,
    },
}

impl RopeScaling {
    /// The frequencies of `width` rotated elements: `width`/2 of them.
    ///
    /// # Errors
    /// [`NnError::Config`] if θ or a factor is not a positive finite number,
    /// or Llama 3's factors are not in their order.
    ///
    /// ```
    /// use specialformer_attention::RopeScaling;
    /// let scaling = RopeScaling::Linear { factor: 2.0 };
    /// assert_eq!(scaling.frequencies(4, 100.0)?, [0.5, 0.05]);
    /// # Ok::<(), specialformer_attention::AttentionError>(())
    /// ```
    pub fn frequencies(&self, width: usize, theta: f64) -> Result<Vec<f64>> {
        positive("theta", theta)?;
        let plain = (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64));
        Ok(match *self {
            Self::None => plain.collect(),
            Self::Linear { factor } => {
                positive("factor", factor)?;
                plain.map(|f| f / factor).collect()
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor)?;
                let rotations = |f: f64| original_positions as f64 * f / TAU;
                plain
                    .map(|f| {
                        let above = rotations(f) - low_freq_factor;
                        let kept = (above / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                        (1.0 - kept) * f / factor + kept * f
                    })
                    .collect()
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_positions, .. } => {
                positive("factor", factor)?;
                positive("beta_fast", beta_fast)?;
                positive("beta_slow", beta_slow)?;
                // The pair that turns so often over the first training.
                let pair = |rotations: f64| {
                    let per_radian = original_positions as f64 / (rotations * TAU);
                    width as f64 * per_radian.ln() / (2.0 * theta.ln())
                };
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(width as f64 - 1.0);
                let span = if high == low { 1e-3 } else { high - low };
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let divided = ((i as f64 - low) / span).clamp(0.0, 1.0);
                        divided * f / factor + (1.0 - divided) * f
                    })
                    .collect()
            }
        })
    }

    /// The factor on cosines and sines.
    pub fn magnitude(&self) -> f64 {
        match *self {
            Self::Yarn { attention_factor: Some(factor), .. } => factor,
            Self::Yarn { factor, .. } if factor > 1.0 => 1.0 + 0.1 * factor.ln(),
            _ => 1.0,
        }
    }
}

fn positive(field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(NnError::config("rope", field, value, "must be positive and finite").into())
}

/// The positions of one or more layers. Clones share the table.
#[derive(Debug, Clone)]
pub(crate) struct Rotary<E: Element> {
    frequencies: Arc<[f64]>,
    magnitude: f64,
    /// Positions below this exist.
    limit: usize,
    table: Arc<RwLock<RopeTable<E>>>,
}

impl<E: Element> Rotary<E> {
    pub(crate) fn new(frequencies: Vec<f64>, magnitude: f64, limit: usize) -> Result<Self> {
        let first = RopeTable::scaled(&frequencies, magnitude, limit.min(FIRST_POSITIONS))?;
        let table = Arc::new(RwLock::new(first));
        Ok(Self { frequencies: frequencies.into(), magnitude, limit, table })
    }

    /// A table with at least so many positions, unless the limit is below.
    pub(crate) fn up_to(&self, positions: usize) -> Result<RopeTable<E>> {
        let wanted = positions.min(self.limit);
        {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            if table.positions() >= wanted {
                return Ok(table.clone());
            }
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.positions() < wanted {
            let grown = wanted.checked_next_power_of_two().unwrap_or(wanted).min(self.limit);
            *table = RopeTable::scaled(&self.frequencies, self.magnitude, grown)?;
        }
        Ok(table.clone())
    }

    /// Uses the other's table if it holds the same numbers.
    pub(crate) fn share(&mut self, other: &Self) {
        let same = self.frequencies == other.frequencies
            && self.magnitude == other.magnitude
            && self.limit == other.limit;
        if same {
            *self = other.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 64,
        };
        let plain = RopeScaling::None.frequencies(16, 500_000.0).unwrap();
        let scaled = scaling.frequencies(16, 500_000.0).unwrap();
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[7], plain[7] / 8.0);
        assert!(scaled[1] < plain[1] && scaled[1] > plain[1] / 8.0);
    }

    #[test]
    fn yarn_with_factor_one_changes_nothing() {
        let scaling = RopeScaling::Yarn {
            factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            original_positions: 2048,
        };
        let plain = RopeScaling::None.frequencies(32, 10_000.0).unwrap();
        let scaled = scaling.frequencies(32, 10_000.0).unwrap();
        assert!(plain.iter().zip(&scaled).all(|(a, b)| (a - b).abs() <= 1e-15 * a));
        assert_eq!(scaling.magnitude(), 1.0);
    }

    #[test]
    fn tables_grow_and_are_shared() {
        let make = || Rotary::<f32>::new(vec![1.0, 0.1], 1.0, 1000).unwrap();
        let (first, mut second) = (make(), make());
        second.share(&first);
        assert_eq!(first.up_to(10).unwrap().positions(), 128);
        assert_eq!(second.up_to(300).unwrap().positions(), 512);
        assert_eq!(first.up_to(1).unwrap().positions(), 512);
        assert_eq!(first.up_to(5000).unwrap().positions(), 1000);
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let error = RopeScaling::Linear { factor: 0.0 }.frequencies(4, 100.0).unwrap_err();
        assert_eq!(error.to_string(), "rope: factor = 0: must be positive and finite");
    }
}
