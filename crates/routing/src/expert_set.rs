//! [`ExpertSet`]: which experts of a layer may be used.

use serde::{Deserialize, Serialize};

use crate::error::{Result, RoutingError};

/// The experts of one layer that may be scored and chosen, e.g. those that a
/// task needs.
///
/// The experts left out count as if they did not exist: their logits are
/// masked before the softmax, so the probabilities of the others sum to 1.
///
/// ```
/// use specialformer_routing::ExpertSet;
/// let set = ExpertSet::new(4, [1, 3])?;
/// assert_eq!(set.iter().collect::<Vec<_>>(), [1, 3]);
/// assert!(set.contains(3) && !set.contains(0));
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct ExpertSet {
    allowed: Vec<bool>,
    count: usize,
}

/// The most experts that a set in a file may be of: what a number in a file
/// makes the reader allocate is bounded.
const MOST_STORED: usize = 1 << 16;

/// An [`ExpertSet`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    experts: usize,
    allowed: Vec<usize>,
}

impl TryFrom<Stored> for ExpertSet {
    type Error = RoutingError;

    fn try_from(stored: Stored) -> Result<Self> {
        if stored.experts > MOST_STORED {
            let what = format!("a file may name at most {MOST_STORED}");
            return Err(RoutingError::argument("expert set", "experts", stored.experts, what));
        }
        Self::new(stored.experts, stored.allowed)
    }
}

impl From<ExpertSet> for Stored {
    fn from(set: ExpertSet) -> Self {
        Self { experts: set.experts(), allowed: set.iter().collect() }
    }
}

impl ExpertSet {
    /// The set of these experts, of a layer that has `experts` of them.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if one does not exist or there is none.
    pub fn new(experts: usize, allowed: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut mask = vec![false; experts];
        for expert in allowed {
            let Some(entry) = mask.get_mut(expert) else {
                let what = format!("the layer has {experts} experts");
                return Err(RoutingError::argument("expert set", "expert", expert, what));
            };
            *entry = true;
        }
        Self::from_mask(mask)
    }

    /// The set of the experts whose entry is true.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if there is none.
    pub fn from_mask(allowed: Vec<bool>) -> Result<Self> {
        let count = allowed.iter().filter(|&&a| a).count();
        if count == 0 {
            let what = "at least one expert must be allowed";
            return Err(RoutingError::argument("expert set", "allowed", 0, what));
        }
        Ok(Self { allowed, count })
    }

    /// All experts.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if there is none.
    pub fn all(experts: usize) -> Result<Self> {
        Self::from_mask(vec![true; experts])
    }

    /// Number of experts of the layer.
    pub fn experts(&self) -> usize {
        self.allowed.len()
    }

    /// Number of experts allowed.
    pub fn count(&self) -> usize {
        self.count
    }

    /// True if this expert is allowed.
    pub fn contains(&self, expert: usize) -> bool {
        self.allowed.get(expert).copied().unwrap_or(false)
    }

    /// The experts allowed, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.allowed.iter().enumerate().filter(|(_, allowed)| **allowed).map(|(expert, _)| expert)
    }

    /// For each expert, whether it is allowed \[E\].
    pub fn mask(&self) -> &[bool] {
        &self.allowed
    }
}

/// Which experts each token may go to.
#[derive(Debug, Clone, Copy)]
pub enum Allowed<'a> {
    /// The same for all tokens.
    Same(&'a ExpertSet),
    /// Each token's own: token t may go to `sets[set_of[t]]`.
    PerToken {
        /// The sets, e.g. one for each task.
        sets: &'a [ExpertSet],
        /// Which set each token has \[T\], e.g. its task.
        set_of: &'a [u32],
    },
}

impl<'a> From<&'a ExpertSet> for Allowed<'a> {
    fn from(set: &'a ExpertSet) -> Self {
        Self::Same(set)
    }
}

