//! Model folders: configurations in old and new spellings, shards, writing.

use std::fs;
use std::path::Path;

use specialformer_checkpoint::{
    Access, Activation, CheckpointError, ExpertNaming, HfConfig, ModelFamily, ModelFolder,
    ModelFolderWriter, QueryKeyNorm, RawTensor, RopeScaling, StorageType, TensorFile, TensorSet,
    TensorWriter, unstack_experts,
};
use specialformer_tensor::{Shape, Tensor};

const LLAMA: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100,
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 512"#;

fn config(json: &str) -> Result<HfConfig, CheckpointError> {
    HfConfig::from_json("m/config.json", json.as_bytes())
}

fn llama(more: &str) -> HfConfig {
    config(&format!("{LLAMA}{more}}}")).unwrap()
}

#[test]
fn old_and_new_spellings_say_the_same() {
    let new = llama(
        r#", "head_dim": 16, "dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5,
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}"#,
    );
    let old = llama(
        r#", "head_dim": null, "torch_dtype": "bfloat16", "rope_theta": 500000, "rope_scaling":
        {"type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}"#,
    );
    assert_eq!((&new.family, new.dtype), (&old.family, old.dtype));
    assert_eq!(new.dtype, Some(StorageType::BF16));
    let decoder = new.family.decoder().unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 64,
    };
    assert_eq!((decoder.rope.theta, &decoder.rope.scaling), (5e5, &scaling));
    assert_eq!(decoder.rms_norm_eps, 1e-6);
    assert_eq!(llama("").family.decoder().unwrap().rope.scaling, RopeScaling::None);
}

