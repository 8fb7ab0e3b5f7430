//! Where a mixture of experts sends its tokens: figures by layer, load by
//! expert, task × expert and expert × expert heat maps, and how the router
//! changed over training.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{ReportData, Routing, RoutingLayer};
use crate::report::html::{escape, percent};
use crate::table::{NONE, grouped};

/// With more experts than this, cells show their value on demand only.
const NUMBERED: usize = 16;

/// The section; absent without routing.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    let routing = data.routing.as_ref().filter(|routing| !routing.layers.is_empty())?;
    let mut body = String::new();
    let _ = writeln!(
        body,
        "<p class=\"lead\">Which experts the tokens of {} rows of {} data go to. An assignment is \
         a token going to one expert; the load of an expert is its share of them.</p>",
        grouped(routing.rows as u64),
        escape(&routing.set)
    );
    figures(&mut body, routing);
    body.push_str("<h3>Load by layer and expert</h3>\n");
    load(&mut body, routing);
    if routing.layers.iter().any(|layer| layer.points.len() > 1) {
        body.push_str("<h3>Over training</h3>\n");
        body.push_str(
            "<div class=\"controls needs-script\" data-role=\"controls\" hidden></div>\n",
        );
        body.push_str("<figure class=\"chart\" data-role=\"curve\">");
        curve(&mut body, routing);
        body.push_str("</figure>\n");
    }
    body.push_str(
        "<div class=\"controls needs-script layer-chooser\" data-role=\"layers\" hidden></div>\n",
    );
    for (index, layer) in routing.layers.iter().enumerate() {
        let _ = writeln!(body, "<div data-layer=\"{index}\">");
        if !routing.tasks.is_empty() {
            let _ = writeln!(body, "<h3>Task × expert, {}</h3>", escape(&layer.name));
            body.push_str("<p class=\"caption\">Each row: the experts of one task, in percent of its assignments.</p>\n");
            let names: Vec<String> = routing.tasks.clone();
            heat_map(&mut body, "Task", &names, &layer.task_shares, "share of the task");
        }
        let _ = writeln!(body, "<h3>Experts together, {}</h3>", escape(&layer.name));
        body.push_str("<p class=\"caption\">Each row: of the tokens that go to this expert, the percentage that also goes to the expert of the column.</p>\n");
        let names: Vec<String> = (0..layer.load.len()).map(|e| format!("expert {e}")).collect();
        heat_map(&mut body, "Tokens of", &names, &layer.co_activation, "also go there");
        body.push_str("</div>\n");
    }
    Some(Section {
        id: "routing",
        title: "Routing",
        body,
        script: Some(include_str!("../assets/routing.js")),
    })
}

