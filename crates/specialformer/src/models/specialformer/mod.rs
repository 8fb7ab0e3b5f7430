//! The Specialformer: a transformer that specialises by task.

mod arrange;
mod exit;
mod heads;
mod input;
mod policy;
mod routing;
mod streams;

use std::borrow::Cow;

use specialformer_attention::{CacheElement, Queries};
use specialformer_embedding::{NO_TYPE, Streams, assemble};
use specialformer_moe::MoeFeedForward;
use specialformer_nn::{Ctx, Mode, Module, NamedParameters, ParameterVisitor, TaskRows};
use specialformer_routing::{Keep, Routing, RoutingTrace};
use specialformer_tensor::{Element, RngStream, Var};
use specialformer_train::{Answer, Batch, BoxError, IGNORE, ModelOutput, Rows};

use self::arrange::{Arranged, Sequences};
use self::heads::{Heads, mean_over_tokens};
use self::input::TaskVectors;
use self::routing::LayerRouting;
use self::streams::{StreamLayers, TokenLayer};
use super::between::Between;
use super::block::Memory;
use super::stack::{Probe, Stack, StackInput};
use super::transformer::EMBEDDING_STD;
use super::{Outputs, Tokens};
use crate::config::{ExitConfig, SpecialformerConfig};
use crate::error::{Error, Result};
use crate::generate::TextCache;

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
    embedding: TokenLayer<E>,
    /// Beside the tokens, where positions are of several types.
    input: Option<StreamLayers<E>>,
    task: TaskVectors<E>,
    encoder: Option<Stack<E>>,
    main: Stack<E>,
    heads: Heads<E>,
}

/// What a model makes of rows before its heads.
#[derive(Debug)]
pub struct States<E: Element = f32> {
    /// The last hidden states, after the last norm [B, T, C].
    pub hidden: Var<E>,
    /// What routers decided, by the name of their block; tokens are all
    /// positions in row-major order.
    pub routings: Vec<(String, Routing<E>)>,
}

/// What the stacks made of a batch.
struct Pass<'a, E: Element> {
    arranged: Arranged<'a>,
    /// The context of the pass, which knows the rows' tasks.
    ctx: Ctx<E>,
    /// The last norm's output [B, T, C].
    hidden: Var<E>,
    /// What routers decided, in the order of the blocks.
    routings: Vec<LayerRouting<E>>,
    /// What the gate of a mixture of tables decided.
    mixture: Option<Routing<E>>,
}

/// The answers after each early block.
type EarlyAnswers<E> = Vec<Vec<Answer<E>>>;

/// What gates and routers decide on the way.
struct Routings<E: Element> {
    layers: Vec<LayerRouting<E>>,
    mixture: Option<Routing<E>>,
}

/// A stack of the model, and what is read with it.
struct Reading<'a, E: Element> {
    stack: &'a Stack<E>,
    /// Its name before those of its blocks, with the dot.
    name: &'static str,
    sequences: &'a Sequences<'a>,
    /// Tokens that stand before a row's own.
    prefix: usize,
    memory: Option<Memory<'a, E>>,
    /// Where to put what each block reads.
    probe: Option<&'a Probe<E>>,
}

impl<E: Element> Specialformer<E> {
    pub(crate) fn new(config: &SpecialformerConfig, rng: &mut RngStream) -> Result<Self> {
        let width = config.base.width;
        // A tied head wants logits of about unit size.
        let std = if config.tied_embeddings { (width as f64).powf(-0.5) } else { EMBEDDING_STD };
        let embedding = TokenLayer::new(config, std, rng)?;
        let input = config.input.as_ref().map(|input| StreamLayers::new(config, input, rng));
        let input = input.transpose()?;
        let task = TaskVectors::new(config, std, rng)?;
        let encoder = config.encoder_stack().map(|stack| Stack::new(stack, rng)).transpose()?;
        let share = config.dynamic.as_ref().and_then(|dynamic| dynamic.share.as_deref());
        let main = Stack::with_sharing(config.main_stack(), share, rng)?;
        let main = main.with_between(Between::all(config, rng)?);
        let heads = Heads::new(config, embedding.table(), rng)?;
        let config = config.clone();
        let model = Self { config, embedding, input, task, encoder, main, heads };
        policy::apply(&model.config.policy, &NamedParameters::of(&model))?;
        Ok(model)
    }