#[test]
fn families_have_their_own_entries() {
    let with = |class: &str, kind: &str, more: &str| {
        let json = format!("{LLAMA}{more}}}");
        let json = json.replace("LlamaForCausalLM", class).replace("\"llama\"", kind);
        config(&json).unwrap()
    };
    let mixtral = with(
        "MixtralForCausalLM",
        "\"mixtral\"",
        r#", "num_local_experts": 4, "sliding_window": 128, "router_jitter_noise": 0.1"#,
    );
    let ModelFamily::Mixtral(decoder) = &mixtral.family else { panic!("{mixtral:?}") };
    let experts = decoder.experts.as_ref().unwrap();
    assert_eq!((experts.experts, experts.top_k, experts.hidden), (4, 2, 80));
    assert!(experts.normalize && experts.jitter == 0.1);
    assert_eq!(decoder.windows, [Some(128); 2]);
    assert_eq!(decoder.rope.theta, 1e6);

    let olmoe = with("OlmoeForCausalLM", "\"olmoe\"", r#", "num_experts": 8, "clip_qkv": 6"#);
    let ModelFamily::Olmoe(decoder) = &olmoe.family else { panic!("{olmoe:?}") };
    assert_eq!(decoder.query_key_norm, QueryKeyNorm::AllHeads);
    assert_eq!(decoder.clip_qkv, Some(6.0));
    assert!(!decoder.experts.as_ref().unwrap().normalize);

    let qwen = with(
        "Qwen3MoeForCausalLM",
        "\"qwen3_moe\"",
        r#", "num_local_experts": 6, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "norm_topk_prob": true, "mlp_only_layers": [1]"#,
    );
    let ModelFamily::Qwen3Moe(decoder) = &qwen.family else { panic!("{qwen:?}") };
    let experts = decoder.experts.as_ref().unwrap();
    assert_eq!((experts.hidden, decoder.head_dim), (24, 16));
    assert_eq!(experts.sparse_layers, [true, false]);

    // Without `head_dim` Qwen3 has 128; windows only where they are switched on.
    let qwen = with("Qwen3ForCausalLM", "\"qwen3\"", r#", "sliding_window": 64"#);
    let decoder = qwen.family.decoder().unwrap();
    assert_eq!((decoder.head_dim, &decoder.windows[..]), (128, &[None, None][..]));
    assert_eq!(decoder.query_key_norm, QueryKeyNorm::PerHead);
    let qwen = with(
        "Qwen3ForCausalLM",
        "\"qwen3\"",
        r#", "sliding_window": 64, "use_sliding_window": true,
        "layer_types": ["full_attention", "sliding_attention"]"#,
    );
    assert_eq!(qwen.family.decoder().unwrap().windows, [None, Some(64)]);

    // The class tells where the model type is missing.
    let old = with("LlamaForCausalLM", "null", "");
    assert_eq!(old.model_type, "llama");
}

#[test]
fn encoders_have_their_entries() {
    let bert = r#"{"model_type": "bert", "vocab_size": 100, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 40, "hidden_act": "gelu", "pad_token_id": 0}"#;
    let ModelFamily::Bert(bert) = config(bert).unwrap().family else { panic!() };
    assert_eq!((bert.layer_norm_eps, bert.type_vocab_size), (1e-12, 2));
    assert_eq!((bert.activation, bert.tie_word_embeddings), (Activation::Gelu, true));

    let t5 = r#"{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5",
        "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "eos_token_id": 1,
        "pad_token_id": 0, "num_decoder_layers": null}"#;
    let ModelFamily::T5(t5) = config(t5).unwrap().family else { panic!() };
    assert_eq!((t5.activation, t5.gated, t5.scale_outputs), (Activation::GeluTanh, true, false));
    assert_eq!((t5.decoder_layers, t5.decoder_start_token_id), (2, 0));
    assert_eq!((t5.relative_buckets, t5.relative_max_distance), (32, 128));
}

#[test]
fn values_that_cannot_be_are_named() {
    let error = |json: String| config(&json).unwrap_err().to_string();
    let with = |more: &str| error(format!("{LLAMA}, {more}}}"));
    let replaced = |from: &str, to: &str| error(format!("{LLAMA}}}").replace(from, to));
    for (message, wanted) in [
        (with(r#""rms_norm_eps": -1e-6"#), "`rms_norm_eps` is -1e-6, not a number between 0 and 1"),
        (with(r#""rope_theta": 0"#), "`rope_theta` is 0, not a finite number above 0"),
        (
            with(r#""rope_scaling": {"type": "linear", "factor": -2}"#),
            "`rope_scaling.factor` is -2, not a finite number from 1",
        ),
        (
            with(r#""rope_scaling": {"type": "spiral"}"#),
            "`rope_scaling.type` is \"spiral\"; supported are default, linear, dynamic, llama3, yarn",
        ),
        (
            with(r#""rope_parameters": {"rope_theta": "big"}"#),
            "`rope_parameters.rope_theta` is \"big\", not a finite number above 0",
        ),
        (with(r#""head_dim": 7"#), "`head_dim` is 7; rotary positions need an even width"),
        (
            with(r#""dtype": "int4""#),
            "`dtype` is \"int4\"; supported are float32, float16, bfloat16, float64",
        ),
        (
            with(r#""dtype": "float32", "torch_dtype": "float16""#),
            "`dtype` is \"float32\" and `torch_dtype`, its other name, is \"float16\"",
        ),
        (
            with(r#""hidden_act": "cubic""#),
            "`hidden_act` is \"cubic\"; supported are silu, gelu, gelu_new, gelu_pytorch_tanh, relu",
        ),
        (
            with(r#""eos_token_id": [1, -4]"#),
            "`eos_token_id` is [1,-4], not a token id or a list of them",
        ),
        (with(r#""tie_word_embeddings": 1"#), "`tie_word_embeddings` is 1, not true or false"),
        (
            replaced("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2"),
            "`num_key_value_heads` is 2, which does not divide the 3 query heads",
        ),
        (
            replaced("\"hidden_size\": 48", "\"hidden_size\": 50"),
            "`num_attention_heads` is 3, which does not divide the width 50",
        ),
        (
            replaced("\"hidden_size\": 48", "\"hidden_size\": -48"),
            "`hidden_size` is -48, not an integer from 1 to 16777216",
        ),
        (
            replaced("\"hidden_size\": 48", "\"hidden_size\": 18446744073709551615"),
            "`hidden_size` is 18446744073709551615, not an integer from 1 to 16777216",
        ),
        (
            replaced("\"hidden_size\": 48", "\"hidden_size\": 1e300"),
            "`hidden_size` is 1e+300, not an integer from 1 to 16777216",
        ),
        (replaced("\"hidden_size\": 48, ", ""), "`hidden_size` is missing"),
        (
            replaced("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000"),
            "`num_hidden_layers` is 1000000, not an integer from 1 to 16384",
        ),
    ] {
        assert_eq!(message, format!("m/config.json: {wanted}"));
    }
    let message = replaced("\"llama\"", "\"gpt2\"");
    assert_eq!(
        message,
        "m/config.json: the model type `gpt2` is not supported; supported are llama, qwen3, \
         mixtral, olmoe, qwen3_moe, bert, t5"
    );
    let message = error("{}".into());
    assert!(message.contains("without `model_type` and `architectures`"), "{message}");
    // Python writes NaN and Infinity, which are not JSON.
    let message = with("\n  \"rms_norm_eps\": NaN");
    assert!(
        message.contains("not valid JSON") && message.contains(r#"rms_norm_eps\": NaN"#),
        "{message}"
    );
    let message = with("\n \"rope_theta\": 1e999");
    assert!(message.contains("number out of range") && message.contains("rope_theta"), "{message}");
    assert!(error("[1]".into()).ends_with("is [1], not a JSON object"));
    let deep = format!("{LLAMA}, \"a\": {}", "[".repeat(100_000));
    assert!(error(deep).contains("recursion limit"));
}

fn shard(tensors: &[(&str, f32)]) -> Vec<u8> {
    let mut writer = TensorWriter::published();
    for (name, value) in tensors {
        writer.tensor(name, &Tensor::<f32>::full([2], *value)).unwrap();
    }
    writer.to_bytes()
}

fn sharded(folder: &Path, map: &str) {
    fs::write(folder.join("a.safetensors"), shard(&[("x", 1.0), ("y", 2.0)])).unwrap();
    fs::write(folder.join("b.safetensors"), shard(&[("z", 3.0)])).unwrap();
    let index = format!(r#"{{"metadata": {{"total_size": 24}}, "weight_map": {map}}}"#);
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn shards_are_one_set() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path(), r#"{"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}"#);
    for access in [Access::Read, Access::Map] {
        let set = TensorSet::open(folder.path(), access).unwrap();
        assert_eq!(set.names().collect::<Vec<_>>(), ["x", "y", "z"]);
        assert_eq!(set.tensor::<f32>("z").unwrap().as_slice(), [3.0; 2]);
        assert_eq!(set.raw("y").unwrap().to_f32().as_slice(), [2.0; 2]);
        assert!(set.file_of("z").unwrap().path().ends_with("b.safetensors"));
        assert_eq!(set.files().len(), 2);
        let two = Shape::new(&[2]);
        set.check([("x", two), ("y", two), ("z", two)]).unwrap();
        let error = set.load::<f32, _>([("x", two), ("w", two)]).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "model.safetensors.index.json: tensors do not match: 1 missing: `w` [2]; \
                 2 unexpected: `y` [2], `z` [2]"
            ),
            "{error}"
        );
        assert!(matches!(set.raw("w"), Err(CheckpointError::MissingTensor { .. })));
    }
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_an_error() {
    let message = |map: &str| {
        let folder = tempfile::tempdir().unwrap();
        sharded(folder.path(), map);
        let path = folder.path().display().to_string();
        let error = TensorSet::open(folder.path(), Access::Map).unwrap_err().to_string();
        error.strip_prefix(&path).unwrap_or_else(|| panic!("{error}")).to_owned()
    };
    let whole = r#"{"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}"#;
    let index = "/model.safetensors.index.json: ";
    for (map, wanted) in [
        (
            whole.replace("\"z\"", "\"w\": \"b.safetensors\", \"z\""),
            "tensor `w` is missing in its shard `b.safetensors`",
        ),
        (
            whole.replace("\"y\": \"a", "\"y\": \"b"),
            "tensor `y` is in shard `a.safetensors`, the index says `b.safetensors`",
        ),
        (
            whole.replace(r#""y": "a.safetensors", "#, ""),
            "tensor `y` of shard `a.safetensors` is not in the index",
        ),
        (
            whole.replace("\"b.", "\"../b."),
            "index: shard `../b.safetensors` is not a file beside it",
        ),
    ] {
        assert_eq!(message(&map), format!("{index}{wanted}"));
    }
    let missing = message(&whole.replace("\"b.", "\"c."));
    assert!(missing.starts_with("/c.safetensors: cannot open: "), "{missing}");
    let twice = message(&whole.replace("\"y\"", "\"x\""));
    assert!(twice.contains("index: tensor `x` appears twice"), "{twice}");
    let number = message(&whole.replace("\"b.safetensors\"", "7"));
    assert!(number.contains("index: tensor `z`: invalid type"), "{number}");
    assert!(message("[]").contains("index: invalid type"));
}

#[test]
fn tensors_in_two_shards_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path(), r#"{"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}"#);
    fs::write(folder.path().join("b.safetensors"), shard(&[("z", 3.0), ("x", 4.0)])).unwrap();
    let error = TensorSet::open(folder.path(), Access::Read).unwrap_err().to_string();
    assert!(
        error.ends_with("tensor `x` is in shard `b.safetensors`, the index says `a.safetensors`"),
        "{error}"
    );
    fs::write(folder.path().join("b.safetensors"), &shard(&[("z", 3.0)])[..40]).unwrap();
    let error = TensorSet::open(folder.path(), Access::Map).unwrap_err().to_string();
    assert!(error.contains("b.safetensors: not a valid safetensors file: truncated"), "{error}");
}

#[test]
fn half_precision_stays_as_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let values = Tensor::from_vec(vec![1.0f32, -0.5, 3.0], [3]).unwrap();
    let mut writer = TensorWriter::published();
    for (name, kind) in [("a", StorageType::F16), ("b", StorageType::BF16)] {
        writer.raw(name, &RawTensor::encode(&values, kind).unwrap()).unwrap();
    }
    writer.save(&path).unwrap();
    for file in [TensorFile::open(&path), TensorFile::map(&path)] {
        let file = file.unwrap();
        let raw = file.raw("a").unwrap();
        assert_eq!((raw.kind(), raw.bytes().len()), (StorageType::F16, 6));
        assert_eq!(raw.to_f32().as_slice(), values.as_slice());
        assert_eq!(file.raw("b").unwrap().kind(), StorageType::BF16);
        assert_eq!(file.tensor::<f32>("b").unwrap().as_slice(), values.as_slice());
        assert_eq!(file.metadata("format"), Some("pt"));
    }
    let quantized = RawTensor::encode(&Tensor::ones([32]), StorageType::Q8_0).unwrap();
    let error = writer.raw("q", &quantized).unwrap_err().to_string();
    assert_eq!(error, "cannot write `q`: block formats cannot be stored in safetensors files");
}

fn model(shard_bytes: usize) -> ModelFolderWriter {
    let mut writer = ModelFolderWriter::new(&llama("").entries);
    writer.shard_bytes(shard_bytes);
    for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 3.0)] {
        writer.tensor(name, &Tensor::<f32>::full([10], value)).unwrap();
    }
    writer.tensor_as("d", &Tensor::full([10], 4.0), StorageType::BF16).unwrap();
    writer.file("tokenizer.json", "{}").unwrap();
    writer.json("generation_config.json", &serde_json::json!({"max_length": 7})).unwrap();
    writer
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn folders_come_back_whole_or_in_shards() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    for (shard_bytes, wanted) in [
        (1 << 20, vec!["model.safetensors"]),
        (
            80,
            vec![
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
        (
            1,
            vec![
                "model-00001-of-00004.safetensors",
                "model-00002-of-00004.safetensors",
                "model-00003-of-00004.safetensors",
                "model-00004-of-00004.safetensors",
                "model.safetensors.index.json",
            ],
        ),
    ] {
        // Each replaces the one before as a whole.
        model(shard_bytes).save(&path).unwrap();
        let mut names = wanted.clone();
        names.extend(["config.json", "generation_config.json", "tokenizer.json"]);
        names.sort_unstable();
        assert_eq!(files(&path), names);
        let folder = ModelFolder::open(&path, Access::Map).unwrap();
        assert_eq!(folder.tensors().tensor::<f32>("c").unwrap().as_slice(), [3.0; 10]);
        assert_eq!(folder.tensors().element_type("d").as_deref(), Some("BF16"));
        assert_eq!(folder.config().family, llama("").family);
        assert_eq!(folder.generation_config().unwrap()["max_length"], 7);
        assert!(folder.file("tokenizer.json").is_some());
        assert_eq!(files(parent.path()), ["model"]);
    }
}

/// What a killed process left beside a folder goes when it is written again.
#[test]
fn leftovers_of_a_killed_save_go() {
    let parent = tempfile::tempdir().unwrap();
    for leftover in [".model.abc123.part", ".other.abc123.part"] {
        let leftover = parent.path().join(leftover);
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join("model.safetensors"), "half").unwrap();
        fs::write(leftover.join(".lock"), "").unwrap();
    }
    // The name of another file of the user's.
    fs::write(parent.path().join(".model.video.part"), "half").unwrap();
    let path = parent.path().join("model");
    model(1 << 20).save(&path).unwrap();
    assert_eq!(files(parent.path()), [".model.video.part", ".other.abc123.part", "model"]);
    assert!(!files(&path).contains(&".lock".to_owned()), "{:?}", files(&path));
}

#[cfg(unix)]
#[test]
fn what_cannot_be_cleaned_up_keeps_nothing_from_being_saved() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    let stuck = place.path().join(".model.abc123.part/stuck");
    fs::create_dir_all(&stuck).unwrap();
    fs::write(stuck.parent().unwrap().join(".lock"), "").unwrap();
    fs::write(stuck.join("file"), "").unwrap();
    let mode = |mode| fs::set_permissions(&stuck, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let saved = model(usize::MAX).save(place.path().join("model"));
    // The administrator may remove it all the same.
    if stuck.exists() {
        mode(0o755);
    }
    saved.unwrap();
    assert!(place.path().join("model/config.json").is_file());
}

#[test]
fn folders_of_other_things_are_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("thesis.tex"), "dear to somebody").unwrap();
    let error = model(100).save(&path).unwrap_err().to_string();
    assert!(error.ends_with("holds `thesis.tex`, which is no file of a model"), "{error}");
    assert_eq!(files(&path), ["thesis.tex"]);
    assert_eq!(files(parent.path()), ["model"]);
    let mut writer = model(100);
    for name in ["../a", "config.json", ".hidden", "x.safetensors", ""] {
        assert!(writer.file(name, "").is_err(), "{name}");
    }
    assert!(writer.tensor("a", &Tensor::<f32>::ones([1])).is_err());
}

#[test]
fn experts_of_a_folder_have_classic_names() {
    let mut tensors = std::collections::BTreeMap::new();
    for (matrix, shape) in [("gate", [2, 4, 3]), ("up", [2, 4, 3]), ("down", [2, 3, 4])] {
        let name = format!("model.layers.0.block_sparse_moe.experts.{matrix}");
        tensors.insert(name, Tensor::<f32>::ones(shape));
    }
    let classic = unstack_experts(tensors, ExpertNaming::Numbered).unwrap();
    let shape = classic["model.layers.0.block_sparse_moe.experts.1.w2.weight"].shape();
    assert_eq!((classic.len(), shape), (6, Shape::new(&[3, 4])));
}
