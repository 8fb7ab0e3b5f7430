//! Texts, which language-model heads continue: that of their task, or the one
//! that tasks share.

use specialformer_attention::CacheElement;
use specialformer_nn::{Ctx, Linear, TaskRows};
use specialformer_tensor::{Element, Var};
use specialformer_train::{Batch, IGNORE};

use super::Specialformer;
use crate::error::{Error, Result};
use crate::generate::TextCache;
use crate::models::{Outputs, Tokens};

impl<E: Element> Specialformer<E> {
    /// Logits of the language-model head that tasks share, for rows of no
    /// task.
    ///
    /// # Errors
    /// If there is no such head, the model reads a source, or the tokens do
    /// not fit.
    pub fn logits(&self, ctx: &Ctx<E>, tokens: Tokens<'_>, outputs: Outputs) -> Result<Var<E>> {
        let rows = tokens.batch();
        let positions = match outputs {
            Outputs::All => tokens.length(),
            Outputs::Last => 1,
        };
        let targets = vec![IGNORE; rows * positions];
        let mut batch = Batch::from_vecs(rows, tokens.ids().to_vec(), targets)?;
        if !self.config.tasks.is_empty() {
            batch.task_ids_mut().fill(TaskRows::NONE);
        }
        let pass = self.run(ctx, &batch.all(), false)?;
        let mut answers = self.heads.answers(&pass.ctx, &pass.hidden, &pass.arranged)?;
        Ok(answers.remove(0).output)
    }

    /// Fails unless the model continues texts.
    fn check_text(&self) -> Result<()> {
        let what = if self.encoder.is_some() {
            "an encoder-decoder does not continue texts"
        } else if self.input.is_some() {
            "a model of positions of several types does not continue texts"
        } else if self.task.prefix() > 0 {
            "texts are continued without a token of their task before them"
        } else {
            return Ok(());
        };
        Err(Error::Input { model: "specialformer", what: what.into() })
    }

    pub(in crate::models) fn new_cache<S: CacheElement>(
        &self,
        rows: usize,
    ) -> Result<TextCache<S>> {
        self.check_text()?;
        Ok(TextCache::new(self.main.new_caches(rows)?))
    }

    /// The task of each of `rows` texts, by the context; `None` for those of
    /// none.
    fn text_tasks(&self, ctx: &Ctx<E>, rows: usize) -> Result<Vec<Option<usize>>> {
        let fail = |what: String| Err(Error::Input { model: "specialformer", what });
        let Some(tasks) = ctx.tasks() else { return Ok(vec![None; rows]) };
        if tasks.rows() != rows {
            return fail(format!("{} tasks for {rows} texts", tasks.rows()));
        }
        let of = |&id: &u32| (id != TaskRows::NONE).then_some(id as usize);
        let all: Vec<Option<usize>> = tasks.ids().iter().map(of).collect();
        let count = self.config.tasks.len();
        match all.iter().flatten().max() {
            Some(&most) if most >= count => fail(format!("task {most} of {count} tasks")),
            // The cache knows positions from the beginning of a text alone.
            Some(_) if self.config.task_input.position_offset > 0 => {
                fail("texts of tasks with positions of their own are not continued".into())
            }
            _ => Ok(all),
        }
    }

    /// The last hidden states of tokens that continue the texts in the cache.
    pub(in crate::models) fn states_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>> {
        self.check_text()?;
        let (rows, tasks) = (tokens.batch(), self.config.tasks.len());
        let of_rows = self.text_tasks(ctx, rows)?;
        let ids: Vec<u32> =
            of_rows.iter().map(|task| task.map_or(TaskRows::NONE, |task| task as u32)).collect();
        let grouped = (tasks > 0).then(|| TaskRows::new(&ids, tasks)).transpose()?;
        let ctx = ctx.with_tasks(grouped);
        let table = self.embedding.table().expect("checked above: without [model.input]");
        let x = table.forward(&ctx, tokens.ids(), [rows, tokens.length()])?;
        let vectors: Vec<usize> = of_rows.iter().map(|task| task.unwrap_or(tasks)).collect();
        let x = self.task.add(&ctx, x, &vectors)?;
        self.main.continue_texts("specialformer", &ctx, x, tokens, counts, cache)
    }

    /// The logits of hidden states, by the heads of the texts' tasks.
    pub(in crate::models) fn text_head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        self.check_text()?;
        let _scope = ctx.scope("head");
        let outputs = self.config.base.outputs();
        let tasks = self.text_tasks(ctx, hidden.shape()[0])?;
        let heads = tasks.iter().map(|&task| self.heads.language_model(task, outputs));
        let heads = heads.collect::<Result<Vec<_>>>()?;
        let Some((first, rest)) = heads.split_first() else {
            return Ok(self.heads.language_model(None, outputs)?.forward(ctx, hidden)?);
        };
        if rest.iter().all(|head| std::ptr::eq(*head, *first)) {
            return Ok(first.forward(ctx, hidden)?);
        }
        let row = |(row, head): (usize, &&Linear<E>)| {
            Ok(head.forward(ctx, &hidden.slice(0, row..row + 1)?)?)
        };
        let rows = heads.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
        Ok(Var::concat(&rows.iter().collect::<Vec<_>>(), 0)?)
    }
}
