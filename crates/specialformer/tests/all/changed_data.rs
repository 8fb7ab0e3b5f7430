//! Data and settings that changed since a run began, and configurations that
//! cannot be.

use std::fs;
use std::path::Path;

use specialformer::training::HeldOut;
use specialformer::{Error, RunConfig, Start, evaluate, load, routing_report, train};

/// Reviews whose labels are these two in turn.
fn reviews(path: &Path, labels: [&str; 2]) {
    let line =
        |i: usize| format!("{{\"input\": \"text {i}\", \"target\": \"{}\"}}\n", labels[i % 2]);
    fs::write(path, (0..120).map(line).collect::<String>()).unwrap();
}

fn records(path: &Path, width: usize) -> String {
    format!(
        "name = \"labels\"\n[model]\nkind = \"transformer\"\nvocabulary = 261\noutputs = 2\n\
         width = {width}\nlayers = 1\nheads = 2\nfeed_forward = 8\nwindow = 16\n\
         [data]\nkind = \"records\"\n\
         tasks = [{{ name = \"t\", kind = \"classification\", train = ['{}'] }}]\n\
         [train]\nsteps = 3\nbatch_size = 8\nlearning_rate = 1e-3\n",
        path.display()
    )
}

fn parse(text: &str) -> RunConfig {
    RunConfig::parse(text, "test.toml").unwrap()
}

#[test]
fn labels_keep_the_numbers_of_the_run() {
    let place = tempfile::tempdir().unwrap();
    let (data, run) = (place.path().join("a.jsonl"), place.path().join("run"));
    reviews(&data, ["bad", "good"]);
    let config = parse(&records(&data, 8));
    train(&config, &run, Start::New, (), || false).unwrap();
    let score = || {
        let (config, model) = load(&run)?;
        evaluate(&config, &model, HeldOut::Test, 100)
    };
    let before = score().unwrap().unwrap();

    // Another order of the names would be another number of each.
    reviews(&data, ["bad", "aaa"]);
    let resumed = train(&config, &run, Start::Resume, (), || false).map(|_| ());
    for error in [resumed.unwrap_err(), score().unwrap_err()] {
        let message = error.to_string();
        let label =
            format!("label `aaa` is unknown to the run ({})", run.join("tasks.json").display());
        assert!(message.contains("a.jsonl: line 2: field `target`") && message.contains(&label));
        assert!(message.ends_with("there are bad, good"), "{message}");
    }
    // A name that is no longer there leaves the others' numbers alone.
    reviews(&data, ["good", "good"]);
    let (config, _) = load(&run).unwrap();
    assert_eq!(config.load_data().unwrap().tasks[0].labels, ["bad", "good"]);
    reviews(&data, ["bad", "good"]);
    assert_eq!(score().unwrap().unwrap().evaluation, before.evaluation);
    // The configuration that is written says nothing of it.
    assert!(!config.to_toml().unwrap().contains("tasks.json"));
}

#[test]
fn inherited_weights_keep_the_meaning_of_classes() {
    let place = tempfile::tempdir().unwrap();
    let (data, run) = (place.path().join("a.jsonl"), place.path().join("run"));
    reviews(&data, ["bad", "good"]);
    let config = parse(&records(&data, 8));
    train(&config, &run, Start::New, (), || false).unwrap();
    let next = RunConfig { init_from: Some(run.clone()), ..config };
    let start = |name: &str| train(&next, &place.path().join(name), Start::New, (), || false);
    start("same").unwrap();
    // `aaa` takes the place of `bad`, whose weights are another class's then.
    reviews(&data, ["bad", "aaa"]);
    let error = start("other").unwrap_err().to_string();
    assert!(error.contains("class 0 of task `t` is `bad` there and `aaa` here"), "{error}");
    assert!(error.contains("data.specs") && !place.path().join("other").exists(), "{error}");
}

#[test]
fn settings_that_differ_are_named() {
    let place = tempfile::tempdir().unwrap();
    let (data, run) = (place.path().join("a.jsonl"), place.path().join("run"));
    reviews(&data, ["bad", "good"]);
    train(&parse(&records(&data, 8)), &run, Start::New, (), || false).unwrap();
    let wider = parse(&records(&data, 16));
    let error = train(&wider, &run, Start::Resume, (), || false).unwrap_err().to_string();
    assert!(error.ends_with("differ from the run's: model.width: 8 in the run, 16 now"), "{error}");
}

