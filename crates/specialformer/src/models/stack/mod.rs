//! A stack of blocks with its positions and its last norm.

mod cached;

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use specialformer_attention::{AttentionConfig, Position, Queries, RelativeBias, alibi_slopes};
use specialformer_embedding::{Inserted, Streams};
use specialformer_moe::MoeFeedForward;
use specialformer_nn::{Ctx, Module, Norm, ParameterVisitor, init};
use specialformer_routing::{RouteInput, Routing};
use specialformer_tensor::{Element, Parameter, RngStream, Var};

use super::between::Between;
use super::block::{Block, BlockInput, BlockOutput, Memory};
use super::recompute;
use crate::config::{NormPosition, StackConfig};
use crate::error::{Error, Result};

/// Start values of learned positions.
const POSITION_STD: f64 = 1.0;
/// Start values of relative biases.
const RELATIVE_STD: f64 = 0.1;

/// Makes a layer of experts from the one that there is, and its number.
pub(crate) type MakeExperts<'a, E> =
    dyn FnMut(usize, &MoeFeedForward<E>) -> Result<MoeFeedForward<E>> + 'a;

/// Blocks, with the positions before and between them and the norm after.
#[derive(Debug, Clone)]
pub(crate) struct Stack<E: Element> {
    config: StackConfig,
    positions: Option<Parameter<E>>,
    relative: Option<RelativeBias<E>>,
    blocks: Vec<Block<E>>,
    /// What stands before each block; empty if nothing does.
    between: Vec<Between<E>>,
    /// Pre-norm stacks end with one.
    norm: Option<Norm<E>>,
    /// Activations of blocks are computed again for the backward pass.
    recompute: bool,
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
    /// Token ids of all positions, for routers that go by them.
    pub tokens: Option<&'a [u32]>,
    /// What the positions are, where parts of the stack ask.
    pub streams: Option<&'a Streams>,
    /// Where to put what each block reads.
    pub probe: Option<&'a Probe<E>>,
}

/// What each block of a pass read: the block, its input, and the places of its positions
/// if they are known.
pub(crate) type Probe<E> = RefCell<Vec<(usize, Var<E>, Option<Vec<u32>>)>>;

/// What a stack returns.
#[derive(Debug)]
pub(crate) struct StackOutput<E: Element> {
    /// Before the last norm.
    pub output: Var<E>,
    /// What routers decided, by block.
    pub routings: Vec<(usize, Routing<E>)>,
    /// The rows' lengths there, with learned tokens.
    pub lengths: Vec<Option<Vec<usize>>>,
}

impl<E: Element> StackInput<'_, E> {
    pub(crate) const fn new(queries: Queries) -> Self {
        Self { queries, lengths: None, memory: None, tokens: None, streams: None, probe: None }
    }
}

impl<E: Element> Stack<E> {
    pub(crate) fn new(config: StackConfig, rng: &mut RngStream) -> Result<Self> {
        Self::with_sharing(config, None, rng)
    }

    /// A stack in which block i has the parameters of block `share[i]`.
    pub(crate) fn with_sharing(
        config: StackConfig,
        share: Option<&[usize]>,
        rng: &mut RngStream,
    ) -> Result<Self> {
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
        let mut blocks: Vec<Block<E>> = Vec::with_capacity(config.blocks.len());
        for (i, parts) in config.blocks.iter().enumerate() {
            if let Some(owner) = share.map(|share| share[i])
                && owner < i
            {
                // A clone of a block holds the same parameters.
                blocks.push(blocks[owner].clone());
                continue;
            }
            let mut block = Block::new(&config, parts, rng)?;
            if let Some(first) = blocks.first() {
                block.share_rotary(first);
            }
            blocks.push(block);
        }
        let norm = (config.norm_position == NormPosition::Pre)
            .then(|| Norm::new(config.norm, width, config.norm_eps))
            .transpose()?;
        Ok(Self {
            config,
            positions,
            relative,
            blocks,
            between: Vec::new(),
            norm,
            recompute: false,
        })
    }

