//! [`DispatchPlan`]: tokens sorted by expert.

use std::ops::Range;
use std::sync::Arc;

use specialformer_tensor::Segments;

use crate::choices::Choices;
use crate::error::{Result, RoutingError};

/// In which order tokens go through the experts, and back.
///
/// The choices that are kept are sorted by expert (stably, so by token within
/// an expert) into S slots; expert e owns the slots
/// `offsets[e]..offsets[e + 1]`. A gather by `token_of` lays the experts'
/// inputs out in contiguous segments; `slot_of` leads each choice to its
/// output, so that a token's outputs are added up in the order of its choices.
/// Counting sort: O(T·K) time and memory, no E × T mask. A clone shares
/// everything, so operations can keep one.
///
/// ```
/// use specialformer_routing::{Choices, DispatchPlan};
/// let choices = Choices::new(2, vec![0, 2, 3], vec![1, 0, 1])?;
/// let plan = DispatchPlan::new(choices, None)?;
/// assert_eq!(plan.offsets(), [0, 1, 3]);
/// assert_eq!(plan.token_of(), [0, 0, 1]);
/// assert_eq!(plan.choice_of(), [1, 0, 2]);
/// assert_eq!(plan.slot_of(), [1, 0, 2]);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct DispatchPlan {
    choices: Arc<Choices>,
    segments: Segments,
    token_of: Arc<[u32]>,
    choice_of: Arc<[u32]>,
    slot_of: Arc<[u32]>,
}

impl DispatchPlan {
    /// What [`DispatchPlan::slot_of`] says of a choice that was dropped.
    pub const DROPPED: u32 = u32::MAX;

    /// The plan for these choices, without those whose entry in `kept` \[A\]
    /// is false.
    ///
    /// # Errors
    /// [`RoutingError::Shape`] if `kept` has another length;
    /// [`RoutingError::Argument`] if there are 2³² − 1 choices or more.
    pub fn new(choices: impl Into<Arc<Choices>>, kept: Option<&[bool]>) -> Result<Self> {
        let choices = choices.into();
        let count = choices.len();
        if let Some(kept) = kept.filter(|kept| kept.len() != count) {
            let what = format!("must have one entry for each of {count} choices");
            return Err(RoutingError::shape("dispatch plan", "kept", &[kept.len()], what));
        }
        if count.max(choices.tokens()) >= Self::DROPPED as usize {
            let what = "must be less than 2^32 - 1";
            return Err(RoutingError::argument("dispatch plan", "choices", count, what));
        }
        let expert_of = choices.expert_of();
        let is_kept = |choice: usize| kept.is_none_or(|kept| kept[choice]);
        let mut offsets = vec![0usize; choices.experts() + 1];
        for (choice, &expert) in expert_of.iter().enumerate() {
            offsets[expert as usize + 1] += usize::from(is_kept(choice));
        }
        for e in 0..choices.experts() {
            offsets[e + 1] += offsets[e];
        }
        let slots = offsets[choices.experts()];
        let mut next = offsets.clone();
        let (mut token_of, mut choice_of) = (vec![0u32; slots], vec![0u32; slots]);
        let mut slot_of = vec![Self::DROPPED; count];
        for token in 0..choices.tokens() {
            for choice in choices.range(token) {
                if !is_kept(choice) {
                    continue;
                }
                let next = &mut next[expert_of[choice] as usize];
                token_of[*next] = token as u32;
                choice_of[*next] = choice as u32;
                slot_of[choice] = *next as u32;
                *next += 1;
            }
        }
        Ok(Self {
            choices,
            segments: Segments::new(offsets)?,
            token_of: token_of.into(),
            choice_of: choice_of.into(),
            slot_of: slot_of.into(),
        })
    }

    /// Number of tokens T.
    pub fn tokens(&self) -> usize {
        self.choices.tokens()
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.choices.experts()
    }

    /// Number of slots S: choices that were not dropped.
    pub fn slots(&self) -> usize {
        self.token_of.len()
    }

    /// Number of choices that were dropped.
    pub fn dropped(&self) -> usize {
        self.choices.len() - self.slots()
    }

    /// What the tokens asked for, dropped or not.
    pub fn choices(&self) -> &Arc<Choices> {
        &self.choices
    }

    /// The slots of each expert, as grouped products take them.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Where each expert's slots start, and the end of the last [E + 1].
    pub fn offsets(&self) -> &[usize] {
        self.segments.offsets()
    }

    /// The slots of one expert.
    pub fn slots_of(&self, expert: usize) -> Range<usize> {
        self.segments.range(expert)
    }

    /// Which token is in each slot \[S\].
    pub fn token_of(&self) -> &[u32] {
        &self.token_of
    }

    /// Which choice each slot serves \[S\]: where its combine weight stands.
    pub fn choice_of(&self) -> &[u32] {
        &self.choice_of
    }

    /// The slot of each choice \[A\], [`DispatchPlan::DROPPED`] if it has
    /// none.
    pub fn slot_of(&self) -> &[u32] {
        &self.slot_of
    }

    /// Where the choices of a token stand; see [`Choices::range`].
    #[inline]
    pub fn choices_of(&self, token: usize) -> Range<usize> {
        self.choices.range(token)
    }

    /// Bytes that the plan holds: O(T·K + E).
    pub fn bytes(&self) -> usize {
        let words = 2 * self.choices.len() + self.choices.offsets().len() + 2 * self.slots();
        words * size_of::<u32>() + size_of_val(self.offsets())
    }
}
