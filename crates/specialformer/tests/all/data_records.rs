//! JSONL and CSV files: what is read, how it is split, labels, and errors with
//! file, line and field.

use std::fs;
use std::path::{Path, PathBuf};

use specialformer::data::{
    Example, ExampleTarget, Format, Layout, RecordTask, RecordsConfig, Sharing, TaskDataset,
    TaskKind, TokenKind, TooLong, load_specs,
};
use specialformer::iarc_data::Split;
use specialformer::training::{Batch, Dataset, HeldOut};

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn task(name: &str, kind: TaskKind, path: &Path) -> RecordTask {
    RecordTask {
        name: name.into(),
        kind,
        train: vec![path.into()],
        validation: Vec::new(),
        test: Vec::new(),
        input: "input".into(),
        target: "target".into(),
        tokens: TokenKind::Bytes,
        symbols: None,
        labels: Vec::new(),
        max_input: None,
        too_long: TooLong::Error,
    }
}

fn integers(name: &str, kind: TaskKind, path: &Path) -> RecordTask {
    RecordTask { tokens: TokenKind::Integers, ..task(name, kind, path) }
}

fn config(tasks: Vec<RecordTask>) -> RecordsConfig {
    RecordsConfig {
        layout: Layout::Decoder,
        vocabulary: Sharing::Shared,
        task_token: true,
        answers: Default::default(),
        task_field: None,
        examples: None,
        share: 1.0,
        specs: None,
        sampling: Default::default(),
        tasks,
    }
}

fn training(data: &TaskDataset, task: usize) -> Vec<Example> {
    (0..).map_while(|i| data.training_example(task, i).ok()).collect()
}

fn message(config: &RecordsConfig) -> String {
    config.dataset(1).unwrap_err().to_string()
}

/// Two hundred lines of a classification task.
fn reviews() -> String {
    (0..200)
        .map(|i| {
            format!("{{\"input\": \"text {i}\", \"target\": \"{}\"}}\n", ["pos", "neg"][i % 2])
        })
        .collect()
}

#[test]
fn every_kind_is_read_from_json_and_from_csv() {
    let files = Files::new();
    let cases = [
        (
            TaskKind::Sequence,
            "{\"input\": [3, 1], \"target\": [1, 3]}\n",
            "input,target\n3 1,1 3\n",
            ExampleTarget::Sequence(vec![1, 3]),
        ),
        (
            TaskKind::Labelling,
            "{\"input\": [3, 1], \"target\": [\"odd\", \"low\"]}\n",
            "target,input\nodd low,3 1\n",
            ExampleTarget::Labels(vec![1, 0]),
        ),
        (
            TaskKind::Classification,
            "{\"input\": [3, 1], \"target\": 12}\n",
            "input,target\n3 1,12\n",
            ExampleTarget::Class(0),
        ),
        (
            TaskKind::Regression,
            "{\"input\": [3, 1], \"target\": -0.5}\n",
            "input,target\n3 1,-0.5\n",
            ExampleTarget::Value(-0.5),
        ),
    ];
    for (kind, json, csv, target) in cases {
        let expected = Example { input: vec![3, 1], target };
        let tsv = csv.replace(',', "\t");
        for (name, text) in [("a.jsonl", json), ("a.csv", csv), ("a.tsv", tsv.as_str())] {
            let path = files.write(name, text);
            let other = files.write("b.jsonl", &json.replace("[3, 1], \"t", "[3, 1, 0], \"t"));
            let mut task = integers("t", kind, &path);
            // With files of their own, nothing else is held out by its hash.
            if kind == TaskKind::Labelling {
                fs::write(&other, "{\"input\": [0], \"target\": [\"low\"]}\n").unwrap();
            }
            (task.validation, task.test) = (vec![other.clone()], vec![other]);
            let data = config(vec![task]).dataset(1).unwrap();
            assert_eq!(training(&data, 0), std::slice::from_ref(&expected), "{kind:?} {name}");
        }
    }
}

