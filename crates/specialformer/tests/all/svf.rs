//! Fine-tuning by singular values, its baselines, rewards, and adaptation, on
//! a model of a few thousand weights.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use specialformer::adaptation::{
    AdaptiveModel, Mixture, MixtureConfig, OTHERS, Strategy, TaskClassifier,
};
use specialformer::checkpoint::{ChatTemplate, HfConfig, Tokenizer};
use specialformer::data::prompts::{
    PromptData, PromptDataset, PromptExample, PromptFormat, PromptSizes,
};
use specialformer::families::PublishedModel;
use specialformer::generate::{Flow, GenerateConfig, generate};
use specialformer::nn::TaskRows;
use specialformer::prelude::*;
use specialformer::svd_finetune::{Base, ExpertVector, Parametrisation, SearchConfig, Selection};
use specialformer::svf::{
    Decomposition, PromptPolicy, Rewards, Tuned, attach_bank, check_expert, decompose, fine_tune,
    reinforce, score_prompts,
};
use specialformer::training::{Batch, Dataset, IGNORE, ReinforceConfig};

/// Printable ASCII, blank and new line as single tokens, then the end token.
fn tokenizer_json() -> String {
    let letters = (33u8..127).map(|byte| (byte as char).to_string());
    let letters = letters.chain(["\u{120}".to_owned(), "\u{10a}".to_owned()]);
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        letters.enumerate().map(|(id, letter)| (letter, id.into())).collect();
    let end = vocabulary.len();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": end, "content": "<end>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

/// A template with a system turn of its own before the first turn.
const TEMPLATE: &str = "{% if messages[0].role != 'system' %}<S>be nice\n{% endif %}\
    {% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

const END: u32 = 96;

fn model(window: usize) -> PublishedModel {
    let json = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97,
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "eos_token_id": {END},
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": {window},
        "tie_word_embeddings": false}}"#
    );
    let config = HfConfig::from_json("config.json", json.as_bytes()).unwrap();
    PublishedModel::new(&config, Seed::new(1)).unwrap()
}

fn format() -> PromptFormat {
    let tokenizer = Tokenizer::from_json("tokenizer.json", tokenizer_json().as_bytes()).unwrap();
    let template = ChatTemplate::new("template", TEMPLATE).unwrap();
    PromptFormat::new(tokenizer, Some(template), "A:", vec![END]).unwrap()
}

fn base(model: &mut PublishedModel, patterns: &[&str]) -> Base {
    let selection = Selection::including(patterns.iter().copied());
    let settings = Decomposition { selection, ..Default::default() };
    decompose(model, &settings, |_| ControlFlow::Continue(())).unwrap()
}

const ALL: [&str; 2] = ["*.mlp.*", "*.self_attn.*"];

fn tuned() -> Tuned {
    let mut model = model(256);
    let base = base(&mut model, &ALL);
    Tuned::svf(model, &base, Parametrisation::direct()).unwrap()
}

/// Which of two letters: answers of one token.
fn data(count: usize) -> PromptData {
    let example = |i: usize| PromptExample {
        prompt: format!("{i}{}", if i.is_multiple_of(3) { "!" } else { "?" }),
        answer: if i.is_multiple_of(3) { "x" } else { "y" }.into(),
    };
    let sizes = PromptSizes { train: 64, validation: 8, test: 8 };
    PromptData::from_examples("marks", (0..count).map(example).collect(), sizes, 1)
}

fn logits(model: &PublishedModel) -> Vec<f32> {
    let tokens = [5u32, 17, 80, 3, 41, 9];
    let input = specialformer::families::TextInput::new(Tokens::new(&tokens, 2).unwrap());
    model.logits(&Ctx::eval(), &input).unwrap().into_value().into_vec()
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    let size = b.iter().fold(0f32, |most, x| most.max(x.abs()));
    let furthest = a.iter().zip(b).fold(0f32, |most, (x, y)| most.max((x - y).abs()));
    assert!(furthest <= tolerance * size, "{furthest} of {size}");
}

fn changed(expert: &mut ExpertVector, by: f32) {
    for (i, matrix) in expert.matrices.values_mut().enumerate() {
        for (j, z) in matrix.z.iter_mut().enumerate() {
            *z = 1.0 + by * ((i + j) % 5) as f32;
        }
    }
}

