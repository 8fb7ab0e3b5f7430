//! Searches for mixing weights: the cross-entropy method ([`cem`]) and
//! [`random_search`].

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use specialformer_tensor::Seed;

use crate::algebra::Alpha;
use crate::error::{Result, SvfError};

/// What a candidate is worth: the higher value wins, on a tie the higher
/// log-likelihood, and then the earlier candidate. NaN loses to everything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Such as the accuracy on a few examples, which often ties.
    pub value: f64,
    /// Such as the log-likelihood of their right answers.
    pub log_likelihood: f64,
}

impl Score {
    /// The better of two is the greater.
    pub fn order(&self, other: &Self) -> Ordering {
        let compare =
            |a: f64, b: f64| a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()));
        compare(self.value, other.value)
            .then_with(|| compare(self.log_likelihood, other.log_likelihood))
    }
}

/// Settings of a search over vectors in [low, high]^n.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Candidates in an iteration.
    pub population: usize,
    /// The share of candidates that the next distribution is fitted to.
    pub elite_ratio: f64,
    /// Iterations.
    pub iterations: usize,
    /// The least value of an entry.
    pub low: f64,
    /// The largest value of an entry.
    pub high: f64,
    /// The first mean of every entry; by default the middle of the range.
    pub mean: Option<f64>,
    /// The first standard deviation; by default a quarter of the range.
    pub deviation: Option<f64>,
    /// How much of the old mean and deviation stays, in [0, 1).
    pub smoothing: f64,
    /// The deviation never falls below this.
    pub least_deviation: f64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            population: 32,
            elite_ratio: 0.2,
            iterations: 10,
            low: 0.0,
            high: 1.0,
            mean: None,
            deviation: None,
            smoothing: 0.1,
            least_deviation: 1e-3,
        }
    }
}

impl SearchConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`SvfError::Config`] naming the first that is outside its range.
    pub fn validate(&self) -> Result<()> {
        let range = format!("must be in [{}, {}]", self.low, self.high);
        let finite = self.low.is_finite() && self.high.is_finite();
        let mean = self.mean.unwrap_or(self.low);
        let deviation = self.deviation.unwrap_or(1.0);
        let checks = [
            (self.population > 0, "population", self.population as f64, "must be positive"),
            (self.iterations > 0, "iterations", self.iterations as f64, "must be positive"),
            (
                self.elite_ratio > 0.0 && self.elite_ratio <= 1.0,
                "elite_ratio",
                self.elite_ratio,
                "must be in (0, 1]",
            ),
            (finite && self.low < self.high, "low", self.low, "must be below `high`, both finite"),
            ((self.low..=self.high).contains(&mean), "mean", mean, range.as_str()),
            (
                deviation > 0.0 && deviation.is_finite(),
                "deviation",
                deviation,
                "must be positive and finite",
            ),
            (
                (0.0..1.0).contains(&self.smoothing),
                "smoothing",
                self.smoothing,
                "must be in [0, 1)",
            ),
            (
                self.least_deviation >= 0.0 && self.least_deviation.is_finite(),
                "least_deviation",
                self.least_deviation,
                "must not be negative",
            ),
        ];
        match checks.into_iter().find(|(fine, ..)| !fine) {
            Some((_, field, value, reason)) => Err(SvfError::config(field, value, reason)),
            None => Ok(()),
        }
    }

    /// Candidates that a next distribution is fitted to, at least one.
    pub fn elites(&self) -> usize {
        ((self.population as f64 * self.elite_ratio).round() as usize).clamp(1, self.population)
    }
}

/// The mixing weights that a search looks for, as one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlphaSpace {
    /// One weight for each expert.
    Global {
        /// Number of experts.
        experts: usize,
    },
    /// One weight for each layer and expert.
    PerLayer {
        /// Number of experts.
        experts: usize,
        /// Number of layers.
        layers: usize,
    },
}

impl AlphaSpace {
    /// Length of the vector.
    pub fn dimensions(self) -> usize {
        match self {
            Self::Global { experts } => experts,
            Self::PerLayer { experts, layers } => experts * layers,
        }
    }

    /// The weights that a vector stands for; layers one after the other.
    ///
    /// # Errors
    /// [`SvfError::Length`] if it has another length.
    pub fn alpha(self, vector: &[f64]) -> Result<Alpha> {
        let (found, wanted) = (vector.len(), self.dimensions());
        if found != wanted {
            return Err(SvfError::Length { what: "mixing weights".into(), found, wanted });
        }
        Ok(match self {
            Self::Global { .. } => Alpha::Global(vector.to_vec()),
            Self::PerLayer { experts, .. } => {
                Alpha::PerLayer(vector.chunks(experts.max(1)).map(<[f64]>::to_vec).collect())
            }
        })
    }
}

/// One iteration of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// The best of this iteration's candidates.
    pub best: Score,
    /// The mean of the distribution that they were drawn from.
    pub mean: Vec<f64>,
    /// Its standard deviation.
    pub deviation: Vec<f64>,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The best candidate of all.
    pub vector: Vec<f64>,
    /// What it is worth.
    pub score: Score,
    /// How often the objective was called.
    pub evaluations: usize,
    /// The iterations.
    pub history: Vec<Iteration>,
}

