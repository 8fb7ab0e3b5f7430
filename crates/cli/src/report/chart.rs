//! Learning curves as a static SVG: what the page shows before (or without)
//! its scripts, and the plot beside a run.

use std::collections::BTreeMap;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::data::{Model, Point, ReportData, models, thinned};
use super::{ReportError, Result, html};

/// Colours of the models, told apart with any kind of colour vision, at
/// least 3:1 against white. `report.css` has the same ones and a set for dark.
pub(crate) const PALETTE: [RGBColor; 8] = [
    RGBColor(0x00, 0x6d, 0xb0),
    RGBColor(0xcc, 0x55, 0x00),
    RGBColor(0x00, 0x8a, 0x64),
    RGBColor(0xb0, 0x4a, 0x8f),
    RGBColor(0x9a, 0x73, 0x00),
    RGBColor(0x2a, 0x37, 0x44),
    RGBColor(0x9c, 0x2f, 0x4a),
    RGBColor(0x2b, 0x93, 0xd1),
];

const WIDTH: u32 = 960;
const HEIGHT: u32 = 420;
const LEGEND_ROW: i32 = 24;
const LEGEND_NAME: usize = 44;

/// Where a drawing's colours come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Fixed colours on white, for a file of its own.
    Paper,
    /// The page's CSS variables, so that it follows light and dark.
    Page,
}

impl Ink {
    fn series(self, index: usize) -> RGBColor {
        let index = index % PALETTE.len();
        match self {
            Self::Paper => PALETTE[index],
            Self::Page => RGBColor(0xfa, index as u8, 0x01),
        }
    }

    fn text(self) -> RGBColor {
        match self {
            Self::Paper => RGBColor(0x4a, 0x50, 0x58),
            Self::Page => RGBColor(0xfa, 0, 0x02),
        }
    }

    fn grid(self) -> RGBColor {
        match self {
            Self::Paper => RGBColor(0xe2, 0xe5, 0xe9),
            Self::Page => RGBColor(0xfa, 0, 0x03),
        }
    }

    /// Replaces the placeholder colours by variables. They are matched as
    /// whole attribute values, which no text can imitate: quotes in text are
    /// escaped.
    fn resolve(self, svg: String) -> String {
        if self == Self::Paper {
            return svg;
        }
        let mut svg = svg
            .replace("=\"#FA0002\"", "=\"var(--muted)\"")
            .replace("=\"#FA0003\"", "=\"var(--grid)\"");
        for index in 0..PALETTE.len() {
            let placeholder = format!("=\"#FA{index:02X}01\"");
            svg = svg.replace(&placeholder, &format!("=\"var(--series-{index})\""));
        }
        svg
    }
}

/// The quantity of the main curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Accuracy,
    Exact,
    ValidationLoss,
    TrainLoss,
}

impl Metric {
    /// The first that any run has.
    fn of(data: &ReportData) -> Option<Self> {
        let points = || data.runs.iter().flat_map(|run| &run.points);
        [Self::Accuracy, Self::Exact, Self::ValidationLoss, Self::TrainLoss]
            .into_iter()
            .find(|metric| points().filter_map(|point| metric.value(point)).any(f64::is_finite))
    }

    /// The value if it was measured; NaN if it is not finite.
    fn value(self, point: &Point) -> Option<f64> {
        let value = match self {
            Self::Accuracy => point.accuracy.map(|accuracy| accuracy * 100.0),
            Self::Exact => point.exact.map(|share| share * 100.0),
            Self::ValidationLoss => point.validation_loss,
            Self::TrainLoss => point.train_loss,
        };
        value.map(|value| if value.is_finite() { value } else { f64::NAN })
    }

    fn label(self) -> &'static str {
        match self {
            Self::Accuracy => "Validation accuracy (%)",
            Self::Exact => "Right answers in training (%)",
            Self::ValidationLoss => "Validation loss (nats)",
            Self::TrainLoss => "Training loss (nats)",
        }
    }
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Curve = Vec<(f64, f64)>;

/// Draws the main learning curve of every model, with a legend ranked by the
/// last value; `None` if no run has a curve.
///
/// # Errors
/// [`ReportError::Plot`] if drawing fails.
pub(crate) fn learning_curves(data: &ReportData, ink: Ink) -> Result<Option<String>> {
    let Some(metric) = Metric::of(data) else {
        return Ok(None);
    };
    let models = models(&data.runs);
    let mut svg = String::new();
    draw(data, &models, metric, ink, &mut svg)
        .map_err(|error| ReportError::Plot(error.to_string()))?;
    let label = format!("{} against optimiser steps, by model", metric.label());
    let label = html::escape(&label);
    let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1);
    Ok(Some(ink.resolve(svg)))
}

