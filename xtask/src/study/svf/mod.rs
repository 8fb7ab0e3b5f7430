//! The study of singular-value fine-tuning on a published chat model: accuracy
//! and cost beside LoRA, few examples, forgetting, rewards, and adaptation.

mod table;

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use specialformer::adaptation::CLASSIFIER_FILE;
use specialformer_checkpoint::atomic_write;

use super::process::Binary;
use super::queue::{Experiment, Record, Run};
use crate::shell::{Result, output, program, root};

/// Tasks of the first table.
pub(super) const TASKS: [&str; 6] =
    ["json-field", "larger-number", "second-word", "two-digit-sum", "sentiment", "last-letter"];

/// Tasks that no expert is trained for.
pub(super) const UNSEEN: [&str; 2] = ["email-domain", "initials"];

/// Ways of training: name, and what the command is told.
pub(super) const METHODS: [(&str, &[&str]); 3] = [
    ("svf", &["--method", "svf"]),
    ("lora-r4", &["--method", "lora", "--rank", "4"]),
    ("lora-r16", &["--method", "lora", "--rank", "16"]),
];

/// Ways of choosing experts.
pub(super) const STRATEGIES: [&str; 4] = ["prompt", "classifier", "classifier-expert", "mixture"];

/// What one command is given.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// A text that the model was not trained on, for its perplexity.
const TEXT: &str = "ARCHITECTURE.md";

/// The study; each step of a run is a process of the `specialformer` binary.
#[derive(Default)]
pub(super) struct Svf {
    binary: Binary,
    model: OnceCell<PathBuf>,
}

/// The lengths of a study's runs.
struct Sizes {
    seeds: u64,
    steps: u64,
    examples: u64,
    test: u64,
    tasks: &'static [&'static str],
    few: &'static [u64],
    rounds: u64,
    scored: u64,
}

fn sizes(small: bool) -> Sizes {
    match small {
        true => Sizes {
            seeds: 1,
            steps: 8,
            examples: 64,
            test: 16,
            tasks: &TASKS[..2],
            few: &[16],
            rounds: 2,
            scored: 4,
        },
        false => Sizes {
            seeds: 3,
            steps: 48,
            examples: 768,
            test: 128,
            tasks: &TASKS,
            few: &[16, 64, 256],
            rounds: 30,
            scored: 64,
        },
    }
}

impl Experiment for Svf {
    fn name(&self) -> &'static str {
        "svf"
    }

    fn purpose(&self) -> &'static str {
        "singular-value fine-tuning of SmolLM2-135M-Instruct beside LoRA, and adaptation"
    }

    /// Everything of the first seed before the others; what later runs need
    /// first.
    fn runs(&self, small: bool) -> Vec<Run> {
        let sizes = sizes(small);
        let mut runs = vec![Run {
            run: "base".into(),
            settings: json!({"part": "base", "size": sizes.test, "tasks": sizes.tasks}),
        }];
        let train = |name: String, part: &str, task: &str, method: &str, examples: u64, seed| Run {
            run: name,
            settings: json!({
                "part": part, "task": task, "method": method, "matrices": "mlp", "seed": seed,
                "steps": sizes.steps, "examples": examples, "test": sizes.test,
            }),
        };
        let methods = |runs: &mut Vec<Run>, seed| {
            for task in sizes.tasks {
                for (method, _) in METHODS {
                    let name = format!("{method}-{task}-seed{seed}");
                    runs.push(train(name, "methods", task, method, sizes.examples, seed));
                }
            }
        };
        methods(&mut runs, 1);
        for task in sizes.tasks {
            runs.push(Run {
                run: format!("effects-{task}"),
                settings: json!({
                    "part": "effects", "task": task, "tasks": sizes.tasks,
                    "size": sizes.test, "steps": sizes.steps,
                }),
            });
        }
        for task in &sizes.tasks[1..sizes.tasks.len().min(4)] {
            for &few in sizes.few {
                for (method, _) in [METHODS[0], METHODS[2]] {
                    let name = format!("few-{few}-{method}-{task}");
                    runs.push(train(name, "few", task, method, few, 1));
                }
            }
            for matrices in ["attention", "both"] {
                let name = format!("{matrices}-{task}");
                let mut run = train(name, "matrices", task, "svf", sizes.examples, 1);
                run.settings["matrices"] = matrices.into();
                runs.push(run);
            }
        }
        for task in &sizes.tasks[..2] {
            for kl in [0.0, 0.05, 0.2] {
                runs.push(Run {
                    run: format!("reinforce-{task}-kl{kl}"),
                    settings: json!({
                        "part": "reinforce", "task": task, "kl": kl, "steps": sizes.rounds,
                        "test": sizes.test, "examples": sizes.examples, "seed": 1,
                    }),
                });
            }
        }
        runs.push(Run {
            run: "naming".into(),
            settings: json!({
                "part": "naming", "steps": sizes.steps, "examples": sizes.examples,
                "test": sizes.scored, "seed": 1, "experts": sizes.tasks,
            }),
        });
        for task in UNSEEN.iter().chain(&sizes.tasks[..2]) {
            for strategy in STRATEGIES {
                runs.push(Run {
                    run: format!("adapt-{strategy}-{task}"),
                    settings: json!({
                        "part": "adapt", "task": task, "strategy": strategy,
                        "size": sizes.scored, "steps": sizes.steps, "unseen": UNSEEN.contains(task),
                        "experts": sizes.tasks,
                    }),
                });
            }
        }
        (2..=sizes.seeds).for_each(|seed| methods(&mut runs, seed));
        runs
    }

    fn prepare(&self) -> Result<()> {
        self.binary.build()?;
        let fetched = output(program(std::env::current_exe()?).args(["fetch", "smollm2"]))?;
        let path = fetched.lines().last().ok_or("no model was fetched")?;
        let _ = self.model.set(path.into());
        Ok(())
    }

    fn perform(&self, run: &Run) -> Result<Value> {
        let words = words(&run.settings)?;
        match run.settings["part"].as_str() {
            Some("adapt") => gather_experts(&run.settings)?,
            Some("naming") => {
                gather_experts(&run.settings)?;
                remove(&run.settings)?;
            }
            Some("methods" | "few" | "matrices" | "reinforce") => remove(&run.settings)?,
            _ => {}
        }
        let mut result = self.printed(&words)?;
        if let Some(result) = result.as_object_mut() {
            // Where things were saved says something about the machine alone.
            result.retain(|name, _| !matches!(name.as_str(), "path" | "report"));
        }
        Ok(result)
    }

    fn table(&self, records: &[Record]) -> Result<String> {
        table::table(records)
    }

    fn page(&self) -> &'static str {
        "svf"
    }

    fn short_table(&self, records: &[Record]) -> Result<String> {
        table::short(records)
    }
}

