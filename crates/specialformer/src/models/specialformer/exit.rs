//! Answers from early blocks: rows that are sure go no further.

use specialformer_attention::Queries;
use specialformer_embedding::assemble;
use specialformer_nn::{Ctx, Mode};
use specialformer_tensor::{Element, KeepAxes, Tensor, Var};
use specialformer_train::{Answer, AnswerKind, IGNORE, Rows};

use super::arrange::Arranged;
use super::reading::Reading;
use super::{Pass, Specialformer};
use crate::config::ExitConfig;
use crate::error::Result;
use crate::models::stack::StackInput;

/// The answers after each early block.
type EarlyAnswers<E> = Vec<Vec<Answer<E>>>;

impl<E: Element> Specialformer<E> {
    /// As [`Self::run`] with answers after early blocks. In evaluation rows that
    /// are sure leave; in training all go on, and the early answers come too.
    pub(super) fn run_exiting<'a>(
        &self,
        ctx: &Ctx<E>,
        input: &Rows<'a>,
        exit: &ExitConfig,
    ) -> Result<(Pass<'a, E>, EarlyAnswers<E>)> {
        let arranged = Arranged::new(input, self.config.tasks.len(), false)?;
        let whole = ctx.with_tasks(arranged.tasks.clone());
        let (stack, prefix) = (&self.main, self.task.prefix());
        let (length, width) = (arranged.main.length, self.config.base.width);
        let mut part = arranged.clone();
        let mut left: Vec<usize> = (0..arranged.rows).collect();
        let (mut x, mut mixture) = (None, None);
        let (mut done, mut early) = (Vec::new(), Vec::new());
        let mut first = 0;
        for last in exit.layers.iter().copied().chain([self.config.base.layers - 1]) {
            let ctx = whole.with_tasks(part.tasks.clone());
            let tasks = part.task_indices();
            let sequences = &part.main;
            let reading = Reading { stack, name: "", sequences, prefix, memory: None, probe: None };
            let [own, all] = self.streams(&reading, part.rows)?;
            let read = match x.take() {
                Some(x) => x,
                None => {
                    let (x, routing) = self.embed(&ctx, &reading, &tasks, &own)?;
                    mixture = routing;
                    x
                }
            };
            let lengths: Option<Vec<usize>> =
                sequences.lengths.as_ref().map(|all| all.iter().map(|n| n + prefix).collect());
            let ids = self.ids(&reading, &tasks);
            let given = StackInput {
                lengths: lengths.as_deref(),
                tokens: Some(&ids),
                streams: Some(&all),
                ..StackInput::new(Queries::All)
            };
            let output = stack.forward_range(&ctx, read, first..last + 1, &given)?.output;
            first = last + 1;
            let hidden = stack.finish(&ctx, &output)?.slice(1, prefix..prefix + length)?;
            if first == self.config.base.layers {
                done.push((left, hidden.reshape([part.rows, length * width])?));
                break;
            }
            let answers = self.heads.answers(&ctx, &hidden, &part)?;
            if ctx.mode() == Mode::Train {
                early.push(answers);
                x = Some(output);
                continue;
            }
            let mut certain = vec![false; input.rows()];
            for answer in &answers {
                let rows = rows_of(answer, part.rows);
                let each = sure(answer, &rows, input, exit.threshold)?;
                rows.iter().zip(each).for_each(|(&row, each)| certain[row as usize] = each);
            }
            let of_batch = part.original(&(0..part.rows).collect::<Vec<_>>());
            let (leave, stay): (Vec<usize>, Vec<usize>) =
                (0..part.rows).partition(|&row| certain[of_batch[row] as usize]);
            let pick = |x: &Var<E>, rows: &[usize], length: usize| {
                let flat = x.reshape([part.rows, length * width])?;
                flat.embedding(rows, rows.len())
            };
            if !leave.is_empty() {
                let places = leave.iter().map(|&row| left[row]).collect();
                done.push((places, pick(&hidden, &leave, length)?));
            }
            if stay.is_empty() {
                break;
            }
            let rest = pick(&output, &stay, length + prefix)?;
            x = Some(rest.reshape([stay.len(), length + prefix, width])?);
            left = stay.iter().map(|&row| left[row]).collect();
            part = part.select(&stay)?;
        }
        let hidden = assemble(&whole, done, arranged.rows, length * width)?;
        let hidden = hidden.reshape([arranged.rows, length, width])?;
        let pass = Pass { arranged, ctx: whole, hidden, routings: Vec::new(), mixture };
        Ok((pass, early))
    }
}

