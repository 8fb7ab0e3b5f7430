//! Weights kept as a file stores them, and GGUF files of every family.

use std::path::Path;

use specialformer::checkpoint::StorageType;
use specialformer::families::{ModelSummary, PublishedModel, TextInput};
use specialformer::generate::{
    Flow, GenerateConfig, Reading, Session, TextModel as _, generate, perplexity,
};
use specialformer::prelude::*;
use specialformer::tensor::quantized::Precision;
use specialformer_testkit::golden_dir;

const DECODERS: [&str; 5] = ["01_llama", "03_qwen3", "04_mixtral", "05_olmoe", "06_qwen3_moe"];
const TEXT: [u32; 12] = [5, 17, 80, 3, 41, 9, 60, 2, 33, 12, 71, 8];

fn open(case: &str) -> PublishedModel {
    PublishedModel::open(golden_dir().join(case)).unwrap()
}

fn logits(model: &PublishedModel) -> Vec<f32> {
    let input = TextInput::new(Tokens::new(&TEXT, 1).unwrap());
    model.logits(&Ctx::eval(), &input).unwrap().value().as_slice().to_vec()
}

/// The largest difference in units of the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(0f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).fold(0f32, |most, (x, y)| most.max((x - y).abs())) / largest
}

fn same_weights(a: &PublishedModel, b: &PublishedModel) {
    let (a, b) = (a.published_tensors().unwrap(), b.published_tensors().unwrap());
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in &a {
        assert_eq!(tensor.as_slice(), b[name].as_slice(), "{name}");
    }
}

