//! Routing signatures: what they know about labels, the experts of each label,
//! prompts in a plane, and routing over a prompt's text.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{ReportData, SignatureRow, Signatures};
use crate::report::html::escape;
use crate::table::{self, NONE};

/// The section; absent without signatures.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    let signatures = data.signatures.as_ref()?;
    let mut body = String::new();
    let _ = writeln!(
        body,
        "<p class=\"lead\">A prompt\u{2019}s signature is, for each layer, the share of its \
         tokens\u{2019} assignments that each expert got. {} prompts of {} labels.</p>",
        signatures.points.len(),
        signatures.labels.len()
    );
    table(&mut body, "Signatures and what they are compared with", "", &signatures.comparison);
    let _ = writeln!(body, "<p class=\"caption\">{}</p>", escape(&signatures.test));
    body.push_str("<details><summary>By layer</summary>\n");
    table(&mut body, "By layer", "Layer", &signatures.by_layer);
    body.push_str("</details>\n<details><summary>Confusion of the classifier</summary>\n");
    confusion(&mut body, signatures);
    body.push_str("</details>\n");

    body.push_str("<h3>Experts by label</h3>\n");
    body.push_str(
        "<div class=\"controls needs-script\" data-role=\"map-controls\" hidden></div>\n",
    );
    body.push_str("<div class=\"table-scroll sig-scroll\" data-role=\"map\">");
    carriers(&mut body, signatures);
    body.push_str(
        "</div>\n<p class=\"caption\" data-role=\"map-note\" aria-live=\"polite\"></p>\n",
    );

    body.push_str("<h3>Prompts in the plane of their largest differences</h3>\n");
    body.push_str("<figure class=\"chart needs-script\" data-role=\"plane\" hidden></figure>\n");
    body.push_str("<p class=\"caption\">Principal components of the signatures. Point at a prompt for its name, or step through them with the arrow keys; a click or Enter shows one whose text was kept.</p>\n");

    if !signatures.texts.is_empty() {
        body.push_str("<h3>Routing over a prompt</h3>\n");
        body.push_str(
            "<div class=\"controls needs-script\" data-role=\"text-controls\" hidden></div>\n",
        );
        body.push_str("<div class=\"routed needs-script\" data-role=\"text\" hidden></div>\n");
        body.push_str("<p class=\"caption\" data-role=\"text-note\" aria-live=\"polite\"></p>\n");
    }
    Some(Section {
        id: "signatures",
        title: "Routing signatures",
        body,
        script: Some(include_str!("../assets/signatures.js")),
    })
}

fn table(out: &mut String, label: &str, corner: &str, rows: &[SignatureRow]) {
    let _ = write!(
        out,
        "<div class=\"table-scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">\
         <table class=\"compact\"><thead><tr><th scope=\"col\">{corner}</th>",
        escape(label)
    );
    for title in ["Cosine within labels", "Across labels", "Cohen\u{2019}s d", "Accuracy"] {
        let _ = write!(out, "<th scope=\"col\" class=\"number\">{title}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        let pair = |i: usize| match row.cosines {
            Some(all) => format!("{:.4} ± {:.4}", all[i], all[i + 1]),
            None => NONE.to_owned(),
        };
        let effect = row.effect.map_or_else(|| NONE.to_owned(), table::hundredths);
        let [accuracy, spread] = row.accuracy.map(|x| 100.0 * x);
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{effect}</td><td class=\"number\">{accuracy:.1} ± {spread:.1} %</td>\
             </tr>",
            escape(&row.name),
            pair(0),
            pair(2)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn confusion(out: &mut String, signatures: &Signatures) {
    out.push_str("<div class=\"table-scroll\"><table class=\"compact\"><thead><tr><th scope=\"col\">Label</th>");
    for label in &signatures.labels {
        let _ = write!(out, "<th scope=\"col\" class=\"number\">taken for {}</th>", escape(label));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (label, row) in signatures.labels.iter().zip(&signatures.confusion) {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(label));
        for count in row {
            let _ = write!(out, "<td class=\"number\">{count}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// What stands in place of the map where there are no scripts.
fn carriers(out: &mut String, signatures: &Signatures) {
    out.push_str("<table class=\"compact\"><thead><tr><th scope=\"col\">Label</th><th scope=\"col\">Experts with a larger share than in other prompts, with the 95 % interval of the difference</th></tr></thead>\n<tbody>\n");
    for (label, carriers) in signatures.labels.iter().zip(&signatures.carriers) {
        let all: Vec<String> = carriers
            .iter()
            .map(|(name, [gap, low, high])| {
                format!("{} +{gap:.3} [{low:.3}, {high:.3}]", escape(name))
            })
            .collect();
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
            escape(label),
            all.join("; ")
        );
    }
    out.push_str("</tbody></table>");
}
