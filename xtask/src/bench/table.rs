//! The comparison as a Markdown table.

use std::fmt::Write as _;

use super::compare::{Row, Step, median};

/// The table with what it takes to read it.
pub(super) fn markdown(rows: &[Row], versions: &[String], machine: &str, rounds: u32) -> String {
    let mut text = format!(
        "Machine: {machine}. Versions: {}. Milliseconds of a step: median (min) of {rounds} rounds \
         in which both sides took turns; ratio: median (min–max) of the rounds' ratios theirs / \
         ours, above 1 we are faster; memory: peak above that after start-up and loading; \
         GFLOP/s of the products, at the median.\n\n",
        versions.join(", ")
    );
    text.push_str(
        "| case | threads | ours, ms | GFLOP/s | peer | peer, ms | GFLOP/s | ratio | \
         memory ours / peer, MB |\n|---|--:|--:|--:|---|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let (low, high) = (row.ratios[0], row.ratios[row.ratios.len() - 1]);
        let milliseconds = |step: Step| format!("{:.3} ({:.3})", step.median * 1e3, step.min * 1e3);
        let rate = |step: Step| match row.flops {
            Some(flops) => format!("{:.1}", flops / step.median / 1e9),
            None => "–".into(),
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
            "| {} | {} | {} | {} | {} | {} | {} | {:.2}× ({low:.2}–{high:.2}) | {memory} |",
            row.case,
            row.threads,
            milliseconds(row.ours),
            rate(row.ours),
            row.peer,
            milliseconds(row.theirs),
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
        let row = |memory, flops| Row {
            case: "lstm".into(),
            peer: "pytorch",
            threads: 2,
            ours: Step { median: 0.002, min: 0.0015 },
            theirs: Step { median: 0.005, min: 0.004 },
            ratios: vec![2.0, 2.5, 3.0],
            memory,
            flops,
        };
        let text = |row| markdown(&[row], &["a 1".into(), "b 2".into()], "two cores", 3);
        let full = text(row(Some((2_000_000, 3_000_000)), Some(1e8)));
        assert!(full.starts_with("Machine: two cores. Versions: a 1, b 2. "), "{full}");
        assert_eq!(
            full.lines().last().unwrap(),
            "| lstm | 2 | 2.000 (1.500) | 50.0 | pytorch | 5.000 (4.000) | 20.0 | \
             2.50× (2.00–3.00) | 2.0 / 3.0 (1.50×) |"
        );
        assert_eq!(
            text(row(None, None)).lines().last().unwrap(),
            "| lstm | 2 | 2.000 (1.500) | – | pytorch | 5.000 (4.000) | – | \
             2.50× (2.00–3.00) | – |"
        );
    }
}