    /// The configuration.
    pub fn config(&self) -> &SpecialformerConfig {
        &self.config
    }

    /// Tokens, tasks and positions as vectors [B, prefix + T, C], and what a
    /// mixture of tables decided.
    fn embed(
        &self,
        ctx: &Ctx<E>,
        reading: &Reading<'_, E>,
        tasks: &[usize],
        streams: Option<&Streams>,
    ) -> Result<(Var<E>, Option<Routing<E>>)> {
        let Reading { stack, sequences, prefix, .. } = reading;
        stack.check_length("specialformer", sequences.length + prefix)?;
        let _scope = ctx.scope("embedding");
        let shape = [tasks.len(), sequences.length];
        let (x, routing) = match (&self.input, streams, self.embedding.table()) {
            (Some(input), Some(streams), _) => {
                let all = input.forward(ctx, &self.embedding, sequences, streams, tasks)?;
                (all.x, all.routing)
            }
            (_, _, Some(table)) => (table.forward(ctx, &sequences.tokens, shape)?, None),
            _ => unreachable!("other than plain tables stand with a [model.input] section"),
        };
        let x = self.task.add(ctx, x, tasks)?;
        let x = if *prefix > 0 { self.task.prepend(ctx, x, tasks)? } else { x };
        let offsets = self.task.offsets(tasks, self.config.tasks.len());
        let x = stack.add_positions(ctx, x, offsets.as_deref())?;
        Ok((ctx.dropout(x, self.config.base.dropout)?, routing))
    }

    /// What stands where, behind a task's own token if there is one.
    fn streams(&self, reading: &Reading<'_, E>, rows: usize) -> Result<[Option<Streams>; 2]> {
        let Some(input) = &self.input else {
            if reading.sequences.streams.as_ref().is_some_and(|all| all.width > 0) {
                let what = "rows with numbers need a [model.input] section";
                return Err(Error::Input { model: "specialformer", what: what.into() });
            }
            // Parts of the stack may ask for tasks alone.
            let length = reading.sequences.length;
            let lengths = reading.sequences.lengths.clone().unwrap_or_else(|| vec![length; rows]);
            let own = Streams::uniform(0, &lengths, length);
            let all = behind(&own, reading.prefix);
            return Ok([Some(own), Some(all)]);
        };
        let own = input.streams(reading.sequences, rows)?;
        let all = behind(&own, reading.prefix);
        Ok([Some(own), Some(all)])
    }

