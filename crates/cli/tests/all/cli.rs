//! The command as a person meets it: results, and errors in one line with
//! exit code 2.

use std::fs;

use crate::common::{cisformer_run, refused, specialformer, text};

const CONFIG: &str = cisformer_run!("tiny", width 8, feed_forward 8, r#"
steps = 12
batch_size = 16
learning_rate = 5e-3
eval_every = 6
eval_size = 64
checkpoint_every = 5
"#);

fn with_config(change: impl Fn(String) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.toml"), change(CONFIG.into())).unwrap();
    folder
}

#[test]
fn a_run_trains_evaluates_and_resumes() {
    let folder = with_config(|c| c);
    let at = folder.path();
    let output = specialformer(at, &["train", "run.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for file in ["config.toml", "metrics.jsonl", "model.safetensors", "report.html", "result.json"]
    {
        assert!(at.join("runs/tiny").join(file).is_file(), "{file}");
    }
    let report = fs::read_to_string(at.join("runs/tiny/report.html")).unwrap();
    assert!(report.contains("tiny"));
    assert!(!report.contains("<script src") && !report.contains("src=\"http"), "needs the network");

    let output = specialformer(at, &["eval", "runs/tiny", "--size", "64", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["evaluation"]["count"], 64);

    // Nothing is written over.
    let before = fs::read(at.join("runs/tiny/model.safetensors")).unwrap();
    let said = refused(at, &["train", "run.toml"]);
    assert!(said.contains("runs/tiny"), "{said}");
    assert_eq!(fs::read(at.join("runs/tiny/model.safetensors")).unwrap(), before);
    let output = specialformer(at, &["train", "run.toml", "--resume", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(at.join("runs/tiny/model.safetensors")).unwrap(), before);
}

#[test]
fn the_study_prints_json_and_keeps_finished_runs() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "iarc",
        "--json",
        "--steps",
        "4",
        "--models",
        "mlp,lstm-small",
        "--test-size",
        "64",
        "--out",
        "out",
    ];
    let output = specialformer(folder.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["runs"][0]["name"], "mlp");
    assert_eq!(value["runs"][1]["parameters"], 6954);
    assert!(folder.path().join("out/plot.svg").is_file());
    let said = refused(folder.path(), &arguments);
    assert!(said.contains("--resume"), "{said}");
    let said = refused(folder.path(), &["iarc", "--models", "mlp,mlp", "--out", "twice"]);
    assert!(said.contains("mlp is named twice"), "{said}");
    assert!(!folder.path().join("twice").exists());
    let mut again = arguments.to_vec();
    again.push("--resume");
    let output = specialformer(folder.path(), &again);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), value);
}

#[test]
fn wrong_configurations_name_file_field_and_value() {
    let cases: [(&str, &str, &[&str]); 9] = [
        ("width = 8", "width = 8\nwidht = 9", &["run.toml", "line", "widht"]),
        ("heads = 2", "heads = 3", &["model.width = 8", "model.heads = 3"]),
        ("window = 16", "window = 8", &["model.window = 8", "data.window = 16"]),
        ("vocabulary = 14", "vocabulary = 13", &["model.vocabulary = 13", "14 tokens"]),
        ("steps = 12", "steps = 0", &["steps = 0"]),
        ("batch_size = 16", "batch_size = 0", &["batch_size = 0"]),
        ("kind = \"cisformer\"", "kind = \"cisfromer\"", &["run.toml", "cisfromer", "transformer"]),
        ("learning_rate = 5e-3", "learning_rate = -1", &["learning_rate = -1"]),
        ("kind = \"iarc\"", "kind = \"iarc\"\nwindow = 4", &["window = 4"]),
    ];
    for (from, to, wanted) in cases {
        let folder = with_config(|c| c.replacen(from, to, 1));
        let said = refused(folder.path(), &["train", "run.toml"]);
        for part in wanted {
            assert!(said.contains(part), "`{to}`: `{part}` is not in: {said}");
        }
        assert!(!folder.path().join("runs").exists(), "`{to}` left files");
    }
}

#[test]
fn wrong_files_are_named() {
    let folder = with_config(|c| c);
    let at = folder.path();
    assert!(refused(at, &["train", "absent.toml"]).contains("absent.toml"));
    assert!(refused(at, &["eval", "absent"]).contains("absent"));
    assert!(refused(at, &["iarc", "--models", "gpt"]).contains("gpt"));
    assert!(refused(at, &["iarc", "--steps", "0"]).contains("--steps = 0"));
    fs::write(at.join("file"), "").unwrap();
    assert!(refused(at, &["train", "run.toml", "--out", "file/run"]).contains("file/run"));

    assert!(specialformer(at, &["train", "run.toml", "--quiet"]).status.success());
    // Of a run that has ended, the final weights are what is loaded.
    let model = at.join("runs/tiny/model.safetensors");
    let good = fs::read(&model).unwrap();
    for bad in [&good[..good.len() / 2], b"garbage", b""] {
        fs::write(&model, bad).unwrap();
        assert!(refused(at, &["eval", "runs/tiny"]).contains("model.safetensors"));
    }
    // Weights of another architecture: every tensor that does not fit.
    fs::write(&model, good).unwrap();
    let config = at.join("runs/tiny/config.toml");
    let other =
        fs::read_to_string(&config).unwrap().replace("feed_forward = 8", "feed_forward = 9");
    fs::write(&config, other).unwrap();
    let said = refused(at, &["eval", "runs/tiny"]);
    assert!(
        said.contains("model.safetensors") && said.contains("blocks.0.feed_forward.up.weight"),
        "{said}"
    );
}

#[test]
fn a_run_of_another_length_is_not_taken_for_finished() {
    let folder = tempfile::tempdir().unwrap();
    let run = |steps: &str| {
        let arguments =
            ["iarc", "--resume", "--models", "mlp", "--test-size", "64", "--steps", steps];
        specialformer(folder.path(), &arguments)
    };
    assert!(run("4").status.success());
    let output = run("5");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("other settings"), "{}", text(&output.stderr));
}

#[test]
fn help_and_info_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let help = specialformer(folder.path(), &["--help"]);
    assert!(text(&help.stdout).contains("Examples:"));
    let info = specialformer(folder.path(), &["info", "--json", "--threads", "1"]);
    let value: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(value["threads"], 1);
    assert!(refused(folder.path(), &["info", "--threads", "0"]).contains("--threads = 0"));
}
