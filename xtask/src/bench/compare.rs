//! Measuring two servers in turns.

use super::server::{Client, Measurement};
use crate::shell::Result;

/// Seconds that one side's turn should take at least.
const TURN: f64 = 0.5;

/// The most steps of one turn.
const MAX_STEPS: f64 = 200.0;

pub(super) struct Settings<'a> {
    pub(super) rounds: u32,
    pub(super) filter: Option<&'a str>,
}

/// One case against one peer.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) case: String,
    pub(super) peer: &'static str,
    pub(super) threads: usize,
    /// Median seconds of a step.
    pub(super) ours: f64,
    /// Median seconds of a step.
    pub(super) theirs: f64,
    /// Per-round ratios theirs / ours, sorted: above 1 we are faster.
    pub(super) ratios: Vec<f64>,
    /// Peak bytes of ours and of theirs.
    pub(super) memory: Option<(u64, u64)>,
    /// Floating-point operations of one step.
    pub(super) flops: Option<f64>,
}

/// Measures each case that both sides know, in rounds of one turn each: what
/// disturbs the machine then disturbs both, and cancels in a round's ratio.
pub(super) fn run(
    ours: &mut Client,
    peers: &mut [Client],
    threads: usize,
    settings: &Settings<'_>,
) -> Result<Vec<Row>> {
    let cases = ours.cases()?;
    let known = peers.iter_mut().map(Client::cases).collect::<Result<Vec<_>>>()?;
    for (peer, known) in peers.iter().zip(&known) {
        for case in known.iter().filter(|case| !cases.contains(case)) {
            eprintln!("{} has a case {case} that we do not have", peer.name());
        }
    }
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| settings.filter.is_none_or(|f| case.contains(f))) {
        for (peer, _) in peers.iter_mut().zip(&known).filter(|(_, known)| known.contains(case)) {
            let row = compare(ours, peer, case, threads, settings.rounds)?;
            eprintln!(
                "{case}, {threads} threads: {:.3} ms, {} {:.3} ms, ratio {:.2}",
                row.ours * 1e3,
                row.peer,
                row.theirs * 1e3,
                median(&row.ratios)
            );
            rows.push(row);
        }
    }
    Ok(rows)
}

fn compare(
    ours: &mut Client,
    peer: &mut Client,
    case: &str,
    threads: usize,
    rounds: u32,
) -> Result<Row> {
    let our_steps = steps_of_turn(&ours.measure(case, 1)?);
    let their_steps = steps_of_turn(&peer.measure(case, 1)?);
    let mut turns = Vec::new();
    for _ in 0..rounds {
        turns.push((ours.measure(case, our_steps)?, peer.measure(case, their_steps)?));
    }
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
    let all = |side: fn(&(Measurement, Measurement)) -> &Measurement| -> Vec<f64> {
        turns.iter().flat_map(|turn| side(turn).seconds.iter().copied()).collect()
    };
    let mut ratios: Vec<_> =
        turns.iter().map(|(a, b)| median(&b.seconds) / median(&a.seconds)).collect();
    ratios.sort_by(f64::total_cmp);
    Ok(Row {
        case: case.to_owned(),
        peer,
        threads,
        ours: median(&all(|turn| &turn.0)),
        theirs: median(&all(|turn| &turn.1)),
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
        let mut ours = Client::start(&fake("ours", "0.25", r#""a","b","c""#), 2).unwrap();
        let mut peers = [
            Client::start(&fake("one", "0.5", r#""b","a","x""#), 2).unwrap(),
            Client::start(&fake("two", "0.125", r#""c""#), 2).unwrap(),
        ];
        let mut rows =
            |filter| run(&mut ours, &mut peers, 2, &Settings { rounds: 3, filter }).unwrap();
        let all = rows(None);
        let names: Vec<_> = all.iter().map(|row| (row.case.as_str(), row.peer)).collect();
        assert_eq!(names, [("a", "one"), ("b", "one"), ("c", "two")]);
        assert_eq!((all[0].ours, all[0].theirs, all[0].threads), (0.25, 0.5, 2));
        assert_eq!(all[0].ratios, [2.0; 3]);
        assert_eq!(all[2].ratios, [0.5; 3]);
        assert_eq!(all[0].memory, Some((1 << 20, 1 << 20)));
        assert_eq!(rows(Some("b")).len(), 1);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let measured = |seconds: &[f64]| Measurement {
            seconds: seconds.to_vec(),
            rss_bytes: None,
            parameters: Some(7),
            flops: Some(1e9),
        };
        let turns = [
            (measured(&[1.0, 1.0]), measured(&[2.0])),
            (measured(&[10.0, 10.0]), measured(&[30.0])),
            (measured(&[1.0, 1.0]), measured(&[2.5])),
        ];
        let compared = row("a", "p", 1, &turns).unwrap();
        assert_eq!(compared.ratios, [2.0, 2.5, 3.0]);
        assert_eq!((compared.ours, compared.theirs, compared.memory), (1.0, 2.5, None));
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
            flops: None,
        };
        assert_eq!([2.0, 0.1, 1e-6].map(|s| steps_of_turn(&probe(s))), [1, 5, 200]);
    }
}
