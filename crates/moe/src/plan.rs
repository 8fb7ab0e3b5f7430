//! Stand-in until routing's plan is merged.

use specialformer_tensor::Segments;
use std::ops::Range;

/// Which token row goes to which expert.
#[derive(Debug, Clone)]
pub struct DispatchPlan {
    tokens: usize,
    segments: Segments,
    token_of: Vec<u32>,
    choice_of: Vec<u32>,
    slot_of: Vec<u32>,
    choice_offsets: Vec<u32>,
}

impl DispatchPlan {
    /// From the experts chosen by each token (empty: none).
    pub fn from_choices(experts: usize, choices: &[Vec<Option<u32>>]) -> Self {
        let mut counts = vec![0usize; experts];
        for e in choices.iter().flatten().flatten() {
            counts[*e as usize] += 1;
        }
        let segments = Segments::from_counts(counts);
        let mut next: Vec<usize> = segments.offsets().to_vec();
        let total = segments.rows();
        let mut token_of = vec![0; total];
        let mut choice_of = vec![0; total];
        let mut slot_of = Vec::new();
        let mut choice_offsets = vec![0];
        for (t, choices) in choices.iter().enumerate() {
            for e in choices {
                let choice = slot_of.len();
                match e {
                    Some(e) => {
                        let slot = next[*e as usize];
                        next[*e as usize] += 1;
                        token_of[slot] = t as u32;
                        choice_of[slot] = choice as u32;
                        slot_of.push(slot as u32);
                    }
                    None => slot_of.push(u32::MAX),
                }
            }
            choice_offsets.push(slot_of.len() as u32);
        }
        Self { tokens: choices.len(), segments, token_of, choice_of, slot_of, choice_offsets }
    }
    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
    /// Segments.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }
    /// Token of slot.
    pub fn token_of(&self) -> &[u32] {
        &self.token_of
    }
    /// Choice of slot.
    pub fn choice_of(&self) -> &[u32] {
        &self.choice_of
    }
    /// Slot of choice.
    pub fn slot_of(&self) -> &[u32] {
        &self.slot_of
    }
    /// Choices of a token.
    pub fn choices_of(&self, t: usize) -> Range<usize> {
        self.choice_offsets[t] as usize..self.choice_offsets[t + 1] as usize
    }
}
