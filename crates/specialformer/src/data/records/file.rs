//! Reading the records of a file, one line at a time.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use csv::StringRecord;
use serde_json::{Map, Value};

use crate::data::records::field::Field;
use crate::error::{Error, Result};

/// A record of a file.
pub(crate) struct Record<'a> {
    path: &'a Path,
    line: u64,
    fields: Fields<'a>,
}

enum Fields<'a> {
    Json(&'a Map<String, Value>),
    Columns { names: &'a StringRecord, record: &'a StringRecord },
}

impl Record<'_> {
    /// The field of that name, read by `read`.
    pub(crate) fn field<T>(
        &self,
        name: &str,
        read: impl FnOnce(Field<'_>) -> Result<T, String>,
    ) -> Result<T> {
        let field = match &self.fields {
            Fields::Json(map) => map.get(name).map(Field::Json),
            Fields::Columns { names, record } => {
                names.iter().position(|n| n == name).and_then(|i| record.get(i)).map(Field::Text)
            }
        };
        let read = match field {
            Some(field) => read(field),
            None => Err(format!("is missing; there are {}", self.names().join(", "))),
        };
        read.map_err(|reason| self.error(name, reason))
    }

    /// An error of this record.
    pub(crate) fn error(&self, field: &str, reason: String) -> Error {
        Error::Record {
            path: self.path.display().to_string(),
            line: self.line,
            field: Some(field.into()),
            reason,
        }
    }

    fn names(&self) -> Vec<&str> {
        match &self.fields {
            Fields::Json(map) => map.keys().map(String::as_str).collect(),
            Fields::Columns { names, .. } => names.iter().collect(),
        }
    }
}

/// Gives each record of a file to `visit`.
///
/// # Errors
/// If the file cannot be read, its kind is unknown, it has no record or one
/// that is not of its kind, or what `visit` fails with.
pub(crate) fn read(path: &Path, visit: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let count = match extension.as_deref() {
        Some("jsonl" | "ndjson") => read_json(path, visit)?,
        Some("csv") => read_csv(path, b',', visit)?,
        Some("tsv") => read_csv(path, b'\t', visit)?,
        _ => {
            let reason = "unknown kind of file: the name must end in .jsonl, .ndjson, .csv or .tsv";
            return Err(data_error(path, reason));
        }
    };
    if count == 0 {
        return Err(data_error(path, "has no records"));
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
}

pub(crate) fn data_error(path: &Path, reason: &str) -> Error {
    Error::Data { place: path.display().to_string(), reason: reason.into() }
}

fn line_error(path: &Path, line: u64, reason: String) -> Error {
    Error::Record { path: path.display().to_string(), line, field: None, reason }
}

fn read_json(path: &Path, visit: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<u64> {
    let mut reader = BufReader::new(open(path)?);
    let (mut text, mut line, mut count) = (Vec::new(), 0, 0);
    loop {
        text.clear();
        line += 1;
        let read = reader
            .read_until(b'\n', &mut text)
            .map_err(|source| Error::Io { path: path.display().to_string(), source })?;
        if read == 0 {
            return Ok(count);
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => visit(&Record { path, line, fields: Fields::Json(&map) })?,
            Ok(_) => return Err(line_error(path, line, "not a JSON object".into())),
            Err(error) => {
                // The parser counts lines within this one.
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                let reason = format!("not JSON: {reason} (column {})", error.column());
                return Err(line_error(path, line, reason));
            }
        }
        count += 1;
    }
}

fn read_csv(
    path: &Path,
    delimiter: u8,
    visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
) -> Result<u64> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(open(path)?);
    let fail = |error: csv::Error| csv_error(path, error);
    let names = reader.headers().map_err(fail)?.clone();
    let (mut record, mut count) = (StringRecord::new(), 0);
    while reader.read_record(&mut record).map_err(fail)? {
        let line = record.position().map_or(0, csv::Position::line);
        let fields = Fields::Columns { names: &names, record: &record };
        visit(&Record { path, line, fields })?;
        count += 1;
    }
    Ok(count)
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    let reason = match error.into_kind() {
        csv::ErrorKind::Io(source) => {
            return Error::Io { path: path.display().to_string(), source };
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} columns, but the first line names {expected_len}")
        }
        csv::ErrorKind::Utf8 { err, .. } => format!("column {}: not UTF-8", err.field() + 1),
        kind => format!("not CSV: {kind:?}"),
    };
    line_error(path, line, reason)
}