impl<'a> Allowed<'a> {
    /// Checks that every set fits the layer and leaves enough to choose from,
    /// and every token has a set.
    pub(crate) fn check(
        &self,
        op: &'static str,
        tokens: usize,
        experts: usize,
        at_least: usize,
    ) -> Result<()> {
        let check_set = |set: &ExpertSet| {
            if set.experts() != experts {
                let what = format!("is for {} experts, the layer has {experts}", set.experts());
                return Err(RoutingError::argument(op, "allowed", "expert set", what));
            }
            if set.count() < at_least {
                let what = format!("{at_least} experts are to be chosen");
                return Err(RoutingError::argument(op, "allowed experts", set.count(), what));
            }
            Ok(())
        };
        match self {
            Self::Same(set) => check_set(set),
            Self::PerToken { sets, set_of } => {
                if set_of.len() != tokens {
                    let what = format!("must have one entry for each of {tokens} tokens");
                    return Err(RoutingError::shape(op, "set_of", &[set_of.len()], what));
                }
                if let Some(bad) = set_of.iter().find(|&&set| set as usize >= sets.len()) {
                    let what = format!("there are {} expert sets", sets.len());
                    return Err(RoutingError::argument(op, "set_of", bad, what));
                }
                sets.iter().try_for_each(check_set)
            }
        }
    }

    /// How many experts at least one live token may go to; at least 1.
    pub(crate) fn used(&self, live: Option<&[bool]>) -> usize {
        match self {
            Self::Same(set) => set.count(),
            Self::PerToken { sets, set_of } => {
                let mut named = vec![false; sets.len()];
                let tokens = set_of.iter().enumerate();
                tokens
                    .filter(|(token, _)| live.is_none_or(|live| live[*token]))
                    .for_each(|(_, &set)| named[set as usize] = true);
                let named = || sets.iter().zip(&named).filter(|(_, named)| **named);
                let experts = sets.first().map_or(0, ExpertSet::experts);
                let used = |&expert: &usize| named().any(|(set, _)| set.contains(expert));
                (0..experts).filter(used).count().max(1)
            }
        }
    }

    /// The set of one token.
    pub(crate) fn of(&self, token: usize) -> &'a ExpertSet {
        match self {
            Self::Same(set) => set,
            Self::PerToken { sets, set_of } => &sets[set_of[token] as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sets_are_refused() {
        assert_eq!(
            ExpertSet::new(4, [4]).unwrap_err().to_string(),
            "expert set: expert = 4: the layer has 4 experts"
        );
        assert!(ExpertSet::new(4, []).is_err() && ExpertSet::all(0).is_err());
        let set = ExpertSet::new(4, [2, 0]).unwrap();
        let error = Allowed::from(&set).check("router", 1, 5, 1).unwrap_err().to_string();
        assert_eq!(error, "router: allowed = expert set: is for 4 experts, the layer has 5");
        let error = Allowed::from(&set).check("router", 1, 4, 3).unwrap_err().to_string();
        assert_eq!(error, "router: allowed experts = 2: 3 experts are to be chosen");
        let sets = [set];
        let per_token = Allowed::PerToken { sets: &sets, set_of: &[0, 1] };
        assert!(per_token.check("router", 3, 4, 1).unwrap_err().to_string().contains("set_of [2]"));
        let error = per_token.check("router", 2, 4, 1).unwrap_err().to_string();
        assert_eq!(error, "router: set_of = 1: there are 1 expert sets");
    }

    #[test]
    fn experts_that_no_token_may_use_are_not_counted() {
        let set = |experts: &[usize]| ExpertSet::new(6, experts.iter().copied()).unwrap();
        let sets = [set(&[0, 1]), set(&[1, 2]), set(&[3, 4, 5])];
        let per_token = Allowed::PerToken { sets: &sets, set_of: &[1, 0, 1] };
        assert_eq!((per_token.used(None), Allowed::from(&sets[2]).used(None)), (3, 3));
        // The tokens of the second set are padding.
        assert_eq!(per_token.used(Some(&[false, true, false])), 2);
    }

    #[test]
    fn sets_are_written_by_their_members() {
        let set = ExpertSet::new(5, [4, 1]).unwrap();
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, r#"{"experts":5,"allowed":[1,4]}"#);
        assert_eq!(serde_json::from_str::<ExpertSet>(&text).unwrap(), set);
        assert!(serde_json::from_str::<ExpertSet>(r#"{"experts":5,"allowed":[5]}"#).is_err());
        let hostile = format!(r#"{{"experts":{},"allowed":[1]}}"#, u64::MAX);
        let error = serde_json::from_str::<ExpertSet>(&hostile).unwrap_err().to_string();
        assert!(error.contains("a file may name at most 65536"), "{error}");
    }
}
