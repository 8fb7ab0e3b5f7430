//! Compares a case's outputs and remembers the worst.

use std::collections::BTreeSet;
use std::fmt;

use ndarray::{ArrayBase, Data, Dimension};
use specialformer_testkit::{Comparison, GoldenCase};

use crate::shell::Result;

/// Takes the outputs of one case as they are computed.
pub(crate) struct Judge<'a> {
    case: &'a GoldenCase,
    pending: BTreeSet<&'a str>,
    compared: Vec<(String, Comparison)>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(case: &'a GoldenCase) -> Self {
        let pending = case.outputs().iter().map(String::as_str).collect();
        Self { case, pending, compared: Vec::new() }
    }

    /// Compares a result with the output of that name.
    ///
    /// # Errors
    /// If the case has no such output or no tolerance for it.
    pub(crate) fn check<A, S, D>(&mut self, name: &str, got: &ArrayBase<S, D>) -> Result<()>
    where
        A: Into<f64> + Copy,
        S: Data<Elem = A>,
        D: Dimension,
    {
        let comparison = self.case.compare(name, got)?;
        self.pending.remove(name);
        self.compared.push((name.to_owned(), comparison));
        Ok(())
    }

    /// The case's verdict. An output that was not computed fails it.
    pub(super) fn verdict(self) -> Verdict {
        if let Some(name) = self.pending.first() {
            return Verdict::broken(format!("output `{name}` was not computed"));
        }
        let worst = self.compared.into_iter().max_by(|(_, a), (_, b)| {
            // A difference in shape has an infinite ratio already.
            a.max_ratio.total_cmp(&b.max_ratio)
        });
        match worst {
            Some((name, comparison)) => Verdict::Compared { name, comparison },
            None => Verdict::broken("the case names no output".into()),
        }
    }
}

/// How a case ended.
pub(crate) enum Verdict {
    /// Everything was compared; this is the worst output.
    Compared { name: String, comparison: Comparison },
    /// The case could not be run to its end.
    Broken(String),
}

impl Verdict {
    pub(super) fn broken(why: String) -> Self {
        Self::Broken(why)
    }

    pub(super) fn passed(&self) -> bool {
        matches!(self, Self::Compared { comparison, .. } if comparison.passed())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) => write!(f, "FAILED  {why}"),
            Self::Compared { name, comparison } => {
                let verdict = if comparison.passed() { "ok     " } else { "FAILED " };
                if comparison.got_shape != comparison.want_shape {
                    return write!(f, "{verdict} `{name}`: {comparison}");
                }
                write!(
                    f,
                    "{verdict} worst: `{name}` at {:.2} of its tolerance ({}), largest error {:.2e}",
                    comparison.max_ratio, comparison.tolerance, comparison.max_error
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use specialformer_testkit::golden_dir;

    #[test]
    fn an_output_left_out_fails_the_case() {
        let case = GoldenCase::open(golden_dir().join("09_attention")).unwrap();
        let mut judge = Judge::new(&case);
        for name in case.outputs().iter().skip(1) {
            judge.check(name, case.f32(name).unwrap()).unwrap();
        }
        let verdict = judge.verdict();
        assert!(!verdict.passed());
        assert_eq!(
            verdict.to_string(),
            format!("FAILED  output `{}` was not computed", case.outputs()[0])
        );
    }

    #[test]
    fn the_worst_output_is_named() {
        let case = GoldenCase::open(golden_dir().join("09_attention")).unwrap();
        let verdict = |shift: f32| {
            let mut judge = Judge::new(&case);
            for name in case.outputs() {
                let by = if name == "softmax_causal.grad_k" { shift } else { 0.0 };
                judge.check(name, &case.f32(name).unwrap().mapv(|v| v + by)).unwrap();
            }
            judge.verdict()
        };
        assert!(verdict(1e-5).passed());
        let failed = verdict(1e-3);
        assert!(!failed.passed());
        let line = failed.to_string();
        assert!(line.starts_with("FAILED  worst: `softmax_causal.grad_k` at "), "{line}");
        assert!(!line.contains('\n'));
    }
}
