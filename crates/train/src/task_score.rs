//! Scores of tasks and of regression.

use serde::{Deserialize, Serialize};

use crate::score::{Score, grown};

/// The score of one task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskScore {
    /// Its targets that are classes.
    pub classes: Score,
    /// Its targets that are values.
    pub values: ValueScore,
    /// The summed cross-entropy and squared error of its targets.
    pub loss: f64,
}

impl TaskScore {
    /// Number of targets that are scored.
    pub fn scored(&self) -> u64 {
        self.classes.scored + self.values.scored()
    }

    /// The mean loss of a target; `None` if nothing was scored.
    pub fn mean_loss(&self) -> Option<f64> {
        (self.scored() > 0).then(|| self.loss / self.scored() as f64)
    }

    /// Adds another score of the task.
    pub fn add(&mut self, other: &Self) {
        self.classes.add(&other.classes);
        self.values.add(&other.values);
        self.loss += other.loss;
    }
}

/// How far answered values are from their targets.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueScore {
    /// One for each of the D values of a row.
    pub(crate) columns: Vec<Column>,
}

/// Sums over the targets y and answers ŷ of one column. The targets are kept
/// as mean and squared deviations (Chan et al. 1983), so that R² does not
/// drown in their size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Column {
    count: u64,
    /// The mean of y.
    mean: f64,
    /// Σ(y − mean)².
    deviation: f64,
    /// Σ(ŷ − y)².
    error: f64,
}

impl Column {
    pub(crate) fn count(&mut self, answer: f64, target: f64) {
        let error = (answer - target).powi(2);
        self.add(&Self { count: 1, mean: target, deviation: 0.0, error });
    }

    fn add(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let distance = other.mean - self.mean;
        self.count += other.count;
        self.mean += distance * b / (a + b);
        self.deviation += other.deviation + distance * distance * a * b / (a + b);
        self.error += other.error;
    }
}

impl ValueScore {
    /// Number of values that are scored.
    pub fn scored(&self) -> u64 {
        self.columns.iter().map(|column| column.count).sum()
    }

    /// The mean squared error Σ(ŷ − y)² / n; `None` if nothing was scored.
    pub fn mean_squared_error(&self) -> Option<f64> {
        let error: f64 = self.columns.iter().map(|column| column.error).sum();
        (self.scored() > 0).then(|| error / self.scored() as f64)
    }

    /// R² = 1 − Σ(ŷ − y)² / Σ(y − ȳ)², with the mean ȳ of each column;
    /// `None` if the targets do not vary.
    pub fn r_squared(&self) -> Option<f64> {
        let error: f64 = self.columns.iter().map(|column| column.error).sum();
        let deviation: f64 = self.columns.iter().map(|column| column.deviation).sum();
        (deviation > 0.0).then(|| 1.0 - error / deviation)
    }

    /// Adds another score.
    pub fn add(&mut self, other: &Self) {
        for (i, part) in other.columns.iter().enumerate() {
            grown(&mut self.columns, i).add(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_squared_is_that_of_two_passes_even_far_from_zero() {
        let targets: Vec<f64> = (0..50).map(|i| 1e6 + f64::from(i * i % 17)).collect();
        let answers: Vec<f64> =
            targets.iter().enumerate().map(|(i, y)| y + (i % 3) as f64).collect();
        let mean = targets.iter().sum::<f64>() / 50.0;
        let error: f64 = targets.iter().zip(&answers).map(|(y, a)| (a - y).powi(2)).sum();
        let total: f64 = targets.iter().map(|y| (y - mean).powi(2)).sum();
        for cut in [0, 1, 20, 50] {
            let mut parts = [ValueScore::default(), ValueScore::default()];
            for i in 0..50 {
                let part = &mut parts[usize::from(i >= cut)];
                grown(&mut part.columns, 1).count(answers[i], targets[i]);
            }
            let [mut sum, rest] = parts;
            sum.add(&rest);
            assert_eq!(sum.scored(), 50);
            assert!((sum.mean_squared_error().unwrap() - error / 50.0).abs() < 1e-12);
            assert!((sum.r_squared().unwrap() - (1.0 - error / total)).abs() < 1e-9);
        }
        assert_eq!(ValueScore::default().r_squared(), None);
        assert_eq!(ValueScore::default().mean_squared_error(), None);
    }
}
