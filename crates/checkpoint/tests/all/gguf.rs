//! GGUF files: what the reference implementation writes is read, what is
//! written comes back.
#![cfg(feature = "gguf")]

use std::path::Path;

use proptest::prelude::*;
use specialformer_checkpoint::{
    CheckpointError, GgufArray, GgufFile, GgufValue, GgufWriter, RawTensor, StorageType,
    TensorFile, ValueKind, dequantize,
};
use specialformer_tensor::{Shape, Tensor};

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// `blocks.safetensors` holds random blocks and what the Python package `gguf`
/// makes of them.
#[test]
fn blocks_are_those_of_the_reference() {
    let file = TensorFile::open(data("blocks.safetensors")).unwrap();
    for kind in StorageType::all().filter(|kind| kind.is_quantized()) {
        let bytes = file.integers::<u8>(&format!("{kind}.bytes")).unwrap();
        let wanted = file.tensor::<f32>(&format!("{kind}.values")).unwrap();
        let mut got = vec![0.0; wanted.len()];
        dequantize(kind, &bytes, &mut got);
        for (i, (got, wanted)) in got.iter().zip(wanted.as_slice()).enumerate() {
            assert_eq!(got.to_bits(), wanted.to_bits(), "{kind} value {i}: {got} {wanted}");
        }
    }
    let values = file.tensor::<f32>("encode.values").unwrap();
    let encoded = RawTensor::encode(&values, StorageType::Q8_0).unwrap();
    assert_eq!(**encoded.bytes(), file.integers::<u8>("encode.Q8_0").unwrap());
}

/// Metadata is a checked copy: what another process does to a mapped file later
/// shows in tensors at most.
#[test]
fn metadata_outlives_changes_of_the_mapped_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let mut writer = GgufWriter::new("llama");
    let texts = ["first", "second", "third"];
    writer.metadata("a.texts", GgufArray::of_strings(texts)).unwrap();
    let nested = GgufArray::new(&[GgufArray::of_strings(texts).into()]).unwrap();
    writer.metadata("a.nested", nested.clone()).unwrap();
    writer.save(&path).unwrap();
    let file = GgufFile::map(&path).unwrap();
    // Lengths and texts that cannot be, in place.
    let len = std::fs::metadata(&path).unwrap().len() as usize;
    let mut open = std::fs::File::options().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut open, &vec![0xff; len]).unwrap();
    let array = file.array("a.texts").unwrap().unwrap();
    assert_eq!(array.strings().unwrap().collect::<Vec<_>>(), texts);
    assert_eq!(array.values().len(), 3);
    assert_eq!(file.value("a.nested"), Some(&GgufValue::Array(nested)));
}

/// `tiny.gguf` was written by the Python package `gguf`.
#[test]
fn the_references_file_is_read() {
    for file in [GgufFile::map(data("tiny.gguf")), GgufFile::read(data("tiny.gguf"))] {
        let file = file.unwrap();
        assert_eq!((file.version(), file.alignment()), (3, 32));
        assert_eq!(file.string("general.architecture").unwrap(), Some("llama"));
        assert_eq!(file.string("a.text").unwrap(), Some("Grüße 🦀"));
        assert_eq!(file.boolean("a.bool").unwrap(), Some(true));
        assert_eq!(file.float("a.f32").unwrap(), Some(f64::from(0.1f32)));
        assert_eq!(file.float("a.f64").unwrap(), Some(0.1));
        assert_eq!(file.unsigned("a.u64").unwrap(), Some(u64::MAX));
        assert_eq!(file.value("a.i64"), Some(&GgufValue::I64(i64::MIN)));
        assert_eq!(file.value("a.i8"), Some(&GgufValue::I8(-128)));
        assert_eq!(file.value("a.u16"), Some(&GgufValue::U16(u16::MAX)));
        let numbers = file.array("a.numbers").unwrap().unwrap();
        let numbers: Vec<_> = numbers.values().map(|v| v.as_integer().unwrap()).collect();
        assert_eq!(numbers, [3, -1, 2]);
        let texts = file.array("a.texts").unwrap().unwrap();
        assert_eq!(texts.strings().unwrap().collect::<Vec<_>>(), ["x", "", "yz"]);
        assert_eq!(file.unsigned("none").unwrap(), None);

        let wanted: Vec<f32> = (0..96).map(|i| i as f32 / 7.0).collect();
        assert_eq!(file.tensor("f32").unwrap().as_slice(), wanted);
        for (name, tolerance) in [("f16", 1e-3), ("bf16", 8e-3), ("q8", 8e-3)] {
            let tensor = file.tensor(name).unwrap();
            assert_eq!(tensor.shape(), Shape::new(&[3, 32]), "{name}");
            for (got, wanted) in tensor.as_slice().iter().zip(&wanted) {
                assert!((got - wanted).abs() <= tolerance * 13.8, "{name}: {got} {wanted}");
            }
        }
        assert_eq!(file.kind("q8"), Some(StorageType::Q8_0));
        assert_eq!(file.raw("q8").unwrap().row_bytes(1).len(), 34);
        assert_eq!(file.tensor("vector").unwrap().as_slice(), [0.0, 1.0, 2.0, 3.0, 4.0]);
    }
}

