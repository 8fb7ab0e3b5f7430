//! LoRA adapters in PEFT's folders.

use std::fs;
use std::path::Path;

use specialformer_checkpoint::{LoraConfig, LoraFolder, LoraPair, TensorFile, TensorWriter};
use specialformer_tensor::{Shape, Tensor};

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/golden").join(name)
}

#[test]
fn adapters_of_peft_load_and_come_back() {
    let adapter = LoraFolder::open(golden("11_lora/adapter")).unwrap();
    assert_eq!((adapter.config.r, adapter.config.alpha), (4, 8.0));
    assert_eq!(adapter.config.target_modules, ["q_proj", "v_proj"]);
    let module = "model.layers.1.self_attn.v_proj";
    assert_eq!((adapter.pairs.len(), adapter.config.scale(module)), (4, 2.0));
    let pair = &adapter.pairs[module];
    assert_eq!((pair.a.shape(), pair.b.shape()), (Shape::new(&[4, 32]), Shape::new(&[16, 4])));

    // Base + scale·B·A is the merged weight of the golden case.
    let base = TensorFile::open(golden("11_lora/model.safetensors")).unwrap();
    let merged = TensorFile::open(golden("11_lora/io.safetensors")).unwrap();
    let base: Tensor<f32> = base.tensor(&format!("{module}.weight")).unwrap();
    let merged: Tensor<f32> = merged.tensor(&format!("merged.{module}.weight")).unwrap();
    for (i, (base, merged)) in base.as_slice().iter().zip(merged.as_slice()).enumerate() {
        let (row, column) = (i / 32, i % 32);
        let update: f32 = (0..4)
            .map(|r| pair.b.as_slice()[row * 4 + r] * pair.a.as_slice()[r * 32 + column])
            .sum();
        assert!((base + 2.0 * update - merged).abs() <= 2e-6, "{i}");
    }

    let folder = tempfile::tempdir().unwrap();
    adapter.save(folder.path().join("again")).unwrap();
    let again = LoraFolder::open(folder.path().join("again")).unwrap();
    assert_eq!(again.config, adapter.config);
    for (module, pair) in &adapter.pairs {
        assert_eq!(again.pairs[module].a.as_slice(), pair.a.as_slice());
        assert_eq!(again.pairs[module].b.as_slice(), pair.b.as_slice());
    }
    let names = |path: &Path| {
        let file = TensorFile::open(path.join("adapter_model.safetensors")).unwrap();
        file.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&folder.path().join("again")), names(&golden("11_lora/adapter")));
}

#[test]
fn scales_and_ranks_may_differ_by_module() {
    let mut config = LoraConfig::new(4, 8.0, &["q_proj"]);
    config.rank_pattern.push(("layers.1.self_attn.q_proj".into(), 16));
    config.alpha_pattern.push(("q_proj".into(), 32.0));
    assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 8.0);
    assert_eq!(config.scale("model.layers.1.self_attn.q_proj"), 2.0);
    assert_eq!(config.scale("model.layers.1.self_attn.seq_proj"), 2.0);
    config.use_rslora = true;
    assert_eq!(config.scale("model.layers.1.self_attn.q_proj"), 8.0);
}

/// Of several patterns that fit, PEFT takes the first of the file.
#[test]
fn the_first_pattern_that_fits_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = LoraConfig::new(4, 8.0, &["q_proj"]);
    config.alpha_pattern.push(("self_attn.q_proj".into(), 32.0));
    config.alpha_pattern.push(("q_proj".into(), 16.0));
    let adapter = LoraFolder { config, pairs: [].into() };
    adapter.save(folder.path()).unwrap();
    let read = || LoraFolder::open(folder.path()).unwrap().config;
    assert_eq!((read(), read().scale("m.self_attn.q_proj")), (adapter.config, 8.0));
    // The other way round, as only the order of the file tells.
    let path = folder.path().join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"self_attn.q_proj\": 32", "\"z.q_proj\": 32");
    let text = text.replace("\"q_proj\": 16", "\"q_proj\": 16, \"attn.q_proj\": 64");
    fs::write(&path, text).unwrap();
    assert_eq!(read().scale("m.attn.q_proj"), 4.0);
}

#[test]
fn a_pattern_that_is_there_twice_is_not_written() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("adapter");
    let mut config = LoraConfig::new(4, 8.0, &["q_proj"]);
    // The same key in both is no matter.
    config.rank_pattern = vec![("q_proj".into(), 4), ("v_proj".into(), 4)];
    config.alpha_pattern = vec![("q_proj".into(), 16.0), ("v_proj".into(), 2.0)];
    let adapter = |config: &LoraConfig| LoraFolder { config: config.clone(), pairs: [].into() };
    adapter(&config).save(&folder).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    config.alpha_pattern.push(("q_proj".into(), 32.0));
    assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 4.0);
    let error = adapter(&config).save(&folder).unwrap_err().to_string();
    assert!(error.ends_with("`alpha_pattern.q_proj` is there twice"), "{error}");
    assert!(!folder.exists());
}

#[test]
fn adapters_of_other_kinds_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let pair = LoraPair { a: Tensor::ones([4, 6]), b: Tensor::ones([5, 4]) };
    let adapter = LoraFolder {
        config: LoraConfig::new(4, 8.0, &["q_proj"]),
        pairs: [("m.q_proj".to_owned(), pair)].into(),
    };
    adapter.save(folder.path()).unwrap();
    let path = folder.path().join("adapter_config.json");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let error = |key: &str, value: serde_json::Value| {
        let mut json = json.clone();
        json[key] = value;
        fs::write(&path, json.to_string()).unwrap();
        LoraFolder::open(folder.path()).unwrap_err().to_string()
    };
    for (key, value) in [
        ("use_dora", true.into()),
        ("fan_in_fan_out", true.into()),
        ("bias", "all".into()),
        ("modules_to_save", vec!["lm_head"].into()),
        ("layer_replication", serde_json::json!([[0, 1]])),
    ] {
        let message = error(key, value);
        let wanted = format!("adapter_config.json: `{key}` is set, which is not supported");
        assert!(message.ends_with(&wanted), "{message}");
    }
    assert!(
        error("peft_type", "IA3".into()).ends_with("`peft_type` is \"IA3\"; supported is LORA")
    );
    assert!(error("r", (-4).into()).contains("`r` is -4, not an integer from 1"));
    let message = error("r", 8.into());
    assert!(
        message.ends_with(
            "tensor `base_model.model.m.q_proj.lora_A.weight`: A of shape [4, 6] and B of shape \
             [5, 4] do not fit rank 8"
        ),
        "{message}"
    );
    let message = error("rank_pattern", serde_json::json!({".*q_proj": 4}));
    assert!(message.contains("`rank_pattern..*q_proj` is a regular expression"), "{message}");

    fs::write(&path, json.to_string()).unwrap();
    let mut writer = TensorWriter::published();
    writer.tensor("base_model.model.m.q_proj.lora_A.weight", &Tensor::<f32>::ones([4, 6])).unwrap();
    writer.save(folder.path().join("adapter_model.safetensors")).unwrap();
    let message = LoraFolder::open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("its other half `base_model.model.m.q_proj.lora_B.weight` is missing")
    );
    writer.tensor("base_model.model.m.lora_embedding_A", &Tensor::<f32>::ones([4, 6])).unwrap();
    writer.save(folder.path().join("adapter_model.safetensors")).unwrap();
    let message = LoraFolder::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("tensor `base_model.model.m.lora_embedding_A`: is not"), "{message}");
}