/// Where results of runs of some steps are kept.
fn folder(settings: &Value) -> PathBuf {
    root().join("runs").join(format!("study-svf-{}-steps", settings["steps"]))
}

/// Where a training run saves; the main expert of each task and seed 1 is what
/// other parts use.
fn saved(settings: &Value) -> Result<PathBuf> {
    let text = |name: &str| settings[name].as_str().unwrap_or_default().to_owned();
    let part = settings["part"].as_str().ok_or("the run's settings have no part")?;
    let seed = settings["seed"].as_u64().unwrap_or(1);
    let examples = settings["examples"].as_u64().unwrap_or(0);
    let task = text("task");
    let name = match part {
        "methods" if text("method") == "svf" => format!("seed{seed}/{task}.safetensors"),
        "methods" => format!("{}-seed{seed}/{task}", text("method")),
        "few" => format!("few/{}-{task}-{examples}", text("method")),
        "matrices" => format!("{}/{task}.safetensors", text("matrices")),
        "reinforce" => format!("reinforce/{task}-{}.safetensors", settings["kl"]),
        "naming" => "experts/classifier.safetensors".to_owned(),
        _ => return Err(format!("part {part} saves nothing").into()),
    };
    Ok(folder(settings).join(name))
}

fn remove(settings: &Value) -> Result<()> {
    let path = saved(settings)?;
    let gone = match path.is_dir() {
        true => std::fs::remove_dir_all(&path),
        false if path.exists() => std::fs::remove_file(&path),
        false => Ok(()),
    };
    gone.map_err(|e| format!("{}: {e}", path.display()).into())
}

