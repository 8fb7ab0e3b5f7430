//! Escaping and number formats.

use crate::table::NONE;

/// Escapes text for element content and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in a document, not even as a reference.
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// Makes JSON safe inside a `<script>` element: neither `</script>` nor
/// `<!--` can occur, and it parses to the same values.
pub(crate) fn escape_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            _ => out.push(c),
        }
    }
    out
}

/// A fraction as a percentage without the sign: `0.98123` gives `98.12`.
pub(crate) fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.2}", fraction * 100.0) } else { NONE.to_owned() }
}

/// A magnitude in few characters: `12500` gives `12.5k`.
pub(crate) fn compact(value: f64) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    let scaled = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match scaled.iter().find(|(unit, _)| value.abs() >= *unit) {
        Some((unit, name)) => {
            let text = format!("{:.1}", value / unit);
            format!("{}{name}", text.strip_suffix(".0").unwrap_or(&text))
        }
        None => format!("{}", (value * 1e4).round() / 1e4),
    }
}

/// A time: `95.2` gives `1 min 35 s`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return NONE.to_owned();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_text_and_json() {
        assert_eq!(
            escape("<a href=\"x\">'&'\u{0}"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\u{fffd}"
        );
        let json = serde_json::to_string("</script><!-- & \u{2028}").unwrap();
        let safe = escape_json(&json);
        assert!(!safe.contains(['<', '>', '&', '\u{2028}']), "{safe}");
        let back: String = serde_json::from_str(&safe).unwrap();
        assert_eq!(back, "</script><!-- & \u{2028}");
    }

    #[test]
    fn formats_numbers() {
        assert_eq!(
            (compact(12_500.0), compact(2e6), compact(0.25)),
            ("12.5k".into(), "2M".into(), "0.25".into())
        );
        assert_eq!((percent(0.98123), percent(f64::NAN)), ("98.12".into(), "–".into()));
        assert_eq!((duration(4.25), duration(95.2)), ("4.2 s".into(), "1 min 35 s".into()));
        assert_eq!(
            (duration(59.6), duration(7_260.0), duration(f64::NAN)),
            ("1 min 0 s".into(), "2 h 1 min".into(), "–".into())
        );
    }
}