#[test]
fn prompts_stand_without_the_templates_own_system_turn() {
    let format = format();
    assert_eq!(format.text("3 or 4?").unwrap(), "<user>3 or 4?<end>\n<assistant>A:");
    let answer = format.answer_tokens("4").unwrap();
    assert_eq!((answer.len(), answer[2]), (3, END));
    assert_eq!(format.read_answer(&answer).unwrap(), "4");
    let said = format.begun_answer("4 \nIt is larger").unwrap();
    assert_eq!(format.read_answer(&said).unwrap(), "4");
    let late = format.begun_answer("\n4").unwrap();
    assert_eq!(format.read_answer(&late).unwrap(), "");
}

#[test]
fn answers_alone_are_targets() {
    let (format, data) = (format(), data(60));
    let mut dataset = PromptDataset::new(&data, &format, Some(256), 3).unwrap();
    let mut batch = Batch::default();
    dataset.next_batch(4, &mut batch).unwrap();
    for row in 0..4 {
        let rows = batch.slice(row..row + 1);
        let length = rows.lengths().unwrap()[0] as usize;
        let targets: Vec<u32> = rows.targets().iter().copied().filter(|&t| t != IGNORE).collect();
        // " x" and the end, of which the last is no input.
        assert_eq!((targets.len(), targets[2]), (3, END));
        assert_eq!(rows.tokens()[length - 2..length], targets[..2]);
        assert_eq!(rows.targets()[length - 3..length], targets[..]);
    }
    let cursor = dataset.cursor();
    dataset.next_batch(4, &mut batch).unwrap();
    let first = batch.clone();
    dataset.seek(&cursor).unwrap();
    dataset.next_batch(4, &mut batch).unwrap();
    assert_eq!(batch, first);

    let error = PromptDataset::new(&data, &format, Some(20), 3).unwrap_err().to_string();
    assert!(error.contains("are longer than the model's context of 20"), "{error}");
    let empty = PromptData { train: vec![], ..data };
    let error = PromptDataset::new(&empty, &format, None, 3).unwrap_err().to_string();
    assert_eq!(error, "marks: there is no example to train on");
}

