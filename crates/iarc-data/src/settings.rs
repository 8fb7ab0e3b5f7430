//! The difficulty of the benchmark, and how long a window it needs.

use crate::error::{IarcError, Result};
use crate::vocabulary::Subtask;

/// The largest alphabet.
pub const MAX_DIGITS: usize = 1 << 16;

/// The longest window.
pub const MAX_WINDOW: usize = 1 << 16;

/// The digits that a run of each task may have before a control is forced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunCaps {
    /// Cap of I.
    pub increment: usize,
    /// Cap of A.
    pub add: usize,
    /// Cap of R; the furthest token that R needs is about 2.5 times this.
    pub reverse: usize,
    /// Cap of C.
    pub context: usize,
}

impl RunCaps {
    /// The cap of one task.
    pub fn of(self, subtask: Subtask) -> usize {
        match subtask {
            Subtask::Increment => self.increment,
            Subtask::Add => self.add,
            Subtask::Reverse => self.reverse,
            Subtask::Context => self.context,
        }
    }

    /// The largest of the four.
    pub fn largest(self) -> usize {
        self.increment.max(self.add).max(self.reverse).max(self.context)
    }
}

/// 12 for I, A and C, 6 for R.
impl Default for RunCaps {
    fn default() -> Self {
        Self { increment: 12, add: 12, reverse: 6, context: 12 }
    }
}

/// The difficulty settings. [`Iarc::new`](crate::Iarc::new) validates them.
///
/// ```
/// use specialformer_iarc_data::{Iarc, Settings};
/// let harder = Settings { digits: 16, pointer_range: 16, window: 32, ..Settings::default() };
/// assert_eq!(harder.needed_window(), 26);
/// assert!(Iarc::new(harder).is_ok());
/// assert_eq!(
///     Iarc::new(Settings { window: 12, ..Settings::default() }).unwrap_err().to_string(),
///     "iarc: window = 12: must be at least 14, the tokens that the rules need with these settings"
/// );
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// N, the size of the alphabet of digits.
    pub digits: usize,
    /// T, the tokens that a model sees.
    pub window: usize,
    /// p, the probability of a control once a run has two digits.
    pub switch_probability: f64,
    /// D: task C points back by the last digit modulo D.
    pub pointer_range: usize,
    /// The digits after which a control is forced, for each task.
    pub run_caps: RunCaps,
}

/// N = 10, T = 16, p = 0.1, D = 8, caps 12 and 6.
impl Default for Settings {
    fn default() -> Self {
        Self {
            digits: 10,
            window: 16,
            switch_probability: 0.1,
            pointer_range: 8,
            run_caps: RunCaps::default(),
        }
    }
}

