//! Traces, signatures of pretrained models, task-conditioned routing.

use std::path::Path;

use specialformer::checkpoint::{TensorFile, TensorWriter};
use specialformer::condition::{
    Conditions, EvaluateOptions, FitOptions, Selection, SoftOptions, evaluate, learn_bias,
};
use specialformer::prelude::*;
use specialformer::routing::condition::Budget;
use specialformer::routing::{ExpertSet, SignatureKind, SignatureSum};
use specialformer::routing_trace::{
    Prompt, PromptTrace, RoutedModel, TokenScope, TraceOptions, TraceReader, TraceWriter,
    read_prompts, read_signatures, synthetic_trace, trace_held_out, trace_prompts,
};
use specialformer::training::HeldOut;
use specialformer_testkit::{GoldenCase, golden_dir};

const CASES: [(&str, bool); 2] = [("05_olmoe", false), ("06_qwen3_moe", true)];

fn open(case: &str) -> RoutedModel {
    RoutedModel::open(&golden_dir().join(case)).unwrap()
}

/// Prompts of two labels, whose tokens are of different parts of the
/// vocabulary.
fn prompts() -> Vec<Prompt> {
    let mut rng = Seed::new(3).stream("prompts");
    let prompt = |number: usize| {
        let first = 48 * (number % 2) as u32;
        Prompt {
            id: Some(format!("p{number}")),
            label: Some(["low", "high"][number % 2].into()),
            text: None,
            tokens: Some((0..12).map(|_| first + rng.below(48) as u32).collect()),
        }
    };
    (0..24).map(prompt).collect()
}

fn trace(model: &RoutedModel, folder: &Path, options: TraceOptions) -> TraceReader {
    let writer = TraceWriter::create(folder, model).unwrap();
    trace_prompts(model, prompts().into_iter().map(Ok), options, writer).unwrap();
    TraceReader::open(folder).unwrap()
}

