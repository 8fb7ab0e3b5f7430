//! `parity`: golden cases against the code, one line a case.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use specialformer_testkit::{GoldenCase, cases_in, golden_dir};

use crate::shell::Result;
use judge::{Judge, Verdict};

mod cases;
mod judge;

/// What can run a kind of golden case, whatever its sizes.
pub(crate) struct Runner {
    /// The number that cases of this kind start with, as in `09_attention`.
    number: u32,
    /// The kind, as in `attention`.
    topic: &'static str,
    /// Computes every output of the case and hands it to the judge.
    run: fn(&GoldenCase, &mut Judge<'_>) -> Result<()>,
}

impl Runner {
    /// A case is of this kind if it bears the topic's name, or its number and
    /// a name that begins with the topic.
    fn recognises(&self, case: &str) -> bool {
        let (number, rest) = match case.split_once('_') {
            Some((number, rest)) if number.parse::<u32>().is_ok() => (number.parse().ok(), rest),
            _ => (None, case),
        };
        rest == self.topic || (number == Some(self.number) && rest.starts_with(self.topic))
    }
}

/// Runs the cases in `folder`, or the committed ones.
pub(crate) fn run(folder: Option<&Path>) -> Result<()> {
    let folder = folder.map_or_else(golden_dir, Path::to_path_buf);
    let summary = run_with(cases::RUNNERS, &folder)?;
    println!("{} passed, {} failed, {} skipped", summary.passed, summary.failed, summary.skipped);
    if summary.failed > 0 {
        return Err(format!("{} golden cases failed", summary.failed).into());
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq)]
struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
}

fn run_with(runners: &[Runner], folder: &Path) -> Result<Summary> {
    let paths = if folder.join("case.json").is_file() {
        vec![folder.to_path_buf()]
    } else {
        cases_in(folder)?
    };
    if paths.is_empty() {
        let folder = folder.display();
        return Err(format!("{folder}: no golden case (a folder with a case.json)").into());
    }
    let mut summary = Summary::default();
    for path in paths {
        let (name, verdict) = judge_folder(runners, &path);
        match verdict {
            Some(verdict) => {
                println!("{name:<24} {verdict}");
                *(if verdict.passed() { &mut summary.passed } else { &mut summary.failed }) += 1;
            }
            None => {
                println!("{name:<24} skipped: nothing here runs such a case");
                summary.skipped += 1;
            }
        }
    }
    Ok(summary)
}

/// The case's name, and the verdict unless no runner knows it. The name alone
/// is read first: a case that nothing here runs may hold files of any format.
fn judge_folder(runners: &[Runner], path: &PathBuf) -> (String, Option<Verdict>) {
    #[derive(Deserialize)]
    struct Name {
        case: String,
    }
    let folder_name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = std::fs::read(path.join("case.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Name>(&bytes).ok())
        .map_or_else(folder_name, |name| name.case);
    let Some(runner) = runners.iter().find(|runner| runner.recognises(&name)) else {
        return (name, None);
    };
    let verdict = match GoldenCase::open(path) {
        Ok(case) => {
            let mut judge = Judge::new(&case);
            match (runner.run)(&case, &mut judge) {
                Ok(()) => judge.verdict(),
                Err(error) => Verdict::broken(error.to_string()),
            }
        }
        Err(error) => Verdict::broken(error.to_string()),
    };
    (name, Some(verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands back what the case wants, shifted by `BY` millionths.
    fn echo<const BY: i32>(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
        for name in case.outputs() {
            let shifted = case.f32(name)?.mapv(|v| f64::from(v) + f64::from(BY) * 1e-6);
            judge.check(name, &shifted)?;
        }
        Ok(())
    }

    #[test]
    fn the_committed_cases_pass() {
        let summary = run_with(cases::RUNNERS, &golden_dir()).unwrap();
        // `24_embedding` is of single operations, which their crate's tests run.
        assert_eq!(summary, Summary { passed: 17, failed: 0, skipped: 1 });
    }

    #[test]
    fn cases_are_recognised_by_name_and_number() {
        let runner = Runner { number: 1, topic: "llama", run: echo::<0> };
        for (case, want) in [
            ("01_llama", true),
            ("01_llama_wide", true),
            ("llama", true),
            ("77_llama", true),
            ("02_llama_rope3", false),
            ("01_other", false),
            ("llama_rope3", false),
        ] {
            assert_eq!(runner.recognises(case), want, "{case}");
        }
    }

    #[test]
    fn verdicts_are_counted() {
        let runners = [
            Runner { number: 9, topic: "attention", run: echo::<0> },
            Runner { number: 12, topic: "lstm", run: echo::<1000> },
        ];
        let summary = run_with(&runners, &golden_dir()).unwrap();
        assert_eq!((summary.passed, summary.failed), (1, 1));
        let summary = run_with(&runners[..1], &golden_dir()).unwrap();
        assert!(summary.passed == 1 && summary.failed == 0 && summary.skipped >= 1);
        let one = run_with(&runners, &golden_dir().join("09_attention")).unwrap();
        assert_eq!(one, Summary { passed: 1, ..Summary::default() });
    }

    #[test]
    fn folders_without_a_case_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = run_with(&[], folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("no golden case (a folder with a case.json)"), "{error}");
        assert!(run_with(&[], &folder.path().join("none")).is_err());
    }

    #[test]
    fn damaged_cases_fail_and_unknown_ones_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["09_attention", "13_tokenizer"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            let text = format!(r#"{{"case": "{name}", "tolerances": {{}}}}"#);
            std::fs::write(folder.path().join(name).join("case.json"), text).unwrap();
        }
        let runners = [Runner { number: 9, topic: "attention", run: echo::<0> }];
        let summary = run_with(&runners, folder.path()).unwrap();
        assert_eq!(summary, Summary { failed: 1, skipped: 1, passed: 0 });
    }
}
