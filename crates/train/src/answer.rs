//! [`Answer`]: what a model says about the targets of some rows.

use std::borrow::Cow;
use std::sync::Arc;

use specialformer_tensor::{self as tensor, Element, Reduction, Tensor, Var};

use crate::batch::{IGNORE, Rows};
use crate::error::{BoxError, Result, TrainError};
use crate::score::Tally;

/// What a model says about the targets of some rows.
#[derive(Debug, Clone)]
pub struct Answer<E: Element = f32> {
    /// The task that all these rows belong to. `None`: that of each row's
    /// [`Rows::task_ids`], if there are any.
    pub task: Option<u32>,
    /// Which rows of the shard are answered, n of them; `None` is all.
    pub rows: Option<Arc<[u32]>>,
    /// What the output is.
    pub kind: AnswerKind,
    /// The output.
    pub output: Var<E>,
}

/// What the output of an [`Answer`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// Logits [n, P', V] of classes, with P' = P, or P' = 1 for the target in
    /// column 0. The loss is the cross-entropy.
    Classes,
    /// Values [n, D'], compared with the first D' of a row's
    /// [`Rows::values`]. The loss is the squared error.
    Values,
}

impl<E: Element> Answer<E> {
    /// Logits of all rows.
    pub fn classes(output: Var<E>) -> Self {
        Self { task: None, rows: None, kind: AnswerKind::Classes, output }
    }

    /// Values of all rows.
    pub fn values(output: Var<E>) -> Self {
        Self { task: None, rows: None, kind: AnswerKind::Values, output }
    }

    /// Of one task.
    #[must_use]
    pub fn of_task(mut self, task: u32) -> Self {
        self.task = Some(task);
        self
    }

    /// Of some rows of the shard.
    #[must_use]
    pub fn of_rows(mut self, rows: impl Into<Arc<[u32]>>) -> Self {
        self.rows = Some(rows.into());
        self
    }
}

/// The part of an answer that belongs to one task, with its targets.
#[derive(Debug)]
pub(crate) struct TaskAnswer<'a, E: Element> {
    pub(crate) task: Option<u32>,
    /// Which rows of the shard; `None` is all.
    pub(crate) rows: Option<Vec<u32>>,
    /// Logits [n, P', V] or values [n, D'].
    pub(crate) output: Var<E>,
    pub(crate) targets: Targets<'a, E>,
}

/// What should have been answered.
#[derive(Debug)]
pub(crate) enum Targets<'a, E: Element> {
    /// [n·P'], with the labels if there are any.
    Classes { targets: Cow<'a, [u32]>, labels: Option<Cow<'a, [u16]>> },
    /// [n, D'], and where nothing is scored.
    Values { values: Tensor<E>, skip: Vec<bool> },
}

/// Cuts answers into parts of one task each.
///
/// # Errors
/// [`TrainError::Batch`] if an answer does not fit the rows, a task is not the
/// row's, or a scored target is answered by none or several.
pub(crate) fn by_task<'a, E: Element>(
    answers: &[Answer<E>],
    rows: &Rows<'a>,
) -> Result<Vec<TaskAnswer<'a, E>>> {
    let mut parts = Vec::with_capacity(answers.len());
    check_rows(answers, rows.rows())?;
    for answer in answers {
        for (task, chosen) in groups(answer, rows)? {
            parts.push(part(answer, task, chosen.as_deref(), rows)?);
        }
    }
    let answered: usize = parts.iter().map(|part| part.scored()).sum();
    if answered != rows.scored() {
        let scored = rows.scored();
        let what = format!("{scored} targets are scored, the model answers {answered}");
        return Err(TrainError::batch(what));
    }
    Ok(parts)
}

/// Fails if a row does not exist or is answered twice in the same kind.
fn check_rows<E: Element>(answers: &[Answer<E>], rows: usize) -> Result<()> {
    if let [Answer { rows: None, .. }] = answers {
        return Ok(());
    }
    let mut seen = [vec![false; rows], vec![false; rows]];
    for answer in answers {
        let seen = &mut seen[usize::from(answer.kind == AnswerKind::Values)];
        let all = || (0..rows as u32).collect();
        for &row in answer.rows.clone().unwrap_or_else(all).iter() {
            let problem = match seen.get_mut(row as usize) {
                None => format!("there are only {rows} rows"),
                Some(true) => "it has one already".to_string(),
                Some(seen) => {
                    *seen = true;
                    continue;
                }
            };
            return Err(TrainError::batch(format!("an answer to row {row}: {problem}")));
        }
    }
    Ok(())
}

/// The places in an answer of each task, in order of tasks; `None` is all.
type Groups = Vec<(Option<u32>, Option<Vec<u32>>)>;

