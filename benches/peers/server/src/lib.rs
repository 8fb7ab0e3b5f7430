//! The line protocol of the bench servers, and the two decoders' sizes.
//!
//! The protocol is described in `benches/peers/README.md`.

use std::error::Error;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

/// Steps before the first timed one.
const WARM_UP: usize = 3;

/// Batches made beforehand and used in turn.
pub const BATCHES: usize = 8;

/// What a peer's library returns when it fails.
pub type Failure = Box<dyn Error + Send + Sync>;

/// One training step, repeatable.
pub trait Case {
    /// Forward, backward and the optimiser.
    ///
    /// # Errors
    ///
    /// Whatever the library under measurement reports.
    fn step(&mut self) -> Result<(), Failure>;

    /// The loss of the latest step.
    ///
    /// # Errors
    ///
    /// Whatever the library under measurement reports.
    fn value(&self) -> Result<f64, Failure>;

    /// The number of trainable parameters.
    fn parameters(&self) -> usize;
}

/// Size of a decoder case: shape letters B, T, C, H, F and V.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// The case's name in the protocol.
    pub name: &'static str,
    /// B.
    pub batch: usize,
    /// T.
    pub length: usize,
    /// C.
    pub width: usize,
    /// H.
    pub heads: usize,
    /// Number of blocks.
    pub layers: usize,
    /// F.
    pub hidden: usize,
    /// V.
    pub vocabulary: usize,
    /// How many parameters the layout of the README has.
    pub parameters: usize,
}

/// The decoders that candle and burn are measured on.
pub const DECODERS: [Decoder; 2] = [
    Decoder {
        name: "decoder_d64",
        batch: 256,
        length: 24,
        width: 64,
        heads: 2,
        layers: 2,
        hidden: 256,
        vocabulary: 64,
        parameters: 109_888,
    },
    Decoder {
        name: "decoder_d512",
        batch: 8,
        length: 256,
        width: 512,
        heads: 8,
        layers: 6,
        hidden: 2048,
        vocabulary: 1024,
        parameters: 20_096_000,
    },
];

impl Decoder {
    /// `count` token ids below the vocabulary, the same for the same `seed`.
    #[must_use]
    pub fn tokens(&self, count: usize, seed: u64) -> Vec<u32> {
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (0..count)
            .map(|_| {
                // SplitMix64 (Steele et al. 2014).
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut word = state;
                word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((word ^ (word >> 31)) % self.vocabulary as u64) as u32
            })
            .collect()
    }
}

/// The version of `package` in a `Cargo.lock`.
#[must_use]
pub fn locked_version(lock: &str, package: &str) -> String {
    let name = format!("name = \"{package}\"");
    lock.lines()
        .skip_while(|line| *line != name)
        .nth(1)
        .and_then(|line| line.split('"').nth(1))
        .unwrap_or("unknown")
        .to_owned()
}

/// Reads `--threads N` and makes rayon use that many.
///
/// Rayon reads its variable once, and setting a variable in a running process
/// is unsafe, so the process starts itself again where it differs.
///
/// # Errors
///
/// A message for the user when the arguments are not as above, or when the
/// process cannot be started again.
pub fn threads_from_arguments() -> Result<usize, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads: usize = match arguments.as_slice() {
        [] => 1,
        [flag, count] if flag == "--threads" => count
            .parse()
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| format!("--threads: expected a positive number, got {count}"))?,
        _ => return Err("usage: --threads N".into()),
    };
    let wanted = threads.to_string();
    if std::env::var("RAYON_NUM_THREADS").is_ok_and(|value| value == wanted) {
        return Ok(threads);
    }
    let failure = Command::new(std::env::current_exe()?)
        .args(&arguments)
        .env("RAYON_NUM_THREADS", wanted)
        .exec();
    Err(failure.into())
}

/// Answers requests on standard input until `quit` or its end.
///
/// `load` builds a decoder; `start_up` runs once before the server says that it
/// is ready and touches whatever the library sets up lazily.
///
/// # Errors
///
/// When standard output is closed or `start_up` fails. A failing case is
/// answered with an `error` line instead.
pub fn serve(
    peer: &str,
    version: &str,
    threads: usize,
    start_up: impl FnOnce() -> Result<(), Failure>,
    load: impl Fn(Decoder) -> Result<Box<dyn Case>, Failure>,
) -> Result<(), Failure> {
    start_up()?;
    let mut output = std::io::stdout().lock();
    let mut reply = |message: Value| -> std::io::Result<()> {
        writeln!(output, "{message}")?;
        output.flush()
    };
    reply(json!({"ready": true, "peer": peer, "version": version, "threads": threads}))?;
    let mut loaded: Option<Loaded> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            [] => continue,
            ["quit"] => break,
            ["list"] => Ok(json!({"cases": DECODERS.map(|decoder| decoder.name)})),
            ["run", name, steps] => run(&mut loaded, &load, name, steps),
            _ => Err(format!("expected `list`, `run CASE N` or `quit`, got `{line}`").into()),
        };
        reply(answer.unwrap_or_else(|error| json!({"error": error.to_string()})))?;
    }
    Ok(())
}

/// The case that the server holds, and the resident memory after building it.
struct Loaded {
    name: String,
    case: Box<dyn Case>,
    resident: Option<u64>,
}

fn run(
    loaded: &mut Option<Loaded>,
    load: &impl Fn(Decoder) -> Result<Box<dyn Case>, Failure>,
    name: &str,
    steps: &str,
) -> Result<Value, Failure> {
    let count: usize = steps
        .parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| format!("steps: expected a positive whole number, got {steps}"))?;
    if loaded.as_ref().is_none_or(|held| held.name != name) {
        *loaded = None;
        let decoder = DECODERS
            .into_iter()
            .find(|decoder| decoder.name == name)
            .ok_or_else(|| format!("unknown case {name}"))?;
        let mut case = load(decoder)?;
        if case.parameters() != decoder.parameters {
            let (got, expected) = (case.parameters(), decoder.parameters);
            return Err(format!("{name}: {got} parameters instead of {expected}").into());
        }
        let resident = restart_peak_memory();
        for _ in 0..WARM_UP {
            case.step()?;
        }
        *loaded = Some(Loaded { name: name.to_owned(), case, resident });
    }
    let Some(held) = loaded else {
        return Err("no case is loaded".into());
    };
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        held.case.step()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let peak =
        held.resident.and_then(|resident| Some(status_bytes("VmHWM:")?.saturating_sub(resident)));
    Ok(json!({
        "case": name,
        "seconds": seconds,
        "rss_bytes": peak,
        "parameters": held.case.parameters(),
        "value": held.case.value()?,
    }))
}

/// Starts Linux's peak counter at the memory in use, and returns that.
fn restart_peak_memory() -> Option<u64> {
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
