//! Reports of runs on the IARC benchmark.

use specialformer::attention::AttentionKind;
use specialformer::iarc::IarcConfig;
use specialformer::iarc_data::{BatchOptions, GuessBaseline, Iarc, Split, Subtask as IarcTask};
use specialformer::inspect::{self, HeadAttention};
use specialformer::nn::Ctx;
use specialformer::training::{Evaluation, EvaluationRecord};
use specialformer::{Model, Outputs, Tokens};

use super::points;
use crate::failure::Failure;
use crate::job::Finished;
use crate::report::{
    AttentionMap, Candidate, HeadHistogram, Quantity, Reference, ReportData, Run, Sample, Score,
    Scores, Subtask, Token, Window,
};

/// Sample windows shown with their attention maps.
const SAMPLES: usize = 6;
/// Test windows whose scores make the histograms.
const HISTOGRAM_WINDOWS: usize = 512;
const BINS: usize = 48;

pub(super) fn build(runs: &[&Finished], data: &IarcConfig) -> Result<ReportData, Failure> {
    let first = runs[0];
    let benchmark = data.benchmark()?;
    let (windows, tokens) = sample_windows(&benchmark, data)?;
    let entries = runs.iter().map(|run| entry(run, runs.len() == 1, &benchmark, &windows, &tokens));
    let runs = entries.collect::<Result<Vec<_>, Failure>>()?;
    Ok(ReportData {
        subtitle: format!(
            "{} optimiser steps of {} windows of {} tokens; scores on held-out windows.",
            crate::table::grouped(first.result.steps),
            first.config.train.batch_size,
            data.window
        ),
        notes: vec![
            "The benchmark follows arXiv 2508.04461, which gives its tasks in words; the exact \
             rules are this project's, so figures are not to be compared with the paper's."
                .into(),
        ],
        subtasks: IarcTask::ALL
            .iter()
            .map(|task| Subtask { symbol: task.to_string(), name: task.name().into() })
            .collect(),
        target: Some(0.95),
        references: vec![guess(&benchmark)?],
        runs,
        windows,
        ..ReportData::default()
    })
}

fn guess(benchmark: &Iarc) -> Result<Reference, Failure> {
    let fail = specialformer::Error::from;
    let mut baseline = GuessBaseline::new();
    for batch in benchmark.batches(BatchOptions::default()).map_err(fail)?.take(100) {
        baseline.observe(&batch.map_err(fail)?);
    }
    let set = benchmark.evaluation_set(Split::Test, 8192).map_err(fail)?;
    let scores = baseline.evaluate(&set);
    Ok(Reference {
        name: "guess from task and last token".into(),
        overall: scores.overall().accuracy(),
        subtasks: IarcTask::ALL.iter().map(|&task| scores.of(task).accuracy()).collect(),
    })
}

/// A few test windows, of every subtask, and their token ids.
fn sample_windows(benchmark: &Iarc, data: &IarcConfig) -> Result<(Vec<Window>, Vec<u32>), Failure> {
    let vocabulary = benchmark.vocabulary();
    let mut stream = benchmark.windows(1, Split::Test);
    let (mut windows, mut tokens) = (Vec::new(), Vec::new());
    let wanted = SAMPLES.div_ceil(IarcTask::COUNT);
    let mut taken = [0; IarcTask::COUNT];
    while windows.len() < wanted * IarcTask::COUNT {
        let window = stream.next_window().map_err(specialformer::Error::from)?;
        let task = window.target_subtask.index();
        // Frequent windows come again and again.
        if taken[task] == wanted || tokens.chunks_exact(data.window).any(|w| w == window.tokens) {
            continue;
        }
        taken[task] += 1;
        let text = |id| vocabulary.render(&[id]).map_err(specialformer::Error::from);
        let shown =
            window.tokens.iter().zip(&window.subtasks).map(|(&id, subtask)| {
                Ok(Token { text: text(id)?, subtask: Some(subtask.index()) })
            });
        windows.push(Window {
            tokens: shown.collect::<Result<_, Failure>>()?,
            answer: text(window.target)?,
            subtask: Some(task),
            sources: Vec::new(),
        });
        tokens.extend_from_slice(&window.tokens);
    }
    debug_assert_eq!(tokens.len(), windows.len() * data.window);
    Ok((windows, tokens))
}

fn entry(
    run: &Finished,
    alone: bool,
    benchmark: &Iarc,
    windows: &[Window],
    tokens: &[u32],
) -> Result<Run, Failure> {
    let result = &run.result;
    // One seed of each model is enough to look at.
    let (samples, histograms) = if result.seed == 1 || alone {
        (samples(&run.model, benchmark, windows, tokens)?, histograms(&run.model, benchmark)?)
    } else {
        (Vec::new(), Vec::new())
    };
    Ok(Run {
        attention: match run.config.model.attention() {
            Some(AttentionKind::Softmax) => "softmax".into(),
            Some(AttentionKind::Expressive { .. }) => "expressive".into(),
            None => String::new(),
        },
        scores: result.test.as_ref().map(scores),
        points: points(&run.records, accuracies),
        samples,
        histograms,
        ..super::entry(run)
    })
}

