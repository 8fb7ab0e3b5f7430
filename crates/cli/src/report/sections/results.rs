//! Final scores: a table of models by subtask, and the same as a chart.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{Model, ReportData, Run, Score, models};
use crate::report::html::{duration, escape, percent};
use crate::table::{NONE, grouped, mean_deviation};

/// The section; absent without runs.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    if data.runs.is_empty() && data.references.is_empty() {
        return None;
    }
    let models = models(&data.runs);
    let seeds = models.iter().map(|model| model.runs.len()).max().unwrap_or(0);
    let mut body = String::new();
    body.push_str("<p class=\"lead\">Accuracy on held-out data, in percent. ");
    body.push_str(if seeds > 1 {
        "Mean over the seeds of a model ± standard deviation between them; with one seed ± is \
         the standard error. "
    } else {
        "± is the standard error. "
    });
    if models.len() > 1 {
        body.push_str("The best value of a column is bold.");
    }
    body.push_str("</p>\n");
    for note in &data.notes {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escape(note));
    }
    let rows: Vec<Row<'_>> = models.iter().map(|model| Row::of_model(model, seeds > 1)).collect();
    table(&mut body, data, &rows, "Models");
    if data.runs.iter().any(|run| run.scores.is_some()) {
        body.push_str("<div class=\"needs-script\" data-role=\"scores\" hidden></div>\n");
    }
    if seeds > 1 {
        let rows: Vec<Row<'_>> = data.runs.iter().map(Row::of_run).collect();
        body.push_str("<details><summary>Every seed</summary>\n");
        body.push_str("<p class=\"caption\">± is the standard error.</p>\n");
        table(&mut body, data, &rows, "Every seed");
        body.push_str("</details>\n");
    }
    layouts(&mut body, &models);
    Some(Section {
        id: "results",
        title: "Results",
        body,
        script: Some(include_str!("../assets/results.js")),
    })
}

/// One line of a table.
struct Row<'a> {
    name: &'a str,
    /// Which seed or how many; empty where that says nothing.
    seeds: String,
    run: &'a Run,
    seconds: Option<f64>,
    overall: Option<Score>,
    subtasks: Vec<Option<Score>>,
}

impl<'a> Row<'a> {
    fn of_run(run: &'a Run) -> Self {
        let scores = run.scores.as_ref();
        Self {
            name: &run.name,
            seeds: format!("seed {}", run.seed),
            run,
            seconds: run.seconds,
            overall: scores.map(|scores| scores.overall),
            subtasks: scores
                .map(|scores| scores.subtasks.iter().copied().map(Some).collect())
                .unwrap_or_default(),
        }
    }

    fn of_model(model: &Model<'a>, counted: bool) -> Self {
        let first = model.runs[0];
        if model.runs.len() == 1 {
            let seeds = if counted { "1 seed".to_owned() } else { String::new() };
            return Self { seeds, ..Self::of_run(first) };
        }
        let scored: Vec<_> = model.runs.iter().filter_map(|run| run.scores.as_ref()).collect();
        let overall: Vec<f64> = scored.iter().map(|scores| scores.overall.accuracy).collect();
        let subtasks = scored.iter().map(|scores| scores.subtasks.len()).min().unwrap_or(0);
        let subtask = |task: usize| {
            let values: Vec<f64> =
                scored.iter().map(|scores| scores.subtasks[task].accuracy).collect();
            spread(&values)
        };
        let seconds: Option<Vec<f64>> = model.runs.iter().map(|run| run.seconds).collect();
        Self {
            name: model.name,
            seeds: format!("{} seeds", model.runs.len()),
            run: first,
            seconds: seconds.map(|all| all.iter().sum::<f64>() / all.len() as f64),
            overall: spread(&overall),
            subtasks: (0..subtasks).map(subtask).collect(),
        }
    }
}

/// Mean and sample standard deviation (in the place of the error).
fn spread(values: &[f64]) -> Option<Score> {
    let (accuracy, standard_error) = mean_deviation(values)?;
    Some(Score { accuracy, standard_error })
}

/// Number of subtasks that have a column: none where they are too many to
/// read and stand in a table of their own.
fn columns(data: &ReportData) -> usize {
    const MOST: usize = 6;
    let listed = data.runs.iter().any(|run| !run.tasks.is_empty());
    if listed && data.subtasks.len() > MOST { 0 } else { data.subtasks.len() }
}

