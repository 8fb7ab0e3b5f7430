//! Runs the targets on a stable compiler with a mutator of its own: seeded,
//! counted, and resumable. Says how many executions a target has had in all.
//!
//! `cargo run --no-default-features --bin soak -- [SECONDS] [TARGET…]`
//! `cargo run --no-default-features --bin soak -- corpus`
//!
//! `soak replay TARGET FILE` runs one input and shows where it panics.
//!
//! Execution n of a target always gets the same input, so that a finding is
//! its number. Counts are kept in `findings/soak.txt`. An input that makes a
//! target panic, or allocate more than its length justifies, is written to
//! `findings/` and ends the run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use specialformer_fuzz::{TARGETS, Target};

/// The largest single allocation since it was set to zero.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watching;

// SAFETY: every call is handed to the system allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// A file may make a reader allocate 16 times its length at once (values that
/// widen, nodes of maps), and what any file needs: buffers, a compiled
/// template or expression.
fn allowed(len: usize) -> usize {
    16 * len + (4 << 20)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

const WORDS: [u64; 12] = [
    0,
    1,
    2,
    31,
    32,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];

const TEXTS: [&str; 16] = [
    "-1",
    "1e999",
    "NaN",
    "null",
    "true",
    "[]",
    "{}",
    "\"",
    "18446744073709551615",
    "0.5",
    "[[",
    "\\u0000",
    "\u{fffd}",
    "../",
    "F16",
    "0",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(4) {
        let len = bytes.len();
        let at = random.below(len);
        match random.below(10) {
            0 if len > 0 => bytes[at] ^= 1 << random.below(8),
            1 if len > 0 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 if len >= 8 => {
                let word = WORDS[random.below(WORDS.len())];
                let at = random.below(len - 7);
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            4 if len >= 4 => {
                let word = WORDS[random.below(WORDS.len())] as u32;
                let at = random.below(len - 3);
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            5 => {
                let text = TEXTS[random.below(TEXTS.len())];
                let end = (at + random.below(8)).min(len);
                bytes.splice(at.min(end)..end, text.bytes());
            }
            6 => {
                let end = (at + 1 + random.below(32)).min(len);
                let copied = bytes[at.min(end)..end].to_vec();
                let to = random.below(len + 1);
                bytes.splice(to..to, copied);
            }
            7 => {
                let end = (at + 1 + random.below(16)).min(len);
                bytes.drain(at.min(end)..end);
            }
            8 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            // A small change of a number.
            _ if len > 0 => {
                bytes[at] = bytes[at].wrapping_add(random.below(5) as u8).wrapping_sub(2)
            }
            _ => {}
        }
    }
    bytes
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|word| word == "corpus") {
        return write_corpus();
    }
    if arguments.next_if(|word| word == "replay").is_some() {
        let name = arguments.next().unwrap_or_default();
        let path = arguments.next().unwrap_or_default();
        let target = TARGETS.iter().find(|target| target.name == name).expect("a target's name");
        (target.run)(&std::fs::read(path).expect("a file"));
        return ExitCode::SUCCESS;
    }
    let seconds = arguments.peek().and_then(|word| word.parse().ok());
    if seconds.is_some() {
        arguments.next();
    }
    let names: Vec<String> = arguments.collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings");
    std::fs::create_dir_all(&folder).expect("a folder for what is found");
    let chosen = |target: &&Target| names.is_empty() || names.iter().any(|n| n == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(chosen).collect();
    let each = Duration::from_secs(seconds.unwrap_or(60)) / targets.len().max(1) as u32;
    // Errors that a panic inside a dependency becomes are no findings here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut counts = read_counts(&folder);
    for target in targets {
        let done = counts.entry(target.name.to_owned()).or_default();
        let before = *done;
        let start = Instant::now();
        let outcome = soak(target, done, each, &folder);
        let rate = (*done - before) as f64 / start.elapsed().as_secs_f64();
        println!("{:<16} {:>10} executions in all, {rate:>8.0}/s", target.name, *done);
        write_counts(&folder, &counts);
        if let Err(found) = outcome {
            eprintln!("{}: {found}", target.name);
            return ExitCode::FAILURE;
        }
    }
    println!("{:<16} {:>10}", "all targets", counts.values().sum::<u64>());
    ExitCode::SUCCESS
}

/// Writes the seeds where `cargo fuzz` looks for them.
fn write_corpus() -> ExitCode {
    for target in &TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&folder).expect("a folder for the corpus");
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a seed is kept");
        }
    }
    ExitCode::SUCCESS
}

fn soak(target: &Target, done: &mut u64, time: Duration, folder: &Path) -> Result<(), String> {
    let mut seeds = (target.seeds)();
    // Findings of `cargo fuzz` that were kept, beside the seeds.
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    seeds.extend(files.iter().filter_map(|path| std::fs::read(path).ok()));
    // Seeds themselves first: what any file needs is allocated once.
    seeds.iter().for_each(|seed| (target.run)(seed));
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..64 {
            let bytes = mutate(&seeds, &mut Random(done.wrapping_mul(0x2545_f491_4f6c_dd1d)));
            LARGEST.store(0, Relaxed);
            let ran = std::panic::catch_unwind(|| (target.run)(&bytes));
            let largest = LARGEST.load(Relaxed);
            let found = match ran {
                Err(_) => "a panic".to_owned(),
                Ok(()) if largest > allowed(bytes.len()) => {
                    format!("{largest} bytes allocated for a file of {}", bytes.len())
                }
                Ok(()) => {
                    *done += 1;
                    continue;
                }
            };
            let path = folder.join(format!("{}-{done}", target.name));
            std::fs::write(&path, &bytes).map_err(|e| e.to_string())?;
            return Err(format!("{found}, input in {}", path.display()));
        }
    }
    Ok(())
}

fn read_counts(folder: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(folder.join("soak.txt")).unwrap_or_default();
    let entry = |line: &str| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

fn write_counts(folder: &Path, counts: &BTreeMap<String, u64>) {
    let text: String = counts.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
    std::fs::write(folder.join("soak.txt"), text).expect("counts are kept");
}
