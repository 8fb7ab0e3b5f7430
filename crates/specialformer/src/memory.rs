//! Whether a model fits into memory, before anything is allocated.

use std::fs;

use specialformer_nn::FeedForwardKind;

use crate::config::{
    AdapterConfig, BaseConfig, BlockParts, Head, ModelConfig, PolicyConfig, SpecialformerConfig,
    StackConfig, TaskConfig, TokenInput,
};
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
    let blocks = blocks(model) * BLOCK_BYTES;
    // Before a description of each of them is made.
    check("the model", blocks)?;
    check("the model", model.least_parameters() * bytes as f64 + blocks)
}

/// Fails if training cannot fit: weights and gradients, and what the shards
/// that run at one time keep of their rows for going back.
pub(crate) fn check_training(config: &RunConfig) -> Result<()> {
    let (model, train) = (&config.model, &config.train);
    let blocks = blocks(model) * BLOCK_BYTES;
    check("training", blocks)?;
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
    let copies = if trains_all(model) { 2.0 } else { 1.0 };
    check("training", (copies * parameters + kept) * NUMBER + blocks)
}

/// Whether each parameter has a gradient.
fn trains_all(model: &ModelConfig) -> bool {
    match model {
        ModelConfig::Specialformer(c) => c.policy == PolicyConfig::default(),
        _ => true,
    }
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
    let machine = 1024.0 * (kilobytes("MemAvailable:")? + kilobytes("SwapFree:").unwrap_or(0.0));
    Some(in_container().map_or(machine, |left| machine.min(left)))
}

/// Bytes that the limit of a container leaves, files that are only cached not
/// counted; `None` without a limit.
fn in_container() -> Option<f64> {
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |name: &str| read(name)?.trim().parse::<f64>().ok();
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    let cached = read("memory.stat").and_then(|stat| {
        let line = stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?;
        line.trim().parse::<f64>().ok()
    });
    Some(limit - used + cached.unwrap_or(0.0))
}

fn blocks(model: &ModelConfig) -> f64 {
    match model {
        ModelConfig::Lstm(c) => c.layers as f64,
        ModelConfig::Mlp(c) => c.hidden.len() as f64,
        ModelConfig::Specialformer(c) => (c.base.layers + c.encoder_stack_layers()) as f64,
        _ => model.base().map_or(0.0, |base| base.layers as f64),
    }
}

