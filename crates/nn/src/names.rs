//! Names that a person wrote, and what they may have meant.

use std::fmt::Write as _;

/// How alike (Jaro–Winkler, 1 for the same) a name must be to be proposed.
const ALIKE: f64 = 0.8;

/// The known name that is most like `name`; `None` if none is like it. Case
/// does not count; of equally likely names it is the first.
///
/// ```
/// use specialformer_nn::names::closest;
/// let tasks = ["sort", "sort-descending", "keyword"];
/// assert_eq!(closest("srot", tasks), Some("sort"));
/// assert_eq!(closest("sort-descnding", tasks), Some("sort-descending"));
/// assert_eq!(closest("translation", tasks), None);
/// ```
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for known in known {
        let alike = likeness(&wanted, &known.to_lowercase());
        if alike >= ALIKE && best.is_none_or(|(found, _)| alike > found) {
            best = Some((alike, known));
        }
    }
    best.map(|(_, known)| known)
}

/// From 0 to 1. One slip in a short word leaves little for Jaro–Winkler to go
/// by (`mpl` for `mlp`), so that it counts by itself.
fn likeness(typed: &str, known: &str) -> f64 {
    let one_slip = typed.len() > 2 && strsim::osa_distance(typed, known) <= 1;
    strsim::jaro_winkler(typed, known).max(if one_slip { 0.9 } else { 0.0 })
}

/// The known names for a message that refuses `name`: all of them, and the
/// closest if one is close.
///
/// ```
/// use specialformer_nn::names::choices;
/// assert_eq!(choices("srot", &["sort", "mean"]), "sort, mean; did you mean `sort`?");
/// assert_eq!(choices("x", &["sort", "mean"]), "sort, mean");
/// ```
pub fn choices(name: &str, known: &[impl AsRef<str>]) -> String {
    let all: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    let mut text = all.join(", ");
    if let Some(known) = closest(name, all) {
        let _ = write!(text, "; did you mean `{known}`?");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_found_and_other_words_are_not() {
        let fields = ["width", "layers", "heads", "feed_forward", "vocabulary", "window"];
        for (typed, meant) in [
            ("widht", Some("width")),
            ("Width", Some("width")),
            ("layer", Some("layers")),
            ("feedforward", Some("feed_forward")),
            ("vocab", Some("vocabulary")),
            ("seed", None),
            ("", None),
        ] {
            assert_eq!(closest(typed, fields), meant, "{typed}");
        }
        assert_eq!(closest("mpl", ["lstm", "mlp"]), Some("mlp"));
        assert_eq!(closest("gpt", ["lstm", "mlp"]), None);
        assert_eq!(closest("a", []), None);
    }
}
