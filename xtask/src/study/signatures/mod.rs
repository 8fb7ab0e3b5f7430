//! The signatures study: what the routing of a small mixture-of-experts
//! language model knows about the kind of text, with and without balance loss,
//! with contrastive routing and with expert dropout, and what running fewer
//! experts costs.

mod table;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Binary;
use super::queue::{Experiment, Record, Run};
use crate::corpora;
use crate::shell::{Result, root};

/// How the router is trained, and what a reader calls it.
const VARIANTS: [(&str, &str); 4] = [
    ("balanced", "balance loss"),
    ("unbalanced", "no balance loss"),
    ("contrastive", "contrastive routing"),
    ("dropout", "expert dropout"),
];

/// What one command of a run is given. A training that is stopped here leaves
/// its checkpoints, and the next attempt goes on from them.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// The study; each step of a run is a process of the `specialformer` binary.
#[derive(Default)]
pub(super) struct Signatures {
    binary: Binary,
}

impl Experiment for Signatures {
    fn name(&self) -> &'static str {
        "signatures"
    }

    fn purpose(&self) -> &'static str {
        "what routing knows about the kind of text, and what fewer experts cost"
    }

    fn runs(&self, small: bool) -> Vec<Run> {
        let (steps, seeds, rows, learning, tuning) =
            if small { (40, 1, 60, 0, 0) } else { (1600, 3, 400, 60, 100) };
        let variants = if small { &VARIANTS[..1] } else { &VARIANTS[..] };
        // By seed, but for expert dropout, an idea of our own, which comes last.
        let (asked, own) = variants.split_at(variants.len().min(3));
        let mut runs = Vec::new();
        for variants in [asked, own] {
            for seed in 1..=seeds {
                for (variant, _) in variants {
                    runs.push(Run {
                        run: format!("{variant}-seed{seed}"),
                        settings: json!({"variant": variant, "seed": seed, "steps": steps,
                                         "rows": rows, "learning_steps": learning,
                                         "tuning_steps": tuning}),
                    });
                }
            }
        }
        runs
    }

    fn prepare(&self) -> Result<()> {
        corpora::fetch(&root().join("corpora"))?;
        self.binary.build()
    }

    fn perform(&self, run: &Run) -> Result<Value> {
        let steps = run.settings["steps"].as_u64().unwrap_or(0);
        let folder = root().join("runs").join(format!("study-signatures-{steps}-steps"));
        Performance { binary: &self.binary, settings: &run.settings, folder: folder.join(&run.run) }
            .result()
    }

    fn table(&self, records: &[Record]) -> Result<String> {
        table::table(records)
    }

    fn page(&self) -> &'static str {
        "routing"
    }

    fn short_table(&self, records: &[Record]) -> Result<String> {
        table::short(records)
    }
}

/// The configuration of a run: `configs/moe-lm.toml` with the variant's router.
fn config(settings: &Value) -> Result<String> {
    let path = root().join("configs").join("moe-lm.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut lines = Vec::new();
    let variant = settings["variant"].as_str().unwrap_or_default();
    let steps = settings["steps"].as_u64().unwrap_or(1);
    for line in text.lines() {
        lines.push(match line.split(" = ").next().unwrap_or_default() {
            "steps" => format!("steps = {steps}"),
            "seed" => format!("seed = {}", settings["seed"]),
            "schedule" => {
                let warmup = (steps / 10).min(100);
                format!("schedule = {{ kind = \"cosine\", warmup = {warmup}, floor = 0.05 }}")
            }
            "router" if variant == "unbalanced" => {
                let from = line.find(", balance = ").ok_or("moe-lm.toml has no balance")?;
                format!("{} }}", &line[..from])
            }
            "router" if variant == "dropout" => {
                line.replace(", balance = ", ", expert_dropout = 0.5, balance = ")
            }
            _ => line.to_owned(),
        });
    }
    if variant == "contrastive" {
        lines.push("[train.multi_task]\naverage = \"target\"".into());
        lines.push("contrastive = { weight = 0.05, representation = \"router\" }".into());
    }
    Ok(lines.join("\n"))
}

/// A run that is being performed.
struct Performance<'a> {
    binary: &'a Binary,
    settings: &'a Value,
    folder: PathBuf,
}

