//! `specialformer svf`.

mod decompose;
mod eval;
mod experts;
pub(super) mod model;
mod report;
mod run;
mod train;

use crate::args::svf::SvfCommand;
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