fn table(out: &mut String, data: &ReportData, rows: &[Row<'_>], label: &str) {
    let timed = rows.iter().any(|row| row.seconds.is_some());
    let subtasks = columns(data);
    let _ = writeln!(
        out,
        "<div class=\"table-scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">"
    );
    out.push_str("<table class=\"scores\"><thead><tr><th scope=\"col\">Model</th>");
    out.push_str("<th scope=\"col\" class=\"number\">Parameters</th>");
    for subtask in &data.subtasks[..subtasks] {
        let (symbol, name) = (escape(&subtask.symbol), escape(&subtask.name));
        let _ = write!(out, "<th scope=\"col\" class=\"number\">{name}");
        if symbol != name {
            let _ = write!(out, " <span class=\"symbol\">{symbol}</span>");
        }
        out.push_str("</th>");
    }
    out.push_str("<th scope=\"col\" class=\"number\">All</th>");
    out.push_str("<th scope=\"col\" class=\"number\">Steps</th>");
    if timed {
        out.push_str("<th scope=\"col\" class=\"number\">Time</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");

    // Column `subtasks` is the overall score.
    let cell = |row: &Row<'_>, column: usize| {
        let score = if column == subtasks {
            row.overall
        } else {
            row.subtasks.get(column).copied().flatten()
        };
        score.filter(|score| score.accuracy.is_finite())
    };
    let best: Vec<f64> = (0..=subtasks)
        .map(|column| {
            let values = rows.iter().filter_map(|row| cell(row, column));
            values.map(|score| score.accuracy).fold(f64::NEG_INFINITY, f64::max)
        })
        .collect();
    for row in rows {
        let _ = write!(out, "<tr><th scope=\"row\">{}", escape(row.name));
        if !row.seeds.is_empty() {
            let _ = write!(out, " <span class=\"seeds\">{}</span>", escape(&row.seeds));
        }
        out.push_str("</th>");
        let _ = write!(out, "<td class=\"number\">{}</td>", grouped(row.run.parameters));
        for (column, &best) in best.iter().enumerate() {
            score_cell(out, cell(row, column), best, rows.len() > 1);
        }
        let steps = row.run.points.last().map(|point| grouped(point.step));
        let _ = write!(out, "<td class=\"number\">{}</td>", steps.as_deref().unwrap_or(NONE));
        if timed {
            let time = row.seconds.map_or_else(|| NONE.to_owned(), duration);
            let _ = write!(out, "<td class=\"number\">{time}</td>");
        }
        out.push_str("</tr>\n");
    }
    for reference in &data.references {
        let _ =
            write!(out, "<tr class=\"reference\"><th scope=\"row\">{}", escape(&reference.name));
        let _ = write!(out, "</th><td class=\"number\">{NONE}</td>");
        for column in 0..=subtasks {
            let value = if column == subtasks {
                reference.overall
            } else {
                reference.subtasks.get(column).copied().flatten()
            };
            let score = value.map(|accuracy| Score { accuracy, standard_error: None });
            score_cell(out, score, f64::INFINITY, false);
        }
        let _ = write!(out, "<td class=\"number\">{NONE}</td>");
        if timed {
            let _ = write!(out, "<td class=\"number\">{NONE}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

fn score_cell(out: &mut String, score: Option<Score>, best: f64, compare: bool) {
    let Some(score) = score.filter(|score| score.accuracy.is_finite()) else {
        let _ = write!(out, "<td class=\"number\">{NONE}</td>");
        return;
    };
    let fill = score.accuracy.clamp(0.0, 1.0);
    let class = if compare && score.accuracy >= best { " best" } else { "" };
    let _ = write!(out, "<td class=\"number score{class}\" style=\"--part:{fill:.3}\">");
    out.push_str(&percent(score.accuracy));
    if let Some(error) = score.standard_error.filter(|error| error.is_finite()) {
        let _ = write!(out, " <span class=\"error\">± {}</span>", percent(error));
    }
    out.push_str("</td>");
}

fn layouts(out: &mut String, models: &[Model<'_>]) {
    let given = || models.iter().filter(|model| !model.runs[0].parameter_layout.is_empty());
    if given().next().is_none() {
        return;
    }
    out.push_str("<details><summary>How the parameters add up</summary>\n<dl class=\"rows\">\n");
    for model in given() {
        let run = model.runs[0];
        let (name, layout) = (escape(model.name), escape(&run.parameter_layout));
        let total = grouped(run.parameters);
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{layout} = {total}</dd></div>");
    }
    out.push_str("</dl></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_mean_and_sample_deviation() {
        let score = spread(&[0.9, 0.8, 1.0]).unwrap();
        assert!((score.accuracy - 0.9).abs() < 1e-12);
        assert!((score.standard_error.unwrap() - 0.1).abs() < 1e-12);
        assert!(spread(&[]).is_none());
        assert!(spread(&[0.5]).unwrap().standard_error.is_none());
    }
}
