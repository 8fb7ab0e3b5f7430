//! [`RoutedModel`]: a model with experts, and its tokenizer.

use std::path::Path;
use std::sync::Arc;

use specialformer_checkpoint as checkpoint;
use specialformer_checkpoint::TensorWriter;
use specialformer_moe::MoeFeedForward;
use specialformer_nn::{Ctx, NamedParameters, TaskRows};
use specialformer_routing::{LayerShape, RoutingTrace};
use specialformer_tensor::Var;
use specialformer_train::{Batch, HeldOut, IGNORE, Rows};

use crate::config::ModelConfig;
use crate::data::{DataConfig, ModelTokenizer, Tokenizer};
use crate::error::{Error, Result};
use crate::families::TextFiles;
use crate::families::{PublishedModel, TextInput};
use crate::generate::{Flow, GenerateConfig, TextModel, generate};
use crate::logits::largest;
use crate::models::{Model, Outputs, Specialformer, Tokens};
use crate::run::{HeldOutRows, RunConfig, TASKS_FILE, load};

/// A model with experts: a run of this workspace or a published folder.
///
/// ```no_run
/// use specialformer::routing_trace::RoutedModel;
/// let model = RoutedModel::open("runs/moe-lm".as_ref())?;
/// let tokens = model.encode("It was the best of times")?;
/// let trace = model.trace(&tokens)?;
/// println!("{} layers with experts", trace.layers.len());
/// # Ok::<(), specialformer::Error>(())
/// ```
pub struct RoutedModel {
    name: String,
    kind: Kind,
    tokenizer: Option<Arc<dyn Tokenizer>>,
}

enum Kind {
    Run(Box<(RunConfig, Specialformer)>),
    Published(Box<PublishedModel>),
}

