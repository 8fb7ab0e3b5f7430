//! Made-up results that look like real ones, for tests and for looking at
//! the page. Nothing here is measured.

use super::data::*;

/// A full study: six models, three seeds of the first two, attention maps and
/// histograms for the transformers, every optional part present.
pub(crate) fn study() -> ReportData {
    let mut rng = Noise(1);
    let windows: Vec<Window> = (0..4).map(|_| window(&mut rng)).collect();
    let mut runs = Vec::new();
    for (index, model) in MODELS.iter().enumerate() {
        for seed in 0..if index < 2 { 3 } else { 1 } {
            runs.push(run(model, seed, &windows, &mut rng));
        }
    }
    let guess = [0.89, 0.15, 0.30, 0.32];
    ReportData {
        title: "Task switching: cisformer against the standard transformer".into(),
        subtitle: "Six small models on the same 8,000 steps of 256 windows, T = 16.".into(),
        notes: vec![
            "The benchmark follows a paper that gives its tasks in words; the exact rules are \
             this project's own, so figures are not to be compared with the paper's."
                .into(),
        ],
        subtasks: [("I", "Increment"), ("A", "Addition"), ("R", "Reverse"), ("C", "Context")]
            .map(|(symbol, name)| Subtask { symbol: symbol.into(), name: name.into() })
            .into(),
        target: Some(0.95),
        references: vec![Reference {
            name: "guessing from task and last token".into(),
            overall: Some(0.41),
            subtasks: guess.map(Some).into(),
        }],
        runs,
        windows,
        config: CONFIG.into(),
        environment: Some(Environment {
            version: "specialformer 0.1.0".into(),
            simd: "AVX-512".into(),
            threads: 2,
            seconds: 742.3,
            extra: vec![("BLAS".into(), "none (embedded kernels)".into())],
        }),
        ..ReportData::default()
    }
}

/// One run on several tasks of a model with two layers of `experts` experts.
pub(crate) fn experts(experts: usize) -> ReportData {
    let mut rng = Noise(3);
    let names = ["sort", "sort-descending", "running-sum-7", "bracket-depth", "keyword", "mean"];
    let scored = &names[..5];
    let mut result = run(&MODELS[1], 1, &[], &mut rng);
    result.name = "multitask-moe".into();
    for point in &mut result.points {
        let accuracy = point.accuracy;
        point.subtask_accuracy = accuracy.map_or_else(Vec::new, |accuracy| vec![accuracy; 5]);
    }
    let score = |accuracy| Score { accuracy, standard_error: Some(0.004) };
    result.scores = Some(Scores { overall: score(0.91), subtasks: vec![score(0.9); scored.len()] });
    result.histograms.clear();
    result.tasks = names
        .iter()
        .map(|name| TaskResult {
            name: (*name).into(),
            kind: if *name == "mean" { "regression" } else { "sequence" }.into(),
            loss: 0.2 + 0.1 * rng.uniform(),
            accuracy: (*name != "mean").then(|| score(0.8 + 0.2 * rng.uniform())),
            r_squared: (*name == "mean").then_some(0.93),
            targets: 2_150,
        })
        .collect();
    let layer = |index: usize, rng: &mut Noise| {
        let mut shares = |favourite: usize| -> Vec<f64> {
            let mut row: Vec<f64> = (0..experts).map(|_| 0.2 + rng.uniform()).collect();
            row[favourite % experts] += 1.5;
            let total: f64 = row.iter().sum();
            row.iter().map(|share| share / total).collect()
        };
        let point = |n: u64| RoutingPoint {
            step: 50 * (n + 1),
            entropy: Some(0.6 + 1.4 * (-0.06 * n as f64).exp() + 0.1 * index as f64),
            max_over_mean: Some(1.3 + 2.0 * (-0.1 * n as f64).exp()),
            dropped: Some(0.0),
        };
        RoutingLayer {
            name: format!("blocks.{index}"),
            load: shares(index),
            task_shares: (0..names.len()).map(|task| shares(task + index)).collect(),
            co_activation: (0..experts).map(|expert| shares(expert + 1)).collect(),
            entropy: 1.2,
            evenness: 0.97,
            max_over_mean: 1.42,
            dropped: 0.0,
            mutual_information: 0.31,
            specialization: 0.17,
            calibration: Some(0.12),
            points: (0..80).map(point).collect(),
        }
    };
    ReportData {
        title: "multitask-moe".into(),
        subtasks: scored
            .iter()
            .map(|name| Subtask { symbol: (*name).into(), name: (*name).into() })
            .collect(),
        runs: vec![result],
        routing: Some(Routing {
            set: "test".into(),
            rows: 2_048,
            tasks: names.map(String::from).into(),
            layers: (0..2).map(|index| layer(index, &mut rng)).collect(),
        }),
        signatures: Some(signatures(experts)),
        ..ReportData::default()
    }
}

