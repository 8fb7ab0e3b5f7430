//! The load that experts would have if those on offer shared evenly, and what
//! they have beyond it.

use specialformer_tensor::Element;

use crate::choices::Choices;
use crate::error::{Result, RoutingError};
use crate::expert_set::{Allowed, ExpertSet};
use crate::router::Routing;

/// Each expert's load if every token's choices were shared evenly by the
/// experts that it may go to: even_e = Σ_t K_t/|S_t| over the live tokens t
/// whose set S_t has expert e, with K_t the choices of t.
///
/// With all experts on offer that is the mean load. An expert that no token
/// may go to has 0, so that it counts nowhere.
///
/// ```
/// use specialformer_nn::Ctx;
/// use specialformer_routing::{ExpertSet, RouteInput, Router, RouterConfig};
/// use specialformer_tensor::{Seed, Tensor};
///
/// let mut rng = Seed::new(1).stream("init");
/// let router = Router::<f32>::new(RouterConfig::new(4, 2), 8, &mut rng)?;
/// let router = router.restricted(ExpertSet::new(4, [0, 1, 3])?)?;
/// let ctx = Ctx::eval();
/// let x = ctx.constant(Tensor::from_fn([6, 8], || rng.normal() as f32));
/// let routing = router.forward(&ctx, &x, &RouteInput::default())?;
/// assert_eq!(routing.even.loads(), [4.0, 4.0, 0.0, 4.0]);
/// assert_eq!(routing.even.used(), 3);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EvenLoad {
    /// E·even_e: with all experts on offer the number of choices, which is
    /// whole, so that nothing is rounded.
    scaled: Vec<f64>,
    used: usize,
}

impl EvenLoad {
    /// That of these choices, which were made among the experts allowed;
    /// `None` for all experts, and for all tokens.
    ///
    /// # Errors
    /// [`RoutingError::Shape`] and [`RoutingError::Argument`] if the sets or
    /// `live` are for other experts or tokens.
    pub fn new(
        choices: &Choices,
        allowed: Option<Allowed<'_>>,
        live: Option<&[bool]>,
    ) -> Result<Self> {
        const OP: &str = "even load";
        let (experts, tokens) = (choices.experts(), choices.tokens());
        if let Some(live) = live.filter(|live| live.len() != tokens) {
            let what = format!("must have one entry for each of {tokens} tokens");
            return Err(RoutingError::shape(OP, "live", &[live.len()], what));
        }
        if let Some(allowed) = allowed {
            allowed.check(OP, tokens, experts, 0)?;
        }
        let scaled = |chosen: usize, count: usize| (experts * chosen) as f64 / count as f64;
        let used = allowed.map_or(experts, |allowed| allowed.used(live));
        let mut even = vec![0.0; experts];
        let mut share = |set: &ExpertSet, chosen: usize| {
            set.iter().for_each(|expert| even[expert] += scaled(chosen, set.count()));
        };
        match allowed {
            None => even.fill(scaled(choices.len(), experts)),
            Some(Allowed::Same(set)) => share(set, choices.len()),
            Some(Allowed::PerToken { sets, set_of }) => {
                let mut chosen = vec![0; sets.len()];
                for (token, &set) in set_of.iter().enumerate() {
                    chosen[set as usize] += choices.range(token).len();
                }
                sets.iter().zip(chosen).for_each(|(set, chosen)| share(set, chosen));
            }
        }
        Ok(Self { scaled: even, used })
    }

    /// The loads \[E\].
    pub fn loads(&self) -> Vec<f64> {
        self.scaled.iter().map(|scaled| scaled / self.scaled.len() as f64).collect()
    }

    /// Number of experts that at least one live token may go to; at least 1.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The largest quotient of an expert's load and its even load: 1 if even,
    /// the number of experts on offer if one has it all, 0 if there is no load.
    pub fn largest_ratio(&self, load: &[u64]) -> f64 {
        let experts = self.scaled.len() as u64;
        let on_offer = self.scaled.iter().zip(load).filter(|(even, _)| **even > 0.0);
        on_offer.map(|(even, load)| (load * experts) as f64 / even).fold(0.0, f64::max)
    }

    /// E times the loads \[E\].
    pub(crate) fn scaled(&self) -> &[f64] {
        &self.scaled
    }
}

/// What each expert's load is above its [`EvenLoad`], negative below, times E:
/// what [`Router::update_balance`](crate::Router::update_balance) takes.
///
/// Surpluses of passes add up, also of passes that had other experts on offer.
/// With all experts on offer they are whole numbers, so that they do so
/// exactly.
///
/// ```
/// use specialformer_routing::LoadSurplus;
/// // Loads of 7, 3, 0 and 2, which would be 3 each if even.
/// let mut surplus = LoadSurplus::from_values([4.0, 0.0, -3.0, -1.0].map(|x| 4.0 * x));
/// surplus.add(&LoadSurplus::from_values([-16.0, 16.0, 0.0, 0.0]))?;
/// assert_eq!(surplus.values(), [0.0, 16.0, -12.0, -4.0]);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LoadSurplus(Vec<f64>);

impl LoadSurplus {
    /// That of one pass.
    pub fn of<E: Element>(routing: &Routing<E>) -> Self {
        let experts = routing.load.len() as u64;
        let load = routing.load.iter().map(|&load| (experts * load) as f64);
        Self(load.zip(&routing.even.scaled).map(|(load, even)| load - even).collect())
    }

