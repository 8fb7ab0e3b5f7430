//! `specialformer svf`.

pub(crate) mod args;
mod decompose;
mod eval;
mod experts;
pub(super) mod model;
mod report;
pub(crate) mod run;
mod train;

use args::SvfCommand;

use crate::failure::Failure;

pub(crate) fn run(command: &SvfCommand) -> Result<(), Failure> {
    match command {
        SvfCommand::Decompose(args) => decompose::run(args),
        SvfCommand::Train(args) => train::run(args),
        SvfCommand::Run(args) => run::run(args),
        SvfCommand::Eval(args) => eval::run(args),
        SvfCommand::Merge(args) => experts::merge(args),
        SvfCommand::Mix(args) => experts::mix(args),
        SvfCommand::Info(args) => experts::info(args),
    }
}
