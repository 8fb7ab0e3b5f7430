//! Arguments of `specialformer adapt`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::svf::CacheArgs;
use super::{CommonArgs, model_path};

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StrategyName {
    /// The model is asked for the task's name.
    Prompt,
    /// A classifier on the prompt's hidden states.
    Classifier,
    /// An expert that was trained to name tasks (task `classifier`).
    ClassifierExpert,
    /// A mixture that answers the examples of `--examples`.
    Mixture,
}

/// How experts are chosen at a turn of a conversation, which has no examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TurnStrategy {
    /// The model is asked for the task's name.
    Prompt,
    /// A classifier on the prompt's hidden states, trained by `adapt`.
    Classifier,
    /// An expert that was trained to name tasks (task `classifier`).
    ClassifierExpert,
}

impl From<TurnStrategy> for StrategyName {
    fn from(of_turn: TurnStrategy) -> Self {
        match of_turn {
            TurnStrategy::Prompt => Self::Prompt,
            TurnStrategy::Classifier => Self::Classifier,
            TurnStrategy::ClassifierExpert => Self::ClassifierExpert,
        }
    }
}

/// `specialformer adapt`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer adapt MODEL --experts experts --prompt 'What is 12 plus 30?'
  specialformer adapt MODEL --experts experts --strategy classifier --prompt 'What is 12 plus 30?'
  specialformer adapt MODEL --experts experts --strategy classifier --score initials
  specialformer adapt MODEL --experts experts --strategy mixture --examples few.jsonl \\
      --prompt 'Which domain does anna@example.org belong to?'

The first use of `classifier` trains it on prompts of the experts' tasks and keeps it in the
folder of experts. Tasks of your own need their prompts: --data TASK=FILE.jsonl. Other prompts
than those it was trained on train it anew.")]
pub(crate) struct AdaptArgs {
    /// A model folder or a .gguf file.
    #[arg(value_name = "MODEL", value_parser = model_path)]
    pub(crate) model: PathBuf,
    /// A folder of experts, made by `svf train`.
    #[arg(long, value_name = "DIR")]
    pub(crate) experts: PathBuf,
    /// How experts are chosen (default: `mixture` if there are `--examples`,
    /// `classifier-expert` if the folder holds that expert, else `classifier`).
    #[arg(long, value_enum)]
    pub(crate) strategy: Option<StrategyName>,
    /// What is asked; may be given several times.
    #[arg(long, value_name = "TEXT", required_unless_present = "score")]
    pub(crate) prompt: Vec<String>,
    /// Score test prompts of a generated task in place of answering one.
    #[arg(long, value_name = "TASK", conflicts_with_all = ["prompt", "examples"])]
    pub(crate) score: Option<String>,
    /// Test prompts of `--score` (default: 64).
    #[arg(long, value_name = "N")]
    pub(crate) size: Option<usize>,
    /// Examples of the task that a mixture is searched with (`--score`;
    /// default: 8).
    #[arg(long, value_name = "N", conflicts_with = "examples")]
    pub(crate) shots: Option<usize>,
    /// A JSONL file with a few examples (`prompt`, `answer`), for `mixture`.
    #[arg(long, value_name = "FILE")]
    pub(crate) examples: Option<PathBuf>,
    /// Candidates of an iteration of the search for a mixture (default: 16).
    #[arg(long, value_name = "N")]
    pub(crate) population: Option<usize>,
    /// Iterations of the search (default: 6).
    #[arg(long, value_name = "N")]
    pub(crate) iterations: Option<usize>,
    /// Search for weights of each layer's own in place of one set for all.
    #[arg(long)]
    pub(crate) per_layer: bool,
    /// Draw the candidates uniformly in place of the cross-entropy method.
    #[arg(long)]
    pub(crate) random_search: bool,
    /// Below this probability the classifier says `others` (default: what it
    /// was trained with, at first 0.5).
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) threshold: Option<f64>,
    /// Prompts of a task that is not a generated one, to train the classifier
    /// on; may be given several times.
    #[arg(long, value_name = "TASK=FILE")]
    pub(crate) data: Vec<String>,
    /// The most tokens of an answer (default: 64).
    #[arg(long, value_name = "N", conflicts_with = "score")]
    pub(crate) max_tokens: Option<usize>,
    /// Draws the examples and the candidates of the search for a mixture
    /// (default: 1).
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
