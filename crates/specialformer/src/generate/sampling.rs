//! How the next token is chosen from logits.

use std::cmp::Ordering;

use specialformer_tensor::RngStream;

use crate::error::{Error, Result};

/// Candidates that are sorted at first to find the most probable ones.
const FIRST_SORTED: usize = 256;

/// How the next token is chosen.
///
/// The steps follow one another: repetition penalty, temperature, the `top_k`
/// largest, the fewest whose probabilities reach `top_p`, then a draw.
///
/// ```
/// use specialformer::generate::Sampling;
/// let sampling = Sampling { top_p: 0.9, ..Sampling::at_temperature(0.7) };
/// assert!(sampling.validate().is_ok());
/// assert!(Sampling::at_temperature(-1.0).validate().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the largest (greedy).
    pub temperature: f64,
    /// Only so many of the largest are drawn from; 0 for all.
    pub top_k: usize,
    /// Only the fewest largest whose probabilities sum to this are drawn from;
    /// 1 for all.
    pub top_p: f64,
    /// Logits of tokens that the text holds already are divided by this where
    /// positive, multiplied where negative (Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self::greedy()
    }
}

impl Sampling {
    /// Always the most probable token; of equals, the one of the lowest id.
    pub const fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0 }
    }

    /// Draws from softmax(logits / `temperature`).
    pub const fn at_temperature(temperature: f64) -> Self {
        Self { temperature, ..Self::greedy() }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Config`] naming the one that is outside its range.
    pub fn validate(&self) -> Result<()> {
        let fail = |field, value, reason| Err(Error::config("sampling", field, value, reason));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return fail("temperature", self.temperature, "must be finite and not negative");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top_p", self.top_p, "must be in (0, 1]");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return fail("repetition_penalty", self.repetition_penalty, "must be positive");
        }
        Ok(())
    }

    /// The next token after `text`. `logits` \[V\] are changed.
    ///
    /// # Errors
    /// If no logit is a number to choose by: all are NaN or −∞.
    pub fn choose(&self, logits: &mut [f32], text: &[u32], rng: &mut RngStream) -> Result<u32> {
        if self.repetition_penalty != 1.0 {
            penalise(logits, text, self.repetition_penalty as f32);
        }
        let largest = |best: Option<(usize, f32)>, (id, &logit): (usize, &f32)| match best {
            _ if logit.is_nan() || logit == f32::NEG_INFINITY => best,
            Some((_, most)) if logit <= most => best,
            _ => Some((id, logit)),
        };
        let Some((best, most)) = logits.iter().enumerate().fold(None, largest) else {
            let what = "there is no finite logit to choose the next token by";
            return Err(Error::Input { model: "sampling", what: what.into() });
        };
        if self.temperature == 0.0 || most == f32::INFINITY {
            return Ok(best as u32);
        }
        let weight = |logit: f32| ((f64::from(logit) - f64::from(most)) / self.temperature).exp();
        let mut candidates: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| !logit.is_nan())
            .map(|(id, &logit)| (id as u32, weight(logit)))
            .collect();
        let by_weight = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if (1..candidates.len()).contains(&self.top_k) {
            candidates.select_nth_unstable_by(self.top_k - 1, by_weight);
            candidates.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, self.top_p, by_weight);
        } else {
            // One order whatever the selection did, so that seeds decide.
            candidates.sort_unstable_by_key(|(id, _)| *id);
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = rng.uniform() * total;
        let drawn = candidates.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        Ok(drawn.map_or(best as u32, |(id, _)| *id))
    }
}

/// Keeps the fewest candidates, best first, that have this share of all weight.
/// Few are enough as a rule, so only as many are sorted as turn out to be
/// needed.
fn keep_nucleus(
    candidates: &mut Vec<(u32, f64)>,
    share: f64,
    by_weight: impl Fn(&(u32, f64), &(u32, f64)) -> Ordering,
) {
    let wanted = share * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sorted = FIRST_SORTED;
    while sorted < candidates.len() {
        candidates.select_nth_unstable_by(sorted - 1, &by_weight);
        candidates[..sorted].sort_unstable_by(&by_weight);
        if let Some(kept) = reaches(&candidates[..sorted], wanted) {
            return candidates.truncate(kept);
        }
        sorted *= 2;
    }
    candidates.sort_unstable_by(&by_weight);
    let kept = reaches(candidates, wanted);
    candidates.truncate(kept.unwrap_or(candidates.len()));
}

/// How many of the first candidates have this weight together.
fn reaches(candidates: &[(u32, f64)], wanted: f64) -> Option<usize> {
    let mut sum = 0.0;
    let last = candidates.iter().position(|(_, weight)| {
        sum += weight;
        sum >= wanted
    });
    last.map(|last| last + 1)
}

/// Divides positive logits of tokens in the text, multiplies negative ones.
fn penalise(logits: &mut [f32], text: &[u32], penalty: f32) {
    let mut seen: Vec<u32> = text.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

#[cfg(test)]
mod tests {
    use specialformer_tensor::Seed;

    use super::*;

    fn draws(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut rng = Seed::new(3).stream("sampling");
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            let id = sampling.choose(&mut logits.to_vec(), &[], &mut rng).unwrap();
            counts[id as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut rng = Seed::new(0).stream("sampling");
        let mut choose =
            |logits: &[f32]| Sampling::greedy().choose(&mut logits.to_vec(), &[], &mut rng);
        assert_eq!(choose(&[0.0, 2.0, 2.0, 1.0]).unwrap(), 1);
        assert_eq!(choose(&[f32::NAN, -3.0]).unwrap(), 1);
        assert!(choose(&[f32::NAN, f32::NEG_INFINITY]).is_err());
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let counts = draws(Sampling::at_temperature(1.0), &logits);
        for (count, share) in counts.iter().zip([0.5, 0.3, 0.2]) {
            assert!((*count as f64 / 4000.0 - share).abs() < 0.03, "{counts:?}");
        }
        let cold = draws(Sampling::at_temperature(0.05), &logits);
        assert!(cold[0] > 3990, "{cold:?}");
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_tail() {
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.05f32.ln(), 0.25f32.ln()];
        let counts = draws(Sampling { top_k: 2, ..Sampling::at_temperature(1.0) }, &logits);
        assert!(counts[0] == 0 && counts[2] == 0 && counts[1] > counts[3], "{counts:?}");
        let counts = draws(Sampling { top_p: 0.8, ..Sampling::at_temperature(1.0) }, &logits);
        assert!(counts[2] == 0 && counts[0] > 0, "{counts:?}");
        let counts = draws(Sampling { top_p: 0.4, ..Sampling::at_temperature(1.0) }, &logits);
        assert_eq!(counts[1], 4000);
    }

    #[test]
    fn a_nucleus_is_what_sorting_everything_gives() {
        let by_weight = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut rng = Seed::new(7).stream("weights");
        for (count, sharpness) in [(10, 1.0), (256, 0.0), (257, 0.0), (3000, 0.2), (3000, 9.0)] {
            // Rounded, so that some are equal.
            let mut weight = || (sharpness * rng.normal()).round().exp();
            let all: Vec<(u32, f64)> = (0..count).map(|id| (id, weight())).collect();
            for share in [1e-9, 0.3, 0.9, 0.999, 1.0 - 1e-12] {
                let mut found = all.clone();
                keep_nucleus(&mut found, share, by_weight);
                let mut sorted = all.clone();
                sorted.sort_by(by_weight);
                let wanted = share * all.iter().map(|(_, weight)| weight).sum::<f64>();
                let kept = reaches(&sorted, wanted).unwrap_or(sorted.len());
                assert_eq!(found, sorted[..kept], "{count} {share}");
            }
        }
    }

    #[test]
    fn repeated_tokens_are_penalised_once() {
        let mut logits = [2.0, -1.0, 1.5];
        penalise(&mut logits, &[0, 0, 1, 7], 2.0);
        assert_eq!(logits, [1.0, -2.0, 1.5]);
    }
}
