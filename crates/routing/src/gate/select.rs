//! The K best experts of each token.

use std::cmp::Ordering;

use specialformer_tensor::{Element, Parallelism};

use super::check_k;
use crate::choices::Choices;
use crate::config::Groups;
use crate::error::{Result, RoutingError};
use crate::expert_set::Allowed;

/// Up to this many are kept sorted while a row is read; more are selected and
/// then sorted.
const INSERTION: usize = 16;

/// Scores of one unit of parallel work.
const CHUNK: usize = 1 << 14;

/// What a selection takes into account besides the scores.
#[derive(Debug, Clone, Copy)]
pub struct SelectArgs<'a, E> {
    /// False for tokens that go nowhere, e.g. padding \[T\].
    pub live: Option<&'a [bool]>,
    /// Which experts may be chosen.
    pub allowed: Option<Allowed<'a>>,
    /// Added to the scores in the selection alone \[E\]; to the logits, where a
    /// gate chooses by them.
    pub bias: Option<&'a [E]>,
    /// Choose groups of experts first.
    pub groups: Option<Groups>,
}

impl<E> Default for SelectArgs<'_, E> {
    /// All tokens, all experts, no bias, no groups.
    fn default() -> Self {
        Self { live: None, allowed: None, bias: None, groups: None }
    }
}

impl<E: Element> SelectArgs<'_, E> {
    /// True if the order of the scores alone does not decide.
    pub(crate) fn changes_scores(&self) -> bool {
        self.bias.is_some() || self.groups.is_some()
    }

    /// Checks the arguments against T tokens, E experts and K.
    pub(crate) fn check(
        &self,
        op: &'static str,
        tokens: usize,
        experts: usize,
        k: usize,
    ) -> Result<()> {
        check_k(op, k, experts)?;
        if let Some(live) = self.live.filter(|live| live.len() != tokens) {
            let what = format!("must have one entry for each of {tokens} tokens");
            return Err(RoutingError::shape(op, "live", &[live.len()], what));
        }
        if let Some(bias) = self.bias.filter(|bias| bias.len() != experts) {
            let what = format!("must have one entry for each of {experts} experts");
            return Err(RoutingError::shape(op, "bias", &[bias.len()], what));
        }
        if let Some(Groups { count, keep }) = self.groups {
            let fits = count > 0
                && experts.is_multiple_of(count)
                && (1..=count).contains(&keep)
                && keep * (experts / count) >= k;
            if !fits {
                let value = format!("{keep} of {count}");
                let what = format!("cannot give {k} of {experts} experts");
                return Err(RoutingError::argument(op, "groups", value, what));
            }
        }
        self.allowed.map_or(Ok(()), |allowed| allowed.check(op, tokens, experts, k))
    }
}

/// Fails if a logit is NaN or infinite.
pub(crate) fn check_finite<E: Element>(
    scope: impl FnOnce() -> String,
    logits: &[E],
    experts: usize,
) -> Result<()> {
    // Branch-free, so that the common case is one pass of vector code.
    let bad = |x: &E| usize::from(!x.is_finite());
    let count: usize = logits.iter().map(bad).sum();
    if count == 0 {
        return Ok(());
    }
    let first = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(RoutingError::NonFinite {
        scope: scope(),
        count,
        total: logits.len(),
        token: first / experts,
        expert: first % experts,
        value: logits[first].to_string(),
    })
}