#[test]
fn bytes_are_tokens_and_labels_are_sorted() {
    let files = Files::new();
    let path = files.write("reviews.jsonl", &reviews());
    let data = config(vec![task("reviews", TaskKind::Classification, &path)]).dataset(1).unwrap();
    assert_eq!(data.tasks()[0].labels, ["neg", "pos"]);
    assert_eq!(data.vocabulary().size(), 4 + 1 + 256);
    for example in training(&data, 0) {
        let text: Vec<u8> = example.input.iter().map(|&b| b as u8).collect();
        let number: u32 = std::str::from_utf8(&text[5..]).unwrap().parse().unwrap();
        assert_eq!(example.target, ExampleTarget::Class(1 - number % 2));
        assert_eq!(Split::of(&example.input), Split::Train);
    }
    // Integer labels are sorted as numbers.
    let path = files.write("n.csv", "input,target\na,10\nb,9\nc,-1\nd,10\ne,9\nf,-1\ng,9\n");
    let data = config(vec![task("n", TaskKind::Classification, &path)]).dataset(1).unwrap();
    assert_eq!(data.tasks()[0].labels, ["-1", "9", "10"]);
}

#[test]
fn every_record_is_in_one_split() {
    let files = Files::new();
    let path = files.write("reviews.jsonl", &reviews());
    let mut data =
        config(vec![task("reviews", TaskKind::Classification, &path)]).dataset(1).unwrap();
    let train = training(&data, 0).len();
    let rows = |set| data.held_out(set, 1000).unwrap().map_or(0, |batch| batch.rows());
    let (validation, test) = (rows(HeldOut::Validation), rows(HeldOut::Test));
    assert_eq!(train + validation + test, 200);
    assert!(validation > 3 && test > 3);
    // One answer a row: one target a row.
    let mut batch = Batch::default();
    data.next_batch(4, &mut batch).unwrap();
    assert_eq!(batch.positions(), 1);
    // A pass shows each example once.
    let mut shown = std::collections::HashSet::new();
    let cursor = vec![1, 0, 0];
    data.seek(&cursor).unwrap();
    for _ in 0..train {
        data.next_batch(1, &mut batch).unwrap();
        assert!(shown.insert(batch.all().tokens().to_vec()));
    }
    data.next_batch(1, &mut batch).unwrap();
    assert!(!shown.insert(batch.all().tokens().to_vec()));
}

#[test]
fn what_a_test_file_holds_is_not_trained_on() {
    let files = Files::new();
    let path = files.write("train.jsonl", &reviews());
    let test: String = reviews().lines().take(20).map(|line| format!("{line}\n")).collect();
    let test = files.write("test.jsonl", &test);
    let mut task = task("reviews", TaskKind::Classification, &path);
    task.test = vec![test.clone()];
    task.validation = vec![test];
    let data = config(vec![task]).dataset(1).unwrap();
    assert_eq!(training(&data, 0).len(), 180);
    assert_eq!(data.held_out(HeldOut::Test, 1000).unwrap().unwrap().rows(), 20);
}

#[test]
fn a_task_field_sorts_the_records_of_one_file() {
    let files = Files::new();
    let mut text = "task,input,target\n".to_string();
    for i in 0..60 {
        text += &format!(
            "{},{i} {i},{}\n",
            ["copy", "size"][i % 2],
            if i % 2 == 0 { format!("{i} {i}") } else { i.to_string() }
        );
    }
    let path = files.write("mixed.csv", &text);
    let tasks = vec![
        integers("copy", TaskKind::Sequence, &path),
        integers("size", TaskKind::Regression, &path),
    ];
    let mut config = RecordsConfig { task_field: Some("task".into()), ..config(tasks) };
    let data = config.dataset(1).unwrap();
    for example in training(&data, 0) {
        assert_eq!(example.target, ExampleTarget::Sequence(example.input.clone()));
    }
    for example in training(&data, 1) {
        assert_eq!(example.target, ExampleTarget::Value(example.input[0] as f32));
    }
    config.tasks.remove(1);
    let expected = "line 3: field `task`: unknown task `size`; there are copy";
    assert_eq!(message(&config), format!("{}: {expected}", path.display()));
}

#[test]
fn labels_keep_their_numbers_in_a_file() {
    let files = Files::new();
    let path = files.write("reviews.jsonl", &reviews());
    let specs = files.0.path().join("specs.json");
    let config = RecordsConfig {
        specs: Some(specs.clone()),
        ..config(vec![task("reviews", TaskKind::Classification, &path)])
    };
    let made = config.dataset(1).unwrap();
    assert_eq!(load_specs(&specs).unwrap(), made.tasks());
    // With fewer labels in the data, the numbers stay.
    files.write("reviews.jsonl", &reviews().replace("\"neg\"", "\"pos\""));
    let data = config.dataset(1).unwrap();
    assert_eq!(data.tasks()[0].labels, ["neg", "pos"]);
    assert!(training(&data, 0).iter().all(|e| e.target == ExampleTarget::Class(1)));
    files.write("reviews.jsonl", &reviews().replace("\"neg\"", "\"meh\""));
    let expected = "line 2: field `target`: label `meh` is unknown; there are neg, pos";
    assert_eq!(message(&config), format!("{}: {expected}", path.display()));
    let mut other = config.clone();
    other.tasks[0].kind = TaskKind::Regression;
    let expected = "task reviews is classification there, and regression in the configuration";
    assert_eq!(message(&other), format!("{}: {expected}", specs.display()));
}

