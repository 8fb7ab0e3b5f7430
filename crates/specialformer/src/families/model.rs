//! [`PublishedModel`]: a model of one of the published families.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use specialformer_attention::{CacheElement, Queries};
use specialformer_checkpoint::{HfConfig, ModelFamily};
use specialformer_moe::MoeFeedForward;
use specialformer_nn::{
    Activation, Ctx, Embedding, Linear, Module, Norm, NormKind, ParameterVisitor, Weight,
};
use specialformer_routing::{BalanceTerm, Routing, balance};
use specialformer_tensor::{Element, RngStream, Seed, Tensor, Var};
use specialformer_train::{BoxError, ModelOutput, Rows};

use super::architecture::{Architecture, HeadKind};
use super::input::{Source, TextInput, TextStates};
use crate::config::StackConfig;
use crate::error::{Error, Result};
use crate::generate::{TextCache, TextModel};
use crate::models::{Memory, Stack, StackInput, Tokens};

/// Start values of embeddings.
const EMBEDDING_STD: f64 = 0.02;

/// A model of one of the published families, of the same blocks as every other
/// model: embedding → stack of blocks → head, with an encoder before it in T5.
///
/// Parameters: `embedding`, `token_types`, `embedding_norm`, then `blocks`,
/// `positions` and `norm` of the stack (of `encoder` and `decoder` in T5),
/// `pooler`, `head`. [`published_name`](Self::published_name) tells what files
/// call them.
///
/// # Shapes
/// Tokens [B, T] → hidden states [B, T, C] → logits [B, T, V].
#[derive(Debug, Clone)]
pub struct PublishedModel<E: Element = f32> {
    pub(super) config: HfConfig,
    pub(super) architecture: Architecture,
    embedding: Embedding<E>,
    token_types: Option<Embedding<E>>,
    embedding_norm: Option<Norm<E>>,
    encoder: Option<Stack<E>>,
    main: Stack<E>,
    pooler: Option<Linear<E>>,
    head: Option<Linear<E>>,
    /// Tensors of heads that are not run, saved as they came.
    pub(super) carried: BTreeMap<String, Tensor<f32>>,
    /// What stands before the names in the file.
    pub(super) prefix: &'static str,
    /// The folder or file it came from.
    pub(super) source: Option<PathBuf>,
}

fn fail<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Input { model: "pretrained model", what: what.into() })
}

impl<E: Element> PublishedModel<E> {
    /// A model of this configuration with start values drawn from `seed`.
    ///
    /// # Errors
    /// If the configuration is of a class or has a value that is not
    /// supported.
    pub fn new(config: &HfConfig, seed: Seed) -> Result<Self> {
        let bert = config.model_type == "bert";
        let pooler = bert && !config.architectures.iter().any(|class| class == "BertForMaskedLM");
        Self::build(config, pooler, &mut seed.stream("init"))
    }

