//! A run's curve as a page holds it.

use serde::{Serialize, Serializer};

use super::{MAX_POINTS, Point, round};

impl Point {
    fn is_evaluation(&self) -> bool {
        self.accuracy.is_some() || self.validation_loss.is_some()
    }
}

/// The points that a page shows: at most about [`MAX_POINTS`], evenly spread,
/// evaluations and the rest counted apart so that neither crowds out the
/// other; the first and the last are always kept.
pub(crate) fn thinned(points: &[Point]) -> Vec<&Point> {
    if points.len() <= MAX_POINTS {
        return points.iter().collect();
    }
    let evaluations = points.iter().filter(|point| point.is_evaluation()).count();
    let strides = [points.len() - evaluations, evaluations]
        .map(|count| count.div_ceil(MAX_POINTS / 2).max(1));
    let mut seen = [0, 0];
    let last = points.len() - 1;
    let keep = |(index, point): (usize, &Point)| {
        let kind = usize::from(point.is_evaluation());
        seen[kind] += 1;
        (seen[kind] - 1) % strides[kind] == 0 || index == 0 || index == last
    };
    let mut keep = keep;
    points.iter().enumerate().filter(|&entry| keep(entry)).map(|(_, point)| point).collect()
}

/// A value of a curve, rounded; `"NaN"` if it is not finite, which JSON has
/// no number for and which must not look like a value never measured.
struct Measured(f64);

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match round(self.0) {
            Some(value) => serializer.serialize_f64(value),
            None => serializer.serialize_str("NaN"),
        }
    }
}

type Column = Vec<Option<Measured>>;

/// A thinned curve by columns; a column without any value is left out.
#[derive(Serialize)]
struct Columns {
    step: Vec<u64>,
    tokens: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    train_loss: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    validation_loss: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accuracy: Column,
    subtasks: Vec<Column>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exact: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reward: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    divergence: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learning_rate: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gradient_norm: Column,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens_per_second: Column,
}

/// Tokens at each point; unknown ones by the tokens per step of the nearest
/// earlier point that knows, else of the first later one.
fn token_counts(points: &[&Point]) -> Vec<u64> {
    let known = |point: &&&Point| point.tokens > 0 && point.step > 0;
    let mut rate = points.iter().find(known).map(|point| (point.tokens, point.step));
    let count = |point: &&Point| match rate {
        _ if known(&point) => {
            rate = Some((point.tokens, point.step));
            point.tokens
        }
        Some((tokens, step)) => (tokens as f64 * point.step as f64 / step as f64).round() as u64,
        None => 0,
    };
    points.iter().map(count).collect()
}

pub(super) fn columns<S: Serializer>(points: &[Point], serializer: S) -> Result<S::Ok, S::Error> {
    let points = thinned(points);
    let column = |field: &dyn Fn(&Point) -> Option<f64>| -> Column {
        let values: Column = points.iter().map(|point| field(point).map(Measured)).collect();
        if values.iter().all(Option::is_none) { Vec::new() } else { values }
    };
    let subtasks = points.iter().map(|point| point.subtask_accuracy.len()).max().unwrap_or(0);
    Columns {
        step: points.iter().map(|point| point.step).collect(),
        tokens: token_counts(&points),
        train_loss: column(&|point| point.train_loss),
        validation_loss: column(&|point| point.validation_loss),
        accuracy: column(&|point| point.accuracy),
        subtasks: (0..subtasks)
            .map(|task| column(&|point| point.subtask_accuracy.get(task).copied()))
            .collect(),
        exact: column(&|point| point.exact),
        reward: column(&|point| point.reward),
        divergence: column(&|point| point.divergence),
        learning_rate: column(&|point| point.learning_rate),
        gradient_norm: column(&|point| point.gradient_norm),
        tokens_per_second: column(&|point| point.tokens_per_second),
    }
    .serialize(serializer)
}
