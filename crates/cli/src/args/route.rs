//! Arguments of `specialformer route trace`, `analyze`, `discover`,
//! `condition` and `prune`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use specialformer::routing::SignatureKind;
use specialformer::routing::condition::Budget;
use specialformer::routing_trace::TokenScope;

use super::{CommonArgs, SetName, model_path};
use crate::failure::Failure;

/// What a choice counts in a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindName {
    /// 1.
    Count,
    /// Its combine weight.
    Weight,
    /// Its rank from the end.
    Rank,
}

impl From<KindName> for SignatureKind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::Count => Self::Count,
            KindName::Weight => Self::Weight,
            KindName::Rank => Self::Rank,
        }
    }
}

/// Which positions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScopeName {
    /// All.
    All,
    /// The prompt's own.
    Prompt,
    /// Those that the model generated.
    Generated,
}

impl From<ScopeName> for TokenScope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::All => Self::All,
            ScopeName::Prompt => Self::Prompt,
            ScopeName::Generated => Self::Generated,
        }
    }
}

/// `specialformer route trace`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer route trace runs/moe-lm --out traces/moe-lm
  specialformer route trace OLMoE-1B-7B --prompts prompts.jsonl --out traces/olmoe
  specialformer route trace runs/moe-lm --prompts prompts.jsonl --generate 32 --jsonl trace.jsonl

