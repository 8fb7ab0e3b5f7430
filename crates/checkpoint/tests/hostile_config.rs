//! Damaged and malicious configurations and indices: an error each time that
//! is one line and names the file, no panic, no allocation that the file's
//! own size does not justify.

mod watching;

use proptest::prelude::*;
use specialformer_checkpoint::{CheckpointError, HfConfig, TensorFile, TensorSet, TensorWriter};
use specialformer_tensor::Tensor;

/// What a reader keeps beyond the file: messages, the list of windows.
const SLACK: usize = 1 << 19;

const CONFIG: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 6,
"max_position_embeddings": 512, "rms_norm_eps": 1e-06, "num_experts_per_tok": 2,
"moe_intermediate_size": 24, "mlp_only_layers": [], "decoder_sparse_step": 1, "rope_parameters":
{"rope_theta": 1000000.0, "rope_type": "default"}, "eos_token_id": 2, "dtype": "float32"}"#;

const INDEX: &str = r#"{"metadata": {"total_size": 8}, "weight_map": {"x": "a", "y": "b"}}"#;

fn watched<T>(bytes: &[u8], read: impl FnOnce() -> Result<T, CheckpointError>) -> Option<T> {
    watching::reset();
    let outcome = read();
    let (largest, allowed) = (watching::largest(), 16 * bytes.len() + SLACK);
    assert!(largest <= allowed, "allocated {largest} of {allowed}");
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("hostile.json: "), "{message}");
            assert!(!message.contains('\n'), "{message}");
            None
        }
    }
}

fn config(bytes: &[u8]) -> Option<HfConfig> {
    watched(bytes, || HfConfig::from_json("hostile.json", bytes))
}

fn index(bytes: &[u8]) -> Option<TensorSet> {
    let shard = |name: &str| {
        let mut writer = TensorWriter::published();
        writer.tensor(if name == "a" { "x" } else { "y" }, &Tensor::<f32>::ones([1]))?;
        TensorFile::from_bytes("hostile.json", writer.to_bytes())
    };
    watched(bytes, || TensorSet::from_index("hostile.json", bytes, shard))
}

#[test]
fn every_truncation_is_an_error() {
    assert!(config(CONFIG.as_bytes()).is_some() && index(INDEX.as_bytes()).is_some());
    for len in 0..CONFIG.len() {
        assert!(config(&CONFIG.as_bytes()[..len]).is_none(), "{len}");
    }
    for len in 0..INDEX.len() {
        assert!(index(&INDEX.as_bytes()[..len]).is_none(), "{len}");
    }
}

/// Each number in turn becomes each of these, in each place where it stands.
#[test]
fn numbers_beyond_all_bounds_never_panic() {
    let numbers: Vec<(usize, usize)> = {
        let bytes = CONFIG.as_bytes();
        let starts =
            (1..bytes.len()).filter(|&i| bytes[i].is_ascii_digit() && bytes[i - 1] == b' ');
        let end = |start: usize| start + CONFIG[start..].find([',', '}']).unwrap();
        starts.map(|start| (start, end(start))).collect()
    };
    assert!(numbers.len() >= 14);
    for (start, end) in numbers {
        for number in [
            "0",
            "-1",
            "NaN",
            "Infinity",
            "1e999",
            "1e300",
            "-1e300",
            "0.5",
            "1e-400",
            "16777216",
            "9007199254740993",
            "9223372036854775807",
            "18446744073709551615",
            "18446744073709551616",
            "null",
            "true",
            "\"7\"",
            "[]",
            "{}",
            "[[[[[[[[7]]]]]]]]",
        ] {
            let json = [&CONFIG[..start], number, &CONFIG[end..]].concat();
            config(json.as_bytes());
        }
    }
}

/// JSON cannot refer to itself; what comes nearest is an entry inside one of
/// the same name.
#[test]
fn entries_inside_themselves_are_errors() {
    for depth in [2, 100, 10_000] {
        let nested = "{\"rope_parameters\": ".repeat(depth) + "7" + &"}".repeat(depth);
        let whole = r#"{"rope_theta": 1000000.0, "rope_type": "default"}"#;
        let json = CONFIG.replace(whole, &nested);
        assert_ne!(json, CONFIG);
        let _ = config(json.as_bytes());
    }
    let own = r#"{"weight_map": {"x": "hostile.json"}}"#;
    assert!(index(own.as_bytes()).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4)) {
        for text in [CONFIG, INDEX] {
            let mut bytes = text.as_bytes().to_vec();
            for (at, bit) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << (bit % 8);
            }
            config(&bytes);
            index(&bytes);
        }
    }

    #[test]
    fn random_values_never_panic(
        key in prop::sample::select(vec![
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "rope_theta", "rope_scaling", "sliding_window", "use_sliding_window", "layer_types",
            "mlp_only_layers", "decoder_sparse_step", "num_experts", "num_experts_per_tok",
            "eos_token_id", "torch_dtype", "hidden_act", "max_window_layers", "clip_qkv",
        ]),
        value in prop_oneof![
            any::<i64>().prop_map(|v| v.to_string()),
            any::<u64>().prop_map(|v| v.to_string()),
            any::<f64>().prop_map(|v| format!("{v:e}")),
            "\\[([0-9],){0,3}[0-9]\\]",
            "\"[a-z_]{0,8}\"",
        ],
    ) {
        let json = format!("{{\"{key}\": {value}, {}", &CONFIG[1..]);
        config(json.as_bytes());
        let json = format!("{}, \"{key}\": {value}}}", &CONFIG[..CONFIG.len() - 1]);
        config(json.as_bytes());
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        config(&bytes);
        index(&bytes);
    }
}
