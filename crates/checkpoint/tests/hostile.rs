//! Damaged and malicious files: an error each time, no panic, no allocation
//! that the file's own size does not justify.

mod watching;

use proptest::prelude::*;
use specialformer_checkpoint::{TensorFile, TensorWriter};
use specialformer_tensor::Tensor;

/// What a reader keeps beyond the file: its chunk buffer and some strings.
const SLACK: usize = 1 << 18;

/// Opens and reads everything; the outcome does not matter, surviving does.
fn exercise(bytes: Vec<u8>) -> bool {
    let allowed = 16 * bytes.len() + SLACK;
    watching::reset();
    let opened = TensorFile::from_bytes("hostile.safetensors", bytes);
    let ok = opened.is_ok();
    match opened {
        Ok(file) => {
            for name in file.names() {
                let results = [
                    file.tensor::<f32>(name).err(),
                    file.tensor::<f64>(name).err(),
                    file.integers::<u64>(name).err(),
                    file.integers::<u8>(name).err(),
                ];
                for error in results.into_iter().flatten() {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("hostile.safetensors: "), "{message}");
        }
    }
    let largest = watching::largest();
    assert!(largest <= allowed, "allocated {largest} of {allowed}");
    ok
}

fn sample() -> Vec<u8> {
    let mut writer = TensorWriter::new();
    writer.tensor("blocks.0.weight", &Tensor::<f32>::full([7, 5], 0.25)).unwrap();
    writer.tensor("blocks.0.bias", &Tensor::<f64>::full([5], -1.0)).unwrap();
    writer.integers("steps", &[1u64, 2, 3]).unwrap();
    writer.metadata("config", "width = 5").unwrap();
    writer.to_bytes()
}

fn with_header(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample();
    assert!(exercise(whole.clone()));
    for len in 0..whole.len() {
        assert!(!exercise(whole[..len].to_vec()), "{len} of {} bytes", whole.len());
    }
    let mut longer = whole;
    longer.push(0);
    assert!(!exercise(longer));
}

#[test]
fn truncated_files_on_disk_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.safetensors");
    let whole = sample();
    for percent in 0..100 {
        std::fs::write(&path, &whole[..whole.len() * percent / 100]).unwrap();
        let message = TensorFile::open(&path).unwrap_err().to_string();
        let wanted = format!("{}: not a valid safetensors file: truncated: ", path.display());
        assert!(message.starts_with(&wanted), "{percent} %: {message}");
    }
}

#[test]
fn lengths_near_the_limits_are_errors() {
    for length in [
        u64::MAX,
        u64::MAX - 7,
        u64::MAX - 8,
        i64::MAX as u64,
        1 << 63,
        u64::from(u32::MAX),
        100_000_001,
        100_000_000,
    ] {
        let mut bytes = sample();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(!exercise(bytes), "{length}");
    }
    for number in ["18446744073709551615", "9223372036854775807", "18446744073709551616", "-1"] {
        for json in [
            format!(r#"{{"w":{{"dtype":"F32","shape":[{number}],"data_offsets":[0,8]}}}}"#),
            format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":[0,{number}]}}}}"#),
            format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":[{number},8]}}}}"#),
            format!(r#"{{"w":{{"dtype":"U8","shape":[{number}],"data_offsets":[0,{number}]}}}}"#),
            format!(r#"{{"w":{{"dtype":"U8","shape":[0,{number},9],"data_offsets":[0,0]}}}}"#),
        ] {
            assert!(!exercise(with_header(&json, 8)), "{json}");
        }
    }
}

#[test]
fn folders_and_missing_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let message = TensorFile::open(folder.path()).unwrap_err().to_string();
    assert!(message.starts_with(&folder.path().display().to_string()), "{message}");
    let missing = folder.path().join("none.safetensors");
    let message = TensorFile::open(&missing).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: cannot open: ", missing.display())), "{message}");
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let deep = format!(r#"{{"w":{}"#, "[".repeat(200_000));
    assert!(!exercise(with_header(&deep, 0)));
    let ignored = format!(r#"{{"w":{{"x":{}"#, "[".repeat(200_000));
    assert!(!exercise(with_header(&ignored, 0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(bytes);
    }

    #[test]
    fn random_headers_never_panic(json in r#"\{("[a-z_]{0,3}":(\{|\[|[0-9]|"F32"|,|\}|\]){0,12}){0,3}\}?"#) {
        exercise(with_header(&json, 16));
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4)) {
        let mut bytes = sample();
        let len = bytes.len();
        for (at, bit) in flips {
            bytes[at.index(len)] ^= 1 << (bit % 8);
        }
        exercise(bytes);
    }

    #[test]
    fn random_entries_never_panic(
        entries in prop::collection::vec(
            (
                prop::sample::select(vec!["F32", "F64", "F16", "U8", "F4", "BOOL", "Q"]),
                prop::collection::vec(prop_oneof![0..4u64, any::<u64>()], 0..10),
                prop_oneof![0..40u64, any::<u64>()],
                prop_oneof![0..40u64, any::<u64>()],
            ),
            0..5,
        ),
        data in 0..64usize,
    ) {
        let entries: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(i, (dtype, shape, start, end))| format!(
                r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            ))
            .collect();
        exercise(with_header(&format!("{{{}}}", entries.join(",")), data));
    }
}