    /// Token ids of all positions; a task's own token has an id behind those
    /// of the vocabulary.
    fn ids<'a>(&self, reading: &Reading<'a, E>, tasks: &[usize]) -> Cow<'a, [u32]> {
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
    fn read(
        &self,
        ctx: &Ctx<E>,
        reading: &Reading<'_, E>,
        tasks: &[usize],
        passed: &mut Routings<E>,
    ) -> Result<Var<E>> {
        let Reading { stack, sequences, prefix, memory, probe, .. } = *reading;
        let [own, all] = self.streams(reading, tasks.len())?;
        let (x, mixture) = self.embed(ctx, reading, tasks, own.as_ref())?;
        passed.mixture = mixture;
        let lengths: Option<Vec<usize>> =
            sequences.lengths.as_ref().map(|all| all.iter().map(|n| n + prefix).collect());
        let ids = self.ids(reading, tasks);
        let input = StackInput {
            queries: Queries::All,
            lengths: lengths.as_deref(),
            memory,
            tokens: Some(&ids),
            streams: all.as_ref(),
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

    fn run<'a>(&self, ctx: &Ctx<E>, input: &Rows<'a>, keep_order: bool) -> Result<Pass<'a, E>> {
        let arranged = Arranged::new(input, self.config.tasks.len(), keep_order)?;
        let ctx = ctx.with_tasks(arranged.tasks.clone());
        let tasks = arranged.task_indices();
        let mut routings = Routings { layers: Vec::new(), mixture: None };
        // The task's token stands before what is read first.
        let prefix = self.task.prefix();
        let (stack, sequences) = (&self.main, &arranged.main);
        let main = Reading { stack, name: "", sequences, prefix, memory: None, probe: None };
        let hidden = match (&self.encoder, &arranged.source) {
            (None, None) => self.read(&ctx, &main, &tasks, &mut routings)?,
            (Some(stack), Some(sequences)) => {
                let states = {
                    let _scope = ctx.scope("encoder");
                    let name = "encoder.";
                    let source =
                        Reading { stack, name, sequences, prefix, memory: None, probe: None };
                    self.read(&ctx, &source, &tasks, &mut routings)?
                };
                let lengths: Option<Vec<usize>> = sequences.lengths.clone();
                let memory = Memory { states: &states, lengths: lengths.as_deref() };
                let _scope = ctx.scope("decoder");
                let main = Reading { name: "decoder.", prefix: 0, memory: Some(memory), ..main };
                self.read(&ctx, &main, &tasks, &mut routings)?
            }
            (encoder, _) => {
                let what = match encoder {
                    Some(_) => "an encoder-decoder needs rows with a source",
                    None => "rows with a source are for an encoder-decoder",
                };
                return Err(Error::Input { model: "specialformer", what: what.into() });
            }
        };
        let Routings { layers, mixture } = routings;
        Ok(Pass { arranged, ctx, hidden, routings: layers, mixture })
    }

    /// As [`Self::run`] with answers after early blocks. In evaluation rows that
    /// are sure leave; in training all go on, and the early answers come too.
    fn run_exiting<'a>(
        &self,
        ctx: &Ctx<E>,
        input: &Rows<'a>,
        exit: &ExitConfig,
    ) -> Result<(Pass<'a, E>, EarlyAnswers<E>)> {
        let arranged = Arranged::new(input, self.config.tasks.len(), false)?;
        let whole = ctx.with_tasks(arranged.tasks.clone());
        let (stack, prefix) = (&self.main, self.task.prefix());
        let (length, width) = (arranged.main.length, self.config.base.width);
        let mut part = arranged.clone();
        let mut left: Vec<usize> = (0..arranged.rows).collect();
        let (mut x, mut mixture) = (None, None);
        let (mut done, mut early) = (Vec::new(), Vec::new());
        let mut first = 0;
        for last in exit.layers.iter().copied().chain([self.config.base.layers - 1]) {
            let ctx = whole.with_tasks(part.tasks.clone());
            let tasks = part.task_indices();
            let sequences = &part.main;
            let reading = Reading { stack, name: "", sequences, prefix, memory: None, probe: None };
            let [own, all] = self.streams(&reading, part.rows)?;
            let read = match x.take() {
                Some(x) => x,
                None => {
                    let (x, routing) = self.embed(&ctx, &reading, &tasks, own.as_ref())?;
                    mixture = routing;
                    x
                }
            };
            let lengths: Option<Vec<usize>> =
                sequences.lengths.as_ref().map(|all| all.iter().map(|n| n + prefix).collect());
            let ids = self.ids(&reading, &tasks);
            let given = StackInput {
                lengths: lengths.as_deref(),
                tokens: Some(&ids),
                streams: all.as_ref(),
                ..StackInput::new(Queries::All)
            };
            let output = stack.forward_range(&ctx, read, first..last + 1, &given)?.output;
            first = last + 1;
            let hidden = stack.finish(&ctx, &output)?.slice(1, prefix..prefix + length)?;
            if first == self.config.base.layers {
                done.push((left, hidden.reshape([part.rows, length * width])?));
                break;
            }
            let answers = self.heads.answers(&ctx, &hidden, &part)?;
            if ctx.mode() == Mode::Train {
                early.push(answers);
                x = Some(output);
                continue;
            }
            let mut sure = vec![false; input.rows()];
            for answer in &answers {
                let rows = match &answer.rows {
                    Some(rows) => rows.to_vec(),
                    None => (0..part.rows as u32).collect(),
                };
                let each = exit::sure(answer, &rows, input, exit.threshold)?;
                rows.iter().zip(each).for_each(|(&row, each)| sure[row as usize] = each);
            }
            let of_batch = part.original(&(0..part.rows).collect::<Vec<_>>());
            let (leave, stay): (Vec<usize>, Vec<usize>) =
                (0..part.rows).partition(|&row| sure[of_batch[row] as usize]);
            let pick = |x: &Var<E>, rows: &[usize], length: usize| {
                let flat = x.reshape([part.rows, length * width])?;
                flat.embedding(rows, rows.len())
            };
            if !leave.is_empty() {
                let places = leave.iter().map(|&row| left[row]).collect();
                done.push((places, pick(&hidden, &leave, length)?));
            }
            if stay.is_empty() {
                break;
            }
            let rest = pick(&output, &stay, length + prefix)?;
            x = Some(rest.reshape([stay.len(), length + prefix, width])?);
            left = stay.iter().map(|&row| left[row]).collect();
            part = part.select(&stay)?;
        }
        let hidden = assemble(&whole, done, arranged.rows, length * width)?;
        let hidden = hidden.reshape([arranged.rows, length, width])?;
        let pass = Pass { arranged, ctx: whole, hidden, routings: Vec::new(), mixture };
        Ok((pass, early))
    }

    /// True if rows must stay where they are: an expert over its capacity
    /// keeps the first tokens that come, which must not be one task's.
    fn keeps_order(&self) -> bool {
        let capacity = self.config.moe.as_ref().and_then(|experts| experts.moe.router.capacity);
        capacity.is_some_and(|capacity| capacity.keep == Keep::FirstCome)
    }

    /// What each block of an encoder or decoder reads, with the places of its
    /// positions.
    pub(crate) fn block_inputs(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<Probe<E>> {
        let arranged = Arranged::new(input, self.config.tasks.len(), true)?;
        let ctx = ctx.with_tasks(arranged.tasks.clone());
        let probe = Probe::default();
        let reading = Reading {
            stack: &self.main,
            name: "",
            sequences: &arranged.main,
            prefix: self.task.prefix(),
            memory: None,
            probe: Some(&probe),
        };
        let mut routings = Routings { layers: Vec::new(), mixture: None };
        self.read(&ctx, &reading, &arranged.task_indices(), &mut routings)?;
        Ok(probe)
    }

    /// The stack that is answered from.
    pub(crate) fn main_stack(&self) -> &Stack<E> {
        &self.main
    }

    /// Hidden states and routings of rows, in the rows' order.
    ///
    /// # Errors
    /// As [`Specialformer::forward`].
    pub fn states(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<States<E>> {
        let pass = self.run(ctx, input, true)?;
        let routings = pass.routings.into_iter().map(|layer| (layer.name, layer.routing));
        Ok(States { hidden: pass.hidden, routings: routings.collect() })
    }

    /// Where the tokens of rows go: which experts they choose, by block, in
    /// the order of the rows.
    ///
    /// # Errors
    /// As [`Specialformer::forward`].
    pub fn trace(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<RoutingTrace> {
        let pass = self.run(ctx, input, true)?;
        let tasks = pass.arranged.tasks.as_ref().map(TaskRows::ids);
        routing::trace(&pass.routings, tasks, input.rows())
    }

    /// The experts of all blocks, with the blocks' names, in the order in
    /// which [`ModelOutput::counters`] holds their loads.
    pub fn experts(&self) -> Vec<(String, &MoeFeedForward<E>)> {
        let of = |name: &'static str, stack| {
            Stack::experts(stack).map(move |(block, moe)| (format!("{name}blocks.{block}"), moe))
        };
        match &self.encoder {
            Some(encoder) => of("encoder.", encoder).chain(of("decoder.", &self.main)).collect(),
            None => of("", &self.main).collect(),
        }
    }

    /// The model with other experts in its layers: `make` is given the number
    /// of a layer in the order of [`experts`](Self::experts), and the layer.
    /// All else is shared with this model. The configuration follows where all
    /// layers are made alike.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn map_experts(
        &self,
        mut make: impl FnMut(usize, &MoeFeedForward<E>) -> Result<MoeFeedForward<E>>,
    ) -> Result<Self> {
        let mut model = self.clone();
        let mut first = 0;
        if let Some(encoder) = &self.encoder {
            let (made, next) = encoder.map_experts(first, &mut make)?;
            (model.encoder, first) = (Some(made), next);
        }
        (model.main, _) = self.main.map_experts(first, &mut make)?;
        let configs: Vec<_> = model.experts().iter().map(|(_, moe)| moe.config().clone()).collect();
        if let (Some(config), [first, rest @ ..]) = (&mut model.config.moe, configs.as_slice())
            && rest.iter().all(|other| other == first)
        {
            config.moe = first.clone();
        }
        Ok(model)
    }

    /// Moves the biases that balance experts by a step's loads.
    ///
    /// # Errors
    /// If there are not as many loads as experts.
    pub fn update_balance(&self, loads: &[f64]) -> Result<()> {
        let experts = self.experts();
        let total: usize = experts.iter().map(|(_, moe)| moe.config().router.experts).sum();
        if loads.len() != total {
            let what = format!("{} loads for {total} experts", loads.len());
            return Err(Error::Input { model: "specialformer", what });
        }
        let mut rest = loads;
        for (_, moe) in experts {
            let (own, others) = rest.split_at(moe.config().router.experts);
            moe.router().update_balance(own)?;
            rest = others;
        }
        Ok(())
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

    pub(super) fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<TextCache<S>> {
        self.check_text()?;
        Ok(TextCache::new(self.main.new_caches(rows)?))
    }

    /// The last hidden states of tokens that continue the texts in the cache,
    /// as of rows of no task.
    pub(super) fn states_cached<S: CacheElement>(
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

    pub(super) fn shared_head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        self.check_text()?;
        let _scope = ctx.scope("head");
        let head = self.heads.shared().expect("checked above");
        Ok(head.forward(ctx, hidden)?)
    }

    /// Answers to rows, task by task, and what else a step needs of them.
    ///
    /// # Errors
    /// If the rows do not fit the model: a token, task or length out of range,
    /// a source that is missing or not wanted, a row that no head answers.
    pub fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>> {
        let exit = self.config.dynamic.as_ref().and_then(|dynamic| dynamic.exit.as_ref());
        let (pass, early) = match exit {
            None => (self.run(ctx, input, self.keeps_order())?, Vec::new()),
            Some(exit) => self.run_exiting(ctx, input, exit)?,
        };
        let Pass { arranged, ctx, hidden, routings, mixture } = pass;
        let answers = {
            let _scope = ctx.scope("head");
            self.heads.answers(&ctx, &hidden, &arranged)?
        };
        let mut taught = Vec::new();
        for early in &early {
            let rows = |answer: &Answer<E>| match &answer.rows {
                Some(rows) => rows.to_vec(),
                None => (0..arranged.rows as u32).collect(),
            };
            taught.extend(exit::distance(&ctx, early, &answers, rows, input)?);
        }
        let pooled = mean_over_tokens(&ctx, &hidden, arranged.main.lengths.as_deref())?;
        let pooled = arranged.restore(pooled.reshape([arranged.rows, self.config.base.width])?)?;
        let mut output = ModelOutput::with_answers(answers).with_representation("hidden", pooled);
        if let Some(router) = routing::representation(&ctx, &routings, arranged.rows)? {
            output = output.with_representation("router", arranged.restore(router)?);
        }
        for term in taught {
            let weight = exit.map_or(0.0, |exit| exit.weight);
            output = output.with_loss("early_exit", weight, term);
        }
        if let Some(mixture) = mixture {
            output = routing::report_mixture(output, mixture);
        }
        match &self.config.moe {
            Some(experts) => routing::report(output, &routings, &experts.moe.router.balance),
            None => Ok(output),
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

impl<E: Element> Module<E> for Specialformer<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("embedding", &self.embedding);
        if let Some(input) = &self.input {
            visitor.module("input", input);
        }
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

    fn after_step(&self, counters: &[f64]) -> Result<(), BoxError> {
        Ok(self.update_balance(counters)?)
    }
}
