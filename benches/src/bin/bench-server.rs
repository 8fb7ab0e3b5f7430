//! Our side of the comparison with other frameworks: runs training steps on
//! request, over a line protocol on stdin and stdout that all peers speak
//! (see `benches/peers/README.md`).

use std::io::{BufRead, Write};
use std::time::Instant;

use serde_json::{Value, json};
use specialformer::PeakMemory;
use specialformer_benches::{Case, cases};

fn main() {
    let Arguments { threads, shards } = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("bench-server: {message}");
            std::process::exit(2);
        }
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.expect("a pool of this size can be made");
    say(&json!({
        "ready": true,
        "peer": "specialformer",
        "version": env!("CARGO_PKG_VERSION"),
        "threads": threads,
    }));
    pool.install(|| serve(shards));
}

/// Worker threads, and shards of a batch if the default is not wanted.
struct Arguments {
    threads: usize,
    shards: Option<usize>,
}

fn arguments() -> Result<Arguments, String> {
    let mut words = std::env::args().skip(1);
    let mut arguments = Arguments { threads: 1, shards: None };
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        let number = value.parse().ok().filter(|&n: &usize| n > 0);
        let number = number.ok_or_else(|| format!("{word} = {value}: must be a positive number"));
        match word.as_str() {
            "--threads" => arguments.threads = number?,
            "--shards" => arguments.shards = Some(number?),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(arguments)
}

fn serve(shards: Option<usize>) {
    let mut running: Option<Running> = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["quit"] => break,
            ["list"] => say(&json!({ "cases": cases::NAMES })),
            ["run", name, count] => match count.parse::<usize>() {
                Ok(count) => say(&run(&mut running, name, count, shards)),
                Err(_) => say(&json!({ "error": format!("not a number of steps: {count}") })),
            },
            _ => say(&json!({ "error": format!("not understood: {line}") })),
        }
    }
}

/// The case at hand, and its memory since before its first step.
struct Running {
    name: String,
    case: Box<dyn Case>,
    memory: PeakMemory,
}

/// Runs steps of a case; the case before it is dropped first, so that memory
/// is that of one case.
fn run(running: &mut Option<Running>, name: &str, count: usize, shards: Option<usize>) -> Value {
    if running.as_ref().is_none_or(|current| current.name != name) {
        *running = None;
        let Some(mut case) = cases::build(name, shards) else {
            return json!({ "case": name, "error": "unknown case" });
        };
        let memory = PeakMemory::watch();
        for _ in 0..3 {
            case.step();
        }
        *running = Some(Running { name: name.to_string(), case, memory });
    }
    let Some(Running { case, memory, .. }) = running else { unreachable!("it was just set") };
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        case.step();
        seconds.push(started.elapsed().as_secs_f64());
    }
    json!({
        "case": name,
        "seconds": seconds,
        "rss_bytes": memory.rise(),
        "flops": case.flops(),
    })
}

fn say(value: &Value) {
    let mut out = std::io::stdout().lock();
    // A closed pipe means that the runner is gone.
    if writeln!(out, "{value}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
