//! What is fuzzed: each function takes a file's bytes and reads all of it. It
//! panics if a reader breaks its word; an error is a fine outcome.

use specialformer_checkpoint::{
    ChatTemplate, CheckpointError, GgufArray, GgufFile, GgufWriter, HfConfig, RawTensor,
    StorageType, TensorFile, TensorSet, TensorWriter, Tokenizer,
};
use specialformer_tensor::Tensor;

/// A target: its name, what it does, and files to start from.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 5] = [
    Target { name: "safetensors", run: safetensors, seeds: safetensors_seeds },
    Target { name: "gguf", run: gguf, seeds: gguf_seeds },
    Target { name: "config", run: config, seeds: config_seeds },
    Target { name: "index", run: index, seeds: index_seeds },
    Target { name: "gguf_tokenizer", run: gguf_tokenizer, seeds: gguf_tokenizer_seeds },
];

const FILE: &str = "hostile";

/// Errors are one line that names the file.
fn check(error: &CheckpointError) {
    let message = error.to_string();
    assert!(message.starts_with(FILE), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

fn check_err<T>(result: Result<T, CheckpointError>) -> Option<T> {
    result.inspect_err(check).ok()
}

pub fn safetensors(bytes: &[u8]) {
    let Some(file) = check_err(TensorFile::from_bytes(FILE, bytes.to_vec())) else { return };
    for name in file.names() {
        check_err(file.tensor::<f32>(name));
        check_err(file.tensor::<f64>(name));
        check_err(file.integers::<u64>(name));
        if let Some(raw) = check_err(file.raw(name)) {
            assert_eq!(raw.to_f32().len(), raw.shape().elements());
        }
    }
}

pub fn gguf(bytes: &[u8]) {
    let Some(file) = check_err(GgufFile::from_bytes(FILE, bytes.to_vec())) else { return };
    for name in file.names() {
        if let Some(raw) = check_err(file.raw(name)) {
            assert_eq!(raw.rows() * raw.row_len(), raw.shape().elements());
        }
        check_err(file.tensor(name));
    }
    for (key, value) in file.metadata() {
        let _ = value.to_string();
        check_err(file.string(key));
        check_err(file.array(key));
    }
    check_err(file.config());
    check_err(file.folder_names());
    check_err(ChatTemplate::from_gguf(&file));
}

pub fn config(bytes: &[u8]) {
    let Some(config) = check_err(HfConfig::from_json(FILE, bytes)) else { return };
    if let Some(decoder) = config.family.decoder() {
        // Sizes that a model computes from these fit.
        let width = decoder.heads.checked_mul(decoder.head_dim).unwrap();
        width.checked_mul(decoder.hidden_size).unwrap();
        decoder.vocab_size.checked_mul(decoder.hidden_size).unwrap();
        assert_eq!(decoder.windows.len(), decoder.layers);
    }
}

pub fn index(bytes: &[u8]) {
    let shard = |name: &str| {
        assert!(!name.contains('/') && name != "..", "{name}");
        let mut writer = TensorWriter::published();
        writer.tensor(if name == "a" { "x" } else { "y" }, &Tensor::<f32>::ones([1]))?;
        TensorFile::from_bytes(FILE, writer.to_bytes())
    };
    if let Some(set) = check_err(TensorSet::from_index(FILE, bytes, shard)) {
        for name in set.names() {
            set.tensor::<f32>(name).unwrap();
        }
    }
}

pub fn gguf_tokenizer(bytes: &[u8]) {
    let Some(file) = check_err(GgufFile::from_bytes(FILE, bytes.to_vec())) else { return };
    let Some(tokenizer) = check_err(Tokenizer::from_gguf(&file)) else { return };
    let ids = tokenizer.encode("ab 12<s>", true).unwrap();
    let whole = tokenizer.decode(&ids, false).unwrap();
    let mut stream = tokenizer.stream(false);
    let mut text = String::new();
    for id in ids {
        text.push_str(&stream.push(id).unwrap());
    }
    text.push_str(&stream.finish().unwrap());
    assert_eq!(text, whole);
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let mut writer = TensorWriter::new();
    writer.tensor("blocks.0.weight", &Tensor::<f32>::full([7, 5], 0.25)).unwrap();
    writer.tensor("blocks.0.bias", &Tensor::<f64>::full([5], -1.0)).unwrap();
    writer.integers("steps", &[1u64, 2, 3]).unwrap();
    writer.metadata("config", "width = 5").unwrap();
    let mut half = TensorWriter::published();
    let raw = RawTensor::encode(&Tensor::ones([3, 2]), StorageType::BF16).unwrap();
    half.raw("w", &raw).unwrap();
    vec![writer.to_bytes(), half.to_bytes()]
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    let mut writer = GgufWriter::new("llama");
    for (key, value) in [
        ("block_count", 1u32),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
    ] {
        writer.metadata(&format!("llama.{key}"), value).unwrap();
    }
    writer.metadata("llama.rope.freq_base", 1e4f32).unwrap();
    let nested = GgufArray::new(&[1u8.into(), 2u8.into()]).unwrap();
    writer.metadata("a", GgufArray::new(&[nested.into()]).unwrap()).unwrap();
    let texts = GgufArray::of_strings(["x", "yz"]);
    writer.metadata("tokenizer.ggml.tokens", texts).unwrap();
    writer.metadata("tokenizer.chat_template", "{{ messages }}").unwrap();
    for (name, kind) in [
        ("token_embd.weight", StorageType::Q8_0),
        ("output_norm.weight", StorageType::F32),
        ("blk.0.attn_q.weight", StorageType::F16),
    ] {
        let raw = RawTensor::encode(&Tensor::ones([2, 32]), kind).unwrap();
        writer.tensor(name, &raw).unwrap();
    }
    vec![writer.to_bytes()]
}

fn config_seeds() -> Vec<Vec<u8>> {
    let decoder = r#""vocab_size": 96, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-06, "tie_word_embeddings": true,
        "eos_token_id": [1, 2], "hidden_act": "silu", "head_dim": null"#;
    let family = |kind: &str, more: &str| {
        format!(r#"{{"model_type": "{kind}", {decoder}{more}}}"#).into_bytes()
    };
    vec![
        family(
            "llama",
            r#", "rope_theta": 500000.0, "torch_dtype": "bfloat16", "rope_scaling":
            {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}"#,
        ),
        family(
            "qwen3",
            r#", "use_sliding_window": true, "sliding_window": 4, "layer_types":
            ["full_attention", "sliding_attention"]"#,
        ),
        family("mixtral", r#", "num_local_experts": 4, "num_experts_per_tok": 2"#),
        family("olmoe", r#", "num_experts": 8, "num_experts_per_tok": 2, "clip_qkv": 5.0"#),
        family(
            "qwen3_moe",
            r#", "num_experts": 6, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24, "mlp_only_layers": [1], "rope_parameters":
            {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0}"#,
        ),
        family("bert", r#", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1"#),
        br#"{"model_type": "t5", "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64,
            "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
            "pad_token_id": 0, "num_decoder_layers": null}"#
            .to_vec(),
    ]
}

fn index_seeds() -> Vec<Vec<u8>> {
    vec![br#"{"metadata": {"total_size": 8}, "weight_map": {"x": "a", "y": "b"}}"#.to_vec()]
}

fn gguf_tokenizer_seeds() -> Vec<Vec<u8>> {
    let seed = |pre: &str| {
        let mut writer = GgufWriter::new("llama");
        writer.metadata("tokenizer.ggml.model", "gpt2").unwrap();
        writer.metadata("tokenizer.ggml.pre", pre).unwrap();
        let tokens = ["<s>", "a", "b", "ab", "1", "2", "Ġ", "Ġ1"];
        writer.metadata("tokenizer.ggml.tokens", GgufArray::of_strings(tokens)).unwrap();
        let merges = GgufArray::of_strings(["a b", "Ġ 1"]);
        writer.metadata("tokenizer.ggml.merges", merges).unwrap();
        let types = [3, 1, 1, 1, 4, 1, 1, 1].map(|kind: i32| kind.into());
        writer.metadata("tokenizer.ggml.token_type", GgufArray::new(&types).unwrap()).unwrap();
        writer.metadata("tokenizer.ggml.bos_token_id", 0u32).unwrap();
        writer.metadata("tokenizer.ggml.add_bos_token", true).unwrap();
        writer.to_bytes()
    };
    vec![seed("smollm"), seed("gpt-2")]
}
