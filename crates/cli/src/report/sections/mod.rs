//! The parts of the page, one file each, in the order in which they appear.
//!
//! A section is static markup that stands on its own and, where it is worth
//! it, a script that registers itself with `SF.section(id, …)` and finds the
//! section's element by that id.

mod attention;
mod config;
mod curves;
mod environment;
mod geometry;
mod headline;
mod results;
mod routing;
mod samples;
mod signatures;
mod tasks;

use super::Result;
use super::data::ReportData;

pub(crate) use headline::headline;

/// One part of the page.
pub(crate) struct Section {
    /// Element id, also the link target.
    pub(crate) id: &'static str,
    /// Heading.
    pub(crate) title: &'static str,
    /// Markup below the heading.
    pub(crate) body: String,
    /// Its script.
    pub(crate) script: Option<&'static str>,
}

/// The sections that the data have something for.
pub(crate) fn all(data: &ReportData) -> Result<Vec<Section>> {
    let sections = [
        results::section(data),
        tasks::section(data),
        curves::section(data)?,
        samples::section(data),
        routing::section(data),
        signatures::section(data),
        attention::section(data),
        geometry::section(data),
        config::section(data),
        environment::section(data),
    ];
    Ok(sections.into_iter().flatten().collect())
}
