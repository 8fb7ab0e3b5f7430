//! As many experts as a token needs.

use specialformer_tensor::Element;

use crate::choices::Choices;

/// Of each token's choices, which stand best first, the fewest whose scores
/// [T, E] sum to at least `mass`; at least one, and all where they do not.
pub(crate) fn keep_mass<E: Element>(choices: &Choices, scores: &[E], mass: f64) -> Choices {
    let experts = choices.experts();
    let mut offsets = Vec::with_capacity(choices.tokens() + 1);
    let mut expert_of = Vec::with_capacity(choices.len());
    offsets.push(0);
    for token in 0..choices.tokens() {
        let row = &scores[token * experts..(token + 1) * experts];
        let mut sum = 0.0;
        for &expert in choices.of(token) {
            if sum >= mass {
                break;
            }
            sum += row[expert as usize].to_f64();
            expert_of.push(expert);
        }
        offsets.push(expert_of.len() as u32);
    }
    Choices::new(experts, offsets, expert_of).expect("a part of choices is choices")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harder_tokens_keep_more() {
        // A sure token, one that wavers, one of padding.
        let scores = [0.9, 0.06, 0.04, 0.4, 0.35, 0.25, 0.3, 0.3, 0.4];
        let all = Choices::new(3, vec![0, 3, 6, 6], vec![0, 1, 2, 0, 1, 2]).unwrap();
        let kept = keep_mass(&all, &scores, 0.7);
        assert_eq!((kept.of(0), kept.of(1), kept.of(2)), (&[0][..], &[0, 1][..], &[][..]));
        assert_eq!(keep_mass(&all, &scores, 1e-9).of(1), [0]);
        assert_eq!(keep_mass(&all, &scores, 2.0).of(0), [0, 1, 2]);
    }
}
