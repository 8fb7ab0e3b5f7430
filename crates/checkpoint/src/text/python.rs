//! Values of templates as Python writes them.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Deeper values are refused.
const MAX_DEPTH: usize = 100;

/// How `{{ value }}` shows: text as it is, `True`, `None`, lists as Python
/// prints them.
pub(super) fn format(
    out: &mut Output<'_>,
    _state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    let text = match value.as_str() {
        Some(text) => return out.write_str(text).map_err(|_| failed()),
        None => to_str(value)?,
    };
    out.write_str(&text).map_err(|_| failed())
}

fn failed() -> Error {
    Error::new(ErrorKind::WriteFailure, "no room for the output")
}

/// Python's `str`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => repr(value, 0, &mut out)?,
    }
    Ok(out)
}

fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => write!(out, "{value}").map_err(|_| failed())?,
    }
    Ok(())
}

/// Single quotes unless the text has some and no double ones.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// Integers as they are, the others with a point or an exponent of two digits.
fn number(value: &Value, out: &mut String) {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return;
    }
    let text = match f64::try_from(value.clone()) {
        Ok(number) => format!("{number:?}"),
        Err(_) => value.to_string(),
    };
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            out.push_str(&format!("{digits}e{sign}{exponent:0>2}"));
        }
        None => out.push_str(&text),
    }
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"));
    }
    Ok(())
}

/// The filter `tojson` as transformers defines it: Python's `json.dumps` with
/// `ensure_ascii=False`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let between = if indent.is_some() { "," } else { ", " };
    let (between, after_key) = match separators.as_deref() {
        None => (between, ": "),
        Some([between, after_key]) => (between.as_str(), after_key.as_str()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts"));
        }
    };
    let json = Json {
        indent: indent.map(|n| n.min(MAX_DEPTH)),
        ascii: ascii.unwrap_or(false),
        sorted: sorted.unwrap_or(false),
        between: between.to_owned(),
        after_key: after_key.to_owned(),
    };
    let mut out = String::new();
    json.write(value, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

struct Json {
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
    between: String,
    after_key: String,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', items.len(), depth, out, |i, out| {
                    self.write(&items[i], depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.items('{', '}', keys.len(), depth, out, |i, out| {
                    self.string(&to_str(&keys[i])?, out);
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(&keys[i])?, depth + 1, out)
                })?;
            }
            _ => {
                let what = format!("{} has no form in JSON", value.kind());
                return Err(Error::new(ErrorKind::BadSerialization, what));
            }
        }
        Ok(())
    }

    fn items(
        &self,
        open: char,
        close: char,
        count: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.filter(|_| count > 0) {
                out.push('\n');
                out.push_str(&" ".repeat(indent * depth));
            }
        };
        out.push(open);
        for i in 0..count {
            out.push_str(if i > 0 { &self.between } else { "" });
            new_line(depth + 1, out);
            item(i, out)?;
        }
        new_line(depth, out);
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