#[test]
fn a_stray_number_asks_for_no_memory() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("a.csv");
    fs::write(&data, "input,target\n1 2,a\n1 1000000000,b\n").unwrap();
    let text = records(&data, 8).replace("kind = \"class", "tokens = \"integers\", kind = \"class");
    let error = parse(&text).load_data().unwrap_err().to_string();
    let wanted =
        "a.csv: line 3: field `input`: token 1000000000: integer tokens must be below 1048576";
    assert!(error.ends_with(wanted), "{error}");
}

#[test]
fn statistics_of_routing_know_the_tasks_of_texts() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        // No two pieces are equal: which set a piece is in depends on its text.
        let lines = (0..4000).map(|line| format!("{line} {text}"));
        fs::write(&path, lines.collect::<String>()).unwrap();
        path.display().to_string()
    };
    let (a, b) = (write("a.txt", "the cat sat on the mat. "), write("b.txt", "0123 4567 89; "));
    let config = parse(&format!(
        "name = \"texts\"\n[model]\nkind = \"specialformer\"\ntopology = \"decoder\"\n\
         vocabulary = 257\nwidth = 8\nlayers = 1\nheads = 2\nfeed_forward = 8\nwindow = 16\n\
         specialisation = \"moe\"\n[model.moe]\nhidden = 8\nrouter = {{ experts = 4, top_k = 2 }}\n\
         [data]\nkind = \"text\"\nwindow = 16\npiece_bytes = 256\n\
         tasks = [{{ name = \"a\", paths = ['{a}'] }}, {{ name = \"b\", paths = ['{b}'] }}]\n\
         [train]\nsteps = 2\nbatch_size = 8\nlearning_rate = 1e-3\n"
    ));
    let report =
        routing_report(&config, &config.build_model().unwrap(), HeldOut::Test, 32).unwrap();
    let statistics = &report.layers[0].statistics;
    assert_eq!(report.tasks, ["a", "b"]);
    for shares in statistics.task_shares().rows() {
        assert!((shares.sum() - 1.0).abs() < 1e-9, "{shares}");
    }
    assert!(statistics.mutual_information() > 0.0 && report.layers[0].calibration.is_some());
}

#[test]
fn names_are_those_of_folders() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("a.jsonl");
    reviews(&data, ["bad", "good"]);
    for name in ["", ".", "..", "../../x", "/tmp/x", "a/b", "a\\b", "a\nb", "a\u{1b}[2J"] {
        let config = RunConfig { name: name.into(), ..parse(&records(&data, 8)) };
        let run = place.path().join("run");
        let error = train(&config, &run, Start::New, (), || false).unwrap_err().to_string();
        assert!(error.starts_with("name = ") && error.lines().count() == 1, "{error}");
        assert!(error.contains("must be the name of one folder") && !run.exists(), "{error}");
    }
    parse(&records(&data, 8)).check_name().unwrap();
}

#[test]
fn what_is_wrong_with_a_file_names_it_in_words() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run.toml");
    let good = records(&place.path().join("a.jsonl"), 8);
    for (from, to, wanted) in [
        (
            "width = 8",
            "width = -2",
            "invalid value: integer `-2`, expected a whole number from 0 on",
        ),
        (
            "steps = 3",
            "steps = 99999999999999999999",
            "`99999999999999999999`: the number is too large",
        ),
        ("train = [", "train = 1 #", "expected a list"),
        ("layers = 1", "layers = 0", "model.layers = 0: must be positive"),
        (
            "width = 8",
            "width = 64000000",
            "model.width = 64000000: no size can be larger than 16777216",
        ),
        ("steps = 3", "steps = 0", "train: steps = 0: must be at least 1"),
        ("window = 16", "window = 16\ndynamic = { widths = [] }", "unknown field `dynamic`"),
    ] {
        let text = good.replacen(from, to, 1);
        fs::write(&path, text.replace("train = 1 #", "train = 1 }] #")).unwrap();
        let error = RunConfig::load(&path).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::ConfigFile { .. }), "{message}");
        assert!(message.starts_with(&path.display().to_string()), "{message}");
        assert!(message.contains(wanted) && !message.contains("usize"), "{message}");
    }
    fs::write(&path, b"GGUF\xff\xfe").unwrap();
    assert!(RunConfig::load(&path).unwrap_err().to_string().contains("is no text"));
    assert!(RunConfig::load(place.path()).unwrap_err().to_string().contains("is a folder"));
}
