//! Finds the differentiable operations that a crate's sources declare.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of the operations declared in the Rust files under `folder`: every
/// `const NAME: &'static str = "…"` in an `impl` of a trait whose name ends
/// in `Op` or `Function`.
///
/// A macro may declare several: where its body says
/// `const NAME: &'static str = stringify!($method);`, the names are those of
/// its entries in the same file, written `name: …` at the first level inside
/// `macro! { … }`. A name forwarded from elsewhere (`= F::NAME`) declares
/// nothing. Comments and test modules do not count.
///
/// # Panics
/// If a file cannot be read, or a name is declared in a way that this
/// function does not understand: an operation must not slip through.
pub fn op_names_in(folder: impl AsRef<Path>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    scan_folder(folder.as_ref(), &mut names);
    names
}

fn scan_folder(folder: &Path, names: &mut BTreeSet<String>) {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display())).path();
        if path.is_dir() {
            scan_folder(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
            names.extend(scan_source(&text, &path.display().to_string()));
        }
    }
}

const DECLARATION: &str = "const NAME: &'static str =";

fn scan_source(text: &str, file: &str) -> Vec<String> {
    let text = without_comments_and_tests(text);
    let mut names = Vec::new();
    let mut from = 0;
    while let Some(found) = text[from..].find(DECLARATION) {
        let at = from + found;
        from = at + DECLARATION.len();
        if !declares_op(&text[..at]) {
            continue;
        }
        let line = text[..at].matches('\n').count() + 1;
        let value = text[from..].split(';').next().unwrap_or("").trim();
        if let Some(name) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) {
            names.push(name.to_string());
        } else if value.starts_with("stringify!(") || value.starts_with("concat!(") {
            let entries = macro_entries(&text, at);
            assert!(
                !entries.is_empty(),
                "{file}:{line}: found no entry of the macro that declares {value}"
            );
            names.extend(entries);
        } else {
            assert!(
                value.ends_with("::NAME"),
                "{file}:{line}: cannot tell the operation's name from {value}"
            );
        }
    }
    names
}

/// Comments blanked out and everything from the test module on cut off.
fn without_comments_and_tests(text: &str) -> String {
    let mut lines = Vec::new();
    let mut source = text.lines().peekable();
    while let Some(line) = source.next() {
        let next_is_module =
            source.peek().is_some_and(|next| next.trim_start().starts_with("mod "));
        if line.trim() == "#[cfg(test)]" && next_is_module {
            break;
        }
        lines.push(if line.trim_start().starts_with("//") { "" } else { line });
    }
    lines.join("\n")
}

/// True if the innermost `impl` header before a declaration names a trait of
/// operations.
fn declares_op(before: &str) -> bool {
    let Some(start) = before.rfind("impl<").max(before.rfind("impl ")) else {
        return false;
    };
    let header = before[start..].split('{').next().unwrap_or("");
    let Some((traits, _)) = header.split_once(" for ") else {
        return false;
    };
    // Past the generics of `impl<…>`, which may name such a trait as a bound.
    let mut depth = 0;
    let mut end = "impl".len();
    for (i, c) in traits.char_indices().skip("impl".len()) {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            end = i + c.len_utf8();
            break;
        }
    }
    let path = traits[end..].trim().split('<').next().unwrap_or("");
    path.ends_with("Op") || path.ends_with("Function")
}

/// The entries of all uses of the macro whose definition holds offset `at`.
fn macro_entries(text: &str, at: usize) -> Vec<String> {
    let Some(definition) = text[..at].rfind("macro_rules! ") else {
        return Vec::new();
    };
    let name: String = text[definition + "macro_rules! ".len()..]
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    let call = format!("\n{name}! {{");
    let mut entries = Vec::new();
    for (start, matched) in text.match_indices(&call) {
        let mut depth = 1;
        let mut word = String::new();
        let mut previous = ' ';
        for c in text[start + matched.len()..].chars() {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => depth -= 1,
                ':' if depth == 1 && !word.is_empty() => entries.push(word.clone()),
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if c.is_alphanumeric() || c == '_' {
                if !(previous.is_alphanumeric() || previous == '_') {
                    word.clear();
                }
                word.push(c);
            } else {
                word.clear();
            }
            previous = c;
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
/// impl Op<f32, 1> for Doc { const NAME: &'static str = "doc"; }
impl Level for Baseline {
    const NAME: &'static str = "baseline";
}
trait Function { const NAME: &'static str; }
impl<E: Element, F: Function<E>> Op<E, 1> for Elementwise<E, F> {
    const NAME: &'static str = F::NAME;
}
impl<E: Element> crate::Op<E, 1> for Sum {
    const NAME: &'static str = "sum";
}
impl<E: Element> VariadicOp<E> for Concat {
    const NAME: &'static str =
        "concat";
}
macro_rules! functions {
    ($($(#[$doc:meta])* $method:ident: $type:ident { $f:expr })*) => {$(
        impl<E: Element> Function<E> for $type {
            const NAME: &'static str = stringify!($method);
        }
    )*};
}
functions! {
    /// Doc: not an entry.
    #[doc = "also: not"]
    neg: Negate { f(x) = { let y: f32 = -x; y } }
    gelu_tanh: GeluTanh { x }
}
#[cfg(test)]
mod tests {
    impl Op<f32, 1> for Test { const NAME: &'static str = "test"; }
}
"#;

    #[test]
    fn literal_and_macro_names_are_found_and_nothing_else() {
        assert_eq!(scan_source(SOURCE, "source.rs"), ["sum", "concat", "neg", "gelu_tanh"]);
    }

    #[test]
    #[should_panic(expected = "source.rs:2: cannot tell the operation's name from OTHER")]
    fn an_unknown_form_fails() {
        scan_source("impl Op<f32, 1> for X {\n const NAME: &'static str = OTHER;\n}", "source.rs");
    }
}