impl Settings {
    /// The furthest token that any rule can need, counted back from the token
    /// to predict (the last token of the window is 1 back). A window of at
    /// least this length always holds the answer.
    ///
    /// Let k be the digits since the last control. The control is k + 1 back,
    /// and as a run ends at its cap, k + 1 ≤ cap. The digit `d[n−j]` is j + 1
    /// tokens back plus the controls in between: none if j < k, otherwise the
    /// one of the current run and, since every earlier run has at least two
    /// digits, at most one more for every two digits beyond the k, so
    /// j + 2 + ⌊(j − k)/2⌋. Then
    ///
    /// - I and A use j ≤ 1: at most 3 back, never more than R;
    /// - R uses j = 2k, most at k = cap_R − 1: 2·cap_R + ⌊(cap_R − 1)/2⌋;
    /// - C uses j ≤ m with m = min(D, N), most at k = 0: m + 2 + ⌊m/2⌋;
    /// - the control itself: the largest cap.
    ///
    /// The result is the largest of these. It is reached for 0 < p < 1; with
    /// p = 0 or p = 1 runs have one length each and less may do.
    pub fn needed_window(&self) -> usize {
        let caps = self.run_caps;
        let reverse =
            caps.reverse.saturating_mul(2).saturating_add(caps.reverse.saturating_sub(1) / 2);
        let furthest_pointer = self.pointer_range.min(self.digits);
        let context = furthest_pointer.saturating_add(2).saturating_add(furthest_pointer / 2);
        reverse.max(context).max(caps.largest())
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`IarcError::InvalidSetting`] that names the first field at fault and
    /// its value: `digits` outside 2..=[`MAX_DIGITS`], `switch_probability`
    /// outside [0, 1], `pointer_range` 0, a cap below 2 (a run always has two
    /// digits), `window` below [`needed_window`](Self::needed_window) or above
    /// [`MAX_WINDOW`].
    pub fn validate(&self) -> Result<()> {
        check_digits(self.digits)?;
        if !(0.0..=1.0).contains(&self.switch_probability) {
            return Err(invalid(
                "switch_probability",
                self.switch_probability,
                "must be between 0 and 1",
            ));
        }
        if self.pointer_range == 0 {
            return Err(invalid("pointer_range", 0, "must be at least 1"));
        }
        let caps = self.run_caps;
        for (field, cap) in [
            ("run_caps.increment", caps.increment),
            ("run_caps.add", caps.add),
            ("run_caps.reverse", caps.reverse),
            ("run_caps.context", caps.context),
        ] {
            if cap < 2 {
                return Err(invalid(field, cap, "must be at least 2, the shortest run"));
            }
        }
        let needed = self.needed_window();
        if self.window < needed {
            let requirement = format!(
                "must be at least {needed}, the tokens that the rules need with these settings"
            );
            return Err(invalid("window", self.window, requirement));
        }
        if self.window > MAX_WINDOW {
            return Err(invalid("window", self.window, format!("must be at most {MAX_WINDOW}")));
        }
        Ok(())
    }
}

pub(crate) fn check_digits(digits: usize) -> Result<()> {
    if !(2..=MAX_DIGITS).contains(&digits) {
        return Err(invalid("digits", digits, format!("must be between 2 and {MAX_DIGITS}")));
    }
    Ok(())
}

pub(crate) fn invalid(
    field: &'static str,
    value: impl ToString,
    requirement: impl Into<String>,
) -> IarcError {
    IarcError::InvalidSetting { field, value: value.to_string(), requirement: requirement.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_need_fourteen_tokens() {
        assert_eq!(Settings::default().needed_window(), 14);
        Settings { window: 14, ..Settings::default() }.validate().unwrap();
    }

    #[test]
    fn each_bad_field_is_named_with_its_value() {
        let good = Settings::default();
        let caps = good.run_caps;
        let with_caps = |run_caps| Settings { run_caps, ..good };
        let cases = [
            (Settings { digits: 1, ..good }, "digits = 1: must be between 2 and 65536"),
            (
                Settings { switch_probability: 1.5, ..good },
                "switch_probability = 1.5: must be between 0 and 1",
            ),
            (
                Settings { switch_probability: f64::NAN, ..good },
                "switch_probability = NaN: must be between 0 and 1",
            ),
            (Settings { pointer_range: 0, ..good }, "pointer_range = 0: must be at least 1"),
            (
                with_caps(RunCaps { add: 1, ..caps }),
                "run_caps.add = 1: must be at least 2, the shortest run",
            ),
            (
                with_caps(RunCaps { reverse: 7, ..caps }),
                "window = 16: must be at least 17, the tokens that the rules need with these settings",
            ),
            (Settings { window: MAX_WINDOW + 1, ..good }, "window = 65537: must be at most 65536"),
        ];
        for (settings, message) in cases {
            let error = settings.validate().unwrap_err();
            assert!(matches!(error, IarcError::InvalidSetting { .. }));
            assert_eq!(error.to_string(), format!("iarc: {message}"));
        }
    }

    #[test]
    fn huge_settings_do_not_overflow() {
        let good = Settings::default();
        let run_caps = RunCaps { reverse: usize::MAX, ..good.run_caps };
        for settings in [
            Settings { run_caps, ..good },
            Settings { run_caps, window: usize::MAX, ..good },
            Settings { window: usize::MAX, pointer_range: usize::MAX, ..good },
        ] {
            let error = settings.validate().unwrap_err();
            assert!(error.to_string().starts_with("iarc: window = "), "{error}");
        }
    }
}
