//! Arguments of `specialformer svf`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::text::Target;
use super::{CommonArgs, model_path};

/// What `--rank` and `--kl` are where they are not given.
pub(crate) const RANK: usize = 16;
pub(crate) const KL: f64 = 0.05;

/// `specialformer svf`.
#[derive(Debug, Subcommand)]
pub(crate) enum SvfCommand {
    /// Decompose a model's matrices and keep the factors for later.
    Decompose(DecomposeArgs),
    /// Train an expert (or LoRA, the last layer, all weights) on a task.
    Train(Box<TrainArgs>),
    /// Adapt a run of several modalities to other tasks, by z alone.
    Run(RunArgs),
    /// Score the base and experts on tasks, and on a text.
    Eval(EvalArgs),
    /// Fold an expert into the model, for other tools.
    Merge(MergeArgs),
    /// Combine experts into one.
    Mix(MixArgs),
    /// What is in an expert's file.
    Info(InfoArgs),
}

impl SvfCommand {
    pub(crate) fn common(&self) -> &CommonArgs {
        match self {
            Self::Decompose(args) => &args.common,
            Self::Train(args) => &args.common,
            Self::Run(args) => &args.common,
            Self::Eval(args) => &args.common,
            Self::Merge(args) => &args.common,
            Self::Mix(args) => &args.common,
            Self::Info(args) => &args.common,
        }
    }
}

/// Where factors are kept.
#[derive(Debug, Args, Clone)]
pub(crate) struct CacheArgs {
    /// Folder of decomposed matrices (default: specialformer/svd in the user's
    /// cache folder). What is there is not computed again.
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    pub(crate) cache: Option<PathBuf>,
    /// Keep no factors on the disk.
    #[arg(long)]
    pub(crate) no_cache: bool,
}

/// `specialformer svf decompose`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer svf decompose MODEL
  specialformer svf decompose MODEL --matrices attention
  specialformer svf decompose MODEL --matrices '*.down_proj.weight' --energy 0.99")]
pub(crate) struct DecomposeArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// `mlp`, `attention`, `both`, or patterns of names, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "mlp")]
    pub(crate) matrices: Vec<String>,
    /// Say how many singular values hold this share of Σσ², and the error of
    /// keeping no more.
    #[arg(long, value_name = "SHARE")]
    pub(crate) energy: Option<f64>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodName {
    /// A factor for each singular value.
    Svf,
    /// Low-rank changes, saved as a PEFT folder.
    Lora,
    /// The last block and norm, saved as a model folder.
    LastLayer,
    /// Every weight, saved as a model folder.
    Full,
}

impl MethodName {
    /// For people.
    pub(crate) fn said(self) -> &'static str {
        match self {
            Self::Svf => "singular-value fine-tuning",
            Self::Lora => "LoRA",
            Self::LastLayer => "the last layer",
            Self::Full => "all weights",
        }
    }
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveName {
    /// The loss of the right answers' tokens.
    Supervised,
    /// REINFORCE: rewards of answers that the model draws, near the base.
    Reinforce,
}

/// The data of a task.
#[derive(Debug, Args, Clone)]
#[group(required = true, multiple = false)]
pub(crate) struct TaskArgs {
    /// A generated task (`specialformer svf train --help` lists them).
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// A JSONL file with `prompt` and `answer` in each line.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Naming the tasks of this folder's experts, for `adapt --strategy
    /// classifier-expert`.
    #[arg(long, value_name = "DIR")]
    pub(crate) naming: Option<PathBuf>,
}

/// `specialformer svf train`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Generated tasks: json-field, larger-number, second-word, two-digit-sum, sentiment, upper-case,
iso-date, last-letter, sort-words, even-or-odd; kept for adaptation: email-domain, initials,
count-items.

Examples:
  specialformer svf train MODEL --task json-field
  specialformer svf train MODEL --data mine.jsonl --out experts/mine.safetensors
  specialformer svf train MODEL --task larger-number --objective reinforce --steps 30
  specialformer svf train MODEL --naming experts
  specialformer svf train MODEL --task two-digit-sum --method lora --rank 16 --out runs/lora")]