/// The rows that an answer is of, out of so many.
fn rows_of<E: Element>(answer: &Answer<E>, all: usize) -> Vec<u32> {
    match &answer.rows {
        Some(rows) => rows.to_vec(),
        None => (0..all as u32).collect(),
    }
}

/// True for each row of an answer that is at least `threshold` sure of every
/// position that is scored; of a row without any, of its last real position.
fn sure<E: Element>(
    answer: &Answer<E>,
    rows: &[u32],
    input: &Rows<'_>,
    threshold: f64,
) -> Result<Vec<bool>> {
    if answer.kind == AnswerKind::Values {
        // A number has no probability.
        return Ok(vec![false; rows.len()]);
    }
    let probabilities = answer.output.softmax(answer.output.shape().rank() - 1)?;
    let shape = probabilities.shape();
    let classes = shape.last_size();
    let positions = shape.elements() / (classes * rows.len()).max(1);
    let best: Vec<f64> = probabilities
        .value()
        .as_slice()
        .chunks_exact(classes)
        .map(|p| p.iter().fold(0.0, |best: f64, p| best.max(p.to_f64())))
        .collect();
    let of_row = |(i, &row): (usize, &u32)| {
        let best = &best[i * positions..(i + 1) * positions];
        if positions != input.positions() {
            return best.iter().all(|&p| p >= threshold);
        }
        let targets = &input.targets()[row as usize * positions..][..positions];
        let mut scored = targets.iter().zip(best).filter(|(target, _)| **target != IGNORE);
        if targets.iter().all(|&target| target == IGNORE) {
            let n = input.lengths().map_or(positions, |all| all[row as usize] as usize);
            return best[n.clamp(1, positions) - 1] >= threshold;
        }
        scored.all(|(_, &p)| p >= threshold)
    };
    Ok(rows.iter().enumerate().map(of_row).collect())
}

/// The distance of early answers to the last ones, which they are to learn: the
/// mean over scored positions of −Σ p·log q with p the last answer's
/// probabilities, which get no gradient, and q the early one's.
pub(super) fn distance<E: Element>(
    ctx: &Ctx<E>,
    early: &[Answer<E>],
    last: &[Answer<E>],
    input: &Rows<'_>,
) -> Result<Option<Var<E>>> {
    if ctx.mode() == Mode::Eval {
        return Ok(None);
    }
    let mut sum: Option<Var<E>> = None;
    let mut count = 0usize;
    let pairs = early.iter().zip(last);
    for (early, last) in pairs.filter(|(_, last)| last.kind == AnswerKind::Classes) {
        let own = rows_of(last, input.rows());
        let shape = last.output.shape();
        let axis = shape.rank() - 1;
        let positions = shape.elements() / (shape.last_size() * own.len()).max(1);
        let scored = own.iter().flat_map(|&row| {
            let all = &input.targets()[row as usize * input.positions()..][..input.positions()];
            (0..positions).map(move |p| all[p] != IGNORE)
        });
        let scored: Vec<bool> = scored.collect();
        count += scored.iter().filter(|scored| **scored).count();
        let wanted = last.output.detach().softmax(axis)?;
        let each = early.output.log_softmax(axis)?.mul(&wanted)?.sum(&[axis], KeepAxes::No)?;
        let weights = scored.iter().map(|&scored| E::from_f64(-f64::from(u8::from(scored))));
        let weights = ctx.constant(Tensor::from_vec(weights.collect(), each.shape())?);
        let part = each.mul(&weights)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => sum.add(&part)?,
            None => part,
        });
    }
    Ok(sum.map(|sum| sum.scale(E::from_f64(1.0 / count.max(1) as f64))).transpose()?)
}
