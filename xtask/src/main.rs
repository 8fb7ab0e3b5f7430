//! Development tasks, run as `cargo xtask TASK`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod corpora;
mod digits;
mod fetch;
mod markers;
mod parity;
mod shell;
mod soak;
mod study;
mod validate;
mod wheel;

/// Development tasks of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check everything that has to hold before a change is merged.
    Validate(validate::Options),
    /// Run every golden case that the code covers and compare.
    Parity {
        /// Folder of case folders (default: the committed ones).
        folder: Option<PathBuf>,
    },
    /// Run the benchmarks, on their own or against other libraries.
    Bench(bench::Options),
    /// Get a model's file into the cache folder and print its path.
    Fetch(fetch::Options),
    /// Train, kill, resume and evaluate in a loop; all must come to the same.
    Soak(soak::Options),
    /// Run a named experiment; finished runs are kept and not repeated.
    Study(study::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Validate(options) => validate::run(&options),
        Task::Parity { folder } => parity::run(folder.as_deref()),
        Task::Bench(options) => bench::run(&options),
        Task::Fetch(options) => fetch::run_task(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Study(options) => study::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_of_the_guide_are_understood() {
        let commands = specialformer_testkit::guide_commands().into_iter();
        let ours: Vec<_> =
            commands.filter(|c| c.words.starts_with(&["cargo".into(), "xtask".into()])).collect();
        assert!(ours.len() > 10);
        for command in ours {
            if let Err(error) = Arguments::try_parse_from(&command.words[1..]) {
                panic!("{}: {error}", command.place);
            }
        }
    }

    #[test]
    fn peers_take_an_optional_list() {
        let peers = |words: &[&str]| {
            let words = ["xtask", "bench"].iter().chain(words);
            match Arguments::try_parse_from(words).unwrap().task {
                Task::Bench(options) => options.peers,
                _ => unreachable!("parsed `bench`"),
            }
        };
        assert_eq!(peers(&[]), None);
        assert_eq!(peers(&["--peers"]).unwrap().len(), 3);
        assert_eq!(peers(&["--peers=candle"]), Some(vec![bench::Peer::Candle]));
    }
}
