//! From an analysis and its trace to the report's part on signatures.

use std::path::Path;

use specialformer::routing::analysis::{Analysis, Baseline};
use specialformer::routing_trace::TraceReader;

use crate::commands::expert_names;
use crate::failure::Failure;
use crate::report::{
    ReportData, RoutedText, SignatureLayer, SignaturePoint, SignatureRow, Signatures,
};
use crate::{job, run_report};

/// Texts of each label that a page carries.
const TEXTS: usize = 3;
/// Tokens of a text that a page shows.
const TOKENS: usize = 256;
/// Prompts in the plane.
const POINTS: usize = 2000;

/// The report of an analysis: that of the run whose folder it goes to, with a
/// part on signatures, or that part by itself.
pub(crate) fn report(
    found: &Analysis,
    reader: &TraceReader,
    folder: &Path,
) -> Result<ReportData, Failure> {
    let signatures = Some(signatures(found, reader)?);
    if let Some(run) = job::load_finished(folder)? {
        let report = run_report::build(&run.config.name, &[&run], run.result.seconds)?;
        return Ok(ReportData { signatures, ..report });
    }
    let info = reader.info();
    Ok(ReportData {
        title: format!("{}: routing signatures", info.model),
        subtitle: format!(
            "{} prompts, {} tokens, {} layers with experts",
            info.prompts,
            info.positions,
            info.layers.len()
        ),
        signatures,
        ..ReportData::default()
    })
}

/// The part of a page.
fn signatures(found: &Analysis, reader: &TraceReader) -> Result<Signatures, Failure> {
    let row = |name: &str, b: &Baseline| {
        let s = &b.similarity;
        SignatureRow {
            name: name.into(),
            cosines: Some([s.within, s.within_std, s.across, s.across_std]),
            effect: Some(s.cohens_d),
            accuracy: [b.accuracy, b.accuracy_std],
        }
    };
    let own = Baseline {
        similarity: found.similarity,
        accuracy: found.classifier.accuracy,
        accuracy_std: found.classifier.accuracy_std,
    };
    let mut comparison = vec![
        row("Signatures", &own),
        row("Balanced random routing", &found.balanced_random),
        row("Shuffle that keeps frequencies", &found.frequency_shuffle),
        row("Prompts cut to one length", &found.length_matched),
    ];
    comparison.extend(found.bag_of_tokens.iter().map(|bag| row("Bag of tokens", bag)));
    let (length, spread) = found.length_alone;
    comparison.push(SignatureRow {
        name: "Length alone".into(),
        accuracy: [length, spread],
        ..SignatureRow::default()
    });
    let by_layer = found.by_layer.iter().map(|layer| {
        let (similarity, accuracy) = (layer.similarity, layer.accuracy);
        let b = Baseline { similarity, accuracy, accuracy_std: layer.accuracy_std };
        row(&layer.layer, &b)
    });
    let means = found.mean_signatures.iter().map(|mean| {
        let mut rest = mean.as_slice();
        let layer = |experts: usize| {
            let (own, others) = rest.split_at(experts);
            rest = others;
            own.iter().map(|&x| (x * 1e4).round() as f32 / 1e4).collect()
        };
        found.layers.iter().map(|layer| layer.experts).map(layer).collect()
    });
    let stride = found.ids.len().div_ceil(POINTS).max(1);
    let points = (0..found.ids.len()).step_by(stride).map(|i| {
        let at = |axis: usize| found.projection.coordinates[i].get(axis).copied().unwrap_or(0.0);
        let at = [at(0), at(1)].map(|x| (x * 1e5).round() as f32 / 1e5);
        SignaturePoint { id: found.ids[i].clone(), label: found.label_of[i], at }
    });
    let names = expert_names(found);
    let carriers = found.carriers.iter().map(|all| {
        all.iter().map(|c| (names[c.column].clone(), [c.share - c.others, c.low, c.high])).collect()
    });
    let test = &found.permutation;
    Ok(Signatures {
        labels: found.labels.clone(),
        layers: found
            .layers
            .iter()
            .map(|layer| SignatureLayer { name: layer.name.clone(), experts: layer.experts })
            .collect(),
        means: means.collect(),
        points: points.collect(),
        explained: found.projection.explained.iter().take(2).copied().collect(),
        texts: texts(found, reader)?,
        comparison,
        by_layer: by_layer.collect(),
        confusion: found.classifier.confusion.clone(),
        test: format!(
            "Permutation test of within − across = {:.4}: p = {:.1e} from {} permutations of the \
             labels. The classifier is a multinomial logistic regression, cross-validated; the \
             spread is that over folds.",
            test.statistic, test.p_value, test.permutations
        ),
        carriers: carriers.collect(),
    })
}

/// The first prompts of each label whose text was kept.
fn texts(found: &Analysis, reader: &TraceReader) -> Result<Vec<RoutedText>, Failure> {
    let mut texts = Vec::new();
    let mut kept = vec![0usize; found.labels.len()];
    let mut number = 0;
    'parts: for part in 0..reader.info().parts {
        let part = reader.part(part)?;
        for (start, prompt) in part.prompts() {
            let label = found.label_of[number];
            number += 1;
            if kept[label] >= TEXTS || prompt.pieces.is_empty() {
                continue;
            }
            kept[label] += 1;
            let shown = prompt.pieces.len().min(prompt.positions).min(TOKENS);
            let by_layer = |layer: usize| -> (Vec<Vec<u16>>, Vec<Vec<u8>>) {
                let token = |t: usize| part.choices(layer, start + t);
                let experts = |t: usize| token(t).map(|(expert, _)| expert as u16).collect();
                let weights = |t: usize| token(t).map(|(_, w)| (100.0 * w).round() as u8).collect();
                ((0..shown).map(experts).collect(), (0..shown).map(weights).collect())
            };
            let (experts, weights) = (0..found.layers.len()).map(by_layer).unzip();
            texts.push(RoutedText {
                id: prompt.id.clone(),
                label,
                pieces: prompt.pieces[..shown].to_vec(),
                own: prompt.own,
                experts,
                weights,
            });
            if kept.iter().all(|&count| count >= TEXTS) {
                break 'parts;
            }
        }
    }
    texts.sort_by_key(|text| text.label);
    Ok(texts)
}