/// The command of a run, after the model.
fn words(settings: &Value) -> Result<Vec<String>> {
    let text = |name: &str| match &settings[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let list = |name: &str| {
        let names = settings[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.collect::<Vec<_>>().join(",")
    };
    let main = |task: &str| {
        let methods = json!({
            "part": "methods", "task": task, "method": "svf", "seed": 1,
            "steps": settings["steps"],
        });
        saved(&methods).map(|path| path.display().to_string())
    };
    let plain_text = root().join(TEXT).display().to_string();
    let mut words: Vec<String> = Vec::new();
    let mut say = |all: &[&str]| words.extend(all.iter().map(|&word| word.to_owned()));
    match settings["part"].as_str().unwrap_or_default() {
        "base" => {
            let tasks = format!("{},{}", list("tasks"), UNSEEN.join(","));
            say(&["svf", "eval", "--task", &tasks, "--size", &text("size"), "--text", &plain_text]);
        }
        "effects" => {
            let (expert, tasks) = (main(&text("task"))?, list("tasks"));
            say(&["svf", "eval", "--experts-only", "--expert", &expert, "--task", &tasks]);
            say(&["--size", &text("size"), "--text", &plain_text]);
        }
        "adapt" => {
            let experts = folder(settings).join("experts").display().to_string();
            say(&["adapt", "--experts", &experts, "--strategy", &text("strategy")]);
            say(&["--score", &text("task"), "--size", &text("size")]);
        }
        part => {
            let experts = folder(settings).join("experts").display().to_string();
            match part {
                "naming" => say(&["svf", "train", "--naming", &experts]),
                _ => say(&["svf", "train", "--task", &text("task")]),
            }
            say(&["--steps", &text("steps")]);
            say(&["--examples", &text("examples"), "--test", &text("test")]);
            say(&["--seed", &text("seed"), "--out", &saved(settings)?.display().to_string()]);
            if part == "reinforce" {
                say(&["--objective", "reinforce", "--kl", &text("kl")]);
            } else if part != "naming" {
                let method = text("method");
                let known = METHODS.iter().find(|(name, _)| *name == method);
                say(known.ok_or_else(|| format!("no method {method}"))?.1);
                say(&["--matrices", &text("matrices"), "--skip-base"]);
            }
        }
    }
    Ok(words)
}

/// Puts the experts of seed 1 into a folder.
fn gather_experts(settings: &Value) -> Result<()> {
    let tasks = settings["experts"].as_array().into_iter().flatten();
    let tasks: Vec<_> = tasks.filter_map(Value::as_str).collect();
    gather(&folder(settings).join("seed1"), &folder(settings).join("experts"), &tasks)
}

/// Puts the experts of these tasks into a folder, from where they are trained.
fn gather(from: &Path, experts: &Path, tasks: &[&str]) -> Result<()> {
    std::fs::create_dir_all(experts).map_err(|e| format!("{}: {e}", experts.display()))?;
    for task in tasks {
        let from = from.join(format!("{task}.safetensors"));
        let to = experts.join(format!("{task}.safetensors"));
        let expert = std::fs::read(&from).map_err(|e| format!("{}: {e}", from.display()))?;
        if std::fs::read(&to).is_ok_and(|known| known == expert) {
            continue;
        }
        // First, what was trained for the experts that were there: if this is
        // stopped in between, the next start must not take it for one of the
        // new experts.
        let classifier = experts.join(CLASSIFIER_FILE);
        match std::fs::remove_file(&classifier) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(format!("{}: {e}", classifier.display()).into());
            }
            _ => {}
        }
        atomic_write(&to, |file| file.write_all(&expert))?;
    }
    Ok(())
}

impl Svf {
    /// What a command of the binary prints as JSON; the model is its first
    /// argument.
    fn printed(&self, words: &[String]) -> Result<Value> {
        let model = self.model.get().ok_or("the model was not fetched")?;
        let names = if words[0] == "svf" { 2 } else { 1 };
        let mut words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        words.insert(names, model.as_os_str());
        self.binary.printed(&words, LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classifier_of_other_experts_goes_before_them() {
        let place = tempfile::tempdir().unwrap();
        let (from, experts) = (place.path().join("seed1"), place.path().join("experts"));
        std::fs::create_dir(&from).unwrap();
        let write = |task: &str, text: &str| {
            std::fs::write(from.join(format!("{task}.safetensors")), text).unwrap();
        };
        write("a", "1");
        gather(&from, &experts, &["a"]).unwrap();
        let classifier = experts.join(CLASSIFIER_FILE);
        std::fs::write(&classifier, "of a").unwrap();
        gather(&from, &experts, &["a"]).unwrap();
        assert!(classifier.exists(), "nothing is new");
        // As if it were stopped: the expert cannot be put in its place.
        write("b", "2");
        std::fs::create_dir(experts.join("b.safetensors")).unwrap();
        assert!(gather(&from, &experts, &["a", "b"]).is_err());
        assert!(!classifier.exists());
    }

    #[test]
    fn runs_have_names_of_their_own_and_commands() {
        for small in [true, false] {
            let runs = Svf::default().runs(small);
            let mut names: Vec<_> = runs.iter().map(|run| run.run.clone()).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), runs.len());
            for run in &runs {
                let words = words(&run.settings).unwrap();
                assert!(words[0] == "svf" || words[0] == "adapt", "{words:?}");
                assert!(words.iter().all(|word| !word.is_empty() && word != "null"), "{words:?}");
            }
            // An expert is trained before anything uses it.
            let place = |name: &str| runs.iter().position(|run| run.run == name).unwrap();
            assert!(place("svf-json-field-seed1") < place("effects-json-field"));
            assert!(place("svf-larger-number-seed1") < place("adapt-mixture-initials"));
        }
    }
}
