//! `cargo xtask soak`: training, killing, resuming and evaluating in a loop.
//!
//! Beside the loop one run trains all the time, whose memory has to stay flat.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::shell::{self, Result, output, program, spelled};

/// `cargo xtask soak`.
#[derive(Args)]
pub(crate) struct Options {
    /// How long to go on.
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    minutes: f64,
    /// The binary to use (default: built for it, optimised).
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// What the moments of the kills are drawn from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Steps of the run that is killed again and again.
    #[arg(long, value_name = "N", default_value_t = 300)]
    steps: u64,
}

/// Checkpoints of that run, and of that many steps of the steady one.
const CHECKPOINTS: u64 = 12;

/// Growth that is put down to the allocator: a share, and bytes.
const SLACK: (f64, u64) = (0.05, 4 << 20);

/// A mixture of experts with adapters on three tasks: most of what there is
/// takes part.
fn config(name: &str, steps: u64, checkpoint_every: u64) -> String {
    let (log_every, eval_every) = (checkpoint_every, 2 * checkpoint_every);
    format!(
        r#"name = "{name}"
[model]
kind = "specialformer"
topology = "decoder"
vocabulary = 21
width = 32
layers = 2
heads = 2
feed_forward = 32
window = 40
positions = "rope"
dropout = 0.1
specialisation = "hybrid"
tasks = [
    {{ name = "sort" }},
    {{ name = "bracket-depth", head = "labelling", outputs = 7 }},
    {{ name = "mean", head = "regression" }},
]
[model.moe]
hidden = 16
router = {{ experts = 4, top_k = 2, balance = {{ load_balance = 0.01 }} }}
[model.adapter]
kind = "bottleneck"
width = 4
[data]
kind = "multitask"
tasks = ["sort", "bracket-depth", "mean"]
[train]
steps = {steps}
batch_size = 48
learning_rate = 3e-3
seed = 3
log_every = {log_every}
eval_every = {eval_every}
eval_size = 256
checkpoint_every = {checkpoint_every}
"#
    )
}

/// Runs the task.
pub(crate) fn run(options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(path) => std::path::absolute(path)?,
        None => {
            let built = shell::build(&["--release", "--package", "specialformer-cli"])?;
            let found = built.into_iter().find(|(name, _)| name == "specialformer");
            found.ok_or("cargo built no executable `specialformer`")?.1
        }
    };
    let folder = tempfile::tempdir()?;
    let every = (options.steps / CHECKPOINTS).max(1);
    let soak = Soak { binary, folder: folder.path().to_owned(), steps: options.steps, every };
    let start = Instant::now();
    let wanted = soak.whole()?;
    let training = start.elapsed();
    eprintln!("the run takes {:.1} s undisturbed", training.as_secs_f64());

    let mut steady = Steady::start(&soak)?;
    let end = Instant::now() + Duration::from_secs_f64(60.0 * options.minutes.max(0.0));
    let mut random = Random(options.seed);
    let (mut runs, mut kills) = (0, 0);
    while runs == 0 || Instant::now() < end {
        runs += 1;
        kills += soak.killed_run(training, &mut random, &mut steady)?;
        if soak.results()? != wanted {
            return Err(format!("run {runs} with kills came to another end").into());
        }
        let (steps, memory) = (steady.steps(), steady.last());
        eprintln!("{runs} runs, {kills} kills; beside them {steps} steps in {memory} kB");
    }
    let (first, most) = steady.end(&soak)?;
    println!(
        "{runs} runs with {kills} kills all came to the same end; memory of the steady run {first} \
         kB at first, at most {most} kB"
    );
    Ok(())
}

/// What a run comes to: weights, and the answers of an evaluation.
#[derive(PartialEq)]
struct Results {
    weights: Vec<u8>,
    evaluation: Value,
    /// Metrics but for the time they took.
    metrics: Vec<Value>,
}

struct Soak {
    binary: PathBuf,
    folder: PathBuf,
    /// Of the run that is killed.
    steps: u64,
    /// Steps between checkpoints.
    every: u64,
}

