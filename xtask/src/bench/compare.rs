//! Measuring two servers in turns.

use super::server::{Client, Measurement, Server};
use crate::shell::Result;

/// Seconds that one side's turn should take at least.
const TURN: f64 = 0.5;

/// The most steps of one turn.
const MAX_STEPS: f64 = 200.0;

pub(super) struct Settings<'a> {
    pub(super) rounds: u32,
    pub(super) filter: Option<&'a str>,
}

/// What was compared, and the versions of both sides.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) rows: Vec<Row>,
    pub(super) versions: Vec<String>,
}

/// Seconds of a step. The smallest is what an undisturbed machine comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    pub(super) median: f64,
    pub(super) min: f64,
}

impl Step {
    fn of<'a>(measurements: impl Iterator<Item = &'a Measurement>) -> Self {
        let seconds: Vec<_> = measurements.flat_map(|m| m.seconds.iter().copied()).collect();
        Self {
            median: median(&seconds),
            min: seconds.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}

/// One case against one peer.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) case: String,
    pub(super) peer: &'static str,
    pub(super) threads: usize,
    pub(super) ours: Step,
    pub(super) theirs: Step,
    /// Per-round ratios theirs / ours, sorted: above 1 we are faster.
    pub(super) ratios: Vec<f64>,
    /// Peak bytes of ours and of theirs.
    pub(super) memory: Option<(u64, u64)>,
    /// Floating-point operations of one step.
    pub(super) flops: Option<f64>,
}

/// Measures each case that both sides know, in rounds of one turn each: what
/// disturbs the machine then disturbs both, and cancels in a round's ratio.
/// Both servers start anew for every case, so that no memory is left over from
/// another.
pub(super) fn run(
    ours: &Server,
    peers: &[Server],
    threads: usize,
    settings: &Settings<'_>,
) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    let mut cases_of = |server: &Server| -> Result<Vec<String>> {
        let mut client = Client::start(server, threads)?;
        let cases = client.cases()?;
        comparison.versions.push(client.version());
        client.quit()?;
        Ok(cases)
    };
    let cases = cases_of(ours)?;
    let known = peers.iter().map(&mut cases_of).collect::<Result<Vec<_>>>()?;
    for (peer, known) in peers.iter().zip(&known) {
        for case in known.iter().filter(|case| !cases.contains(case)) {
            eprintln!("{} has a case {case} that we do not have", peer.name());
        }
    }
    for case in cases.iter().filter(|case| settings.filter.is_none_or(|f| case.contains(f))) {
        for (peer, _) in peers.iter().zip(&known).filter(|(_, known)| known.contains(case)) {
            let row = compare(ours, peer, case, threads, settings.rounds)?;
            eprintln!(
                "{case}, threads {threads}: {:.3} ms, {} {:.3} ms, ratio {:.2}",
                row.ours.median * 1e3,
                row.peer,
                row.theirs.median * 1e3,
                median(&row.ratios)
            );
            comparison.rows.push(row);
        }
    }
    Ok(comparison)
}

fn compare(ours: &Server, peer: &Server, case: &str, threads: usize, rounds: u32) -> Result<Row> {
    let mut ours = Client::start(ours, threads)?;
    let mut theirs = Client::start(peer, threads)?;
    let our_steps = steps_of_turn(&ours.measure(case, 1)?);
    let their_steps = steps_of_turn(&theirs.measure(case, 1)?);
    let mut turns = Vec::new();
    for _ in 0..rounds {
        turns.push((ours.measure(case, our_steps)?, theirs.measure(case, their_steps)?));
    }
    ours.quit()?;
    theirs.quit()?;
    row(case, peer.name(), threads, &turns)
}

fn steps_of_turn(probe: &Measurement) -> usize {
    (TURN / median(&probe.seconds)).ceil().clamp(1.0, MAX_STEPS) as usize
}

fn row(
    case: &str,
    peer: &'static str,
    threads: usize,
    turns: &[(Measurement, Measurement)],
) -> Result<Row> {
    let (a, b) = turns.last().expect("at least one round");
    if let (Some(a), Some(b)) = (a.parameters, b.parameters)
        && a != b
    {
        return Err(format!("{case}: {a} parameters on our side, {b} on {peer}'s").into());
    }
    let mut ratios: Vec<_> =
        turns.iter().map(|(a, b)| median(&b.seconds) / median(&a.seconds)).collect();
    ratios.sort_by(f64::total_cmp);
    Ok(Row {
        case: case.to_owned(),
        peer,
        threads,
        ours: Step::of(turns.iter().map(|turn| &turn.0)),
        theirs: Step::of(turns.iter().map(|turn| &turn.1)),
        ratios,
        memory: a.rss_bytes.zip(b.rss_bytes),
        flops: a.flops.or(b.flops),
    })
}

/// The middle value, or the mean of the middle two.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::super::server::tests::fake;
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn only_cases_of_both_sides_are_compared() {
        let ours = fake("ours", "0.25", r#""a","b","c""#);
        let peers = [fake("one", "0.5", r#""b","a","x""#), fake("two", "0.125", r#""c""#)];
        let compared = |filter| run(&ours, &peers, 2, &Settings { rounds: 3, filter }).unwrap();
        let Comparison { rows: all, versions } = compared(None);
        assert_eq!(versions, ["ours 1.0", "one 1.0", "two 1.0"]);
        let names: Vec<_> = all.iter().map(|row| (row.case.as_str(), row.peer)).collect();
        assert_eq!(names, [("a", "one"), ("b", "one"), ("c", "two")]);
        assert_eq!((all[0].ours.median, all[0].theirs.median, all[0].threads), (0.25, 0.5, 2));
        assert_eq!(all[0].ratios, [2.0; 3]);
        assert_eq!(all[2].ratios, [0.5; 3]);
        assert_eq!(all[0].memory, Some((1 << 20, 1 << 20)));
        assert_eq!(compared(Some("b")).rows.len(), 1);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let measured = |seconds: &[f64]| Measurement {
            seconds: seconds.to_vec(),
            rss_bytes: None,
            parameters: Some(7),
            value: None,
            flops: Some(1e9),
        };
        let turns = [
            (measured(&[1.0, 1.0]), measured(&[2.0])),
            (measured(&[10.0, 10.0]), measured(&[30.0])),
            (measured(&[1.0, 1.0]), measured(&[2.5])),
        ];
        let compared = row("a", "p", 1, &turns).unwrap();
        assert_eq!(compared.ratios, [2.0, 2.5, 3.0]);
        assert_eq!((compared.ours, compared.memory), (Step { median: 1.0, min: 1.0 }, None));
        assert_eq!(compared.theirs, Step { median: 2.5, min: 2.0 });
        let mut other = measured(&[1.0]);
        other.parameters = Some(8);
        let error = row("a", "p", 1, &[(measured(&[1.0]), other)]).unwrap_err().to_string();
        assert_eq!(error, "a: 7 parameters on our side, 8 on p's");
    }

    #[test]
    fn turns_last_half_a_second() {
        let probe = |seconds: f64| Measurement {
            seconds: vec![seconds],
            rss_bytes: None,
            parameters: None,
            value: None,
            flops: None,
        };
        assert_eq!([2.0, 0.1, 1e-6].map(|s| steps_of_turn(&probe(s))), [1, 5, 200]);
    }
}
