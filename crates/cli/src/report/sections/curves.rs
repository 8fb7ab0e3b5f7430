//! Learning curves: a static drawing that the script replaces by one with
//! choices of metric, axis and smoothing, and one small chart per subtask.

use super::Section;
use crate::report::Result;
use crate::report::chart::{Ink, learning_curves};
use crate::report::data::{MAX_POINTS, ReportData};

/// The section; absent without curves.
pub(crate) fn section(data: &ReportData) -> Result<Option<Section>> {
    let Some(svg) = learning_curves(data, Ink::Page)? else {
        return Ok(None);
    };
    let mut body = String::from("<p class=\"lead\">How each model learned.");
    let seeds = crate::report::data::models(&data.runs);
    if seeds.iter().any(|model| model.runs.len() > 1) {
        body.push_str(" Thick lines are means over seeds, thin lines the seeds.");
    }
    if data.runs.iter().any(|run| run.points.len() > MAX_POINTS) {
        body.push_str(" Long curves are thinned evenly; the metrics file has every point.");
    }
    body.push_str(
        "</p>\n<div class=\"controls needs-script\" data-role=\"controls\" hidden></div>\n",
    );
    body.push_str("<figure class=\"chart\" data-role=\"main\">");
    body.push_str(&svg);
    body.push_str("</figure>\n");
    body.push_str("<div class=\"needs-script\" data-role=\"subtasks\" hidden></div>\n");
    Ok(Some(Section {
        id: "curves",
        title: "Learning curves",
        body,
        script: Some(include_str!("../assets/curves.js")),
    }))
}
