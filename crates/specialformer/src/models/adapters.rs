//! A block's adapters of each task's own.

use std::sync::Arc;

use specialformer_nn::{
    AdapterBank, AdapterPlacement, Ctx, Linear, LoraBank, Module, ParameterVisitor, Weight,
};
use specialformer_tensor::{Element, RngStream, Var};

use crate::config::{AdapterConfig, AdapterSite};
use crate::error::Result;

/// The bottleneck adapters of a block.
#[derive(Debug, Clone)]
pub(crate) struct BlockAdapters<E: Element> {
    placement: AdapterPlacement,
    attention: Option<AdapterBank<E>>,
    feed_forward: Option<AdapterBank<E>>,
}

impl<E: Element> BlockAdapters<E> {
    /// Bottleneck adapters as configured; `None` for another kind.
    pub(crate) fn new(
        config: &AdapterConfig,
        tasks: usize,
        width: usize,
        rng: &mut RngStream,
    ) -> Result<Option<Self>> {
        let AdapterConfig::Bottleneck { width: bottleneck, activation, placement, at, .. } = config
        else {
            return Ok(None);
        };
        let mut bank = |site| {
            let wanted = at.contains(&site);
            wanted
                .then(|| AdapterBank::new(tasks, width, *bottleneck, *activation, rng))
                .transpose()
        };
        Ok(Some(Self {
            placement: *placement,
            attention: bank(AdapterSite::Attention)?,
            feed_forward: bank(AdapterSite::FeedForward)?,
        }))
    }

    /// The adapted output of attention.
    pub(crate) fn after_attention(
        &self,
        ctx: &Ctx<E>,
        input: &Var<E>,
        output: Var<E>,
    ) -> Result<Var<E>> {
        self.after(self.attention.as_ref(), ctx, input, output)
    }

    /// The adapted output of the feed-forward layer.
    pub(crate) fn after_feed_forward(
        &self,
        ctx: &Ctx<E>,
        input: &Var<E>,
        output: Var<E>,
    ) -> Result<Var<E>> {
        self.after(self.feed_forward.as_ref(), ctx, input, output)
    }

    fn after(
        &self,
        bank: Option<&AdapterBank<E>>,
        ctx: &Ctx<E>,
        input: &Var<E>,
        output: Var<E>,
    ) -> Result<Var<E>> {
        match bank {
            Some(bank) => {
                let _scope = ctx.scope("adapter");
                Ok(bank.forward(ctx, self.placement, input, &output)?)
            }
            None => Ok(output),
        }
    }
}

impl<E: Element> Module<E> for BlockAdapters<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (name, bank) in [("attention", &self.attention), ("feed_forward", &self.feed_forward)] {
            if let Some(bank) = bank {
                visitor.module(name, bank);
            }
        }
    }
}

/// Gives the projections that `config` names low-rank changes of each task's
/// own.
pub(crate) fn add_lora<E: Element>(
    config: &AdapterConfig,
    tasks: usize,
    projections: Vec<(&'static str, &mut Linear<E>)>,
    rng: &mut RngStream,
) -> Result<()> {
    let AdapterConfig::Lora { rank, alpha, targets, .. } = config else {
        return Ok(());
    };
    let alpha = alpha.unwrap_or(2.0 * *rank as f64);
    for (name, linear) in projections {
        if targets.iter().any(|target| target.name() == name) {
            let bank = LoraBank::new(linear.weight(), tasks, *rank, alpha, rng)?;
            linear.set_weight(Weight::Operator(Arc::new(bank)))?;
        }
    }
    Ok(())
}