Each line of a prompts file is an object with `text` (or `tokens`), and with `label` and `id` if
there are any. Without --prompts the run's held-out rows are traced, labelled by their tasks.")]
pub(crate) struct RouteTraceArgs {
    /// A run folder, or a pretrained model: a folder or a GGUF file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The prompts, as JSONL.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) prompts: Option<PathBuf>,
    /// The trace folder (default: trace in the run folder, or beside it).
    #[arg(long, value_name = "TRACE")]
    pub(crate) out: Option<PathBuf>,
    /// Also write the trace as JSONL, a line for each position.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) jsonl: Option<PathBuf>,
    /// Write over the file of --jsonl. (An old trace is replaced in any case.)
    #[arg(long, requires = "jsonl")]
    pub(crate) force: bool,
    /// Tokens that the model adds to each prompt.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "prompts")]
    pub(crate) generate: usize,
    /// Cut prompts to so many tokens.
    #[arg(long, value_name = "N", requires = "prompts")]
    pub(crate) most_tokens: Option<usize>,
    /// Which held-out rows, without --prompts. Conditions are fitted to
    /// `validation`, because they are scored on `test`.
    #[arg(long, value_enum, default_value = "test", conflicts_with = "prompts")]
    pub(crate) set: SetName,
    /// How many held-out rows, without --prompts.
    #[arg(long, value_name = "N", default_value_t = 512, conflicts_with = "prompts")]
    pub(crate) size: usize,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route analyze`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer route analyze traces/moe-lm
  specialformer route analyze traces/moe-lm --kind weight --out analysis
  specialformer route analyze traces/olmoe --labels labels.jsonl

Each line of a labels file is an object with `id` and `label`; prompts of a trace have their
labels already if their file had any. analysis.json and report.html go to --out; in a run folder
the run's own report gets the part on signatures.")]
pub(crate) struct RouteAnalyzeArgs {
    /// The trace folder.
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// Labels of prompts by their id, as JSONL; in place of the trace's own.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) labels: Option<PathBuf>,
    /// Folder for analysis.json and report.html.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What a choice counts in a signature.
    #[arg(long, value_enum, default_value = "count")]
    pub(crate) kind: KindName,
    /// Which positions count.
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) tokens: ScopeName,
    /// Permutations of the labels.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) permutations: usize,
    /// Folds of the classifier.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) folds: usize,
    /// What all draws come from.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route discover`.
#[derive(Debug, Args, Clone)]
pub(crate) struct RouteDiscoverArgs {
    /// The trace folder.
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// Try up to so many clusters.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) most: usize,
    /// Write each prompt's cluster here, as a labels file.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) out: Option<PathBuf>,
    /// Write over what is there.
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
    /// What a choice counts in a signature.
    #[arg(long, value_enum, default_value = "count")]
    pub(crate) kind: KindName,
    /// What starts are drawn from.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route condition`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConditionCommand {
    /// Choose each task's experts, and fit what detects the task.
    Fit(ConditionFitArgs),
    /// Quality, memory and speed against the share of experts kept.
    Eval(ConditionEvalArgs),
    /// Continue prompts with the experts of their task alone.
    Apply(ConditionApplyArgs),
}

/// How many experts are kept.
#[derive(Debug, Args, Clone, Copy)]
#[group(multiple = false)]
pub(crate) struct BudgetArgs {
    /// Keep the fewest experts of each layer that cover this share of the
    /// task's mean signature.
    #[arg(long, value_name = "SHARE")]
    pub(crate) cover: Option<f64>,
    /// Keep this share of each layer's experts (default: 0.5).
    #[arg(long, value_name = "SHARE")]
    pub(crate) experts: Option<f64>,
}

impl BudgetArgs {
    /// The budget, if it is one.
    pub(crate) fn budget(self) -> Result<Budget, Failure> {
        let (flag, value, budget) = match (self.cover, self.experts) {
            (Some(cover), _) => ("cover", cover, Budget::Share(cover)),
            (None, experts) => {
                let experts = experts.unwrap_or(0.5);
                ("experts", experts, Budget::Experts(experts))
            }
        };
        match value > 0.0 && value <= 1.0 {
            true => Ok(budget),
            false => Err(Failure::input(format!("--{flag} = {value}: must be in (0, 1]"))),
        }
    }
}

/// `specialformer route condition fit`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer route condition fit runs/moe-lm --trace traces/validation --out moe-lm.json
  specialformer route condition fit runs/moe-lm --trace traces/validation --cover 0.9
  specialformer route condition fit runs/moe-lm --trace traces/validation --learn-steps 60")]
pub(crate) struct ConditionFitArgs {
    /// The run folder or pretrained model.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// A trace of it, with labels; of a run's rows, those of `--set validation`.
    #[arg(long, value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// Labels of prompts by their id, as `route discover --out` writes them; in
    /// place of the trace's own.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) labels: Option<PathBuf>,
    /// Where to write the conditions.
    #[arg(long, value_name = "FILE.json", default_value = "condition.json")]
    pub(crate) out: PathBuf,
    /// Write over what is there.
    #[arg(long)]
    pub(crate) force: bool,
    /// How many experts are kept.
    #[command(flatten)]
    pub(crate) budget: BudgetArgs,
    /// Tokens from which the task is detected.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) detect_tokens: usize,
    /// Below this probability no task counts as detected, and routing stays
    /// full.
    #[arg(long, value_name = "P", default_value_t = 0.5)]
    pub(crate) confidence: f64,
    /// Also learn a bias on each task's router logits, in so many steps on the
    /// run's training text.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub(crate) learn_steps: u64,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route condition eval`.
#[derive(Debug, Args, Clone)]
pub(crate) struct ConditionEvalArgs {
    /// The run folder or pretrained model.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The conditions.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) condition: PathBuf,
    /// Texts with labels, as JSONL; the run's test rows if absent, unless the
    /// conditions were fitted to them.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) prompts: Option<PathBuf>,
    /// How many test rows, without --prompts.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) size: usize,
    /// Shares of experts to keep.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SHARES",
        default_value = "0.25,0.375,0.5,0.75"
    )]
    pub(crate) experts: Vec<f64>,
    /// Also learn biases, in so many steps for each task and share.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub(crate) learn_steps: u64,
    /// Also train the kept experts further, in so many steps for each task and
    /// share, and for comparison all of them.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub(crate) tune_steps: u64,
    /// Alternating pairs of the measured speed; 0 measures none.
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub(crate) timings: usize,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route condition apply`.
#[derive(Debug, Args, Clone)]
pub(crate) struct ConditionApplyArgs {
    /// The run folder or pretrained model.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The conditions.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) condition: PathBuf,
    /// The prompts, as JSONL.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) prompts: PathBuf,
    /// The task of all prompts; detected from the first tokens of each if
    /// absent.
    #[arg(long, value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Tokens to add to each prompt.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) generate: usize,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route prune`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Example:
  specialformer route prune runs/moe-lm --condition moe-lm.json --task code --out runs/moe-lm-code

All layers keep as many experts as the one that needs most, because files have one number for
all. The folder is of the same kind as MODEL and loads wherever that does.")]
pub(crate) struct RoutePruneArgs {
    /// The run folder or pretrained model.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// The conditions.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) condition: PathBuf,
    /// The task to keep.
    #[arg(long, value_name = "TASK")]
    pub(crate) task: String,
    /// The folder of the smaller model.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Train the experts that are kept further on the task's part of the run's
    /// training data, in so many steps.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub(crate) tune_steps: u64,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