fn scores(record: &EvaluationRecord) -> Scores {
    let score = |accuracy, error| Score { accuracy, standard_error: Some(error) };
    let overall = &record.evaluation.overall;
    let of = |task: &IarcTask| match record.evaluation.labels.get(&task.to_string()) {
        Some(label) => score(label.accuracy, label.standard_error),
        None => Score { accuracy: f64::NAN, standard_error: None },
    };
    Scores {
        overall: score(overall.accuracy, overall.standard_error),
        subtasks: IarcTask::ALL.iter().map(of).collect(),
    }
}

fn accuracies(evaluation: &Evaluation) -> Vec<f64> {
    let of = |task: &IarcTask| evaluation.labels.get(&task.to_string()).map(|l| l.accuracy);
    IarcTask::ALL.iter().map(|task| of(task).unwrap_or(f64::NAN)).collect()
}

fn samples(
    model: &Model,
    benchmark: &Iarc,
    windows: &[Window],
    tokens: &[u32],
) -> Result<Vec<Sample>, Failure> {
    let batch = Tokens::new(tokens, windows.len())?;
    let logits = model.logits(&Ctx::eval(), batch, Outputs::Last)?;
    let classes = logits.shape().last_size();
    let heads = inspect::attention(model, batch)?;
    let mut samples = Vec::new();
    for (b, logits) in logits.value().as_slice().chunks_exact(classes).enumerate() {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let mut order: Vec<usize> = (0..classes).collect();
        order.sort_by(|&i, &j| logits[j].total_cmp(&logits[i]));
        let text = |id: usize| {
            benchmark.vocabulary().render(&[id as u32]).unwrap_or_else(|_| id.to_string())
        };
        let candidates = order.iter().take(3).map(|&id| Candidate {
            token: text(id),
            probability: f64::from(logits[id] - max).exp() / sum,
        });
        samples.push(Sample {
            window: b,
            prediction: text(order[0]),
            candidates: candidates.collect(),
            causal: true,
            maps: heads.iter().map(|head| map(head, b)).collect(),
        });
    }
    Ok(samples)
}

fn map(head: &HeadAttention, window: usize) -> AttentionMap {
    let weights = head.weights.index_axis(ndarray::Axis(0), window);
    AttentionMap {
        layer: head.layer,
        head: head.head,
        weights: weights.iter().map(|&w| w as f32).collect(),
    }
}

fn histograms(model: &Model, benchmark: &Iarc) -> Result<Vec<HeadHistogram>, Failure> {
    let set = benchmark.evaluation_set(Split::Test, HISTOGRAM_WINDOWS);
    let set = set.map_err(specialformer::Error::from)?;
    let tokens: Vec<u32> = set.tokens.iter().copied().collect();
    let heads = inspect::attention(model, Tokens::new(&tokens, set.len())?)?;
    let bound = z_bound(&heads);
    let mut histograms = Vec::with_capacity(2 * heads.len());
    for head in &heads {
        let quantities =
            [(Quantity::Z, &head.scores, bound), (Quantity::Cosine, &head.cosines, 1.0)];
        for (quantity, values, bound) in quantities {
            let (mut counts, mut attended) = (vec![0; BINS], vec![0.0; BINS]);
            for (&value, &weight) in values.iter().zip(&head.weights) {
                if value.is_finite() {
                    let position = (value + bound) / (2.0 * bound) * BINS as f64;
                    let bin = (position.max(0.0) as usize).min(BINS - 1);
                    counts[bin] += 1;
                    attended[bin] += weight;
                }
            }
            let edge = |i| -bound + 2.0 * bound * i as f64 / BINS as f64;
            histograms.push(HeadHistogram {
                layer: head.layer,
                head: head.head,
                quantity,
                edges: (0..=BINS).map(edge).collect(),
                counts,
                attended,
            });
        }
    }
    Ok(histograms)
}

/// A range that holds 99 % of all scores, the same for every head so that
/// they can be compared; the outermost bins take the rest.
fn z_bound(heads: &[HeadAttention]) -> f64 {
    let scores = heads.iter().flat_map(|head| head.scores.iter());
    let mut sizes: Vec<f64> = scores.filter(|z| z.is_finite()).map(|z| z.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let at = sizes.len().saturating_sub(1) * 99 / 100;
    sizes.get(at).copied().unwrap_or(1.0).max(1e-3)
}
