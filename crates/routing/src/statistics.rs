//! Statistics of routing: how even the load is, and how far experts and tasks
//! go together.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::error::{Result, RoutingError};
use crate::trace::{LayerTrace, NO_TASK};

/// Counts as shares of their sum; zeros if that is zero.
pub fn shares(counts: &[u64]) -> Vec<f64> {
    shares_of(counts.iter().map(|&count| count.into()))
}

/// [`shares`] of sums of any kind.
pub(crate) fn shares_of(sums: impl Iterator<Item = u128> + Clone) -> Vec<f64> {
    let total = sums.clone().sum::<u128>().max(1) as f64;
    sums.map(|sum| sum as f64 / total).collect()
}

/// −Σ p·ln p in nats, with 0·ln 0 = 0.
///
/// ```
/// use specialformer_routing::statistics::entropy;
/// assert!((entropy([0.5, 0.5]) - 2f64.ln()).abs() < 1e-15);
/// assert_eq!(entropy([1.0, 0.0]), 0.0);
/// ```
pub fn entropy(shares: impl IntoIterator<Item = f64>) -> f64 {
    let positive = shares.into_iter().filter(|&p| p > 0.0);
    positive.map(|p| -p * p.ln()).sum::<f64>().max(0.0)
}

/// The largest load over the mean: 1 if even, E if one expert has it all, 0
/// if there is no load.
pub fn max_over_mean(load: &[u64]) -> f64 {
    let largest = load.iter().copied().max().unwrap_or(0);
    let total = load.iter().sum::<u64>().max(1);
    (largest * load.len() as u64) as f64 / total as f64
}

/// The squared coefficient of variation, variance/mean²; 0 if there is no
/// load.
pub fn cv_squared(load: &[u64]) -> f64 {
    let even = 1.0 / load.len().max(1) as f64;
    if load.iter().all(|&load| load == 0) {
        return 0.0;
    }
    shares(load).iter().map(|share| (share - even).powi(2)).sum::<f64>() / even
}

/// Mutual information in nats of the row and the column of a table of counts,
/// Σ p(r, c)·ln(p(r, c)/(p(r)·p(c))).
///
/// ```
/// use ndarray::array;
/// use specialformer_routing::statistics::mutual_information;
/// let apart = mutual_information(array![[5, 0], [0, 5]].view());
/// assert!((apart - 2f64.ln()).abs() < 1e-12);
/// assert!(mutual_information(array![[1, 2], [2, 4]].view()).abs() < 1e-12);
/// ```
pub fn mutual_information(counts: ArrayView2<'_, u64>) -> f64 {
    let rows: Vec<u64> = counts.rows().into_iter().map(|row| row.sum()).collect();
    let columns: Vec<u64> = counts.columns().into_iter().map(|column| column.sum()).collect();
    let joint = counts.iter().copied().collect::<Vec<_>>();
    let of = |counts: &[u64]| entropy(shares(counts));
    (of(&rows) + of(&columns) - of(&joint)).max(0.0)
}

/// Expected calibration error (Naeini et al. 2015): predictions are put into
/// `bins` bins of equal width by their confidence; the mean over predictions
/// of |accuracy − mean confidence| of their bin. Confidences belong in [0, 1].
///
/// For a router: the probability of the first choice, and whether that expert
/// was the right one by some measure, e.g. the one that its task goes to most.
///
/// # Errors
/// [`RoutingError::Shape`] if the lengths differ; [`RoutingError::Argument`]
/// for no bin or a confidence outside [0, 1].
pub fn expected_calibration_error(
    confidences: &[f64],
    correct: &[bool],
    bins: usize,
) -> Result<f64> {
    const OP: &str = "expected_calibration_error";
    if confidences.len() != correct.len() {
        let what = format!("must have one entry for each of {} predictions", confidences.len());
        return Err(RoutingError::shape(OP, "correct", &[correct.len()], what));
    }
    if bins == 0 {
        return Err(RoutingError::argument(OP, "bins", bins, "must be positive"));
    }
    if let Some(bad) = confidences.iter().find(|c| !(0.0..=1.0).contains(*c)) {
        return Err(RoutingError::argument(OP, "confidence", bad, "must be between 0 and 1"));
    }
    let mut gaps = vec![0.0; bins];
    for (&confidence, &correct) in confidences.iter().zip(correct) {
        let bin = ((confidence * bins as f64) as usize).min(bins - 1);
        gaps[bin] += confidence - f64::from(u8::from(correct));
    }
    Ok(gaps.iter().map(|gap| gap.abs()).sum::<f64>() / confidences.len().max(1) as f64)
}