    /// The stack with these parts before its blocks.
    pub(crate) fn with_between(mut self, between: Vec<Between<E>>) -> Self {
        self.between = between;
        self
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

    /// Whether blocks keep only their input for the backward pass and compute
    /// the rest again. Blocks with experts or a memory keep everything, as do
    /// those of a stack with a relative bias.
    pub(crate) fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// True if this pass through a block is run again backwards.
    fn recomputes(&self, ctx: &Ctx<E>, block: &Block<E>, input: &BlockInput<'_, E>) -> bool {
        self.recompute
            && ctx.tape().config().record
            && block.moe().is_none()
            && input.queries == Queries::All
            && input.bias.is_none()
            && input.memory.is_none()
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
                // Padding may reach behind the last position; nothing reads it.
                let last = self.config.positions - 1;
                let of_row = |&first: &usize| (first..first + shape[1]).map(|id| id.min(last));
                let ids: Vec<usize> = offsets.iter().flat_map(of_row).collect();
                Ok(x.add(&table.embedding(&ids, [shape[0], shape[1]])?)?)
            }
        }
    }

    /// The output of the blocks, before the last norm.
    pub(crate) fn forward(
        &self,
        ctx: &Ctx<E>,
        x: Var<E>,
        input: &StackInput<'_, E>,
    ) -> Result<StackOutput<E>> {
        self.forward_range(ctx, x, 0..self.blocks.len(), input)
    }

    /// The output of some blocks, one after the other.
    pub(crate) fn forward_range(
        &self,
        ctx: &Ctx<E>,
        x: Var<E>,
        range: Range<usize>,
        input: &StackInput<'_, E>,
    ) -> Result<StackOutput<E>> {
        if self.between.is_empty() {
            let (mut x, mut routings) = (x, Vec::new());
            let length = x.shape()[1];
            self.pass(ctx, &mut x, range, length, input, &mut routings)?;
            let lengths = vec![input.lengths.map(<[usize]>::to_vec); routings.len()];
            return Ok(StackOutput { output: x, routings, lengths });
        }
        let Some(streams) = input.streams.filter(|_| input.queries == Queries::All) else {
            let what = "parts between blocks need to be told what all positions are";
            return Err(Error::Input { model: "stack", what: what.into() });
        };
        let (mut x, mut routings, mut lengths) = (x, Vec::new(), Vec::new());
        let mut streams = Cow::Borrowed(streams);
        let mut inserted: Vec<Inserted<E>> = Vec::new();
        for i in range {
            let between = &self.between[i];
            {
                let _scope = ctx.indexed_scope("between", i);
                if let Some(rows) = between.insert(ctx, &x, &streams)? {
                    x = rows.output.clone();
                    streams = Cow::Owned(rows.streams.clone());
                    inserted.push(rows);
                }
                x = between.modulate(ctx, x, &streams)?;
            }
            let passing = between.passing(ctx, &streams)?;
            if passing.as_ref().is_some_and(|passing| !passing.contains(&true)) {
                continue;
            }
            let before = x.clone();
            let padded = streams.lengths.iter().any(|&n| n < streams.length);
            let own = StackInput {
                lengths: padded.then_some(&streams.lengths),
                // Learned tokens have no id.
                tokens: input.tokens.filter(|_| inserted.is_empty()),
                streams: Some(&streams),
                ..*input
            };
            self.pass(ctx, &mut x, i..i + 1, streams.length, &own, &mut routings)?;
            lengths.resize(routings.len(), own.lengths.map(<[usize]>::to_vec));
            if let Some(passing) = passing.filter(|passing| passing.contains(&false)) {
                let width = x.shape().last_size();
                let mask: Vec<bool> =
                    passing.iter().flat_map(|&passes| std::iter::repeat_n(passes, width)).collect();
                x = x.where_mask(&mask, &before)?;
            }
        }
        for rows in inserted.iter().rev() {
            x = rows.remove(&x)?;
        }
        Ok(StackOutput { output: x, routings, lengths })
    }

    /// Some blocks, one after the other.
    fn pass(
        &self,
        ctx: &Ctx<E>,
        x: &mut Var<E>,
        range: Range<usize>,
        length: usize,
        input: &StackInput<'_, E>,
        routings: &mut Vec<(usize, Routing<E>)>,
    ) -> Result<()> {
        let rows = x.shape()[0];
        let relative = self.relative.as_ref();
        let bias = relative.map(|bias| bias.forward(ctx, length, length)).transpose()?;
        let last_bias = match (&bias, input.queries) {
            (Some(bias), Queries::Last) => Some(bias.slice(2, length.saturating_sub(1)..length)?),
            _ => None,
        };
        let live: Option<Vec<bool>> = input
            .lengths
            .map(|lengths| lengths.iter().flat_map(|&n| (0..length).map(move |t| t < n)).collect());
        let route = RouteInput {
            live: live.as_deref(),
            tokens: input.tokens,
            causal: self.config.attention.causal,
            ..RouteInput::default()
        };
        // The last position's, where that alone is left.
        let at_last = (0..rows).map(|row| (row + 1) * length - 1);
        let last_tokens: Option<Vec<u32>> =
            input.tokens.map(|tokens| at_last.clone().map(|at| tokens[at]).collect());
        let last_live: Option<Vec<bool>> =
            live.as_ref().map(|live| at_last.map(|at| live[at]).collect());
        for i in range {
            let block = &self.blocks[i];
            if let Some(probe) = input.probe {
                let places = input.streams.map(|streams| streams.places.clone());
                probe.borrow_mut().push((i, x.clone(), places));
            }
            let _scope = ctx.indexed_scope("blocks", i);
            let all = BlockInput {
                queries: Queries::All,
                lengths: input.lengths,
                bias: bias.as_ref(),
                memory: input.memory,
                route,
            };
            let last_block = i + 1 == self.blocks.len();
            let block_input = match input.queries {
                Queries::Last if last_block => BlockInput {
                    queries: Queries::Last,
                    bias: last_bias.as_ref(),
                    route: RouteInput {
                        tokens: last_tokens.as_deref(),
                        live: last_live.as_deref(),
                        ..route
                    },
                    ..all
                },
                _ => all,
            };
            if self.recomputes(ctx, block, &block_input) {
                *x = recompute::forward(block, ctx, x, input.lengths)?;
                continue;
            }
            let BlockOutput { output, routing } = block.forward(ctx, x, &block_input)?;
            *x = output;
            routings.extend(routing.map(|routing| (i, routing)));
        }
        Ok(())
    }

    /// The blocks.
    pub(crate) fn blocks(&self) -> &[Block<E>] {
        &self.blocks
    }

    /// The blocks, for giving them other weights.
    pub(crate) fn blocks_mut(&mut self) -> &mut [Block<E>] {
        &mut self.blocks
    }

    /// The blocks' experts, with the blocks that have them.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (usize, &MoeFeedForward<E>)> {
        let all = self.blocks.iter().enumerate();
        all.filter_map(|(i, block)| block.moe().map(|moe| (i, moe)))
    }

    /// The stack with other experts in the blocks that have some: `make` is
    /// given the number of a layer with experts, counted from `first`, and the
    /// layer; the next number. All else is shared.
    pub(crate) fn map_experts(
        &self,
        first: usize,
        make: &mut MakeExperts<'_, E>,
    ) -> Result<(Self, usize)> {
        let mut stack = self.clone();
        let mut next = first;
        for block in &mut stack.blocks {
            if let Some(made) = block.moe().map(|moe| make(next, moe)).transpose()? {
                block.set_moe(made);
                next += 1;
            }
        }
        Ok((stack, next))
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
            x = block.forward(ctx, &x, &input)?.output;
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
        visitor.modules("between", &self.between);
        if let Some(norm) = &self.norm {
            visitor.module("norm", norm);
        }
    }
}