#[test]
fn wrong_questions_are_errors_that_name_the_key() {
    let file = GgufFile::map(data("tiny.gguf")).unwrap();
    let message = |error: CheckpointError| error.to_string();
    assert!(
        message(file.unsigned("a.i8").unwrap_err())
            .ends_with("tiny.gguf: metadata `a.i8` is -128, not an integer from 0")
    );
    assert!(
        message(file.string("a.numbers").unwrap_err())
            .ends_with("tiny.gguf: metadata `a.numbers` is 3 × I32 [3, -1, 2], not text")
    );
    assert!(message(file.tensor("none").unwrap_err()).ends_with("tiny.gguf: no tensor `none`"));
    assert!(
        message(file.config().unwrap_err()).ends_with("tiny.gguf: no tensor `token_embd.weight`")
    );
}

fn any_value() -> impl Strategy<Value = GgufValue> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(GgufValue::U8),
        any::<i8>().prop_map(GgufValue::I8),
        any::<u16>().prop_map(GgufValue::U16),
        any::<i16>().prop_map(GgufValue::I16),
        any::<u32>().prop_map(GgufValue::U32),
        any::<i32>().prop_map(GgufValue::I32),
        any::<f32>().prop_map(GgufValue::F32),
        any::<bool>().prop_map(GgufValue::Bool),
        any::<u64>().prop_map(GgufValue::U64),
        any::<i64>().prop_map(GgufValue::I64),
        any::<f64>().prop_map(GgufValue::F64),
        ".{0,12}".prop_map(GgufValue::String),
    ];
    leaf.prop_recursive(3, 16, 5, |inner| {
        prop::collection::vec(inner, 0..5).prop_map(|values| {
            GgufArray::new(&values)
                .or_else(|| GgufArray::new(&values[..1]))
                .expect("one value is of one type")
                .into()
        })
    })
}

proptest! {
    #[test]
    fn files_come_back(
        values in prop::collection::btree_map("[a-z]{1,6}", any_value(), 0..8),
        sizes in prop::collection::vec((0usize..4, 0usize..3), 0..6),
        alignment in prop::sample::select(vec![1u32, 8, 32, 64]),
    ) {
        let kinds = [StorageType::F32, StorageType::F16, StorageType::BF16, StorageType::Q8_0];
        let mut writer = GgufWriter::new("llama");
        writer.metadata("general.alignment", alignment).unwrap();
        for (key, value) in &values {
            writer.metadata(key, value.clone()).unwrap();
        }
        let mut tensors = Vec::new();
        for (i, (rows, blocks)) in sizes.into_iter().enumerate() {
            let mut next = i as f32;
            let tensor = Tensor::from_fn([rows, 32 * blocks], || { next += 0.5; next });
            let raw = RawTensor::encode(&tensor, kinds[i % 4]).unwrap();
            writer.tensor(&format!("t{i}"), &raw).unwrap();
            tensors.push(raw);
        }
        let file = GgufFile::from_bytes("a.gguf", writer.to_bytes()).unwrap();
        prop_assert_eq!(file.alignment(), alignment as usize);
        for (key, value) in &values {
            // NaN differs from itself; its text does not.
            prop_assert_eq!(format!("{:?}", file.value(key)), format!("{:?}", Some(value)));
        }
        for (i, raw) in tensors.iter().enumerate() {
            let back = file.raw(&format!("t{i}")).unwrap();
            prop_assert_eq!((back.kind(), back.shape()), (raw.kind(), raw.shape()));
            prop_assert_eq!(&**back.bytes(), &**raw.bytes());
        }
    }
}

