//! Whether a model fits into memory, before anything is allocated.

use std::fs;

use crate::config::{BaseConfig, ModelConfig, SpecialformerConfig, Specialisation};
use crate::data::DataConfig;
use crate::error::{Error, Result};
use crate::run::RunConfig;

/// What a block takes besides the numbers in it: names, shapes and handles of
/// its parameters.
const BLOCK_BYTES: f64 = 4096.0;

/// Bytes of a number while training.
const NUMBER: f64 = 4.0;

/// Fails if a model's parameters, of so many bytes each, cannot fit into the
/// memory that the system has left.
pub(crate) fn check_model(model: &ModelConfig, bytes: usize) -> Result<()> {
    let needed = model.least_parameters() * bytes as f64 + blocks(model) * BLOCK_BYTES;
    check("the model", needed)
}

/// Fails if training cannot fit: weights and gradients, and what the shards
/// that run at one time keep of their rows for going back.
pub(crate) fn check_training(config: &RunConfig) -> Result<()> {
    let (model, train) = (&config.model, &config.train);
    let parameters = model.least_parameters();
    let shards = train.shards_for((parameters * NUMBER) as usize).max(1);
    let at_once = shards.min(crate::threads()) as f64 / shards as f64;
    let rows = train.batch_size as f64 / train.accumulation.max(1) as f64 * at_once;
    // Rows of other data are of any length.
    let length = match &config.data {
        DataConfig::Iarc(data) => data.window,
        DataConfig::Text(data) => data.window,
        _ => 1,
    };
    let kept = rows * length as f64 * model.least_kept();
    check("training", (2.0 * parameters + kept) * NUMBER + blocks(model) * BLOCK_BYTES)
}

fn check(what: &'static str, needed: f64) -> Result<()> {
    match available() {
        Some(available) if needed > available => {
            Err(Error::Memory { what, needed: needed / 1e9, available: available / 1e9 })
        }
        _ => Ok(()),
    }
}

/// Bytes that can be had without pushing out anything in use, swap included;
/// `None` where the system does not tell.
fn available() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |name: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(1024.0 * (kilobytes("MemAvailable:")? + kilobytes("SwapFree:").unwrap_or(0.0)))
}

fn blocks(model: &ModelConfig) -> f64 {
    match model {
        ModelConfig::Lstm(c) => c.layers as f64,
        ModelConfig::Mlp(c) => c.hidden.len() as f64,
        _ => model.base().map_or(0.0, |base| base.layers as f64),
    }
}

impl ModelConfig {
    /// A lower bound on the number of parameters, from the matrices that the
    /// configuration names; 0 for a pretrained model, whose files say. Unlike a
    /// count it builds nothing.
    fn least_parameters(&self) -> f64 {
        match self {
            Self::Specialformer(c) => of_specialformer(c),
            Self::Transformer(_) | Self::Cisformer(_) => {
                let Some(base) = self.base() else { return 0.0 };
                let kv = match self {
                    Self::Transformer(c) => c.kv_heads.unwrap_or(base.heads),
                    _ => base.heads,
                };
                let each = match self {
                    Self::Cisformer(_) => base.window as f64,
                    _ => 1.0,
                };
                let width = base.width as f64;
                let attention = 2.0 * width * width * (1.0 + kv as f64 / base.heads as f64);
                let block = attention + 2.0 * width * base.feed_forward as f64;
                each * base.layers as f64 * block
                    + width * (base.vocabulary as f64 + base.outputs() as f64)
            }
            Self::Lstm(c) => {
                let hidden = c.hidden as f64;
                let cells = 4.0 * hidden * (c.embedding as f64 + hidden)
                    + (c.layers as f64 - 1.0) * 8.0 * hidden * hidden;
                cells + c.vocabulary as f64 * c.embedding as f64 + hidden * self.outputs() as f64
            }
            Self::Mlp(c) => {
                let first = c.vocabulary as f64 * c.window as f64;
                let widths = std::iter::once(first)
                    .chain(c.hidden.iter().map(|&width| width as f64))
                    .chain([self.outputs() as f64]);
                let widths: Vec<f64> = widths.collect();
                widths.windows(2).map(|pair| pair[0] * pair[1]).sum()
            }
            Self::Published(_) => 0.0,
        }
    }

