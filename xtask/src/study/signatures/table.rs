//! The tables of the signatures study.

use std::fmt::Write as _;

use serde_json::Value;

use super::VARIANTS;
use crate::shell::Result;
use crate::study::queue::Record;
use crate::study::statistics::mean_std;

/// What the paper measured on OLMoE-1B-7B.
const PAPER: &str =
    "| OLMoE-1B-7B (arXiv 2603.11114) | 0.8435 ± 0.0879 | 0.6225 ± 0.1687 | 1.44 | 92.5 | – |";

/// The modes of the second table, as records and readers call them.
const SELECTIONS: [(&str, &str); 5] = [
    ("fixed", "task known"),
    ("detected", "task detected"),
    ("learned", "learned bias"),
    ("frequency", "frequency alone"),
    ("random", "random"),
];

/// Both tables, from the runs finished so far.
pub(super) fn table(records: &[Record]) -> Result<String> {
    let mut out = String::from(
        "Cosine similarity of signatures within and across kinds of text (mean ± deviation over \
         pairs), effect size, and accuracy of a classifier on held-out prompts (%, mean over \
         seeds ± deviation):\n\n\
         | | within | across | Cohen's d | accuracy | p |\n|---|---|---|---|---|---|\n",
    );
    let _ = writeln!(out, "{PAPER}");
    for (variant, name) in VARIANTS {
        let of = of_variant(records, variant);
        if of.is_empty() {
            continue;
        }
        let seeds = of.len();
        let seeds = format!("{seeds} seed{}", if seeds == 1 { "" } else { "s" });
        let p = numbers(&of, "/p_value").into_iter().fold(0.0, f64::max);
        line(&mut out, &format!("moe-lm, {name} ({seeds})"), &of, "signatures", Some(p));
        for (key, null) in [
            ("balanced_random", "balanced random routing"),
            ("frequency_shuffle", "frequency-preserving shuffle"),
            ("length_matched", "length-matched"),
            ("bag_of_tokens", "bag of tokens"),
        ] {
            line(&mut out, &format!("· {null}"), &of, key, None);
        }
    }
    out.push_str("\nBy layer, from the first to the last: Cohen's d (accuracy in %).\n\n");
    for (variant, name) in VARIANTS {
        let of = of_variant(records, variant);
        let layers = of.first().and_then(|r| r.result["by_layer"].as_array()).map_or(0, Vec::len);
        let layer = |i: usize| {
            let d = mean(&numbers(&of, &format!("/by_layer/{i}/similarity/cohens_d")));
            let accuracy = mean(&numbers(&of, &format!("/by_layer/{i}/accuracy")));
            format!("{d:.2} ({:.1})", 100.0 * accuracy)
        };
        if layers > 0 {
            let all: Vec<String> = (0..layers).map(layer).collect();
            let rand = mean(&numbers(&of, "/adjusted_rand_index"));
            let _ = writeln!(
                out,
                "- {name}: {}; clusters without labels: adjusted Rand index {rand:.2}",
                all.join(", ")
            );
        }
    }
    out.push_str(
        "\nTask-conditioned routing: change of perplexity in % (mean over seeds ± deviation) \
         against the share of each layer's experts that is kept:\n\n",
    );
    for (variant, name) in VARIANTS {
        curve(&mut out, name, &of_variant(records, variant));
    }
    Ok(out)
}

/// What the README shows: the classifier, and half of each layer's experts.
pub(super) fn short(records: &[Record]) -> Result<String> {
    let mut out = String::from(
        "| router trained with | classifier, % | perplexity | half of the experts, task known, % \
         | as many at random, % | kept experts tuned, % | task detected, % |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
    );
    for (variant, name) in VARIANTS {
        let of = of_variant(records, variant);
        let seeds = match of.len() {
            0 => continue,
            1 => " (one seed)",
            _ => "",
        };
        let accuracy = numbers(&of, "/signatures/accuracy").into_iter().map(|a| 100.0 * a);
        let tuned: Vec<_> = of.iter().filter_map(|of| tuned_change(of, "full", 0.5)).collect();
        let _ = writeln!(
            out,
            "| {name}{seeds} | {} | {:.1} | {} | {} | {} | {:.1} |",
            mean_std(&accuracy.collect::<Vec<_>>()),
            full_perplexity(&of),
            mean_std(&changes(&of, "fixed", 0.5)),
            mean_std(&changes(&of, "random", 0.5)),
            mean_std(&tuned),
            100.0 * mean(&numbers(&of, "/curve/detection_accuracy")),
        );
    }
    Ok(out)
}

fn of_variant<'a>(records: &'a [Record], variant: &str) -> Vec<&'a Record> {
    records.iter().filter(|record| record.of.settings["variant"] == variant).collect()
}

