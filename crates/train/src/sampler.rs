//! [`TaskSampler`]: which task each row of a batch is of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use specialformer_nn::names::choices;
use specialformer_tensor::Seed;

use crate::error::{Result, TrainError};

/// How often each task is drawn; n_i is the number of its examples.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sampling {
    /// p_i ∝ n_i.
    Proportional,
    /// p_i ∝ n_i^(1/τ): 1 is proportional, ∞ uniform.
    Temperature {
        /// τ > 0.
        temperature: f64,
    },
    /// All tasks alike.
    #[default]
    Uniform,
    /// p_i ∝ the weights of the stage that the batch lies in.
    Curriculum {
        /// By their first batch; the first stage begins at 0.
        stages: Vec<Stage>,
        /// What lies between the beginnings of two stages.
        #[serde(default)]
        ramp: Ramp,
    },
}

/// A stage of a curriculum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its first batch, counted from 0.
    pub from: u64,
    /// The weights by task; 0 for those not named.
    pub weights: BTreeMap<String, f64>,
}

/// How one stage goes over into the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ramp {
    /// At once: a stage's weights hold until the next begins.
    #[default]
    Step,
    /// The probabilities move in a straight line towards the next stage's.
    Linear,
}

/// Draws tasks for the rows of batches. Batch number s depends on the seed and
/// s alone, so the position is one number.
///
/// ```
/// use specialformer_tensor::Seed;
/// use specialformer_train::{Sampling, TaskSampler};
/// let names = ["sort".to_string(), "reverse".to_string()];
/// let sampling = Sampling::Temperature { temperature: 2.0 };
/// let mut sampler = TaskSampler::new(&sampling, &names, &[100, 900], Seed::new(1))?;
/// assert_eq!(sampler.probabilities(), [0.25, 0.75]);
/// let (mut first, mut again) = ([0; 8], [0; 8]);
/// sampler.draw(&mut first);
/// sampler.seek(0);
/// sampler.draw(&mut again);
/// assert_eq!(first, again);
/// # Ok::<(), specialformer_train::TrainError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TaskSampler {
    /// First batch and probabilities of each stage; one without a curriculum.
    stages: Vec<(u64, Vec<f64>)>,
    ramp: Ramp,
    seed: Seed,
    next: u64,
}

impl TaskSampler {
    /// A sampler of tasks with these names and numbers of examples.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a temperature that is not positive, sizes
    /// or weights that are all 0, stages out of order, or an unknown task.
    pub fn new(sampling: &Sampling, names: &[String], sizes: &[u64], seed: Seed) -> Result<Self> {
        if names.is_empty() || names.len() != sizes.len() {
            let reason = format!("there are {} sizes", sizes.len());
            return Err(TrainError::config("sampling.tasks", names.len(), reason));
        }
        let by_size = |exponent: f64| {
            let weights =
                sizes.iter().map(|&n| if n == 0 { 0.0 } else { (n as f64).powf(exponent) });
            normalised(weights.collect()).ok_or_else(|| {
                TrainError::config("sampling.sizes", format!("{sizes:?}"), "no task has examples")
            })
        };
        let (stages, ramp) = match sampling {
            Sampling::Proportional => (vec![(0, by_size(1.0)?)], Ramp::Step),
            Sampling::Temperature { temperature } if *temperature > 0.0 => {
                (vec![(0, by_size(1.0 / temperature)?)], Ramp::Step)
            }
            Sampling::Temperature { temperature } => {
                let reason = "must be positive";
                return Err(TrainError::config("sampling.temperature", temperature, reason));
            }
            Sampling::Uniform => (vec![(0, by_size(0.0)?)], Ramp::Step),
            Sampling::Curriculum { stages, ramp } => (curriculum(stages, names)?, *ramp),
        };
        Ok(Self { stages, ramp, seed, next: 0 })
    }

    /// The probability of each task in the next batch.
    pub fn probabilities(&self) -> Vec<f64> {
        // The first stage begins at 0, so there is one.
        let after = self.stages.partition_point(|(from, _)| *from <= self.next);
        let (from, now) = &self.stages[after - 1];
        match self.stages.get(after) {
            Some((until, then)) if self.ramp == Ramp::Linear => {
                let t = (self.next - from) as f64 / (until - from) as f64;
                now.iter().zip(then).map(|(a, b)| a + (b - a) * t).collect()
            }
            _ => now.clone(),
        }
    }

    /// Draws the task of each row of the next batch.
    pub fn draw(&mut self, tasks: &mut [u32]) {
        let probabilities = self.probabilities();
        let last = probabilities.iter().rposition(|&p| p > 0.0).unwrap_or(0);
        let mut rng = self.seed.stream_at("tasks", self.next);
        for task in tasks {
            let mut left = rng.uniform();
            let found = probabilities.iter().position(|&p| {
                left -= p;
                left < 0.0
            });
            // The probabilities may add up to a little less than 1.
            *task = found.unwrap_or(last) as u32;
        }
        self.next += 1;
    }

    /// The number of batches drawn: what [`TaskSampler::seek`] goes back to.
    pub fn cursor(&self) -> u64 {
        self.next
    }

    /// Goes to a position that [`TaskSampler::cursor`] gave.
    pub fn seek(&mut self, cursor: u64) {
        self.next = cursor;
    }
}

