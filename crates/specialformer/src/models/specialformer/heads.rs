//! The heads that answer tasks.

use specialformer_nn::{Ctx, Embedding, Linear, Module, ParameterVisitor, TaskRows};
use specialformer_tensor::{Element, RngStream, Tensor, Var};
use specialformer_train::Answer;

use super::arrange::{Arranged, Sequences};
use crate::config::{Head, Pooling, SpecialformerConfig, TaskConfig, Topology};
use crate::error::{Error, Result};

/// One shared language-model head, and heads of tasks' own.
#[derive(Debug, Clone)]
pub(super) struct Heads<E: Element> {
    tasks: Vec<TaskConfig>,
    pooling: Option<Pooling>,
    shared: Option<Linear<E>>,
    own: Vec<Option<Linear<E>>>,
}

impl<E: Element> Heads<E> {
    pub(super) fn new(
        config: &SpecialformerConfig,
        embedding: Option<&Embedding<E>>,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let (width, outputs, bias) = (config.base.width, config.base.outputs(), config.bias);
        let shared = match (config.has_shared_head(), config.tied_embeddings) {
            (false, _) => None,
            (true, false) => Some(Linear::new(width, outputs, bias, rng)?),
            (true, true) => {
                let table = embedding.expect("tied embeddings are one table");
                Some(Linear::from_weight(table.weight().clone(), None)?)
            }
        };
        let mut own = |task: &TaskConfig| {
            let has_own = config.own_heads || task.head != Head::LanguageModel;
            has_own.then(|| Linear::new(width, task.outputs(outputs), bias, rng)).transpose()
        };
        let own = config.tasks.iter().map(&mut own).collect::<Result<Vec<_>, _>>()?;
        let pooling = (config.topology == Topology::Encoder).then_some(config.pooling);
        Ok(Self { tasks: config.tasks.clone(), pooling, shared, own })
    }

    /// The head that continues texts of a task, or of none: it has `outputs`
    /// logits.
    pub(super) fn language_model(&self, task: Option<usize>, outputs: usize) -> Result<&Linear<E>> {
        let cannot = |what: String| Err(Error::Input { model: "specialformer", what });
        let Some(task) = task else {
            return self.shared.as_ref().map_or_else(
                || {
                    let what = "the tasks share no language-model head to continue texts with";
                    cannot(format!("{what}: say of which task they are"))
                },
                Ok,
            );
        };
        let name = &self.tasks[task].name;
        if self.tasks[task].head != Head::LanguageModel {
            return cannot(format!("task {name} does not answer with a text"));
        }
        let head = self.own[task].as_ref().or(self.shared.as_ref());
        match head.filter(|head| head.out_features() == outputs) {
            Some(head) => Ok(head),
            None => cannot(format!("task {name} has no head of the {outputs} tokens of texts")),
        }
    }

    /// One vector of each row: [n, T, C] of these rows → [n, 1, C].
    fn pool(
        &self,
        ctx: &Ctx<E>,
        hidden: &Var<E>,
        sequences: &Sequences<'_>,
        rows: &[usize],
    ) -> Result<Var<E>> {
        let shape = hidden.shape();
        let (n, length, width) = (shape[0], shape[1], shape[2]);
        match self.pooling {
            Some(Pooling::First) => Ok(hidden.slice(1, 0..1)?),
            Some(Pooling::Mean) => {
                let lengths = sequences.lengths.as_ref();
                let counts: Option<Vec<usize>> =
                    lengths.map(|all| rows.iter().map(|&row| all[row]).collect());
                mean_over_tokens(ctx, hidden, counts.as_deref())
            }
            None => {
                let lengths = sequences.lengths.as_ref();
                let last = |(i, &row): (usize, &usize)| {
                    i * length + lengths.map_or(length, |all| all[row]) - 1
                };
                let last: Vec<usize> = rows.iter().enumerate().map(last).collect();
                Ok(hidden.reshape([n * length, width])?.embedding(&last, [n, 1])?)
            }
        }
    }

