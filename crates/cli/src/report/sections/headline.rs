//! The few figures at the top of the page.

use std::fmt::Write as _;

use crate::report::data::{ReportData, Run};
use crate::report::html::{compact, duration, escape, percent, thousands};

struct Figure {
    label: String,
    value: String,
    note: String,
}

/// The best score, when the target was reached, size, speed and time.
pub(crate) fn headline(data: &ReportData) -> String {
    let mut figures = Vec::new();
    let best = best(&data.runs);
    if let Some((run, accuracy)) = best {
        figures.push(Figure {
            label: "Best accuracy".to_owned(),
            value: format!("{} %", percent(accuracy)),
            note: run.name.clone(),
        });
        if let Some(target) = data.target {
            figures.push(target_figure(run, target));
        }
    }
    if let Some(run) = best.map(|(run, _)| run).or(data.runs.first()) {
        figures.push(Figure {
            label: "Parameters".to_owned(),
            value: thousands(run.parameters),
            note: run.name.clone(),
        });
        if let Some(speed) = median_speed(run) {
            figures.push(Figure {
                label: "Training speed".to_owned(),
                value: format!("{} tokens/s", compact(speed)),
                note: "median of the run".to_owned(),
            });
        }
    }
    if let Some(environment) = &data.environment {
        let runs = data.runs.len();
        let threads = environment.threads;
        figures.push(Figure {
            label: "Total time".to_owned(),
            value: duration(environment.seconds),
            note: format!(
                "{runs} run{}, {threads} thread{}",
                if runs == 1 { "" } else { "s" },
                if threads == 1 { "" } else { "s" }
            ),
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

/// The run with the highest overall accuracy at the end.
fn best(runs: &[Run]) -> Option<(&Run, f64)> {
    let scored = runs.iter().filter_map(|run| Some((run, run.scores.as_ref()?.overall.accuracy)));
    scored.filter(|(_, accuracy)| accuracy.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1))
}

/// When the run first reached the target on validation data.
fn target_figure(run: &Run, target: f64) -> Figure {
    let reached = |accuracy: f64| accuracy >= target;
    let label = format!("{} % first reached", compact(target * 100.0));
    match run.points.iter().find(|point| point.accuracy.is_some_and(reached)) {
        Some(point) => Figure {
            label,
            value: format!("step {}", thousands(point.step)),
            note: format!("after {} tokens", compact(point.tokens as f64)),
        },
        None => Figure { label, value: "not yet".to_owned(), note: "on validation data".to_owned() },
    }
}

fn median_speed(run: &Run) -> Option<f64> {
    let speeds = run.points.iter().filter_map(|point| point.tokens_per_second);
    let mut speeds: Vec<f64> = speeds.filter(|speed| speed.is_finite()).collect();
    speeds.sort_by(f64::total_cmp);
    speeds.get(speeds.len() / 2).copied()
}
