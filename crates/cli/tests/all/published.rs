//! Commands for pretrained models, on a tiny one.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use specialformer::checkpoint::HfConfig;
use specialformer::families::PublishedModel;
use specialformer::prelude::Seed;

use crate::common::{refused, specialformer, specialformer_fed, text};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A tokenizer whose tokens are bytes, as byte-level BPE spells them.
fn tokenizer() -> Value {
    let mut vocabulary = serde_json::Map::new();
    let mut other = 256;
    for byte in 0..=255u32 {
        let itself = (33..=126).contains(&byte) || (161..=255).contains(&byte) && byte != 173;
        let spelt = if itself { byte } else { other };
        other += u32::from(!itself);
        let spelt = char::from_u32(spelt).unwrap().to_string();
        vocabulary.insert(spelt, byte.into());
    }
    let added = ["<|im_start|>", "<|im_end|>"].into_iter().zip(256..).map(|(content, id)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": []
        }
    })
}

/// A folder with a tiny model in `model/`.
fn tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let json = br#"{
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 258,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "tie_word_embeddings": true, "eos_token_id": 257
    }"#;
    let config = HfConfig::from_json("config.json", json).unwrap();
    let path = folder.path().join("model");
    PublishedModel::<f32>::new(&config, Seed::new(4)).unwrap().save(&path).unwrap();
    fs::write(path.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(path.join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

fn run(at: &Path, arguments: &[&str]) -> String {
    let output = specialformer(at, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn run_json(at: &Path, arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&run(at, &all)).unwrap()
}

fn perplexity(at: &Path, model: &str, more: &[&str]) -> f64 {
    let arguments: Vec<&str> =
        ["perplexity", model, "text.txt"].into_iter().chain(more.iter().copied()).collect();
    run_json(at, &arguments)["perplexity"].as_f64().unwrap()
}

#[test]
fn every_form_of_a_model_says_the_same() {
    let folder = tiny();
    let at = folder.path();
    fs::write(at.join("text.txt"), "Twelve small models learn 12 tasks. Né?\n").unwrap();
    for (form, out) in [
        ("gguf-f32", "f32.gguf"),
        ("gguf-f16", "f16.gguf"),
        ("gguf-q8-0", "q8.gguf"),
        ("bf16", "bf16"),
    ] {
        run(at, &["convert", "model", "--to", form, "--out", out]);
    }
    run(at, &["convert", "f32.gguf", "--to", "f32", "--out", "back"]);
    let wanted = perplexity(at, "model", &[]);
    let close = |found: f64, tolerance: f64, what: &str| {
        assert!((found / wanted - 1.0).abs() < tolerance, "{what}: {found}, {wanted}");
    };
    close(perplexity(at, "f32.gguf", &[]), 1e-6, "f32.gguf");
    close(perplexity(at, "back", &[]), 1e-6, "back");
    close(perplexity(at, "f16.gguf", &["--weights", "f32"]), 1e-3, "f16.gguf");
    close(perplexity(at, "bf16", &["--weights", "quantized"]), 1e-2, "bf16");
    close(perplexity(at, "q8.gguf", &["--weights", "quantized-exact"]), 1e-2, "q8.gguf");
    close(perplexity(at, "q8.gguf", &["--decode"]), 2e-2, "q8.gguf token by token");
    close(perplexity(at, "model", &["--decode"]), 1e-5, "token by token");

    let greedy = ["generate", "model", "--prompt", "ab", "--max-tokens", "8"];
    let of = |model: &'static str| {
        let arguments = greedy.map(|word| if word == "model" { model } else { word });
        run_json(at, &arguments)["texts"][0]["tokens"].clone()
    };
    assert_eq!(of("model").as_array().unwrap().len(), 8);
    assert_eq!(of("model"), of("f32.gguf"));
    assert_eq!(of("model"), of("back"));
    // Nothing is written over.
    let said = refused(at, &["convert", "model", "--to", "f32", "--out", "back"]);
    assert!(said.contains("nothing is written over"), "{said}");
}

#[test]
fn texts_are_continued_alone_and_together() {
    let folder = tiny();
    let at = folder.path();
    let arguments = ["generate", "model", "--prompt", "ab", "--max-tokens", "6", "--quiet"];
    assert!(run(at, &arguments).starts_with("ab"));
    let both = run_json(
        at,
        &["generate", "model", "--prompt", "ab", "--prompt", "xyz", "--max-tokens", "6"],
    );
    let alone = run_json(at, &arguments[..6]);
    assert_eq!(both["texts"][0]["tokens"], alone["texts"][0]["tokens"]);
    assert_eq!(both["texts"][1]["finish"], "max-tokens");
    let sampled = |seed: &str| {
        let more = ["--temperature", "2", "--seed", seed];
        let all: Vec<&str> = arguments[..6].iter().copied().chain(more).collect();
        run_json(at, &all)["texts"][0]["tokens"].clone()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    let chat = ["generate", "model", "--prompt", "Hi", "--chat", "--max-tokens", "3"];
    // <|im_start|> user \n H i <|im_end|> \n <|im_start|> assistant \n, bytes as tokens.
    assert_eq!(run_json(at, &chat)["prompt_tokens"], 1 + 5 + 2 + 2 + 1 + 10);
}

#[test]
fn a_conversation_ends_with_its_input() {
    let folder = tiny();
    let at = folder.path();
    let chat = ["chat", "model", "--max-tokens", "5", "--temperature", "0", "--json"];
    let input = "Hello\n\nAgain\n/reset\nHello\n/nonsense\n/help\n";
    let output = specialformer_fed(at, &chat, input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["answer"], answers[2]["answer"]);
    assert_eq!(answers[0]["finish"], "max-tokens");
    let said = text(&output.stderr);
    assert!(said.contains("no command /nonsense") && said.contains("/system TEXT"), "{said}");
    // Too long for the window: said, the conversation goes on, and the exit
    // code tells.
    let long = format!("{}\nHi\n/exit\nnever\n", "x".repeat(400));
    let output = specialformer_fed(at, &chat, &long);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("the model's window is 256"), "{said}");
    assert!(said.ends_with("error: 1 of 2 questions had no answer\n"), "{said}");
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["error"].as_str().unwrap().contains("window is 256"), "{lines:?}");
    assert!(lines[1]["answer"].is_string() && lines.len() == 2, "{lines:?}");
}

#[test]
fn a_conversation_that_nobody_reads_ends_quietly() {
    let folder = tiny();
    for more in [&[][..], &["--json"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_specialformer"));
        command.current_dir(folder.path()).args(["chat", "model", "--max-tokens", "5"]).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        child.stdin.take().unwrap().write_all(b"Hello\nAgain\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), "", "{more:?}");
        assert_eq!(output.status.code(), Some(141), "{more:?}");
    }
}

#[test]
fn what_is_in_a_model_is_told_without_loading_it() {
    let folder = tiny();
    let at = folder.path();
    let summary = run_json(at, &["inspect", "model"]);
    assert_eq!(summary["model_type"], "llama");
    assert_eq!(summary["supported"], true);
    // Embedding, norms, and two blocks of attention and feed-forward layers.
    let block = 2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96;
    assert_eq!(summary["parameters"], 258 * 64 + 64 + 2 * block);
    assert_eq!(summary["cache_bytes_per_token"], 2 * 4 * 2 * 32);
    let told = run(at, &["inspect", "model", "--tensors"]);
    assert!(told.contains("model.layers.1.mlp.down_proj.weight"), "{told}");
}

#[test]
fn what_is_no_model_is_refused_in_one_line() {
    let folder = tiny();
    let at = folder.path();
    fs::write(at.join("text.txt"), "some text").unwrap();
    fs::write(at.join("broken.gguf"), "GGUF").unwrap();
    let generate = |model: &'static str| ["generate", model, "--prompt", "x"];
    assert!(refused(at, &generate("nowhere")).contains("no such file or folder"));
    assert!(refused(at, &generate("text.txt")).contains("no .gguf file"));
    assert!(refused(at, &generate("broken.gguf")).contains("broken.gguf"));
    assert!(refused(at, &["inspect", "."]).contains("config.json"));
    assert!(refused(at, &["perplexity", "model", "nothing.txt"]).contains("nothing.txt"));
    let hot = ["generate", "model", "--prompt", "x", "--temperature", "-1"];
    assert!(refused(at, &hot).contains("temperature"));
    let wide = ["perplexity", "model", "text.txt", "--window", "1000"];
    assert!(refused(at, &wide).contains("at most 256"));
    fs::remove_file(at.join("model/chat_template.jinja")).unwrap();
    assert!(refused(at, &["chat", "model"]).contains("no chat template"));
    let chat = ["generate", "model", "--prompt", "x", "--chat"];
    assert!(refused(at, &chat).contains("no chat template"));
    fs::remove_file(at.join("model/tokenizer.json")).unwrap();
    assert!(refused(at, &generate("model")).contains("tokenizer.json"));
}

/// An adapter that was trained on a file of stored weights goes on that file.
#[test]
fn adapters_go_on_stored_weights() {
    let folder = tiny();
    let at = folder.path();
    run(at, &["convert", "model", "--to", "gguf-q8-0", "--out", "m.gguf"]);
    let lines: String =
        (0..8).map(|i| format!("{{\"prompt\": \"{i}?\", \"answer\": \"x\"}}\n")).collect();
    fs::write(at.join("mine.jsonl"), lines).unwrap();
    let train =
        ["svf", "train", "m.gguf", "--data", "mine.jsonl", "--method", "lora", "--rank", "2"];
    run(
        at,
        &[&train[..], &["--steps", "1", "--test", "0", "--out", "lora", "--no-cache"]].concat(),
    );
    for weights in ["quantized", "quantized-exact", "f32"] {
        run(
            at,
            &[
                "generate",
                "m.gguf",
                "--adapter",
                "lora",
                "--prompt",
                "a",
                "--max-tokens",
                "2",
                "--weights",
                weights,
            ],
        );
    }
}
