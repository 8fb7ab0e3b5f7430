//! [`Elastic`]: training at several widths at once.

use specialformer_nn::{Ctx, Mode, ParameterVisitor};
use specialformer_tensor::Element;

use crate::error::{BoxError, TrainError};
use crate::objective::{GradientPlan, Objective, Shard, ShardLoss};

/// The mean of an objective over widths of a model with elastic blocks: in
/// each step the widest, the narrowest and, where there are more than two, one
/// between that is drawn (the sandwich rule, Yu & Huang 2019).
///
/// L = (1/n)·Σ_s L(s) with L(s) the objective in a pass of width s
/// ([`Ctx::with_width_multiplier`]). The draw is from the shard's own random stream, so
/// that a resumed run draws the same. In evaluation the width is the context's.
///
/// The metrics have the terms of the widest by their names and those of the
/// others with the share behind, e.g. `cross_entropy.width_0.25`; scores and
/// counters are the widest's.
#[derive(Debug, Clone)]
pub struct Elastic<O> {
    objective: O,
    widths: Vec<f64>,
}

impl<O> Elastic<O> {
    /// `objective` at these shares, from the widest down.
    ///
    /// # Errors
    /// [`TrainError::Config`] unless they fall from 1 and stay positive.
    pub fn new(objective: O, widths: Vec<f64>) -> Result<Self, TrainError> {
        let falls = widths.windows(2).all(|pair| pair[1] < pair[0]);
        if widths.first() != Some(&1.0) || !falls || widths.iter().any(|&share| share <= 0.0) {
            let value = format!("{widths:?}");
            return Err(TrainError::config("widths", value, "must fall from 1 and stay positive"));
        }
        Ok(Self { objective, widths })
    }

    /// The shares of one step.
    fn draw<E: Element>(&self, ctx: &Ctx<E>) -> Vec<f64> {
        match self.widths.as_slice() {
            [first, between @ .., last] if !between.is_empty() => {
                let drawn = ctx.with_rng(|rng| rng.below(between.len()));
                vec![*first, *last, between[drawn]]
            }
            all => all.to_vec(),
        }
    }
}

impl<M, E, O> Objective<M, E> for Elastic<O>
where
    M: ?Sized,
    E: Element,
    O: Objective<M, E>,
{
    fn loss(&self, ctx: &Ctx<E>, model: &M, shard: &Shard<'_>) -> Result<ShardLoss<E>, BoxError> {
        if ctx.mode() == Mode::Eval {
            return self.objective.loss(ctx, model, shard);
        }
        let shares = self.draw(ctx);
        let part = 1.0 / shares.len() as f64;
        let mut whole: Option<ShardLoss<E>> = None;
        for share in shares {
            let pass = self.objective.loss(&ctx.with_width_multiplier(share)?, model, shard)?;
            let loss = pass.loss.scale(E::from_f64(part))?;
            whole = Some(match whole {
                None => {
                    let terms = pass.terms.into_iter().map(|(name, value)| (name, value * part));
                    ShardLoss { loss, terms: terms.collect(), ..pass }
                }
                Some(mut whole) => {
                    let name = |name| format!("{name}.width_{share}").into();
                    let terms = pass.terms.into_iter();
                    whole.terms.extend(terms.map(|(own, value)| (name(own), value * part)));
                    whole.loss = whole.loss.add(&loss)?;
                    whole
                }
            });
        }
        whole.ok_or_else(|| "an elastic objective has a width".into())
    }

    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        Objective::<M, E>::visit(&self.objective, visitor);
    }

    fn couples_step(&self) -> bool {
        Objective::<M, E>::couples_step(&self.objective)
    }

    fn gradient_plan(&self) -> GradientPlan {
        Objective::<M, E>::gradient_plan(&self.objective)
    }

    fn after_step(&self, model: &M, counters: &[f64]) -> Result<(), BoxError> {
        self.objective.after_step(model, counters)
    }
}
