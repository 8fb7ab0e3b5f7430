//! `specialformer route analyze` and `discover`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use specialformer::routing::analysis::{
    self, Analysis, AnalysisConfig, Baseline, CrossValidationConfig, PromptSignatures,
};
use specialformer::routing_trace::{TokenScope, TraceReader, read_signatures};
use specialformer::tensor::Seed;

use crate::args::route::{RouteAnalyzeArgs, RouteDiscoverArgs};
use crate::failure::Failure;
use crate::output::check_free;
use crate::{job, limits, run_report, signature_report, table};

/// A line of a labels file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Labelled {
    id: String,
    label: String,
}

/// Labels by prompt id.
pub(super) fn read_labels(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| Failure::input(format!("{name}: {e}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let Labelled { id, label } = serde_json::from_str(line)
                .map_err(|e| Failure::input(format!("{name}: line {}: {e}", number + 1)))?;
            Ok((id, label))
        })
        .collect()
}

/// Gives prompts the labels of a file.
fn relabel(data: &mut PromptSignatures, labels: &BTreeMap<String, String>) {
    for prompt in &mut data.prompts {
        prompt.label = labels.get(&prompt.id).cloned();
    }
}

/// Analyses a trace, prints a table and writes JSON and report.
pub(crate) fn analyze(args: &RouteAnalyzeArgs) -> Result<(), Failure> {
    limits::check_most("--permutations", args.permutations)?;
    let reader = TraceReader::open(&args.trace)?;
    let mut data = read_signatures(&reader, args.tokens.into())?;
    if let Some(path) = &args.labels {
        relabel(&mut data, &read_labels(path)?);
    }
    let config = AnalysisConfig {
        kind: args.kind.into(),
        permutations: args.permutations,
        classifier: CrossValidationConfig { folds: args.folds, ..Default::default() },
        seed: args.seed,
        ..AnalysisConfig::default()
    };
    let found = analysis::analyze(&data, &config).map_err(|e| Failure::input(e.to_string()))?;
    let text = serde_json::to_string(&found).map_err(|e| Failure::work(e.to_string()))?;
    if let Some(folder) = &args.out {
        job::write(&folder.join("analysis.json"), &text)?;
        run_report::write(&signature_report::report(&found, &reader, folder)?, folder)?;
    }
    if args.common.json {
        println!("{text}");
        return Ok(());
    }
    print!("{}", as_text(&reader.info().model, &found));
    if let Some(folder) = &args.out {
        println!("\nreport {}", folder.join("report.html").display());
    }
    Ok(())
}

fn spread(mean: f64, std: f64) -> String {
    format!("{mean:.4} ± {std:.4}")
}

fn percent(mean: f64, std: f64) -> String {
    format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * std)
}

