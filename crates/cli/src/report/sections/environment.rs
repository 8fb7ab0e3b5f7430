//! Where and how the runs were made.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::ReportData;
use crate::report::html::{duration, escape};

/// The section; absent without an environment.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    let environment = data.environment.as_ref()?;
    let mut rows = vec![
        ("Version", environment.version.clone()),
        ("SIMD", environment.simd.clone()),
        ("Threads", environment.threads.to_string()),
        ("Total time", duration(environment.seconds)),
    ];
    let extra = environment.extra.iter().map(|(label, value)| (label.as_str(), value.clone()));
    rows.extend(extra);
    let mut body = String::from("<dl class=\"rows\">\n");
    for (label, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let (label, value) = (escape(label), escape(value));
        let _ = writeln!(body, "<div><dt>{label}</dt><dd>{value}</dd></div>");
    }
    body.push_str("</dl>");
    Some(Section { id: "environment", title: "Environment", body, script: None })
}
