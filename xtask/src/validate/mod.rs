//! `validate`: what has to hold before a change is merged, cheapest first.

use std::time::{Duration, Instant};

use clap::Args;

use crate::shell::{Result, cargo, output, program, run as execute, succeeds};
use metadata::Metadata;

mod arrows;
mod metadata;

/// What to check.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave `cargo test --workspace` out, for callers that have run it.
    #[arg(long)]
    skip_tests: bool,
}

/// How a step ended without failing.
enum Outcome {
    Passed,
    Skipped(String),
}

struct Step {
    name: String,
    check: Box<dyn Fn() -> Result<Outcome>>,
}

impl Step {
    fn new(name: impl Into<String>, check: impl Fn() -> Result<Outcome> + 'static) -> Self {
        Self { name: name.into(), check: Box::new(check) }
    }

    fn cargo(name: impl Into<String>, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let owned = |word: &&str| (*word).to_owned();
        let arguments: Vec<_> = arguments.iter().map(owned).collect();
        let environment: Vec<_> = environment.iter().map(|(k, v)| (owned(k), owned(v))).collect();
        Self::new(name, move || {
            let environment = environment.iter().map(|(k, v)| (k, v));
            execute(cargo().args(&arguments).envs(environment))?;
            Ok(Outcome::Passed)
        })
    }
}

/// Runs all steps up to the first that fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let metadata = Metadata::of_workspace()?;
    let steps = steps(&metadata, options);
    let mut report = Vec::new();
    let mut failed = None;
    for (index, step) in steps.iter().enumerate() {
        eprintln!("\n== {}/{} {}", index + 1, steps.len(), step.name);
        let start = Instant::now();
        let outcome = (step.check)();
        let line = report_line(&step.name, &outcome, start.elapsed());
        eprintln!("{line}");
        report.push(line);
        if let Err(error) = outcome {
            failed = Some(format!("{}: {error}", step.name));
            break;
        }
    }
    println!("\n{}", report.join("\n"));
    match failed {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

fn report_line(name: &str, outcome: &Result<Outcome>, took: Duration) -> String {
    let verdict = match outcome {
        Ok(Outcome::Passed) => "ok".to_owned(),
        Ok(Outcome::Skipped(why)) => format!("skipped: {why}"),
        Err(_) => "FAILED".to_owned(),
    };
    format!("{:>7.1} s  {name}: {verdict}", took.as_secs_f64())
}

fn steps(metadata: &Metadata, options: &Options) -> Vec<Step> {
    let checked = metadata.clone();
    let mut steps = vec![
        Step::cargo("formatting", &["fmt", "--all", "--check"], &[]),
        Step::new("dependency arrows", move || {
            let violations = arrows::violations(&checked);
            if violations.is_empty() {
                return Ok(Outcome::Passed);
            }
            Err(format!("\n  {}", violations.join("\n  ")).into())
        }),
        Step::cargo(
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
            &[],
        ),
        Step::cargo(
            "documentation",
            &["doc", "--workspace", "--no-deps"],
            &[("RUSTDOCFLAGS", "-D warnings")],
        ),
    ];
    for package in metadata.published_libraries() {
        steps.push(Step::cargo(
            format!("{} alone, no default features", package.name),
            &["check", "--package", &package.name, "--no-default-features"],
            &[],
        ));
    }
    if !options.skip_tests {
        steps.push(Step::cargo("tests", &["test", "--workspace"], &[]));
    }
    let with_blas: Vec<_> = metadata.with_feature("blas").map(|p| p.name.clone()).collect();
    steps.push(Step::new("BLAS build", move || blas(&with_blas)));
    steps.push(Step::cargo(
        "benchmarks, smoke run",
        &["bench", "--package", "specialformer-benches", "--", "--test"],
        &[],
    ));
    steps
}

/// Checks all crates that have the feature and tests the one that links BLAS.
/// Without OpenBLAS on this machine there is nothing to link, which is an
/// error only where the environment says that this is CI.
fn blas(with_blas: &[String]) -> Result<Outcome> {
    if with_blas.is_empty() {
        return Ok(Outcome::Skipped("no crate has a feature `blas`".into()));
    }
    if !succeeds(program("pkg-config").args(["--exists", "openblas"])) {
        let why = "pkg-config finds no OpenBLAS (Debian: libopenblas-dev, pkg-config)";
        if std::env::var("CI").is_ok_and(|value| value == "true") {
            return Err(why.into());
        }
        return Ok(Outcome::Skipped(why.into()));
    }
    let version = output(program("pkg-config").args(["--modversion", "openblas"]))?;
    eprintln!("OpenBLAS {}", version.trim());
    let features: Vec<_> = with_blas.iter().map(|name| format!("{name}/blas")).collect();
    let packages = with_blas.iter().flat_map(|name| ["--package", name]);
    execute(cargo().args(["clippy", "--all-targets"]).args(packages).args([
        "--features",
        &features.join(","),
        "--",
        "-D",
        "warnings",
    ]))?;
    execute(cargo().args(["test", "--package", arrows::OWNER_OF_BLAS, "--features", "blas"]))?;
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_one_line_of_report() {
        let took = Duration::from_millis(1500);
        assert_eq!(report_line("a", &Ok(Outcome::Passed), took), "    1.5 s  a: ok");
        assert_eq!(
            report_line("a", &Ok(Outcome::Skipped("no b".into())), took),
            "    1.5 s  a: skipped: no b"
        );
        assert_eq!(report_line("a", &Err("x".into()), took), "    1.5 s  a: FAILED");
    }

    #[test]
    fn tests_can_be_left_out() {
        let metadata = Metadata::of_workspace().unwrap();
        let names = |skip_tests| -> Vec<_> {
            steps(&metadata, &Options { skip_tests }).into_iter().map(|s| s.name).collect()
        };
        assert!(names(false).contains(&"tests".to_owned()));
        assert!(!names(true).contains(&"tests".to_owned()));
        assert!(names(true).iter().any(|n| n.starts_with("specialformer-tensor alone")));
    }
}
