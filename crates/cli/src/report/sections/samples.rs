//! Questions about images and series with what was answered.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{Answered, ReportData};
use crate::report::html::{escape, percent};

/// Width of a drawing.
const SIZE: f64 = 96.0;

/// The section; absent without samples.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    if data.samples.is_empty() {
        return None;
    }
    let mut body = String::from(
        "<p class=\"lead\">Test examples as they come. A frame over a patch is the darker the \
         more the answering position attends to it, averaged over layers and heads.</p>\n\
         <div class=\"table-scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Samples\">\
         <table><thead><tr><th scope=\"col\">Task</th><th scope=\"col\">Shown</th>\
         <th scope=\"col\">Question</th><th scope=\"col\">Answer</th>\
         <th scope=\"col\" class=\"number\">Probability</th></tr></thead>\n<tbody>\n",
    );
    for sample in &data.samples {
        let _ = write!(body, "<tr><th scope=\"row\">{}</th><td>", escape(&sample.task));
        for (pixels, attention) in &sample.images {
            image(&mut body, pixels, attention);
        }
        if !sample.series.is_empty() {
            series(&mut body, &sample.series);
        }
        let answer =
            if sample.answer == sample.expected { escape(&sample.answer) } else { wrong(sample) };
        let _ = writeln!(
            body,
            "</td><td>{}</td><td>{answer}</td><td class=\"number\">{}</td></tr>",
            escape(&sample.question),
            percent(sample.probability)
        );
    }
    body.push_str("</tbody></table></div>");
    Some(Section { id: "samples", title: "Samples", body, script: None })
}

fn wrong(sample: &Answered) -> String {
    format!("<s>{}</s> {}", escape(&sample.answer), escape(&sample.expected))
}

fn open(out: &mut String, label: &str) {
    let _ = write!(
        out,
        "<svg role=\"img\" aria-label=\"{label}\" width=\"{SIZE}\" height=\"{SIZE}\" \
         viewBox=\"0 0 {SIZE} {SIZE}\">"
    );
}

/// An image as squares, with a frame over each patch.
fn image(out: &mut String, pixels: &[f32], attention: &[f64]) {
    let side = (pixels.len() as f64).sqrt().round().max(1.0);
    open(out, "image");
    let _ = write!(out, "<rect width=\"{SIZE}\" height=\"{SIZE}\" fill=\"#000\"/>");
    let cell = SIZE / side;
    for (i, &pixel) in pixels.iter().enumerate().filter(|(_, pixel)| **pixel > 0.02) {
        let (x, y) = ((i as f64 % side) * cell, (i as f64 / side).floor() * cell);
        let level = (255.0 * pixel.clamp(0.0, 1.0)).round();
        let _ = write!(
            out,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{cell:.1}\" \
             fill=\"rgb({level},{level},{level})\"/>"
        );
    }
    let most = attention.iter().copied().fold(1e-9, f64::max);
    let patches = (attention.len() as f64).sqrt().round().max(1.0);
    let cell = SIZE / patches;
    for (i, weight) in attention.iter().enumerate() {
        let (x, y) = ((i as f64 % patches) * cell, (i as f64 / patches).floor() * cell);
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" \
             stroke=\"#e8590c\" stroke-width=\"3\" stroke-opacity=\"{:.2}\"/>",
            x + 1.5,
            y + 1.5,
            cell - 3.0,
            cell - 3.0,
            weight / most
        );
    }
    out.push_str("</svg> ");
}

/// A series as a line.
fn series(out: &mut String, values: &[f32]) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let span = f64::from(high - low).max(1e-9);
    let step = SIZE / (values.len().max(2) - 1) as f64;
    open(out, "series");
    out.push_str("<polyline fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.5\" points=\"");
    for (i, &value) in values.iter().enumerate() {
        let y = SIZE - 4.0 - (SIZE - 8.0) * f64::from(value - low) / span;
        let _ = write!(out, "{:.1},{y:.1} ", i as f64 * step);
    }
    out.push_str("\"/></svg>");
}