    /// The surplus with these [values](Self::values) \[E\], e.g. sums over
    /// passes.
    pub fn from_values(values: impl Into<Vec<f64>>) -> Self {
        Self(values.into())
    }

    /// E·(load − even load) of each expert \[E\].
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// Adds that of another pass.
    ///
    /// # Errors
    /// [`RoutingError::Shape`] if it is of another number of experts.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        if other.0.len() != self.0.len() {
            let what = format!("must have one entry for each of {} experts", self.0.len());
            return Err(RoutingError::shape("surplus", "other", &[other.0.len()], what));
        }
        self.0.iter_mut().zip(&other.0).for_each(|(sum, value)| *sum += value);
        Ok(())
    }

    /// The direction of each expert: 1 above the even load, −1 below.
    pub(crate) fn signs(&self) -> impl Iterator<Item = f64> {
        // Fractions of unequal sets are rounded, and loads that are even must
        // not be told apart by that.
        const ROUNDING: f64 = 1e-6;
        self.0.iter().map(|&value| if value.abs() < ROUNDING { 0.0 } else { value.signum() })
    }
}

/// How many experts share a load, given even loads in any unit:
/// (Σ even)²/Σ even². Exactly the number of experts on offer if all have the
/// same.
pub(crate) fn sharing(even: &[f64]) -> f64 {
    let largest = even.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        return even.len() as f64;
    }
    let (mut sum, mut squares) = (0.0, 0.0);
    for share in even.iter().map(|even| even / largest) {
        sum += share;
        squares += share * share;
    }
    sum * sum / squares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(experts: &[usize]) -> ExpertSet {
        ExpertSet::new(6, experts.iter().copied()).unwrap()
    }

    #[test]
    fn each_token_counts_for_the_experts_of_its_set() {
        let sets = [set(&[0, 1]), set(&[1, 2, 3, 4])];
        let allowed = Some(Allowed::PerToken { sets: &sets, set_of: &[0, 1, 1, 0] });
        // Two choices of a token of either set, one of the third, padding.
        let choices = Choices::new(6, vec![0, 2, 4, 5, 5], vec![0, 1, 2, 3, 4]).unwrap();
        let live = [true, true, true, false];
        let even = EvenLoad::new(&choices, allowed, Some(&live)).unwrap();
        assert_eq!(even.loads(), [1.0, 1.75, 0.75, 0.75, 0.75, 0.0]);
        assert_eq!(even.used(), 5);
        assert_eq!(even.loads().iter().sum::<f64>(), choices.len() as f64);
    }

    #[test]
    fn with_all_on_offer_it_is_the_mean() {
        let choices = Choices::new(6, vec![0, 2, 4, 5], vec![0, 1, 2, 3, 4]).unwrap();
        let every = set(&[0, 1, 2, 3, 4, 5]);
        let even = |allowed| EvenLoad::new(&choices, allowed, None).unwrap();
        let all = even(None);
        assert_eq!(all, even(Some(Allowed::from(&every))));
        assert_eq!((all.loads()[3], all.used()), (5.0 / 6.0, 6));
        assert_eq!(sharing(&all.scaled), 6.0);
        let load = [3, 0, 0, 1, 1, 0];
        assert_eq!(all.largest_ratio(&load), crate::statistics::max_over_mean(&load));
    }

    #[test]
    fn without_a_live_token_nothing_is_infinite() {
        let choices = Choices::new(6, vec![0, 0], vec![]).unwrap();
        let sets = [set(&[0, 1])];
        let allowed = Some(Allowed::PerToken { sets: &sets, set_of: &[0] });
        let even = EvenLoad::new(&choices, allowed, Some(&[false])).unwrap();
        assert_eq!((even.used(), even.largest_ratio(&[0; 6])), (1, 0.0));
        assert_eq!(sharing(&even.scaled), 6.0);
    }

    #[test]
    fn rounding_is_no_surplus() {
        let surplus = LoadSurplus::from_values([0.1 + 0.2 - 0.3, 0.01, -0.01, 0.0]);
        assert_eq!(surplus.signs().collect::<Vec<_>>(), [0.0, 1.0, -1.0, 0.0]);
        let other = LoadSurplus::from_values([0.0]);
        let error = other.clone().add(&surplus).unwrap_err().to_string();
        assert_eq!(error, "surplus: other [4]: must have one entry for each of 1 experts");
    }

    #[test]
    fn sets_and_tokens_that_do_not_fit_are_refused() {
        let choices = Choices::new(6, vec![0, 1, 2], vec![0, 1]).unwrap();
        let message = |allowed, live: Option<&[bool]>| {
            EvenLoad::new(&choices, allowed, live).unwrap_err().to_string()
        };
        let said = message(None, Some(&[true]));
        assert_eq!(said, "even load: live [1]: must have one entry for each of 2 tokens");
        let other = ExpertSet::all(5).unwrap();
        assert!(message(Some(Allowed::from(&other)), None).contains("is for 5 experts"));
        let sets = [set(&[0])];
        let allowed = Some(Allowed::PerToken { sets: &sets, set_of: &[0, 1] });
        assert_eq!(message(allowed, None), "even load: set_of = 1: there are 1 expert sets");
    }
}
