//! The comparison as a Markdown table.

use std::fmt::Write as _;

use super::compare::{Row, median};

/// The table with what it takes to read it.
pub(super) fn markdown(rows: &[Row], versions: &[String], machine: &str, rounds: u32) -> String {
    let mut text = format!(
        "Machine: {machine}. Versions: {}. Median step of {rounds} rounds in which both sides \
         took turns; ratio: median of the rounds' ratios theirs / ours (min–max), above 1 we are \
         faster; memory: peak above that before the model was loaded.\n\n",
        versions.join(", ")
    );
    text.push_str(
        "| case | threads | ours, ms | GFLOP/s | peer | peer, ms | GFLOP/s | ratio | \
         memory ours / peer, MB |\n|---|--:|--:|--:|---|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let (low, high) = (row.ratios[0], row.ratios[row.ratios.len() - 1]);
        let rate = |seconds: f64| {
            row.flops.map_or_else(|| "–".into(), |flops| format!("{:.1}", flops / seconds / 1e9))
        };
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let memory = row.memory.map_or_else(
            || "–".into(),
            |(ours, theirs)| {
                let ratio = theirs as f64 / (ours as f64).max(1.0);
                format!("{:.1} / {:.1} ({ratio:.2}×)", megabytes(ours), megabytes(theirs))
            },
        );
        writeln!(
            text,
            "| {} | {} | {:.3} | {} | {} | {:.3} | {} | {:.2}× ({low:.2}–{high:.2}) | {memory} |",
            row.case,
            row.threads,
            row.ours * 1e3,
            rate(row.ours),
            row.peer,
            row.theirs * 1e3,
            rate(row.theirs),
            median(&row.ratios),
        )
        .expect("a string takes every character");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_both_sides() {
        let mut row = Row {
            case: "lstm".into(),
            peer: "pytorch",
            threads: 2,
            ours: 0.002,
            theirs: 0.005,
            ratios: vec![2.0, 2.5, 3.0],
            memory: Some((2_000_000, 3_000_000)),
            flops: Some(1e8),
        };
        let text = |row: Row| markdown(&[row], &["a 1".into(), "b 2".into()], "two cores", 3);
        let full = text(Row { ratios: row.ratios.clone(), case: row.case.clone(), ..row });
        assert!(full.starts_with("Machine: two cores. Versions: a 1, b 2. "), "{full}");
        let last = full.lines().last().unwrap();
        assert_eq!(
            last,
            "| lstm | 2 | 2.000 | 50.0 | pytorch | 5.000 | 20.0 | 2.50× (2.00–3.00) | \
             2.0 / 3.0 (1.50×) |"
        );
        (row.memory, row.flops) = (None, None);
        let bare = text(row);
        let last = bare.lines().last().unwrap();
        assert_eq!(last, "| lstm | 2 | 2.000 | – | pytorch | 5.000 | – | 2.50× (2.00–3.00) | – |");
    }
}
