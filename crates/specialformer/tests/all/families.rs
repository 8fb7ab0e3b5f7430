//! Pretrained models: opening, refusing, saving, generating.

use std::path::PathBuf;

use specialformer::checkpoint::{HfConfig, ModelFamily, ModelFolder};
use specialformer::families::{PublishedModel, TextInput};
use specialformer::generate::{Finish, Flow, GenerateConfig, Sampling, generate, generate_from};
use specialformer::prelude::*;
use specialformer_testkit::golden_dir;

const FAMILIES: [&str; 8] = [
    "01_llama",
    "02_llama_rope3",
    "03_qwen3",
    "04_mixtral",
    "05_olmoe",
    "06_qwen3_moe",
    "07_bert",
    "08_t5",
];

fn folder(case: &str) -> PathBuf {
    golden_dir().join(case)
}

fn open(case: &str) -> PublishedModel {
    PublishedModel::open(folder(case)).unwrap()
}

#[test]
fn what_is_saved_is_what_was_opened() {
    let place = tempfile::tempdir().unwrap();
    for case in FAMILIES {
        let path = place.path().join(case);
        open(case).save(&path).unwrap();
        let (was, is) = (
            ModelFolder::open(folder(case), Default::default()).unwrap(),
            ModelFolder::open(&path, Default::default()).unwrap(),
        );
        let (was, is) = (was.tensors(), is.tensors());
        assert_eq!(was.names().collect::<Vec<_>>(), is.names().collect::<Vec<_>>(), "{case}");
        for name in was.names() {
            let (was, is) = (was.tensor::<f32>(name).unwrap(), is.tensor::<f32>(name).unwrap());
            assert_eq!(was.as_slice(), is.as_slice(), "{case}: {name}");
        }
        PublishedModel::<f32>::open(&path).unwrap();
    }
}

#[test]
fn what_is_missing_and_unexpected_is_listed() {
    let model = open("03_qwen3");
    let mut tensors = model.published_tensors().unwrap();
    let norm = tensors.remove("model.norm.weight").unwrap();
    tensors.insert("model.extra".into(), norm);
    let error = PublishedModel::<f32>::from_tensors(model.config(), "somewhere", tensors);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("1 missing: `model.norm.weight`"), "{error}");
    assert!(error.contains("1 unexpected: `model.extra`"), "{error}");
}

#[test]
fn classes_that_are_not_supported_are_refused_with_a_list() {
    let json = std::fs::read_to_string(folder("01_llama").join("config.json")).unwrap();
    let json = json.replace("LlamaForCausalLM", "LlamaForTokenClassification");
    let config = HfConfig::from_json("config.json", json.as_bytes()).unwrap();
    let error = PublishedModel::<f32>::new(&config, Seed::new(0)).unwrap_err().to_string();
    assert!(error.contains("LlamaForTokenClassification"), "{error}");
    assert!(error.contains("Qwen3MoeForCausalLM"), "{error}");
}

/// The most probable next token, from all of the text anew.
fn next(model: &PublishedModel, text: &[u32]) -> u32 {
    let input = TextInput::new(Tokens::new(text, 1).unwrap());
    let logits = model.logits(&Ctx::eval(), &input).unwrap();
    let row = &logits.value().as_slice()[(text.len() - 1) * model.vocabulary()..];
    let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
    best.unwrap() as u32
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![5, 17, 80, 3, 41], vec![9], vec![60, 2, 33]]
}

#[test]
fn cached_and_batched_greedy_equals_reading_everything_anew() {
    for case in &FAMILIES[..6] {
        let model = open(case);
        let config = GenerateConfig::new(12);
        let texts =
            generate::<f32, f32>(&model, &prompts(), &config, |_, _| Flow::Continue).unwrap();
        for (prompt, text) in prompts().iter().zip(&texts) {
            let mut all = prompt.clone();
            for &token in &text.tokens {
                assert_eq!(token, next(&model, &all), "{case} after {all:?}");
                all.push(token);
            }
            assert_eq!((text.tokens.len(), text.finish), (12, Finish::MaxTokens));
        }
    }
}

#[test]
fn texts_stop_by_themselves() {
    let model = open("01_llama");
    let config = GenerateConfig::new(10);
    let free = generate::<f32, f32>(&model, &prompts(), &config, |_, _| Flow::Continue).unwrap();
    let stop = free[1].tokens[3];
    let stopping = GenerateConfig { stop_tokens: vec![stop], ..config.clone() };
    let texts = generate::<f32, f32>(&model, &prompts(), &stopping, |_, _| Flow::Continue).unwrap();
    for (free, text) in free.iter().zip(&texts) {
        match free.tokens.iter().position(|&token| token == stop) {
            Some(at) => {
                assert_eq!(text.tokens, free.tokens[..=at]);
                assert_eq!(text.finish, Finish::Stop);
            }
            None => assert_eq!(text, free),
        }
    }
    // Ended by the caller: one text, then all.
    let mut count = 0;
    let texts = generate::<f32, f32>(&model, &prompts(), &config, |number, _| {
        count += 1;
        match (number, count) {
            (1, _) => Flow::EndText,
            (_, 6..) => Flow::Cancel,
            _ => Flow::Continue,
        }
    });
    let texts = texts.unwrap();
    assert_eq!(texts[1].tokens.len(), 1);
    assert!(texts.iter().all(|text| text.finish == Finish::Cancelled));
    assert_eq!(count, 6);
}

