//! Damaged and malicious GGUF files: an error each time that names the file,
//! no panic, no allocation that the file's own size does not justify.
#![cfg(feature = "gguf")]

mod watching;

use proptest::prelude::*;
use specialformer_checkpoint::{GgufArray, GgufFile, GgufWriter, RawTensor, StorageType};
use specialformer_tensor::Tensor;

/// What a reader keeps beyond the file: messages and tree nodes.
const SLACK: usize = 1 << 14;

/// Opens and reads everything; tells whether it opened.
fn exercise(bytes: &[u8]) -> Result<(), String> {
    let bytes = bytes.to_vec();
    let allowed = 8 * bytes.len() + SLACK;
    watching::reset();
    let opened = GgufFile::from_bytes("hostile.gguf", bytes);
    let largest = watching::largest();
    assert!(largest <= allowed, "allocated {largest} of {allowed}");
    let file = opened.map_err(|error| {
        let message = error.to_string();
        assert!(message.starts_with("hostile.gguf: not a readable GGUF file: "), "{message}");
        assert!(!message.contains('\n'), "{message}");
        message
    })?;
    for name in file.names() {
        let raw = file.raw(name).unwrap();
        assert_eq!(raw.rows() * raw.row_len(), raw.shape().elements());
        let _ = file.tensor(name);
    }
    for (key, value) in file.metadata() {
        let _ = (value.to_string(), file.string(key), file.float(key), file.unsigned(key));
    }
    for error in [file.config().err(), file.folder_names().err()].into_iter().flatten() {
        assert!(error.to_string().starts_with("hostile.gguf: "), "{error}");
    }
    #[cfg(feature = "tokenizer")]
    {
        let tokenizer = specialformer_checkpoint::Tokenizer::from_gguf(&file);
        if let Ok(tokenizer) = &tokenizer {
            let ids = tokenizer.encode("a1 b", true).unwrap();
            tokenizer.decode(&ids, false).unwrap();
        }
        let _ = specialformer_checkpoint::ChatTemplate::from_gguf(&file);
    }
    // Unknown tensors are opened as bytes only; 64 values of a quarter byte
    // each are the densest that a file can hold.
    let largest = watching::largest();
    assert!(largest <= 64 * allowed, "allocated {largest} of {allowed}");
    Ok(())
}

fn writer() -> GgufWriter {
    let mut writer = GgufWriter::new("llama");
    writer.metadata("llama.block_count", 1u32).unwrap();
    writer.metadata("llama.embedding_length", 32u32).unwrap();
    writer.metadata("llama.rope.freq_base", 1e4f32).unwrap();
    writer.metadata("tokenizer.ggml.model", "gpt2").unwrap();
    writer.metadata("tokenizer.ggml.pre", "smollm").unwrap();
    writer.metadata("tokenizer.ggml.tokens", GgufArray::of_strings(["a", "b", "ab", "1"])).unwrap();
    writer.metadata("tokenizer.ggml.merges", GgufArray::of_strings(["a b"])).unwrap();
    let types = GgufArray::new(&[1i32.into(), 1i32.into(), 1i32.into(), 3i32.into()]).unwrap();
    writer.metadata("tokenizer.ggml.token_type", types).unwrap();
    writer.metadata("tokenizer.chat_template", "{{ messages }}").unwrap();
    let embedding = RawTensor::encode(&Tensor::ones([4, 32]), StorageType::Q8_0).unwrap();
    writer.tensor("token_embd.weight", &embedding).unwrap();
    let norm = RawTensor::encode(&Tensor::ones([32]), StorageType::F32).unwrap();
    writer.tensor("output_norm.weight", &norm).unwrap();
    writer
}

fn sample() -> Vec<u8> {
    writer().to_bytes()
}