impl std::fmt::Debug for RoutedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoutedModel").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RoutedModel {
    /// Opens a run folder or a pretrained model.
    ///
    /// # Errors
    /// [`Error::Data`] if the model is dense; what is wrong with its files.
    pub fn open(path: &Path) -> Result<Self> {
        if path.join("config.toml").is_file() {
            let (config, model) = load(path)?;
            return Self::of_run(config, model);
        }
        if path.is_dir() && !path.join("config.json").is_file() || !path.exists() {
            let reason = match path.exists() {
                true => "holds neither config.toml, as a run does, nor config.json",
                false => "there is no such file or folder",
            };
            let place = path.display().to_string();
            return Err(Error::Data { place, reason: reason.into() });
        }
        let model = PublishedModel::open(path)?;
        let has_tokenizer = !path.is_dir() || path.join("tokenizer.json").is_file();
        let files = has_tokenizer.then(|| TextFiles::open(path)).transpose()?;
        let tokenizer = files.map(|files| files.tokenizer().clone());
        Self::of_published(path.display().to_string(), model, tokenizer)
    }

    /// Of a run in memory.
    ///
    /// # Errors
    /// [`Error::Data`] if the model is dense.
    pub fn of_run(config: RunConfig, model: Model) -> Result<Self> {
        let name = config.name.clone();
        let tokenizer = match &config.data {
            DataConfig::Text(data) => Some(Arc::from(data.tokenizer.build()?)),
            _ => None,
        };
        let kind = match model {
            Model::Specialformer(model) => Kind::Run(Box::new((config, *model))),
            // Of a run that goes on with a pretrained model, that model is what
            // is traced and saved.
            Model::Published(model) => Kind::Published(model),
            _ => return Err(dense(name)),
        };
        Self { name, kind, tokenizer }.checked()
    }

    /// Of a pretrained model in memory.
    ///
    /// # Errors
    /// [`Error::Data`] if the model is dense.
    pub fn of_published(
        name: impl Into<String>,
        model: PublishedModel,
        tokenizer: Option<checkpoint::Tokenizer>,
    ) -> Result<Self> {
        let tokenizer = tokenizer
            .map(|tokenizer| Arc::new(PublishedTokenizer(tokenizer)) as Arc<dyn Tokenizer>);
        Self { name: name.into(), kind: Kind::Published(Box::new(model)), tokenizer }.checked()
    }

    fn checked(self) -> Result<Self> {
        match self.layers().is_empty() {
            true => Err(dense(self.name)),
            false => Ok(self),
        }
    }

    /// What errors and files call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run's configuration, if it is one.
    pub fn run_config(&self) -> Option<&RunConfig> {
        match &self.kind {
            Kind::Run(run) => Some(&run.0),
            Kind::Published(_) => None,
        }
    }

    /// Number of tokens that the model knows.
    pub(crate) fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Run(run) => run.1.config().base.vocabulary,
            Kind::Published(model) => model.vocabulary(),
        }
    }

    /// The layers with experts, in order.
    pub fn layers(&self) -> Vec<LayerShape> {
        let experts = |moe: &MoeFeedForward| moe.config().router.experts;
        match &self.kind {
            Kind::Run(run) => {
                let all = run.1.experts();
                all.into_iter().map(|(name, moe)| LayerShape::new(name, experts(moe))).collect()
            }
            Kind::Published(model) => {
                let all = model.experts();
                let shape = |(i, moe)| LayerShape::new(format!("blocks.{i}"), experts(moe));
                all.into_iter().map(shape).collect()
            }
        }
    }

    /// Experts that a token goes to, by layer.
    pub fn top_k(&self) -> Vec<usize> {
        self.each_moe(|moe| moe.config().router.top_k)
    }

    /// Bytes of all experts' weights.
    pub fn expert_bytes(&self) -> usize {
        let parameters = |moe: &MoeFeedForward| match (moe.experts(), moe.apart()) {
            (Some(bank), _) => NamedParameters::of(bank).count(),
            (None, Some(apart)) => NamedParameters::of(apart).count(),
            (None, None) => 0,
        };
        self.each_moe(parameters).into_iter().sum::<usize>() * size_of::<f32>()
    }

    fn each_moe<T>(&self, of: impl Fn(&MoeFeedForward) -> T) -> Vec<T> {
        match &self.kind {
            Kind::Run(run) => run.1.experts().into_iter().map(|(_, moe)| of(moe)).collect(),
            Kind::Published(model) => model.experts().into_iter().map(|(_, moe)| of(moe)).collect(),
        }
    }

    /// A number that tells models apart: a hash of all routers' weights.
    pub fn fingerprint(&self) -> String {
        let hashes = self.each_moe(|moe| {
            let mut hash = 0u64;
            for (_, parameter) in NamedParameters::of(moe.router()).iter() {
                let value = parameter.value();
                let bytes: Vec<u8> =
                    value.as_slice().iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
                hash = hash.rotate_left(7) ^ crate::data::hash_bytes(&bytes);
            }
            hash
        });
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        format!("{:016x}", crate::data::hash_bytes(&bytes))
    }

    /// The longest text.
    pub fn window(&self) -> Option<usize> {
        match &self.kind {
            Kind::Run(run) => Some(run.1.config().base.window),
            Kind::Published(model) => model.window(),
        }
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`Error::Data`] if the model has no tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let fail = |reason: String| Error::Data { place: self.name.clone(), reason };
        let Some(tokenizer) = &self.tokenizer else {
            return Err(fail("has no tokenizer: give prompts as `tokens`".into()));
        };
        let mut tokens = Vec::new();
        tokenizer.encode(text.as_bytes(), &mut tokens).map_err(|e| fail(e.to_string()))?;
        Ok(tokens)
    }

    /// What each token stands for, for showing; its number without a
    /// tokenizer.
    pub fn pieces(&self, tokens: &[u32]) -> Vec<String> {
        let piece = |&token: &u32| match &self.tokenizer {
            Some(tokenizer) => String::from_utf8_lossy(&tokenizer.decode(&[token])).into_owned(),
            None => format!("{token} "),
        };
        tokens.iter().map(piece).collect()
    }

    /// Where the tokens of a text go.
    ///
    /// # Errors
    /// If the tokens do not fit the model.
    pub fn trace(&self, tokens: &[u32]) -> Result<RoutingTrace> {
        match &self.kind {
            Kind::Run(run) => {
                let batch = rows_of(&run.1, tokens, tokens.len())?;
                run.1.trace(&Ctx::eval(), &batch.all())
            }
            Kind::Published(model) => {
                let input = TextInput::new(Tokens::new(tokens, 1)?);
                let states = model.states(&Ctx::eval(), &input)?;
                let layers = states.routings.iter();
                let layers = layers.map(|(i, routing)| routing.trace(format!("blocks.{i}"), &[]));
                Ok(RoutingTrace { layers: layers.collect::<Result<_, _>>()? })
            }
        }
    }

    /// The last hidden states of a text [1, T, C]: what [`trace`](Self::trace)
    /// computes besides.
    ///
    /// # Errors
    /// If the tokens do not fit the model.
    pub fn hidden(&self, tokens: &[u32]) -> Result<Var> {
        match &self.kind {
            Kind::Run(run) => {
                let batch = rows_of(&run.1, tokens, tokens.len())?;
                Ok(run.1.states(&Ctx::eval(), &batch.all())?.hidden)
            }
            Kind::Published(model) => {
                let input = TextInput::new(Tokens::new(tokens, 1)?);
                Ok(model.states(&Ctx::eval(), &input)?.hidden)
            }
        }
    }

    /// Where the tokens of rows go, of an own run.
    pub(crate) fn trace_rows(&self, rows: &Rows<'_>) -> Result<RoutingTrace> {
        match &self.kind {
            Kind::Run(run) => run.1.trace(&Ctx::eval(), rows),
            Kind::Published(_) => Err(Error::Data {
                place: self.name.clone(),
                reason: "a pretrained model has no held-out data: give prompts".into(),
            }),
        }
    }

    /// Logits of all positions of a text [1, T, V].
    ///
    /// # Errors
    /// If the tokens do not fit the model, or it is no language model.
    pub fn logits(&self, ctx: &Ctx, tokens: &[u32]) -> Result<Var> {
        let tokens = Tokens::new(tokens, 1)?;
        match &self.kind {
            Kind::Run(run) => run.1.logits(ctx, tokens, Outputs::All),
            Kind::Published(model) => model.logits(ctx, &TextInput::new(tokens)),
        }
    }

    /// The `count` most probable tokens after a text, each after those before
    /// it; fewer where the window ends.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn continue_text(&self, tokens: &[u32], count: usize) -> Result<Vec<u32>> {
        let room = self.window().map_or(count, |window| window.saturating_sub(tokens.len()));
        let count = count.min(room);
        match (&self.kind, self.as_model()) {
            (Kind::Published(model), _) => {
                greedy(&**model, tokens, GenerateConfig::new(count).stopping_as(model))
            }
            (_, Some(model)) if model.new_cache::<f32>(1).is_ok() => {
                greedy(&model, tokens, GenerateConfig::new(count))
            }
            // Of models whose texts have no cache, all is read again each time.
            (Kind::Run(run), _) => {
                let mut text = tokens.to_vec();
                for _ in 0..count {
                    let logits =
                        run.1.logits(&Ctx::eval(), Tokens::new(&text, 1)?, Outputs::Last)?;
                    text.push(largest(logits.value().as_slice()) as u32);
                }
                Ok(text.split_off(tokens.len()))
            }
        }
    }

    /// The held-out texts of a run, each with its task's name.
    ///
    /// # Errors
    /// [`Error::Data`] if the model is no run on text, or its data has no such
    /// set.
    pub fn held_out_texts(&self, set: HeldOut, size: usize) -> Result<Vec<(String, Vec<u32>)>> {
        let fail = |reason: &str| Error::Data { place: self.name.clone(), reason: reason.into() };
        let config = self.run_config().filter(|c| matches!(c.data, DataConfig::Text(_)));
        let config = config.ok_or_else(|| fail("has no held-out texts: give prompts"))?;
        let rows = HeldOutRows::of(config, set, size)?;
        let rows = rows.ok_or_else(|| fail("the data has no such set"))?;
        let text = |number: usize| {
            let row = rows.row(number);
            let length = row.lengths().map_or(row.tokens().len(), |all| all[0] as usize);
            let task = row.task_ids().map_or(0, |ids| ids[0] as usize);
            (rows.tasks[task].clone(), row.tokens()[..length].to_vec())
        };
        Ok((0..rows.rows()).map(text).filter(|(_, tokens)| tokens.len() > 1).collect())
    }

    /// The model with other experts in its layers; see
    /// [`Specialformer::map_experts`].
    ///
    /// # Errors
    /// Those of `make`.
    pub fn map_experts(
        &self,
        make: impl FnMut(usize, &MoeFeedForward) -> Result<MoeFeedForward>,
    ) -> Result<Self> {
        let kind = match &self.kind {
            Kind::Run(run) => {
                let model = run.1.map_experts(make)?;
                let mut config = run.0.clone();
                config.model = ModelConfig::Specialformer(Box::new(model.config().clone()));
                Kind::Run(Box::new((config, model)))
            }
            Kind::Published(model) => Kind::Published(Box::new(model.map_experts(make)?)),
        };
        Ok(Self { name: self.name.clone(), kind, tokenizer: self.tokenizer.clone() })
    }

    /// A model of the crate's other functions that shares this one's weights;
    /// `None` for a published one.
    pub fn as_model(&self) -> Option<Model> {
        match &self.kind {
            Kind::Run(run) => Some(Model::Specialformer(Box::new(run.1.clone()))),
            Kind::Published(_) => None,
        }
    }

    /// Saves the model where there is nothing yet: a run folder with
    /// configuration and weights, or a published folder; `source` is where it
    /// was opened.
    ///
    /// # Errors
    /// [`Error::Config`] if layers have different numbers of experts, which the
    /// files cannot say; if a file cannot be written.
    pub fn save(&self, folder: &Path, source: &Path) -> Result<()> {
        let sizes: Vec<usize> = self.layers().iter().map(|layer| layer.experts).collect();
        if sizes.iter().any(|&size| size != sizes[0]) {
            let reason = "all layers must have one number of experts to be saved";
            return Err(Error::config("save", "experts", format!("{sizes:?}"), reason));
        }
        let io = |source| Error::Io { path: folder.display().to_string(), source };
        if folder.exists() && std::fs::read_dir(folder).map_err(io)?.next().is_some() {
            let reason = "the folder is there and not empty";
            return Err(Error::config("save", "out", folder.display(), reason));
        }
        match &self.kind {
            Kind::Published(model) => {
                let biased = |moe: &MoeFeedForward| moe.config().router.bias;
                if self.each_moe(biased).contains(&true) {
                    let reason = "published folders have no router bias; only own runs do";
                    return Err(Error::config("save", "router.bias", true, reason));
                }
                model.save(folder)
            }
            Kind::Run(run) => {
                std::fs::create_dir_all(folder).map_err(io)?;
                let mut writer = TensorWriter::new();
                for (name, parameter) in NamedParameters::of(&run.1).iter() {
                    writer.tensor(name, &parameter.value())?;
                }
                writer.save(folder.join("model.safetensors"))?;
                let tasks = source.join(TASKS_FILE);
                if tasks.is_file() {
                    std::fs::copy(&tasks, folder.join(TASKS_FILE)).map_err(io)?;
                }
                // Last: with it the folder is a run.
                let text = run.0.to_toml()?;
                let path = folder.join("config.toml");
                Ok(checkpoint::atomic_write(path, |file| file.write_all(text.as_bytes()))?)
            }
        }
    }
}

