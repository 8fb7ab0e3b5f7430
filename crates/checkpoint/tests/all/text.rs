//! Tokenizers, streams and chat templates against the reference's.
#![cfg(feature = "tokenizer")]

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use specialformer_checkpoint::{ChatMessage, ChatTemplate, TensorFile, Tokenizer};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/golden/13_tokenizer")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(golden().join("tokenizer.json")).unwrap()
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
    decoded_skip_special: String,
}

fn strings() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(golden().join("strings.json")).unwrap()).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text = String::new();
    for &id in ids {
        text.push_str(&stream.push(id).unwrap());
    }
    text + &stream.finish().unwrap()
}

#[test]
fn golden_strings_encode_and_decode_exactly() {
    let tokenizer = tokenizer();
    let io = TensorFile::open(golden().join("io.safetensors")).unwrap();
    let flat = io.integers::<i64>("ids_flat").unwrap();
    let offsets = io.integers::<i64>("row_offsets").unwrap();
    let strings = strings();
    assert_eq!((strings.len(), tokenizer.vocab_size()), (30, 420));
    for (i, case) in strings.iter().enumerate() {
        let ids = tokenizer.encode(&case.text, false).unwrap();
        assert_eq!(ids, case.ids, "{:?}", case.text);
        let row = &flat[offsets[i] as usize..offsets[i + 1] as usize];
        assert!(ids.iter().map(|&id| i64::from(id)).eq(row.iter().copied()));
        let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
        assert_eq!(tokens, case.tokens);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), case.decoded_skip_special);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case.text);
        assert_eq!(streamed(&tokenizer, &ids, true), case.decoded_skip_special);
        assert_eq!(streamed(&tokenizer, &ids, false), case.text);
    }
    assert!(tokenizer.is_special(0) && tokenizer.is_special(1) && !tokenizer.is_special(66));
    let again = Tokenizer::from_json("a", tokenizer.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(again.encode("Grüße", false).unwrap(), tokenizer.encode("Grüße", false).unwrap());
}

proptest! {
    #[test]
    fn text_survives(text in "\\PC{0,60}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
        prop_assert_eq!(streamed(&tokenizer, &ids, false), text);
    }

    /// Tokens that a model may produce: broken bytes, in any order.
    #[test]
    fn streams_give_what_decoding_gives(
        ids in prop::collection::vec(0u32..430, 0..60),
        skip_special in any::<bool>(),
    ) {
        let tokenizer = tokenizer();
        let whole = tokenizer.decode(&ids, skip_special).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &ids, skip_special), whole);
    }
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("🦀!", false).unwrap();
    assert!(ids.len() >= 4, "{ids:?}");
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces.iter().filter(|piece| !piece.is_empty()).collect::<Vec<_>>(), ["🦀", "!"]);
    // Cut off in the middle, the rest shows as broken.
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(ids[0]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn damaged_tokenizers_are_errors() {
    let json = std::fs::read(golden().join("tokenizer.json")).unwrap();
    for percent in 0..100 {
        let cut = &json[..json.len() * percent / 100];
        let error = Tokenizer::from_json("t.json", cut).unwrap_err().to_string();
        assert!(error.starts_with("t.json: tokenizer: ") && !error.contains('\n'), "{error}");
    }
    let missing = Tokenizer::open("/none/tokenizer.json").unwrap_err().to_string();
    assert!(missing.starts_with("/none/tokenizer.json: cannot read: "), "{missing}");
    // A merge that is longer than any token.
    let mut value: Value = serde_json::from_slice(&json).unwrap();
    value["model"]["merges"] = serde_json::json!([["a", "b"], ["zz", "zz"]]);
    let error = Tokenizer::from_json("t.json", value.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().starts_with("t.json: tokenizer: "), "{error}");
    // Padding and truncation of the file are the caller's business.
    let mut value: Value = serde_json::from_slice(&json).unwrap();
    value["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0
    });
    value["padding"] = serde_json::json!({
        "strategy": {"Fixed": 1_000_000_000}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"
    });
    let tokenizer = Tokenizer::from_json("t.json", value.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("the lighthouse keeper", false).unwrap(), [85, 258, 317, 295]);
}

