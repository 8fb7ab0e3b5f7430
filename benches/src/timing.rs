//! How long a call takes.

use std::time::Instant;

/// Rounds of a measurement, of which the best counts.
const ROUNDS: usize = 5;

/// The shortest time of a call, after one that does not count.
pub fn best(mut call: impl FnMut()) -> f64 {
    call();
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}