/// Counts over the traces of one layer, and what they say.
///
/// ```
/// use specialformer_routing::LayerStatistics;
/// let statistics = LayerStatistics::new(4, 2);
/// assert_eq!(statistics.load(), [0; 4]);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct LayerStatistics {
    experts: usize,
    tasks: usize,
    /// Live tokens.
    tokens: u64,
    load: Vec<u64>,
    /// Sums of combine weights.
    importance: Vec<f64>,
    /// [tasks, E].
    task_load: Vec<u64>,
    /// [E, E], both triangles.
    together: Vec<u64>,
    entropy_sum: f64,
    dropped: u64,
}

/// [`LayerStatistics`] as they are read, before they are checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    experts: usize,
    tasks: usize,
    tokens: u64,
    load: Vec<u64>,
    importance: Vec<f64>,
    task_load: Vec<u64>,
    together: Vec<u64>,
    entropy_sum: f64,
    dropped: u64,
}

impl TryFrom<Stored> for LayerStatistics {
    type Error = RoutingError;

    fn try_from(stored: Stored) -> Result<Self> {
        let Stored {
            experts,
            tasks,
            tokens,
            load,
            importance,
            task_load,
            together,
            entropy_sum,
            dropped,
        } = stored;
        for (name, length, rows) in [
            ("load", load.len(), 1),
            ("importance", importance.len(), 1),
            ("task_load", task_load.len(), tasks),
            ("together", together.len(), experts),
        ] {
            if rows.checked_mul(experts) != Some(length) {
                let what = format!("must be {rows} times the number of experts, {experts}");
                return Err(RoutingError::shape("routing statistics", name, &[length], what));
            }
        }
        Ok(Self {
            experts,
            tasks,
            tokens,
            load,
            importance,
            task_load,
            together,
            entropy_sum,
            dropped,
        })
    }
}

impl LayerStatistics {
    /// Nothing counted yet, for a layer of E experts and so many tasks.
    pub fn new(experts: usize, tasks: usize) -> Self {
        Self {
            experts,
            tasks,
            tokens: 0,
            load: vec![0; experts],
            importance: vec![0.0; experts],
            task_load: vec![0; tasks * experts],
            together: vec![0; experts * experts],
            entropy_sum: 0.0,
            dropped: 0,
        }
    }

    /// Counts a trace. Tokens without a task count everywhere but by task.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the number of experts differs or a task
    /// id is out of range; then nothing was counted.
    pub fn add(&mut self, trace: &LayerTrace) -> Result<()> {
        const OP: &str = "routing statistics";
        let experts = self.experts;
        if trace.experts() != experts {
            let what = format!("layer `{}` was counted with {experts}", trace.layer());
            return Err(RoutingError::argument(OP, "experts", trace.experts(), what));
        }
        let known = |task: u32| task == NO_TASK || (task as usize) < self.tasks;
        if let Some(task) = trace.tasks().iter().find(|&&task| !known(task)) {
            let what = format!("there are {} tasks", self.tasks);
            return Err(RoutingError::argument(OP, "task", task, what));
        }
        let mut live = 0u64;
        for token in 0..trace.tokens() {
            let task = trace.task(token);
            let mut any = false;
            for (expert, weight) in trace.of(token) {
                any = true;
                self.importance[expert] += f64::from(weight);
                if task != NO_TASK {
                    self.task_load[task as usize * experts + expert] += 1;
                }
                for (other, _) in trace.of(token) {
                    self.together[expert * experts + other] += u64::from(other != expert);
                }
            }
            live += u64::from(any);
        }
        for (sum, &load) in self.load.iter_mut().zip(trace.load()) {
            *sum += load;
        }
        self.tokens += live;
        self.entropy_sum += trace.entropy() * live as f64;
        self.dropped += trace.dropped();
        Ok(())
    }

