//! The multi-task study: what specialisation is worth on conflicting tasks, at
//! the same number of active parameters and the same training tokens.

mod config;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use self::config::{TASKS, Training, Variant};
use super::process::Binary;
use super::queue::{Experiment, Record, Run};
use crate::shell::{Result, root};

/// The shares of the training examples.
const SHARES: [f64; 3] = [1.0, 0.3, 0.1];

/// What one command of a run is given. A training that is stopped here leaves
/// its checkpoints, and the next attempt goes on from them.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// The study; each step of a run is a process of the `specialformer` binary.
#[derive(Default)]
pub(super) struct Multitask {
    binary: Binary,
}

impl Experiment for Multitask {
    fn name(&self) -> &'static str {
        "multitask"
    }

    fn purpose(&self) -> &'static str {
        "dense, expert and adapter models on conflicting tasks, by task, data and domain"
    }

    /// All models with one seed before any gets its next, and with all data
    /// before any gets less.
    fn runs(&self, small: bool) -> Vec<Run> {
        let (steps, seeds, test, adapting) =
            if small { (300, 1, 1024, 20) } else { (3500, 3, 8192, 100) };
        let shares = if small { &SHARES[..1] } else { &SHARES[..] };
        let mut runs = Vec::new();
        for &share in shares {
            for seed in 1..=seeds {
                for variant in Variant::ALL {
                    let name = run_name(variant.name(), share, seed);
                    let settings = json!({
                        "variant": variant.name(), "share": share, "seed": seed, "steps": steps,
                        "test_size": test, "adapting_steps": adapting,
                    });
                    runs.push(Run { run: name, settings });
                }
                if share == 1.0 {
                    runs.extend(TASKS.iter().map(|task| Run {
                        run: format!("single-{}-seed{seed}", task.name),
                        settings: json!({
                            "variant": "single", "task": task.name, "seed": seed,
                            "steps": steps / TASKS.len() as u64,
                            "test_size": test / TASKS.len(),
                        }),
                    }));
                }
            }
        }
        runs
    }

    fn prepare(&self) -> Result<()> {
        self.binary.build()
    }

    fn perform(&self, run: &Run) -> Result<Value> {
        Performance { binary: &self.binary, settings: &run.settings, folder: folder(run) }
            .result(&run.run)
    }

    fn table(&self, records: &[Record]) -> Result<String> {
        table::table(records)
    }

    fn page(&self) -> &'static str {
        "multitask"
    }

    fn short_table(&self, records: &[Record]) -> Result<String> {
        table::short(records)
    }
}

fn run_name(variant: &str, share: f64, seed: u64) -> String {
    format!("{variant}-{:.0}%-seed{seed}", 100.0 * share)
}

/// Where a run is. Lengths are in the path, so that short runs are not taken
/// for long ones.
fn folder(run: &Run) -> PathBuf {
    let single = run.settings["variant"] == "single";
    let steps =
        run.settings["steps"].as_u64().unwrap_or(0) * if single { TASKS.len() as u64 } else { 1 };
    let name = run.run.replace('%', "");
    root().join("runs").join(format!("study-multitask-{steps}-steps")).join(name)
}

/// A run that is being performed.
struct Performance<'a> {
    binary: &'a Binary,
    settings: &'a Value,
    folder: PathBuf,
}

impl Performance<'_> {
    fn number(&self, name: &str) -> Result<u64> {
        let found = self.settings[name].as_u64();
        Ok(found.ok_or_else(|| format!("the run's settings have no number `{name}`"))?)
    }

    fn result(&self, name: &str) -> Result<Value> {
        let variant = self.settings["variant"].as_str().unwrap_or_default();
        let only = TASKS.iter().find(|task| self.settings["task"] == task.name);
        let model = match only {
            Some(_) => Variant::Dense,
            None => Variant::of(variant).ok_or_else(|| format!("no variant {variant}"))?,
        };
        let share = self.settings["share"].as_f64().unwrap_or(1.0);
        let seed = self.number("seed")?;
        let teacher = model.teacher().map(|teacher| {
            self.folder.with_file_name(run_name(teacher.name(), share, seed).replace('%', ""))
        });
        if let Some(missing) = teacher.as_ref().filter(|t| !t.join("result.json").is_file()) {
            return Err(format!("its teacher {} is not trained", missing.display()).into());
        }
        let test_size = usize::try_from(self.number("test_size")?)?;
        let training = Training {
            only,
            share,
            steps: self.number("steps")?,
            seed,
            teacher: teacher.as_deref(),
            shifted: false,
            test_size,
        };
        let trained =
            self.binary.train(&config::toml(name, model, &training), &self.folder, LIMIT)?;
        let size = test_size.to_string();
        let folder = self.folder.display().to_string();
        let evaluated = self.binary.printed(&["eval", &folder, "--size", &size], LIMIT)?;
        let mut result = json!({
            "parameters": evaluated["parameters"],
            "active_parameters": evaluated["active_parameters"],
            "seconds": trained["seconds"],
            "tokens": trained["tokens"],
            "tasks": evaluated["evaluation"]["tasks"],
            "calibration": evaluated["calibration"]["expected_calibration_error"],
        });
        if only.is_none() && model.has_experts() {
            let routing =
                self.binary.printed(&["route", "stats", &folder, "--size", "2048"], LIMIT)?;
            result["routing"] = layers(&routing);
        }
        if only.is_none() && share == 1.0 {
            let shifted =
                self.binary.printed(&["eval", &folder, "--shifted", "--size", &size], LIMIT)?;
            result["shifted"] = shifted["evaluation"]["tasks"].clone();
            let steps = self.number("adapting_steps")?;
            let training = Training { teacher: None, shifted: true, steps, ..training };
            let text = config::toml(name, model, &training);
            let text = format!("init_from = {folder:?}\n{text}");
            let adapted = PathBuf::from(format!("{folder}-adapted"));
            result["adapted"] = self.binary.train(&text, &adapted, LIMIT)?["test"]["tasks"].clone();
        }
        Ok(result)
    }
}

/// The figures of each layer's routing.
fn layers(routing: &Value) -> Value {
    const KEPT: [&str; 7] = [
        "name",
        "max_over_mean",
        "load_evenness",
        "entropy",
        "drop_share",
        "specialization",
        "expected_calibration_error",
    ];
    let layers = routing["layers"].as_array().into_iter().flatten();
    let kept = layers.map(|layer| KEPT.map(|key| (key.to_string(), layer[key].clone())));
    kept.map(|fields| Value::Object(fields.into_iter().collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_run_with_every_share_and_seed() {
        let runs = Multitask::default().runs(false);
        assert_eq!(runs.len(), 3 * 3 * Variant::ALL.len() + 3 * TASKS.len());
        assert!(runs.iter().take(6).all(|run| run.settings["seed"] == 1));
        // A teacher comes before its pupil.
        let place = |name: &str| runs.iter().position(|run| run.run == name).unwrap();
        assert!(place("moe-30%-seed2") < place("moe-contrastive-distilled-30%-seed2"));
        let single = &runs[place("single-sort-seed3")];
        assert_eq!(single.settings["steps"], 3500 / 13);
        let small = Multitask::default().runs(true);
        assert_eq!(small.len(), Variant::ALL.len() + TASKS.len());
    }

    #[test]
    fn routing_keeps_its_figures() {
        let layer = json!({"name": "blocks.0", "max_over_mean": 1.5, "load": [1, 2]});
        let kept = layers(&json!({"layers": [layer]}));
        assert_eq!(kept[0]["max_over_mean"], 1.5);
        assert!(kept[0].get("load").is_none());
    }
}
