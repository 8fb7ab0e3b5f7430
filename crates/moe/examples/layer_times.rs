//! Times of the fused expert products against the dense feed-forward layer of
//! the same active size, and of routing alone, taking turns; and how much
//! memory the products take besides weights and their gradients.
//!
//! `cargo run --release -p specialformer-moe --example layer_times -- THREADS ROUNDS`

use specialformer_moe::{ExpertVars, moe_experts};
use specialformer_nn::{Activation, Ctx, FeedForward, FeedForwardKind};
use specialformer_routing::{Balance, Choices, DispatchPlan, RouteInput, Router, RouterConfig};
use specialformer_tensor::{Parallelism, Pool, RngStream, Seed, Tape, TapeConfig, Tensor};

const TOKENS: usize = 4096;
const WIDTH: usize = 512;
const HIDDEN: usize = 1024;
const PICKED: usize = 2;
const KIND: FeedForwardKind = FeedForwardKind::Gated(Activation::Silu);

fn random(shape: &[usize], rng: &mut RngStream) -> Tensor {
    Tensor::from_fn(shape, || rng.normal() as f32 * 0.05)
}

/// Distinct experts for each token, drawn evenly.
fn plan(experts: usize, rng: &mut RngStream) -> DispatchPlan {
    let offsets = (0..=TOKENS).map(|t| (t * PICKED) as u32).collect();
    let chosen = (0..TOKENS).flat_map(|_| {
        let first = rng.below(experts);
        [first as u32, ((first + 1 + rng.below(experts - 1)) % experts) as u32]
    });
    let choices = Choices::new(experts, offsets, chosen.collect()).expect("they are in range");
    DispatchPlan::new(choices, None).expect("they are few")
}

struct Layer {
    plan: DispatchPlan,
    weights: [Tensor; 3],
}

/// Seconds: processor time of this thread if it works alone, which other
/// programs disturb less; else wall-clock time.
fn now() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    if rayon::current_num_threads() == 1 {
        let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
        let first = times.and_then(|times| times.split(' ').next()?.parse::<f64>().ok());
        if let Some(nanoseconds) = first {
            return nanoseconds * 1e-9;
        }
    }
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64()
}

fn main() {
    let mut words = std::env::args().skip(1).map(|w| w.parse::<usize>().expect("a number"));
    let threads = words.next().unwrap_or(1);
    let rounds = words.next().unwrap_or(5);
    let only = words.next();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| run(rounds, only));
}

fn run(rounds: usize, only: Option<usize>) {
    let mut rng = Seed::new(1).stream("times");
    let dense =
        FeedForward::<f32>::new(KIND, WIDTH, PICKED * HIDDEN, false, &mut rng).expect("sizes");
    let config = RouterConfig {
        balance: Balance { load_balance: 0.01, z: 0.001, ..Balance::default() },
        ..RouterConfig::new(16, PICKED)
    };
    let router = Router::<f32>::new(config, WIDTH, &mut rng).expect("the configuration is valid");
    let x = random(&[TOKENS, WIDTH], &mut rng);
    let cotangent = random(&[TOKENS, WIDTH], &mut rng);
    let combine = Tensor::full([TOKENS * PICKED], 0.5);
    let sizes = [8usize, 16, 32, 64, 128].into_iter().filter(|&e| only.is_none_or(|o| o == e));
    let layers: Vec<(usize, Layer)> = sizes
        .map(|e| {
            let weights = [[e, HIDDEN, WIDTH], [e, HIDDEN, WIDTH], [e, WIDTH, HIDDEN]];
            let weights = weights.map(|shape| random(&shape, &mut rng));
            (e, Layer { plan: plan(e, &mut rng), weights })
        })
        .collect();
    let buffers = Pool::new();
    let config = || TapeConfig {
        parallelism: Parallelism::Rayon,
        pool: buffers.clone(),
        ..TapeConfig::default()
    };
    let mut times: Vec<(String, Vec<f64>, Vec<f64>)> = ["dense", "router"]
        .map(String::from)
        .into_iter()
        .chain(layers.iter().map(|(e, _)| format!("E {e}")))
        .map(|name| (name, Vec::new(), Vec::new()))
        .collect();
    for round in 0..=rounds {
        for (i, (_, forward, both)) in times.iter_mut().enumerate() {
            let tape = Tape::with_config(config());
            let x = tape.variable(x.clone());
            let started = now();
            let y = if i == 0 {
                let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("dropout"));
                dense.forward(&ctx, &x).expect("the sizes fit")
            } else if i == 1 {
                let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("noise"));
                let input = RouteInput::default();
                router.forward(&ctx, &x, &input).expect("the sizes fit").weights
            } else {
                let Layer { plan, weights } = &layers[i - 2].1;
                let [gate, up, down] = weights.each_ref().map(|w| tape.variable(w.clone()));
                let combine = tape.variable(combine.clone());
                let bank = ExpertVars {
                    kind: KIND,
                    gate: Some(gate),
                    up,
                    down,
                    gate_bias: None,
                    up_bias: None,
                    down_bias: None,
                };
                moe_experts(&x, &combine, &bank, plan).expect("the sizes fit")
            };
            let middle = now() - started;
            let cotangent = if i == 1 { combine.clone() } else { cotangent.clone() };
            let gradients = tape.backward_from(&y, cotangent).expect("it is tracked");
            let end = now() - started;
            drop(gradients);
            if round > 0 {
                forward.push(middle * 1e3);
                both.push(end * 1e3);
            }
        }
    }
    for (e, Layer { plan, weights }) in &layers {
        let pool = Pool::new();
        let tape = Tape::with_config(TapeConfig { pool: pool.clone(), ..config() });
        let [gate, up, down] = weights.each_ref().map(|w| tape.constant(w.clone()));
        let (x, combine) = (tape.variable(x.clone()), tape.variable(combine.clone()));
        let bank = ExpertVars {
            kind: KIND,
            gate: Some(gate),
            up,
            down,
            gate_bias: None,
            up_bias: None,
            down_bias: None,
        };
        let y = moe_experts(&x, &combine, &bank, plan).expect("the sizes fit");
        drop(tape.backward_from(&y, cotangent.clone()).expect("it is tracked"));
        drop((x, combine, y, bank, tape));
        println!(
            "E {e}: {:.1} MB of buffers, {:.2} MB of plan",
            pool.idle_bytes() as f64 / 1e6,
            plan.bytes() as f64 / 1e6
        );
    }
    println!("threads {}; ms, min (median)", rayon::current_num_threads());
    for (name, forward, both) in &mut times {
        let [forward, both] = [forward, both].map(|times| {
            times.sort_by(f64::total_cmp);
            format!("{:8.1} ({:8.1})", times[0], times[times.len() / 2])
        });
        println!("{name:>6}  forward {forward}  forward and backward {both}");
    }
}