#[test]
fn long_records_are_refused_skipped_or_cut() {
    let files = Files::new();
    let path =
        files.write("a.jsonl", "{\"input\": [1, 2, 3], \"target\": [\"x\", \"y\", \"x\"]}\n{\"input\": [1], \"target\": [\"y\"]}\n");
    let with = |too_long| {
        let mut task = integers("a", TaskKind::Labelling, &path);
        (task.max_input, task.too_long) = (Some(2), too_long);
        (task.validation, task.test) = (vec![path.clone()], vec![path.clone()]);
        task.train = vec![files.write("b.jsonl", "{\"input\": [4, 2, 3], \"target\": [\"x\", \"y\", \"x\"]}\n{\"input\": [4], \"target\": [\"y\"]}\n")];
        config(vec![task])
    };
    let expected = "line 1: field `input`: 3 tokens, but data.max_input = 2";
    let path = files.0.path().join("b.jsonl");
    assert_eq!(message(&with(TooLong::Error)), format!("{}: {expected}", path.display()));
    let examples = |too_long| training(&with(too_long).dataset(1).unwrap(), 0);
    let short = Example { input: vec![4], target: ExampleTarget::Labels(vec![1]) };
    let cut = Example { input: vec![4, 2], target: ExampleTarget::Labels(vec![0, 1]) };
    assert_eq!(examples(TooLong::Truncate), [cut, short.clone()]);
    let skipped = examples(TooLong::Skip);
    assert_eq!(skipped[0].input, [4]);
    assert_eq!(skipped.len(), 1);
}

#[test]
fn fewer_examples_are_a_part_of_more() {
    let files = Files::new();
    let path = files.write("reviews.jsonl", &reviews());
    let inputs = |share, examples| -> std::collections::HashSet<Vec<u32>> {
        let task = task("reviews", TaskKind::Classification, &path);
        let config = RecordsConfig { share, examples, ..config(vec![task]) };
        training(&config.dataset(1).unwrap(), 0).into_iter().map(|e| e.input).collect()
    };
    let all = inputs(1.0, None);
    let (tenth, third, few) = (inputs(0.1, None), inputs(0.3, None), inputs(1.0, Some(5)));
    assert_eq!(tenth.len(), (all.len() as f64 * 0.1).round() as usize);
    assert_eq!(few.len(), 5);
    assert!(few.is_subset(&tenth) && tenth.is_subset(&third) && third.is_subset(&all));
}

