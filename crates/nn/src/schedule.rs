//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// The learning rate at each step, as a share of the peak rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The peak rate throughout, after a linear warm-up.
    Constant {
        /// Steps of linear rise from zero.
        #[serde(default)]
        warmup: u64,
    },
    /// Linear warm-up, then half a cosine down to `floor`.
    Cosine {
        /// Steps of linear rise from zero.
        warmup: u64,
        /// The share of the peak rate at step `total`, one after the last.
        floor: f64,
    },
    /// Linear warm-up, then a straight line down to `floor`.
    Linear {
        /// Steps of linear rise from zero.
        warmup: u64,
        /// The share of the peak rate at step `total`, one after the last.
        floor: f64,
    },
}

impl Schedule {
    /// The factor at `step` (0 is the first) of `total` steps. The warm-up
    /// gives (step + 1)/warmup, so that no step has rate zero.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let (warmup, floor) = match *self {
            Self::Constant { warmup } => (warmup, 1.0),
            Self::Cosine { warmup, floor } | Self::Linear { warmup, floor } => (warmup, floor),
        };
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let span = total.saturating_sub(warmup).max(1) as f64;
        let progress = ((step - warmup) as f64 / span).min(1.0);
        let shape = match self {
            Self::Constant { .. } => 1.0,
            Self::Cosine { .. } => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Self::Linear { .. } => 1.0 - progress,
        };
        floor + (1.0 - floor) * shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_to_the_floor() {
        let cosine = Schedule::Cosine { warmup: 10, floor: 0.05 };
        assert!((cosine.factor(0, 110) - 0.1).abs() < 1e-12);
        assert!((cosine.factor(9, 110) - 1.0).abs() < 1e-12);
        assert!((cosine.factor(60, 110) - 0.525).abs() < 1e-12);
        assert!((cosine.factor(110, 110) - 0.05).abs() < 1e-12);
        assert!((cosine.factor(500, 110) - 0.05).abs() < 1e-12);
        let linear = Schedule::Linear { warmup: 0, floor: 0.0 };
        assert!((linear.factor(25, 100) - 0.75).abs() < 1e-12);
        assert!((Schedule::Constant { warmup: 2 }.factor(7, 9) - 1.0).abs() < 1e-12);
    }
}
