//! The Specialformer: a transformer that specialises by task.

mod arrange;
mod heads;
mod input;
mod policy;

use specialformer_attention::Queries;
use specialformer_nn::{Ctx, Embedding, Module, NamedParameters, ParameterVisitor, TaskRows};
use specialformer_tensor::{Element, RngStream, Var};
use specialformer_train::{Batch, BoxError, IGNORE, ModelOutput, Rows};

use self::arrange::{Arranged, Sequences};
use self::heads::{Heads, mean_over_tokens};
use self::input::TaskVectors;
use super::block::Memory;
use super::stack::{Stack, StackInput};
use super::transformer::EMBEDDING_STD;
use super::{Outputs, Tokens};
use crate::config::SpecialformerConfig;
use crate::error::{Error, Result};

/// A transformer that specialises by task: an encoder, a decoder or both, of
/// the same blocks as the [`Transformer`](super::Transformer), with experts,
/// adapters, input vectors and heads of each task's own. Rows of one batch may
/// be of different tasks.
///
/// Parameters: `embedding`, `task` (vectors of the tasks), `encoder`
/// (of an encoder-decoder, whose main stack then is `decoder`), `positions`,
/// `blocks` and `norm` of the main stack, `head` (shared), `heads.NAME`.
///
/// # Shapes
/// Rows of B×T tokens → answers by task; see [`Answer`](specialformer_train::Answer).
#[derive(Debug, Clone)]
pub struct Specialformer<E: Element = f32> {
    config: SpecialformerConfig,
    embedding: Embedding<E>,
    task: TaskVectors<E>,
    encoder: Option<Stack<E>>,
    main: Stack<E>,
    heads: Heads<E>,
}

/// What the stacks made of a batch.
struct Pass<'a, E: Element> {
    arranged: Arranged<'a>,
    /// The context of the pass, which knows the rows' tasks.
    ctx: Ctx<E>,
    /// The last norm's output [B, T, C].
    hidden: Var<E>,
}

impl<E: Element> Specialformer<E> {
    pub(crate) fn new(config: &SpecialformerConfig, rng: &mut RngStream) -> Result<Self> {
        let width = config.base.width;
        // A tied head wants logits of about unit size.
        let std = if config.tied_embeddings { (width as f64).powf(-0.5) } else { EMBEDDING_STD };
        let embedding = Embedding::new(config.base.vocabulary, width, std, rng)?;
        let task = TaskVectors::new(config, std, rng)?;
        let encoder = config.encoder_stack().map(|stack| Stack::new(stack, rng)).transpose()?;
        let main = Stack::new(config.main_stack(), rng)?;
        let heads = Heads::new(config, &embedding, rng)?;
        let model = Self { config: config.clone(), embedding, task, encoder, main, heads };
        policy::apply(&config.policy, &NamedParameters::of(&model))?;
        Ok(model)
    }

    /// The configuration.
    pub fn config(&self) -> &SpecialformerConfig {
        &self.config
    }

    /// Tokens, tasks and positions as vectors [B, T', C]; with `prefix` the
    /// task's token stands first.
    fn embed(
        &self,
        ctx: &Ctx<E>,
        stack: &Stack<E>,
        sequences: &Sequences<'_>,
        tasks: &[usize],
        prefix: usize,
    ) -> Result<Var<E>> {
        stack.check_length("specialformer", sequences.length + prefix)?;
        let _scope = ctx.scope("embedding");
        let shape = [tasks.len(), sequences.length];
        let x = self.embedding.forward(ctx, &sequences.tokens, shape)?;
        let x = self.task.add(ctx, x, tasks)?;
        let x = if prefix > 0 { self.task.prepend(ctx, x, tasks)? } else { x };
        let offsets = self.task.offsets(tasks, self.config.tasks.len());
        let x = stack.add_positions(ctx, x, offsets.as_deref())?;
        Ok(ctx.dropout(x, self.config.base.dropout)?)
    }

    /// The normed output of a stack, without the task's token.
    fn read(
        &self,
        ctx: &Ctx<E>,
        stack: &Stack<E>,
        sequences: &Sequences<'_>,
        tasks: &[usize],
        prefix: usize,
        memory: Option<Memory<'_, E>>,
    ) -> Result<Var<E>> {
        let x = self.embed(ctx, stack, sequences, tasks, prefix)?;
        let lengths: Option<Vec<usize>> =
            sequences.lengths.as_ref().map(|all| all.iter().map(|n| n + prefix).collect());
        let lengths = lengths.as_deref();
        let input = StackInput { queries: Queries::All, lengths, memory };
        let x = stack.finish(ctx, &stack.forward(ctx, x, &input)?)?;
        match prefix {
            0 => Ok(x),
            _ => Ok(x.slice(1, prefix..prefix + sequences.length)?),
        }
    }

    fn run<'a>(&self, ctx: &Ctx<E>, input: &Rows<'a>) -> Result<Pass<'a, E>> {
        let arranged = Arranged::new(input, self.config.tasks.len(), false)?;
        let ctx = ctx.with_tasks(arranged.tasks.clone());
        let tasks = arranged.task_indices();
        // The task's token stands before what is read first.
        let prefix = self.task.prefix();
        let hidden = match (&self.encoder, &arranged.source) {
            (None, None) => self.read(&ctx, &self.main, &arranged.main, &tasks, prefix, None)?,
            (Some(encoder), Some(source)) => {
                let states = {
                    let _scope = ctx.scope("encoder");
                    self.read(&ctx, encoder, source, &tasks, prefix, None)?
                };
                let memory = Memory { states: &states, lengths: source.lengths.as_deref() };
                let _scope = ctx.scope("decoder");
                self.read(&ctx, &self.main, &arranged.main, &tasks, 0, Some(memory))?
            }
            (encoder, _) => {
                let what = match encoder {
                    Some(_) => "an encoder-decoder needs rows with a source",
                    None => "rows with a source are for an encoder-decoder",
                };
                return Err(Error::Input { model: "specialformer", what: what.into() });
            }
        };
        Ok(Pass { arranged, ctx, hidden })
    }

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
        let pass = self.run(ctx, &batch.all())?;
        let mut answers = self.heads.answers(&pass.ctx, &pass.hidden, &pass.arranged)?;
        Ok(answers.remove(0).output)
    }

    /// Answers to rows, task by task, and what else a step needs of them.
    ///
    /// # Errors
    /// If the rows do not fit the model: a token, task or length out of range,
    /// a source that is missing or not wanted, a row that no head answers.
    pub fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>> {
        let Pass { arranged, ctx, hidden } = self.run(ctx, input)?;
        let answers = {
            let _scope = ctx.scope("head");
            self.heads.answers(&ctx, &hidden, &arranged)?
        };
        let pooled = mean_over_tokens(&ctx, &hidden, arranged.main.lengths.as_deref())?;
        let pooled = arranged.restore(pooled.reshape([arranged.rows, self.config.base.width])?)?;
        Ok(ModelOutput::with_answers(answers).with_representation("hidden", pooled))
    }
}

impl<E: Element> Module<E> for Specialformer<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("embedding", &self.embedding);
        visitor.module("task", &self.task);
        match &self.encoder {
            Some(encoder) => {
                visitor.module("encoder", encoder);
                visitor.module("decoder", &self.main);
            }
            None => self.main.visit(visitor),
        }
        self.heads.visit(visitor);
    }
}

impl<E: Element> specialformer_train::Model<E> for Specialformer<E> {
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError> {
        Ok(Self::forward(self, ctx, input)?)
    }
}