    /// Numbers that training keeps of a position, at least.
    fn least_kept(&self) -> f64 {
        let of = |base: &BaseConfig| {
            base.layers as f64 * (8.0 * base.width as f64 + base.feed_forward as f64)
        };
        match self {
            // Its blocks may be switched off or have experts in place.
            Self::Specialformer(c) => c.base.layers as f64 * c.base.width as f64,
            _ => self.base().map_or(0.0, of),
        }
    }
}

fn of_specialformer(config: &SpecialformerConfig) -> f64 {
    let base = &config.base;
    let width = base.width as f64;
    let head = config.head_width.unwrap_or(base.width / base.heads) as f64;
    let kv = config.kv_heads.unwrap_or(base.heads) as f64;
    let attention = 2.0 * width * head * (base.heads as f64 + kv);
    let products = |gated: bool| if gated { 3.0 } else { 2.0 };
    let dense = products(config.gated) * width * base.feed_forward as f64;
    let share = config.dynamic.as_ref().and_then(|dynamic| dynamic.share.as_ref());
    let own = share.map_or(base.layers, |share| {
        let mut owners = share.clone();
        owners.sort_unstable();
        owners.dedup();
        owners.len()
    });
    let (mut experts, mut with_experts) = (0.0, 0);
    if let Some(of) = config.moe.as_ref().filter(|_| config.specialisation.has_experts()) {
        with_experts = of.layers.as_ref().map_or(own, |layers| layers.len().min(own));
        let gated = matches!(of.moe.kind, specialformer_nn::FeedForwardKind::Gated(_));
        let expert = width * (1.0 + products(gated) * of.moe.hidden as f64);
        experts = with_experts as f64 * of.moe.router.experts as f64 * expert;
    }
    let with_dense = match config.specialisation {
        Specialisation::Moe => own - with_experts,
        _ => own,
    };
    let encoder = config.encoder_stack_layers() as f64;
    let table = width * base.vocabulary as f64;
    own as f64 * attention + with_dense as f64 * dense + experts + encoder * attention + table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Model;
    use specialformer_nn::NamedParameters;
    use specialformer_tensor::Seed;

    fn parse(text: &str) -> ModelConfig {
        toml::from_str(text).unwrap()
    }

    const SIZES: &str = "vocabulary = 40\nwidth = 32\nheads = 4\nwindow = 12\n";

    #[test]
    fn the_bound_is_below_the_count_and_not_far() {
        for text in [
            format!("kind = 'transformer'\nlayers = 3\nfeed_forward = 96\nkv_heads = 2\n{SIZES}"),
            format!("kind = 'cisformer'\nlayers = 2\nfeed_forward = 64\n{SIZES}"),
            format!(
                "kind = 'specialformer'\ntopology = 'decoder'\nlayers = 3\nfeed_forward = 96\n\
                 gated = true\nspecialisation = 'moe'\n{SIZES}\n[moe]\nhidden = 16\nlayers = [1]\n\
                 router = {{ experts = 8, top_k = 2 }}"
            ),
            format!(
                "kind = 'specialformer'\ntopology = 'encoder'\nlayers = 4\nfeed_forward = 96\n\
                 dynamic = {{ share = [0, 0, 2, 2] }}\n{SIZES}"
            ),
            "kind = 'lstm'\nvocabulary = 9\nembedding = 20\nhidden = 30\nlayers = 2".into(),
            "kind = 'mlp'\nvocabulary = 9\nwindow = 8\nhidden = [40, 30]".into(),
        ] {
            let config = parse(&text);
            let model: Model = Model::new(&config, Seed::new(1)).unwrap();
            let (least, count) = (config.least_parameters(), NamedParameters::of(&model).count());
            assert!(least <= count as f64 && least > 0.7 * count as f64, "{text}: {least} {count}");
        }
    }

    #[test]
    fn what_cannot_fit_is_refused_before_it_is_built() {
        for change in ["width = 200000", "layers = 16000000", "feed_forward = 16000000"] {
            let mut sizes: Vec<String> = ["width = 4096", "layers = 4096", "feed_forward = 16"]
                .iter()
                .filter(|size| size.split(' ').next() != change.split(' ').next())
                .map(ToString::to_string)
                .collect();
            sizes.push(change.into());
            let text = format!(
                "kind = 'transformer'\nvocabulary = 9\nheads = 1\nwindow = 8\n{}",
                sizes.join("\n")
            );
            match Model::<f32>::new(&parse(&text), Seed::new(1)) {
                // Only Linux says how much there is.
                Err(Error::Memory { needed, .. }) => assert!(needed > 1.0, "{needed}"),
                other => panic!("{change}: {:?}", other.map(|_| ())),
            }
        }
    }
}