    /// Adds another count of the same layer.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the numbers of experts or tasks differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if (self.experts, self.tasks) != (other.experts, other.tasks) {
            let value = format!("{} and {}", other.experts, other.tasks);
            let what = format!("must be {} and {}", self.experts, self.tasks);
            return Err(RoutingError::argument(
                "routing statistics",
                "experts and tasks",
                value,
                what,
            ));
        }
        let add = |sums: &mut [u64], more: &[u64]| {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        };
        add(&mut self.load, &other.load);
        add(&mut self.task_load, &other.task_load);
        add(&mut self.together, &other.together);
        for (sum, more) in self.importance.iter_mut().zip(&other.importance) {
            *sum += more;
        }
        self.tokens += other.tokens;
        self.entropy_sum += other.entropy_sum;
        self.dropped += other.dropped;
        Ok(())
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.tasks
    }

    /// Tokens that went to at least one expert.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Assignments of each expert, before drops \[E\].
    pub fn load(&self) -> &[u64] {
        &self.load
    }

    /// Each expert's share of all assignments \[E\].
    pub fn load_shares(&self) -> Vec<f64> {
        shares(&self.load)
    }

    /// Each expert's sum of combine weights \[E\].
    pub fn importance(&self) -> &[f64] {
        &self.importance
    }

    /// The largest load over the mean; see [`max_over_mean`].
    pub fn max_over_mean(&self) -> f64 {
        max_over_mean(&self.load)
    }

    /// Entropy of the load over ln E: 1 if even, 0 if one expert has it all.
    pub fn load_evenness(&self) -> f64 {
        if self.experts < 2 {
            return 1.0;
        }
        entropy(self.load_shares()) / (self.experts as f64).ln()
    }

    /// Mean entropy of a token's router probabilities, in nats.
    pub fn mean_entropy(&self) -> f64 {
        self.entropy_sum / self.tokens.max(1) as f64
    }

    /// Dropped share of all assignments.
    pub fn drop_share(&self) -> f64 {
        self.dropped as f64 / self.load.iter().sum::<u64>().max(1) as f64
    }

    /// Assignments by task and expert [tasks, E].
    pub fn task_load(&self) -> ArrayView2<'_, u64> {
        ArrayView2::from_shape((self.tasks, self.experts), &self.task_load)
            .expect("the table has tasks × experts entries")
    }

    /// Each task's shares of its assignments by expert [tasks, E]; a row of
    /// zeros for a task that was not seen.
    pub fn task_shares(&self) -> Array2<f64> {
        let rows = self.task_load.chunks_exact(self.experts.max(1)).flat_map(shares).collect();
        Array2::from_shape_vec((self.tasks, self.experts), rows)
            .expect("the table has tasks × experts entries")
    }

    /// P(the token also went to j | it went to i) at [i, j]; 0 on the
    /// diagonal [E, E].
    pub fn co_activation(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.experts, self.experts), |(i, j)| {
            self.together[i * self.experts + j] as f64 / self.load[i].max(1) as f64
        })
    }

    /// Mutual information in nats of an assignment's task and expert: how much
    /// the task says about the expert. 0 if tasks are routed alike.
    pub fn mutual_information(&self) -> f64 {
        mutual_information(self.task_load())
    }

    /// [`LayerStatistics::mutual_information`] over the smaller of the
    /// entropies of task and expert: between 0 (alike) and 1 (as far apart as
    /// can be).
    pub fn specialization(&self) -> f64 {
        let table = self.task_load();
        let tasks: Vec<u64> = table.rows().into_iter().map(|row| row.sum()).collect();
        let experts: Vec<u64> = table.columns().into_iter().map(|column| column.sum()).collect();
        let most = entropy(shares(&tasks)).min(entropy(shares(&experts)));
        if most <= 0.0 { 0.0 } else { (self.mutual_information() / most).min(1.0) }
    }
}
