//! Command-line arguments.

pub(crate) mod adapt;
pub(crate) mod route;
pub(crate) mod svf;
pub(crate) mod text;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use specialformer::training::{ExportFormat, HeldOut};

use self::adapt::AdaptArgs;
use self::route::{
    ConditionCommand, RouteAnalyzeArgs, RouteDiscoverArgs, RoutePruneArgs, RouteTraceArgs,
};
use self::svf::SvfCommand;
use self::text::{ChatArgs, ConvertArgs, GenerateArgs, InspectArgs, PerplexityArgs, TokenizeArgs};
use crate::build_info;

/// Transformers that specialise by task, on an ordinary CPU.
///
/// Without a command it runs the quick demo: `specialformer iarc`.
#[derive(Debug, Parser)]
#[command(
    name = "specialformer",
    version = build_info::short(),
    long_version = build_info::long(),
    about,
    max_term_width = 100,
    arg_required_else_help = false
)]
#[command(after_help = "\
Examples:
  specialformer                           train the cisformer and a transformer on task switching
  specialformer iarc --full --seeds 3     the whole study
  specialformer train run.toml            train what a configuration file describes
  specialformer eval runs/my-run          score a trained run on its test set
  specialformer predict runs/my-run --task sort inputs.txt
  specialformer route stats runs/my-run   where a mixture of experts sends its tokens
  specialformer generate MODEL --prompt 'Once upon a time'
  specialformer chat MODEL                MODEL: a model folder or a .gguf file
                                          (built with `--features hub` also hf:OWNER/NAME)
  specialformer svf train MODEL --task json-field   an expert for a pretrained model
  specialformer route trace runs/my-run --out trace && specialformer route analyze trace
  specialformer info                      kernels, SIMD level, threads")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train and compare models on the IARC task-switching benchmark.
    Iarc(IarcArgs),
    /// Train what a TOML file describes.
    Train(TrainArgs),
    /// Score a trained run on held-out data.
    Eval(EvalArgs),
    /// Answer inputs of one of a run's tasks.
    Predict(PredictArgs),
    /// Look at the routing of a mixture of experts.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Continue a text with a pretrained model.
    Generate(GenerateArgs),
    /// Talk to a pretrained model.
    Chat(ChatArgs),
    /// How well a pretrained model predicts a text.
    Perplexity(PerplexityArgs),
    /// Architecture, sizes and tensors of a pretrained model.
    Inspect(InspectArgs),
    /// Save a pretrained model in another form.
    Convert(ConvertArgs),
    /// The tokens of a text.
    Tokenize(TokenizeArgs),
    /// Singular-value fine-tuning: small experts for a pretrained model.
    #[command(subcommand)]
    Svf(SvfCommand),
    /// Choose or mix experts for a prompt, then answer it.
    Adapt(Box<AdaptArgs>),
    /// Show version, kernels, SIMD level and threads, or what a configuration's
    /// model consists of.
    Info(InfoArgs),
    /// Print a script that completes commands and flags in a shell.
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands into a folder.
    Man(ManArgs),
}

/// `specialformer route`.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// Load, entropy, drops and specialisation of each layer's experts.
    Stats(RouteStatsArgs),
    /// Write down which experts each token of prompts goes to.
    Trace(RouteTraceArgs),
    /// What a trace's signatures know about labels: similarity, permutation
    /// test, null baselines, a classifier, the experts of each label.
    Analyze(RouteAnalyzeArgs),
    /// Cluster a trace's prompts by their signatures, without labels.
    Discover(RouteDiscoverArgs),
    /// Task-conditioned routing: run only the experts that a task needs.
    #[command(subcommand)]
    Condition(ConditionCommand),
    /// Save a smaller model with one task's experts alone.
    Prune(RoutePruneArgs),
}

impl RouteCommand {
    /// Flags that every command takes.
    pub(crate) fn common(&self) -> &CommonArgs {
        match self {
            Self::Stats(args) => &args.common,
            Self::Trace(args) => &args.common,
            Self::Analyze(args) => &args.common,
            Self::Discover(args) => &args.common,
            Self::Condition(ConditionCommand::Fit(args)) => &args.common,
            Self::Condition(ConditionCommand::Eval(args)) => &args.common,
            Self::Condition(ConditionCommand::Apply(args)) => &args.common,
            Self::Prune(args) => &args.common,
        }
    }
}

