//! Counter-based dropout of attention weights.

use specialformer_tensor::Element;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use crate::error::{AttentionError, Result};

/// Dropout of attention weights: each weight is zeroed with probability p,
/// the others are divided by 1 − p, after normalisation.
///
/// Whether the weight of (batch row, head, query, key) is kept is a hash of
/// the seed and these four numbers, so that tiles decide alike in forward and
/// backward, in any order, and nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    probability: f64,
    seed: u64,
}

impl Dropout {
    /// Dropout with probability p, decided by `seed`; take another seed for
    /// each layer and each step.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] unless 0 ≤ p < 1.
    pub fn new(probability: f64, seed: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            let what = "must be at least 0 and less than 1";
            return Err(AttentionError::argument("dropout", "probability", probability, what));
        }
        Ok(Self { probability, seed })
    }

    /// The probability that a weight is dropped.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// The factor on one weight: 0 or 1/(1 − p).
    pub fn factor(&self, b: usize, h: usize, query: usize, key: usize) -> f64 {
        let (low, high) = self.key_words(b, h, key);
        if keeps(query as u32, low, high, self.threshold()) { self.kept_factor() } else { 0.0 }
    }

    pub(super) fn is_active(&self) -> bool {
        self.probability > 0.0
    }

    /// The factors of consecutive queries on one key.
    pub(super) fn fill<E: Element>(
        &self,
        (b, h): (usize, usize),
        first_query: usize,
        key: usize,
        out: &mut [E],
    ) {
        let (low, high) = self.key_words(b, h, key);
        dispatch(Fill {
            first: first_query as u32,
            low,
            high,
            threshold: self.threshold(),
            kept: E::from_f64(self.kept_factor()),
            out,
        });
    }

    fn kept_factor(&self) -> f64 {
        1.0 / (1.0 - self.probability)
    }

    fn threshold(&self) -> u32 {
        (self.probability * 4_294_967_296.0) as u32
    }

    fn key_words(&self, b: usize, h: usize, key: usize) -> (u32, u32) {
        let row = mix(self.seed ^ mix(b as u64));
        let word = mix(mix(row ^ h as u64) ^ key as u64);
        (word as u32, (word >> 32) as u32)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 32-bit multiply and xorshift rounds, which vectorise.
#[inline(always)]
fn keeps(query: u32, low: u32, high: u32, threshold: u32) -> bool {
    let mut x = query.wrapping_mul(0x9e37_79b9) ^ low;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ high ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    (x ^ (x >> 16)) >= threshold
}

struct Fill<'a, E> {
    first: u32,
    low: u32,
    high: u32,
    threshold: u32,
    kept: E,
    out: &'a mut [E],
}

impl<E: Element> Kernel for Fill<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (i, out) in self.out.iter_mut().enumerate() {
            let query = self.first.wrapping_add(i as u32);
            let keep = keeps(query, self.low, self.high, self.threshold);
            *out = if keep { self.kept } else { E::ZERO };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_factors_agree_with_single_ones_and_with_p() {
        let dropout = Dropout::new(0.3, 17).unwrap();
        let mut kept = 0;
        let mut row = vec![0.0f64; 97];
        for (b, h, key) in [(0, 0, 0), (1, 0, 5), (0, 3, 5), (2, 1, 900)] {
            for first in [0, 64] {
                dropout.fill((b, h), first, key, &mut row);
                for (i, &factor) in row.iter().enumerate() {
                    assert_eq!(factor, dropout.factor(b, h, first + i, key));
                    kept += usize::from(factor > 0.0);
                    assert!(factor == 0.0 || factor == 1.0 / 0.7);
                }
            }
        }
        let share = kept as f64 / (8.0 * 97.0);
        assert!((share - 0.7).abs() < 0.06, "{share}");
    }

    #[test]
    fn decisions_are_uncorrelated_between_neighbours() {
        let dropout = Dropout::new(0.5, 3).unwrap();
        let n = 300;
        let mut row = vec![0.0f32; n];
        let keeps: Vec<Vec<bool>> = (0..n)
            .map(|key| {
                dropout.fill((0, 0), 0, key, &mut row);
                row.iter().map(|&f| f > 0.0).collect()
            })
            .collect();
        let share = |pairs: &dyn Fn(usize, usize) -> bool| {
            let hits: usize = (0..n - 1)
                .flat_map(|key| (0..n - 1).map(move |q| (key, q)))
                .filter(|&(key, q)| pairs(key, q))
                .count();
            hits as f64 / ((n - 1) * (n - 1)) as f64
        };
        assert!((share(&|key, q| keeps[key][q]) - 0.5).abs() < 0.01);
        assert!((share(&|key, q| keeps[key][q] == keeps[key][q + 1]) - 0.5).abs() < 0.01);
        assert!((share(&|key, q| keeps[key][q] == keeps[key + 1][q]) - 0.5).abs() < 0.01);
    }

    #[test]
    fn impossible_probabilities_are_refused() {
        for p in [-0.1, 1.0, f64::NAN] {
            let message = Dropout::new(p, 0).unwrap_err().to_string();
            assert!(message.contains("must be at least 0 and less than 1"), "{message}");
        }
    }
}