/// An objective's error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Maximises `objective` by the cross-entropy method (Rubinstein 1999):
/// candidates are drawn from a normal distribution with independent entries
/// and cut to the range; its mean and deviation are fitted to the best of
/// them, and so on. The first candidate of all is the mean itself.
///
/// The same seed finds the same: candidates depend on it, the settings and the
/// scores alone.
///
/// # Errors
/// Those of [`SearchConfig::validate`]; [`SvfError::Config`] if `dimensions`
/// is 0; [`SvfError::Objective`] with what `objective` returned.
///
/// ```
/// use specialformer_svd_finetune::{Score, SearchConfig, cem};
/// use specialformer_tensor::Seed;
///
/// let settings = SearchConfig { iterations: 20, ..SearchConfig::default() };
/// let found = cem(&settings, 2, Seed::new(1), |x| {
///     let value = -(x[0] - 0.25).powi(2) - (x[1] - 0.75).powi(2);
///     Ok(Score { value, log_likelihood: 0.0 })
/// })?;
/// assert!((found.vector[0] - 0.25).abs() < 0.02 && (found.vector[1] - 0.75).abs() < 0.02);
/// # Ok::<(), specialformer_svd_finetune::SvfError>(())
/// ```
pub fn cem(
    config: &SearchConfig,
    dimensions: usize,
    seed: Seed,
    mut objective: impl FnMut(&[f64]) -> Result<Score, BoxError>,
) -> Result<Found> {
    let mut search = Search::new(config, dimensions)?;
    let middle = f64::midpoint(config.low, config.high);
    let mut mean = vec![config.mean.unwrap_or(middle); dimensions];
    let start = config.deviation.unwrap_or((config.high - config.low) / 4.0);
    let mut deviation = vec![start; dimensions];
    for iteration in 0..config.iterations {
        let mut rng = seed.stream_at("cem", iteration as u64);
        let candidates = (0..config.population).map(|i| {
            if iteration == 0 && i == 0 {
                return mean.clone();
            }
            let draw = |(m, d): (&f64, &f64)| (m + d * rng.normal()).clamp(config.low, config.high);
            mean.iter().zip(&deviation).map(draw).collect()
        });
        let candidates: Vec<Vec<f64>> = candidates.collect();
        let ranked = search.evaluate(candidates, &mean, &deviation, &mut objective)?;
        let elites = &ranked[..config.elites()];
        let count = elites.len() as f64;
        for i in 0..dimensions {
            let centre = elites.iter().map(|x| x[i]).sum::<f64>() / count;
            let variance = elites.iter().map(|x| (x[i] - centre).powi(2)).sum::<f64>() / count;
            let blend =
                |old: f64, new: f64| config.smoothing * old + (1.0 - config.smoothing) * new;
            mean[i] = blend(mean[i], centre);
            deviation[i] = blend(deviation[i], variance.sqrt()).max(config.least_deviation);
        }
    }
    Ok(search.finish())
}

/// Maximises `objective` over as many candidates as [`cem`] would try, drawn
/// uniformly from the range: the baseline that a search has to beat.
///
/// # Errors
/// Those of [`cem`].
pub fn random_search(
    config: &SearchConfig,
    dimensions: usize,
    seed: Seed,
    mut objective: impl FnMut(&[f64]) -> Result<Score, BoxError>,
) -> Result<Found> {
    let mut search = Search::new(config, dimensions)?;
    let mean = vec![f64::midpoint(config.low, config.high); dimensions];
    let deviation = vec![(config.high - config.low) / 12f64.sqrt(); dimensions];
    for iteration in 0..config.iterations {
        let mut rng = seed.stream_at("random search", iteration as u64);
        let mut draw = || rng.uniform_in(config.low, config.high);
        let candidates = (0..config.population)
            .map(|_| std::iter::repeat_with(&mut draw).take(dimensions).collect())
            .collect();
        search.evaluate(candidates, &mean, &deviation, &mut objective)?;
    }
    Ok(search.finish())
}

/// The best so far, and the history.
struct Search {
    best: Option<(Vec<f64>, Score)>,
    evaluations: usize,
    history: Vec<Iteration>,
}

impl Search {
    fn new(config: &SearchConfig, dimensions: usize) -> Result<Self> {
        config.validate()?;
        if dimensions == 0 {
            return Err(SvfError::config("dimensions", 0, "must be positive"));
        }
        Ok(Self { best: None, evaluations: 0, history: Vec::new() })
    }

    /// Scores candidates and returns them best first.
    fn evaluate(
        &mut self,
        candidates: Vec<Vec<f64>>,
        mean: &[f64],
        deviation: &[f64],
        objective: &mut impl FnMut(&[f64]) -> Result<Score, BoxError>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut scored = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let score = objective(&candidate)
                .map_err(|source| SvfError::Objective { evaluation: self.evaluations, source })?;
            self.evaluations += 1;
            scored.push((candidate, score));
        }
        // Stable: of equal ones the earlier stays ahead.
        scored.sort_by(|(_, a), (_, b)| b.order(a));
        let (candidate, best) = scored[0].clone();
        let better = |(_, known): &(_, Score)| best.order(known).is_gt();
        if self.best.as_ref().is_none_or(better) {
            self.best = Some((candidate, best));
        }
        let (mean, deviation) = (mean.to_vec(), deviation.to_vec());
        self.history.push(Iteration { best, mean, deviation });
        Ok(scored.into_iter().map(|(candidate, _)| candidate).collect())
    }

    fn finish(self) -> Found {
        let (vector, score) = self.best.expect("there was one candidate at least");
        Found { vector, score, evaluations: self.evaluations, history: self.history }
    }
}
