//! Answers from early blocks: rows that are sure go no further.

use specialformer_nn::{Ctx, Mode};
use specialformer_tensor::{Element, KeepAxes, Tensor, Var};
use specialformer_train::{Answer, AnswerKind, IGNORE, Rows};

use crate::error::Result;

/// True for each row of an answer that is at least `threshold` sure of every
/// position that is scored; of a row without any, of its last real position.
pub(super) fn sure<E: Element>(
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
    rows: impl Fn(&Answer<E>) -> Vec<u32>,
    input: &Rows<'_>,
) -> Result<Option<Var<E>>> {
    if ctx.mode() == Mode::Eval {
        return Ok(None);
    }
    let mut sum: Option<Var<E>> = None;
    let mut count = 0usize;
    let pairs = early.iter().zip(last);
    for (early, last) in pairs.filter(|(_, last)| last.kind == AnswerKind::Classes) {
        let own = rows(last);
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
