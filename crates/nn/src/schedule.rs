//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

use crate::error::{NnError, Result};

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
    /// Checks that the schedule fits `total` steps.
    ///
    /// ```
    /// use specialformer_nn::Schedule;
    /// let schedule = Schedule::Linear { warmup: 10, floor: 0.1 };
    /// schedule.validate(100)?;
    /// let error = schedule.validate(9).unwrap_err().to_string();
    /// assert_eq!(error, "Schedule: warmup = 10: there are only 9 steps");
    /// # Ok::<(), specialformer_nn::NnError>(())
    /// ```
    ///
    /// # Errors
    /// [`NnError::Config`] for a warm-up of more than `total` steps or a floor
    /// outside [0, 1].
    pub fn validate(&self, total: u64) -> Result<()> {
        let (warmup, floor) = self.warmup_and_floor();
        let fail = |field, value: &dyn std::fmt::Display, reason: String| {
            Err(NnError::config("Schedule", field, value, reason))
        };
        if warmup > total {
            return fail("warmup", &warmup, format!("there are only {total} steps"));
        }
        if !(0.0..=1.0).contains(&floor) {
            return fail("floor", &floor, "must be in [0, 1]".into());
        }
        Ok(())
    }

    fn warmup_and_floor(&self) -> (u64, f64) {
        match *self {
            Self::Constant { warmup } => (warmup, 1.0),
            Self::Cosine { warmup, floor } | Self::Linear { warmup, floor } => (warmup, floor),
        }
    }

    /// The factor at `step` (0 is the first) of `total` steps, of a schedule
    /// that [`validate`](Self::validate) accepts. The warm-up gives
    /// (step + 1)/warmup, so that no step has rate zero.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let (warmup, floor) = self.warmup_and_floor();
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
    use proptest::prelude::*;

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

    #[test]
    fn schedules_that_cannot_be_are_refused() {
        let message = |schedule: Schedule| schedule.validate(100).unwrap_err().to_string();
        for floor in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let wanted = format!("Schedule: floor = {floor}: must be in [0, 1]");
            assert_eq!(message(Schedule::Cosine { warmup: 0, floor }), wanted);
            assert_eq!(message(Schedule::Linear { warmup: 0, floor }), wanted);
        }
        let wanted = "Schedule: warmup = 101: there are only 100 steps";
        assert_eq!(message(Schedule::Constant { warmup: 101 }), wanted);
        assert_eq!(message(Schedule::Cosine { warmup: 101, floor: 0.5 }), wanted);
    }

    proptest! {
        #[test]
        fn rates_stay_between_the_floor_and_the_peak(
            total in 0u64..200, warmup in 0u64..200, floor in 0.0..=1.0, step in 0u64..400,
        ) {
            for schedule in [
                Schedule::Constant { warmup },
                Schedule::Cosine { warmup, floor },
                Schedule::Linear { warmup, floor },
            ] {
                prop_assert_eq!(schedule.validate(total).is_ok(), warmup <= total);
                let factor = schedule.factor(step, total);
                prop_assert!(factor <= 1.0 + 1e-12);
                let least = if step < warmup { f64::MIN_POSITIVE } else { floor - 1e-12 };
                prop_assert!(factor >= least);
            }
        }
    }
}
