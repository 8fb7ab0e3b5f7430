//! The Specialformer: a transformer that specialises by task.

mod arrange;
mod exit;
mod heads;
mod input;
mod policy;
mod reading;
mod routing;
mod streams;
mod text;

use specialformer_moe::MoeFeedForward;
use specialformer_nn::{Ctx, Module, NamedParameters, ParameterVisitor};
use specialformer_routing::{Keep, LoadSurplus, Routing, RoutingTrace};
use specialformer_tensor::{Element, RngStream, Var};
use specialformer_train::{BoxError, ModelOutput, Rows};

use self::arrange::Arranged;
use self::heads::{Heads, mean_over_tokens};
use self::input::TaskVectors;
use self::reading::{Reading, Routings};
use self::routing::LayerRouting;
use self::streams::{StreamLayers, TokenLayer};
use super::between::Between;
use super::block::Memory;
use super::stack::{Probe, Stack};
use super::transformer::EMBEDDING_STD;
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

    /// The stack that is answered from, for giving its matrices other weights.
    pub(crate) fn main_stack_mut(&mut self) -> &mut Stack<E> {
        &mut self.main
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
        // A model without tasks of its own still reads rows of the data's.
        let tasks = match &pass.arranged.tasks {
            Some(tasks) => Some(tasks.ids()),
            None => input.task_ids(),
        };
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

    /// Moves the biases that balance experts, given the
    /// [surplus](LoadSurplus::values) of a step's loads, layer by layer.
    ///
    /// # Errors
    /// If there are not as many values as experts.
    pub fn update_balance(&self, surplus: &[f64]) -> Result<()> {
        let experts = self.experts();
        let total: usize = experts.iter().map(|(_, moe)| moe.config().router.experts).sum();
        if surplus.len() != total {
            let what = format!("{} loads for {total} experts", surplus.len());
            return Err(Error::Input { model: "specialformer", what });
        }
        let mut rest = surplus;
        for (_, moe) in experts {
            let (own, others) = rest.split_at(moe.config().router.experts);
            moe.router().update_balance(&LoadSurplus::from_values(own))?;
            rest = others;
        }
        Ok(())
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
            taught.extend(exit::distance(&ctx, early, &answers, input)?);
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
        if let (Some(mixture), TokenLayer::Mixture(layer)) = (&mixture, &self.embedding) {
            output = routing::report_mixture(output, mixture, &layer.config().router.balance)?;
        }
        match &self.config.moe {
            Some(experts) => routing::report(output, &routings, &experts.moe.router.balance),
            None => Ok(output),
        }
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