/// Which held-out data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SetName {
    /// Looked at during training.
    Validation,
    /// Used once, at the end.
    Test,
}

impl From<SetName> for HeldOut {
    fn from(name: SetName) -> Self {
        match name {
            SetName::Validation => Self::Validation,
            SetName::Test => Self::Test,
        }
    }
}

/// Reads a MODEL: a path stands for itself, a name on the hub is downloaded.
pub(crate) fn model_path(text: &str) -> specialformer::Result<PathBuf> {
    specialformer::families::locate(text)
}

/// `specialformer completions`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer completions bash > ~/.local/share/bash-completion/completions/specialformer
  specialformer completions zsh > ~/.zfunc/_specialformer
  specialformer completions fish > ~/.config/fish/completions/specialformer.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// `specialformer man`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer man | man -l -
  specialformer man --out ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Flags that every command takes.
#[derive(Debug, Args, Clone)]
pub(crate) struct CommonArgs {
    /// Worker threads (default: one a core). Results do not depend on it.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print the result as JSON on stdout; everything else goes to stderr.
    #[arg(long)]
    pub(crate) json: bool,
    /// Only warnings and errors on stderr.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Other forms of a run's metrics.
#[derive(Debug, Args, Clone, Copy)]
pub(crate) struct ExportArgs {
    /// Also keep the metrics as an event file of TensorBoard in the run folder.
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Also keep the metrics as metrics.csv in the run folder.
    #[arg(long)]
    pub(crate) csv: bool,
}

impl ExportArgs {
    pub(crate) fn formats(self) -> Vec<ExportFormat> {
        let all = [(self.tensorboard, ExportFormat::TensorBoard), (self.csv, ExportFormat::Csv)];
        all.into_iter().filter_map(|(wanted, format)| wanted.then_some(format)).collect()
    }
}

/// `specialformer iarc`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer iarc                                  the quick demo, about a minute
  specialformer iarc --models cisformer-softmax,mlp --steps 4000
  specialformer iarc --full --seeds 3 --out runs/study")]
pub(crate) struct IarcArgs {
    /// Models to train, by name, separated by commas (default:
    /// cisformer-expressive and transformer-softmax-none; with --full all).
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) models: Vec<String>,
    /// Optimiser steps of 256 windows, the same for every model (default:
    /// 16000; with --full 10000).
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Train every model with seeds 1..=K (default: 1; with --full 3).
    #[arg(long, value_name = "K")]
    pub(crate) seeds: Option<u64>,
    /// All models of the study, three seeds.
    #[arg(long)]
    pub(crate) full: bool,
    /// Folder for the runs, the table, the plot and the report.
    #[arg(long, value_name = "DIR", default_value = "runs/iarc")]
    pub(crate) out: PathBuf,
    /// Continue an interrupted job in the same folder; finished runs are kept.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Windows of the test set.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub(crate) test_size: usize,
    /// Other forms of the metrics.
    #[command(flatten)]
    pub(crate) export: ExportArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer train`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer train configs/iarc-cisformer.toml
  specialformer train configs/iarc-cisformer.toml --out runs/mine
  specialformer train configs/iarc-cisformer.toml --out runs/mine --resume
  specialformer train configs/multitask-moe.toml --tensorboard
  specialformer train adapt.toml --init-from runs/multitask-moe")]
pub(crate) struct TrainArgs {
    /// The configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    /// The run folder (default: runs/<name of the configuration>).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Continue an interrupted run, bit for bit as if never interrupted.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Start from the weights of this run; in place of the configuration's
    /// `init_from`.
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    pub(crate) init_from: Option<PathBuf>,
    /// Other forms of the metrics.
    #[command(flatten)]
    pub(crate) export: ExportArgs,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer eval`.
#[derive(Debug, Args, Clone)]
pub(crate) struct EvalArgs {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Which held-out data to score on.
    #[arg(long, value_enum, default_value = "test")]
    pub(crate) set: SetName,
    /// Score on the held-out variants of the tasks (longer inputs, other
    /// symbol frequencies), which were not trained on.
    #[arg(long)]
    pub(crate) shifted: bool,
    /// Score the model at this share of its heads and hidden units, one of
    /// `model.dynamic.widths`.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) width: Option<f64>,
    /// Number of rows to score.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub(crate) size: usize,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// How the inputs of `specialformer predict` are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// One input a line.
    Lines,
    /// One JSON value a line: a text, a list of symbols, or an object with
    /// either in a field.
    Jsonl,
}

/// `specialformer predict`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer predict runs/multitask-moe --task sort inputs.txt
  echo '3 1 2' | specialformer predict runs/multitask-moe --task sort -
  specialformer predict runs/reviews --task sentiment reviews.jsonl --field text --json

Symbols stand between blanks; where all are single characters, blanks may be
left out. Answers stand one a line: a table, or with --json a JSON object each.")]
pub(crate) struct PredictArgs {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// The task, by name.
    #[arg(long, value_name = "T")]
    pub(crate) task: String,
    /// The inputs; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// How they are written (default: jsonl for .jsonl and .ndjson, else lines).
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<InputFormat>,
    /// The field of the input in JSON objects.
    #[arg(long, value_name = "NAME", default_value = "input")]
    pub(crate) field: String,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer route stats`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer route stats runs/multitask-moe
  specialformer route stats runs/multitask-moe --set validation --json")]
pub(crate) struct RouteStatsArgs {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Which held-out data to route.
    #[arg(long, value_enum, default_value = "test")]
    pub(crate) set: SetName,
    /// Number of rows to route.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) size: usize,
    /// Also write it into the run's report.
    #[arg(long)]
    pub(crate) report: bool,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `specialformer info`.
#[derive(Debug, Args, Clone)]
pub(crate) struct InfoArgs {
    /// A configuration file: parameters and operations of its model, by kind of
    /// position.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[cfg(test)]
mod tests {
    use clap::{Command as Definition, CommandFactory, Parser};
    use specialformer_testkit::guide_commands;

    use super::Cli;

    /// Programs that the guide may name besides `specialformer` and `cargo`.
    const OTHERS: [&str; 3] = ["echo", "jq", "mdbook"];

    #[test]
    fn commands_of_the_guide_are_understood() {
        let mut understood = 0;
        for command in guide_commands() {
            let words: Vec<&str> = command.words.iter().map(String::as_str).collect();
            let arguments = match words.as_slice() {
                ["specialformer", arguments @ ..]
                | ["cargo", "run", "--release", "--", arguments @ ..] => arguments,
                ["cargo", ..] => continue,
                [program, ..] if OTHERS.contains(program) => continue,
                _ => panic!("{}: {words:?} is not a known program", command.place),
            };
            let all = std::iter::once("specialformer").chain(arguments.iter().copied());
            if let Err(error) = Cli::try_parse_from(all)
                && error.use_stderr()
            {
                panic!("{}: {error}", command.place);
            }
            understood += 1;
        }
        assert!(understood > 30);
    }

    /// Every command that does something, by its words.
    fn leaves(command: &Definition, name: &str, found: &mut Vec<(String, Definition)>) {
        let mut inner = command.get_subcommands().peekable();
        if inner.peek().is_none() {
            found.push((name.to_owned(), command.clone()));
        }
        for command in inner {
            leaves(command, &format!("{name} {}", command.get_name()), found);
        }
    }

    #[test]
    fn flags_are_the_same_for_all_commands() {
        Cli::command().debug_assert();
        let mut found = Vec::new();
        leaves(&Cli::command(), "specialformer", &mut found);
        assert!(found.len() > 25, "{}", found.len());
        for (name, command) in found {
            let made_from_definition = ["completions", "man"].iter().any(|w| name.ends_with(w));
            for flag in ["threads", "json", "quiet"] {
                let has = command.get_arguments().any(|a| a.get_long() == Some(flag));
                assert_eq!(has, !made_from_definition, "{name}: --{flag}");
            }
            assert!(command.get_about().is_some(), "{name}: what it does");
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(argument.get_help().is_some(), "{name}: {id}: what it does");
                let takes = argument.get_action().takes_values();
                let value = argument.get_value_names().and_then(|names| names.first());
                let value = value.map_or("", |name| name.as_str());
                let wanted: &[&str] = match argument.get_long() {
                    Some("out") => &["DIR", "FILE", "PATH", "TRACE", "FILE.json", "FILE.jsonl"],
                    Some("seed" | "threads" | "size" | "steps" | "batch-size") => &["N"],
                    _ => continue,
                };
                assert!(takes && wanted.contains(&value), "{name}: --{id} <{value}>");
            }
        }
    }
}
