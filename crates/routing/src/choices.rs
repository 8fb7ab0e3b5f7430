//! [`Choices`]: which experts each token asked for.

use std::ops::Range;

use crate::error::{Result, RoutingError};

/// The experts of each token, token by token, best first: a ragged list of
/// A choices. With a top-k gate and no padding, A = T·K.
///
/// ```
/// use specialformer_routing::Choices;
/// // Token 0 goes to experts 2 and 0, token 1 nowhere, token 2 to expert 1.
/// let choices = Choices::new(3, vec![0, 2, 2, 3], vec![2, 0, 1])?;
/// assert_eq!(choices.of(0), [2, 0]);
/// assert!(choices.of(1).is_empty());
/// assert_eq!(choices.load(), [1, 1, 1]);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    experts: usize,
    offsets: Vec<u32>,
    expert_of: Vec<u32>,
}

impl Choices {
    /// The choices of `offsets.len() − 1` tokens among `experts` experts:
    /// those of token t are `expert_of[offsets[t]..offsets[t + 1]]`.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if the offsets do not start at 0, fall, or
    /// do not end at the number of choices, or an expert does not exist.
    pub fn new(experts: usize, offsets: Vec<u32>, expert_of: Vec<u32>) -> Result<Self> {
        let bad = |name, value: &dyn std::fmt::Display, what: String| {
            Err(RoutingError::argument("choices", name, value, what))
        };
        if offsets.first() != Some(&0) {
            return bad("offsets", &format!("{:?}", offsets.first()), "must start with 0".into());
        }
        if let Some(t) = offsets.windows(2).position(|w| w[1] < w[0]) {
            return bad("offsets", &offsets[t + 1], format!("falls after token {t}"));
        }
        let last = offsets[offsets.len() - 1];
        if last as usize != expert_of.len() {
            return bad("offsets", &last, format!("there are {} choices", expert_of.len()));
        }
        if let Some(expert) = expert_of.iter().find(|&&e| e as usize >= experts) {
            return bad("expert", expert, format!("there are {experts} experts"));
        }
        Ok(Self { experts, offsets, expert_of })
    }

    /// `k` choices of each token, or none of a token that is not live:
    /// `expert_of` holds `k` entries for every token, live or not.
    pub(crate) fn uniform(
        experts: usize,
        k: usize,
        mut expert_of: Vec<u32>,
        live: Option<&[bool]>,
    ) -> Self {
        let tokens = expert_of.len() / k;
        let mut offsets = Vec::with_capacity(tokens + 1);
        offsets.push(0);
        match live.filter(|live| live.contains(&false)) {
            None => offsets.extend((1..=tokens).map(|t| (t * k) as u32)),
            Some(live) => {
                let mut end = 0;
                for (token, &live) in live.iter().enumerate() {
                    if live {
                        expert_of.copy_within(token * k..(token + 1) * k, end);
                        end += k;
                    }
                    offsets.push(end as u32);
                }
                expert_of.truncate(end);
            }
        }
        Self { experts, offsets, expert_of }
    }

    /// The choices of which each expert lists its tokens, in order of experts;
    /// a token's choices come out in that order.
    pub(crate) fn from_experts(tokens: usize, experts: usize, lists: &[Vec<u32>]) -> Self {
        let mut offsets = vec![0u32; tokens + 1];
        for &token in lists.iter().flatten() {
            offsets[token as usize + 1] += 1;
        }
        for t in 0..tokens {
            offsets[t + 1] += offsets[t];
        }
        let mut next = offsets.clone();
        let mut expert_of = vec![0; offsets[tokens] as usize];
        for (expert, list) in lists.iter().enumerate() {
            for &token in list {
                let at = &mut next[token as usize];
                expert_of[*at as usize] = expert as u32;
                *at += 1;
            }
        }
        Self { experts, offsets, expert_of }
    }

    /// Number of tokens T.
    pub fn tokens(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of choices A.
    pub fn len(&self) -> usize {
        self.expert_of.len()
    }

    /// True if no token chose any expert.
    pub fn is_empty(&self) -> bool {
        self.expert_of.is_empty()
    }

    /// Where each token's choices start, and the end of the last [T + 1].
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// The expert of each choice \[A\].
    pub fn expert_of(&self) -> &[u32] {
        &self.expert_of
    }

    /// Where the choices of a token stand.
    #[inline]
    pub fn range(&self, token: usize) -> Range<usize> {
        self.offsets[token] as usize..self.offsets[token + 1] as usize
    }

    /// The experts of a token, best first.
    #[inline]
    pub fn of(&self, token: usize) -> &[u32] {
        &self.expert_of[self.range(token)]
    }

    /// Each expert's number of choices \[E\].
    pub fn load(&self) -> Vec<u64> {
        let mut load = vec![0; self.experts];
        for &expert in &self.expert_of {
            load[expert as usize] += 1;
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_lists_are_refused() {
        let message = |offsets: &[u32], experts: &[u32]| {
            Choices::new(2, offsets.to_vec(), experts.to_vec()).unwrap_err().to_string()
        };
        assert_eq!(message(&[], &[]), "choices: offsets = None: must start with 0");
        assert_eq!(message(&[0, 2, 1], &[0, 1]), "choices: offsets = 1: falls after token 1");
        assert_eq!(message(&[0, 1], &[0, 1]), "choices: offsets = 1: there are 2 choices");
        assert_eq!(message(&[0, 1], &[2]), "choices: expert = 2: there are 2 experts");
    }

    #[test]
    fn tokens_that_are_not_live_choose_nothing() {
        let live = [true, false, true];
        let choices = Choices::uniform(4, 2, vec![3, 1, 9, 9, 0, 2], Some(&live));
        assert_eq!(choices.offsets(), [0, 2, 2, 4]);
        assert_eq!(choices.expert_of(), [3, 1, 0, 2]);
    }

    #[test]
    fn lists_of_experts_turn_into_lists_of_tokens() {
        let choices = Choices::from_experts(3, 2, &[vec![2, 0], vec![2]]);
        assert_eq!((choices.of(0), choices.of(1), choices.of(2)), (&[0][..], &[][..], &[0, 1][..]));
    }
}
