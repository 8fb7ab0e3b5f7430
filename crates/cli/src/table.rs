//! Result tables as text and Markdown.

use specialformer::iarc_data::Subtask;
use specialformer::training::{AccuracyRecord, EvaluationRecord, HeldOut, TaskRecord};

use crate::terminal;

/// What stands where there is no value.
pub(crate) const NONE: &str = "–";

/// Between columns.
const GAP: &str = "  ";

/// Rows of cells, the first of them the head, as aligned text: the first
/// column left, the others right. What a terminal is too narrow for goes below,
/// the first column again before it.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    within(rows, terminal::columns().unwrap_or(usize::MAX))
}

fn within(rows: &[Vec<String>], room: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    // Where a block of columns begins: the first, and each that does not fit.
    let mut starts = vec![1];
    let mut taken = widths.first().copied().unwrap_or(0);
    for (column, width) in widths.iter().enumerate().skip(1) {
        if taken + GAP.len() + width > room && column > 1 {
            starts.push(column);
            taken = widths[0];
        }
        taken += GAP.len() + width;
    }
    starts.push(columns.max(1));
    let mut text = String::new();
    for block in starts.windows(2) {
        if block[0] > 1 {
            text.push('\n');
        }
        for row in rows {
            let own = row.iter().zip(&widths).enumerate();
            let shown = |i: usize| i == 0 || (block[0]..block[1]).contains(&i);
            let cells = own.filter(|(i, _)| shown(*i)).map(|(i, (cell, &w))| {
                if i == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") }
            });
            text += cells.collect::<Vec<_>>().join(GAP).trim_end();
            text.push('\n');
        }
    }
    text
}

/// The same rows as a Markdown table.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if i == 0 {
            text += "|---|";
            text += &"---:|".repeat(row.len().saturating_sub(1));
            text.push('\n');
        }
    }
    text
}

/// 12345678 as `12,345,678`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for reading: `98.4 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c < 1e3 => format!("{c} B"),
        c if c < 1e6 => format!("{:.1} kB", c / 1e3),
        c if c < 1e9 => format!("{:.1} MB", c / 1e6),
        c => format!("{:.2} GB", c / 1e9),
    }
}

/// The mean of values and their standard deviation (the sample's, n − 1), which
/// a single value has not.
pub(crate) fn mean_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let deviation = (values.len() > 1).then(|| (square / (n - 1.0)).sqrt());
    (!values.is_empty()).then_some((mean, deviation))
}

/// -0.004 as `0.00`: without a minus before zeros.
pub(crate) fn hundredths(number: f64) -> String {
    format!("{:.2}", (100.0 * number).round() / 100.0 + 0.0)
}

/// The name of a held-out set.
pub(crate) fn set_name(set: HeldOut) -> &'static str {
    match set {
        HeldOut::Validation => "validation",
        HeldOut::Test => "test",
    }
}

fn accuracy(record: &AccuracyRecord) -> String {
    format!("{:.2} ± {:.2}", 100.0 * record.accuracy, 100.0 * record.standard_error)
}

/// An evaluation, one line for each task in this order, or for each label.
pub(crate) fn evaluation(record: &EvaluationRecord, tasks: &[String]) -> String {
    let evaluation = &record.evaluation;
    let set = set_name(record.set).to_string();
    let mut rows = Vec::new();
    if evaluation.tasks.is_empty() {
        let row = |name: &str, record: &AccuracyRecord| {
            vec![name.to_string(), accuracy(record), grouped(record.count)]
        };
        rows.push(vec![set, "accuracy %".into(), "targets".into()]);
        // The benchmark's subtasks in its own order, not the alphabet's.
        let mut labels: Vec<_> = evaluation.labels.iter().collect();
        let place = |name: &str| Subtask::ALL.iter().position(|task| task.to_string() == name);
        labels.sort_by_key(|(name, _)| place(name));
        rows.extend(labels.into_iter().map(|(name, record)| row(name, record)));
        rows.push(row("all", &evaluation.overall));
    } else {
        let row = |name: &str, record: &TaskRecord| {
            let (classes, values) = (record.classes.as_ref(), record.values.as_ref());
            let targets =
                classes.map_or(0, |record| record.count) + values.map_or(0, |record| record.values);
            vec![
                name.to_string(),
                classes.map_or_else(|| NONE.into(), accuracy),
                values.and_then(|v| v.r_squared).map_or_else(|| NONE.into(), |r| format!("{r:.4}")),
                format!("{:.4}", record.loss),
                grouped(targets),
            ]
        };
        rows.push([set.as_str(), "accuracy %", "R²", "loss", "targets"].map(String::from).to_vec());
        let mut all: Vec<_> = evaluation.tasks.iter().collect();
        all.sort_by_key(|(name, _)| tasks.iter().position(|task| task == *name));
        rows.extend(all.into_iter().map(|(name, record)| row(name, record)));
        let all = TaskRecord {
            loss: evaluation.loss,
            classes: Some(evaluation.overall).filter(|overall| overall.count > 0),
            values: evaluation.values,
        };
        rows.push(row("all", &all));
    }
    format!("{}loss {:.4}\n", aligned(&rows), evaluation.loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["model".into(), "all".into()], vec!["x".into(), "99.10".into()]];
        assert_eq!(aligned(&rows), "model    all\nx      99.10\n");
        assert_eq!(markdown(&rows), "| model | all |\n|---|---:|\n| x | 99.10 |\n");
        let wide = [["a", "bb", "cc", "dd"], ["1", "22", "33", "44"]];
        let wide: Vec<_> = wide.iter().map(|row| row.map(String::from).to_vec()).collect();
        assert_eq!(within(&wide, 9), "a  bb  cc\n1  22  33\n\na  dd\n1  44\n");
        assert_eq!(within(&wide, 1), "a  bb\n1  22\n\na  cc\n1  33\n\na  dd\n1  44\n");
        assert_eq!(within(&wide, 13), "a  bb  cc  dd\n1  22  33  44\n");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!([999, 1500, 98_400_000].map(bytes), ["999 B", "1.5 kB", "98.4 MB"]);
        assert_eq!([-0.004, -0.006].map(hundredths), ["0.00", "-0.01"]);
    }
}
