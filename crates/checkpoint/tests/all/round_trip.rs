//! What is written comes back, and other tools agree about it.

use std::collections::HashMap;

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use specialformer_checkpoint::{CheckpointError, TensorFile, TensorWriter};
use specialformer_tensor::{Shape, Tensor};

fn reopen(writer: &TensorWriter) -> TensorFile {
    TensorFile::from_bytes("a.safetensors", writer.to_bytes()).unwrap()
}

proptest! {
    #[test]
    fn bits_survive(
        singles in prop::collection::vec(any::<u32>(), 0..40),
        doubles in prop::collection::vec(any::<f64>(), 0..40),
        long in prop::collection::vec(any::<u64>(), 0..40),
        signed in prop::collection::vec(any::<i64>(), 0..40),
        bytes in prop::collection::vec(any::<u8>(), 0..40),
        text in ".*",
    ) {
        // Every bit pattern but signalling NaNs, which arithmetic makes quiet.
        let singles: Vec<f32> =
            singles.into_iter().map(f32::from_bits).filter(|v| !v.is_nan()).collect();
        let single_shape = Shape::new(&[singles.len(), 1]);
        let mut writer = TensorWriter::new();
        writer.tensor("s", &Tensor::from_vec(singles.clone(), single_shape).unwrap()).unwrap();
        writer.tensor("d", &Tensor::from_vec(doubles.clone(), doubles.len()).unwrap()).unwrap();
        writer.integers("u64", &long).unwrap().integers("i64", &signed).unwrap();
        writer.integers("u8", &bytes).unwrap().metadata("text", text.clone()).unwrap();

        let file = reopen(&writer);
        let back: Tensor<f32> = file.tensor("s").unwrap();
        prop_assert_eq!(back.shape(), single_shape);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(back.as_slice()), bits(&singles));
        let back: Tensor<f64> = file.tensor("d").unwrap();
        let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(back.as_slice()), bits(&doubles));
        prop_assert_eq!(file.integers::<u64>("u64").unwrap(), long);
        prop_assert_eq!(file.integers::<i64>("i64").unwrap(), signed);
        prop_assert_eq!(file.integers::<u8>("u8").unwrap(), bytes);
        prop_assert_eq!(file.metadata("text"), Some(text.as_str()));
        prop_assert_eq!(file.format_version(), Some(1));
    }
}

#[test]
fn large_tensors_survive_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let mut next = 0.0f32;
    let large = Tensor::from_fn([333, 501], || {
        next += 1.0;
        next
    });
    let mut writer = TensorWriter::new();
    writer.tensor("large", &large).unwrap().integers("seen", &[1u8]).unwrap();
    writer.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), writer.to_bytes());
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.tensor::<f32>("large").unwrap().as_slice(), large.as_slice());
    assert_eq!(file.tensor::<f64>("large").unwrap().as_slice()[500], 501.0);
    assert_eq!(file.integers::<u8>("seen").unwrap(), [1]);
}

#[test]
fn the_reference_implementation_reads_what_is_written() {
    let mut writer = TensorWriter::new();
    writer.tensor("b.weight", &Tensor::<f32>::full([2, 3], 0.5)).unwrap();
    writer.tensor("a", &Tensor::<f64>::scalar(-1.0)).unwrap();
    writer.integers("c", &[7u8, 8, 9]).unwrap();
    let bytes = writer.to_bytes();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weight = theirs.tensor("b.weight").unwrap();
    assert_eq!((weight.dtype(), weight.shape()), (Dtype::F32, [2, 3].as_slice()));
    assert_eq!(weight.data(), 0.5f32.to_le_bytes().repeat(6));
    assert_eq!(theirs.tensor("a").unwrap().data(), (-1.0f64).to_le_bytes());
    assert_eq!(theirs.tensor("c").unwrap().data(), [7, 8, 9]);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["format"], "specialformer");
    assert_eq!(metadata["format_version"], "1");
}

