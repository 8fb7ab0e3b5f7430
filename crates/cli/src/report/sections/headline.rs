//! The few figures at the top of the page.

use std::fmt::Write as _;

use crate::report::data::{Model, Point, ReportData, models};
use crate::report::html::{compact, duration, escape, percent};
use crate::table::grouped;

struct Figure {
    label: String,
    value: String,
    note: String,
}

/// The best model's score, when it reached the target, its size and speed,
/// and the time of everything. Of several seeds it is their mean, so that one
/// lucky seed does not stand for a model.
pub(crate) fn headline(data: &ReportData) -> String {
    let mut figures = Vec::new();
    let models = models(&data.runs);
    let best = best(&models);
    if let Some((model, accuracy)) = best {
        let seeds = model.runs.len();
        let mean = if seeds > 1 { format!(", mean of {seeds} seeds") } else { String::new() };
        figures.push(Figure {
            label: "Best accuracy".to_owned(),
            value: format!("{} %", percent(accuracy)),
            note: format!("{}{mean}", model.name),
        });
        if let Some(target) = data.target {
            figures.push(target_figure(model, target));
        }
    }
    if let Some(model) = best.map(|(model, _)| model).or(models.first()) {
        figures.push(Figure {
            label: "Parameters".to_owned(),
            value: grouped(model.runs[0].parameters),
            note: model.name.to_owned(),
        });
        let speeds = model.runs.iter().flat_map(|run| &run.points);
        let speeds = speeds.filter_map(|point| point.tokens_per_second);
        if let Some(speed) = median(speeds.filter(|speed| speed.is_finite()).collect()) {
            figures.push(Figure {
                label: "Tokens per second".to_owned(),
                value: compact(speed.round()),
                note: "median while training".to_owned(),
            });
        }
    }
    if let Some(environment) = &data.environment {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let (runs, threads) = (data.runs.len(), environment.threads);
        figures.push(Figure {
            label: "Total time".to_owned(),
            value: duration(environment.seconds),
            note: format!("{}, {}", count(runs, "run"), count(threads, "thread")),
        });
    }
    if figures.is_empty() {
        return String::new();
    }
    let mut out = String::from("<dl class=\"figures\">\n");
    for Figure { label, value, note } in figures {
        let (label, value, note) = (escape(&label), escape(&value), escape(&note));
        let _ = write!(out, "<div><dt>{label}</dt><dd>{value}");
        let _ = writeln!(out, "<span class=\"figure-note\">{note}</span></dd></div>");
    }
    out.push_str("</dl>\n");
    out
}

/// The model with the highest overall accuracy at the end, mean over seeds.
fn best<'a, 'b>(models: &'b [Model<'a>]) -> Option<(&'b Model<'a>, f64)> {
    let scored = models.iter().filter_map(|model| {
        let scores = model.runs.iter().map(|run| Some(run.scores.as_ref()?.overall.accuracy));
        let scores: Vec<f64> = scores.collect::<Option<_>>()?;
        Some((model, scores.iter().sum::<f64>() / scores.len() as f64))
    });
    scored.filter(|(_, accuracy)| accuracy.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1))
}

/// When the model first reached the target on validation data: the median
/// seed.
fn target_figure(model: &Model<'_>, target: f64) -> Figure {
    let reached = |point: &&Point| point.accuracy.is_some_and(|accuracy| accuracy >= target);
    let first = model.runs.iter().filter_map(|run| run.points.iter().find(reached));
    let steps: Vec<f64> = first.map(|point| point.step as f64).collect();
    let (hits, seeds) = (steps.len(), model.runs.len());
    let note = match (hits, seeds) {
        (1, 1) | (0, _) => "on validation data".to_owned(),
        _ => format!("on validation data, {hits} of {seeds} seeds"),
    };
    let value = median(steps)
        .map_or_else(|| "not reached".to_owned(), |step| format!("step {}", grouped(step as u64)));
    Figure { label: format!("{} % first reached", compact(target * 100.0)), value, note }
}

/// The upper median.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
