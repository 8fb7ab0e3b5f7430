//! [`NamePattern`]: parameters by name.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A pattern for parameter names: `*` stands for any characters, also none
/// and also dots; `{task}` for one part between dots.
///
/// ```
/// use specialformer_train::NamePattern;
/// let pattern = NamePattern::new("blocks.*.adapters.{task}.*");
/// assert!(pattern.matches("blocks.3.adapters.sort.down.weight"));
/// assert!(!pattern.matches("blocks.3.norm.weight"));
/// let (task, key) = pattern.task("blocks.3.adapters.sort.down.weight").unwrap();
/// assert_eq!((task, key.as_str()), ("sort", "blocks.3.adapters.{task}.down.weight"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamePattern(String);

const TASK: &str = "{task}";

impl NamePattern {
    /// From its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if it has a `{task}`.
    pub fn has_task(&self) -> bool {
        self.0.contains(TASK)
    }

    /// True if the whole name fits.
    pub fn matches(&self, name: &str) -> bool {
        find(&self.0, name, 0).is_some()
    }

    /// What stands for `{task}` in a name that fits, and the name with
    /// `{task}` in its place. Of several ways to fit, `*` takes as little as
    /// it can.
    pub fn task<'n>(&self, name: &'n str) -> Option<(&'n str, String)> {
        let range = find(&self.0, name, 0)??;
        let key = format!("{}{TASK}{}", &name[..range.start], &name[range.end..]);
        Some((&name[range], key))
    }
}

/// Where the first `{task}` of the pattern lies in `name` from `at` on, if all
/// of it fits.
fn find(pattern: &str, name: &str, at: usize) -> Option<Option<Range<usize>>> {
    let rest = &name[at..];
    if let Some(pattern) = pattern.strip_prefix('*') {
        let mut ends = rest.char_indices().map(|(i, _)| i).chain([rest.len()]);
        return ends.find_map(|i| find(pattern, name, at + i));
    }
    if let Some(pattern) = pattern.strip_prefix(TASK) {
        let end = at + rest.find('.').unwrap_or(rest.len());
        let mut ends = (at + 1..=end).filter(|&i| name.is_char_boundary(i));
        return ends.find_map(|end| find(pattern, name, end).map(|_| Some(at..end)));
    }
    match pattern.chars().next() {
        None => rest.is_empty().then_some(None),
        Some(c) => {
            let length = c.len_utf8();
            rest.starts_with(c).then(|| find(&pattern[length..], name, at + length)).flatten()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, fits) in [
            ("", "", true),
            ("*", "", true),
            ("*", "a.b", true),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*.c", "a.b.x.c", true),
            ("a.*.c", "a.c", false),
            ("*a*a*", "banana", true),
            ("*a*a*a*a", "banana", false),
            ("heads.{task}.*", "heads.é.weight", true),
            ("heads.{task}", "heads.a.b", false),
            ("heads.{task}", "heads.", false),
        ] {
            assert_eq!(NamePattern::new(pattern).matches(name), fits, "{pattern} on {name}");
        }
        let (task, key) = NamePattern::new("*.t{task}.w").task("x.y.t12.w").unwrap();
        assert_eq!((task, key.as_str()), ("12", "x.y.t{task}.w"));
        assert_eq!(NamePattern::new("a.*").task("a.b"), None);
    }
}