#[test]
fn saving_is_what_to_bytes_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let mut writer = GgufWriter::new("llama");
    let raw = RawTensor::encode(&Tensor::ones([3, 5]), StorageType::F16).unwrap();
    writer.tensor("a", &raw).unwrap();
    writer.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), writer.to_bytes());
    assert_eq!(GgufFile::map(&path).unwrap().tensor("a").unwrap().as_slice(), [1.0; 15]);
    let error = writer.tensor("a", &raw).unwrap_err().to_string();
    assert_eq!(error, "cannot write `a`: there is a tensor of this name already");
    let error = writer.metadata("general.architecture", "b").unwrap_err().to_string();
    assert!(error.contains("there is a metadata entry of this name already"), "{error}");
    assert!(writer.metadata("general.alignment", 3u32).is_err());
}

fn llama() -> GgufWriter {
    let mut writer = GgufWriter::new("llama");
    for (key, value) in [
        ("block_count", 2u32),
        ("context_length", 512),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 8),
    ] {
        writer.metadata(&format!("llama.{key}"), value).unwrap();
    }
    writer.metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32).unwrap();
    writer.metadata("llama.rope.freq_base", 100_000f32).unwrap();
    writer.metadata("tokenizer.ggml.eos_token_id", 2u32).unwrap();
    let raw = RawTensor::encode(&Tensor::ones([96, 32]), StorageType::F16).unwrap();
    writer.tensor("token_embd.weight", &raw).unwrap();
    writer
}

#[test]
fn configurations_come_from_metadata() {
    let file = GgufFile::from_bytes("a.gguf", llama().to_bytes()).unwrap();
    let config = file.config().unwrap();
    let decoder = config.family.decoder().unwrap();
    assert_eq!(config.model_type, "llama");
    assert_eq!((decoder.vocab_size, decoder.hidden_size, decoder.head_dim), (96, 32, 8));
    assert_eq!((decoder.heads, decoder.kv_heads, decoder.layers), (4, 2, 2));
    assert_eq!((decoder.rms_norm_eps, decoder.rope.theta), (1e-5, 100_000.0));
    assert!(decoder.tie_word_embeddings && !decoder.attention_bias);
    assert_eq!(decoder.eos_token_ids, [2]);

    let mut mixtral = llama();
    mixtral.metadata("llama.expert_count", 8u32).unwrap();
    mixtral.metadata("llama.expert_used_count", 2u32).unwrap();
    let file = GgufFile::from_bytes("a.gguf", mixtral.to_bytes()).unwrap();
    let config = file.config().unwrap();
    let experts = config.family.decoder().unwrap().experts.clone().unwrap();
    assert_eq!((experts.experts, experts.top_k, experts.hidden), (8, 2, 64));
    assert_eq!(config.model_type, "mixtral");

    let mut none = GgufWriter::new("mamba");
    none.metadata("mamba.block_count", 1u32).unwrap();
    let file = GgufFile::from_bytes("a.gguf", none.to_bytes()).unwrap();
    let error = file.config().unwrap_err().to_string();
    assert!(
        error.starts_with("a.gguf: the GGUF architecture `mamba` with 0 experts is not"),
        "{error}"
    );
}

#[test]
fn folders_names_are_found_and_strangers_named() {
    let mut writer = llama();
    let raw = RawTensor::encode(&Tensor::ones([32, 32]), StorageType::Q8_0).unwrap();
    writer.tensor("blk.1.attn_q.weight", &raw).unwrap();
    writer.tensor("rope_freqs.weight", &raw).unwrap();
    let file = GgufFile::from_bytes("a.gguf", writer.to_bytes()).unwrap();
    let names = file.folder_names().unwrap();
    let names: Vec<_> = names.iter().map(|(_, folder)| folder.as_str()).collect();
    assert_eq!(names, ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"]);
    let error = file.config().unwrap_err().to_string();
    assert!(error.contains("`rope_freqs.weight`"), "{error}");
    writer.tensor("blk.0.strange.weight", &raw).unwrap();
    let file = GgufFile::from_bytes("a.gguf", writer.to_bytes()).unwrap();
    let error = file.folder_names().unwrap_err().to_string();
    assert!(error.ends_with("tensor `blk.0.strange.weight` is not one of its architecture"));
}

#[test]
fn arrays_are_of_one_type() {
    assert!(GgufArray::new(&[GgufValue::U8(1), GgufValue::U32(1)]).is_none());
    let empty = GgufArray::new(&[]).unwrap();
    assert_eq!((empty.kind(), empty.is_empty()), (ValueKind::U32, true));
    let texts = GgufArray::of_strings(["a", "b"]);
    assert_eq!(texts, GgufArray::new(&["a".into(), "b".into()]).unwrap());
    assert_eq!(GgufValue::from(texts).to_string(), r#"2 × String ["a", "b"]"#);
}
