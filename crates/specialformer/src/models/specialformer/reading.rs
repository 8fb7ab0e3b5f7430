//! What a stack reads: tokens, tasks and positions as vectors, through its
//! blocks.

use std::borrow::Cow;

use specialformer_attention::Queries;
use specialformer_embedding::{NO_TYPE, Streams};
use specialformer_nn::Ctx;
use specialformer_routing::Routing;
use specialformer_tensor::{Element, Var};

use super::Specialformer;
use super::arrange::Sequences;
use super::routing::LayerRouting;
use crate::error::{Error, Result};
use crate::models::block::Memory;
use crate::models::stack::{Probe, Stack, StackInput};

/// What gates and routers decide on the way.
pub(super) struct Routings<E: Element> {
    pub(super) layers: Vec<LayerRouting<E>>,
    pub(super) mixture: Option<Routing<E>>,
}

/// A stack of the model, and what is read with it.
pub(super) struct Reading<'a, E: Element> {
    pub(super) stack: &'a Stack<E>,
    /// Its name before those of its blocks, with the dot.
    pub(super) name: &'static str,
    pub(super) sequences: &'a Sequences<'a>,
    /// Tokens that stand before a row's own.
    pub(super) prefix: usize,
    pub(super) memory: Option<Memory<'a, E>>,
    /// Where to put what each block reads.
    pub(super) probe: Option<&'a Probe<E>>,
}

impl<E: Element> Specialformer<E> {
    /// Tokens, tasks and positions as vectors [B, prefix + T, C], and what a
    /// mixture of tables decided.
    pub(super) fn embed(
        &self,
        ctx: &Ctx<E>,
        reading: &Reading<'_, E>,
        tasks: &[usize],
        streams: &Streams,
    ) -> Result<(Var<E>, Option<Routing<E>>)> {
        let Reading { stack, sequences, prefix, .. } = reading;
        stack.check_length("specialformer", sequences.length + prefix)?;
        let _scope = ctx.scope("embedding");
        let shape = [tasks.len(), sequences.length];
        let (x, routing) = match (&self.input, self.embedding.table()) {
            (Some(input), _) => {
                let all = input.forward(ctx, &self.embedding, sequences, streams, tasks)?;
                (all.x, all.routing)
            }
            (None, Some(table)) => (table.forward(ctx, &sequences.tokens, shape)?, None),
            (None, None) => {
                unreachable!("other than plain tables stand with a [model.input] section")
            }
        };
        let x = self.task.add(ctx, x, tasks)?;
        let x = if *prefix > 0 { self.task.prepend(ctx, x, tasks)? } else { x };
        let offsets = self.task.offsets(tasks, self.config.tasks.len());
        let x = stack.add_positions(ctx, x, offsets.as_deref())?;
        Ok((ctx.dropout(x, self.config.base.dropout)?, routing))
    }

    /// What stands where, without a task's own token and behind it.
    pub(super) fn streams(&self, reading: &Reading<'_, E>, rows: usize) -> Result<[Streams; 2]> {
        let sequences = reading.sequences;
        let own = match &self.input {
            Some(input) => input.streams(sequences, rows)?,
            None if sequences.streams.as_ref().is_some_and(|all| all.width > 0) => {
                let what = "rows with numbers need a [model.input] section";
                return Err(Error::Input { model: "specialformer", what: what.into() });
            }
            // Parts of the stack may ask for tasks alone.
            None => {
                let length = sequences.length;
                let lengths = sequences.lengths.clone().unwrap_or_else(|| vec![length; rows]);
                Streams::uniform(0, &lengths, length)
            }
        };
        let all = behind(&own, reading.prefix);
        Ok([own, all])
    }

    /// Token ids of all positions; a task's own token has an id behind those
    /// of the vocabulary.
    pub(super) fn ids<'a>(&self, reading: &Reading<'a, E>, tasks: &[usize]) -> Cow<'a, [u32]> {
        let Sequences { tokens, length, .. } = reading.sequences;
        if reading.prefix == 0 {
            return Cow::Borrowed(tokens);
        }
        let first = self.config.base.vocabulary as u32;
        let rows = tokens.chunks_exact(*length).zip(tasks);
        rows.flat_map(|(row, &task)| [first + task as u32].into_iter().chain(row.iter().copied()))
            .collect()
    }

    /// The normed output of a stack without the task's token, and its
    /// routings.
    pub(super) fn read(
        &self,
        ctx: &Ctx<E>,
        reading: &Reading<'_, E>,
        tasks: &[usize],
        passed: &mut Routings<E>,
    ) -> Result<Var<E>> {
        let Reading { stack, sequences, prefix, memory, probe, .. } = *reading;
        let [own, all] = self.streams(reading, tasks.len())?;
        let (x, mixture) = self.embed(ctx, reading, tasks, &own)?;
        passed.mixture = mixture;
        let lengths: Option<Vec<usize>> =
            sequences.lengths.as_ref().map(|all| all.iter().map(|n| n + prefix).collect());
        let ids = self.ids(reading, tasks);
        let input = StackInput {
            queries: Queries::All,
            lengths: lengths.as_deref(),
            memory,
            tokens: Some(&ids),
            streams: Some(&all),
            probe,
        };
        let output = stack.forward(ctx, x, &input)?;
        let decided = output.routings.into_iter().zip(output.lengths);
        passed.layers.extend(decided.map(|((block, routing), lengths)| {
            let name = format!("{}blocks.{block}", reading.name);
            LayerRouting { name, lengths, routing }
        }));
        let x = stack.finish(ctx, &output.output)?;
        match prefix {
            0 => Ok(x),
            _ => Ok(x.slice(1, prefix..prefix + sequences.length)?),
        }
    }
}

/// Positions behind others of no type.
fn behind(streams: &Streams, prefix: usize) -> Streams {
    let length = streams.length;
    let shift = |all: &[u32], first: u32| {
        let rows = all.chunks_exact(length.max(1));
        rows.flat_map(|row| std::iter::repeat_n(first, prefix).chain(row.iter().copied())).collect()
    };
    Streams {
        length: length + prefix,
        lengths: streams.lengths.iter().map(|n| n + prefix).collect(),
        types: shift(&streams.types, NO_TYPE),
        places: shift(&streams.places, 1),
    }
}
