//! The page that every run folder gets, and its plot.
//!
//! [`render`] turns [`ReportData`] into one HTML file that needs no network:
//! styles, scripts and data are inside. Static markup carries the results
//! (tables, the main learning curve as an SVG); the scripts add what needs a
//! pointer. [`plot_svg`] draws that curve as a file of its own.
//!
//! Each part of the page is one file in `sections`, with its script in
//! `assets`; what they share in the browser is `assets/chart.js`.

mod chart;
mod data;
#[cfg(test)]
mod fake;
mod html;
mod page;
mod sections;
#[cfg(test)]
mod tests;

pub(crate) use data::{
    Answered, AttentionMap, Candidate, Environment, HeadHistogram, Point, Quantity, Reference,
    ReportData, RoutedText, Routing, RoutingLayer, RoutingPoint, Run, Sample, Score, Scores,
    SignatureLayer, SignaturePoint, SignatureRow, Signatures, Subtask, TaskResult, Token, Window,
};

/// Result with [`ReportError`].
pub(crate) type Result<T, E = ReportError> = std::result::Result<T, E>;

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ReportError {
    /// Lists of different lengths, or an index that points at nothing.
    #[error("report: {at}: {what}")]
    Inconsistent {
        /// The run, window or reference.
        at: String,
        /// What does not fit.
        what: String,
    },
    /// The data could not be written as JSON.
    #[error("report: cannot serialise the data: {0}")]
    Json(#[from] serde_json::Error),
    /// The plot could not be drawn.
    #[error("report: cannot draw the learning curves: {0}")]
    Plot(String),
}

/// Renders the page.
///
/// # Errors
/// [`ReportError::Inconsistent`] if the data contradict themselves.
pub(crate) fn render(data: &ReportData) -> Result<String> {
    data.check()?;
    page::page(data)
}

/// Draws the learning curves of all models as an SVG file with its own
/// background: accuracy if there is one, else the loss. Without any curve it
/// is `None`.
///
/// # Errors
/// [`ReportError::Inconsistent`] if the data contradict themselves.
pub(crate) fn plot_svg(data: &ReportData) -> Result<Option<String>> {
    data.check()?;
    chart::learning_curves(data, chart::Ink::Paper)
}