impl Performance<'_> {
    fn result(&self) -> Result<Value> {
        let folder = self.folder.display().to_string();
        let trained = self.binary.train(&config(self.settings)?, &self.folder, LIMIT)?;
        let rows = self.settings["rows"].to_string();
        let trace = |set: &str| -> Result<String> {
            let out = format!("{folder}-{set}-trace");
            self.printed(&[
                "route", "trace", &folder, "--set", set, "--size", &rows, "--out", &out,
            ])?;
            Ok(out)
        };
        let (fitted, tested) = (trace("validation")?, trace("test")?);
        let report = format!("{folder}-analysis");
        let analysis = self.printed(&["route", "analyze", &tested, "--out", &report])?;
        let clusters = self.printed(&["route", "discover", &tested])?;
        let conditions = format!("{folder}-condition.json");
        self.printed(&[
            "route",
            "condition",
            "fit",
            &folder,
            "--trace",
            &fitted,
            "--out",
            &conditions,
            // Of a run of this study that was cut short.
            "--force",
        ])?;
        let learning = self.settings["learning_steps"].to_string();
        let tuning = self.settings["tuning_steps"].to_string();
        let curve = self.printed(&[
            "route",
            "condition",
            "eval",
            &folder,
            "--condition",
            &conditions,
            "--size",
            "200",
            "--experts",
            "0.25,0.375,0.5,0.625,0.75",
            "--learn-steps",
            &learning,
            "--tune-steps",
            &tuning,
        ])?;
        let kept = |of: &Value| {
            json!({"similarity": of["similarity"], "accuracy": of["accuracy"],
                   "accuracy_std": of["accuracy_std"]})
        };
        Ok(json!({
            "parameters": trained["parameters"],
            "active_parameters": trained["active_parameters"],
            "seconds": trained["seconds"],
            "tokens": trained["tokens"],
            "loss": trained["test"]["loss"],
            "signatures": json!({"similarity": analysis["similarity"],
                "accuracy": analysis["classifier"]["accuracy"],
                "accuracy_std": analysis["classifier"]["accuracy_std"]}),
            "p_value": analysis["permutation"]["p_value"],
            "balanced_random": kept(&analysis["balanced_random"]),
            "frequency_shuffle": kept(&analysis["frequency_shuffle"]),
            "length_matched": kept(&analysis["length_matched"]),
            "bag_of_tokens": kept(&analysis["bag_of_tokens"]),
            "by_layer": analysis["by_layer"].as_array().map(|all| {
                all.iter().map(kept).collect::<Vec<_>>()
            }),
            "labels": analysis["labels"],
            "clusters": clusters["clusters"],
            "adjusted_rand_index": clusters["adjusted_rand_index"],
            "curve": curve,
        }))
    }

    /// What a command of the binary prints as JSON.
    fn printed(&self, words: &[&str]) -> Result<Value> {
        self.binary.printed(words, LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_a_configuration() {
        for (variant, _) in VARIANTS {
            let settings = json!({"variant": variant, "seed": 7, "steps": 50});
            let text = config(&settings).unwrap();
            let config = specialformer::RunConfig::parse(&text, variant).unwrap();
            assert_eq!((config.train.steps, config.train.seed), (50, 7));
            let specialformer::ModelConfig::Specialformer(model) = &config.model else {
                panic!("moe-lm is a specialformer");
            };
            let balance = &model.moe.as_ref().unwrap().moe.router.balance;
            assert_eq!(balance.load_balance > 0.0, variant != "unbalanced", "{variant}");
            let dropout = model.moe.as_ref().unwrap().moe.router.expert_dropout;
            assert_eq!(dropout > 0.0, variant == "dropout");
            assert_eq!(config.train.multi_task.is_some(), variant == "contrastive");
        }
    }
}
