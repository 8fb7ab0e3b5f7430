//! Arguments of the commands for pretrained models.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::adapt::TurnStrategy;
use super::{CommonArgs, model_path};

/// How weights are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// In single precision.
    F32,
    /// As the file stores them, at 16 bits or in quantised blocks; a few rows
    /// at a time are multiplied by blocks in integers.
    Quantized,
    /// As the file stores them; products in single precision.
    QuantizedExact,
}

/// Which model, and how it is opened.
#[derive(Debug, Args, Clone)]
pub(crate) struct ModelArgs {
    /// A model folder (config.json and safetensors), a .gguf file, or a run
    /// that was trained on text.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// How weights are kept (default: quantized for GGUF files, else f32).
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) weights: Option<Weights>,
    /// A folder with a LoRA adapter to put on the model.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Of a run with elastic blocks: use this share of the heads and hidden
    /// units, one of `model.dynamic.widths`.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) width: Option<f64>,
}

/// How the next token is chosen.
#[derive(Debug, Args, Clone)]
pub(crate) struct SamplingArgs {
    /// At most so many new tokens (default: 128; in `chat` 512).
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Logits are divided by this; 0 always takes the likeliest token (default:
    /// 0; in `chat` 0.7).
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Draw from the K likeliest tokens only; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Draw from the fewest tokens whose probabilities sum to P (default: 1; in
    /// `chat` 0.9).
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Make tokens that the text holds already less likely; 1 for not.
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f64,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// What a prompt is about.
#[derive(Debug, Args, Clone)]
pub(crate) struct PictureArgs {
    /// A PNG image that the prompt asks about, of a run on several modalities;
    /// may be given twice. Square, of the size that the model reads or a
    /// multiple of it; ink is light on dark.
    #[arg(long, value_name = "FILE.png")]
    pub(crate) image: Vec<PathBuf>,
    /// The images are dark on light.
    #[arg(long, requires = "image")]
    pub(crate) invert: bool,
    /// A series that the prompt asks about: numbers separated by commas.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_name = "NUMBERS")]
    pub(crate) series: Vec<f32>,
}

/// `specialformer generate`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer generate model.gguf --prompt 'Once upon a time'
  specialformer generate model/ --prompt 'What is a transformer?' --chat --max-tokens 200
  specialformer generate model/ --prompt 'Two' --prompt 'Three' --temperature 0.8 --seed 1
  specialformer generate model/ --prompt-file story.txt --json
  specialformer generate runs/mpt-combined --image seven.png --prompt 'which digit?'
  specialformer generate runs/mpt-combined --image 3.png --image 8.png --prompt 'what is the sum?'

The text is printed as it comes; with several prompts, when all are done.")]
pub(crate) struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text to continue; may be given several times.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file")]
    pub(crate) prompt: Vec<String>,
    /// A file with a text to continue; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// The prompt is a question, and the model's chat template is used.
    #[arg(long)]
    pub(crate) chat: bool,
    /// What the model is told before the question.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Of a run with several tasks: the texts are of this one, with its
    /// adapters and head (default: of none).
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Go on after tokens that end a text.
    #[arg(long)]
    pub(crate) no_stop: bool,
    /// What the prompt is about.
    #[command(flatten)]
    pub(crate) picture: PictureArgs,
    /// Sampling.
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer chat`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Lines that begin with a slash are commands: /reset forgets the conversation,
/system TEXT also changes what the model is told before it, /help lists them,
/exit ends, as does the end of the input. Ctrl-C ends an answer.")]
pub(crate) struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A folder of experts of `svf train`: before each answer the task is found
    /// out anew, and the expert for it applied. Weights are then in single
    /// precision, and an adapter is folded into them.
    #[arg(long, value_name = "DIR")]
    pub(crate) experts: Option<PathBuf>,
    /// How experts are chosen (default: `classifier-expert` if the folder holds
    /// that expert, else `classifier`).
    #[arg(long, value_enum, value_name = "NAME", requires = "experts")]
    pub(crate) strategy: Option<TurnStrategy>,
    /// Sampling.
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer perplexity`.
#[derive(Debug, Args, Clone)]
pub(crate) struct PerplexityArgs {
    /// The model.
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The text; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Tokens that are read together (default: the model's window, at most
    /// 1024).
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Read token by token, as when generating: with quantised weights, the
    /// perplexity of their integer products.
    #[arg(long)]
    pub(crate) decode: bool,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer inspect`.
#[derive(Debug, Args, Clone)]
pub(crate) struct InspectArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// The form that a model is saved in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// A folder in single precision.
    F32,
    /// A folder in half precision.
    F16,
    /// A folder in bfloat16.
    Bf16,
    /// A GGUF file in single precision.
    GgufF32,
    /// A GGUF file in half precision.
    GgufF16,
    /// A GGUF file whose matrices are in blocks of 8-bit integers.
    GgufQ8_0,
}

impl Target {
    /// True if it is one file.
    pub(crate) fn is_gguf(self) -> bool {
        matches!(self, Self::GgufF32 | Self::GgufF16 | Self::GgufQ8_0)
    }
}

/// `specialformer convert`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer convert model.gguf --to f32 --out model/
  specialformer convert model/ --to gguf-q8-0 --out model-q8_0.gguf
  specialformer convert model/ --adapter lora/ --to bf16 --out merged/")]
pub(crate) struct ConvertArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The form.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) to: Target,
    /// The folder or file to make.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// A folder with a LoRA adapter to merge into the weights.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer tokenize`.
#[derive(Debug, Args, Clone)]
pub(crate) struct TokenizeArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The text; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The file is a JSON list of messages, each with `role` and `content`:
    /// the model's chat template makes the text.
    #[arg(long)]
    pub(crate) messages: bool,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