    pub(super) fn build(config: &HfConfig, pooler: bool, rng: &mut RngStream) -> Result<Self> {
        let architecture = Architecture::of(config)?;
        let width = architecture.main.attention.width;
        let embedding = Embedding::new(architecture.vocabulary, width, EMBEDDING_STD, rng)?;
        let token_types = (architecture.token_types > 0)
            .then(|| Embedding::new(architecture.token_types, width, EMBEDDING_STD, rng))
            .transpose()?;
        let norm = |eps| Norm::new(NormKind::LayerNorm, width, eps);
        let embedding_norm = architecture.embedding_norm.map(norm).transpose()?;
        let encoder = architecture.encoder.clone();
        let encoder = encoder.map(|stack| Stack::new(stack, rng)).transpose()?;
        let main = Stack::new(architecture.main.clone(), rng)?;
        let pooler = pooler.then(|| Linear::new(width, width, true, rng)).transpose()?;
        let head = match architecture.head {
            HeadKind::None => None,
            HeadKind::Own => Some(Linear::new(width, architecture.vocabulary, false, rng)?),
            HeadKind::Tied => Some(Linear::from_weight(embedding.weight().clone(), None)?),
        };
        Ok(Self {
            config: config.clone(),
            architecture,
            embedding,
            token_types,
            embedding_norm,
            encoder,
            main,
            pooler,
            head,
            carried: BTreeMap::new(),
            prefix: "",
            source: None,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The longest text that the model reads; `None` if any.
    pub fn window(&self) -> Option<usize> {
        Some(self.main.config().window).filter(|&window| window != usize::MAX)
    }

    /// Size V of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.architecture.vocabulary
    }

    /// What its stacks of blocks are built from.
    pub(crate) fn stack_configs(&self) -> impl Iterator<Item = &StackConfig> {
        self.encoder.iter().chain([&self.main]).map(Stack::config)
    }

    /// True if the model has an encoder whose output its decoder reads.
    pub fn is_encoder_decoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// Whether training keeps only the input of each block for the backward
    /// pass and computes the rest again: memory for activations falls to that
    /// of one block, for one more forward pass. Gradients are the same bit for
    /// bit. Blocks with experts or cross-attention keep everything.
    pub fn set_recompute(&mut self, recompute: bool) {
        for stack in self.encoder.iter_mut().chain([&mut self.main]) {
            stack.set_recompute(recompute);
        }
    }

    /// What published files call a parameter, experts stacked.
    pub fn published_name(&self, ours: &str) -> Option<String> {
        self.architecture.naming.published(ours).map(|name| format!("{}{name}", self.prefix))
    }

    /// Gives the embedding, and with it a tied head, another weight.
    pub(super) fn set_embedding(&mut self, weight: Weight<E>) -> Result<()> {
        self.embedding = Embedding::from_weight(weight.clone())?;
        if self.architecture.head == HeadKind::Tied {
            self.head = Some(Linear::from_weight(weight, None)?);
        }
        Ok(())
    }

    pub(super) fn embedding(&self) -> &Embedding<E> {
        &self.embedding
    }

    /// The head, unless it is the embedding.
    pub(super) fn own_head_mut(&mut self) -> Option<&mut Linear<E>> {
        self.head.as_mut().filter(|_| self.architecture.head == HeadKind::Own)
    }

    /// The layers with experts, by the number of their block.
    pub fn experts(&self) -> Vec<(usize, &MoeFeedForward<E>)> {
        self.main.experts().collect()
    }

    /// The model with other experts in its layers: `make` is given the number
    /// of a layer in the order of [`experts`](Self::experts), and the layer.
    /// All else is shared with this model. The configuration follows where all
    /// layers are made alike; a folder can be saved only then.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn map_experts(
        &self,
        mut make: impl FnMut(usize, &MoeFeedForward<E>) -> Result<MoeFeedForward<E>>,
    ) -> Result<Self> {
        let mut model = self.clone();
        (model.main, _) = self.main.map_experts(0, &mut make)?;
        let sizes: Vec<(usize, usize)> = model
            .experts()
            .iter()
            .map(|(_, moe)| (moe.config().router.experts, moe.config().router.top_k))
            .collect();
        if let [first, rest @ ..] = sizes.as_slice()
            && rest.iter().all(|other| other == first)
        {
            let mut entries = self.config.entries.clone();
            let count = match entries.contains_key("num_local_experts") {
                true => "num_local_experts",
                false => "num_experts",
            };
            entries.insert(count.into(), first.0.into());
            entries.insert("num_experts_per_tok".into(), first.1.into());
            model.config = HfConfig::from_entries("config.json", entries)?;
            model.architecture = Architecture::of(&model.config)?;
        }
        Ok(model)
    }

    /// The folder it came from.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    pub(super) fn main_mut(&mut self) -> &mut Stack<E> {
        &mut self.main
    }

    pub(super) fn encoder_mut(&mut self) -> Option<&mut Stack<E>> {
        self.encoder.as_mut()
    }

