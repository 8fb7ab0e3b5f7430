//! The configuration, as TOML with light colouring.

use std::fmt::Write as _;

use super::Section;
use crate::report::data::ReportData;
use crate::report::html::escape;

/// The section; absent without a configuration.
pub(crate) fn section(data: &ReportData) -> Option<Section> {
    if data.config.trim().is_empty() {
        return None;
    }
    let mut body = String::from("<div class=\"code\">");
    body.push_str(
        "<button type=\"button\" class=\"needs-script\" data-role=\"copy\" hidden>Copy</button>",
    );
    body.push_str("<pre tabindex=\"0\" aria-label=\"Configuration as TOML\"><code>");
    for line in data.config.trim_end().lines() {
        coloured(&mut body, line);
        body.push('\n');
    }
    body.push_str("</code></pre></div>");
    Some(Section {
        id: "config",
        title: "Configuration",
        body,
        script: Some(include_str!("../assets/config.js")),
    })
}

/// Marks comments, table names and keys; a line is never changed otherwise.
fn coloured(out: &mut String, line: &str) {
    let text = line.trim_start();
    let key = text.split_once('=').filter(|(key, _)| {
        key.trim_end().chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c))
    });
    if text.starts_with('#') {
        let _ = write!(out, "<span class=\"comment\">{}</span>", escape(line));
    } else if text.starts_with('[') && text.trim_end().ends_with(']') && key.is_none() {
        let _ = write!(out, "<span class=\"table\">{}</span>", escape(line));
    } else if let Some((key, value)) = key {
        let indent = &line[..line.len() - text.len()];
        let _ = write!(out, "{indent}<span class=\"key\">{}</span>={}", escape(key), escape(value));
    } else {
        out.push_str(&escape(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_keys_tables_and_comments() {
        let cases = [
            ("# a <b>", "<span class=\"comment\"># a &lt;b&gt;</span>"),
            ("[model]", "<span class=\"table\">[model]</span>"),
            ("  lr = 1e-3", "  <span class=\"key\">lr </span>= 1e-3"),
            ("  \"x=<y>\",", "  &quot;x=&lt;y&gt;&quot;,"),
        ];
        for (line, expected) in cases {
            let mut out = String::new();
            coloured(&mut out, line);
            assert_eq!(out, expected);
        }
    }
}
