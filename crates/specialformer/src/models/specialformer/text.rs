//! Texts of no task, which the head that tasks share continues.

use specialformer_attention::CacheElement;
use specialformer_nn::{Ctx, TaskRows};
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

    /// Fails unless the model continues texts that are of no task.
    fn check_text(&self) -> Result<()> {
        let what = if self.encoder.is_some() {
            "an encoder-decoder does not continue texts"
        } else if self.heads.shared().is_none() {
            "the tasks share no language-model head to continue texts with"
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

    /// The last hidden states of tokens that continue the texts in the cache,
    /// as of rows of no task.
    pub(in crate::models) fn states_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>> {
        self.check_text()?;
        let (rows, tasks) = (tokens.batch(), self.config.tasks.len());
        let none = vec![TaskRows::NONE; rows];
        let of_rows = (tasks > 0).then(|| TaskRows::new(&none, tasks)).transpose()?;
        let ctx = ctx.with_tasks(of_rows);
        let table = self.embedding.table().expect("checked above: without [model.input]");
        let x = table.forward(&ctx, tokens.ids(), [rows, tokens.length()])?;
        let x = self.task.add(&ctx, x, &vec![tasks; rows])?;
        self.main.continue_texts("specialformer", &ctx, x, tokens, counts, cache)
    }

    pub(in crate::models) fn shared_head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        self.check_text()?;
        let _scope = ctx.scope("head");
        let head = self.heads.shared().expect("checked above");
        Ok(head.forward(ctx, hidden)?)
    }
}
