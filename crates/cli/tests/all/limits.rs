//! Counts without bound, models that no memory holds, and flags that would
//! change nothing.

use std::fs;

use crate::common::{cisformer_run, refused, specialformer, text};

const CONFIG: &str = cisformer_run!("small", width 8, feed_forward 8, r#"
steps = 4
batch_size = 16
learning_rate = 5e-3
eval_size = 64
"#);

#[test]
fn counts_have_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let said = refused(at, &["info", "--threads", "100000"]);
    assert!(said.contains("--threads = 100000: must be at most 1024"), "{said}");
    let huge = "90000000000000";
    for command in [
        &["eval", "absent", "--size", huge][..],
        &["route", "stats", "absent", "--size", huge],
        &["route", "trace", "absent", "--size", huge],
        &["route", "analyze", "absent", "--permutations", huge],
        &["route", "condition", "eval", "absent", "--condition", "c.json", "--size", huge],
        &["svf", "eval", "absent", "--task", "sentiment", "--size", huge],
        &["svf", "train", "absent", "--task", "sentiment", "--examples", huge],
        &["svf", "run", "absent", "--size", huge],
    ] {
        let said = refused(at, command);
        assert!(said.contains(&format!("= {huge}: must be at most 16777216")), "{said}");
    }
    for command in [
        &["route", "condition", "eval", "absent", "--condition", "c.json", "--size", "0"][..],
        &["svf", "eval", "absent", "--task", "sentiment", "--batch-size", "0"],
        &[
            "adapt",
            "absent",
            "--experts",
            "e",
            "--strategy",
            "prompt",
            "--score",
            "x",
            "--size",
            "0",
        ],
    ] {
        assert!(refused(at, command).contains("= 0: must be at least 1"), "{command:?}");
    }
}

#[test]
fn flags_without_effect_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let train = ["svf", "train", "absent", "--task", "sentiment"];
    let adapt = ["adapt", "absent", "--experts", "e", "--strategy", "prompt", "--prompt", "a"];
    for (command, wanted) in [
        ([&train[..], &["--rank", "4"]].concat(), "--rank is for --method lora"),
        ([&train[..], &["--kl", "0.1"]].concat(), "--kl is for --objective reinforce"),
        ([&train[..], &["--method", "lora", "--trace"]].concat(), "--trace is for --method svf"),
        ([&train[..], &["--test", "0", "--skip-base"]].concat(), "--skip-base: nothing is scored"),
        ([&adapt[..], &["--threshold", "0.9"]].concat(), "--threshold is for --strategy class"),
        ([&adapt[..], &["--data", "a=b"]].concat(), "--data is for --strategy classifier"),
        ([&adapt[..], &["--seed", "3"]].concat(), "--seed is for --strategy mixture"),
        ([&adapt[..], &["--size", "3"]].concat(), "--score"),
        (vec!["route", "trace", "absent", "--generate", "3"], "--prompts"),
        (vec!["route", "trace", "absent", "--most-tokens", "3"], "--prompts"),
        ([&adapt[..], &["--shots", "2"]].concat(), "--shots is for --strategy mixture"),
    ] {
        let output = specialformer(at, &command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(text(&output.stderr).contains(wanted), "{command:?}: {}", text(&output.stderr));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_no_memory_holds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (from, to) in [
        ("width = 8", "width = 2000000"),
        ("feed_forward = 8", "feed_forward = 16000000\ndropout = 0.1"),
        ("layers = 1", "layers = 16000000"),
        ("batch_size = 16", "batch_size = 10000000\nshards = 1"),
    ] {
        let text = CONFIG.replacen(from, to, 1).replace("width = 8", "width = 1024");
        fs::write(at.join("run.toml"), text).unwrap();
        let said = refused(at, &["train", "run.toml"]);
        assert!(said.contains(" GB of memory, and "), "{to}: {said}");
        assert!(!at.join("runs").exists());
    }
    fs::write(at.join("run.toml"), CONFIG.replace("width = 8", "width = 2000000")).unwrap();
    assert!(refused(at, &["info", "run.toml"]).contains("the model needs about"));
}

#[test]
fn errors_are_about_what_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("empty")).unwrap();
    fs::write(at.join("m.gguf"), "GGUF").unwrap();
    fs::write(at.join("run.toml"), CONFIG).unwrap();
    for (command, wanted) in [
        (&["route", "trace", "absent"][..], "absent: there is no such file or folder"),
        (&["route", "trace", "empty"], "empty: holds neither config.toml"),
        (&["generate", "m.gguf", "--prompt", "a", "--image", "x.png"], "m.gguf: is no run"),
        (
            &["generate", "m.gguf", "--prompt", "a", "--image", "x.png", "--chat"],
            "--chat is for runs on text",
        ),
        (&["train", "m.gguf"], "m.gguf: "),
        (&["train", "empty"], "empty: is a folder, not a configuration file"),
        (&["train", "run.toml", "--init-from", "empty"], "empty: not the folder of a trained run"),
    ] {
        let said = refused(at, command);
        assert!(said.contains(wanted) && !said.contains("to resume"), "{command:?}: {said}");
    }
}

#[test]
fn an_evaluation_says_which_weights_it_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("run.toml"), CONFIG.replace("layers = 1", "layers = 3")).unwrap();
    assert!(specialformer(at, &["train", "run.toml", "--quiet"]).status.success());
    let eval = || text(&specialformer(at, &["eval", "runs/small", "--size", "64"]).stdout);
    let said = eval();
    assert!(said.contains(" + blocks.0–2 3 × ") && !said.contains("weights of step"), "{said}");
    // As if it had been stopped.
    fs::remove_file(at.join("runs/small/model.safetensors")).unwrap();
    let config = at.join("runs/small/config.toml");
    let longer = fs::read_to_string(&config).unwrap().replace("steps = 4", "steps = 4000");
    fs::write(&config, longer).unwrap();
    let said = eval();
    assert!(said.contains("weights of step 4 of 4,000"), "{said}");
}