/// A figure of every record that has it.
fn numbers(records: &[&Record], pointer: &str) -> Vec<f64> {
    records.iter().filter_map(|record| record.result.pointer(pointer)?.as_f64()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn line(out: &mut String, name: &str, records: &[&Record], key: &str, p: Option<f64>) {
    let of = |what: &str| mean(&numbers(records, &format!("/{key}/similarity/{what}")));
    let accuracy = numbers(records, &format!("/{key}/accuracy"));
    let accuracy: Vec<f64> = accuracy.into_iter().map(|a| 100.0 * a).collect();
    let p = p.map_or_else(|| "–".into(), |p| format!("{p:.1e}"));
    let _ = writeln!(
        out,
        "| {name} | {:.4} ± {:.4} | {:.4} ± {:.4} | {} | {} | {p} |",
        of("within"),
        of("within_std"),
        of("across"),
        of("across_std"),
        effect(of("cohens_d")),
        mean_std(&accuracy)
    );
}

/// Cohen's d, without a minus before zeros.
fn effect(d: f64) -> String {
    format!("{:.2}", (100.0 * d).round() / 100.0 + 0.0)
}

/// The point of a record's curve that keeps this share of experts by this
/// selection; `None` is all of them.
fn point<'a>(record: &'a Record, selection: &str, share: Option<f64>) -> Option<&'a Value> {
    let points = record.result["curve"]["points"].as_array()?;
    points.iter().find(|point| point["selection"] == selection && budget(point) == share)
}

fn budget(point: &Value) -> Option<f64> {
    point["budget"]["experts"].as_f64()
}

/// The perplexity with all experts.
fn full_perplexity(records: &[&Record]) -> f64 {
    mean(&numbers(records, "/curve/points/0/perplexity"))
}

/// By how much a selection of a share of the experts changes the perplexity, in
/// percent.
fn changes(records: &[&Record], selection: &str, share: f64) -> Vec<f64> {
    let of = |record: &&Record| {
        Some(100.0 * point(record, selection, Some(share))?["relative"].as_f64()?)
    };
    records.iter().filter_map(of).collect()
}

/// By how much the kept experts, trained further, change the perplexity against
/// that of a selection of all, in percent.
fn tuned_change(record: &Record, against: &str, share: f64) -> Option<f64> {
    let loss = |selection, share| point(record, selection, share)?["loss"].as_f64();
    Some(100.0 * ((loss("tuned", Some(share))? - loss(against, None)?).exp() - 1.0))
}

fn curve(out: &mut String, name: &str, records: &[&Record]) {
    let Some(first) = records.first() else { return };
    let points = first.result["curve"]["points"].as_array();
    let mut budgets: Vec<f64> = points.into_iter().flatten().filter_map(budget).collect();
    budgets.sort_by(f64::total_cmp);
    budgets.dedup();
    let full = full_perplexity(records);
    let _ = write!(out, "| {name} (perplexity with all {full:.1}) |");
    budgets.iter().for_each(|share| {
        let _ = write!(out, " {:.1} % |", 100.0 * share);
    });
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(budgets.len()));
    for (selection, said) in SELECTIONS {
        let change = |share| changes(records, selection, share);
        if budgets.iter().all(|&share| change(share).is_empty()) {
            continue;
        }
        let _ = write!(out, "| {said} |");
        budgets.iter().for_each(|&share| {
            let _ = write!(out, " {} |", mean_std(&change(share)));
        });
        out.push('\n');
    }
    tuned(out, records, &budgets);
    let speed = |share: f64| {
        let of = |record: &&Record| point(record, "fixed", Some(share))?["speed"].as_f64();
        mean(&records.iter().filter_map(of).collect::<Vec<_>>())
    };
    let _ = write!(out, "| speed, batch 1 |");
    budgets.iter().for_each(|&share| {
        let _ = write!(out, " {:.2}× |", speed(share));
    });
    let percent = |key: &str| 100.0 * mean(&numbers(records, &format!("/curve/{key}")));
    let (right, unsure) = (percent("detection_accuracy"), percent("fall_back"));
    let _ = writeln!(
        out,
        "\n\nFrom {} tokens the task is detected rightly in {right:.1} % of texts, wrongly in \
         {:.1} %; in {unsure:.1} % it is not clear enough, and all experts are used.\n",
        mean(&numbers(records, "/curve/detect_tokens")),
        100.0 - right - unsure
    );
}

/// The kept experts, trained further, against all experts as they were, and
/// trained further in the same way.
fn tuned(out: &mut String, records: &[&Record], budgets: &[f64]) {
    for (against, said) in
        [("full", "kept experts trained on"), ("tuned-full", "· against all experts trained on")]
    {
        let change = |record: &&Record, share| tuned_change(record, against, share);
        let measured = |&share: &f64| records.iter().any(|record| change(record, share).is_some());
        if !budgets.iter().any(measured) {
            return;
        }
        let _ = write!(out, "| {said} |");
        for &share in budgets {
            let all: Vec<f64> = records.iter().filter_map(|record| change(record, share)).collect();
            let _ = write!(out, " {} |", mean_std(&all));
        }
        out.push('\n');
    }
}
