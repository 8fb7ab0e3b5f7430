//! Random configurations: each trains a step or is refused by an error, and
//! none panics.
//!
//! `SPECIALFORMER_CONFIGS=1000 cargo test -p specialformer --test all random_configs`
//! tries as many as it says.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use specialformer::prelude::Schedule;
use specialformer::{Error, RunConfig, Start};
use toml::{Table, Value};

/// Configurations that train; what is put into them comes from each other and
/// from [`EXTRAS`].
const BASES: [&str; 9] = [
    include_str!("../../../../configs/iarc-cisformer.toml"),
    include_str!("../../../../configs/iarc-transformer.toml"),
    include_str!("../../../../configs/multitask-hybrid.toml"),
    include_str!("../../../../configs/multitask-moe-encoder-decoder.toml"),
    include_str!("../../../../configs/multitask-moe-encoder.toml"),
    include_str!("../../../../configs/mpt-combined.toml"),
    include_str!("../../../../configs/mpt-dynamic.toml"),
    r#"
        name = "rows"
        [model]
        kind = "lstm"
        vocabulary = 14
        outputs = 10
        embedding = 4
        hidden = 8
        layers = 1
        [data]
        kind = "iarc"
        [train]
        steps = 1
        batch_size = 8
        learning_rate = 1e-3
    "#,
    r#"
        name = "text"
        [model]
        kind = "specialformer"
        topology = "decoder"
        vocabulary = 257
        width = 16
        layers = 2
        heads = 2
        feed_forward = 16
        window = 24
        specialisation = "moe"
        tied_embeddings = true
        [model.moe]
        hidden = 8
        router = { experts = 4, top_k = 2 }
        [data]
        kind = "text"
        window = 24
        tokenizer = "bytes"
        tasks = [{ name = "prose", paths = ["TEXTS"] }]
        [train]
        steps = 1
        batch_size = 8
        learning_rate = 1e-3
    "#,
];

/// Sections and fields that few configurations have: where, and what.
const EXTRAS: [(&str, &str); 46] = [
    ("train.multi_task", "{}"),
    ("train.multi_task", "{ weights = { kind = \"uncertainty\" }, average = \"target\" }"),
    ("train.multi_task", "{ pcgrad = {} }"),
    ("train.multi_task", "{ alignment = { weight = 0.1, distance = \"squared\" } }"),
    ("train.multi_task", "{ contrastive = { weight = 0.1, temperature = 0.5 } }"),
    ("train.multi_task", "{ sharing = [{ pattern = \"*adapter*\", weight = 0.1 }] }"),
    ("train.multi_task", "{ distillation = { weight = 1.0 } }"),
    ("train.optimizer", "{ kind = \"sgd\" }"),
    ("train.optimizer", "{ kind = \"adam-w\", weight_decay = 0.5 }"),
    ("train.schedule", "{ kind = \"linear\", warmup = 1, floor = 0.5 }"),
    ("train.shards", "3"),
    ("train.accumulation", "2"),
    ("train.time_budget_seconds", "1e-9"),
    ("train.target_accuracy", "0.01"),
    ("train.eval_every", "1"),
    ("data.sampling", "{ kind = \"proportional\" }"),
    ("data.sampling", "{ kind = \"temperature\", temperature = 2.0 }"),
    ("data.layout", "\"encoder\""),
    ("data.layout", "\"encoder-decoder\""),
    ("data.examples", "40"),
    ("data.tasks", "[\"sort\", \"mean\"]"),
    ("data.window", "12"),
    ("data.scoring", "\"all\""),
    ("data.patch", "4"),
    ("model.dropout", "0.5"),
    ("model.positions", "\"alibi\""),
    ("model.positions", "\"none\""),
    ("model.norm", "\"rms-norm\""),
    ("model.norm_position", "\"post\""),
    ("model.gated", "true"),
    ("model.bias", "false"),
    ("model.recompute", "true"),
    ("model.key_value_heads", "1"),
    ("model.specialisation", "\"none\""),
    ("model.specialisation", "\"adapter\""),
    ("model.attention", "{ kind = \"expressive\", epsilon = 0.0 }"),
    ("model.adapter", "{ kind = \"lora\", rank = 2, targets = [\"up\", \"q_proj\"] }"),
    ("model.adapter", "{ kind = \"bottleneck\", width = 3, layers = [0], at = [\"attention\"] }"),
    ("model.moe.router.gate", "{ kind = \"expert-choice\" }"),
    ("model.moe.router.gate", "{ kind = \"top-p\", mass = 0.5 }"),
    ("model.moe.router.gate", "{ kind = \"noisy-top-k\" }"),
    ("model.moe.router.capacity_factor", "0.25"),
    ("model.moe.shared", "{ hidden = 4 }"),
    ("model.dynamic", "{ exit = { layers = [0], threshold = 0.5 } }"),
    ("model.dynamic", "{ share = [0, 0] }"),
    ("model.task_input", "{ token = true, embedding = true }"),
];

/// Words of fields that choose something.
const WORDS: [&str; 24] = [
    "transformer",
    "cisformer",
    "specialformer",
    "lstm",
    "mlp",
    "encoder",
    "decoder",
    "softmax",
    "expressive",
    "learned",
    "rope",
    "moe",
    "hybrid",
    "adapter",
    "iarc",
    "multitask",
    "multimodal",
    "labelling",
    "regression",
    "classification",
    "sort",
    "mean",
    "softmax-top-k",
    "",
];
const WHOLE: [i64; 20] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 48, 64, -1, 300, 1 << 40, i64::MAX];
const REAL: [f64; 12] =
    [0.0, -0.0, 1.0, 0.5, -1.0, 1e-30, 1e30, 2.0, f64::NAN, f64::INFINITY, 0.1, 1e-3];