pub(crate) struct TrainArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) data: TaskArgs,
    /// Where the result goes (default: experts/TASK.safetensors, or
    /// experts/TASK-METHOD).
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Write over what is there.
    #[arg(long)]
    pub(crate) force: bool,
    /// What is trained.
    #[arg(long, value_enum, default_value = "svf")]
    pub(crate) method: MethodName,
    /// What is minimised.
    #[arg(long, value_enum, default_value = "supervised")]
    pub(crate) objective: ObjectiveName,
    /// `mlp`, `attention`, `both`, or patterns of names, separated by commas
    /// (SVF and LoRA).
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "mlp")]
    pub(crate) matrices: Vec<String>,
    /// The rank of LoRA (default: 16).
    #[arg(long, value_name = "R")]
    pub(crate) rank: Option<usize>,
    /// z = M·sigmoid(p) in place of z = p.
    #[arg(long, value_name = "M")]
    pub(crate) sigmoid: Option<f64>,
    /// Keep the sum of each matrix's singular values.
    #[arg(long)]
    pub(crate) trace: bool,
    /// Optimiser steps.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) steps: u64,
    /// Prompts of a step.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) batch_size: usize,
    /// The learning rate of Adam (default: 2e-3 for SVF, 5e-4 for LoRA, 1e-4
    /// for the last layer, 2e-5 for all weights).
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub(crate) learning_rate: Option<f64>,
    /// The weight of the divergence from the base (REINFORCE; default: 0.05).
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) kl: Option<f64>,
    /// Keep only the input of each block and compute the rest again backwards:
    /// less memory, more time.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Different examples to train on.
    #[arg(long, value_name = "N", default_value_t = 1280)]
    pub(crate) examples: usize,
    /// Examples to score before and after; 0 scores nothing.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) test: usize,
    /// Score the trained model alone, not the base before it.
    #[arg(long)]
    pub(crate) skip_base: bool,
    /// Draws the training examples and their order.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer svf run`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer svf run runs/mpt-base --tasks parity,larger --steps 500 --out larger.safetensors")]
pub(crate) struct RunArgs {
    /// The run folder of a Specialformer on multimodal data.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// The tasks to adapt to, separated by commas (default: those of the run).
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) tasks: Vec<String>,
    /// Optimiser steps.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) steps: u64,
    /// Rows of a step.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) batch_size: usize,
    /// Learning rate.
    #[arg(long, value_name = "R", default_value_t = 0.01, allow_negative_numbers = true)]
    pub(crate) learning_rate: f64,
    /// Rows that are scored before and after.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) size: usize,
    /// A file for the expert.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Write over what is there.
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer svf eval`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer svf eval MODEL --task json-field,second-word
  specialformer svf eval MODEL --expert experts/json-field.safetensors --task json-field
  specialformer svf eval MODEL --expert a.safetensors,b.safetensors --data mine.jsonl --text book.txt

Answers count as right if the first line equals the answer. Lines of the table: the base, then
each expert.")]
pub(crate) struct EvalArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// Experts, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    pub(crate) expert: Vec<PathBuf>,
    /// Generated tasks, separated by commas; `all` for every one.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) task: Vec<String>,
    /// JSONL files with `prompt` and `answer` in each line, all of which are
    /// scored.
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    pub(crate) data: Vec<PathBuf>,
    /// A plain text, for the perplexity of its first 4096 tokens.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Prompts of each task.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) size: usize,
    /// Prompts answered together.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) batch_size: usize,
    /// Do not score the base.
    #[arg(long)]
    pub(crate) experts_only: bool,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer svf merge`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Example:
  specialformer svf merge MODEL experts/json-field.safetensors --out merged
  specialformer svf merge MODEL experts/json-field.safetensors --out merged.gguf")]
pub(crate) struct MergeArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The expert.
    #[arg(value_name = "EXPERT")]
    pub(crate) expert: PathBuf,
    /// The folder to write, or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// The form (default: a folder in single precision, or for a .gguf file
    /// half precision).
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) to: Option<Target>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// How experts are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MixMode {
    /// z = Σ α·z.
    Mix,
    /// z = 1 + Σ α·(z − 1): what the experts change, added up.
    Add,
}

/// `specialformer svf mix`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer svf mix a.safetensors b.safetensors --weights 0.3,0.7 --out ab.safetensors
  specialformer svf mix a.safetensors b.safetensors --mode add --weights 1,-0.5 --out a-without-b.safetensors")]
pub(crate) struct MixArgs {
    /// The experts.
    #[arg(value_name = "EXPERT", required = true)]
    pub(crate) experts: Vec<PathBuf>,
    /// α of each; by default all alike, adding up to 1 (`mix`) or 1 each
    /// (`add`).
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS", allow_negative_numbers = true)]
    pub(crate) weights: Vec<f64>,
    /// How they are combined.
    #[arg(long, value_enum, default_value = "mix")]
    pub(crate) mode: MixMode,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer svf info`.
#[derive(Debug, Args, Clone)]
pub(crate) struct InfoArgs {
    /// The expert.
    #[arg(value_name = "EXPERT")]
    pub(crate) expert: PathBuf,
    /// Check that it belongs to this model.
    #[arg(long, value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: Option<PathBuf>,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