#[derive(Deserialize)]
struct ChatCase {
    template: String,
    /// JSON as text, for the order of its keys.
    variables: String,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct ChatCases {
    templates: std::collections::BTreeMap<String, String>,
    cases: Vec<ChatCase>,
}

/// `chat.json` holds conversations rendered by Jinja2 as transformers sets it
/// up, with templates as models have them.
#[test]
fn conversations_are_those_of_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat.json");
    let cases: ChatCases = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for case in &cases.cases {
        let template = ChatTemplate::new("m", &cases.templates[&case.template]).unwrap();
        let template = template.with_tokens(Some("<s>".into()), Some("</s>".into()));
        let got = template.render_json(&case.variables);
        let name = format!("{} {}", case.template, case.variables);
        match (&case.text, &case.error) {
            (Some(text), _) => assert_eq!(&got.unwrap(), text, "{name}"),
            (None, Some(error)) => {
                let got = got.unwrap_err().to_string();
                assert!(got.starts_with("m: chat template: ") && got.contains(error), "{got}");
            }
            (None, None) => panic!("{name}: a case without outcome"),
        }
    }
}

#[test]
fn messages_are_objects_with_role_first() {
    let template = ChatTemplate::new("m", "{{ messages | tojson }}").unwrap();
    assert_eq!(
        template.render(&[ChatMessage::new("user", "<hi> & 'you'")], false).unwrap(),
        r#"[{"role": "user", "content": "<hi> & 'you'"}]"#
    );
}

#[test]
fn templates_know_the_date_and_ignore_generation_marks() {
    let source = "{{ strftime_now('%d %b %Y') }}\n\
                  {%- generation -%}\n answer \n{%- endgeneration %}\n|{{ bos_token is defined }}";
    let template = ChatTemplate::new("m", source).unwrap();
    let template = template.at_time(Some(UNIX_EPOCH + Duration::from_secs(1_709_251_199)));
    assert_eq!(template.render(&[], false).unwrap(), "29 Feb 2024answer|False");
}

#[test]
fn tags_that_end_as_they_begin_are_errors() {
    for source in ["{%}", "a {%} b", "{%", "{%-%", "{{ 1 }}{%}{% generation %}x{% endgeneration %}"]
    {
        let error = ChatTemplate::new("t", source).unwrap_err().to_string();
        assert!(error.starts_with("t: "), "{error}");
    }
}

#[test]
fn templates_without_end_are_stopped() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% if i == j %}\
                   {% endif %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new("m", endless).unwrap();
    let error = template.render(&[], false).unwrap_err().to_string();
    assert!(error.starts_with("m: chat template: engine ran out of fuel"), "{error}");
    let cyclic = "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}";
    let error = ChatTemplate::new("m", cyclic).unwrap().render(&[], false).unwrap_err();
    assert!(error.to_string().contains("recursion limit"), "{error}");
    let error = ChatTemplate::new("m", "{% if %}").unwrap_err().to_string();
    assert!(error.starts_with("m: chat template: syntax error: "), "{error}");
}

#[test]
fn folders_tell_their_template() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::open(folder.path()).unwrap().is_none());
    let config = folder.path().join("tokenizer_config.json");
    let json = serde_json::json!({
        "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null,
        "chat_template": [{"name": "tool_use", "template": "x"},
                          {"name": "default", "template": "{{ bos_token }}one"}]
    });
    std::fs::write(&config, json.to_string()).unwrap();
    let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "<s>one");
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}two").unwrap();
    let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "<s>two");
    std::fs::write(&config, "{").unwrap();
    let error = ChatTemplate::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: EOF"), "{error}");
}

#[cfg(feature = "gguf")]
mod gguf {
    use super::*;
    use specialformer_checkpoint::{GgufArray, GgufFile, GgufValue, GgufWriter};

    /// The golden tokenizer as GGUF metadata has it.
    fn writer(pre: &str) -> GgufWriter {
        let json = std::fs::read(golden().join("tokenizer.json")).unwrap();
        let value: Value = serde_json::from_slice(&json).unwrap();
        let vocab = value["model"]["vocab"].as_object().unwrap();
        let added = value["added_tokens"].as_array().unwrap();
        let mut tokens = vec![String::new(); 420];
        for (token, id) in vocab {
            tokens[id.as_u64().unwrap() as usize] = token.clone();
        }
        let mut types = vec![GgufValue::I32(1); 420];
        for token in added {
            let id = token["id"].as_u64().unwrap() as usize;
            tokens[id] = token["content"].as_str().unwrap().to_owned();
            types[id] = GgufValue::I32(3);
        }
        let merges = value["model"]["merges"].as_array().unwrap().iter().map(|merge| {
            merge
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        });
        let mut writer = GgufWriter::new("llama");
        writer.metadata("tokenizer.ggml.model", "gpt2").unwrap();
        writer.metadata("tokenizer.ggml.pre", pre).unwrap();
        writer.metadata("tokenizer.ggml.tokens", GgufArray::of_strings(&tokens)).unwrap();
        writer.metadata("tokenizer.ggml.merges", GgufArray::of_strings(merges)).unwrap();
        writer.metadata("tokenizer.ggml.token_type", GgufArray::new(&types).unwrap()).unwrap();
        writer
    }