/// One change: of what kind, where, to what; numbers modulo the choices.
type Change = (u8, u32, u32);

/// Paths of all leaves and tables.
fn paths(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut visit = |key: String, inner: &Value| {
        path.push(key);
        found.push(path.clone());
        paths(inner, path, found);
        path.pop();
    };
    match value {
        Value::Table(table) => table.iter().for_each(|(key, value)| visit(key.clone(), value)),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, value)| visit(i.to_string(), value));
        }
        _ => {}
    }
}

fn at<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, key| match value {
        Value::Table(table) => table.get_mut(key),
        Value::Array(values) => values.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    })
}

fn apply(config: &mut Value, (kind, place, choice): Change) {
    let choice = choice as usize;
    if kind % 4 == 3 {
        let (path, text) = EXTRAS[choice % EXTRAS.len()];
        let value: Table = toml::from_str(&format!("value = {text}")).unwrap();
        let mut keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        let last = keys.pop().unwrap();
        if let Some(Value::Table(table)) = at(config, &keys) {
            table.insert(last, value["value"].clone());
        }
        return;
    }
    let mut found = Vec::new();
    paths(config, &mut Vec::new(), &mut found);
    let mut path = found.swap_remove(place as usize % found.len());
    if kind % 4 == 2 {
        let last = path.pop().unwrap();
        match at(config, &path) {
            Some(Value::Table(table)) => drop(table.remove(&last)),
            Some(Value::Array(values)) if choice.is_multiple_of(2) => values.clear(),
            Some(Value::Array(values)) => values.push(values[0].clone()),
            _ => {}
        }
        return;
    }
    match at(config, &path) {
        Some(Value::Integer(number)) => *number = WHOLE[choice % WHOLE.len()],
        Some(Value::Float(number)) => *number = REAL[choice % REAL.len()],
        Some(Value::Boolean(set)) => *set = !*set,
        Some(Value::String(text)) => *text = WORDS[choice % WORDS.len()].to_owned(),
        _ => {}
    }
}

/// A small configuration that trains one step, and the changes to it.
fn config(base: usize, changes: &[Change], texts: &str) -> String {
    let text = BASES[base].replace("TEXTS", texts);
    let mut config = Value::Table(toml::from_str(&text).unwrap());
    for (path, small) in [
        ("train.steps", 1),
        ("train.batch_size", 8),
        ("train.eval_size", 8),
        ("train.test_size", 8),
        ("train.schedule.warmup", 0),
        ("model.width", 16),
        ("model.feed_forward", 8),
        ("model.heads", 2),
        ("model.moe.hidden", 4),
        ("model.moe.router.experts", 4),
    ] {
        let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        if let Some(number) = at(&mut config, &keys) {
            *number = Value::Integer(small);
        }
    }
    changes.iter().for_each(|&change| apply(&mut config, change));
    toml::to_string(&config).unwrap()
}

/// Trains one step, if the configuration allows it.
fn train(text: &str, folder: &Path) -> Result<(), Error> {
    let mut config = RunConfig::parse(text, "random.toml")?;
    // No test of patience.
    if config.train.steps > 2 {
        config.train.steps = 1;
        config.train.schedule = Schedule::Constant { warmup: 0 };
    }
    config.train.batch_size = config.train.batch_size.min(64);
    config.train.eval_size = config.train.eval_size.min(16);
    config.train.test_size = Some(config.train.test_size.unwrap_or(8).min(16));
    specialformer::train(&config, folder, Start::New, (), || false).map(drop)
}

#[test]
fn every_configuration_trains_or_is_refused() {
    let cases = std::env::var("SPECIALFORMER_CONFIGS").map_or(60, |n| n.parse().unwrap());
    let texts = tempfile::tempdir().unwrap();
    fs::write(
        texts.path().join("a.txt"),
        "The cat sat on the mat, and so did the dog. ".repeat(90),
    )
    .unwrap();
    let texts = texts.path().display().to_string();
    for base in 0..BASES.len() {
        let folder = tempfile::tempdir().unwrap();
        train(&config(base, &[], &texts), &folder.path().join("run"))
            .unwrap_or_else(|e| panic!("configuration {base}: {e}"));
    }
    let (trained, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let changes = prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>()), 0..5);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    });
    let result = runner.run(&(0..BASES.len(), changes), |(base, changes)| {
        let text = config(base, &changes, &texts);
        let folder = tempfile::tempdir().unwrap();
        let result = std::panic::catch_unwind(|| train(&text, &folder.path().join("run")));
        match result {
            Ok(Ok(())) => trained.fetch_add(1, Ordering::Relaxed),
            Ok(Err(error)) => {
                prop_assert!(!error.to_string().is_empty());
                refused.fetch_add(1, Ordering::Relaxed)
            }
            Err(_) => return Err(TestCaseError::fail(format!("panicked:\n{text}"))),
        };
        Ok(())
    });
    let (trained, refused) = (trained.into_inner(), refused.into_inner());
    println!("{trained} trained, {refused} refused");
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(trained * 10 > cases as usize, "{trained} of {cases} trained");
}
