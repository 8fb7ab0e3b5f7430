//! Training on several tasks, answering their inputs and looking at routing,
//! as a person meets them.

use std::fs;
use std::path::Path;

use crate::common::{refused, specialformer, specialformer_fed, text};
use serde_json::Value;

/// Three tasks of three kinds for a decoder with experts.
const MOE: &str = r#"
name = "tiny"
[model]
kind = "specialformer"
topology = "decoder"
vocabulary = 21
width = 16
layers = 2
heads = 2
feed_forward = 16
window = 40
positions = "rope"
specialisation = "moe"
tasks = [
    { name = "sort" },
    { name = "bracket-depth", head = "labelling", outputs = 7 },
    { name = "mean", head = "regression" },
]
[model.moe]
hidden = 8
router = { experts = 4, top_k = 2, balance = { load_balance = 0.01 } }
[data]
kind = "multitask"
tasks = ["sort", "bracket-depth", "mean"]
examples = 200
[train]
steps = 12
batch_size = 16
learning_rate = 5e-3
eval_every = 6
eval_size = 48
test_size = 48
log_every = 3
[train.multi_task]
average = "task"
"#;

fn dense() -> String {
    let start = MOE.find("[model.moe]").unwrap();
    let end = MOE.find("[data]").unwrap();
    let text = format!("{}{}", &MOE[..start], &MOE[end..]);
    text.replace("specialisation = \"moe\"", "specialisation = \"none\"")
}