/// One LSTM run: no attention, no histograms, no environment.
pub(crate) fn lstm() -> ReportData {
    let mut rng = Noise(2);
    let full = study();
    let windows: Vec<Window> = (0..2).map(|_| window(&mut rng)).collect();
    ReportData {
        title: "LSTM".into(),
        runs: vec![run(&MODELS[4], 0, &windows, &mut rng)],
        windows,
        subtasks: full.subtasks,
        ..ReportData::default()
    }
}

const CONFIG: &str = "\
# The quick demo, as run.
[data]
window = 16
digits = 10
switch_probability = 0.1

[model]
kind = \"cisformer\"
attention = \"expressive\"
d_model = 16
heads = 2
layers = 2
feed_forward = 64

[training]
steps = 8_000
batch = 256
learning_rate = 5e-3
schedule = { kind = \"cosine\", warm_up = 200, final_fraction = 0.05 }
clip = 1.0
";

struct Fake {
    name: &'static str,
    parameters: u64,
    layout: &'static str,
    /// Final accuracy of each subtask.
    finals: [f64; 4],
    speed: f64,
    /// Antiparallel keys attend: `None` for models without attention.
    expressive: Option<bool>,
}

const MODELS: [Fake; 6] = [
    Fake {
        name: "cisformer, expressive",
        parameters: 103_466,
        layout: "16·2·3,216 + 224 + 160 + 170",
        finals: [0.9999, 0.994, 0.973, 0.955],
        speed: 412_000.0,
        expressive: Some(true),
    },
    Fake {
        name: "transformer, softmax, learned positions",
        parameters: 7_242,
        layout: "2·3,216 + 256 + 224 + 160 + 170",
        finals: [0.9998, 0.995, 0.905, 0.958],
        speed: 468_000.0,
        expressive: Some(false),
    },
    Fake {
        name: "transformer, expressive",
        parameters: 7_242,
        layout: "",
        finals: [0.999, 0.934, 0.830, 0.807],
        speed: 481_000.0,
        expressive: Some(true),
    },
    Fake {
        name: "transformer, softmax, no positions",
        parameters: 6_986,
        layout: "",
        finals: [0.958, 0.840, 0.542, 0.637],
        speed: 475_000.0,
        expressive: Some(false),
    },
    Fake {
        name: "LSTM, hidden 32",
        parameters: 6_954,
        layout: "",
        finals: [0.999, 0.969, 0.803, 0.776],
        speed: 690_000.0,
        expressive: None,
    },
    Fake {
        name: "MLP 224–440–10",
        parameters: 103_410,
        layout: "",
        finals: [1.0, 0.991, 0.979, 0.960],
        speed: 1_630_000.0,
        expressive: None,
    },
];

const STEPS: u64 = 8_000;
const TEST_WINDOWS: f64 = 32_768.0;

fn run(model: &Fake, seed: u64, windows: &[Window], rng: &mut Noise) -> Run {
    let shift = rng.normal() * 0.006 * seed.min(1) as f64;
    let finals = model.finals.map(|accuracy| (accuracy + shift).min(1.0));
    let score = |accuracy: f64, share: f64| Score {
        accuracy,
        standard_error: Some((accuracy * (1.0 - accuracy) / (TEST_WINDOWS * share)).sqrt()),
    };
    let points: Vec<Point> = (1..=STEPS / 20).map(|n| point(model, finals, n * 20, rng)).collect();
    let samples = windows.iter().enumerate();
    let samples = samples.map(|(index, window)| sample(model, index, window, rng)).collect();
    Run {
        tasks: Vec::new(),
        name: model.name.into(),
        parameters: model.parameters,
        parameter_layout: model.layout.into(),
        attention: match model.expressive {
            Some(true) => "expressive".into(),
            Some(false) => "softmax".into(),
            None => String::new(),
        },
        seed,
        seconds: Some((STEPS * 4096) as f64 / model.speed),
        scores: Some(Scores {
            overall: score(finals.iter().sum::<f64>() / 4.0, 1.0),
            subtasks: finals.map(|accuracy| score(accuracy, 0.25)).into(),
        }),
        points,
        samples: if seed == 0 { samples } else { vec![] },
        histograms: if seed == 0 { histograms(model, rng) } else { vec![] },
    }
}

fn point(model: &Fake, finals: [f64; 4], step: u64, rng: &mut Noise) -> Point {
    let x = step as f64;
    // Subtasks are learned one after the other.
    let learned = |task: usize| {
        let onset = [150.0, 700.0, 1500.0, 1300.0][task];
        1.0 / (1.0 + (-(x / onset).ln() * 2.2).exp())
    };
    let subtask_accuracy: Vec<f64> = (0..4)
        .map(|task| 0.1 + (finals[task] - 0.1) * learned(task) + rng.normal() * 0.004)
        .map(|accuracy| accuracy.clamp(0.0, 1.0))
        .collect();
    let accuracy = subtask_accuracy.iter().sum::<f64>() / 4.0;
    let loss = 2.3 * (1.0 - accuracy).max(0.004);
    let evaluated = step.is_multiple_of(200);
    let warm_up = (x / 200.0).min(1.0);
    let cosine = 0.525 + 0.475 * (std::f64::consts::PI * x / STEPS as f64).cos();
    Point {
        step,
        tokens: step * 4096,
        train_loss: Some(loss * (0.08 * rng.normal()).exp()),
        validation_loss: evaluated.then_some(loss * 1.02),
        accuracy: evaluated.then_some(accuracy),
        subtask_accuracy: if evaluated { subtask_accuracy } else { vec![] },
        learning_rate: Some(5e-3 * warm_up * cosine),
        gradient_norm: Some((0.3 + loss) * (0.25 * rng.normal()).exp()),
        tokens_per_second: Some(model.speed * (1.0 + 0.03 * rng.normal())),
        ..Point::default()
    }
}

const LENGTH: usize = 16;

fn window(rng: &mut Noise) -> Window {
    let mut task = rng.below(4);
    let mut tokens = Vec::new();
    while tokens.len() < LENGTH {
        let switch = tokens.len() == LENGTH - 4 || rng.below(9) == 0;
        if switch {
            task = rng.below(4);
        }
        let text = if switch { "IARC"[task..=task].into() } else { rng.below(10).to_string() };
        tokens.push(Token { text, subtask: Some(task) });
    }
    let sources = match task {
        0 => vec![LENGTH - 4, LENGTH - 1],
        1 => vec![LENGTH - 4, LENGTH - 2, LENGTH - 1],
        2 => vec![LENGTH - 4, LENGTH - 8],
        _ => vec![LENGTH - 4, LENGTH - 1, LENGTH - 6],
    };
    Window { tokens, answer: rng.below(10).to_string(), subtask: Some(task), sources }
}

fn sample(model: &Fake, index: usize, window: &Window, rng: &mut Noise) -> Sample {
    let right = rng.uniform() < model.finals[window.subtask.unwrap_or(0)] - 0.15;
    let answer: usize = window.answer.parse().unwrap_or(0);
    let first = if right { answer } else { (answer + 1 + rng.below(9)) % 10 };
    let mut rest = 1.0;
    let mut candidates = vec![];
    for rank in 0..4 {
        let probability = rest * (0.6 + 0.35 * rng.uniform());
        rest -= probability;
        candidates.push(Candidate { token: ((first + rank * 3) % 10).to_string(), probability });
    }
    let heads = if model.expressive.is_some() { 4 } else { 0 };
    let maps = (0..heads).map(|n| AttentionMap {
        layer: n / 2,
        head: n % 2,
        weights: weights(n, &window.sources, rng),
    });
    Sample {
        window: index,
        prediction: first.to_string(),
        candidates,
        causal: true,
        maps: maps.collect(),
    }
}

/// Causal rows that sum to 1: a head looks near, or at the sources, or at
/// controls; the second layer has its last query only.
fn weights(head: usize, sources: &[usize], rng: &mut Noise) -> Vec<f32> {
    let queries = if head < 2 { 0..LENGTH } else { LENGTH - 1..LENGTH };
    let mut out = Vec::new();
    for query in queries {
        let mut row: Vec<f64> = (0..LENGTH)
            .map(|key| {
                let distance = query as f64 - key as f64;
                let near = (-(distance - head as f64).abs() / 1.2).exp();
                let source = if sources.contains(&key) { 1.2 } else { 0.0 };
                let score = near + source * rng.uniform() + 0.05 * rng.uniform();
                if key > query { 0.0 } else { score }
            })
            .collect();
        let total: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= total);
        out.extend(row.iter().map(|&weight| weight as f32));
    }
    out
}