    fn open(writer: &GgufWriter) -> GgufFile {
        GgufFile::from_bytes("m.gguf", writer.to_bytes()).unwrap()
    }

    #[test]
    fn metadata_makes_the_same_tokenizer() {
        let tokenizer = Tokenizer::from_gguf(&open(&writer("gpt-2"))).unwrap();
        for case in strings() {
            assert_eq!(tokenizer.encode(&case.text, true).unwrap(), case.ids, "{:?}", case.text);
            let decoded = tokenizer.decode(&case.ids, true).unwrap();
            assert_eq!(decoded, case.decoded_skip_special);
        }
    }

    #[test]
    fn digits_stand_alone_where_the_kind_says_so() {
        let digits = Tokenizer::from_gguf(&open(&writer("smollm"))).unwrap();
        for id in digits.encode("in 1984 and 2024, x12", false).unwrap() {
            let token = digits.token(id).unwrap();
            let count = token.chars().filter(char::is_ascii_digit).count();
            assert!(count == 0 || token.chars().count() == 1, "{token}");
        }
        for pre in ["llama-bpe", "qwen2", "olmo", "command-r", "default"] {
            let tokenizer = Tokenizer::from_gguf(&open(&writer(pre))).unwrap();
            let text = "We've 123 things,\n\n  and\tü 🦀!  ";
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{pre}");
        }
    }

    #[test]
    fn tokens_around_a_text_are_added_where_asked_for() {
        let mut writer = writer("gpt-2");
        writer.metadata("tokenizer.ggml.bos_token_id", 0u32).unwrap();
        writer.metadata("tokenizer.ggml.eos_token_id", 1u32).unwrap();
        writer.metadata("tokenizer.ggml.add_bos_token", true).unwrap();
        writer.metadata("tokenizer.chat_template", "{{ bos_token }}{{ eos_token }}").unwrap();
        let tokenizer = Tokenizer::from_gguf(&open(&writer)).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap(), [0, 66]);
        assert_eq!(tokenizer.encode("a", false).unwrap(), [66]);
        let template = ChatTemplate::from_gguf(&open(&writer)).unwrap().unwrap();
        let both = [tokenizer.token(0).unwrap(), tokenizer.token(1).unwrap()].concat();
        assert_eq!(template.render(&[], false).unwrap(), both);
        writer.metadata("tokenizer.ggml.add_eos_token", true).unwrap();
        let tokenizer = Tokenizer::from_gguf(&open(&writer)).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap(), [0, 66, 1]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |change: &dyn Fn(&mut GgufWriter)| {
            let mut writer = GgufWriter::new("llama");
            change(&mut writer);
            Tokenizer::from_gguf(&open(&writer)).unwrap_err().to_string()
        };
        let with = |model: &'static str, tokens: Vec<&'static str>, merges: Vec<&'static str>| {
            error(&move |w| {
                w.metadata("tokenizer.ggml.model", model).unwrap();
                w.metadata("tokenizer.ggml.tokens", GgufArray::of_strings(&tokens)).unwrap();
                w.metadata("tokenizer.ggml.merges", GgufArray::of_strings(&merges)).unwrap();
            })
        };
        for (message, wanted) in [
            (error(&|_| ()), "metadata `tokenizer.ggml.model` is missing"),
            (
                with("bert", vec![], vec![]),
                "tokenizer: `tokenizer.ggml.model` is `bert`; supported is gpt2",
            ),
            (
                with("gpt2", vec!["a", "b", "a"], vec![]),
                "metadata `tokenizer.ggml.tokens` has `a` twice, at 0 and 2",
            ),
            (
                with("gpt2", vec!["a"], vec!["aa"]),
                "metadata `tokenizer.ggml.merges` entry 0, `aa`, is not two tokens with a space between",
            ),
            (
                with("gpt2", vec!["a"], vec!["a a"]),
                "metadata `tokenizer.ggml.merges` entry 0, `a a`, is not of tokens, or makes none",
            ),
        ] {
            assert_eq!(message, format!("m.gguf: {wanted}"));
        }
        let mut strange = writer("gpt-2");
        strange.metadata("tokenizer.ggml.add_bos_token", true).unwrap();
        strange.metadata("tokenizer.ggml.bos_token_id", 420u32).unwrap();
        let message = Tokenizer::from_gguf(&open(&strange)).unwrap_err().to_string();
        assert_eq!(message, "m.gguf: metadata `tokenizer.ggml.bos_token_id` is 420, of 420 tokens");
        let message = Tokenizer::from_gguf(&open(&writer("mystery"))).unwrap_err().to_string();
        assert!(message.contains("`tokenizer.ggml.pre` is `mystery`; supported are default"));
    }
}