fn json(at: &Path, arguments: &[&str]) -> Value {
    let output = specialformer(at, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder with a trained run.
fn trained(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.toml"), config).unwrap();
    let output = specialformer(folder.path(), &["train", "run.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    folder
}

#[test]
fn a_mixture_of_experts_trains_evaluates_and_shows_its_routing() {
    let folder = trained(MOE);
    let at = folder.path();
    let result: Value =
        serde_json::from_str(&fs::read_to_string(at.join("runs/tiny/result.json")).unwrap())
            .unwrap();
    assert!(result["active_parameters"].as_u64() < result["parameters"].as_u64());

    let evaluated = json(at, &["eval", "runs/tiny", "--size", "48", "--json"]);
    let tasks = &evaluated["evaluation"]["tasks"];
    assert!(
        tasks["sort"]["accuracy"].is_number() && tasks["bracket-depth"]["accuracy"].is_number()
    );
    assert!(tasks["mean"]["r_squared"].is_number());
    let error = evaluated["calibration"]["expected_calibration_error"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&error));
    let printed = specialformer(at, &["eval", "runs/tiny", "--size", "48"]);
    let printed = text(&printed.stdout);
    for part in ["bracket-depth", "R²", "calibration error"] {
        assert!(printed.contains(part), "{printed}");
    }
    let shifted = json(at, &["eval", "runs/tiny", "--shifted", "--size", "48", "--json"]);
    assert_eq!(shifted["shifted"], true);
    assert_ne!(shifted["evaluation"]["loss"], evaluated["evaluation"]["loss"]);

    let routing = json(at, &["route", "stats", "runs/tiny", "--size", "48", "--json"]);
    assert_eq!(routing["tasks"], serde_json::json!(["sort", "bracket-depth", "mean"]));
    assert_eq!(routing["layers"].as_array().unwrap().len(), 2);
    for layer in routing["layers"].as_array().unwrap() {
        let load: Vec<u64> = serde_json::from_value(layer["load"].clone()).unwrap();
        let tokens = layer["tokens"].as_u64().unwrap();
        assert_eq!((load.len(), load.iter().sum::<u64>()), (4, 2 * tokens));
        assert_eq!(layer["drop_share"], 0.0);
        assert_eq!(layer["task_shares"].as_array().unwrap().len(), 3);
    }
    // Only looking at a run changes nothing in it.
    let report = || fs::read_to_string(at.join("runs/tiny/report.html")).unwrap();
    assert!(!report().contains("validation data"));
    let stats = ["route", "stats", "runs/tiny", "--set", "validation", "--size", "48", "--report"];
    let validation = specialformer(at, &stats);
    let printed = text(&validation.stdout);
    assert!(printed.contains("validation data") && printed.contains("blocks.1"), "{printed}");
    let report = report();
    for part in ["id=\"routing\"", "id=\"tasks\"", "heat-table", "validation data"] {
        assert!(report.contains(part), "{part}");
    }
}

#[test]
fn inputs_of_every_kind_are_answered() {
    let folder = trained(MOE);
    let at = folder.path();
    fs::write(at.join("in.txt"), "3 1 2\n40965\n").unwrap();
    fs::write(at.join("in.jsonl"), "{\"input\": \"3 1 2\"}\n[4, 0, \"9\", 6, 5]\n\"312\"\n")
        .unwrap();

    let plain = specialformer(at, &["predict", "runs/tiny", "--task", "sort", "in.txt", "--json"]);
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    let plain = lines(&plain.stdout);
    assert_eq!(plain.len(), 2);
    assert_eq!((&plain[1]["line"], &plain[1]["kind"]), (&2.into(), &"sequence".into()));
    assert!(plain[0]["symbols"].as_array().unwrap().len() <= 12);
    let records = ["predict", "runs/tiny", "--task", "sort", "in.jsonl", "--json"];
    let records = lines(&specialformer(at, &records).stdout);
    assert_eq!(records.len(), 3);
    for (record, same) in [(0, 0), (1, 1), (2, 0)] {
        assert_eq!(records[record]["text"], plain[same]["text"]);
        assert_eq!(records[record]["probability"], plain[same]["probability"]);
    }

    let labels = ["predict", "runs/tiny", "--task", "bracket-depth", "-", "--json"];
    let symbols = specs(at, 1)["symbols"][0].as_str().unwrap().repeat(5);
    let labels = lines(&specialformer_fed(at, &labels, &symbols).stdout);
    assert_eq!(labels[0]["labels"].as_array().unwrap().len(), 5);
    let value = ["predict", "runs/tiny", "--task", "mean", "-", "--json"];
    let value = lines(&specialformer_fed(at, &value, "1 2 3").stdout);
    assert!(value[0]["value"].is_number());
    let table = specialformer(at, &["predict", "runs/tiny", "--task", "sort", "in.txt"]);
    assert!(text(&table.stdout).starts_with("input"), "{}", text(&table.stdout));
}

/// What a run says of one of its tasks.
fn specs(at: &Path, task: usize) -> Value {
    let text = fs::read_to_string(at.join("runs/tiny/tasks.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tasks"][task].clone()
}

#[test]
fn wrong_inputs_are_named() {
    let folder = trained(MOE);
    let at = folder.path();
    let write = |name: &str, content: &str| fs::write(at.join(name), content).unwrap();
    let predict =
        |task: &str, file: &str| refused(at, &["predict", "runs/tiny", "--task", task, file]);
    write("ok.txt", "1 2\n");
    let said = predict("sorting", "ok.txt");
    assert!(said.contains("sorting") && said.contains("sort, bracket-depth, mean"), "{said}");
    assert!(predict("sort", "absent.txt").contains("absent.txt"));
    write("empty.txt", "");
    assert!(predict("sort", "empty.txt").contains("empty.txt: holds no input"));
    write("bad.txt", "1 2\n3 x 4\n");
    let said = predict("sort", "bad.txt");
    assert!(said.contains("bad.txt: line 2:") && said.contains("token `x`"), "{said}");
    // Blank lines are passed over, and counted.
    write("blank.txt", "1 2\n\n3 x\n");
    assert!(predict("sort", "blank.txt").contains("line 3"));
    write("blank.txt", "1 2\n\n3\n");
    let output =
        specialformer(at, &["predict", "runs/tiny", "--task", "sort", "blank.txt", "--json"]);
    let lines = text(&output.stdout);
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(lines.map(|line| line["line"].clone()).collect::<Vec<_>>(), [1, 3]);
    write("long.txt", &"1 ".repeat(60));
    let said = predict("sort", "long.txt");
    assert!(said.contains("line 1") && said.contains("the model takes 40"), "{said}");
    for (content, wanted) in [
        ("{\"input\": [1]}\n{\"inputs\": [1]}\n", "line 2: there is no field `input`"),
        ("{", "line 1: not JSON"),
        ("[[1]]", "line 1: expected a symbol"),
        ("7", "line 1: expected a text"),
        ("[11]", "token `11`"),
    ] {
        write("bad.jsonl", content);
        let said = predict("sort", "bad.jsonl");
        assert!(said.contains(wanted), "{said}");
    }
    assert!(refused(at, &["predict", "absent", "--task", "sort", "ok.txt"]).contains("absent"));
    assert!(refused(at, &["route", "stats", "absent"]).contains("absent"));
    assert!(refused(at, &["route", "stats", "runs/tiny", "--size", "0"]).contains("--size = 0"));
}

#[test]
fn a_dense_run_has_no_routing_but_teaches_and_starts_others() {
    let folder = trained(&dense());
    let at = folder.path();
    let said = refused(at, &["route", "stats", "runs/tiny"]);
    assert!(said.contains("no experts"), "{said}");
    let report = fs::read_to_string(at.join("runs/tiny/report.html")).unwrap();
    assert!(!report.contains("id=\"routing\"") && report.contains("id=\"tasks\""));

    // From its weights, on the shifted tasks.
    let adapt = dense()
        .replace("name = \"tiny\"", "name = \"adapted\"")
        .replace("examples = 200", "examples = 20\ndomain = \"shifted\"")
        .replace("learning_rate = 5e-3", "learning_rate = 1e-12");
    fs::write(at.join("adapt.toml"), &adapt).unwrap();
    let adapted =
        json(at, &["train", "adapt.toml", "--init-from", "runs/tiny", "--quiet", "--json"]);
    let shifted = json(at, &["eval", "runs/tiny", "--shifted", "--size", "48", "--json"]);
    let (a, b) = (&adapted["test"]["loss"], &shifted["evaluation"]["loss"]);
    let distance = a.as_f64().unwrap() - b.as_f64().unwrap();
    assert!(distance.abs() < 1e-5, "{a} {b}");
    let config = fs::read_to_string(at.join("runs/adapted/config.toml")).unwrap();
    assert!(config.contains("init_from = \"runs/tiny\""), "{config}");

    // Killed before its first checkpoint, it begins anew from the same weights.
    fs::create_dir(at.join("runs/again")).unwrap();
    fs::write(at.join("runs/again/.lock"), "").unwrap();
    fs::copy(at.join("runs/adapted/config.toml"), at.join("runs/again/config.toml")).unwrap();
    let again = ["train", "adapt.toml", "--resume", "--quiet", "--json", "--out", "runs/again"];
    json(at, &again);
    let model = |run: &str| fs::read(at.join(run).join("model.safetensors")).unwrap();
    assert!(model("runs/again") == model("runs/adapted"));
    // Without its checkpoints, a run that ended is left alone.
    fs::remove_dir_all(at.join("runs/again/checkpoints")).unwrap();
    let said = refused(at, &again);
    assert!(said.contains("runs/again: its checkpoints are gone"), "{said}");
    assert!(model("runs/again") == model("runs/adapted"));
    // The configuration of a start that failed does not stay.
    fs::create_dir(at.join("runs/stale")).unwrap();
    fs::write(at.join("runs/stale/.lock"), "").unwrap();
    let stale = config.replace("steps = 12", "steps = 99");
    assert_ne!(stale, config);
    fs::write(at.join("runs/stale/config.toml"), stale).unwrap();
    json(at, &["train", "adapt.toml", "--resume", "--quiet", "--json", "--out", "runs/stale"]);
    assert_eq!(fs::read_to_string(at.join("runs/stale/config.toml")).unwrap(), config);
    // That of somebody else does.
    fs::create_dir(at.join("runs/mine")).unwrap();
    let mine = format!("# mine\n{config}");
    fs::write(at.join("runs/mine/config.toml"), &mine).unwrap();
    let said = refused(at, &["train", "adapt.toml", "--resume", "--quiet", "--out", "runs/mine"]);
    assert!(said.contains("runs/mine: no run to resume here"), "{said}");
    assert_eq!(fs::read_to_string(at.join("runs/mine/config.toml")).unwrap(), mine);
    // Killed even before the configuration was written, it has one in the end.
    fs::create_dir(at.join("runs/bare")).unwrap();
    json(at, &["train", "adapt.toml", "--resume", "--quiet", "--json", "--out", "runs/bare"]);
    assert!(at.join("runs/bare/config.toml").is_file());

    // Weights that do not fit.
    fs::write(at.join("moe.toml"), MOE.replace("\"tiny\"", "\"moe\"")).unwrap();
    let said = refused(at, &["train", "moe.toml", "--init-from", "runs/tiny"]);
    assert!(said.contains("moe") && said.contains("experts"), "{said}");
    assert!(!at.join("runs/moe").exists());
    assert!(refused(at, &["train", "moe.toml", "--init-from", "absent"]).contains("absent"));

    // As a teacher.
    let pupil = |teacher: &str, section: &str| {
        let text = MOE.replace("name = \"tiny\"", &format!("name = \"pupil\"\n{teacher}"));
        fs::write(at.join("pupil.toml"), text + section).unwrap();
    };
    let distillation = "\n[train.multi_task.distillation]\nweight = 0.5\n";
    pupil("teacher = \"runs/tiny\"", distillation);
    let output = specialformer(at, &["train", "pupil.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metrics = fs::read_to_string(at.join("runs/pupil/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"distillation\":") && metrics.contains("router_entropy"));
    assert!(specialformer(at, &["eval", "runs/pupil", "--size", "48"]).status.success());
    pupil("", distillation);
    assert!(refused(at, &["train", "pupil.toml"]).contains("needs a teacher"));
    pupil("teacher = \"runs/tiny\"", "");
    assert!(refused(at, &["train", "pupil.toml"]).contains("[train.multi_task.distillation]"));
    pupil("teacher = \"runs/none\"", distillation);
    assert!(refused(at, &["train", "pupil.toml", "--out", "x"]).contains("runs/none"));
    assert!(!at.join("x").exists());
}

#[test]
fn records_and_text_are_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let rows: Vec<String> = (0..120)
        .map(|i| {
            let word = ["good", "fine", "bad", "poor"][i % 4];
            let label = if i % 4 < 2 { "yes" } else { "no" };
            format!("{{\"input\": \"{word} {i}\", \"target\": \"{label}\"}}\n")
        })
        .collect();
    fs::write(at.join("rows.jsonl"), rows.concat()).unwrap();
    let config = r#"
name = "tiny"
[model]
kind = "specialformer"
topology = "encoder"
vocabulary = 261
width = 8
layers = 1
heads = 2
feed_forward = 8
window = 16
tasks = [{ name = "praise", head = "classification", outputs = 2 }]
[data]
kind = "records"
layout = "encoder"
tasks = [{ name = "praise", kind = "classification", train = ["rows.jsonl"] }]
[train]
steps = 4
batch_size = 8
learning_rate = 5e-3
"#;
    fs::write(at.join("run.toml"), config).unwrap();
    let output = specialformer(at, &["train", "run.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output =
        specialformer_fed(at, &["predict", "runs/tiny", "--task", "praise", "-", "--json"], "good");
    let answer = &lines(&output.stdout)[0];
    assert!(answer["label"] == "yes" || answer["label"] == "no", "{answer}");
    let sum: f64 =
        answer["probabilities"].as_array().unwrap().iter().filter_map(Value::as_f64).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let said = refused(at, &["eval", "runs/tiny", "--shifted"]);
    assert!(said.contains("held-out domain"), "{said}");

    fs::write(at.join("a.txt"), "the cat sat on the mat. ".repeat(200)).unwrap();
    let config = r#"
name = "words"
[model]
kind = "specialformer"
topology = "decoder"
vocabulary = VOCABULARY
width = 8
layers = 1
heads = 2
feed_forward = 8
window = 16
dynamic = { widths = [1.0, 0.5] }
[data]
kind = "text"
window = 16
tasks = [{ name = "a", paths = ["a.txt"] }]
[train]
steps = 4
batch_size = 8
learning_rate = 5e-3
"#;
    // The data says how many tokens there are.
    fs::write(at.join("text.toml"), config.replace("VOCABULARY", "7")).unwrap();
    let said = refused(at, &["train", "text.toml"]);
    let tokens = said.split("the data has ").nth(1).and_then(|rest| rest.split(' ').next());
    let tokens = tokens.unwrap_or_else(|| panic!("{said}"));
    fs::write(at.join("text.toml"), config.replace("VOCABULARY", tokens)).unwrap();
    let output = specialformer(at, &["train", "text.toml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = refused(at, &["predict", "runs/words", "--task", "a", "rows.jsonl"]);
    assert!(said.contains("not made of inputs and answers"), "{said}");
    let narrow = ["generate", "runs/words", "--prompt", "the", "--max-tokens", "3", "--width"];
    let output = specialformer(at, &[&narrow[..], &["0.5", "--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = refused(at, &[&narrow[..], &["0.3"]].concat());
    assert!(said.contains("the model is trained at [1.0, 0.5]"), "{said}");
}

/// A later version of a trace, of conditions or of the tasks is called that.
#[test]
fn later_versions_of_what_a_run_gives_are_refused_as_such() {
    let folder = trained(MOE);
    let at = folder.path();
    let trace = ["route", "trace", "runs/tiny", "--size", "64", "--out", "trace"];
    let fit = ["route", "condition", "fit", "runs/tiny", "--trace", "trace", "--out", "c.json"];
    let again = [&fit[..], &["--force"]].concat();
    let eval = ["route", "condition", "eval", "runs/tiny", "--condition", "c.json", "--size", "8"];
    fs::write(at.join("in.txt"), "3 1 2\n").unwrap();
    let predict = ["predict", "runs/tiny", "--task", "sort", "in.txt"];
    for command in [&trace[..], &fit, &predict] {
        let output = specialformer(at, command);
        assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    }
    // Nothing is written over unasked, and nothing strange put into a trace.
    for (jsonl, wanted) in [
        ("in.txt", "in.txt: is there already; --force writes over it"),
        ("trace/t.jsonl", "is in the folder of the trace"),
    ] {
        let said = refused(at, &[&trace[..], &["--jsonl", jsonl]].concat());
        assert!(said.contains(wanted), "{said}");
    }
    let prompts = ["route", "trace", "runs/tiny", "--prompts", "in.txt", "--out", "trace"];
    let said = refused(at, &[&prompts[..], &["--jsonl", "./in.txt", "--force"]].concat());
    assert!(said.contains("in.txt: holds the prompts"), "{said}");
    let output = specialformer(at, &[&trace[..], &["--jsonl", "new/t.jsonl"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(at.join("new/t.jsonl").is_file());
    let said = refused(at, &fit);
    assert!(said.contains("c.json: is there already; --force writes over it"), "{said}");
    assert!(specialformer(at, &again).status.success());
    // What was fitted to the test set is not scored on it.
    let said = refused(at, &eval);
    assert!(said.contains("was fitted to the test set"), "{said}");
    assert!(said.contains("--set validation") && said.contains("--prompts"), "{said}");
    for (path, command) in
        [("trace/trace.json", &again[..]), ("c.json", &eval), ("runs/tiny/tasks.json", &predict)]
    {
        let good = fs::read_to_string(at.join(path)).unwrap();
        let later =
            good.replacen("\"format_version\": 1,", "\"format_version\": 2, \"new\": 3,", 1);
        assert_ne!(good, later, "{path}");
        fs::write(at.join(path), later).unwrap();
        let said = refused(at, command);
        assert!(said.contains("written in format version 2, this build reads"), "{path}: {said}");
        fs::write(at.join(path), good).unwrap();
    }
    // A list of tasks without a version is what earlier runs have.
    let path = at.join("runs/tiny/tasks.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(&path, file["tasks"].to_string()).unwrap();
    assert!(specialformer(at, &predict).status.success());
}