#[test]
fn files_of_prompts_are_read_and_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl");
    let sizes = PromptSizes { train: 100, validation: 10, test: 10 };
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        PromptData::from_file(&path, sizes, 1).map_err(|error| error.to_string())
    };
    let lines: Vec<String> =
        (0..80).map(|i| format!(r#"{{"prompt": "p{i}", "answer": " {i} "}}"#)).collect();
    let data = read(&lines.join("\n")).unwrap();
    assert_eq!(data.task, "mine");
    assert!(data.train.len() > 50 && !data.test.is_empty());
    assert!(data.train.iter().all(|example| format!("p{}", example.answer) == example.prompt));
    let name = path.display();
    assert_eq!(read("\n\n").unwrap_err(), format!("{name}: holds no example"));
    let error = read("{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}").unwrap_err();
    assert!(error.starts_with(&format!("{name}: line 2: missing field `answer`")), "{error}");
    let error = read("{\"prompt\": \"a\", \"answer\": \"b\\nc\"}").unwrap_err();
    assert_eq!(
        error,
        format!("{name}: line 1: field `answer`: has several lines; one line is scored")
    );
    let error = read("{\"prompt\": \"a\", \"answer\": \"b\"}").unwrap_err();
    assert!(error.contains("the split leaves none"), "{error}");
}

#[test]
fn factored_swapped_merged_and_banked_experts_agree() {
    let plain = model(256);
    let untouched = logits(&plain);
    let tuned = tuned();
    assert_close(&logits(tuned.model()), &untouched, 1e-4);
    let (mut a, mut b) = (tuned.expert("a").unwrap(), tuned.expert("b").unwrap());
    changed(&mut a, 0.1);
    changed(&mut b, -0.15);
    b.parametrisation = Parametrisation::direct().with_trace();
    let of = |expert: &ExpertVector| {
        tuned.apply(Some(expert)).unwrap();
        logits(tuned.model())
    };
    let (with_a, with_b) = (of(&a), of(&b));
    assert!(with_a.iter().zip(&untouched).any(|(x, y)| (x - y).abs() > 1e-3));
    tuned.apply(None).unwrap();
    assert_close(&logits(tuned.model()), &untouched, 1e-4);

    // Both at once, a row each, and a third row of the base.
    let mut banked = model(256);
    let base_of = base(&mut banked, &ALL);
    attach_bank(&mut banked, &base_of, &[&a, &b]).unwrap();
    let tokens = [5u32, 17, 80, 3, 41, 9];
    let rows = Tokens::new(&tokens, 2).unwrap();
    let input = specialformer::families::TextInput::new(rows);
    let tasks = TaskRows::new(&[1, 0], 2).unwrap();
    let ctx = Ctx::eval().with_tasks(Some(tasks));
    let mixed = banked.logits(&ctx, &input).unwrap().into_value().into_vec();
    let half = mixed.len() / 2;
    assert_close(&mixed[..half], &with_b[..half], 1e-4);
    assert_close(&mixed[half..], &with_a[half..], 1e-4);
    assert_close(&logits(&banked), &untouched, 1e-4);

    // The same while texts end one after the other.
    let prompts = vec![vec![5, 17, 80], vec![3, 41], vec![60; 4], vec![3, 41]];
    let config = GenerateConfig { tasks: vec![0, 1, 1, TaskRows::NONE], ..GenerateConfig::new(9) };
    let together = generate::<f32, f32>(&banked, &prompts, &config, |row, _| match row {
        1 => Flow::EndText,
        _ => Flow::Continue,
    })
    .unwrap();
    for (row, expert) in [(0, Some(&a)), (2, Some(&b)), (3, None)] {
        tuned.apply(expert).unwrap();
        let alone = generate::<f32, f32>(
            tuned.model(),
            &prompts[row..row + 1],
            &GenerateConfig::new(9),
            |_, _| Flow::Continue,
        );
        assert_eq!(alone.unwrap()[0].tokens, together[row].tokens, "{row}");
    }
    let wrong = GenerateConfig { tasks: vec![0], ..GenerateConfig::new(2) };
    assert!(generate::<f32, f32>(&banked, &prompts, &wrong, |_, _| Flow::Continue).is_err());

    // Folded in and saved, other tools see plain matrices.
    tuned.apply(Some(&b)).unwrap();
    let mut merged = tuned.into_model();
    merged.merge_adapters().unwrap();
    assert_close(&logits(&merged), &with_b, 1e-4);
    let folder = tempfile::tempdir().unwrap();
    merged.save(folder.path().join("merged")).unwrap();
    let again = PublishedModel::<f32>::open(folder.path().join("merged")).unwrap();
    assert_close(&logits(&again), &with_b, 1e-4);
}

#[test]
fn experts_of_other_models_and_unknown_matrices_are_refused_before_decomposing() {
    let tuned = tuned();
    let mut expert = tuned.expert("mine").unwrap();
    assert!(check_expert(&mut model(256), &expert).is_ok());
    let mut other = model(256);
    let scale = |parameter: &Parameter| parameter.update(|w| w.iter_mut().for_each(|w| *w *= 2.0));
    NamedParameters::of(&other).iter().for_each(|(_, parameter)| scale(parameter));
    let error = check_expert(&mut other, &expert).unwrap_err().to_string();
    assert!(error.starts_with("expert `mine` belongs to another base model"), "{error}");
    let matrix = expert.matrices.values().next().unwrap().clone();
    expert.matrices.insert("model.layers.9.mlp.up_proj.weight".into(), matrix);
    let error = check_expert(&mut model(256), &expert).unwrap_err().to_string();
    assert!(error.contains("scales the matrix `model.layers.9.mlp.up_proj.weight`"), "{error}");
}

#[test]
fn every_method_learns_through_the_same_loop() {
    let (format, data) = (format(), data(60));
    let lora = |model| Tuned::lora(model, &Selection::including(ALL), (2, 4.0), Seed::new(1));
    let methods: [(&str, Tuned, f64); 4] = [
        ("svf", tuned(), 0.05),
        ("lora", lora(model(256)).unwrap(), 0.02),
        ("last layer", Tuned::last_layer(model(256)).unwrap(), 0.01),
        ("full", Tuned::full(model(256)), 0.01),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, tuned, rate) in methods {
        let dataset = PromptDataset::new(&data, &format, tuned.model().window(), 1).unwrap();
        let before = logits(tuned.model());
        let config = TrainConfig { shards: Some(1), log_every: 5, ..TrainConfig::new(30, 8, rate) };
        let (_, report) = fine_tune(&tuned, dataset, config, &mut (), || false).unwrap();
        assert!(report.last_loss < 0.8 * report.first_loss, "{name}: {report:?}");
        assert_eq!((report.steps, report.records.len()), (30, 6));
        assert!(report.records[5].statistics.contains_key("exact"));
        assert_ne!(logits(tuned.model()), before, "{name}");
        let path = folder.path().join(name);
        tuned.save(&path, "marks", BTreeMap::new()).unwrap();
        let learned = logits(tuned.model());
        match name {
            "svf" => {
                let size = std::fs::metadata(&path).unwrap().len() as usize;
                assert_eq!(size, tuned.trained_bytes().unwrap());
                let expert = ExpertVector::load(&path).unwrap();
                let reloaded = self::tuned();
                reloaded.apply(Some(&expert)).unwrap();
                assert_close(&logits(reloaded.model()), &learned, 1e-4);
                assert_close(&tuned.at_start(|m| Ok(logits(m))).unwrap(), &before, 1e-6);
                assert_eq!(logits(tuned.model()), learned);
            }
            "lora" => {
                let adapter = specialformer::checkpoint::LoraFolder::open(&path).unwrap();
                let mut reloaded = model(256);
                reloaded.apply_lora(&adapter).unwrap();
                assert_close(&logits(&reloaded), &learned, 1e-4);
                assert!(tuned.expert("marks").is_err());
            }
            _ => {
                let reloaded = PublishedModel::<f32>::open(&path).unwrap();
                assert_close(&logits(&reloaded), &learned, 1e-4);
                assert!(tuned.at_start(|_| Ok(())).is_err());
            }
        }
    }
}

#[test]
fn rewards_raise_the_share_of_rewarded_answers_and_say_where_there_is_none() {
    let format = format();
    let data = data(60);
    let dataset = || PromptDataset::new(&data, &format, None, 1).unwrap();
    // Taught until about one answer in five is right: something to draw.
    let taught = || {
        let selection = Selection::including(ALL);
        // A head at random is too flat for any answer to be probable.
        let model = model(256);
        let parameters = NamedParameters::of(&model);
        let head = parameters.get("head.weight").unwrap();
        head.update(|weights| weights.iter_mut().for_each(|weight| *weight *= 8.0));
        let tuned = Tuned::lora(model, &selection, (4, 8.0), Seed::new(1)).unwrap();
        let mut loss = f64::INFINITY;
        for _ in 0..60 {
            let config = TrainConfig { shards: Some(1), ..TrainConfig::new(10, 8, 0.01) };
            let (_, report) = fine_tune(&tuned, dataset(), config, &mut (), || false).unwrap();
            loss = report.last_loss;
            if loss < 0.6 {
                return tuned;
            }
        }
        panic!("the model did not learn to answer: {loss}");
    };
    let run = |kl: f64, rewards: Rewards| {
        let tuned = taught();
        let policy = PromptPolicy {
            tuned: &tuned,
            format: &format,
            rewards,
            temperature: 1.0,
            max_tokens: 5,
        };
        let config = TrainConfig { log_every: 20, ..TrainConfig::new(40, 16, 0.005) };
        let settings = ReinforceConfig { kl, ..Default::default() };
        reinforce(&policy, dataset(), config, settings, &mut (), || false).unwrap().1
    };
    let rewards = Rewards::default();
    let free = run(0.0, rewards);
    let reward = |i: usize, of: &specialformer::svf::TuneReport| of.records[i].statistics["reward"];
    assert!(reward(1, &free) > reward(0, &free), "{:?}", free.records);
    assert!(!free.no_signal());
    let held = run(5.0, rewards);
    let kl = |of: &specialformer::svf::TuneReport| of.records[1].statistics["kl"];
    assert!(kl(&held) < kl(&free), "{} and {}", kl(&held), kl(&free));
    let nothing = run(0.0, Rewards { right: 0.0, unended: 0.0, wrong: 0.0 });
    assert!(nothing.no_signal());
}

#[test]
fn answers_are_scored_by_their_first_line() {
    let (format, model) = (format(), model(64));
    let prompt = PromptExample { prompt: "1?".into(), answer: "y".into() };
    let score = score_prompts(&model, &format, &[prompt.clone(), prompt.clone()], 1, |_| true);
    let score = score.unwrap();
    let right = score.answers.iter().filter(|answer| *answer == "y").count();
    assert_eq!((score.count, score.correct), (2, right));
    assert!(score_prompts(&model, &format, &[], 1, |_| true).is_err());
    assert!(score_prompts(&model, &format, &[prompt], 1, |_| false).is_err());
}

fn adaptive() -> AdaptiveModel {
    let mut model = model(256);
    let base = base(&mut model, &ALL);
    let experts: Vec<ExpertVector> = ["first-one", "second"]
        .into_iter()
        .enumerate()
        .map(|(i, task)| {
            let mut expert = ExpertVector::identity(task, &base);
            changed(&mut expert, 0.2 * (i as f32 + 1.0));
            expert
        })
        .collect();
    AdaptiveModel::new(model, &base, format(), experts).unwrap()
}

#[test]
fn each_strategy_chooses_and_leaves_the_base_applied() {
    let adaptive = adaptive();
    let untouched = logits(adaptive.model());
    let prompts = |mark: &str| (0..12).map(|i| format!("{i}{mark}")).collect::<Vec<_>>();
    let tasks = [("first-one".to_owned(), prompts("!!!!")), ("second".to_owned(), prompts("abcd"))];
    let classifier =
        TaskClassifier::train(adaptive.model(), adaptive.format(), &tasks, 0.3).unwrap();
    assert_eq!(classifier.outcomes(), ["first-one", "second", OTHERS]);
    let naming = adaptive.experts()[0].clone();
    let mixture_examples = [PromptExample { prompt: "1?".into(), answer: "y".into() }];
    let search = SearchConfig { population: 6, iterations: 2, ..Default::default() };
    let config = MixtureConfig { search, ..Default::default() };
    let mixture = Mixture::find(&adaptive, &mixture_examples, &config).unwrap();
    assert_eq!(mixture.found.evaluations, 12);
    assert_eq!(mixture.weights.is_empty(), mixture.score.order(&mixture.base).is_le());
    if !mixture.weights.is_empty() {
        let sum: f64 = mixture.weights.iter().map(|(_, weight)| weight).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
    let by_layer = MixtureConfig { per_layer: true, ..config.clone() };
    let by_layer = Mixture::find(&adaptive, &mixture_examples, &by_layer).unwrap();
    for row in &by_layer.layers {
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9 && row.len() == 3);
    }
    let layers = if by_layer.weights.is_empty() { 0 } else { 2 };
    assert_eq!((mixture.layers.len(), by_layer.layers.len()), (0, layers));
    for strategy in [
        Strategy::Prompt,
        Strategy::ExpertPrompt(&naming),
        Strategy::Classifier(&classifier),
        Strategy::Mixture(&mixture),
        Strategy::Mixture(&by_layer),
    ] {
        let choice = adaptive.identify(&strategy, "7!!!!").unwrap();
        assert_eq!(logits(adaptive.model()), untouched, "{strategy:?}");
        assert!(choice.scores.is_sorted_by(|a, b| a.1 >= b.1));
        if let Strategy::Classifier(_) = strategy {
            assert_eq!(choice.task(), "first-one");
        }
        let answer = adaptive.answer(&choice, "7!!!!", 4).unwrap();
        assert!(choice.seconds >= 0.0 && answer.seconds > 0.0);
    }
    let story = adaptive.identify(&Strategy::Classifier(&classifier), "Tell me a joke.").unwrap();
    assert!(story.is_others() && story.task() == OTHERS);
    assert!(Mixture::find(&adaptive, &[], &config).is_err());
}

#[test]
fn scores_of_names_are_their_log_probabilities() {
    // The cached, shared reading of the question against reading all anew.
    let adaptive = adaptive();
    let expert = adaptive.experts()[1].clone();
    let choice = adaptive.identify(&Strategy::ExpertPrompt(&expert), "12").unwrap();
    let (format, names) = (adaptive.format(), ["first-one", "second", OTHERS]);
    let text = specialformer::adaptation::identification_prompt(&names, "12");
    let prompt = format.prompt_tokens(&text).unwrap();
    adaptive
        .apply(&specialformer::adaptation::Choice {
            weights: vec![("second".into(), 1.0)],
            layers: vec![],
            scores: vec![],
            seconds: 0.0,
        })
        .unwrap();
    for (name, score) in &choice.scores {
        let answer = format.answer_tokens(&name.replace('-', " ")).unwrap();
        let all: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
        let input = specialformer::families::TextInput::new(Tokens::new(&all, 1).unwrap());
        let logits = adaptive.model().logits(&Ctx::eval(), &input).unwrap();
        let logs = logits.log_softmax(2).unwrap().into_value().into_vec();
        let wanted: f64 = answer
            .iter()
            .enumerate()
            .map(|(i, &token)| f64::from(logs[(prompt.len() - 1 + i) * 97 + token as usize]))
            .sum();
        assert!((score - wanted).abs() < 1e-3 * wanted.abs(), "{name}: {score} and {wanted}");
    }
}
