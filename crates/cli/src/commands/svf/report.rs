//! The report of a training on prompts.

use std::path::{Path, PathBuf};

use specialformer::svf::{PromptScore, TuneReport, Tuned};
use specialformer::training::TrainRecord;

use crate::args::svf::{KL, ObjectiveName, TrainArgs};
use crate::failure::Failure;
use crate::job;
use crate::report::{self, Point, Reference, ReportData, Run, Score, Scores};
use crate::run_report::environment;

/// Writes the report beside what was trained, `experts/TASK.html`; its path.
pub(super) fn write(
    args: &TrainArgs,
    task: &str,
    tuned: &Tuned,
    trained: &TuneReport,
    (before, after): (&Option<PromptScore>, &Option<PromptScore>),
    out: &Path,
) -> Result<PathBuf, Failure> {
    let data = data(args, task, tuned.trained_numbers(), trained, (before, after));
    let page = report::render(&data).map_err(|e| Failure::work(e.to_string()))?;
    let path = match out.extension().is_some_and(|extension| extension == "safetensors") {
        true => out.with_extension("html"),
        // A folder, whose name may have a dot in it.
        false => PathBuf::from(format!("{}.html", out.display())),
    };
    job::write(&path, &page)?;
    Ok(path)
}

fn data(
    args: &TrainArgs,
    task: &str,
    numbers: usize,
    trained: &TuneReport,
    (before, after): (&Option<PromptScore>, &Option<PromptScore>),
) -> ReportData {
    let model = args.model.file_name().map_or_else(
        || args.model.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    );
    let method = args.method.said();
    let objective = match args.objective {
        ObjectiveName::Supervised => "the loss of the answers' tokens".to_owned(),
        ObjectiveName::Reinforce => format!(
            "REINFORCE: rewards of drawn answers, and {} times the divergence from the base",
            args.kl.unwrap_or(KL)
        ),
    };
    let overall = |score: &PromptScore| Score {
        accuracy: score.accuracy(),
        standard_error: Some(score.standard_error()),
    };
    let base = before.as_ref().map(|score| Reference {
        name: "base".into(),
        overall: Some(score.accuracy()),
        subtasks: Vec::new(),
    });
    let run = Run {
        name: format!("{task}, {method}"),
        parameters: numbers as u64,
        seed: args.seed,
        seconds: Some(trained.seconds),
        scores: after
            .as_ref()
            .map(|score| Scores { overall: overall(score), subtasks: Vec::new() }),
        points: trained.records.iter().map(point).collect(),
        ..Run::default()
    };
    ReportData {
        title: format!("{task}: {method} of {model}"),
        subtitle: format!("{} steps of {} prompts; {objective}", trained.steps, args.batch_size),
        notes: vec![
            "An answer is right if its first line equals the one that was asked for. Curves are \
             of the prompts trained on, each before its step; a point is the mean since the one \
             before."
                .into(),
        ],
        references: base.into_iter().collect(),
        runs: vec![run],
        environment: Some(environment(trained.seconds)),
        ..ReportData::default()
    }
}

fn point(record: &TrainRecord) -> Point {
    let statistic = |name: &str| record.statistics.get(name).copied();
    let reward = statistic("reward");
    Point {
        step: record.step,
        tokens: record.tokens,
        train_loss: Some(record.loss),
        // A drawn answer is right or not as a whole.
        exact: statistic("exact").or(reward.and(record.accuracy)),
        reward,
        divergence: statistic("kl"),
        learning_rate: Some(record.learning_rate),
        gradient_norm: Some(record.gradient_norm),
        tokens_per_second: Some(record.tokens_per_second),
        ..Point::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn record(statistics: &[(&str, f64)]) -> TrainRecord {
        TrainRecord {
            step: 3,
            tokens: 96,
            loss: 0.5,
            terms: BTreeMap::new(),
            accuracy: Some(0.25),
            learning_rate: 1e-3,
            gradient_norm: 1.0,
            tasks: BTreeMap::new(),
            statistics: statistics.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
            tokens_per_second: 10.0,
            seconds: 9.6,
        }
    }

    #[test]
    fn right_answers_are_counted_whole() {
        // By tokens a quarter was right, of whole answers an eighth.
        let supervised = point(&record(&[("exact", 0.125)]));
        assert_eq!((supervised.exact, supervised.reward), (Some(0.125), None));
        let drawn = point(&record(&[("reward", -0.5), ("kl", 0.01)]));
        assert_eq!((drawn.exact, drawn.reward), (Some(0.25), Some(-0.5)));
        assert_eq!(drawn.divergence, Some(0.01));
    }
}
