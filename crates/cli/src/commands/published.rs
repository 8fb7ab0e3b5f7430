//! What the commands for pretrained models have in common.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use specialformer::RunConfig;
use specialformer::checkpoint::{LoraFolder, TokenStream};
use specialformer::data::TokenizerKind;
use specialformer::families::{PublishedModel, TextFiles};
use specialformer::generate::{Finish, Flow, GenerateConfig, Sampling};
use specialformer::prelude::{DataConfig, Model, Seed};
use specialformer::tensor::quantized::Precision;

use crate::args::text::{ModelArgs, SamplingArgs, Weights};
use crate::failure::Failure;
use crate::{interrupt, memory, terminal};

/// A model with what reads and writes its text.
pub(crate) struct Opened {
    pub(crate) model: Model,
    pub(crate) files: TextFiles,
}

/// Opens both.
pub(crate) fn open(args: &ModelArgs) -> Result<Opened, Failure> {
    if args.model.join("config.toml").is_file() {
        return open_run(args);
    }
    if args.width.is_some() {
        let what = "is no run: --width is for runs with elastic blocks";
        return Err(Failure::input(format!("{}: {what}", args.model.display())));
    }
    check_path(&args.model)?;
    memory::give_back_sooner();
    let files = TextFiles::open(&args.model)?;
    // A tokenizer leaves much behind when it is made.
    memory::give_back();
    let model = open_published(args)?;
    Ok(Opened { model: Model::Published(Box::new(model)), files })
}

/// Opens a model whose matrices experts can scale: they are of single
/// precision, and an adapter is folded into them.
pub(crate) fn open_for_experts(args: &ModelArgs) -> Result<(PublishedModel, TextFiles), Failure> {
    let name = args.model.display();
    if args.weights.is_some_and(|weights| weights != Weights::F32) {
        let what = "experts scale matrices in single precision: leave --weights out";
        return Err(Failure::input(format!("{name}: {what}")));
    }
    let args = ModelArgs { weights: Some(Weights::F32), ..args.clone() };
    let Opened { model, files } = open(&args)?;
    let Model::Published(mut model) = model else {
        return Err(Failure::input(format!("{name}: experts are for pretrained models")));
    };
    if args.adapter.is_some() {
        model.merge_adapters()?;
    }
    Ok((*model, files))
}

/// A run's configuration and model, at a share of its width.
pub(crate) fn load_at(run: &Path, width: Option<f64>) -> Result<(RunConfig, Model), Failure> {
    let (mut config, mut model) = specialformer::load(run)?;
    if let Some(share) = width {
        (config.model, model) = specialformer::at_width(&model, &config.model, share)?;
    }
    Ok((config, model))
}

/// A run that was trained on text.
fn open_run(args: &ModelArgs) -> Result<Opened, Failure> {
    let name = args.model.display();
    if args.weights.is_some_and(|weights| weights != Weights::F32) {
        return Err(Failure::input(format!("{name}: a run's weights are in single precision")));
    }
    let (config, mut model) = load_at(&args.model, args.width)?;
    let DataConfig::Text(data) = &config.data else {
        return Err(Failure::input(format!("{name}: the run was not trained on text")));
    };
    let files = match &data.tokenizer {
        TokenizerKind::Bytes => TextFiles::bytes(),
        TokenizerKind::Model(path) | TokenizerKind::File { path, .. } => TextFiles::open(path)?,
    };
    if let Some(adapter) = &args.adapter {
        let Model::Published(model) = &mut model else {
            return Err(Failure::input("--adapter is for pretrained models"));
        };
        model.apply_lora(&lora(adapter)?)?;
    }
    Ok(Opened { model, files })
}

fn lora(path: &Path) -> Result<LoraFolder, Failure> {
    LoraFolder::open(path).map_err(|e| Failure::input(e.to_string()))
}

fn open_published(args: &ModelArgs) -> Result<PublishedModel, Failure> {
    let path = &args.model;
    let weights = args.weights.unwrap_or(match path.is_dir() {
        true => Weights::F32,
        false => Weights::Quantized,
    });
    let mut model = match weights {
        Weights::F32 => PublishedModel::open(path)?,
        Weights::Quantized => PublishedModel::open_stored(path, Precision::Fast)?,
        Weights::QuantizedExact => PublishedModel::open_stored(path, Precision::Exact)?,
    };
    if let Some(adapter) = &args.adapter {
        model.apply_lora(&lora(adapter)?)?;
    }
    Ok(model)
}

/// True if a path's name is a GGUF file's: how commands tell files from folders.
pub(crate) fn is_named_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf"))
}

/// Says at once what is not a model at all.
pub(crate) fn check_path(path: &Path) -> Result<(), Failure> {
    let name = path.display();
    if !path.exists() {
        return Err(Failure::input(format!("{name}: there is no such file or folder")));
    }
    if path.is_dir() && !path.join("config.json").is_file() {
        let what = "holds no config.json: a model is a folder with one, or a .gguf file";
        return Err(Failure::input(format!("{name}: {what}")));
    }
    if path.is_file() && !is_named_gguf(path) {
        let what = "is no .gguf file: of other formats, name the folder with config.json";
        return Err(Failure::input(format!("{name}: {what}")));
    }
    Ok(())
}

/// The settings of an answer of up to `most` tokens, at this temperature and
/// top-p where nothing else is said.
pub(crate) fn settings(
    args: &SamplingArgs,
    files: &TextFiles,
    (most, temperature, top_p): (usize, f64, f64),
) -> Result<GenerateConfig, Failure> {
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(temperature),
        top_k: args.top_k,
        top_p: args.top_p.unwrap_or(top_p),
        repetition_penalty: args.repetition_penalty,
    };
    sampling.validate()?;
    Ok(GenerateConfig {
        sampling,
        max_tokens: args.max_tokens.unwrap_or(most),
        stop_tokens: files.stop_tokens().to_vec(),
        seed: Seed::new(args.seed),
        tasks: Vec::new(),
    })
}

/// Prints a text as it is made, or not until it is whole.
pub(crate) struct Live {
    stream: Option<TokenStream>,
    shown: Result<(), Failure>,
}

impl Live {
    /// Prints what tokens of these files stand for, if `wanted`.
    pub(crate) fn new(files: &TextFiles, wanted: bool) -> Self {
        Self { stream: wanted.then(|| files.tokenizer().stream(true)), shown: Ok(()) }
    }

    /// Shows one more token, and whether to go on: not where somebody
    /// interrupted, or nobody can read on.
    pub(crate) fn push(&mut self, token: u32) -> Flow {
        if let (Some(stream), Ok(())) = (&mut self.stream, &self.shown) {
            let piece = stream.push(token).map_err(|error| Failure::work(error.to_string()));
            self.shown = piece.and_then(|piece| Ok(terminal::show(&piece)?));
        }
        match interrupt::requested() || self.shown.is_err() {
            true => Flow::Cancel,
            false => Flow::Continue,
        }
    }

    /// Ends the line, if there is one.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.shown?;
        match self.stream {
            Some(stream) => {
                Ok(terminal::show(&format!("{}\n", stream.finish().unwrap_or_default()))?)
            }
            None => Ok(()),
        }
    }
}

/// Why a text ends, as results have it.
pub(crate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::MaxTokens => "max-tokens",
        Finish::Window => "window",
        _ => "cancelled",
    }
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().read_to_string(&mut text);
        read.map_err(|e| Failure::input(format!("standard input: {e}")))?;
        return Ok(text);
    }
    fs::read_to_string(path).map_err(|e| Failure::input(format!("{}: {e}", path.display())))
}