    fn embed(
        &self,
        ctx: &Ctx<E>,
        stack: &Stack<E>,
        tokens: Tokens<'_>,
        types: Option<&[u32]>,
    ) -> Result<Var<E>> {
        let shape = [tokens.batch(), tokens.length()];
        stack.check_length("pretrained model", tokens.length())?;
        let _scope = ctx.scope("embedding");
        let mut x = self.embedding.forward(ctx, tokens.ids(), shape)?;
        match (&self.token_types, types) {
            (Some(table), Some(types)) => x = x.add(&table.forward(ctx, types, shape)?)?,
            (Some(table), None) => x = x.add(&table.forward(ctx, &[0usize], 1)?)?,
            (None, Some(_)) => return fail("this family has no token types"),
            (None, None) => {}
        }
        let mut x = stack.add_positions(ctx, x, None)?;
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(ctx, &x)?;
        }
        Ok(ctx.dropout(x, stack.config().dropout)?)
    }

    /// The last hidden states, and what else the model finds on its way.
    ///
    /// # Errors
    /// If a token or a length is out of range, or a source is missing or not
    /// wanted.
    pub fn states(&self, ctx: &Ctx<E>, input: &TextInput<'_>) -> Result<TextStates<E>> {
        let encoded = match (&self.encoder, input.source()) {
            (Some(encoder), Some(source)) => Some(self.encode(ctx, encoder, source)?),
            (None, None) => None,
            (Some(_), None) => return fail("an encoder-decoder needs a source to read"),
            (None, Some(_)) => return fail("a source is for an encoder-decoder"),
        };
        let _scope = self.encoder.is_some().then(|| ctx.scope("decoder"));
        let x = self.embed(ctx, &self.main, input.tokens(), input.token_types())?;
        let source_lengths = input.source().and_then(|source| source.lengths);
        let memory = encoded.as_ref().map(|states| Memory { states, lengths: source_lengths });
        let stack_input = StackInput {
            lengths: input.lengths(),
            memory,
            tokens: Some(input.tokens().ids()),
            ..StackInput::new(Queries::All)
        };
        let output = self.main.forward(ctx, x, &stack_input)?;
        let hidden = self.main.finish(ctx, &output.output)?;
        Ok(TextStates { hidden, encoder: encoded, routings: output.routings })
    }

    /// The token that an encoder-decoder's texts begin with.
    pub(crate) fn decoder_start(&self) -> Option<u32> {
        match &self.config.family {
            ModelFamily::T5(t5) => Some(t5.decoder_start_token_id),
            _ => None,
        }
    }

    /// What the encoder makes of a source [B, S, C].
    pub(crate) fn encoded(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        lengths: &[usize],
    ) -> Result<Var<E>> {
        match &self.encoder {
            Some(encoder) => self.encode(ctx, encoder, Source { tokens, lengths: Some(lengths) }),
            None => fail("the model has no encoder"),
        }
    }

    /// The last hidden states of texts beside an encoded source.
    pub(crate) fn decoded(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        states: &Var<E>,
        lengths: &[usize],
    ) -> Result<Var<E>> {
        let _scope = ctx.scope("decoder");
        let x = self.embed(ctx, &self.main, tokens, None)?;
        let memory = Some(Memory { states, lengths: Some(lengths) });
        let input = StackInput { memory, ..StackInput::new(Queries::All) };
        let output = self.main.forward(ctx, x, &input)?.output;
        self.main.finish(ctx, &output)
    }

    fn encode(&self, ctx: &Ctx<E>, encoder: &Stack<E>, source: Source<'_>) -> Result<Var<E>> {
        let _scope = ctx.scope("encoder");
        let x = self.embed(ctx, encoder, source.tokens, None)?;
        let input = StackInput { lengths: source.lengths, ..StackInput::new(Queries::All) };
        let output = encoder.forward(ctx, x, &input)?.output;
        encoder.finish(ctx, &output)
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// [..., C] → [..., V].
    ///
    /// # Errors
    /// If the model has no head, or the width differs.
    pub fn head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        let Some(head) = &self.head else {
            return fail(format!("`{}` has no language-model head", self.config.model_type));
        };
        let _scope = ctx.scope("head");
        match self.architecture.head_scale {
            Some(scale) => Ok(head.forward(ctx, &hidden.scale(E::from_f64(scale))?)?),
            None => Ok(head.forward(ctx, hidden)?),
        }
    }

    /// Logits of all positions [B, T, V].
    ///
    /// # Errors
    /// As [`states`](Self::states) and [`head`](Self::head).
    pub fn logits(&self, ctx: &Ctx<E>, input: &TextInput<'_>) -> Result<Var<E>> {
        self.head(ctx, &self.states(ctx, input)?.hidden)
    }

    /// BERT's pooled output: tanh of a linear layer of the first position.
    ///
    /// # Shapes
    /// [B, T, C] → [B, C].
    ///
    /// # Errors
    /// If the model has no pooler.
    pub fn pooled(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        let Some(pooler) = &self.pooler else {
            return fail("the model has no pooler");
        };
        let shape = hidden.shape();
        let first = hidden.slice(1, 0..1)?.reshape([shape[0], shape[2]])?;
        Ok(Activation::Tanh.apply(&pooler.forward(ctx, &first)?)?)
    }

    /// The loss that balances experts in training, with its weight; `None`
    /// without experts.
    ///
    /// # Errors
    /// If the routings are not of one model.
    pub fn balance_loss(&self, routings: &[(usize, Routing<E>)]) -> Result<Option<BalanceTerm<E>>> {
        match &self.architecture.balance {
            Some(config) => {
                Ok(balance::pooled(config, routings.iter().map(|(_, routing)| routing))?)
            }
            None => Ok(None),
        }
    }
}

