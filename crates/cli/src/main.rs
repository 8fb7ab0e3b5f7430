//! The `specialformer` command.

#![deny(clippy::print_stderr)]

mod args;
mod build_info;
mod commands;
mod failure;
mod interrupt;
mod job;
mod limits;
mod memory;
mod output;
mod progress;
mod report;
mod run_report;
mod signature_report;
mod table;
mod terminal;

use std::process::ExitCode;

use args::{Cli, Command, CommonArgs};
use clap::Parser;

use crate::failure::Failure;
use crate::terminal::say;

fn main() -> ExitCode {
    terminal::end_with_the_output();
    let cli = Cli::parse();
    let command = cli.command.unwrap_or_else(|| Command::Iarc(commands::iarc::quick_demo()));
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                say!("error: {failure}");
            }
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let common = match &command {
        Command::Iarc(args) => &args.common,
        Command::Train(args) => &args.common,
        Command::Eval(args) => &args.common,
        Command::Predict(args) => &args.common,
        Command::Generate(args) => &args.common,
        Command::Chat(args) => &args.common,
        Command::Perplexity(args) => &args.common,
        Command::Inspect(args) => &args.common,
        Command::Convert(args) => &args.common,
        Command::Tokenize(args) => &args.common,
        Command::Svf(command) => command.common(),
        Command::Adapt(args) => &args.common,
        Command::Route(route) => route.common(),
        Command::Info(args) => &args.common,
        Command::Completions(args) => return commands::manual::completions(args),
        Command::Man(args) => return commands::manual::man(args),
    };
    start_logging();
    interrupt::install();
    start_threads(common)?;
    match command {
        Command::Iarc(args) => commands::iarc::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Tokenize(args) => commands::tokenize::run(&args),
        Command::Svf(command) => commands::svf::run(&command),
        Command::Adapt(args) => commands::adapt::run(&args),
        Command::Route(route) => commands::route::run(&route),
        Command::Info(args) => commands::info::run(&args),
        Command::Completions(_) | Command::Man(_) => Ok(()),
    }
}

/// Logs go to stderr: warnings and errors, or what `RUST_LOG` asks for.
fn start_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal::stderr_has_colours())
        .without_time()
        .init();
}

fn start_threads(common: &CommonArgs) -> Result<(), Failure> {
    let Some(threads) = common.threads else { return Ok(()) };
    limits::check_threads(threads)?;
    specialformer::set_threads(threads).map_err(|error| Failure::input(error.to_string()))
}