/// `None` unless the weights are not negative and have a positive sum.
fn normalised(weights: Vec<f64>) -> Option<Vec<f64>> {
    let sum: f64 = weights.iter().sum();
    let valid = sum > 0.0 && sum.is_finite() && weights.iter().all(|&w| w >= 0.0);
    valid.then(|| weights.iter().map(|w| w / sum).collect())
}

fn curriculum(stages: &[Stage], names: &[String]) -> Result<Vec<(u64, Vec<f64>)>> {
    let fail = |field, value: String, reason: &str| Err(TrainError::config(field, value, reason));
    if stages.first().is_none_or(|stage| stage.from != 0) {
        let first = stages.first().map_or("none".into(), |stage| stage.from.to_string());
        return fail("sampling.stages", first, "the first stage must begin at 0");
    }
    if let Some(pair) = stages.windows(2).find(|pair| pair[0].from >= pair[1].from) {
        let reason = "stages must begin one after the other";
        return fail("sampling.stages", pair[1].from.to_string(), reason);
    }
    let mut found = Vec::with_capacity(stages.len());
    for stage in stages {
        if let Some(name) = stage.weights.keys().find(|name| !names.contains(name)) {
            let reason = format!("there is no such task; there are {}", choices(name, names));
            return fail("sampling.stages.weights", name.clone(), &reason);
        }
        let weights = names.iter().map(|name| stage.weights.get(name).copied().unwrap_or(0.0));
        let Some(probabilities) = normalised(weights.collect()) else {
            let reason = "must not be negative, and not all 0";
            return fail("sampling.stages.weights", format!("{:?}", stage.weights), reason);
        };
        found.push((stage.from, probabilities));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("t{i}")).collect()
    }

    fn sampler(sampling: &Sampling, sizes: &[u64]) -> Result<TaskSampler> {
        TaskSampler::new(sampling, &names(sizes.len()), sizes, Seed::new(3))
    }

    #[test]
    fn probabilities_follow_their_formulas() {
        let of = |sampling: Sampling| sampler(&sampling, &[1, 4, 0]).unwrap().probabilities();
        assert_eq!(of(Sampling::Proportional), [0.2, 0.8, 0.0]);
        assert_eq!(of(Sampling::Uniform), [0.5, 0.5, 0.0]);
        let sqrt = of(Sampling::Temperature { temperature: 2.0 });
        assert!((sqrt[0] - 1.0 / 3.0).abs() < 1e-15 && (sqrt[1] - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn a_curriculum_steps_or_glides() {
        let stage = |from, weights: &[(&str, f64)]| Stage {
            from,
            weights: weights.iter().map(|(n, w)| ((*n).to_string(), *w)).collect(),
        };
        let stages = vec![stage(0, &[("t0", 2.0)]), stage(10, &[("t0", 1.0), ("t1", 3.0)])];
        let at = |ramp, batch| {
            let sampling = Sampling::Curriculum { stages: stages.clone(), ramp };
            let mut sampler = sampler(&sampling, &[1, 1]).unwrap();
            sampler.seek(batch);
            sampler.probabilities()
        };
        assert_eq!(at(Ramp::Step, 9), [1.0, 0.0]);
        assert_eq!(at(Ramp::Step, 10), [0.25, 0.75]);
        assert_eq!(at(Ramp::Linear, 0), [1.0, 0.0]);
        assert_eq!(at(Ramp::Linear, 5), [0.625, 0.375]);
        assert_eq!(at(Ramp::Linear, 99), [0.25, 0.75]);
    }

    #[test]
    fn draws_have_the_frequencies_and_continue_from_a_cursor() {
        let make = || sampler(&Sampling::Proportional, &[1, 0, 3]).unwrap();
        let mut whole = make();
        let mut drawn = vec![0; 40_000];
        for batch in drawn.chunks_mut(100) {
            whole.draw(batch);
        }
        let share = drawn.iter().filter(|&&t| t == 2).count() as f64 / drawn.len() as f64;
        assert!((share - 0.75).abs() < 0.01, "{share}");
        assert!(!drawn.contains(&1));
        let mut resumed = make();
        resumed.seek(7);
        let mut batch = vec![0; 100];
        resumed.draw(&mut batch);
        assert_eq!(batch, drawn[700..800]);
        assert_eq!(resumed.cursor(), 8);
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let message = |text: &str, sizes: &[u64]| {
            let sampling: Sampling = serde_json::from_str(text).unwrap();
            sampler(&sampling, sizes).unwrap_err().to_string()
        };
        assert_eq!(
            message(r#"{"kind": "temperature", "temperature": 0}"#, &[1]),
            "train: sampling.temperature = 0: must be positive"
        );
        assert_eq!(
            message(r#"{"kind": "uniform"}"#, &[0, 0]),
            "train: sampling.sizes = [0, 0]: no task has examples"
        );
        let curriculum = |stages: &str| {
            message(&format!(r#"{{"kind": "curriculum", "stages": [{stages}]}}"#), &[1, 1])
        };
        assert_eq!(
            curriculum(r#"{"from": 1, "weights": {"t0": 1}}"#),
            "train: sampling.stages = 1: the first stage must begin at 0"
        );
        assert_eq!(
            curriculum(r#"{"from": 0, "weights": {"t7": 1}}"#),
            "train: sampling.stages.weights = t7: there is no such task; there are t0, t1"
        );
        assert_eq!(
            curriculum(r#"{"from": 0, "weights": {"t0": 0}}"#),
            "train: sampling.stages.weights = {\"t0\": 0.0}: must not be negative, and not all 0"
        );
    }
}