fn foreign(tensors: &[(&str, Dtype, &[usize], &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).unwrap()
}

#[test]
fn files_of_other_tools_load() {
    let bytes = foreign(
        &[
            ("half", Dtype::F16, &[2], &[0x00, 0x3c, 0x00, 0xc0]),
            ("brain", Dtype::BF16, &[2], &[0x80, 0x3f, 0x00, 0xc0]),
            ("wide", Dtype::F64, &[1], &0.1f64.to_le_bytes()),
            ("inf", Dtype::F64, &[1], &f64::INFINITY.to_le_bytes()),
            ("huge", Dtype::F64, &[1], &1e300f64.to_le_bytes()),
            ("mask", Dtype::BOOL, &[2], &[0, 1]),
            ("deep", Dtype::U8, &[1; 9], &[3]),
        ],
        &[("format", "pt")],
    );
    let file = TensorFile::from_bytes("pt.safetensors", bytes).unwrap();
    assert_eq!(file.format_version(), None);
    assert_eq!(file.tensor::<f32>("half").unwrap().as_slice(), [1.0, -2.0]);
    assert_eq!(file.tensor::<f64>("brain").unwrap().as_slice(), [1.0, -2.0]);
    assert_eq!(file.tensor::<f32>("wide").unwrap().as_slice(), [0.1f32]);
    assert_eq!(file.tensor::<f32>("inf").unwrap().as_slice(), [f32::INFINITY]);
    assert_eq!(file.element_type("mask").as_deref(), Some("BOOL"));
    let message = |e: CheckpointError| e.to_string();
    assert_eq!(
        message(file.tensor::<f32>("huge").unwrap_err()),
        "pt.safetensors: tensor `huge`: 1e300 overflows f32"
    );
    assert_eq!(
        message(file.tensor::<f32>("mask").unwrap_err()),
        "pt.safetensors: tensor `mask` holds BOOL, which cannot be read as f32"
    );
    assert_eq!(
        message(file.integers::<u64>("half").unwrap_err()),
        "pt.safetensors: tensor `half` holds F16, which cannot be read as u64"
    );
    assert_eq!(
        message(file.tensor::<f32>("none").unwrap_err()),
        "pt.safetensors: no tensor `none`"
    );
    assert!(message(file.tensor::<f32>("deep").unwrap_err()).contains("at most 8 axes"));
    assert_eq!(file.integers::<u8>("deep").unwrap(), [3]);

    let bare = TensorFile::from_bytes("bare", foreign(&[], &[])).unwrap();
    assert_eq!((bare.names().count(), bare.format_version()), (0, None));
}

#[test]
fn versions_are_checked() {
    let with = |version: &[(&str, &str)]| {
        let metadata = [&[("format", "specialformer")], version].concat();
        TensorFile::from_bytes("m.safetensors", foreign(&[], &metadata)).unwrap_err().to_string()
    };
    assert_eq!(
        with(&[("format_version", "2")]),
        "m.safetensors: written in format version 2, this build reads versions up to 1"
    );
    assert_eq!(with(&[]), "m.safetensors: metadata `format_version` is missing");
    assert!(
        with(&[("format_version", "new")])
            .starts_with("m.safetensors: metadata `format_version` is not as expected: ")
    );
}

#[test]
fn json_metadata_comes_back() {
    let mut writer = TensorWriter::new();
    writer.metadata_json("state", &vec![(1u64, "x".to_owned())]).unwrap();
    let file = reopen(&writer);
    let state: Vec<(u64, String)> = file.metadata_json("state").unwrap();
    assert_eq!(state, [(1, "x".to_owned())]);
    let error = file.metadata_json::<u64>("state").unwrap_err().to_string();
    assert!(error.starts_with("a.safetensors: metadata `state` is not as expected: "), "{error}");
    let error = file.metadata_json::<u64>("other").unwrap_err().to_string();
    assert_eq!(error, "a.safetensors: metadata `other` is missing");
}

#[test]
fn a_mismatch_names_every_tensor() {
    let mut writer = TensorWriter::new();
    for name in ["a", "b", "c", "d"] {
        writer.tensor(name, &Tensor::<f32>::ones([2, 3])).unwrap();
    }
    let file = reopen(&writer);
    let expected = [
        ("a", Shape::new(&[2, 3])),
        ("b", Shape::new(&[3, 2])),
        ("c", Shape::new(&[6])),
        ("x", Shape::new(&[1])),
        ("y", Shape::scalar()),
    ];
    let error = file.load::<f32, _>(expected).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a.safetensors: tensors do not match: 2 missing: `x` [1], `y` []; \
         1 unexpected: `d` [2, 3]; \
         2 of wrong shape: `b` is [2, 3], expected [3, 2], `c` is [2, 3], expected [6]"
    );
    let CheckpointError::Mismatch { mismatch, .. } = error else { panic!("{error:?}") };
    assert_eq!((mismatch.missing.len(), mismatch.unexpected.len()), (2, 1));
    file.check(["a", "b", "c", "d"].map(|name| (name, Shape::new(&[2, 3])))).unwrap();
    let names: Vec<_> = file.tensors::<f32>().unwrap().into_keys().collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn threads_may_read_from_one_file() {
    let mut writer = TensorWriter::new();
    for i in 0..16 {
        writer.tensor(&i.to_string(), &Tensor::full([1000], i as f32)).unwrap();
    }
    let file = reopen(&writer);
    std::thread::scope(|scope| {
        for i in 0..16 {
            let file = &file;
            scope.spawn(move || {
                let tensor: Tensor<f32> = file.tensor(&i.to_string()).unwrap();
                assert!(tensor.as_slice().iter().all(|&v| v == i as f32));
            });
        }
    });
}