#[test]
fn the_window_ends_a_text() {
    let json = std::fs::read_to_string(folder("01_llama").join("config.json")).unwrap();
    let json = json.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 8");
    let config = HfConfig::from_json("config.json", json.as_bytes()).unwrap();
    let model = PublishedModel::<f32>::new(&config, Seed::new(0)).unwrap();
    assert_eq!(model.window(), Some(8));
    let run = |prompt: Vec<u32>| {
        generate::<f32, f32>(&model, &[prompt], &GenerateConfig::new(50), |_, _| Flow::Continue)
    };
    let text = run(vec![1, 2, 3]).unwrap().remove(0);
    // The last token needs no place in the window.
    assert_eq!((text.tokens.len(), text.finish), (6, Finish::Window));
    assert!(run(vec![1; 9]).unwrap_err().to_string().contains("window is 8"));
    assert!(run(vec![]).is_err());
    assert!(run(vec![96]).is_err());
}

#[test]
fn a_seed_decides_and_neighbours_do_not() {
    let model = open("03_qwen3");
    let sampling = Sampling { top_k: 20, ..Sampling::at_temperature(1.5) };
    let config =
        |seed| GenerateConfig { sampling, seed: Seed::new(seed), ..GenerateConfig::new(10) };
    let run = |prompts: &[Vec<u32>], seed| {
        generate::<f32, f32>(&model, prompts, &config(seed), |_, _| Flow::Continue).unwrap()
    };
    let all = run(&prompts(), 1);
    assert_eq!(all, run(&prompts(), 1));
    assert_ne!(all, run(&prompts(), 2));
    assert_eq!(all[0], run(&prompts()[..1], 1)[0]);
}

#[test]
fn models_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<PublishedModel>();
    shared::<specialformer::generate::TextCache>();
    shared::<specialformer::generate::Session>();
    shared::<specialformer::families::TextFiles>();
    shared::<Model>();
}

#[test]
fn gradients_of_recomputed_blocks_are_the_same() {
    let config = HfConfig::open(folder("03_qwen3").join("config.json")).unwrap();
    let mut model = PublishedModel::<f32>::new(&config, Seed::new(2)).unwrap();
    let tokens: Vec<u32> = (0..14).map(|i| i * 5 % 90).collect();
    let gradients = |model: &PublishedModel| {
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("dropout"));
        let input = TextInput::new(Tokens::new(&tokens, 2).unwrap());
        let input = input.with_lengths(&[7, 4]).unwrap();
        let logits = model.logits(&ctx, &input).unwrap();
        let found = tape.backward(&logits.mul(&logits).unwrap().mean_all().unwrap()).unwrap();
        let named = NamedParameters::of(model);
        let all = named.iter().map(|(name, p)| (name.to_owned(), found.of_parameter(p).cloned()));
        all.collect::<Vec<_>>()
    };
    let kept = gradients(&model);
    model.set_recompute(true);
    let again = gradients(&model);
    for ((name, kept), (_, again)) in kept.iter().zip(&again) {
        let (kept, again) = (kept.as_ref().expect(name), again.as_ref().expect(name));
        assert_eq!(kept.as_slice(), again.as_slice(), "{name}");
    }
}

#[test]
fn an_encoder_decoder_writes_what_it_would_score_best() {
    let model = open("08_t5");
    let config = GenerateConfig { stop_tokens: vec![], ..GenerateConfig::new(6) };
    let sources = [vec![5, 17, 80, 3, 41], vec![9, 4]];
    let texts = generate_from(&model, &sources, &config, |_, _| Flow::Continue).unwrap();
    let HfConfig { family: ModelFamily::T5(t5), .. } = model.config() else { unreachable!() };
    for (source, text) in sources.iter().zip(&texts) {
        let mut all = vec![t5.decoder_start_token_id];
        for &token in &text.tokens {
            let input = TextInput::new(Tokens::new(&all, 1).unwrap());
            let input = input.with_source(Tokens::new(source, 1).unwrap(), None).unwrap();
            let logits = model.logits(&Ctx::eval(), &input).unwrap();
            let row = &logits.value().as_slice()[(all.len() - 1) * model.vocabulary()..];
            let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
            assert_eq!(token as usize, best.unwrap(), "after {all:?}");
            all.push(token);
        }
        assert_eq!(text.finish, Finish::MaxTokens);
    }
    let alone = generate_from(&model, &sources[1..], &config, |_, _| Flow::Continue).unwrap();
    assert_eq!(alone[0], texts[1]);
    assert!(generate_from(&open("01_llama"), &sources, &config, |_, _| Flow::Continue).is_err());
}