fn as_text(model: &str, found: &Analysis) -> String {
    let mut out = String::new();
    let total: usize = found.prompts.iter().sum();
    let _ = writeln!(
        out,
        "{model}: {total} prompts of {} labels, {} layers",
        found.labels.len(),
        found.layers.len()
    );
    let classifier = &found.classifier;
    let line = |name: &str, b: &Baseline| {
        let s = &b.similarity;
        vec![
            name.to_string(),
            spread(s.within, s.within_std),
            spread(s.across, s.across_std),
            table::hundredths(s.cohens_d),
            percent(b.accuracy, b.accuracy_std),
        ]
    };
    let own = Baseline {
        similarity: found.similarity,
        accuracy: classifier.accuracy,
        accuracy_std: classifier.accuracy_std,
    };
    let head = ["", "cosine within", "across", "Cohen's d", "accuracy %"];
    let mut rows = vec![head.map(String::from).to_vec(), line("signatures", &own)];
    rows.push(line("balanced random", &found.balanced_random));
    rows.push(line("frequency shuffle", &found.frequency_shuffle));
    rows.push(line("length matched", &found.length_matched));
    if let Some(bag) = &found.bag_of_tokens {
        rows.push(line("bag of tokens", bag));
    }
    let (length, length_std) = found.length_alone;
    rows.push(vec![
        "length alone".into(),
        String::new(),
        String::new(),
        String::new(),
        percent(length, length_std),
    ]);
    let _ = write!(out, "\n{}", table::aligned(&rows));
    let test = &found.permutation;
    let _ = writeln!(
        out,
        "\npermutation test: within − across = {:.4}, p = {:.2e} ({} permutations)",
        test.statistic, test.p_value, test.permutations
    );
    let head = ["layer", "within", "across", "Cohen's d", "accuracy %"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for layer in &found.by_layer {
        let b = Baseline {
            similarity: layer.similarity,
            accuracy: layer.accuracy,
            accuracy_std: layer.accuracy_std,
        };
        rows.push(line(&layer.layer, &b));
    }
    let _ = write!(out, "\n{}", table::aligned(&rows));
    let mut head = vec!["taken for".to_string()];
    head.extend(found.labels.iter().cloned());
    let mut rows = vec![head];
    for (label, counts) in found.labels.iter().zip(&classifier.confusion) {
        let counts = counts.iter().map(u64::to_string);
        rows.push(std::iter::once(label.clone()).chain(counts).collect());
    }
    let _ = write!(out, "\n{}", table::aligned(&rows));
    let names = expert_names(found);
    for (label, carriers) in found.labels.iter().zip(&found.carriers) {
        let all: Vec<String> = carriers
            .iter()
            .take(5)
            .map(|c| {
                let gap = c.share - c.others;
                format!("{} +{gap:.3} [{:.3}, {:.3}]", names[c.column], c.low, c.high)
            })
            .collect();
        let _ = writeln!(out, "\n{label}: {}", all.join("; "));
    }
    out
}

/// What each column of the signature is called.
pub(crate) fn expert_names(found: &Analysis) -> Vec<String> {
    let layers = found.layers.iter();
    layers.flat_map(|l| (0..l.experts).map(move |e| format!("{}/{e}", l.name))).collect()
}

/// Clusters a trace's prompts.
pub(crate) fn discover(args: &RouteDiscoverArgs) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        check_free(out, Some(args.force))?;
    }
    let reader = TraceReader::open(&args.trace)?;
    let data = read_signatures(&reader, TokenScope::All)?;
    let rows = data.matrix(args.kind.into());
    let found = analysis::discover(rows.view(), args.most, Seed::new(args.seed))
        .map_err(|e| Failure::input(e.to_string()))?;
    let labelled = data.prompts.iter().all(|prompt| prompt.label.is_some());
    let agreement = labelled.then(|| {
        let mut names: Vec<&str> = data.prompts.iter().filter_map(|p| p.label.as_deref()).collect();
        names.sort_unstable();
        names.dedup();
        let number = |label: &str| names.binary_search(&label).unwrap_or(0);
        let labels: Vec<usize> =
            data.prompts.iter().map(|p| p.label.as_deref().map_or(0, number)).collect();
        analysis::adjusted_rand_index(&found.assignment, &labels)
    });
    if let Some(path) = &args.out {
        let mut text = String::new();
        for (prompt, cluster) in data.prompts.iter().zip(&found.assignment) {
            let line = json!({"id": prompt.id, "label": format!("cluster-{cluster}")});
            let _ = writeln!(text, "{line}");
        }
        job::write(path, &text)?;
    }
    if args.common.json {
        let all = json!({"clusters": found.clusters, "silhouettes": found.silhouettes,
                         "assignment": found.assignment, "adjusted_rand_index": agreement});
        println!("{all:#}");
        return Ok(());
    }
    let mut rows = vec![vec!["clusters".to_string(), "silhouette".to_string()]];
    for (clusters, score) in &found.silhouettes {
        rows.push(vec![clusters.to_string(), format!("{score:.3}")]);
    }
    print!("{}", table::aligned(&rows));
    println!("\n{} clusters of {} prompts", found.clusters, data.prompts.len());
    if let Some(index) = agreement {
        println!("adjusted Rand index against the labels {index:.3}");
    }
    Ok(())
}