#[test]
fn lines_that_are_wrong_are_named_with_their_field() {
    use TaskKind::{Classification, Labelling, Regression, Sequence};
    let files = Files::new();
    let good = "{\"input\": [1], \"target\": 1}\n";
    let cases: &[(&str, TaskKind, String, &str)] = &[
        (
            "a.jsonl",
            Regression,
            format!("{good}\n{{\"input\": [1]"),
            "line 3: not JSON: EOF while parsing an object (column 13)",
        ),
        ("a.jsonl", Regression, format!("{good}[1]\n"), "line 2: not a JSON object"),
        (
            "a.jsonl",
            Regression,
            format!("{good}{{\"input\": [2]}}\n"),
            "line 2: field `target`: is missing; there are input",
        ),
        (
            "a.jsonl",
            Regression,
            format!("{good}{{\"input\": [2], \"target\": \"x\"}}\n"),
            "line 2: field `target`: expected a finite number, found \"x\"",
        ),
        (
            "a.jsonl",
            Regression,
            "{\"input\": [-2], \"target\": 1}\n".into(),
            "line 1: field `input`: expected tokens that are integers below 2^32, found -2",
        ),
        (
            "a.jsonl",
            Regression,
            "{\"input\": \"2\", \"target\": 1}\n".into(),
            "line 1: field `input`: expected a list of integers, found \"2\"",
        ),
        (
            "a.jsonl",
            Regression,
            "{\"input\": [], \"target\": 1}\n".into(),
            "line 1: field `input`: is empty",
        ),
        (
            "a.jsonl",
            Classification,
            "{\"input\": [1], \"target\": 1.5}\n".into(),
            "line 1: field `target`: expected a label, found 1.5",
        ),
        (
            "a.jsonl",
            Labelling,
            "{\"input\": [1], \"target\": [1, 2]}\n".into(),
            "line 1: field `target`: 2 labels for 1 tokens",
        ),
        (
            "a.jsonl",
            Labelling,
            "{\"input\": [1], \"target\": 1}\n".into(),
            "line 1: field `target`: expected a list of labels, found 1",
        ),
        (
            "a.jsonl",
            Sequence,
            "{\"input\": [1], \"target\": []}\n".into(),
            "line 1: field `target`: is empty",
        ),
        (
            "a.csv",
            Regression,
            "input,target\n1,2\n1,2,3\n".into(),
            "line 3: 3 columns, but the first line names 2",
        ),
        (
            "a.csv",
            Regression,
            "input,goal\n1,2\n".into(),
            "line 2: field `target`: is missing; there are input, goal",
        ),
        (
            "a.csv",
            Regression,
            "input,target\n1,nan\n".into(),
            "line 2: field `target`: expected a finite number, found \"nan\"",
        ),
        (
            "a.csv",
            Sequence,
            "input,target\n1,x\n".into(),
            "line 2: field `target`: expected tokens that are integers below 2^32, found \"x\"",
        ),
        ("a.csv", Regression, "input,target\n".into(), "has no records"),
        ("a.jsonl", Regression, String::new(), "has no records"),
        (
            "a.txt",
            Regression,
            String::new(),
            "unknown kind of file: the name must end in .jsonl, .ndjson, .csv or .tsv",
        ),
    ];
    for (name, kind, text, expected) in cases {
        let path = files.write(name, text);
        let config = config(vec![integers("t", *kind, &path)]);
        assert_eq!(message(&config), format!("{}: {expected}", path.display()));
    }
    let path = files.write("a.jsonl", "{\"input\": [7], \"target\": 1}\n");
    let few = RecordTask { symbols: Some(7), ..integers("t", Regression, &path) };
    let expected = "line 1: field `input`: token 7, but there are 7 symbols";
    assert_eq!(message(&config(vec![few])), format!("{}: {expected}", path.display()));
    let missing = files.0.path().join("missing.csv");
    let text = message(&config(vec![task("t", Regression, &missing)]));
    assert!(text.starts_with(&format!("{}: ", missing.display())), "{text}");
}

#[test]
fn bad_settings_are_named() {
    let path = Path::new("x.csv");
    let one = || task("a", TaskKind::Regression, path);
    let with = |change: &dyn Fn(&mut RecordsConfig)| {
        let mut config = config(vec![one()]);
        change(&mut config);
        message(&config)
    };
    for (message, expected) in [
        (with(&|c| c.tasks.clear()), "data.tasks = []: there must be at least one"),
        (with(&|c| c.tasks.push(one())), "data.tasks = a: named twice"),
        (with(&|c| c.tasks[0].train.clear()), "data.tasks = a: has no files to train on"),
        (with(&|c| c.tasks[0].max_input = Some(0)), "data.max_input = 0: must be positive"),
        (with(&|c| c.tasks[0].symbols = Some(0)), "data.symbols = 0: must be positive"),
        (with(&|c| c.examples = Some(0)), "data.examples = 0: must be positive"),
        (with(&|c| c.share = 2.0), "data.share = 2: must be in (0, 1]"),
        (
            with(&|c| c.tasks[0].labels.push("x".into())),
            "data.tasks = a: has labels, but its kind is regression",
        ),
    ] {
        assert_eq!(message, expected);
    }
    // An answer longer than its input cannot stand at the input's positions.
    let files = Files::new();
    let path = files.write("a.csv", "input,target\n1,2 3\n1 2,2\n4,1 1\n");
    let encoder = RecordsConfig {
        layout: Layout::Encoder,
        ..config(vec![integers("a", TaskKind::Sequence, &path)])
    };
    assert_eq!(
        message(&encoder),
        "data.tasks = a: its answers may be longer than their inputs, which an encoder cannot give"
    );
    assert_eq!(
        encoder.format(),
        Format { layout: Layout::Encoder, task_token: true, ..Format::default() }
    );
}