/// One line of figures for each layer.
fn figures(out: &mut String, routing: &Routing) {
    table_start(out, "Routing by layer");
    out.push_str("<table class=\"compact\"><thead><tr><th scope=\"col\">Layer</th>");
    for title in [
        "Experts",
        "Router entropy",
        "Load evenness",
        "Max / mean load",
        "Dropped",
        "Mutual information",
        "Specialisation",
        "Calibration error",
    ] {
        let _ = write!(out, "<th scope=\"col\" class=\"number\">{title}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for layer in &routing.layers {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(&layer.name));
        let cells = [
            layer.load.len().to_string(),
            number(layer.entropy, 3),
            number(layer.evenness, 3),
            number(layer.max_over_mean, 2),
            format!("{} %", percent(layer.dropped)),
            number(layer.mutual_information, 3),
            number(layer.specialization, 3),
            layer.calibration.map_or_else(|| NONE.to_owned(), |e| format!("{} %", percent(e))),
        ];
        for cell in cells {
            let _ = write!(out, "<td class=\"number\">{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out.push_str(
        "<p class=\"caption\">Entropy is of a token\u{2019}s router probabilities, in nats (ln E if \
         undecided). Evenness is the entropy of the load over ln E: 1 if even. Mutual information \
         is that of task and expert, in nats; specialisation is its share of the most that there \
         could be: 0 if all tasks are routed alike. The calibration error compares the weight of \
         a token\u{2019}s first choice with how often that is the expert its task goes to most.</p>\n",
    );
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { NONE.to_owned() }
}

fn table_start(out: &mut String, label: &str) {
    let label = escape(label);
    let _ = writeln!(
        out,
        "<div class=\"table-scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">"
    );
}

/// Layers × experts; the shades begin anew in each layer, whose experts may
/// be more or fewer.
fn load(out: &mut String, routing: &Routing) {
    let names: Vec<String> = routing.layers.iter().map(|layer| layer.name.clone()).collect();
    let rows: Vec<Vec<f64>> = routing.layers.iter().map(|layer| layer.load.clone()).collect();
    heat_map(out, "Layer", &names, &rows, "of the assignments");
    out.push_str("<p class=\"caption\">In percent of the layer\u{2019}s assignments.</p>\n");
}

/// A table of shares whose cells are shaded by them.
fn heat_map(out: &mut String, corner: &str, names: &[String], rows: &[Vec<f64>], what: &str) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let most = rows.iter().flatten().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
    let numbered = columns <= NUMBERED;
    table_start(out, &format!("{corner} by expert"));
    let class = if numbered { "heat-table" } else { "heat-table dense" };
    let _ = write!(out, "<table class=\"{class}\"><thead><tr><th scope=\"col\">{corner}</th>");
    for expert in 0..columns {
        let _ = write!(out, "<th scope=\"col\">{expert}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (name, row) in names.iter().zip(rows) {
        let name = escape(name);
        let _ = write!(out, "<tr><th scope=\"row\">{name}</th>");
        for (expert, &share) in row.iter().enumerate() {
            let part = if most > 0.0 && share.is_finite() { share / most } else { 0.0 };
            // Where text has to turn: earlier on bright shades than on dark.
            let deep = match part {
                part if part > 0.65 => " class=\"deep\"",
                part if part > 0.45 => " class=\"mid\"",
                _ => "",
            };
            let value = percent_short(share);
            let title = format!("{name}, expert {expert}: {value} % {what}");
            let text = if numbered {
                value
            } else {
                format!("<span class=\"hidden-text\">{value}</span>")
            };
            let _ =
                write!(out, "<td{deep} style=\"--part:{part:.3}\" title=\"{title}\">{text}</td>");
        }
        for _ in row.len()..columns {
            out.push_str("<td class=\"absent\"></td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// A share in percent with as many digits as a cell has room for.
fn percent_short(share: f64) -> String {
    let value = 100.0 * share;
    match value {
        _ if !value.is_finite() => NONE.to_owned(),
        v if v >= 9.95 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

/// Entropy over training as plain lines, where there are no scripts.
fn curve(out: &mut String, routing: &Routing) {
    const WIDTH: f64 = 960.0;
    const HEIGHT: f64 = 240.0;
    let points = |layer: &RoutingLayer| -> Vec<(f64, f64)> {
        let points = layer.thinned().into_iter();
        let pairs = points.filter_map(|p| Some((p.step as f64, p.entropy?)));
        pairs.filter(|(_, entropy)| entropy.is_finite()).collect()
    };
    let lines: Vec<_> = routing.layers.iter().map(points).collect();
    let all = || lines.iter().flatten();
    let last = all().map(|p| p.0).fold(1.0, f64::max);
    let most = all().map(|p| p.1).fold(1e-9, f64::max);
    let _ = write!(
        out,
        "<svg role=\"img\" aria-label=\"Router entropy over training, from {} to {} steps\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\">",
        0, last
    );
    for (index, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for (x, y) in line {
            let (x, y) = (x / last * WIDTH, HEIGHT - y / most * (HEIGHT - 8.0));
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        let _ = write!(
            out,
            "<polyline fill=\"none\" stroke-width=\"2\" style=\"stroke:var(--series-{})\" \
             points=\"{}\"/>",
            index % 8,
            path.trim_end()
        );
    }
    out.push_str("</svg>");
}
