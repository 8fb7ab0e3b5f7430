//! Runs on every kind of data: from a configuration to a trained model, and
//! what is said when model and data do not fit.

use std::fs;
use std::path::Path;

use specialformer::data::load_specs;
use specialformer::training::{EvaluationRecord, HeldOut};
use specialformer::{RunConfig, Start, TASKS_FILE, evaluate, load, train};

fn run(text: &str) -> EvaluationRecord {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("run");
    let config = RunConfig::parse(text, "test.toml").unwrap();
    let trained = train(&config, &folder, Start::New, (), || false).unwrap();
    assert_eq!(trained.summary.step, 3);
    if !matches!(config.data, specialformer::DataConfig::Text(_)) {
        assert!(!load_specs(&folder.join(TASKS_FILE)).unwrap().is_empty());
    }
    let (config, model) = load(&folder).unwrap();
    evaluate(&config, &model, HeldOut::Test, 60).unwrap().expect("there is a test set")
}

const TRAIN: &str = "
    [train]
    steps = 3
    batch_size = 16
    learning_rate = 1e-3
";

fn transformer(vocabulary: usize, window: usize, data: &str) -> String {
    format!(
        "name = \"test\"
        [model]
        kind = \"transformer\"
        vocabulary = {vocabulary}
        width = 16
        layers = 1
        heads = 2
        feed_forward = 32
        window = {window}
        {data}
        {TRAIN}"
    )
}

#[test]
fn one_head_answers_tasks_whose_answers_are_tokens() {
    let data =
        "[data]\nkind = \"multitask\"\ntasks = [\"sort\", \"keyword\"]\nanswers = \"tokens\"";
    run(&transformer(4 + 2 + 10 + 12 + 4, 34, data));
}

#[test]
fn a_specialformer_answers_all_kinds_with_heads_of_their_own() {
    for (layout, window) in [("decoder", 34), ("encoder", 33), ("encoder-decoder", 33)] {
        let text = format!(
            "name = \"test\"
            [model]
            kind = \"specialformer\"
            topology = \"{layout}\"
            vocabulary = 34
            width = 16
            layers = 1
            heads = 2
            feed_forward = 32
            window = {window}
            [[model.tasks]]
            name = \"sort\"
            head = \"language-model\"
            [[model.tasks]]
            name = \"bracket-depth\"
            head = \"labelling\"
            outputs = 7
            [[model.tasks]]
            name = \"keyword\"
            head = \"classification\"
            outputs = 4
            [[model.tasks]]
            name = \"mean\"
            head = \"regression\"
            [data]
            kind = \"multitask\"
            layout = \"{layout}\"
            tasks = [\"sort\", \"bracket-depth\", \"keyword\", \"mean\"]
            {TRAIN}"
        );
        run(&text);
        let fail = |from: &str, to: &str| {
            let text = text.replacen(from, to, 1);
            RunConfig::parse(&text, "test.toml").unwrap_err().to_string()
        };
        assert_eq!(
            fail("outputs = 7", "outputs = 6"),
            "model.tasks.outputs = 6: task bracket-depth of the data needs 7"
        );
        assert_eq!(
            fail("name = \"mean\"", "name = \"median\""),
            "model.tasks.name = median: task 3 of the data is mean"
        );
        assert_eq!(
            fail("head = \"classification\"", "head = \"labelling\""),
            "model.tasks.head = labelling: task keyword of the data needs classification"
        );
        let other = if layout == "encoder" { "decoder" } else { "encoder" };
        assert_eq!(
            fail(&format!("topology = \"{layout}\""), &format!("topology = \"{other}\"")),
            format!("model.topology = {other}: data.layout must be the same")
        );
    }
}

#[test]
fn a_transformer_learns_from_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    let lines: String = (0..2000).map(|i| format!("{i} bottles\n")).collect();
    fs::write(&path, lines).unwrap();
    let data = |path: &Path| {
        let path = path.display();
        format!(
            "[data]\nkind = \"text\"\nwindow = 32\npiece_bytes = 256\n[[data.tasks]]\nname = \"t\"\npaths = ['{path}']"
        )
    };
    run(&transformer(257, 32, &data(&path)));
    let short = RunConfig::parse(&transformer(257, 31, &data(&path)), "test.toml").unwrap_err();
    assert_eq!(short.to_string(), "model.window = 31: data.window = 32 is longer");
}

#[test]
fn a_transformer_learns_from_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    let lines: String = (0..400).map(|i| format!("{} {},{}\n", i % 7, i % 9, i % 7)).collect();
    fs::write(&path, format!("input,target\n{lines}")).unwrap();
    let data = format!(
        "[data]\nkind = \"records\"\n[[data.tasks]]\nname = \"t\"\nkind = \"classification\"\n\
         tokens = \"integers\"\ntrain = ['{}']",
        path.display()
    );
    run(&transformer(4 + 1 + 9, 4, &data));
    // Only the file says how many tokens there are.
    let config = RunConfig::parse(&transformer(4 + 1 + 8, 4, &data), "test.toml").unwrap();
    let message = config.load_data().unwrap_err().to_string();
    assert_eq!(message, "model.vocabulary = 13: the data has 14 tokens");
}

#[test]
fn a_model_with_one_head_is_refused_for_tasks_that_need_more() {
    let parse = |data: &str, vocabulary, window| {
        let data = format!("[data]\nkind = \"multitask\"\n{data}");
        RunConfig::parse(&transformer(vocabulary, window, &data), "t.toml").unwrap_err().to_string()
    };
    assert_eq!(
        parse("tasks = [\"sort\", \"mean\"]", 16, 34),
        "model.kind = transformer: has one head for all tasks, but task mean needs its own; \
         data.answers = \"tokens\" is for classes and labels"
    );
    assert_eq!(
        parse("tasks = [\"sort\"]", 16, 34),
        "model.vocabulary = 16: the data has 15 tokens"
    );
    assert_eq!(
        parse("tasks = [\"sort\"]", 15, 33),
        "model.window = 33: the longest row of the data has 34 tokens"
    );
    assert_eq!(
        parse("tasks = [\"sort\"]\nlayout = \"encoder\"", 15, 34),
        "model.kind = transformer: the model is a decoder: data.layout must be that too"
    );
}