fn groups<E: Element>(answer: &Answer<E>, rows: &Rows<'_>) -> Result<Groups> {
    let row_of = |place: usize| answer.rows.as_ref().map_or(place, |rows| rows[place] as usize);
    let count = answer.rows.as_ref().map_or(rows.rows(), |rows| rows.len());
    if count == 0 {
        return Ok(Vec::new());
    }
    let Some(ids) = rows.task_ids() else {
        return Ok(vec![(answer.task, None)]);
    };
    if let Some(task) = answer.task {
        let other = (0..count).map(row_of).find(|&row| ids[row] != task);
        return match other {
            None => Ok(vec![(Some(task), None)]),
            Some(row) => Err(TrainError::batch(format!(
                "an answer of task {task} to row {row}, which is of task {}",
                ids[row]
            ))),
        };
    }
    let mut groups: std::collections::BTreeMap<u32, Vec<u32>> = std::collections::BTreeMap::new();
    for place in 0..count {
        groups.entry(ids[row_of(place)]).or_default().push(place as u32);
    }
    let whole = groups.len() == 1;
    let groups = groups.into_iter();
    Ok(groups.map(|(task, places)| (Some(task), (!whole).then_some(places))).collect())
}

fn part<'a, E: Element>(
    answer: &Answer<E>,
    task: Option<u32>,
    places: Option<&[u32]>,
    rows: &Rows<'a>,
) -> Result<TaskAnswer<'a, E>> {
    let answered = answer.rows.as_ref().map_or(rows.rows(), |rows| rows.len());
    let count = places.map_or(answered, <[u32]>::len);
    let row_at = |i: usize| {
        let place = places.map_or(i, |places| places[i] as usize);
        answer.rows.as_ref().map_or(place, |rows| rows[place] as usize)
    };
    let output = &answer.output;
    let shape = output.shape();
    let width = shape.last_size();
    let targets = match answer.kind {
        AnswerKind::Classes => {
            let positions = shape.elements().checked_div(width * answered).unwrap_or(0);
            let fits = positions * width * answered == shape.elements()
                && (positions == rows.positions() || positions == 1);
            if shape.rank() < 2 || !fits || positions == 0 {
                return Err(TrainError::batch(format!(
                    "logits {shape} do not answer targets [{answered}, {}]",
                    rows.positions()
                )));
            }
            let (all, stride) = (rows.targets(), rows.positions());
            let (targets, labels) =
                if places.is_none() && answer.rows.is_none() && positions == stride {
                    (Cow::Borrowed(all), rows.labels().map(Cow::Borrowed))
                } else {
                    let at = || {
                        (0..count).flat_map(|i| (0..positions).map(move |p| row_at(i) * stride + p))
                    };
                    let targets = at().map(|i| all[i]).collect();
                    let labels = rows.labels().map(|l| at().map(|i| l[i]).collect());
                    (Cow::Owned(targets), labels.map(Cow::Owned))
                };
            check_classes(&targets, width, |i| row_at(i / positions))?;
            Targets::Classes { targets, labels }
        }
        AnswerKind::Values => {
            let (values, stride) = (rows.values().unwrap_or_default(), rows.value_width());
            if shape.elements() != answered * width || width == 0 || width > stride {
                return Err(TrainError::batch(format!(
                    "values {shape} do not answer values [{answered}, {stride}]"
                )));
            }
            let wanted = || (0..count).flat_map(|i| &values[row_at(i) * stride..][..width]);
            let skip: Vec<bool> = wanted().map(|v| v.is_nan()).collect();
            let wanted = wanted().map(|&v| if v.is_nan() { 0.0 } else { f64::from(v) });
            let values = Tensor::from_vec(wanted.map(E::from_f64).collect(), [count, width])?;
            Targets::Values { values, skip }
        }
    };
    let output = match places {
        None => output.clone(),
        Some(places) => {
            // Picking rows is what an embedding does.
            let flat = output.reshape([answered, shape.elements() / answered])?;
            let picked = flat.embedding(places, [count])?;
            picked.reshape([count, shape.elements() / answered / width, width])?
        }
    };
    let all = count == rows.rows() && (0..count).all(|i| row_at(i) == i);
    let rows = (!all).then(|| (0..count).map(|i| row_at(i) as u32).collect());
    Ok(TaskAnswer { task, rows, output, targets })
}

fn check_classes(targets: &[u32], classes: usize, row: impl Fn(usize) -> usize) -> Result<()> {
    let bad = |&(_, &t): &(usize, &u32)| t != IGNORE && t as usize >= classes;
    match targets.iter().enumerate().find(bad) {
        None => Ok(()),
        Some((i, target)) => Err(TrainError::batch(format!(
            "target {target} at row {}: the model has {classes} classes",
            row(i)
        ))),
    }
}