/// Larger first, ties by index.
fn order<E: Element>(row: &[E], a: usize, b: usize) -> Ordering {
    row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// The indices of the largest of a row, largest first, the lower index of
/// equal ones.
pub(crate) fn largest<E: Element>(row: &[E], out: &mut [u32]) {
    let k = out.len();
    match k {
        0 => {}
        1 => out[0] = largest_one(row),
        2 => [out[0], out[1]] = largest_two(row),
        _ if k <= INSERTION => largest_few(row, out),
        _ => {
            let mut indices: Vec<usize> = (0..row.len()).collect();
            if k < row.len() {
                indices.select_nth_unstable_by(k - 1, |&a, &b| order(row, a, b));
            }
            let chosen = &mut indices[..k];
            chosen.sort_unstable_by(|&a, &b| order(row, a, b));
            for (out, &index) in out.iter_mut().zip(&*chosen) {
                *out = index as u32;
            }
        }
    }
}

fn largest_one<E: Element>(row: &[E]) -> u32 {
    let (mut best, mut at) = (row[0], 0);
    for (i, &x) in row.iter().enumerate().skip(1) {
        if x > best {
            (best, at) = (x, i as u32);
        }
    }
    at
}

fn largest_two<E: Element>(row: &[E]) -> [u32; 2] {
    let (mut first, mut second) = ((row[0], 0), (row[1], 1));
    if second.0 > first.0 {
        std::mem::swap(&mut first, &mut second);
    }
    for (i, &x) in row.iter().enumerate().skip(2) {
        if x > second.0 {
            second = (x, i as u32);
            if x > first.0 {
                std::mem::swap(&mut first, &mut second);
            }
        }
    }
    [first.1, second.1]
}

fn largest_few<E: Element>(row: &[E], out: &mut [u32]) {
    let k = out.len();
    let mut values = [E::NEG_INFINITY; INSERTION];
    for (i, &x) in row.iter().enumerate() {
        if i >= k && x <= values[k - 1] {
            continue;
        }
        let filled = i.min(k);
        let mut at = filled;
        while at > 0 && x > values[at - 1] {
            at -= 1;
        }
        if at < k {
            values.copy_within(at..filled.min(k - 1), at + 1);
            out.copy_within(at..filled.min(k - 1), at + 1);
            values[at] = x;
            out[at] = i as u32;
        }
    }
}

/// The K experts of largest score (with bias, within the best groups) of each
/// live token. The arguments have been checked.
///
/// # Numerics
/// Each row is chosen by itself, so the result does not depend on the number
/// of threads.
pub(crate) fn select<E: Element>(
    scores: &[E],
    experts: usize,
    k: usize,
    args: &SelectArgs<'_, E>,
    parallelism: Parallelism,
) -> Choices {
    let tokens = scores.len() / experts;
    let mut chosen = vec![0u32; tokens * k];
    let rows = (CHUNK / experts).max(1);
    let plain = args.bias.is_none() && args.groups.is_none() && args.allowed.is_none();
    parallelism.for_each_chunk(&mut chosen, rows * k, |i, chosen| {
        let first = i * rows;
        let scores = scores[first * experts..].chunks_exact(experts);
        let mut scratch = vec![E::ZERO; if plain { 0 } else { experts }];
        for (j, (row, out)) in scores.zip(chosen.chunks_exact_mut(k)).enumerate() {
            if plain {
                largest(row, out);
            } else {
                adjusted(row, first + j, k, args, &mut scratch);
                largest(&scratch, out);
            }
        }
    });
    Choices::uniform(experts, k, chosen, args.live)
}

/// [`select`] for gates whose scores are a monotone function of the logits: by
/// the scores if bias or groups change them, else by the logits, fewer of which
/// rounding makes equal.
pub(crate) fn select_scored<E: Element>(
    scores: &[E],
    logits: &[E],
    experts: usize,
    k: usize,
    args: &SelectArgs<'_, E>,
    parallelism: Parallelism,
) -> Choices {
    let by = if args.changes_scores() { scores } else { logits };
    select(by, experts, k, args, parallelism)
}

/// A row as the selection sees it: with bias, −∞ where nothing may be chosen.
fn adjusted<E: Element>(
    row: &[E],
    token: usize,
    k: usize,
    args: &SelectArgs<'_, E>,
    out: &mut [E],
) {
    out.copy_from_slice(row);
    if let Some(bias) = args.bias {
        for (out, &bias) in out.iter_mut().zip(bias) {
            *out += bias;
        }
    }
    if let Some(allowed) = args.allowed {
        for (out, &allowed) in out.iter_mut().zip(allowed.of(token).mask()) {
            if !allowed {
                *out = E::NEG_INFINITY;
            }
        }
    }
    if let Some(groups) = args.groups {
        keep_groups(out, groups, k);
    }
}

/// Masks all but the best groups of a row, each scored by the sum of its two
/// best. Where the best groups hold fewer than `k` candidates (because the
/// others are not allowed), the next ones join them.
fn keep_groups<E: Element>(row: &mut [E], groups: Groups, k: usize) {
    let size = row.len() / groups.count;
    let scores: Vec<E> = row
        .chunks_exact(size)
        .map(|group| {
            let mut best = [0; 2];
            let best = &mut best[..size.min(2)];
            largest(group, best);
            // A candidate alone in its group counts by itself.
            let values = best.iter().map(|&i| group[i as usize]);
            let first = group[best[0] as usize];
            if first == E::NEG_INFINITY {
                first
            } else {
                values.filter(|&v| v != E::NEG_INFINITY).sum()
            }
        })
        .collect();
    let mut ranked = vec![0; groups.count];
    largest(&scores, &mut ranked);
    let mut candidates = 0;
    for (rank, &group) in ranked.iter().enumerate() {
        let group = &mut row[group as usize * size..][..size];
        if rank < groups.keep || candidates < k {
            candidates += group.iter().filter(|&&v| v != E::NEG_INFINITY).count();
        } else {
            group.fill(E::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expert_set::ExpertSet;

    fn top(row: &[f64], k: usize) -> Vec<u32> {
        let mut out = vec![0; k];
        largest(row, &mut out);
        out
    }

    #[test]
    fn all_ways_of_selecting_agree() {
        let row: Vec<f64> = (0..40).map(|i| f64::from(i * 37 % 17)).collect();
        let mut sorted: Vec<usize> = (0..40).collect();
        sorted.sort_by(|&a, &b| order(&row, a, b));
        let sorted: Vec<u32> = sorted.into_iter().map(|i| i as u32).collect();
        for k in 0..=40 {
            assert_eq!(top(&row, k), sorted[..k], "k = {k}");
        }
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top(&[1.0, 2.0, 2.0, 0.0, 2.0], 1), [1]);
        assert_eq!(top(&[1.0, 2.0, 2.0, 0.0, 2.0], 2), [1, 2]);
        assert_eq!(top(&[1.0, 2.0, 2.0, 0.0, 2.0], 3), [1, 2, 4]);
        assert_eq!(top(&[1.0; 40], 20), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn groups_are_ranked_by_their_two_best() {
        // Sums of two: 5, 7, 6; group 0 holds the single best.
        let scores = [4.5, 0.5, 0.0, 3.5, 3.5, 0.0, 5.5, 0.5, 0.0];
        let groups = Some(Groups { count: 3, keep: 1 });
        let args = SelectArgs { groups, ..SelectArgs::default() };
        let choices = select(&scores, 9, 2, &args, Parallelism::Serial);
        assert_eq!(choices.of(0), [3, 4]);
        let groups = Some(Groups { count: 3, keep: 2 });
        let args = SelectArgs { groups, ..SelectArgs::default() };
        assert_eq!(select(&scores, 9, 2, &args, Parallelism::Serial).of(0), [6, 3]);
    }

    #[test]
    fn groups_emptied_by_the_allowed_set_give_way() {
        let scores = [9.0, 9.0, 1.0, 2.0];
        let set = ExpertSet::new(4, [0, 2, 3]).unwrap();
        let args = SelectArgs {
            groups: Some(Groups { count: 2, keep: 1 }),
            allowed: Some(Allowed::from(&set)),
            ..SelectArgs::default()
        };
        assert_eq!(select(&scores, 4, 2, &args, Parallelism::Serial).of(0), [0, 3]);
    }

    #[test]
    fn the_bias_counts_in_the_selection() {
        let args = SelectArgs { bias: Some(&[0.0, 0.0, 0.5][..]), ..SelectArgs::default() };
        let choices = select(&[0.5, 0.3, 0.2], 3, 1, &args, Parallelism::Serial);
        assert_eq!(choices.of(0), [2]);
    }
}