#[test]
fn signatures_of_published_models_are_those_of_their_stored_router_logits() {
    for (name, normalize) in CASES {
        let case = GoldenCase::committed(name).unwrap();
        let model = open(name);
        let k = case.config().unwrap()["num_experts_per_tok"].as_u64().unwrap() as usize;
        let ids = case.i64("input_ids").unwrap();
        let (rows, length) = (ids.shape()[0], ids.shape()[1]);
        for row in 0..rows {
            let tokens: Vec<u32> =
                ids.iter().skip(row * length).take(length).map(|&id| id as u32).collect();
            let mut got = SignatureSum::of_layers(&model.layers());
            got.add_trace(&model.trace(&tokens).unwrap(), |_| true).unwrap();
            for layer in 0..got.layers() {
                let logits = case.f32(&format!("router_logits.{layer}")).unwrap();
                let experts = logits.shape()[1];
                let mut count = vec![0.0; experts];
                let mut weight = vec![0.0; experts];
                for logits in logits.rows().into_iter().skip(row * length).take(length) {
                    let p: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
                    let mut order: Vec<usize> = (0..experts).collect();
                    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
                    let all: f64 = p.iter().sum();
                    let kept: f64 = order[..k].iter().map(|&e| p[e]).sum();
                    for &e in &order[..k] {
                        count[e] += 1.0;
                        weight[e] += p[e] / if normalize { kept } else { all };
                    }
                }
                let shares = |of: &[f64]| -> Vec<f64> {
                    of.iter().map(|x| x / of.iter().sum::<f64>()).collect()
                };
                assert_eq!(got.layer(SignatureKind::Count, layer), shares(&count), "{name}");
                let found = got.layer(SignatureKind::Weight, layer);
                for (got, want) in found.iter().zip(shares(&weight)) {
                    assert!((got - want).abs() < 1e-5, "{name}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn what_is_read_is_what_was_traced() {
    let place = tempfile::tempdir().unwrap();
    let model = open("05_olmoe");
    let options = TraceOptions { generate: 3, most_tokens: Some(10), pieces: true };
    let reader = trace(&model, &place.path().join("trace"), options);
    assert_eq!(reader.info().prompts, 24);
    let scopes = [TokenScope::All, TokenScope::Prompt, TokenScope::Generated, TokenScope::First(4)];
    let read = scopes.map(|scope| read_signatures(&reader, scope).unwrap());
    let part = reader.part(0).unwrap();
    for (number, (_, prompt)) in part.prompts().enumerate() {
        // A text may end before it has as many tokens as were asked for.
        let all = prompt.positions;
        assert!(prompt.own == 10 && (11..=13).contains(&all) && prompt.pieces.len() == all);
        let traced = model.trace(&prompt.tokens).unwrap();
        let wants = [0..all, 0..10, 10..all, 0..4];
        for (read, want) in read.iter().zip(wants) {
            let mut sum = SignatureSum::of_layers(&model.layers());
            sum.add_trace(&traced, |position| want.contains(&position)).unwrap();
            assert_eq!(read.prompts[number].sum, sum);
            assert_eq!(read.prompts[number].label, prompt.label);
        }
        let mut parts = read[1].prompts[number].sum.clone();
        parts.merge(&read[2].prompts[number].sum).unwrap();
        assert_eq!(parts, read[0].prompts[number].sum);
    }
    let mut lines = Vec::new();
    reader.write_jsonl(&mut lines).unwrap();
    let lines = String::from_utf8(lines).unwrap();
    assert_eq!(lines.lines().count() as u64, reader.info().positions);
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["generated"], &last["prompt"]), (&true.into(), &"p23".into()));
    assert_eq!(last["routing"][0]["experts"].as_array().unwrap().len(), model.top_k()[0]);
}

#[test]
fn pruned_and_masked_models_route_and_compute_the_same() {
    let place = tempfile::tempdir().unwrap();
    for (name, _) in CASES {
        let source = golden_dir().join(name);
        let model = open(name);
        let folder = place.path().join(name);
        let reader = trace(&model, &folder, TraceOptions::default());
        let options = FitOptions { budget: Budget::Experts(0.5), ..FitOptions::default() };
        let conditions = Conditions::fit(&model, &reader, None, options).unwrap();
        assert_eq!(conditions.kept(0), 0.5);
        let file = folder.join("../condition.json");
        conditions.save(&file).unwrap();
        assert_eq!(Conditions::load(&file).unwrap().tasks.len(), 2);
        let task = conditions.task("low").unwrap();
        let tokens = prompts()[4].tokens.clone().unwrap();
        let masked = conditions.restrict(&model, task).unwrap();
        let pruned = conditions.prune(&model, task).unwrap();
        assert!(pruned.expert_bytes() * 2 == model.expert_bytes());
        let (a, b) = (masked.trace(&tokens).unwrap(), pruned.trace(&tokens).unwrap());
        for (layer, (a, b)) in a.layers.iter().zip(&b.layers).enumerate() {
            let kept: Vec<usize> = conditions.tasks[task].experts[layer].iter().collect();
            let back: Vec<u32> =
                b.chosen().iter().map(|&expert| kept[expert as usize] as u32).collect();
            assert_eq!(a.chosen(), back, "{name}");
        }
        let logits = |model: &RoutedModel| model.logits(&Ctx::eval(), &tokens).unwrap();
        let saved = place.path().join(format!("{name}-pruned"));
        pruned.save(&saved, &source).unwrap();
        let opened = RoutedModel::open(&saved).unwrap();
        assert_eq!(opened.layers(), pruned.layers());
        let masked = logits(&masked);
        for other in [logits(&pruned), logits(&opened)] {
            for (a, b) in masked.value().as_slice().iter().zip(other.value().as_slice()) {
                assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
            }
        }
        // The caller's model is as it was.
        assert_eq!(open(name).fingerprint(), model.fingerprint());
        assert!(pruned.save(&saved, &source).unwrap_err().to_string().contains("not empty"));
    }
}

#[test]
fn all_experts_cost_nothing_and_few_cost_something() {
    let place = tempfile::tempdir().unwrap();
    let model = open("06_qwen3_moe");
    let reader = trace(&model, &place.path().join("trace"), TraceOptions::default());
    let options = FitOptions { detect_tokens: 8, ..FitOptions::default() };
    let conditions = Conditions::fit(&model, &reader, None, options).unwrap();
    let texts: Vec<(String, Vec<u32>)> =
        prompts().into_iter().map(|p| (p.label.unwrap(), p.tokens.unwrap())).collect();
    let options = EvaluateOptions {
        budgets: vec![Budget::Experts(1.0), Budget::Experts(0.5)],
        ..EvaluateOptions::default()
    };
    let curve = evaluate(&model, &conditions, &texts, &options).unwrap();
    assert_eq!(curve.points.len(), 1 + 2 * 4);
    for point in &curve.points {
        let all = point.budget != Some(Budget::Experts(0.5));
        assert!(!all || point.relative.abs() < 1e-6, "{point:?}");
        let kept = if all { 1.0 } else { 0.5 };
        let sure = point.selection != Selection::Detected;
        assert!(!sure || (point.kept - kept).abs() < 1e-9, "{point:?}");
    }
    assert!(curve.detection_accuracy > 0.6);
}

/// A small language model on two kinds of text, trained a little.
fn run(place: &Path) -> std::path::PathBuf {
    for (kind, words) in [("letters", ["ab", "ba", "aab"]), ("digits", ["12", "21", "112"])] {
        let mut rng = Seed::new(1).stream(kind);
        let text: Vec<&str> = (0..6000).map(|_| words[rng.below(3)]).collect();
        std::fs::create_dir_all(place.join(kind)).unwrap();
        std::fs::write(place.join(kind).join("a.txt"), text.join(" ")).unwrap();
    }
    let text = format!(
        r#"
        name = "tiny-lm"
        [model]
        kind = "specialformer"
        topology = "decoder"
        vocabulary = 257
        width = 16
        layers = 2
        heads = 2
        feed_forward = 16
        window = 32
        positions = "rope"
        specialisation = "moe"
        [model.moe]
        hidden = 16
        router = {{ experts = 6, top_k = 2, balance = {{ load_balance = 0.01 }} }}
        [data]
        kind = "text"
        window = 32
        piece_bytes = 256
        tasks = [{{ name = "letters", paths = [{0:?}] }}, {{ name = "digits", paths = [{1:?}] }}]
        [train]
        steps = 20
        batch_size = 8
        learning_rate = 1e-2
        "#,
        place.join("letters"),
        place.join("digits")
    );
    let config = specialformer::RunConfig::parse(&text, "tiny.toml").unwrap();
    let folder = place.join("run");
    specialformer::train(&config, &folder, specialformer::Start::New, (), || false).unwrap();
    folder
}

#[test]
fn a_run_is_traced_conditioned_taught_a_bias_and_pruned() {
    let place = tempfile::tempdir().unwrap();
    let folder = run(place.path());
    let model = RoutedModel::open(&folder).unwrap();
    let out = place.path().join("trace");
    let info = trace_held_out(&model, (HeldOut::Validation, 40), true, &out).unwrap();
    assert_eq!(info.set, Some(HeldOut::Validation));
    assert_eq!((info.prompts, info.layers.len()), (40, 2));
    let reader = TraceReader::open(&out).unwrap();
    let mut conditions = Conditions::fit(&model, &reader, None, FitOptions::default()).unwrap();
    assert!(conditions.detector.accuracy > 0.9, "{}", conditions.detector.accuracy);
    let task = conditions.task("digits").unwrap();

    let before = model.fingerprint();
    let soft = SoftOptions { steps: 15, batch_size: 8, ..SoftOptions::default() };
    let texts: Vec<_> = model.held_out_texts(HeldOut::Validation, 40).unwrap();
    let digits = |text: &&(String, Vec<u32>)| text.0 == "digits";
    let digits: Vec<_> = texts.iter().filter(digits).cloned().collect();
    learn_bias(&mut conditions, &model, task, soft).unwrap();
    assert_eq!(RoutedModel::open(&folder).unwrap().fingerprint(), before);
    assert_eq!(model.fingerprint(), before);
    let bias = conditions.tasks[task].bias.as_ref().unwrap();
    assert!(bias.iter().flatten().any(|&b| b != 0.0));
    let as_model = model.as_model().unwrap();
    assert!(NamedParameters::of(&as_model).iter().all(|(_, p)| !p.is_frozen()));

    // Half of the experts, trained on, answer better than before, and those of
    // the whole model stay as they were.
    let options = EvaluateOptions {
        budgets: vec![Budget::Experts(0.5)],
        selections: vec![Selection::Fixed, Selection::Tuned],
        tune: SoftOptions { steps: 15, batch_size: 8, ..SoftOptions::of_experts() },
        ..EvaluateOptions::default()
    };
    let curve = evaluate(&model, &conditions, &digits, &options).unwrap();
    let loss = |selection| curve.points.iter().find(|p| p.selection == selection).unwrap().loss;
    assert!(loss(Selection::Tuned) < loss(Selection::Fixed), "{curve:?}");
    assert!(loss(Selection::TunedFull) < loss(Selection::Full), "{curve:?}");
    assert_eq!(model.fingerprint(), before);
    assert!(NamedParameters::of(&as_model).iter().all(|(_, p)| !p.is_frozen()));

    let masked = conditions.restrict(&model, task).unwrap();
    let pruned = conditions.prune(&model, task).unwrap();
    let saved = place.path().join("pruned");
    pruned.save(&saved, &folder).unwrap();
    let opened = RoutedModel::open(&saved).unwrap();
    assert_eq!(opened.layers()[0].experts, 3);
    let logits = |model: &RoutedModel| model.logits(&Ctx::eval(), &digits[0].1).unwrap();
    let want = logits(&masked);
    for got in [logits(&pruned), logits(&opened)] {
        for (a, b) in want.value().as_slice().iter().zip(got.value().as_slice()) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
    // From cached keys and values, as if all were read again for each token.
    let mut text = digits[0].1[..8].to_vec();
    let made = opened.continue_text(&text, 4).unwrap();
    for &token in &made {
        let logits = opened.logits(&Ctx::eval(), &text).unwrap();
        let vocabulary = logits.shape().last_size();
        let last = &logits.value().as_slice()[(text.len() - 1) * vocabulary..];
        let best = (1..last.len()).fold(0, |best, i| if last[i] > last[best] { i } else { best });
        assert_eq!(token as usize, best);
        text.push(token);
    }
    assert_eq!(made.len(), 4);
}

#[test]
fn what_cannot_be_traced_or_conditioned_says_why() {
    let place = tempfile::tempdir().unwrap();
    let error = RoutedModel::open(&golden_dir().join("03_qwen3")).unwrap_err().to_string();
    assert!(error.ends_with("the model has no experts: nothing is routed"), "{error}");

    let (olmoe, qwen) = (open("05_olmoe"), open("06_qwen3_moe"));
    let empty = place.path().join("empty.jsonl");
    std::fs::write(&empty, "\n").unwrap();
    let writer = TraceWriter::create(&place.path().join("none"), &olmoe).unwrap();
    let none =
        trace_prompts(&olmoe, read_prompts(&empty).unwrap(), TraceOptions::default(), writer);
    assert!(none.unwrap_err().to_string().ends_with("there is no prompt to trace"));
    assert!(TraceReader::open(&place.path().join("none")).is_err());

    std::fs::write(&empty, "{\"text\": \"a\"}\n{\"label\": \"x\"}\n").unwrap();
    let second = read_prompts(&empty).unwrap().nth(1).unwrap().unwrap_err().to_string();
    assert!(second.contains("line 2: a prompt is a `text` or `tokens`"), "{second}");
    let error = olmoe.encode("text").unwrap_err().to_string();
    assert!(error.contains("no tokenizer"), "{error}");

    let reader = trace(&olmoe, &place.path().join("trace"), TraceOptions::default());
    let error = Conditions::fit(&qwen, &reader, None, FitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("is a trace of another model"), "{error}");
    let conditions = Conditions::fit(&olmoe, &reader, None, FitOptions::default()).unwrap();
    assert!(conditions.prune(&qwen, 0).unwrap_err().to_string().contains("another model"));
    let error = conditions.task("middle").unwrap_err().to_string();
    assert_eq!(error, "middle: no such task; there are high, low");

    // Layers of different sizes have no file.
    let uneven =
        olmoe.map_experts(|layer, moe| Ok(moe.prune(&[0, 1, 2, 3][..4 - layer.min(1)])?)).unwrap();
    let error = uneven.save(&place.path().join("uneven"), Path::new("")).unwrap_err().to_string();
    assert!(error.contains("one number of experts"), "{error}");
    let few = olmoe.map_experts(|_, moe| Ok(moe.restricted(ExpertSet::new(8, [0]).unwrap())?));
    assert!(few.unwrap_err().to_string().contains("allowed experts = 1"));
}

#[test]
fn a_trace_that_cannot_be_replaced_is_left_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("trace");
    let olmoe = open("05_olmoe");
    trace(&olmoe, &out, TraceOptions::default());
    let files = || {
        let mut names: Vec<_> =
            std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // Of a pretrained model no rows are held out.
    let before = files();
    assert!(trace_held_out(&olmoe, (HeldOut::Test, 4), true, &out).is_err());
    assert_eq!(files(), before);
    TraceReader::open(&out).unwrap();
    // Files that are not a trace's, wherever in the folder's order.
    for name in ["a.txt", "z.txt"] {
        std::fs::write(out.join(name), "mine").unwrap();
        let before = files();
        let error = TraceWriter::create(&out, &olmoe).unwrap_err().to_string();
        assert!(error.ends_with(&format!("holds `{name}`, which is no part of a trace")));
        assert_eq!(files(), before);
        std::fs::remove_file(out.join(name)).unwrap();
    }
}

#[test]
fn an_old_trace_is_whole_until_the_new_one_is() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("trace");
    let small = |prompts| synthetic_trace(&out, [prompts, 4, 2], [2, 8, 2], Seed::new(1));
    small(3).unwrap();
    // One that fails after it has begun, and one that is dropped.
    let olmoe = open("05_olmoe");
    let prompts = place.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"tokens\": [1, 2]}\n{\"tokens\": [4000000]}\n").unwrap();
    let writer = TraceWriter::create(&out, &olmoe).unwrap();
    let options = TraceOptions::default();
    trace_prompts(&olmoe, read_prompts(&prompts).unwrap(), options, writer).unwrap_err();
    drop(TraceWriter::create(&out, &olmoe).unwrap());
    let prompts = || {
        let reader = TraceReader::open(&out).unwrap();
        read_signatures(&reader, TokenScope::All).unwrap().prompts.len()
    };
    assert_eq!(prompts(), 3);
    // Its place is taken, and nothing of it is left.
    for round in 1..3 {
        small(5 + round).unwrap();
        assert_eq!(prompts(), 5 + round);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
    }
    // The parts of a trace that was killed go when the next one begins.
    std::fs::remove_file(out.join("trace.json")).unwrap();
    small(2).unwrap();
    assert!(out.join("part-00000.safetensors").exists());
    assert_eq!((prompts(), std::fs::read_dir(&out).unwrap().count()), (2, 2));
}

#[test]
fn numbers_that_no_trace_has_are_errors() {
    let place = tempfile::tempdir().unwrap();
    synthetic_trace(place.path(), [3, 4, 2], [2, 8, 2], Seed::new(1)).unwrap();
    let read = || -> Result<_, String> {
        let reader = TraceReader::open(place.path()).map_err(|e| e.to_string())?;
        read_signatures(&reader, TokenScope::All).map_err(|e| e.to_string())
    };
    read().unwrap();
    let change = |name: &str, from: &str, to: &str| {
        let path = place.path().join(name);
        let old = std::fs::read(&path).unwrap();
        let at = old.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let new = [&old[..at], to.as_bytes(), &old[at + from.len()..]].concat();
        std::fs::write(&path, new).unwrap();
        let result = read();
        std::fs::write(&path, old).unwrap();
        result
    };
    let huge = usize::MAX.to_string();
    // What is said of the whole is not relied on.
    let prompts = change("trace.json", "\"prompts\": 3", &format!("\"prompts\": {huge}"));
    assert_eq!(prompts.unwrap().prompts.len(), 3);
    let experts = change("trace.json", "\"experts\": 8", "\"experts\": 800000000000000");
    assert!(experts.unwrap_err().ends_with("blocks.0 has 800000000000000 experts, too many"));
    let first = format!("\"parts\": {huge}, \"first_part\": {huge}");
    assert!(change("trace.json", "\"parts\": 1", &first).is_err());
    // Positions of which the last one is the first that the number type lacks.
    let path = place.path().join("part-00000.safetensors");
    let old = TensorFile::open(&path).unwrap();
    let mut writer = TensorWriter::new();
    for name in old.names() {
        match name.ends_with("weights") {
            true => writer.tensor(name, &old.tensor::<f32>(name).unwrap()).unwrap(),
            false => writer.integers(name, &old.integers::<u8>(name).unwrap()).unwrap(),
        };
    }
    let of = |positions| PromptTrace { positions, ..PromptTrace::default() };
    writer.metadata_json("prompts", &[of(usize::MAX), of(13)]).unwrap();
    drop(old);
    writer.save(&path).unwrap();
    assert!(read().unwrap_err().ends_with("more positions than can be"));
}

#[test]
fn synthetic_traces_are_read_part_by_part() {
    let place = tempfile::tempdir().unwrap();
    let info = synthetic_trace(place.path(), [40, 20, 4], [3, 300, 2], Seed::new(1)).unwrap();
    assert_eq!((info.prompts, info.positions), (40, 800));
    let reader = TraceReader::open(place.path()).unwrap();
    let data = read_signatures(&reader, TokenScope::All).unwrap();
    assert_eq!(data.layers[2].experts, 300);
    assert_eq!(data.prompts[39].sum.counts(1).iter().sum::<u64>(), 40);
}
