//! Sample windows: what each model answered, and where its heads looked.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{ReportData, Run, Sample, Window};
use crate::report::html::escape;

/// The section; absent without sample windows.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    if data.windows.is_empty() {
        return None;
    }
    let maps = data.runs.iter().flat_map(|run| &run.samples).any(|sample| !sample.maps.is_empty());
    let mut body = String::from("<p class=\"lead\">Windows from held-out data");
    body.push_str(if maps { ", and how every head weighs their tokens. " } else { ". " });
    body.push_str("Tokens are coloured by subtask");
    if data.windows.iter().any(|window| !window.sources.is_empty()) {
        body.push_str("; a bar below marks those that the answer follows from");
    }
    body.push_str(".</p>\n");
    legend(&mut body, data);
    answers(&mut body, data);
    if maps {
        body.push_str("<h3>Attention maps</h3>\n");
        body.push_str("<noscript><p class=\"note\">The maps need scripts.</p></noscript>\n");
        body.push_str(
            "<div class=\"controls needs-script\" data-role=\"controls\" hidden></div>\n",
        );
        body.push_str("<div class=\"needs-script\" data-role=\"maps\" hidden></div>\n");
    }
    Some(Section {
        id: "attention",
        title: if maps { "Attention" } else { "Sample windows" },
        body,
        script: maps.then_some(include_str!("../assets/attention.js")),
    })
}

fn legend(out: &mut String, data: &ReportData) {
    if data.subtasks.is_empty() {
        return;
    }
    out.push_str("<ul class=\"legend\" aria-label=\"Subtasks\">");
    for (index, subtask) in data.subtasks.iter().enumerate() {
        let (symbol, name) = (escape(&subtask.symbol), escape(&subtask.name));
        let _ =
            write!(out, "<li><span class=\"token task-{}\">{symbol}</span> {name}</li>", index % 8);
    }
    out.push_str("</ul>\n");
}

/// The windows, their right answers and what each run predicted.
fn answers(out: &mut String, data: &ReportData) {
    let named = data.runs.len() > 1;
    out.push_str("<ol class=\"windows\">\n");
    for (index, window) in data.windows.iter().enumerate() {
        out.push_str("<li>");
        tokens(out, window);
        let answer = token(&window.answer, window.subtask);
        let _ = write!(out, "<span class=\"answer\"><span aria-hidden=\"true\">→</span>");
        let _ = write!(out, "<span class=\"hidden-text\">Right answer: </span>{answer}</span>");
        out.push_str("<ul class=\"predictions\">");
        for run in &data.runs {
            if let Some(sample) = run.samples.iter().find(|sample| sample.window == index) {
                prediction(out, run, sample, window, named);
            }
        }
        out.push_str("</ul></li>\n");
    }
    out.push_str("</ol>\n");
}

fn tokens(out: &mut String, window: &Window) {
    out.push_str("<span class=\"tokens\">");
    for (position, entry) in window.tokens.iter().enumerate() {
        let mark = token(&entry.text, entry.subtask);
        if window.sources.contains(&position) {
            let _ = write!(out, "<span class=\"source\">{mark}</span>");
        } else {
            out.push_str(&mark);
        }
    }
    out.push_str("</span>");
}

fn token(text: &str, subtask: Option<usize>) -> String {
    let class = subtask.map_or_else(String::new, |task| format!(" task-{}", task % 8));
    format!("<span class=\"token{class}\">{}</span>", escape(text))
}

fn prediction(out: &mut String, run: &Run, sample: &Sample, window: &Window, named: bool) {
    let right = sample.prediction == window.answer;
    let (class, sign, word) =
        if right { ("right", "✓", "right") } else { ("wrong", "✗", "wrong") };
    let name = if named { escape(&run.name) } else { "predicted".to_owned() };
    let _ = write!(
        out,
        "<li class=\"{class}\"><span aria-label=\"{word}\" role=\"img\">{sign}</span>\
         <b>{}</b><span class=\"who\">{name}</span></li>",
        escape(&sample.prediction)
    );
}
