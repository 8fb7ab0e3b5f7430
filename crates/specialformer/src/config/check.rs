//! Validation of a Specialformer's configuration.

use std::fmt::Display;

use specialformer_moe::{MoeConfig, MoeError};
use specialformer_routing::RoutingError;

use super::base::check_kv_heads;
use super::heads::validate_tasks;
use super::positive;
use super::specialformer::{AdapterConfig, SpecialformerConfig, Topology};
use super::transformer::{Positions, check_relative};
use crate::error::{Error, Result};

fn fail<T>(field: &'static str, value: impl Display, reason: impl Into<String>) -> Result<T> {
    Err(Error::config("model", field, value, reason))
}

impl SpecialformerConfig {
    /// Checks every field and that they fit together.
    pub(super) fn validate(&self) -> Result<()> {
        self.base.validate(self.head_width, self.positions == Positions::Rope)?;
        check_relative(self.positions, &self.base)?;
        check_kv_heads(self.kv_heads, self.base.heads)?;
        for (field, value) in [
            ("head_width", self.head_width),
            ("encoder_layers", self.encoder_layers),
            ("source_window", self.source_window),
        ] {
            positive(&[(field, value.unwrap_or(1))])?;
        }
        if self.topology != Topology::EncoderDecoder {
            let only = "only an encoder-decoder has a source";
            for (field, value) in
                [("encoder_layers", self.encoder_layers), ("source_window", self.source_window)]
            {
                if let Some(value) = value {
                    return fail(field, value, only);
                }
            }
        }
        for (field, value) in [("norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value > 0.0 && value.is_finite()) {
                return fail(field, value, "must be positive");
            }
        }
        if self.positions == Positions::Relative {
            let both_ways = self.topology != Topology::Decoder;
            self.relative_buckets.validate(both_ways).or_else(|error| {
                fail("relative_buckets", self.relative_buckets.buckets, error.to_string())
            })?;
        }
        if self.tied_embeddings && self.base.outputs() != self.base.vocabulary {
            let reason = "tied embeddings need as many outputs as there are tokens";
            return fail("outputs", self.base.outputs(), reason);
        }
        if self.tied_embeddings && self.own_heads {
            return fail("own_heads", true, "tied embeddings are one head for all tasks");
        }
        validate_tasks(&self.tasks, self.own_heads, self.base.outputs())?;
        self.validate_task_input()?;
        if let Some(input) = &self.input {
            input.validate(self)?;
        }
        if let Some(dynamic) = &self.dynamic {
            dynamic.validate(self)?;
        }
        self.validate_specialisation()
    }

    fn validate_task_input(&self) -> Result<()> {
        let input = self.task_input;
        let used = [
            ("task_input.token", input.token),
            ("task_input.embedding", input.embedding),
            ("task_input.position_offset", input.position_offset > 0),
        ];
        if self.tasks.is_empty()
            && let Some((field, _)) = used.into_iter().find(|(_, used)| *used)
        {
            return fail(field, true, "model.tasks is empty");
        }
        if input.position_offset > 0 && self.positions != Positions::Learned {
            let reason = "other positions than learned ones do not change with an offset";
            return fail("task_input.position_offset", input.position_offset, reason);
        }
        Ok(())
    }

    fn validate_specialisation(&self) -> Result<()> {
        let name = match self.specialisation {
            super::Specialisation::None => "none",
            super::Specialisation::Moe => "moe",
            super::Specialisation::Adapter => "adapter",
            super::Specialisation::Hybrid => "hybrid",
        };
        match (&self.adapter, self.specialisation.has_adapters()) {
            (None, true) => return fail("specialisation", name, "needs a [model.adapter] section"),
            (Some(_), false) => {
                let reason = format!("specialisation = \"{name}\" has no adapters");
                return fail("adapter", "given", reason);
            }
            _ => {}
        }
        match (&self.moe, self.specialisation.has_experts()) {
            (None, true) => return fail("specialisation", name, "needs a [model.moe] section"),
            (Some(_), false) => {
                let reason = format!("specialisation = \"{name}\" has no experts");
                return fail("moe", "given", reason);
            }
            (Some(experts), true) => {
                self.check_layers("moe.layers", experts.layers.as_deref())?;
                self.validate_experts(&experts.moe)?;
            }
            (None, false) => {}
        }
        if self.specialisation.has_adapters() && self.tasks.is_empty() {
            return fail("tasks", "[]", "adapters are of tasks, and there is none");
        }
        if let Some(adapter) = &self.adapter {
            self.check_layers("adapter.layers", adapter.layers())?;
            self.validate_adapter(adapter)?;
        }
        Ok(())
    }

    fn validate_experts(&self, moe: &MoeConfig) -> Result<()> {
        moe.validate().map_err(|error| match error {
            MoeError::Config { field, value, reason } => {
                Error::Config { section: "model.moe", field, value, reason }
            }
            MoeError::Routing(error) => in_router(error),
            error => error.into(),
        })?;
        match self.topology {
            Topology::Encoder => Ok(()),
            _ => moe.router.validate_causal().map_err(in_router),
        }
    }

    /// Refuses layers that no stack has.
    fn check_layers(&self, field: &'static str, layers: Option<&[usize]>) -> Result<()> {
        let count = match self.topology {
            Topology::EncoderDecoder => self.base.layers.max(self.encoder_layers()),
            _ => self.base.layers,
        };
        match layers.unwrap_or_default().iter().find(|&&layer| layer >= count) {
            Some(layer) => fail(field, layer, format!("there are {count} layers, from 0")),
            None if layers.is_some_and(<[usize]>::is_empty) => {
                fail(field, "[]", "leave it out for all layers")
            }
            None => Ok(()),
        }
    }

    fn validate_adapter(&self, adapter: &AdapterConfig) -> Result<()> {
        match adapter {
            AdapterConfig::Bottleneck { width, at, .. } => {
                positive(&[("adapter.width", *width)])?;
                if at.is_empty() {
                    return fail("adapter.at", "[]", "the adapters stand nowhere");
                }
            }
            AdapterConfig::Lora { rank, alpha, targets, .. } => {
                let bound = self.base.width.min(self.base.feed_forward);
                if *rank == 0 || *rank > bound {
                    return fail("adapter.rank", rank, format!("must be in 1..={bound}"));
                }
                if let Some(alpha) = alpha.filter(|alpha| !(alpha.is_finite() && *alpha != 0.0)) {
                    return fail("adapter.alpha", alpha, "must be finite and not 0");
                }
                if targets.is_empty() {
                    return fail("adapter.targets", "[]", "the adapters change nothing");
                }
                if let Some(gate) =
                    targets.iter().find(|t| **t == super::LoraTarget::Gate && !self.gated)
                {
                    return fail("adapter.targets", gate.name(), "model.gated is false");
                }
            }
        }
        Ok(())
    }
}

/// A router's complaint about its configuration, as one about the model's.
fn in_router(error: RoutingError) -> Error {
    const SECTION: &str = "model.moe.router";
    match error {
        RoutingError::Config { field, value, reason } => {
            Error::Config { section: SECTION, field, value, reason }
        }
        RoutingError::SeesFuture { gate, .. } => {
            let reason = "a causal model must not choose by later tokens";
            Error::config(SECTION, "gate", gate, reason)
        }
        error => error.into(),
    }
}
