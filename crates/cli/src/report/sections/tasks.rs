//! Scores by task: one line for each, which stays readable with many tasks.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{ReportData, TaskResult};
use crate::report::html::{escape, percent};
use crate::table::{NONE, grouped};

/// The section; absent without tasks.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    let runs: Vec<_> = data.runs.iter().filter(|run| !run.tasks.is_empty()).collect();
    if runs.is_empty() {
        return None;
    }
    let mut body = String::from(
        "<p class=\"lead\">Each task on held-out data. Accuracy counts targets that are classes, \
         tokens or labels, in percent ± standard error; R² is for numbers. The loss is \
         cross-entropy in nats, or squared error.</p>\n",
    );
    for run in &runs {
        if runs.len() > 1 {
            let _ = writeln!(body, "<h3>{}, seed {}</h3>", escape(&run.name), run.seed);
        }
        table(&mut body, &run.tasks);
    }
    Some(Section { id: "tasks", title: "Tasks", body, script: None })
}

fn table(out: &mut String, tasks: &[TaskResult]) {
    out.push_str("<div class=\"table-scroll\" tabindex=\"0\" role=\"region\" ");
    out.push_str("aria-label=\"Scores by task\"><table><thead><tr>");
    out.push_str("<th scope=\"col\">Task</th><th scope=\"col\">Kind</th>");
    for title in ["Accuracy", "R²", "Loss", "Targets"] {
        let _ = write!(out, "<th scope=\"col\" class=\"number\">{title}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for task in tasks {
        let (name, kind) = (escape(&task.name), escape(&task.kind));
        let _ = write!(out, "<tr><th scope=\"row\">{name}</th><td>{kind}</td>");
        match task.accuracy.filter(|score| score.accuracy.is_finite()) {
            Some(score) => {
                let part = score.accuracy.clamp(0.0, 1.0);
                let _ = write!(out, "<td class=\"number score\" style=\"--part:{part:.3}\">");
                out.push_str(&percent(score.accuracy));
                if let Some(error) = score.standard_error.filter(|error| error.is_finite()) {
                    let _ = write!(out, " <span class=\"error\">± {}</span>", percent(error));
                }
                out.push_str("</td>");
            }
            None => {
                let _ = write!(out, "<td class=\"number\">{NONE}</td>");
            }
        }
        let number = |value: Option<f64>| match value.filter(|value| value.is_finite()) {
            Some(value) => format!("{value:.4}"),
            None => NONE.to_owned(),
        };
        let _ = write!(out, "<td class=\"number\">{}</td>", number(task.r_squared));
        let _ = write!(out, "<td class=\"number\">{}</td>", number(Some(task.loss)));
        let _ = writeln!(out, "<td class=\"number\">{}</td></tr>", grouped(task.targets));
    }
    out.push_str("</tbody></table></div>\n");
}