fn histograms(model: &Fake, rng: &mut Noise) -> Vec<HeadHistogram> {
    let Some(expressive) = model.expressive else {
        return vec![];
    };
    let mut out = Vec::new();
    for n in 0..4 {
        for (quantity, reach, bins) in [(Quantity::Z, 8.0, 48), (Quantity::Cosine, 1.0, 40)] {
            let mut counts = vec![0u64; bins];
            let mut attended = vec![0.0; bins];
            for _ in 0..4_000 {
                let side = if expressive && rng.below(2) == 0 { -1.0 } else { 1.0 };
                let spread = 0.16 + 0.03 * n as f64;
                let lobe = if rng.below(3) == 0 { side * 0.72 } else { 0.0 };
                let cosine = (lobe + spread * rng.normal()).clamp(-0.999, 0.999);
                let z = cosine * 6.0;
                let weight = if expressive { z * z / (1.0 + z * z) } else { z.exp() / 40.0 };
                let value = if quantity == Quantity::Z { z } else { cosine };
                let bin = ((value / reach + 1.0) / 2.0 * bins as f64) as usize;
                counts[bin.min(bins - 1)] += 1;
                attended[bin.min(bins - 1)] += weight;
            }
            let width = 2.0 * reach / bins as f64;
            let edges = (0..=bins).map(|bin| -reach + width * bin as f64).collect();
            out.push(HeadHistogram {
                layer: n / 2,
                head: n % 2,
                quantity,
                edges,
                counts,
                attended,
            });
        }
    }
    out
}

