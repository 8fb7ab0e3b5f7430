//! `svf` and `adapt` on a model of a few thousand weights.

use std::fs;
use std::path::Path;

use specialformer::checkpoint::HfConfig;
use specialformer::families::PublishedModel;
use specialformer::prelude::Seed;

use crate::common::{refused, specialformer, specialformer_fed, text};

/// Printable ASCII, blank and new line as single tokens, then the end token.
fn tokenizer() -> String {
    let letters = (33u8..127).map(|byte| (byte as char).to_string());
    let letters = letters.chain(["\u{120}".to_owned(), "\u{10a}".to_owned()]);
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        letters.enumerate().map(|(id, letter)| (letter, id.into())).collect();
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": false});
    serde_json::json!({
        "version": "1.0",
        "added_tokens": [{"id": 96, "content": "<end>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

/// A model folder `model` and prompts `mine.jsonl`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("model"), 1);
    let line = |i: usize| {
        let answer = if i.is_multiple_of(2) { "x" } else { "y" };
        format!("{{\"prompt\": \"{i}?\", \"answer\": \"{answer}\"}}\n")
    };
    fs::write(folder.path().join("mine.jsonl"), (0..60).map(line).collect::<String>()).unwrap();
    folder
}

fn write_model(path: &Path, seed: u64) {
    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97,
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "eos_token_id": 96,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 160}"#;
    let config = HfConfig::from_json("config.json", json.as_bytes()).unwrap();
    PublishedModel::<f32>::new(&config, Seed::new(seed)).unwrap().save(path).unwrap();
    fs::write(path.join("tokenizer.json"), tokenizer()).unwrap();
}

/// Runs what must succeed; what it prints.
fn done(at: &Path, arguments: &[&str]) -> String {
    let output = specialformer(at, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(at: &Path, arguments: &[&str]) -> serde_json::Value {
    let printed = done(at, &[arguments, &["--json", "--quiet"]].concat());
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn an_expert_is_trained_scored_mixed_merged_and_chosen() {
    let folder = folder();
    let at = folder.path();
    let cache = ["--cache", "svd"];
    let with = |arguments: &[&'static str]| [arguments, &cache].concat();

    let decomposed = json(at, &with(&["svf", "decompose", "model"]));
    assert_eq!(
        (decomposed["matrices"].as_u64(), decomposed["singular_values"].as_u64()),
        (Some(3), Some(48))
    );
    assert_eq!(fs::read_dir(at.join("svd")).unwrap().count(), 3);

    let training = ["svf", "train", "model", "--data", "mine.jsonl", "--steps", "6", "--test", "4"];
    let trained = json(at, &with(&training));
    assert_eq!(trained["trained_numbers"], 48);
    assert_eq!(trained["training"]["steps"], 6);
    assert_eq!(trained["report"], "experts/mine.html");
    let report = fs::read_to_string(at.join("experts/mine.html")).unwrap();
    assert!(report.contains("Right answers in training (%) against optimiser steps"));
    let said = refused(at, &with(&training));
    assert!(said.contains("experts/mine.safetensors: is there already"), "{said}");
    done(
        at,
        &with(&[
            "svf",
            "train",
            "model",
            "--task",
            "even-or-odd",
            "--steps",
            "2",
            "--test",
            "0",
            "--examples",
            "8",
            "--matrices",
            "mlp",
        ]),
    );

    let info = json(at, &["svf", "info", "experts/mine.safetensors", "--model", "model"]);
    assert_eq!((info["task"].as_str(), info["fits_model"].as_bool()), (Some("mine"), Some(true)));
    let experts = "experts/mine.safetensors,experts/even-or-odd.safetensors";
    fs::write(at.join("text.txt"), "a plain text of some letters").unwrap();
    let scored = json(
        at,
        &with(&[
            "svf",
            "eval",
            "model",
            "--data",
            "mine.jsonl",
            "--task",
            "sentiment",
            "--size",
            "3",
            "--text",
            "text.txt",
            "--expert",
            experts,
        ]),
    );
    assert_eq!(scored["rows"].as_array().unwrap().len(), 3);
    assert_eq!(scored["rows"][2]["tasks"]["sentiment"]["count"], 3);
    assert!(scored["rows"][0]["perplexity"].as_f64().unwrap() > 1.0);

    done(
        at,
        &[
            "svf",
            "mix",
            "experts/mine.safetensors",
            "experts/even-or-odd.safetensors",
            "--weights",
            "1,-0.5",
            "--mode",
            "add",
            "--out",
            "less.safetensors",
        ],
    );
    done(at, &with(&["svf", "merge", "model", "less.safetensors", "--out", "merged"]));
    let small = ["svf", "merge", "model", "less.safetensors", "--to", "bf16", "--out", "small"];
    done(at, &with(&small));
    assert!(json(at, &["inspect", "small"]).to_string().contains("BF16"));
    let said = refused(at, &["svf", "info", "less.safetensors", "--model", "merged"]);
    assert!(said.contains("belongs to another base model"), "{said}");

    let asked = [
        "adapt",
        "model",
        "--experts",
        "experts",
        "--prompt",
        "3?",
        "--max-tokens",
        "4",
        "--strategy",
    ];
    let own = ["--data", "mine=mine.jsonl"];
    for (strategy, more) in [
        ("prompt", &[][..]),
        ("classifier", &own),
        ("classifier", &[]),
        ("mixture", &["--examples", "mine.jsonl", "--population", "3", "--iterations", "1"]),
    ] {
        let answers = json(at, &[&asked[..], &[strategy], more, &cache].concat());
        let choice = &answers["answers"][0]["choice"];
        assert!(choice["seconds"].is_number() && choice["scores"].is_array(), "{answers}");
    }
    assert!(at.join("experts/task-classifier.safetensors").is_file());
    let said = refused(at, &[&asked[..], &["classifier-expert"], &cache].concat());
    assert!(said.contains("holds no expert of the task `classifier`"), "{said}");
    let naming = ["svf", "train", "model", "--naming", "experts", "--steps", "1", "--test", "2"];
    let said = refused(at, &with(&naming));
    assert!(said.contains("the expert of `mine` is no generated task"), "{said}");
    fs::remove_file(at.join("experts/mine.safetensors")).unwrap();
    let small = ["--examples", "4"];
    json(at, &[&naming[..], &small, &cache].concat());
    assert!(at.join("experts/classifier.safetensors").is_file());
    json(at, &[&asked[..], &["classifier-expert"], &cache].concat());
}

#[test]
fn a_conversation_applies_experts() {
    let folder = folder();
    let at = folder.path();
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    fs::write(at.join("model/chat_template.jinja"), template).unwrap();
    let train = ["svf", "train", "model", "--data", "mine.jsonl", "--steps", "1", "--test", "0"];
    done(at, &[&train[..], &["--no-cache"]].concat());
    let chat = ["chat", "model", "--experts", "experts", "--max-tokens", "2", "--json"];
    let prompt = [&chat[..], &["--strategy", "prompt"]].concat();
    let output = specialformer_fed(at, &prompt, "3?\n");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("[mine") || said.starts_with("[others"), "{said}");
    assert!(text(&output.stdout).starts_with("{\"answer\":"), "{}", text(&output.stdout));
    // A task of one's own needs a classifier of it, which `adapt` trains.
    let said = refused(at, &chat);
    assert!(said.contains("--data mine=FILE.jsonl"), "{said}");
    let train_it = ["adapt", "model", "--experts", "experts", "--data", "mine=mine.jsonl"];
    done(at, &[&train_it[..], &["--prompt", "3?", "--no-cache"]].concat());
    let output = specialformer_fed(at, &[&chat[..], &["--quiet"]].concat(), "3?\n");
    let (told, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
    let answer: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(answer["experts"], serde_json::json!([["mine", 1.0]]));
    // An adapter makes another base of the model, weights in blocks none at all.
    let lora = ["--method", "lora", "--rank", "2", "--out", "lora"];
    done(at, &[&train[..], &lora].concat());
    let said = refused(at, &[&chat[..], &["--adapter", "lora"]].concat());
    assert!(said.contains("belongs to another base model"), "{said}");
    let said = refused(at, &[&chat[..], &["--weights", "quantized"]].concat());
    assert!(said.contains("in single precision"), "{said}");
}

/// A signal ends the conversation, not an answer alone.
#[cfg(unix)]
#[test]
fn a_signal_ends_a_conversation() {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};
    let folder = folder();
    let at = folder.path();
    fs::write(at.join("model/chat_template.jinja"), "{{ messages[-1].content }}").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_specialformer"));
    command.current_dir(at).args(["chat", "model", "--max-tokens", "64", "--json"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut questions = child.stdin.take().unwrap();
    let asking = std::thread::spawn(move || while questions.write_all(b"3?\n").is_ok() {});
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    answers.next().unwrap().unwrap();
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(status.unwrap().success());
    answers.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    asking.join().unwrap();
}

#[test]
fn a_kept_classifier_is_asked_with_the_threshold_and_of_its_own_base() {
    let folder = folder();
    let at = folder.path();
    let train = ["svf", "train", "model", "--data", "mine.jsonl", "--steps", "1", "--test", "0"];
    done(at, &[&train[..], &["--no-cache"]].concat());
    let ask = ["adapt", "model", "--experts", "experts", "--no-cache", "--strategy", "classifier"];
    let ask = [&ask[..], &["--prompt", "3?", "--max-tokens", "1"]].concat();
    let own = ["--data", "mine=mine.jsonl"];
    let chosen = |more: &[&str]| {
        json(at, &[&ask[..], more].concat())["answers"][0]["choice"]["weights"].clone()
    };
    let mine = serde_json::json!([["mine", 1.0]]);
    assert_eq!(chosen(&own), mine);
    let kept = at.join("experts/task-classifier.safetensors");
    let first = fs::read(&kept).unwrap();
    assert_eq!(chosen(&[]), mine);
    // The same prompts again train nothing, others do.
    let changed = || fs::read(&kept).unwrap() != first;
    assert_eq!(chosen(&own), mine);
    assert!(!changed());
    fs::write(at.join("fewer.jsonl"), "{\"prompt\": \"3?\", \"answer\": \"x\"}\n").unwrap();
    assert_eq!(chosen(&["--data", "mine=fewer.jsonl"]), mine);
    assert!(changed());
    assert_eq!(chosen(&["--threshold", "0.999999"]), serde_json::json!([]));
    for (wrong, said) in [
        (["--threshold", "-1"], "--threshold = -1: must be in [0, 1)"),
        (["--threshold", "nan"], "--threshold = NaN"),
        (["--data", "mine.jsonl"], "must be TASK=FILE of an expert's task"),
        (["--data", "other=mine.jsonl"], "must be TASK=FILE of an expert's task"),
    ] {
        let told = refused(at, &[&ask[..], &wrong].concat());
        assert!(told.contains(said), "{told}");
    }
    assert_eq!(chosen(&[]), mine);
    // Experts of another model in the same folder need a classifier of it.
    write_model(&at.join("other"), 2);
    let again = train.map(|word| if word == "model" { "other" } else { word });
    done(at, &[&again[..], &["--no-cache", "--force"]].concat());
    let other: Vec<&str> =
        ask.iter().map(|&word| if word == "model" { "other" } else { word }).collect();
    let said = refused(at, &other);
    assert!(said.contains("the classifier needs prompts"), "{said}");
}

#[test]
fn other_methods_and_rewards_train_through_the_same_command() {
    let folder = folder();
    let at = folder.path();
    for (method, file) in [
        ("lora", "adapter_model.safetensors"),
        ("last-layer", "model.safetensors"),
        ("full", "config.json"),
    ] {
        let out = format!("runs/{method}");
        let mut arguments = vec![
            "svf",
            "train",
            "model",
            "--data",
            "mine.jsonl",
            "--steps",
            "2",
            "--test",
            "2",
            "--method",
            method,
            "--out",
            &out,
        ];
        if method == "lora" {
            arguments.extend(["--rank", "2"]);
        }
        json(at, &arguments);
        assert!(at.join(&out).join(file).is_file(), "{method}");
        assert!(at.join(format!("{out}.html")).is_file(), "{method}");
    }
    // A model at random is never right: there is nothing to learn from.
    let arguments = [
        "svf",
        "train",
        "model",
        "--data",
        "mine.jsonl",
        "--steps",
        "2",
        "--test",
        "0",
        "--objective",
        "reinforce",
        "--no-cache",
        "--quiet",
    ];
    let output = specialformer(at, &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nothing was learned"), "{}", text(&output.stderr));
    assert!(!at.join("experts/mine.safetensors").exists());
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let folder = folder();
    let at = folder.path();
    done(
        at,
        &[
            "svf",
            "train",
            "model",
            "--data",
            "mine.jsonl",
            "--steps",
            "1",
            "--test",
            "0",
            "--no-cache",
        ],
    );
    write_model(&at.join("other"), 2);
    fs::write(at.join("empty.jsonl"), "\n").unwrap();
    let long = "z".repeat(200);
    let lines: String =
        (0..40).map(|i| format!("{{\"prompt\": \"p{i}\", \"answer\": \"{long}\"}}\n")).collect();
    fs::write(at.join("long.jsonl"), lines).unwrap();
    let expert = "experts/mine.safetensors";
    for (arguments, wanted) in [
        (
            &["svf", "eval", "other", "--expert", expert, "--task", "sentiment"][..],
            "belongs to another base model",
        ),
        (&["svf", "merge", "other", expert, "--out", "m"], "belongs to another base model"),
        (&["svf", "merge", "model", expert, "--out", "m", "--to", "gguf-f16"], "ends in .gguf"),
        (
            &["svf", "decompose", "model", "--matrices", "*.experts.*", "--no-cache"],
            "no matrix fits the selection",
        ),
        (&["svf", "train", "model", "--data", "empty.jsonl"], "empty.jsonl: holds no example"),
        (
            &["svf", "train", "model", "--data", "long.jsonl"],
            "longer than the model's context of 160",
        ),
        (&["svf", "train", "model", "--task", "sums"], "sums: no such task; there are json-field"),
        (
            &["svf", "train", "nowhere", "--task", "sentiment"],
            "nowhere: there is no such file or folder",
        ),
        (
            &["svf", "train", "model", "--task", "sentiment", "--method", "lora", "--rank", "99"],
            "must be in 1..=16",
        ),
        (
            &[
                "svf",
                "train",
                "model",
                "--task",
                "sentiment",
                "--sigmoid",
                "1",
                "--no-cache",
                "--test",
                "0",
            ],
            "must exceed 1",
        ),
        (&["svf", "eval", "model"], "nothing to score"),
        (
            &["svf", "train", "model", "--data", "mine.jsonl", "--out", "./model", "--force"],
            "is the model itself",
        ),
        (&["svf", "mix", expert, expert, "--weights", "1", "--out", "m"], "there are 2 experts"),
        (
            &["adapt", "model", "--experts", "model", "--strategy", "prompt", "--prompt", "a"],
            "model",
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--quiet"]).collect();
        let said = refused(at, &arguments);
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}
