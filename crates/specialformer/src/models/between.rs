//! What stands before a block of a stack that knows what its positions are.

use specialformer_embedding::{
    AdaptiveModulation, Inserted, PrefixConfig, PrefixTokens, Streams, TypeModulation,
};
use specialformer_nn::{Ctx, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Var};

use crate::config::{SpecialformerConfig, in_input};
use crate::error::{Error, Result};

/// Start values of learned tokens.
const PREFIX_STD: f64 = 0.5;

/// Learned tokens, scale and shift before a block, and who goes through it.
#[derive(Debug, Clone)]
pub(crate) struct Between<E: Element> {
    prefix: Option<PrefixTokens<E>>,
    modulation: Option<TypeModulation<E>>,
    adaptive: Option<AdaptiveModulation<E>>,
    /// Types that go through the block, and tasks; all if `None`.
    types: Option<Vec<u32>>,
    tasks: Option<Vec<u32>>,
}

impl<E: Element> Between<E> {
    /// What stands before each block; nothing at all unless something is
    /// configured.
    pub(crate) fn all(config: &SpecialformerConfig, rng: &mut RngStream) -> Result<Vec<Self>> {
        let width = config.base.width;
        let input = config.input.as_ref();
        let kinds = input.map_or(0, |input| input.types.len());
        let dynamic = config.dynamic.as_ref();
        let mut all = Vec::with_capacity(config.base.layers);
        for layer in 0..config.base.layers {
            let prefix = input.and_then(|input| input.prefix.as_ref());
            let prefix = prefix.filter(|at| at.layers.contains(&layer)).map(|at| {
                PrefixTokens::new(
                    &PrefixConfig { tokens: at.tokens },
                    kinds,
                    width,
                    PREFIX_STD,
                    rng,
                )
            });
            let modulation = input.and_then(|input| input.modulation.as_ref());
            let modulation = modulation
                .filter(|at| at.layers.as_ref().is_none_or(|all| all.contains(&layer)))
                .map(|_| TypeModulation::new(kinds, width));
            let adaptive = input.and_then(|input| input.adaptive.as_ref());
            let adaptive = adaptive
                .filter(|at| at.layers.contains(&layer))
                .map(|at| AdaptiveModulation::new(at.adaptive, width, width, rng));
            let switch = dynamic.and_then(|d| d.switches.iter().find(|s| s.layer == layer));
            let types = switch.filter(|s| !s.types.is_empty()).map(|s| {
                let of = |name: &String| input?.types.iter().position(|of| of.name == *name);
                s.types.iter().filter_map(of).map(|k| k as u32).collect()
            });
            let tasks = switch.filter(|s| !s.tasks.is_empty()).map(|s| {
                let of = |name: &String| config.tasks.iter().position(|task| task.name == *name);
                s.tasks.iter().filter_map(of).map(|k| k as u32).collect()
            });
            all.push(Self {
                prefix: prefix.transpose().map_err(in_input)?,
                modulation: modulation.transpose().map_err(in_input)?,
                adaptive: adaptive.transpose().map_err(in_input)?,
                types,
                tasks,
            });
        }
        let empty = |b: &Self| {
            b.prefix.is_none()
                && b.modulation.is_none()
                && b.adaptive.is_none()
                && b.types.is_none()
                && b.tasks.is_none()
        };
        if all.iter().all(empty) {
            all.clear();
        }
        Ok(all)
    }

    /// Rows with this block's learned tokens, if it has any.
    pub(crate) fn insert(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        streams: &Streams,
    ) -> Result<Option<Inserted<E>>> {
        let _scope = ctx.scope("prefix");
        Ok(self.prefix.as_ref().map(|prefix| prefix.insert(ctx, x, streams)).transpose()?)
    }

    /// x with scale and shift.
    pub(crate) fn modulate(&self, ctx: &Ctx<E>, x: Var<E>, streams: &Streams) -> Result<Var<E>> {
        if self.modulation.is_none() && self.adaptive.is_none() {
            return Ok(x);
        }
        let shape = x.shape();
        let mut x = x.reshape([shape[0] * shape[1], shape[2]])?;
        if let Some(modulation) = &self.modulation {
            x = modulation.forward(ctx, &x, &streams.types)?;
        }
        if let Some(adaptive) = &self.adaptive {
            x = adaptive.forward(ctx, &x, &x)?;
        }
        Ok(x.reshape(shape)?)
    }

    /// False at positions that do not go through the block; `None` if all do.
    pub(crate) fn passing(&self, ctx: &Ctx<E>, streams: &Streams) -> Result<Option<Vec<bool>>> {
        if self.types.is_none() && self.tasks.is_none() {
            return Ok(None);
        }
        let tasks = match (&self.tasks, ctx.tasks()) {
            (None, _) => None,
            (Some(own), Some(rows)) => {
                Some(rows.ids().iter().map(|id| own.contains(id)).collect::<Vec<_>>())
            }
            (Some(_), None) => {
                let what = "a block that some tasks go through is not told the rows' tasks";
                return Err(Error::Input { model: "stack", what: what.into() });
            }
        };
        let passes = |(at, of): (usize, &u32)| {
            let row = at / streams.length;
            self.types.as_ref().is_none_or(|own| own.contains(of))
                && tasks.as_ref().is_none_or(|tasks| tasks[row])
        };
        Ok(Some(streams.types.iter().enumerate().map(passes).collect()))
    }
}

impl<E: Element> Module<E> for Between<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(prefix) = &self.prefix {
            visitor.module("prefix", prefix);
        }
        if let Some(modulation) = &self.modulation {
            visitor.module("modulation", modulation);
        }
        if let Some(adaptive) = &self.adaptive {
            visitor.module("adaptive", adaptive);
        }
    }
}