    /// The answers to all rows, task by task.
    ///
    /// `hidden` is [B, T, C] of the arranged rows.
    pub(super) fn answers(
        &self,
        ctx: &Ctx<E>,
        hidden: &Var<E>,
        arranged: &Arranged<'_>,
    ) -> Result<Vec<Answer<E>>> {
        let all: Vec<usize> = (0..arranged.rows).collect();
        let Some(tasks) = &arranged.tasks else {
            return Ok(vec![self.answer(ctx, hidden, arranged, None, &all)?]);
        };
        let mut answers = Vec::new();
        for task in 0..tasks.tasks() {
            let rows = tasks.rows_of(task);
            if !rows.is_empty() {
                let part = self.rows(hidden, tasks, rows)?;
                answers.push(self.answer(ctx, &part, arranged, Some(task), rows)?);
            }
        }
        let without = |&row: &usize| tasks.ids()[row] == TaskRows::NONE;
        let without: Vec<usize> = all.into_iter().filter(without).collect();
        if !without.is_empty() {
            let part = self.rows(hidden, tasks, &without)?;
            answers.push(self.answer(ctx, &part, arranged, None, &without)?);
        }
        Ok(answers)
    }

    /// Some rows of [B, T, C], without moving them where they stand together.
    fn rows(&self, hidden: &Var<E>, tasks: &TaskRows, rows: &[usize]) -> Result<Var<E>> {
        let shape = hidden.shape();
        let together = rows.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if rows.len() == tasks.rows() && together {
            return Ok(hidden.clone());
        }
        if together {
            return Ok(hidden.slice(0, rows[0]..rows[0] + rows.len())?);
        }
        let flat = hidden.reshape([shape[0], shape[1] * shape[2]])?;
        Ok(flat.embedding(rows, rows.len())?.reshape([rows.len(), shape[1], shape[2]])?)
    }

    fn answer(
        &self,
        ctx: &Ctx<E>,
        hidden: &Var<E>,
        arranged: &Arranged<'_>,
        task: Option<usize>,
        rows: &[usize],
    ) -> Result<Answer<E>> {
        let own = task.and_then(|task| self.own[task].as_ref());
        let Some(head) = own.or(self.shared.as_ref()) else {
            let row = arranged.original(rows)[0];
            let what = format!(
                "row {row} is of no task, and there is no language-model head that tasks share"
            );
            return Err(Error::Input { model: "specialformer", what });
        };
        let kind = task.map_or(Head::LanguageModel, |task| self.tasks[task].head);
        let pooled = kind.is_pooled() || (arranged.positions == 1 && arranged.main.length > 1);
        let output = if pooled {
            head.forward(ctx, &self.pool(ctx, hidden, &arranged.main, rows)?)?
        } else {
            head.forward(ctx, hidden)?
        };
        let answer = match kind {
            Head::Regression => Answer::values(output.reshape([rows.len(), head.out_features()])?),
            _ => Answer::classes(output),
        };
        let answer = match task {
            Some(task) => answer.of_task(task as u32),
            None => answer,
        };
        let original = arranged.original(rows);
        let in_place = original.len() == arranged.rows
            && original.iter().enumerate().all(|(i, &row)| i == row as usize);
        Ok(if in_place { answer } else { answer.of_rows(original) })
    }
}

/// The mean of each row's real tokens: [n, T, C] → [n, 1, C].
pub(super) fn mean_over_tokens<E: Element>(
    ctx: &Ctx<E>,
    x: &Var<E>,
    lengths: Option<&[usize]>,
) -> Result<Var<E>> {
    let (n, length) = (x.shape()[0], x.shape()[1]);
    let weights = Tensor::build_in(ctx.tape().pool(), [n, 1, length], |out| {
        for (row, out) in out.chunks_exact_mut(length.max(1)).enumerate() {
            let count = lengths.map_or(length, |lengths| lengths[row]);
            let (real, padding) = out.split_at_mut(count);
            real.fill(E::from_f64(1.0 / count.max(1) as f64));
            padding.fill(E::ZERO);
        }
    });
    Ok(ctx.constant(weights).matmul(x)?)
}

impl<E: Element> Module<E> for Heads<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(head) = &self.shared {
            visitor.module("head", head);
        }
        for (task, head) in self.tasks.iter().zip(&self.own) {
            if let Some(head) = head {
                visitor.module(&format!("heads.{}", task.name), head);
            }
        }
    }
}