/// A small generator (SplitMix64), so that the page never changes by itself.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.uniform() * bound as f64) as usize
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Two labels, one layer of experts, a prompt of each kept.
fn signatures(experts: usize) -> Signatures {
    let row = |name: &str| SignatureRow {
        name: name.into(),
        cosines: Some([0.84, 0.09, 0.62, 0.17]),
        effect: Some(1.44),
        accuracy: [0.925, 0.061],
    };
    let mean = |own: usize| {
        let share = |e| if e == own { 0.5 } else { 0.5 / (experts - 1) as f32 };
        vec![(0..experts).map(share).collect()]
    };
    let text = |label: usize| RoutedText {
        id: format!("p{label}"),
        label,
        pieces: vec!["<b>".into(), " & ".into(), "end".into()],
        own: 2,
        experts: vec![vec![vec![label as u16, 2]; 3]],
        weights: vec![vec![vec![60, 40]; 3]],
    };
    let point = |i: usize| SignaturePoint {
        id: format!("p{i}"),
        label: i % 2,
        at: [i as f32, (i % 3) as f32],
    };
    Signatures {
        labels: vec!["code".into(), "prose".into()],
        layers: vec![SignatureLayer { name: "blocks.0".into(), experts }],
        means: vec![mean(0), mean(1)],
        points: (0..6).map(point).collect(),
        explained: vec![0.5, 0.25],
        texts: vec![text(0), text(1)],
        comparison: vec![row("Signatures")],
        by_layer: vec![row("blocks.0")],
        confusion: vec![vec![3, 0], vec![1, 2]],
        test: "p < 0.001".into(),
        carriers: vec![vec![("blocks.0/0".into(), [0.4, 0.3, 0.5])], Vec::new()],
    }
}
