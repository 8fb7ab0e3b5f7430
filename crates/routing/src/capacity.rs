//! Capacity: how many tokens an expert takes at most.

use std::cmp::Ordering;

use specialformer_tensor::Element;

use crate::choices::Choices;
use crate::config::{Capacity, Keep};
use crate::error::{Result, RoutingError};

impl Capacity {
    /// Tokens that each expert takes at most: ⌈factor·T·K/E⌉, where
    /// `assignments` = T·K, and `experts` are those that may be chosen.
    ///
    /// ```
    /// use specialformer_routing::{Capacity, Keep};
    /// let capacity = Capacity { factor: 1.25, keep: Keep::FirstCome };
    /// assert_eq!(capacity.tokens_per_expert(64, 4), 20);
    /// ```
    pub fn tokens_per_expert(&self, assignments: usize, experts: usize) -> usize {
        (self.factor * assignments as f64 / experts.max(1) as f64).ceil() as usize
    }
}

/// Which choices are kept \[A\] if each expert takes at most `capacity`
/// tokens.
///
/// ```
/// use specialformer_routing::{Choices, Keep, keep_within};
/// // Three tokens want expert 0, which takes two.
/// let choices = Choices::new(2, vec![0, 1, 2, 3], vec![0, 0, 0])?;
/// let weights = [0.3f32, 0.9, 0.8];
/// assert_eq!(keep_within(&choices, &weights, 2, Keep::FirstCome)?, [true, true, false]);
/// assert_eq!(keep_within(&choices, &weights, 2, Keep::ByWeight)?, [false, true, true]);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
///
/// # Errors
/// [`RoutingError::Shape`] unless there is one weight for each choice.
pub fn keep_within<E: Element>(
    choices: &Choices,
    weights: &[E],
    capacity: usize,
    keep: Keep,
) -> Result<Vec<bool>> {
    if weights.len() != choices.len() {
        let what = format!("must have one entry for each of {} choices", choices.len());
        return Err(RoutingError::shape("capacity", "weights", &[weights.len()], what));
    }
    let expert_of = choices.expert_of();
    let mut kept = vec![true; choices.len()];
    match keep {
        Keep::FirstCome => {
            let mut load = vec![0usize; choices.experts()];
            for (kept, &expert) in kept.iter_mut().zip(expert_of) {
                let load = &mut load[expert as usize];
                *kept = *load < capacity;
                *load += 1;
            }
        }
        Keep::ByWeight => {
            let mut lists = vec![Vec::new(); choices.experts()];
            for (choice, &expert) in expert_of.iter().enumerate() {
                lists[expert as usize].push(choice);
            }
            for list in lists.iter_mut().filter(|list| list.len() > capacity) {
                let order = |&a: &usize, &b: &usize| {
                    weights[b].partial_cmp(&weights[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
                };
                if capacity > 0 {
                    list.select_nth_unstable_by(capacity - 1, order);
                }
                for &choice in &list[capacity..] {
                    kept[choice] = false;
                }
            }
        }
    }
    Ok(kept)
}