impl Soak {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = program(&self.binary);
        command.current_dir(&self.folder).args(words).args(["--quiet", "--threads", "1"]);
        command
    }

    /// The run that nobody disturbs.
    fn whole(&self) -> Result<Results> {
        fs::write(self.folder.join("run.toml"), config("run", self.steps, self.every))?;
        output(&mut self.command(&["train", "run.toml", "--json"]))?;
        self.results()
    }

    /// Reads what the run came to, and removes it.
    fn results(&self) -> Result<Results> {
        let run = self.folder.join("runs/run");
        let evaluation =
            output(&mut self.command(&["eval", "runs/run", "--size", "256", "--json"]))?;
        let lines = fs::read_to_string(run.join("metrics.jsonl"))?;
        let untimed = |line: &str| {
            let mut record: Value = serde_json::from_str(line)?;
            if let Some(fields) = record.as_object_mut() {
                fields.retain(|name, _| name != "seconds" && name != "tokens_per_second");
            }
            Ok(record)
        };
        let mut evaluation: Value = serde_json::from_str(&evaluation)?;
        if let Some(fields) = evaluation["evaluation"].as_object_mut() {
            fields.remove("seconds");
        }
        let results = Results {
            weights: fs::read(run.join("model.safetensors"))?,
            evaluation,
            metrics: lines.lines().map(untimed).collect::<Result<_>>()?,
        };
        fs::remove_dir_all(run)?;
        Ok(results)
    }

    /// Trains the run with kills at random moments; how many hit.
    fn killed_run(
        &self,
        training: Duration,
        random: &mut Random,
        steady: &mut Steady,
    ) -> Result<u64> {
        let mut kills = 0;
        loop {
            let mut words = vec!["train", "run.toml", "--csv", "--tensorboard"];
            if self.folder.join("runs/run/config.toml").is_file() {
                words.push("--resume");
            } else if self.folder.join("runs/run").exists() {
                // Killed before it had said what it is.
                fs::remove_dir_all(self.folder.join("runs/run"))?;
            }
            let mut command = self.command(&words);
            let mut child = quietly(&mut command)?;
            let deadline = Instant::now() + training.mul_f64(random.share());
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break Some(status);
                }
                if Instant::now() >= deadline {
                    child.kill()?;
                    break Some(child.wait()?).filter(|status| status.code().is_some());
                }
                steady.look()?;
                sleep(Duration::from_millis(20));
            };
            match status {
                Some(status) if status.success() => return Ok(kills),
                Some(status) => return Err(format!("`{}`: {status}", spelled(&command)).into()),
                None => kills += 1,
            }
            self.evaluate_if_there()?;
        }
    }

    /// What a kill left can be evaluated as soon as it has a checkpoint.
    fn evaluate_if_there(&self) -> Result<()> {
        let checkpoints = self.folder.join("runs/run/checkpoints");
        let whole = |name: &str| name.starts_with("step-");
        let any = fs::read_dir(checkpoints).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|e| whole(&e.file_name().to_string_lossy())))
        });
        if any {
            output(&mut self.command(&["eval", "runs/run", "--size", "64", "--json"]))?;
        }
        Ok(())
    }
}

fn quietly(command: &mut Command) -> Result<Child> {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.map_err(|e| format!("cannot start `{}`: {e}", spelled(command)).into())
}

/// A run that trains all the time, and what memory it takes.
struct Steady {
    child: Child,
    run: PathBuf,
    /// Resident kilobytes by time.
    seen: Vec<u64>,
}

impl Steady {
    fn start(soak: &Soak) -> Result<Self> {
        fs::write(soak.folder.join("steady.toml"), config("steady", 1_000_000_000, soak.every))?;
        let child = quietly(&mut soak.command(&["train", "steady.toml"]))?;
        let mut steady = Self { child, run: soak.folder.join("runs/steady"), seen: Vec::new() };
        // Everything has happened once by then: a checkpoint, an evaluation.
        while steady.steps() < 4 * soak.every {
            if let Some(status) = steady.child.try_wait()? {
                return Err(format!("the steady run ended by itself: {status}").into());
            }
            sleep(Duration::from_millis(50));
        }
        steady.look()?;
        Ok(steady)
    }

    fn look(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("the steady run ended by itself: {status}").into());
        }
        self.seen.extend(resident_kilobytes(self.child.id()));
        Ok(())
    }

    fn last(&self) -> u64 {
        self.seen.last().copied().unwrap_or(0)
    }

    /// Steps in its metrics.
    fn steps(&self) -> u64 {
        let text = fs::read_to_string(self.run.join("metrics.jsonl")).unwrap_or_default();
        let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        last.and_then(|record| record["step"].as_u64()).unwrap_or(0)
    }

    /// Ends it with Ctrl-C, checks that it can be gone on with, and that its
    /// memory stayed flat: first and most.
    fn end(mut self, soak: &Soak) -> Result<(u64, u64)> {
        self.look()?;
        let id = self.child.id().to_string();
        output(program("kill").args(["-INT", &id]))?;
        let status = self.child.wait()?;
        if status.code() != Some(130) {
            return Err(format!("the steady run ended with {status} at Ctrl-C").into());
        }
        output(&mut soak.command(&["eval", "runs/steady", "--size", "64", "--json"]))?;
        let first = self.seen.first().copied().unwrap_or(0);
        let most = self.seen.iter().copied().max().unwrap_or(0);
        let allowed = (first as f64 * (1.0 + SLACK.0)) as u64 + SLACK.1 / 1024;
        if most > allowed {
            let grown = format!("{first} kB to {most} kB, allowed {allowed} kB");
            return Err(format!("the memory of the steady run grew from {grown}").into());
        }
        Ok((first, most))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process; `None` where the system does not tell.
fn resident_kilobytes(id: u32) -> Option<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(id.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// SplitMix64: moments need no more.
struct Random(u64);

impl Random {
    /// Between 0 and 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_processes_is_read() {
        if cfg!(target_os = "linux") {
            assert!(resident_kilobytes(std::process::id()).unwrap() > 100);
        }
        let mut random = Random(1);
        assert!((0..100).all(|_| (0.0..=1.0).contains(&random.share())));
    }

    #[test]
    fn the_configurations_are_valid() {
        for (steps, every) in [(1, 1), (300, 25), (1_000_000_000, 25)] {
            specialformer::RunConfig::parse(&config("run", steps, every), "run.toml").unwrap();
        }
    }
}
