//! `bench`: our benchmarks, alone or in turns with other libraries.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::markers;
use crate::shell::{self, Result, cargo, root};
use server::Server;

mod compare;
mod machine;
mod server;
mod table;
mod venv;

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Run every benchmark once, without measuring.
    #[arg(long, conflicts_with = "peers")]
    smoke: bool,

    /// Compare with other libraries, in turns (default: with all of them).
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        num_args = 0..=1,
        require_equals = true,
        default_missing_values = ["pytorch", "candle", "burn"]
    )]
    pub(crate) peers: Option<Vec<Peer>>,

    /// How costs grow with threads, length, experts, batch and width.
    #[arg(long, conflicts_with_all = ["peers", "smoke"])]
    scaling: bool,

    /// How near kernels come to what the machine can do.
    #[arg(long, conflicts_with_all = ["peers", "smoke", "scaling"])]
    roofline: bool,

    /// Run only benchmarks whose name contains this.
    #[arg(long)]
    filter: Option<String>,

    /// Thread counts to compare at.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2], requires = "peers")]
    threads: Vec<usize>,

    /// Rounds, in each of which both sides have their turn.
    #[arg(long, default_value_t = 7, requires = "peers", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// A library to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// PyTorch in a virtual environment of its own.
    Pytorch,
    /// candle.
    Candle,
    /// burn's CPU backend.
    Burn,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Pytorch => "pytorch",
            Self::Candle => "candle",
            Self::Burn => "burn",
        }
    }
}

const RESULTS_FRAME: &str = "# Benchmark results\n\n\
    Written by `cargo xtask bench --peers`.\n\n\
    <!-- peers:begin -->\n<!-- peers:end -->\n";

/// Runs criterion's benchmarks or the comparison.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.peers {
        None if options.scaling => run_table("scaling"),
        None if options.roofline => run_table("roofline"),
        None => run_criterion(options),
        Some(peers) => run_comparison(options, peers),
    }
}

/// Prints what the program `bench-NAME` measures, and keeps it in RESULTS.md.
fn run_table(name: &str) -> Result<()> {
    let program = format!("bench-{name}");
    let built =
        shell::build(&["--release", "--package", "specialformer-benches", "--bin", &program])?;
    let printed = shell::output(&mut shell::program(executable(&built, &program)?))?;
    println!("{printed}");
    let text = format!("Machine: {}.\n\n{printed}", machine::description());
    markers::replace_in(&root().join("benches/RESULTS.md"), name, &text, "")
}

fn run_criterion(options: &Options) -> Result<()> {
    let mut command = cargo();
    command.args(["bench", "--package", "specialformer-benches", "--"]);
    if options.smoke {
        command.arg("--test");
    }
    command.args(&options.filter);
    shell::run(&mut command)
}

fn run_comparison(options: &Options, peers: &[Peer]) -> Result<()> {
    // The slow and fallible preparations come before the first measurement.
    let ours = our_server()?;
    let servers = peer_servers(peers)?;
    let mut rows = Vec::new();
    let mut versions = Vec::new();
    let settings = compare::Settings { rounds: options.rounds, filter: options.filter.as_deref() };
    for &threads in &options.threads {
        let comparison = compare::run(&ours, &servers, threads, &settings)?;
        rows.extend(comparison.rows);
        versions = comparison.versions;
    }
    if rows.is_empty() {
        return Err("no benchmark was compared: no name both sides know fits".into());
    }
    let table = table::markdown(&rows, &versions, &machine::description(), options.rounds);
    println!("\n{table}");
    if options.filter.is_some() {
        println!("benches/RESULTS.md keeps the last comparison without --filter.");
        return Ok(());
    }
    markers::replace_in(&root().join("benches/RESULTS.md"), "peers", &table, RESULTS_FRAME)
}

fn our_server() -> Result<Server> {
    let built = shell::build(&[
        "--release",
        "--package",
        "specialformer-benches",
        "--bin",
        "bench-server",
    ])?;
    Ok(Server::new("specialformer", executable(&built, "bench-server")?, &[]))
}

fn peer_servers(peers: &[Peer]) -> Result<Vec<Server>> {
    let folder = root().join("benches/peers");
    let manifest = folder.join("Cargo.toml");
    let rust: Vec<_> = peers.iter().filter(|peer| **peer != Peer::Pytorch).collect();
    let mut built = Vec::new();
    if !rust.is_empty() {
        let manifest = manifest.to_string_lossy();
        // Peers choose their kernels when they are compiled.
        let words = ["--release", "--workspace", "--manifest-path", &manifest];
        built = shell::build_native(&words)?;
    }
    peers
        .iter()
        .map(|&peer| match peer {
            Peer::Pytorch => {
                let python = venv::ready(&folder.join("requirements.txt"))?;
                let script = folder.join("torch_peer.py");
                Ok(Server::new(peer.name(), python, &[script.as_os_str()]))
            }
            Peer::Candle | Peer::Burn => {
                let name = format!("{}-peer", peer.name());
                Ok(Server::new(peer.name(), executable(&built, &name)?, &[]))
            }
        })
        .collect()
}

fn executable(built: &[(String, PathBuf)], name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|(built, _)| built == name);
    let (_, path) = found.ok_or_else(|| format!("cargo built no executable `{name}`"))?;
    Ok(Path::new(path).to_path_buf())
}