impl<E: Element> TextModel<E> for PublishedModel<E> {
    fn vocabulary(&self) -> usize {
        self.architecture.vocabulary
    }

    fn window(&self) -> Option<usize> {
        PublishedModel::window(self)
    }

    fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<TextCache<S>> {
        Ok(TextCache::new(self.main.new_caches(rows)?))
    }

    fn states_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>> {
        let shape = [tokens.batch(), tokens.length()];
        let x = self.embedding.forward(ctx, tokens.ids(), shape)?;
        self.main.continue_texts("pretrained model", ctx, x, tokens, counts, cache)
    }

    fn head(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        PublishedModel::head(self, ctx, hidden)
    }
}

impl<E: Element> Module<E> for PublishedModel<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("embedding", &self.embedding);
        if let Some(types) = &self.token_types {
            visitor.module("token_types", types);
        }
        if let Some(norm) = &self.embedding_norm {
            visitor.module("embedding_norm", norm);
        }
        match &self.encoder {
            Some(encoder) => {
                visitor.module("encoder", encoder);
                visitor.module("decoder", &self.main);
            }
            None => self.main.visit(visitor),
        }
        if let Some(pooler) = &self.pooler {
            visitor.module("pooler", pooler);
        }
        if let Some(head) = &self.head {
            visitor.module("head", head);
        }
    }
}

impl<E: Element> specialformer_train::Model<E> for PublishedModel<E> {
    fn forward(&self, ctx: &Ctx<E>, rows: &Rows<'_>) -> Result<ModelOutput<E>, BoxError> {
        let usize_of = |all: &[u32]| all.iter().map(|&n| n as usize).collect::<Vec<_>>();
        let lengths = rows.lengths().map(usize_of);
        let source_lengths = rows.source_lengths().map(usize_of);
        let mut input = TextInput::new(Tokens::new(rows.tokens(), rows.rows())?);
        if let Some(lengths) = &lengths {
            input = input.with_lengths(lengths)?;
        }
        if let Some(source) = rows.source() {
            let tokens = Tokens::new(source, rows.rows())?;
            input = input.with_source(tokens, source_lengths.as_deref())?;
        }
        let states = self.states(ctx, &input)?;
        let mut hidden = states.hidden;
        if rows.positions() == 1 && rows.length() > 1 {
            hidden = last_of_rows(&hidden, lengths.as_deref())?;
        }
        let output = ModelOutput::new(self.head(ctx, &hidden)?);
        Ok(match self.balance_loss(&states.routings)? {
            Some(term) => output.with_loss(term.name, term.weight, term.value),
            None => output,
        })
    }
}

/// The state of each row's last token: [B, T, C] → [B, 1, C].
pub(crate) fn last_of_rows<E: Element>(
    hidden: &Var<E>,
    lengths: Option<&[usize]>,
) -> Result<Var<E>> {
    let shape = hidden.shape();
    let (rows, length) = (shape[0], shape[1]);
    let Some(lengths) = lengths else {
        return Ok(hidden.slice(1, length - 1..length)?);
    };
    let last = lengths.iter().enumerate().map(|(row, &n)| row * length + n.max(1) - 1);
    let last: Vec<usize> = last.collect();
    Ok(hidden.reshape([rows * length, shape[2]])?.embedding(&last, [rows, 1])?)
}
