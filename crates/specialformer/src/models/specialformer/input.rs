//! How a row's task enters with its tokens.

use specialformer_nn::{Ctx, Embedding, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Var};

use crate::config::SpecialformerConfig;
use crate::error::Result;

/// Start values of what is added to every token: small beside them.
const EMBEDDING_STD: f64 = 0.02;

/// Learned vectors of each task's own, and one for rows of no task.
#[derive(Debug, Clone)]
pub(super) struct TaskVectors<E: Element> {
    token: Option<Embedding<E>>,
    embedding: Option<Embedding<E>>,
    /// Positions between the first ones of two tasks.
    stride: usize,
}

impl<E: Element> TaskVectors<E> {
    pub(super) fn new(
        config: &SpecialformerConfig,
        token_std: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let (input, count, width) = (config.task_input, config.tasks.len() + 1, config.base.width);
        let mut table =
            |wanted: bool, std| wanted.then(|| Embedding::new(count, width, std, rng)).transpose();
        Ok(Self {
            token: table(input.token, token_std)?,
            embedding: table(input.embedding, EMBEDDING_STD)?,
            stride: input.position_offset,
        })
    }

    /// Tokens that stand before a row's own.
    pub(super) fn prefix(&self) -> usize {
        usize::from(self.token.is_some())
    }

    /// x [B, T, C] with each row's task added.
    pub(super) fn add(&self, ctx: &Ctx<E>, x: Var<E>, tasks: &[usize]) -> Result<Var<E>> {
        match &self.embedding {
            Some(table) => Ok(x.add(&table.forward(ctx, tasks, [tasks.len(), 1])?)?),
            None => Ok(x),
        }
    }

    /// x [B, T, C] after each row's task: [B, T + 1, C].
    pub(super) fn prepend(&self, ctx: &Ctx<E>, x: Var<E>, tasks: &[usize]) -> Result<Var<E>> {
        match &self.token {
            Some(table) => {
                let token = table.forward(ctx, tasks, [tasks.len(), 1])?;
                Ok(Var::concat(&[&token, &x], 1)?)
            }
            None => Ok(x),
        }
    }

    /// The first position of each row, if they differ; rows of no task (index
    /// `count`) begin at 0.
    pub(super) fn offsets(&self, tasks: &[usize], count: usize) -> Option<Vec<usize>> {
        let first = |&task: &usize| if task == count { 0 } else { task * self.stride };
        (self.stride > 0).then(|| tasks.iter().map(first).collect())
    }
}

impl<E: Element> Module<E> for TaskVectors<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (name, table) in [("token", &self.token), ("embedding", &self.embedding)] {
            if let Some(table) = table {
                visitor.module(name, table);
            }
        }
    }
}
