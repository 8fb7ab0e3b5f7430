//! The frame of the page: head, navigation, sections, data and scripts.

use std::fmt::Write as _;

use super::data::ReportData;
use super::html::{escape, escape_json};
use super::{Result, sections};

const STYLE: &str = include_str!("assets/report.css");
const CHART: &str = include_str!("assets/chart.js");
const LINE_CHART: &str = include_str!("assets/line_chart.js");
const START: &str = include_str!("assets/start.js");

/// Nothing may be loaded from anywhere, whatever the data say.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                      script-src 'unsafe-inline'; img-src data:";

/// Puts the page together from data already checked.
pub(crate) fn page(data: &ReportData) -> Result<String> {
    let sections = sections::all(data)?;
    let title = if data.title.is_empty() { "Specialformer run" } else { &data.title };
    let mut out = String::with_capacity(1 << 18);
    write_head(&mut out, title);
    out.push_str("<body>\n<a class=\"skip\" href=\"#main\">Skip to the results</a>\n");
    out.push_str("<header class=\"masthead\"><div class=\"wrap\">\n");
    out.push_str("<p class=\"eyebrow\">Specialformer · run report</p>\n");
    let _ = writeln!(out, "<h1>{}</h1>", escape(title));
    if !data.subtitle.is_empty() {
        let _ = writeln!(out, "<p class=\"subtitle\">{}</p>", escape(&data.subtitle));
    }
    out.push_str(&sections::headline(data));
    out.push_str("</div></header>\n");
    if sections.len() > 1 {
        out.push_str("<nav class=\"contents\" aria-label=\"Sections\"><div class=\"wrap\"><ul>\n");
        for section in &sections {
            let _ = writeln!(out, "<li><a href=\"#{}\">{}</a></li>", section.id, section.title);
        }
        out.push_str("</ul></div></nav>\n");
    }
    out.push_str("<main id=\"main\" class=\"wrap\">\n");
    for section in &sections {
        let id = section.id;
        let _ = writeln!(out, "<section id=\"{id}\" aria-labelledby=\"{id}-title\">");
        let _ = writeln!(out, "<h2 id=\"{id}-title\">{}</h2>", section.title);
        let _ = writeln!(out, "{}\n</section>", section.body);
    }
    out.push_str("</main>\n");
    let json = escape_json(&serde_json::to_string(data)?);
    let _ = writeln!(out, "<script type=\"application/json\" id=\"report-data\">{json}</script>");
    out.push_str("<script>\n\"use strict\";\n");
    for script in [CHART, LINE_CHART] {
        out.push_str(script);
    }
    for script in sections.iter().filter_map(|section| section.script) {
        out.push_str(script);
    }
    out.push_str(START);
    out.push_str("</script>\n</body>\n</html>\n");
    Ok(out)
}

fn write_head(out: &mut String, title: &str) {
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let _ = writeln!(out, "<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    out.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n");
    out.push_str("<meta name=\"referrer\" content=\"no-referrer\">\n");
    out.push_str("<link rel=\"icon\" href=\"data:,\">\n");
    let _ = writeln!(out, "<title>{}</title>", escape(title));
    let _ = writeln!(out, "<style>\n{STYLE}</style>\n</head>");
}
