//! `study`: named experiments whose results stand in the guide and, in short,
//! in the README.

use clap::Args;

use crate::markers;
use crate::shell::{Result, root};
use queue::{Experiment, Queue};

mod iarc;
mod mpt;
mod multitask;
mod process;
mod queue;
mod signatures;
mod statistics;
mod svf;

/// Which experiment, and how much of it.
#[derive(Args)]
pub(crate) struct Options {
    /// The experiment's name.
    #[arg(required_unless_present = "list")]
    name: Option<String>,

    /// List the experiments.
    #[arg(long)]
    list: bool,

    /// A short version that shows that it works; its results are kept apart.
    #[arg(long)]
    small: bool,

    /// Run nothing: make the tables from the results there are.
    #[arg(long)]
    table_only: bool,

    /// Write the tables into docs/src/results and the short one into README.md.
    #[arg(long, conflicts_with = "small")]
    write: bool,
}

/// All experiments.
fn experiments() -> Vec<Box<dyn Experiment>> {
    vec![
        Box::new(iarc::Iarc::default()),
        Box::new(multitask::Multitask::default()),
        Box::new(svf::Svf::default()),
        Box::new(mpt::Mpt::default()),
        Box::new(signatures::Signatures::default()),
    ]
}

/// Runs what is left of an experiment and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let experiments = experiments();
    if options.list {
        experiments.iter().for_each(|e| println!("{:<12} {}", e.name(), e.purpose()));
        return Ok(());
    }
    let name = options.name.as_deref().unwrap_or_default();
    let found = experiments.iter().find(|experiment| experiment.name() == name);
    let experiment = found.ok_or_else(|| {
        let known: Vec<_> = experiments.iter().map(|e| e.name()).collect();
        format!("no experiment `{name}`, there are: {}", known.join(", "))
    })?;
    let queue = Queue::open(experiment.as_ref(), options.small, &root().join("studies"))?;
    let outcome = if options.table_only { Ok(()) } else { queue.work(experiment.as_ref()) };
    let records = queue.records()?;
    if !records.is_empty() {
        let table = experiment.table(&records)?;
        println!("\n{table}");
        if options.write {
            let page = format!("docs/src/results/{}.md", experiment.page());
            markers::replace_in(&root().join(page), &format!("study-{name}"), &table, "")?;
            let (marker, short) =
                (format!("study-{name}-short"), experiment.short_table(&records)?);
            markers::replace_in(&root().join("README.md"), &marker, &short, "")?;
        }
    }
    outcome
}