impl ModelConfig {
    /// A lower bound on the number of parameters, from the matrices that the
    /// configuration names; 0 for a pretrained model, whose files say. Unlike a
    /// count it builds nothing.
    fn least_parameters(&self) -> f64 {
        let plain = |base: &BaseConfig, stack: &StackConfig| {
            let rows = base.vocabulary + self.outputs();
            rows as f64 * base.width as f64 + of_stack(stack, None)
        };
        match self {
            Self::Specialformer(c) => of_specialformer(c),
            Self::Transformer(c) => plain(&c.base, &c.stack()),
            Self::Cisformer(c) => plain(&c.base, &c.stack()),
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

    /// Numbers that training keeps of a position, at least. Of the last block
    /// only one position may be answered, whose attention reads all others.
    fn least_kept(&self) -> f64 {
        match self {
            // Its blocks may be switched off, frozen or have experts in place.
            Self::Specialformer(c) if trains_all(self) => {
                c.base.layers as f64 * c.base.width as f64
            }
            Self::Specialformer(_) => 0.0,
            _ => self.base().map_or(0.0, |base| {
                let (layers, width) = (base.layers as f64, base.width as f64);
                (layers - 1.0) * (6.0 * width + base.feed_forward as f64) + 2.0 * width
            }),
        }
    }
}

fn of_specialformer(config: &SpecialformerConfig) -> f64 {
    let base = &config.base;
    let share = config.dynamic.as_ref().and_then(|dynamic| dynamic.share.as_deref());
    let encoder = config.encoder_stack().map_or(0.0, |stack| of_stack(&stack, None));
    let width = base.width as f64;
    // Other ways to make vectors of tokens may have narrower tables.
    let plain = config.input.as_ref().is_none_or(|input| input.tokens == TokenInput::Plain);
    let table = if plain { base.vocabulary as f64 * width } else { 0.0 };
    let shared_head = config.has_shared_head() && !config.tied_embeddings;
    let own = |task: &TaskConfig| config.own_heads || task.head != Head::LanguageModel;
    let outputs: usize =
        config.tasks.iter().filter(|task| own(task)).map(|t| t.outputs(base.outputs())).sum();
    let outputs = outputs + if shared_head { base.outputs() } else { 0 };
    table + encoder + of_stack(&config.main_stack(), share) + outputs as f64 * width
}

/// Positions and the matrices of blocks, each that several share once.
fn of_stack(stack: &StackConfig, share: Option<&[usize]>) -> f64 {
    let attention = &stack.attention;
    let (width, hidden) = (attention.width as f64, stack.feed_forward as f64);
    let heads = (attention.heads + attention.kv_heads) as f64;
    let attention = 2.0 * width * attention.head_width() as f64 * heads;
    let dense = products(stack.feed_forward_kind) * width * hidden;
    let of_block = |parts: &BlockParts| {
        let experts = parts.experts.as_ref().map_or(0.0, |moe| {
            let all = (moe.router.experts * moe.hidden + moe.shared) as f64;
            products(moe.kind) * width * all
        });
        let adapters = match &parts.adapter {
            Some(AdapterConfig::Bottleneck { width: narrow, at, .. }) => {
                2.0 * width * (stack.tasks * at.len() * narrow) as f64
            }
            _ => 0.0,
        };
        let attention = if stack.cross_attention { 2.0 * attention } else { attention };
        let dense = if parts.dense { dense } else { 0.0 };
        attention + dense + experts + adapters
    };
    let owned = |i: usize| share.is_none_or(|share| share[i] == i);
    let blocks = stack.blocks.iter().enumerate().filter(|(i, _)| owned(*i));
    let blocks: f64 = blocks.map(|(_, parts)| of_block(parts)).sum();
    let each = if stack.per_position { stack.window as f64 } else { 1.0 };
    each * blocks + stack.positions as f64 * width
}

/// Matrices of a feed-forward layer.
fn products(kind: FeedForwardKind) -> f64 {
    match kind {
        FeedForwardKind::Gated(_) => 3.0,
        FeedForwardKind::Plain(_) => 2.0,
    }
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
            format!(
                "kind = 'specialformer'\ntopology = 'decoder'\nlayers = 4\nfeed_forward = 96\n\
                 specialisation = 'moe'\ndynamic = {{ share = [0, 0, 2, 2] }}\n{SIZES}\n\
                 [moe]\nhidden = 64\nlayers = [0, 1]\nshared = 32\n\
                 router = {{ experts = 8, top_k = 2 }}"
            ),
            format!(
                "kind = 'specialformer'\ntopology = 'decoder'\nlayers = 1\nfeed_forward = 32\n\
                 outputs = 4000\nhead_width = 16\n{}",
                SIZES.replace("window = 12", "window = 1200")
            ),
            format!(
                "kind = 'specialformer'\ntopology = 'encoder-decoder'\nlayers = 2\n\
                 encoder_layers = 3\nfeed_forward = 96\n{SIZES}"
            ),
            format!(
                "kind = 'specialformer'\ntopology = 'encoder'\nlayers = 2\nfeed_forward = 32\n\
                 specialisation = 'adapter'\n{SIZES}\n\
                 tasks = [{{ name = 'a', head = 'classification', outputs = 500 }}, \
                 {{ name = 'b', head = 'regression' }}]\n\
                 [adapter]\nkind = 'bottleneck'\nwidth = 64"
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

    // Elsewhere nobody tells how much there is.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_cannot_fit_is_refused_before_it_is_built() {
        for change in
            ["width = 200000", "layers = 16000000", "feed_forward = 16000000", "window = 16000000"]
        {
            let sizes = ["width = 4096", "layers = 4096", "feed_forward = 16", "window = 8"];
            let mut sizes: Vec<String> = sizes
                .iter()
                .filter(|size| size.split(' ').next() != change.split(' ').next())
                .map(ToString::to_string)
                .collect();
            sizes.push(change.into());
            let text =
                format!("kind = 'transformer'\nvocabulary = 9\nheads = 1\n{}", sizes.join("\n"));
            match Model::<f32>::new(&parse(&text), Seed::new(1)) {
                Err(Error::Memory { needed, .. }) => assert!(needed > 1.0, "{needed}"),
                other => panic!("{change}: {:?}", other.map(|_| ())),
            }
        }
    }
}
