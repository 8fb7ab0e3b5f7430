//! The geometry of attention space: distributions of z and of cos(q, k).

use std::fmt::Write as _;

use super::Section;
use crate::report::data::{HeadHistogram, Quantity, ReportData};
use crate::report::html::escape;
use crate::table::NONE;

/// The section; absent without histograms.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    if data.runs.iter().all(|run| run.histograms.is_empty()) {
        return None;
    }
    let mut body = String::from(
        "<p class=\"lead\">Where queries and keys point. Softmax weighs a pair by \
         exp(z), so only keys parallel to the query count; expressive attention weighs it by \
         z²/(1 + z²), so that antiparallel keys count as much and orthogonal ones do not. \
         Here z = q·k/√D.</p>\n",
    );
    body.push_str("<div class=\"controls needs-script\" data-role=\"controls\" hidden></div>\n");
    body.push_str("<div class=\"needs-script\" data-role=\"panels\" hidden></div>\n");
    table(&mut body, data);
    Some(Section {
        id: "geometry",
        title: "Attention space",
        body,
        script: Some(include_str!("../assets/geometry.js")),
    })
}

/// The share of pairs, and of attention, that lies on the negative side.
fn table(out: &mut String, data: &ReportData) {
    out.push_str("<details data-role=\"table\"><summary>The negative side in figures</summary>\n");
    out.push_str("<p class=\"caption\">Share of bins centred below zero, in percent.</p>\n");
    out.push_str("<div class=\"table-scroll\" tabindex=\"0\" role=\"region\" ");
    out.push_str("aria-label=\"Share on the negative side\"><table><thead><tr>");
    for title in ["Model", "Quantity"] {
        let _ = write!(out, "<th scope=\"col\">{title}</th>");
    }
    for title in ["Layer", "Head", "Pairs", "Attention"] {
        let _ = write!(out, "<th scope=\"col\" class=\"number\">{title}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for run in &data.runs {
        for histogram in &run.histograms {
            let counts: Vec<f64> = histogram.counts.iter().map(|&count| count as f64).collect();
            let quantity = match histogram.quantity {
                Quantity::Z => "z",
                Quantity::Cosine => "cos(q, k)",
            };
            let _ =
                write!(out, "<tr><th scope=\"row\">{}</th><td>{quantity}</td>", escape(&run.name));
            let (layer, head) = (histogram.layer + 1, histogram.head + 1);
            let _ =
                write!(out, "<td class=\"number\">{layer}</td><td class=\"number\">{head}</td>");
            for weights in [&counts, &histogram.attended] {
                let share = negative_share(histogram, weights)
                    .map_or_else(|| NONE.to_owned(), |share| format!("{:.1}", share * 100.0));
                let _ = write!(out, "<td class=\"number\">{share}</td>");
            }
            out.push_str("</tr>\n");
        }
    }
    out.push_str("</tbody></table></div></details>\n");
}

fn negative_share(histogram: &HeadHistogram, weights: &[f64]) -> Option<f64> {
    let total: f64 = weights.iter().sum();
    let bins = histogram.edges.windows(2).zip(weights);
    let below: f64 =
        bins.filter(|(edge, _)| edge[0] + edge[1] < 0.0).map(|(_, weight)| weight).sum();
    (total > 0.0).then(|| below / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_share_counts_bins_below_zero() {
        let histogram = HeadHistogram {
            layer: 0,
            head: 0,
            quantity: Quantity::Cosine,
            edges: vec![-1.0, 0.0, 1.0],
            counts: vec![1, 3],
            attended: vec![],
        };
        assert_eq!(negative_share(&histogram, &[1.0, 3.0]), Some(0.25));
        assert_eq!(negative_share(&histogram, &[]), None);
        assert_eq!(negative_share(&histogram, &[0.0, 0.0]), None);
    }
}