/// Continues one text.
fn greedy(model: &impl TextModel, text: &[u32], config: GenerateConfig) -> Result<Vec<u32>> {
    let mut made = generate::<f32, f32>(model, &[text.to_vec()], &config, |_, _| Flow::Continue)?;
    Ok(made.remove(0).tokens)
}

fn dense(place: String) -> Error {
    Error::Data { place, reason: "the model has no experts: nothing is routed".into() }
}

/// One row of tokens without a task.
fn rows_of(model: &Specialformer, tokens: &[u32], targets: usize) -> Result<Batch> {
    let mut batch = Batch::from_vecs(1, tokens.to_vec(), vec![IGNORE; targets])?;
    if !model.config().tasks.is_empty() {
        batch.task_ids_mut().fill(TaskRows::NONE);
    }
    Ok(batch)
}

/// A published tokenizer, which need not have a token that ends a text.
struct PublishedTokenizer(checkpoint::Tokenizer);

impl Tokenizer for PublishedTokenizer {
    fn vocabulary(&self) -> usize {
        self.0.vocab_size()
    }

    fn eos(&self) -> u32 {
        ModelTokenizer::new(self.0.clone(), &[]).map_or(0, |tokenizer| tokenizer.eos())
    }

    fn encode(
        &self,
        text: &[u8],
        tokens: &mut Vec<u32>,
    ) -> Result<(), specialformer_train::BoxError> {
        tokens.extend(self.0.encode(std::str::from_utf8(text)?, true)?);
        Ok(())
    }

    fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        self.0.decode(tokens, false).unwrap_or_default().into_bytes()
    }
}