impl<E: Element> TaskAnswer<'_, E> {
    /// Number of targets that are scored.
    pub(crate) fn scored(&self) -> usize {
        match &self.targets {
            Targets::Classes { targets, .. } => targets.iter().filter(|&&t| t != IGNORE).count(),
            Targets::Values { skip, .. } => skip.iter().filter(|&&skip| !skip).count(),
        }
    }

    pub(crate) fn kind(&self) -> AnswerKind {
        match self.targets {
            Targets::Classes { .. } => AnswerKind::Classes,
            Targets::Values { .. } => AnswerKind::Values,
        }
    }

    /// The summed cross-entropy or squared error of the scored targets,
    /// divided by `divisor`.
    pub(crate) fn loss(&self, divisor: f64, label_smoothing: f64) -> Result<Var<E>, BoxError> {
        match &self.targets {
            Targets::Classes { targets, .. } => {
                let reduction = Reduction::Divisor(divisor);
                let options = tensor::CrossEntropy { reduction, label_smoothing };
                Ok(self.output.cross_entropy(targets, &options)?)
            }
            Targets::Values { values, skip } => {
                let output = self.output.reshape(values.shape())?;
                let difference = output.sub(&output.tape().constant(values.clone()))?;
                let difference = difference.masked_fill(skip, E::ZERO)?;
                let square = difference.mul(&difference)?;
                Ok(square.sum_all()?.scale(E::from_f64(1.0 / divisor))?)
            }
        }
    }

    /// Scores the answers.
    pub(crate) fn score(&self, tally: &mut Tally) {
        let output = self.output.value();
        match &self.targets {
            Targets::Classes { targets, labels } => {
                tally.score_classes(output, targets, labels.as_deref(), self.task);
            }
            Targets::Values { values, skip } => {
                tally.score_values(output, values, skip, self.task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use specialformer_tensor::Tape;

    use super::*;
    use crate::batch::Batch;

    fn var(shape: &[usize]) -> Var<f64> {
        let mut next = 0.0;
        let mut count = || {
            next += 1.0;
            next
        };
        let elements = shape.iter().product();
        let values = (0..elements).map(|_| count()).collect();
        Tape::new().variable(Tensor::from_vec(values, shape).unwrap())
    }

    /// Rows of tasks 1, 0, 1 with one class each, in column 0 of two.
    fn batch() -> Batch {
        let targets = vec![0, IGNORE, 2, IGNORE, 1, IGNORE];
        let mut batch = Batch::from_vecs(3, vec![0; 6], targets).unwrap();
        batch.task_ids_mut().copy_from_slice(&[1, 0, 1]);
        batch
    }

    #[test]
    fn an_answer_to_all_is_cut_by_the_rows_tasks() {
        let mut batch = batch();
        batch.labels_mut().copy_from_slice(&[5, 0, 6, 0, 7, 0]);
        let parts = by_task(&[Answer::classes(var(&[3, 1, 3]))], &batch.all()).unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].task, parts[1].task), (Some(0), Some(1)));
        assert_eq!(parts[0].output.value().as_slice(), [4.0, 5.0, 6.0]);
        assert_eq!(parts[1].output.value().as_slice(), [1.0, 2.0, 3.0, 7.0, 8.0, 9.0]);
        let Targets::Classes { targets, labels } = &parts[1].targets else { unreachable!() };
        assert_eq!(targets[..], [0, 1]);
        assert_eq!(labels.as_deref(), Some(&[5, 7][..]));
        // Two columns of logits, of which the second is not scored.
        let parts = by_task(&[Answer::classes(var(&[3, 2, 3]))], &batch.all()).unwrap();
        assert_eq!((parts[0].scored(), parts[1].scored()), (1, 2));
    }

    #[test]
    fn values_that_are_not_scored_cost_nothing_and_get_no_gradient() {
        let mut batch = Batch::new(2, 1, 1).unwrap();
        batch.values_mut(3)[..5].copy_from_slice(&[2.0, f32::NAN, f32::NAN, 1.0, 4.0]);
        let output = var(&[2, 2]);
        let parts = by_task(&[Answer::values(output.clone())], &batch.all()).unwrap();
        let loss = parts[0].loss(2.0, 0.0).unwrap();
        // (1 − 2)², (3 − 1)², (4 − 4)².
        assert_eq!(loss.value().item().unwrap(), 2.5);
        let gradients = output.tape().backward(&loss).unwrap();
        assert_eq!(gradients.of(&output).unwrap().as_slice(), [-1.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn answers_that_do_not_fit_are_named() {
        let batch = batch();
        let message =
            |answers: &[Answer<f64>]| by_task(answers, &batch.all()).unwrap_err().to_string();
        let one = |rows: &[u32]| Answer::classes(var(&[rows.len(), 1, 3])).of_rows(rows);
        assert_eq!(message(&[one(&[0, 3])]), "batch: an answer to row 3: there are only 3 rows");
        assert_eq!(
            message(&[one(&[0, 1]), one(&[1])]),
            "batch: an answer to row 1: it has one already"
        );
        assert_eq!(message(&[one(&[0, 1])]), "batch: 3 targets are scored, the model answers 2");
        assert_eq!(
            message(&[one(&[2, 1]).of_task(1)]),
            "batch: an answer of task 1 to row 1, which is of task 0"
        );
        assert_eq!(
            message(&[Answer::classes(var(&[3, 1, 2]))]),
            "batch: target 2 at row 1: the model has 2 classes"
        );
        assert_eq!(
            message(&[Answer::values(var(&[3, 1]))]),
            "batch: values [3, 1] do not answer values [3, 0]"
        );
    }
}
