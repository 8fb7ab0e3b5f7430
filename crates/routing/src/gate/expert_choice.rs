//! Experts that choose their tokens.

use std::cmp::Ordering;

use specialformer_tensor::{Element, Parallelism};

use crate::choices::Choices;
use crate::expert_set::Allowed;

/// How many of T tokens each of E experts picks, so that a token gets K
/// experts in the mean: ⌈T·K/E⌉, at most T.
pub fn tokens_per_expert(tokens: usize, experts: usize, mean_experts: usize) -> usize {
    (tokens * mean_experts).div_ceil(experts.max(1)).min(tokens)
}

/// Each expert's tokens of largest score. Experts that no live token may go to
/// take none, and the others share the tokens.
pub(crate) fn select_tokens<E: Element>(
    scores: &[E],
    experts: usize,
    mean_experts: usize,
    live: Option<&[bool]>,
    allowed: Option<Allowed<'_>>,
    parallelism: Parallelism,
) -> Choices {
    let tokens = scores.len() / experts;
    let candidates: Vec<u32> =
        (0..tokens).filter(|&t| live.is_none_or(|live| live[t])).map(|t| t as u32).collect();
    let used = allowed.map_or(experts, |allowed| allowed.used(live));
    let count = tokens_per_expert(candidates.len(), used, mean_experts);
    let mut lists = vec![Vec::new(); experts];
    parallelism.for_each_chunk(&mut lists, 1, |expert, list| {
        let score = |token: u32| scores[token as usize * experts + expert];
        let may = |token: u32| allowed.is_none_or(|a| a.of(token as usize).contains(expert));
        let mut tokens: Vec<u32> = candidates.iter().copied().filter(|&t| may(t)).collect();
        if tokens.len() > count {
            if count > 0 {
                tokens.select_nth_unstable_by(count - 1, |&a, &b| {
                    let by_score = score(b).partial_cmp(&score(a)).unwrap_or(Ordering::Equal);
                    by_score.then(a.cmp(&b))
                });
            }
            tokens.truncate(count);
        }
        list[0] = tokens;
    });
    Choices::from_experts(tokens, experts, &lists)
}