#[test]
fn gguf_files_hold_what_was_saved() {
    let place = tempfile::tempdir().unwrap();
    for case in DECODERS {
        let model = open(case);
        let path = place.path().join(format!("{case}.gguf"));
        model.save_gguf(&path, StorageType::F32).unwrap();
        let back = PublishedModel::open(&path).unwrap();
        same_weights(&model, &back);
        assert!(difference(&logits(&model), &logits(&back)) < 1e-6, "{case}");
        let summary = ModelSummary::open(&path).unwrap();
        assert_eq!(summary.parameters as usize, NamedParameters::of(&model).count(), "{case}");
        assert_eq!(summary.experts.is_some(), summary.active_parameters < summary.parameters);
    }
    for (case, what) in [("02_llama_rope3", "rotary"), ("07_bert", "made of"), ("08_t5", "made of")]
    {
        let error = open(case).save_gguf(place.path().join("no.gguf"), StorageType::F32);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

fn check_stored(path: &Path, what: &str) {
    let dense = PublishedModel::<f32>::open(path).unwrap();
    let wanted = logits(&dense);
    let exact = PublishedModel::open_stored(path, Precision::Exact).unwrap();
    let kept = NamedParameters::of(&exact).count();
    assert!(kept < NamedParameters::of(&dense).count() / 4, "{what}: {kept} are not kept");
    assert!(difference(&wanted, &logits(&exact)) < 1e-4, "{what}");
    same_weights(&dense, &exact);
    assert!(difference(&wanted, &logits(&exact.to_dense().unwrap())) < 1e-6, "{what}");
    let fast = PublishedModel::open_stored(path, Precision::Fast).unwrap();
    let window = TextInput::new(Tokens::new(&TEXT[..4], 1).unwrap());
    let few = |model: &PublishedModel| {
        model.logits(&Ctx::eval(), &window).unwrap().value().as_slice().to_vec()
    };
    let off = difference(&few(&dense), &few(&fast));
    // Where two experts are about as good, a little decides between them.
    let most = if dense.config().family.decoder().unwrap().experts.is_some() { 1.0 } else { 0.1 };
    assert!(off < most, "{what}: {off}");
    let config = GenerateConfig::new(6);
    let run = |model: &PublishedModel| {
        let prompts = [TEXT.to_vec(), vec![7]];
        generate::<f32, f32>(model, &prompts, &config, |_, _| Flow::Continue).unwrap()
    };
    assert_eq!(run(&dense), run(&exact), "{what}");
    assert_eq!(run(&fast)[0].tokens.len(), 6);
}

#[test]
fn stored_weights_compute_what_dense_ones_do() {
    let place = tempfile::tempdir().unwrap();
    for case in DECODERS {
        for kind in [StorageType::F16, StorageType::Q8_0] {
            let path = place.path().join(format!("{case}-{kind}.gguf"));
            open(case).save_gguf(&path, kind).unwrap();
            check_stored(&path, &format!("{case} {kind}"));
        }
        let path = place.path().join(case);
        open(case).save_as(&path, StorageType::BF16).unwrap();
        check_stored(&path, &format!("{case} BF16"));
    }
}

#[test]
fn a_session_reads_only_what_is_new() {
    let model = open("03_qwen3");
    let config = GenerateConfig::new(5);
    let mut session = Session::<f32>::new(&model).unwrap();
    let alone = |text: &[u32]| {
        let texts = generate::<f32, f32>(&model, &[text.to_vec()], &config, |_, _| Flow::Continue);
        texts.unwrap().remove(0)
    };
    let mut text = TEXT[..4].to_vec();
    for turn in 0..3 {
        let answer = session.generate(&model, &text, &config, |_| Flow::Continue).unwrap();
        assert_eq!(answer, alone(&text), "turn {turn}");
        text.extend(&answer.tokens);
        assert_eq!(session.known(&text), text.len() - 1);
        text.extend(&TEXT[turn..turn + 2]);
    }
    // Another text: what differs is forgotten.
    let answer = session.generate(&model, &TEXT[..6], &config, |_| Flow::Continue).unwrap();
    assert_eq!(answer, alone(&TEXT[..6]));
    assert!(session.generate(&model, &[], &config, |_| Flow::Continue).is_err());
    assert!(session.memory_bytes() > 0);
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let model = open("01_llama");
    let vocabulary = model.vocabulary();
    let rows = logits(&model);
    let loss = |at: usize| {
        let row = &rows[at * vocabulary..][..vocabulary];
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[TEXT[at + 1] as usize])
    };
    let wanted = (0..TEXT.len() - 1).map(loss).sum::<f64>() / (TEXT.len() - 1) as f64;
    for reading in [Reading::Whole, Reading::TokenByToken] {
        let found = perplexity(&model, &TEXT, 64, reading, |_| {}).unwrap();
        assert_eq!(found.tokens, TEXT.len() - 1);
        assert!((found.loss - wanted).abs() < 1e-5, "{} {wanted}", found.loss);
    }
    let cut = perplexity(&model, &TEXT, 4, Reading::Whole, |_| {}).unwrap();
    assert_eq!(cut.tokens, TEXT.len() - 1);
    assert!(perplexity(&model, &TEXT[..1], 4, Reading::Whole, |_| {}).is_err());
    assert!(perplexity(&model, &TEXT, 100_000, Reading::Whole, |_| {}).is_err());
}

#[test]
fn models_of_runs_continue_texts_too() {
    let transformer = r#"
        kind = "transformer"
        vocabulary = 90
        width = 16
        layers = 2
        heads = 2
        feed_forward = 32
        window = 32
        positions = "learned"
    "#;
    let specialformer = r#"
        kind = "specialformer"
        topology = "decoder"
        vocabulary = 90
        width = 16
        layers = 2
        heads = 2
        feed_forward = 32
        window = 32
        tasks = []
    "#;
    for toml in [transformer, specialformer] {
        let config: ModelConfig = toml::from_str(toml).unwrap();
        let model = Model::<f32>::new(&config, Seed::new(3)).unwrap();
        let config = GenerateConfig::new(6);
        let prompts = [TEXT[..5].to_vec(), vec![7]];
        let texts = generate::<f32, f32>(&model, &prompts, &config, |_, _| Flow::Continue).unwrap();
        for (prompt, text) in prompts.iter().zip(&texts) {
            let mut all = prompt.clone();
            for &token in &text.tokens {
                let tokens = Tokens::new(&all, 1).unwrap();
                let logits = model.logits(&Ctx::eval(), tokens, Outputs::Last).unwrap();
                let row = logits.value().as_slice().to_vec();
                let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                assert_eq!(token as usize, best.unwrap(), "after {all:?}");
                all.push(token);
            }
        }
    }
    let lstm: ModelConfig =
        toml::from_str("kind = \"lstm\"\nvocabulary = 9\nembedding = 4\nhidden = 4").unwrap();
    let lstm = Model::<f32>::new(&lstm, Seed::new(1)).unwrap();
    assert!(lstm.new_cache::<f32>(1).unwrap_err().to_string().contains("LSTM"));
}
