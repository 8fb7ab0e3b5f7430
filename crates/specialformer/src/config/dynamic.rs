//! Which of a model's parameters act, and how often.

use serde::{Deserialize, Deserializer, Serialize};

use specialformer_attention::QueryKeyNorm;

use super::Positions;
use super::specialformer::{AdapterConfig, SpecialformerConfig, Topology};
use crate::error::{Error, Result};

/// A block that only some positions go through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayerSwitch {
    /// The block.
    pub layer: usize,
    /// Types of positions that go through it; all if empty.
    pub types: Vec<String>,
    /// Tasks whose rows go through it; all if empty.
    pub tasks: Vec<String>,
}

/// Answers from early blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitConfig {
    /// The blocks after which rows may be answered.
    pub layers: Vec<usize>,
    /// In evaluation, a row is answered at the first of them that is at least
    /// this sure of every answer of the row.
    pub threshold: f64,
    /// Weight of the term that teaches early answers the last ones in training:
    /// the mean cross-entropy to the last answer's probabilities.
    #[serde(default = "half")]
    pub weight: f64,
}

fn half() -> f64 {
    0.5
}

/// The `[model.dynamic]` section: parameter spaces that are not the same for
/// every input.
///
/// ```
/// use specialformer::DynamicConfig;
/// let config: DynamicConfig = toml::from_str(r#"
///     share = [0, 0, 2, 2]
///     switches = [{ layer = 1, types = ["image"] }]
///     exit = { layers = [1], threshold = 0.9 }
/// "#)?;
/// assert_eq!(config.share.unwrap()[3], 2);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicConfig {
    /// Block i has the parameters of block `share[i]`, itself or an earlier
    /// one (ALBERT, Lan et al. 2020).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Vec<usize>>,
    /// Blocks that only some positions go through.
    pub switches: Vec<LayerSwitch>,
    /// Answers from early blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitConfig>,
    /// Shares of their attention heads and hidden units, from 1 down, at which
    /// the blocks are trained to work: the first ones of each (slimmable
    /// networks, Yu et al. 2019). One width if empty, for which a file leaves
    /// them out.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "some_widths")]
    pub widths: Vec<f64>,
}

/// A list that would change nothing is a mistake.
fn some_widths<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let widths = Vec::deserialize(from)?;
    match widths.is_empty() {
        true => Err(serde::de::Error::custom("widths = []: leave it out for one width")),
        false => Ok(widths),
    }
}

impl DynamicConfig {
    pub(super) fn validate(&self, model: &SpecialformerConfig) -> Result<()> {
        let fail = |field, value: &dyn std::fmt::Display, reason: String| {
            Err(Error::config("model.dynamic", field, value, reason))
        };
        let layers = model.base.layers;
        if model.topology == Topology::EncoderDecoder {
            return fail("dynamic", &"given", "is for encoders and decoders".into());
        }
        if let Some(share) = &self.share {
            if share.len() != layers {
                return fail("share", &share.len(), format!("there are {layers} layers"));
            }
            for (i, &owner) in share.iter().enumerate() {
                if owner > i || share[owner] != owner {
                    let reason = format!("block {i} shares with an earlier block that is its own");
                    return fail("share", &owner, reason);
                }
                if model.parts(i) != model.parts(owner) {
                    let reason = format!("blocks {i} and {owner} differ in experts or adapters");
                    return fail("share", &owner, reason);
                }
            }
        }
        let types = model.input.as_ref().map_or(&[][..], |input| &input.types);
        for (i, switch) in self.switches.iter().enumerate() {
            if self.switches[..i].iter().any(|other| other.layer == switch.layer) {
                let reason = "the block has two switches; name all types and tasks in one";
                return fail("switches.layer", &switch.layer, reason.into());
            }
            if switch.layer >= layers {
                let reason = format!("there are {layers} layers, from 0");
                return fail("switches.layer", &switch.layer, reason);
            }
            for name in &switch.types {
                if types.iter().all(|of| of.name != *name) {
                    return fail("switches.types", name, "model.input.types has none".into());
                }
            }
            for name in &switch.tasks {
                if model.tasks.iter().all(|task| task.name != *name) {
                    return fail("switches.tasks", name, "model.tasks has none".into());
                }
            }
            if switch.types.is_empty() && switch.tasks.is_empty() {
                return fail("switches", &switch.layer, "needs types or tasks".into());
            }
        }
        self.check_widths(model)?;
        if let Some(exit) = &self.exit {
            if model.specialisation.has_experts() {
                return fail("exit", &"given", "rows with experts go through all blocks".into());
            }
            if model.input.as_ref().is_some_and(|input| input.prefix.is_some()) {
                return fail("exit", &"given", "rows with learned tokens go on to the end".into());
            }
            let last = layers - 1;
            if exit.layers.is_empty() || exit.layers.iter().any(|&layer| layer >= last) {
                let reason = format!("must name blocks before the last, {last}");
                return fail("exit.layers", &format!("{:?}", exit.layers), reason);
            }
            if !exit.layers.is_sorted_by(|a, b| a < b) {
                return fail("exit.layers", &format!("{:?}", exit.layers), "must rise".into());
            }
            if !(exit.threshold > 0.0 && exit.threshold.is_finite()) {
                return fail("exit.threshold", &exit.threshold, "must be positive".into());
            }
            if !(exit.weight >= 0.0 && exit.weight.is_finite()) {
                return fail("exit.weight", &exit.weight, "must be at least 0".into());
            }
        }
        Ok(())
    }

    fn check_widths(&self, model: &SpecialformerConfig) -> Result<()> {
        if self.widths.is_empty() {
            return Ok(());
        }
        let fail = |reason: String| {
            let widths = format!("{:?}", self.widths);
            Err(Error::config("model.dynamic", "widths", widths, reason))
        };
        if self.widths[0] != 1.0 || self.widths.windows(2).any(|pair| pair[1] >= pair[0]) {
            return fail("must fall, from 1".into());
        }
        let lora = matches!(model.adapter, Some(AdapterConfig::Lora { .. }));
        if model.specialisation.has_experts() || model.specialisation.has_adapters() && lora {
            return fail("experts and changed projections have one width".into());
        }
        if model.positions == Positions::Alibi {
            return fail("the slopes of ALiBi are of a number of heads".into());
        }
        if matches!(model.query_key_norm, Some(QueryKeyNorm::All { .. })) {
            return fail("a norm over all heads is of one width".into());
        }
        let parts = [
            ("heads", Some(model.base.heads)),
            ("kv_heads", model.kv_heads),
            ("feed_forward", Some(model.base.feed_forward)),
        ];
        for (field, all) in parts {
            for (&share, all) in self.widths.iter().flat_map(|share| all.map(|all| (share, all))) {
                let part = all as f64 * share;
                if part < 0.5 || (part - part.round()).abs() > 1e-9 {
                    return fail(format!("{share} of model.{field} = {all} is no whole number"));
                }
            }
        }
        Ok(())
    }
}
