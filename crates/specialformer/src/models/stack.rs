//! A stack of blocks with its positions and its last norm.

use specialformer_attention::{AttentionConfig, Position, Queries, RelativeBias, alibi_slopes};
use specialformer_nn::{Ctx, Module, Norm, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Var};

use super::block::{Block, BlockInput, Memory};
use crate::config::{NormPosition, StackConfig};
use crate::error::{Error, Result};

/// Start values of learned positions.
const POSITION_STD: f64 = 1.0;
/// Start values of relative biases.
const RELATIVE_STD: f64 = 0.1;

/// Blocks, with the positions before and between them and the norm after.
#[derive(Debug, Clone)]
pub(crate) struct Stack<E: Element> {
    config: StackConfig,
    positions: Option<Parameter<E>>,
    relative: Option<RelativeBias<E>>,
    blocks: Vec<Block<E>>,
    /// Pre-norm stacks end with one.
    norm: Option<Norm<E>>,
}

/// What a stack is told besides its input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StackInput<'a, E: Element> {
    /// Which positions are wanted of the last block.
    pub queries: Queries,
    /// Row b has only its first `lengths[b]` positions \[B\].
    pub lengths: Option<&'a [usize]>,
    /// What cross-attention reads.
    pub memory: Option<Memory<'a, E>>,
}

impl<E: Element> StackInput<'_, E> {
    pub(crate) const fn new(queries: Queries) -> Self {
        Self { queries, lengths: None, memory: None }
    }
}

impl<E: Element> Stack<E> {
    pub(crate) fn new(config: StackConfig, rng: &mut RngStream) -> Result<Self> {
        let width = config.attention.width;
        let positions = (config.positions > 0)
            .then(|| Parameter::new(init::normal([config.positions, width], POSITION_STD, rng)));
        let relative = config
            .relative
            .map(|buckets| {
                let attention = &config.attention;
                RelativeBias::new(buckets, attention.heads, !attention.causal, RELATIVE_STD, rng)
            })
            .transpose()?;
        let blocks = config.blocks.iter();
        let blocks = blocks.map(|parts| Block::new(&config, parts, rng)).collect::<Result<_>>()?;
        let norm = (config.norm_position == NormPosition::Pre)
            .then(|| Norm::new(config.norm, width, config.norm_eps))
            .transpose()?;
        Ok(Self { config, positions, relative, blocks, norm })
    }

    /// The settings.
    pub(crate) fn config(&self) -> &StackConfig {
        &self.config
    }

    /// The settings of all blocks' attention.
    pub(crate) fn attention(&self) -> &AttentionConfig {
        &self.config.attention
    }

    /// The ALiBi slope of a head, 0 without ALiBi.
    pub(crate) fn alibi_slope(&self, head: usize) -> f64 {
        match self.config.attention.position {
            Position::Alibi => alibi_slopes(self.config.attention.heads)[head],
            _ => 0.0,
        }
    }

    /// Fails if a sequence does not fit.
    pub(crate) fn check_length(&self, model: &'static str, length: usize) -> Result<()> {
        let window = self.config.window;
        if length > window {
            let what =
                format!("a sequence of {length} tokens is longer than the window of {window}");
            return Err(Error::Input { model, what });
        }
        Ok(())
    }

    /// x with learned positions, if there are any: row b counts from
    /// `offsets[b]` on, or from 0.
    pub(crate) fn add_positions(
        &self,
        ctx: &Ctx<E>,
        x: Var<E>,
        offsets: Option<&[usize]>,
    ) -> Result<Var<E>> {
        let Some(positions) = &self.positions else {
            return Ok(x);
        };
        let (shape, table) = (x.shape(), ctx.parameter(positions));
        match offsets {
            None => Ok(x.add(&table.slice(0, 0..shape[1])?)?),
            Some(offsets) => {
                let ids: Vec<usize> =
                    offsets.iter().flat_map(|&first| first..first + shape[1]).collect();
                Ok(x.add(&table.embedding(&ids, [shape[0], shape[1]])?)?)
            }
        }
    }

    /// The output of the blocks, before the last norm.
    pub(crate) fn forward(
        &self,
        ctx: &Ctx<E>,
        mut x: Var<E>,
        input: &StackInput<'_, E>,
    ) -> Result<Var<E>> {
        let length = x.shape()[1];
        let relative = self.relative.as_ref();
        let bias = relative.map(|bias| bias.forward(ctx, length, length)).transpose()?;
        let last_bias = match (&bias, input.queries) {
            (Some(bias), Queries::Last) => Some(bias.slice(2, length.saturating_sub(1)..length)?),
            _ => None,
        };
        for (i, block) in self.blocks.iter().enumerate() {
            let _scope = ctx.indexed_scope("blocks", i);
            let last_block = i + 1 == self.blocks.len();
            let (queries, bias) = match input.queries {
                Queries::Last if last_block => (Queries::Last, last_bias.as_ref()),
                _ => (Queries::All, bias.as_ref()),
            };
            let (lengths, memory) = (input.lengths, input.memory);
            x = block.forward(ctx, &x, &BlockInput { queries, lengths, bias, memory })?;
        }
        Ok(x)
    }

    /// The last norm, where there is one.
    pub(crate) fn finish(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        match &self.norm {
            Some(norm) => Ok(norm.forward(ctx, x)?),
            None => Ok(x.clone()),
        }
    }

    /// The packed projections q|k|v of every block.
    pub(crate) fn projections(&self, ctx: &Ctx<E>, mut x: Var<E>) -> Result<Vec<Var<E>>> {
        let mut projections = Vec::with_capacity(self.blocks.len());
        let length = x.shape()[1];
        let relative = self.relative.as_ref();
        let bias = relative.map(|bias| bias.forward(ctx, length, length)).transpose()?;
        for block in &self.blocks {
            projections.push(block.project_qkv(ctx, &x)?);
            let input = BlockInput { bias: bias.as_ref(), ..BlockInput::new(Queries::All) };
            x = block.forward(ctx, &x, &input)?;
        }
        Ok(projections)
    }
}

impl<E: Element> Module<E> for Stack<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(positions) = &self.positions {
            visitor.parameter("positions", positions);
        }
        if let Some(relative) = &self.relative {
            visitor.module("relative", relative);
        }
        visitor.modules("blocks", &self.blocks);
        if let Some(norm) = &self.norm {
            visitor.module("norm", norm);
        }
    }
}