fn position(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample();
    exercise(&whole).unwrap();
    for len in 0..whole.len() {
        assert!(exercise(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
    }
}

#[test]
fn truncated_files_on_disk_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = sample();
    for percent in 0..100 {
        std::fs::write(&path, &whole[..whole.len() * percent / 100]).unwrap();
        for opened in [GgufFile::map(&path), GgufFile::read(&path)] {
            let message = opened.unwrap_err().to_string();
            let wanted = format!("{}: not a readable GGUF file: ", path.display());
            assert!(message.starts_with(&wanted), "{percent} %: {message}");
        }
    }
}

#[test]
fn lengths_near_the_limits_name_what_they_are_of() {
    let whole = sample();
    let tensor = position(&whole, "token_embd.weight");
    // After the name: axes, two sizes, type, start.
    let after = tensor + "token_embd.weight".len();
    let places = [
        (8, "tensors cannot be in"),
        (16, "metadata entries cannot be in"),
        (position(&whole, "llama.block_count") - 8, "key of metadata entry 1: "),
        (position(&whole, "gpt2") - 8, "metadata `tokenizer.ggml.model`: "),
        (tensor - 8, "name of tensor 0: "),
        (after + 4, "tensor `token_embd.weight`"),
        (after + 12, "tensor `token_embd.weight`"),
        (after + 24, "tensor `token_embd.weight`"),
    ];
    for (place, wanted) in places {
        for length in [u64::MAX, u64::MAX - 31, i64::MAX as u64, 1 << 63, 1 << 40, 1 << 32] {
            let mut bytes = whole.clone();
            bytes[place..place + 8].copy_from_slice(&length.to_le_bytes());
            let message = exercise(&bytes).unwrap_err();
            assert!(message.contains(wanted), "{length} at {place}: {message}");
        }
    }
    let mut axes = whole.clone();
    axes[after..after + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let message = exercise(&axes).unwrap_err();
    assert!(message.contains("`token_embd.weight`: 4294967295 axes, at most 4"), "{message}");
    let mut kind = whole;
    kind[after + 20..after + 24].copy_from_slice(&10u32.to_le_bytes());
    let message = exercise(&kind).unwrap_err();
    assert!(message.contains("`token_embd.weight`: type 10 is not supported"), "{message}");
}

#[test]
fn names_with_control_characters_stay_in_one_line() {
    let mut bytes = sample();
    let at = position(&bytes, "tokenizer.ggml.pre");
    bytes[at] = b'\n';
    bytes[at + 18..at + 22].copy_from_slice(&99u32.to_le_bytes());
    let message = exercise(&bytes).unwrap_err();
    let wanted = r"metadata `\nokenizer.ggml.pre`: there is no value type 99";
    assert!(message.ends_with(wanted), "{message}");
}

#[test]
fn overlapping_tensors_are_errors() {
    let mut bytes = sample();
    let start = position(&bytes, "output_norm.weight") + "output_norm.weight".len() + 4 + 8 + 4;
    bytes[start..start + 8].copy_from_slice(&32u64.to_le_bytes());
    let message = exercise(&bytes).unwrap_err();
    assert!(
        message.contains("tensor `output_norm.weight` starts at byte 32 of the data, inside tensor `token_embd.weight`"),
        "{message}"
    );
    bytes[start..start + 8].copy_from_slice(&33u64.to_le_bytes());
    assert!(exercise(&bytes).unwrap_err().contains("it starts at byte 33, the alignment is 32"));
}

#[test]
fn repeated_names_and_wrong_heads_are_errors() {
    let mut bytes = sample();
    let at = position(&bytes, "llama.rope.freq_base");
    let renamed = bytes.len();
    bytes[at..at + 20].copy_from_slice(b"llama.block_count\0\0\0");
    assert_eq!(bytes.len(), renamed);
    exercise(&bytes).unwrap();
    let mut other = sample();
    other[..4].copy_from_slice(b"GGML");
    assert!(exercise(&other).unwrap_err().contains("and not with `GGUF`"));
    for (version, wanted) in [(1u32, "version 1;"), (4, "version 4;"), (3 << 24, "big-endian")] {
        other[..4].copy_from_slice(b"GGUF");
        other[4..8].copy_from_slice(&version.to_le_bytes());
        assert!(exercise(&other).unwrap_err().contains(wanted), "{version}");
    }
    let mut twice = sample();
    let at = position(&twice, "llama.embedding_length");
    twice[at - 8..at].copy_from_slice(&17u64.to_le_bytes());
    assert!(exercise(&twice).is_err());
}

#[test]
fn deep_arrays_do_not_overflow_the_stack() {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
    }
    let message = exercise(&bytes).unwrap_err();
    assert!(message.contains("metadata `k`: arrays are nested deeper than 4"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(&bytes);
        let _ = exercise(&file);
        let _ = exercise(&bytes);
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4)) {
        let mut bytes = sample();
        let len = bytes.len();
        for (at, bit) in flips {
            bytes[at.index(len)] ^= 1 << (bit % 8);
        }
        let _ = exercise(&bytes);
    }

    #[test]
    fn replaced_words_never_panic(
        at in any::<prop::sample::Index>(),
        word in prop_oneof![any::<u64>(), 0..300u64, (0..64u32).prop_map(|n| 1 << n), Just(u64::MAX)],
    ) {
        let mut bytes = sample();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        let _ = exercise(&bytes);
    }
}