fn draw(
    data: &ReportData,
    models: &[Model<'_>],
    metric: Metric,
    ink: Ink,
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let curves: Vec<Vec<Curve>> = models
        .iter()
        .map(|model| model.runs.iter().map(|run| curve(&run.points, metric)).collect())
        .collect();
    let all = || curves.iter().flatten().flatten();
    let last_step = all().map(|point| point.0).fold(1.0, f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = match metric {
        Metric::Accuracy => ((low / 10.0).floor() * 10.0, 100.0_f64.max(high)),
        _ => (0.0_f64.min(low), high),
    };
    let low = if high - low < 1e-6 { high - 1.0 } else { low };

    let longest = models.iter().map(|model| model.name.chars().count()).max().unwrap_or(0);
    let legend_width = 104 + longest.min(LEGEND_NAME) as u32 * 32 / 5;
    let rows = models.len() as u32 + u32::from(metric == Metric::Accuracy && data.target.is_some());
    let title_height = if ink == Ink::Paper && !data.title.is_empty() { 44 } else { 0 };
    let height = (HEIGHT + title_height).max(title_height + 60 + rows * LEGEND_ROW as u32);

    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let font = |size: i32, colour: RGBColor| ("sans-serif", size).into_font().color(&colour);
    let body = if title_height > 0 {
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(title_height);
        let style = FontDesc::new(FontFamily::SansSerif, 22.0, FontStyle::Bold);
        head.draw(&Text::new(
            plain(&data.title, 90),
            (24, 18),
            style.color(&RGBColor(28, 30, 33)),
        ))?;
        body
    } else {
        if ink == Ink::Paper {
            root.fill(&WHITE)?;
        }
        root.clone()
    };
    let (plot, legend) = body.split_horizontally(WIDTH - legend_width);
    let mut chart = ChartBuilder::on(&plot)
        .margin_top(14)
        .margin_right(18)
        .margin_left(12)
        .x_label_area_size(52)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..last_step, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .bold_line_style(ink.grid())
        .axis_style(ink.grid())
        .label_style(font(16, ink.text()))
        .axis_desc_style(font(17, ink.text()))
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|step| html::compact(*step))
        .y_label_formatter(&|value| html::compact(*value))
        .x_desc("Optimiser steps")
        .y_desc(metric.label())
        .draw()?;

    let target = data.target.filter(|target| metric == Metric::Accuracy && target.is_finite());
    if let Some(target) = target {
        let line = vec![(0.0, target * 100.0), (last_step, target * 100.0)];
        chart.draw_series(DashedLineSeries::new(line, 4, 4, ink.text().stroke_width(1)))?;
    }
    let mut ranked = Vec::new();
    for (index, (model, seeds)) in models.iter().zip(&curves).enumerate() {
        let colour = ink.series(index);
        if seeds.len() > 1 {
            for seed in seeds {
                line(&mut chart, seed, index, colour.mix(0.35).stroke_width(1))?;
            }
        }
        let mean = mean(seeds);
        line(&mut chart, &mean, index, colour.stroke_width(2))?;
        let last = mean.iter().rev().map(|point| point.1).find(|value| value.is_finite());
        ranked.push((index, model.name, last));
    }
    let sign = if metric == Metric::Accuracy { -1.0 } else { 1.0 };
    let key = |value: Option<f64>| value.map_or(f64::INFINITY, |value| sign * value);
    ranked.sort_by(|a, b| key(a.2).total_cmp(&key(b.2)));

    let mut y = 26;
    for (index, name, value) in ranked {
        let colour = ink.series(index);
        let swatch = vec![(6, y - 2), (30, y - 2)];
        if index < PALETTE.len() {
            legend.draw(&PathElement::new(swatch, colour.stroke_width(3)))?;
        } else {
            for start in [6, 16, 26] {
                let dash = vec![(start, y - 2), (start + 6, y - 2)];
                legend.draw(&PathElement::new(dash, colour.stroke_width(3)))?;
            }
        }
        let value = value.map_or_else(String::new, |value| match metric {
            Metric::Accuracy => format!("{value:.1}"),
            _ => format!("{value:.3}"),
        });
        legend.draw(&Text::new(plain(name, LEGEND_NAME), (38, y - 8), font(16, ink.text())))?;
        let at = (legend_width as i32 - 46, y - 8);
        legend.draw(&Text::new(value, at, font(16, ink.text())))?;
        y += LEGEND_ROW;
    }
    if let Some(target) = target {
        for start in [6, 14, 22] {
            let dash = vec![(start, y - 2), (start + 4, y - 2)];
            legend.draw(&PathElement::new(dash, ink.text().stroke_width(1)))?;
        }
        legend.draw(&Text::new("target", (38, y - 8), font(16, ink.text())))?;
        let at = (legend_width as i32 - 46, y - 8);
        legend.draw(&Text::new(format!("{:.1}", target * 100.0), at, font(16, ink.text())))?;
    }
    root.present()?;
    Ok(())
}

/// Adds a line, broken where a value is not finite; models beyond the palette
/// are dashed.
fn line(
    chart: &mut Chart<'_, '_>,
    points: &[(f64, f64)],
    index: usize,
    style: ShapeStyle,
) -> Result<(), Box<dyn std::error::Error>> {
    for part in points.split(|point| !point.1.is_finite()) {
        let part = part.iter().copied();
        if index < PALETTE.len() {
            chart.draw_series(LineSeries::new(part, style))?;
        } else {
            chart.draw_series(DashedLineSeries::new(part, 7, 4, style))?;
        }
    }
    Ok(())
}

fn curve(points: &[Point], metric: Metric) -> Curve {
    let points = thinned(points).into_iter();
    points.filter_map(|point| metric.value(point).map(|value| (point.step as f64, value))).collect()
}

/// Mean over seeds, at the steps that all of them have, so that a seed which
/// stopped early does not bend the curve.
fn mean(seeds: &[Curve]) -> Curve {
    let mut sums: BTreeMap<u64, (usize, f64)> = BTreeMap::new();
    for &(step, value) in seeds.iter().flatten() {
        let sum = sums.entry(step as u64).or_default();
        *sum = (sum.0 + 1, sum.1 + value);
    }
    let shared = sums.into_iter().filter(|(_, (count, _))| *count == seeds.len());
    shared.map(|(step, (count, sum))| (step as f64, sum / count as f64)).collect()
}

/// Text that is safe in XML and at most `limit` characters long.
fn plain(text: &str, limit: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    if text.chars().count() <= limit {
        return clean.collect();
    }
    clean.take(limit - 1).chain(['…']).collect()
}
