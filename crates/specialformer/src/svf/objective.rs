//! [`AnswerLoss`]: the loss of the answers' tokens.

use specialformer_nn::Ctx;
use specialformer_tensor::{CrossEntropy, Reduction, Tensor, Var};
use specialformer_train::{BoxError, IGNORE, Objective, Rows, Score, Shard, ShardLoss, is_right};

use super::tuned::Tuned;
use crate::error::Result;
use crate::families::{PublishedModel, TextInput};
use crate::models::Tokens;

/// The mean cross-entropy of the targets, which are the answers' tokens. The
/// head, the largest product of a small model, is applied to the positions
/// before them alone.
///
/// Metrics: accuracy of the tokens; `exact`, the share of rows all of whose
/// tokens are the most probable ones, which is what greedy decoding would say.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerLoss;

/// Logits [n, V] of the n targets of some rows, and the targets.
pub(super) fn answer_logits(
    model: &PublishedModel,
    ctx: &Ctx,
    rows: &Rows<'_>,
) -> Result<(Var, Vec<u32>)> {
    let places = rows.targets().iter().enumerate().filter(|(_, target)| **target != IGNORE);
    let (places, targets): (Vec<usize>, Vec<u32>) = places.map(|(i, &t)| (i, t)).unzip();
    Ok((logits_at(model, ctx, rows, &places)?, targets))
}

/// Logits [n, V] of the positions with these numbers, rows one after another.
fn logits_at(model: &PublishedModel, ctx: &Ctx, rows: &Rows<'_>, places: &[usize]) -> Result<Var> {
    let lengths: Option<Vec<usize>> =
        rows.lengths().map(|all| all.iter().map(|&n| n as usize).collect());
    let mut input = TextInput::new(Tokens::new(rows.tokens(), rows.rows())?);
    if let Some(lengths) = &lengths {
        input = input.with_lengths(lengths)?;
    }
    let hidden = model.states(ctx, &input)?.hidden;
    let width = hidden.shape().last_size();
    let flat = hidden.reshape([rows.rows() * rows.length(), width])?;
    model.head(ctx, &flat.embedding(places, [places.len()])?)
}

/// For each row of logits [n, V], whether its largest is at the target; of
/// equal ones the first counts.
pub(super) fn hits(logits: &Tensor, targets: &[u32]) -> Vec<bool> {
    let width = logits.shape().last_size().max(1);
    let rows = logits.as_slice().chunks_exact(width).zip(targets);
    rows.map(|(row, &target)| is_right(row, target as usize)).collect()
}

/// Rows all of whose targets are hit.
pub(super) fn exact_rows(rows: &Rows<'_>, hits: &[bool]) -> usize {
    let mut hits = hits.iter();
    let of_row = |row: &[u32]| {
        let scored = row.iter().filter(|&&target| target != IGNORE).count();
        // Every hit of the row is taken, also after a miss.
        let missed = hits.by_ref().take(scored).filter(|hit| !**hit).count();
        scored > 0 && missed == 0
    };
    rows.targets().chunks(rows.positions().max(1)).map(of_row).filter(|exact| *exact).count()
}

impl Objective<Tuned> for AnswerLoss {
    fn loss(&self, ctx: &Ctx, model: &Tuned, shard: &Shard<'_>) -> Result<ShardLoss, BoxError> {
        let (logits, targets) = answer_logits(model.model(), ctx, &shard.rows)?;
        let _scope = ctx.scope("loss");
        let reduction = Reduction::Divisor(shard.step_scored.max(1) as f64);
        let loss =
            logits.cross_entropy(&targets, &CrossEntropy { reduction, ..Default::default() })?;
        let hits = hits(logits.value(), &targets);
        let mut result = ShardLoss::new(loss);
        result.terms = vec![("cross_entropy".into(), f64::from(result.loss.value().item()?))];
        let correct = hits.iter().filter(|hit| **hit).count() as u64;
        result.tally.overall = Score { correct, scored: targets.len() as u64 };
        let exact = exact_rows(&shard.rows, &hits) as f64 / shard.rows.rows().max(1) as f64;
        result.statistics = vec![("exact".into(), exact * shard.share())];
        Ok(result)
    }
}
