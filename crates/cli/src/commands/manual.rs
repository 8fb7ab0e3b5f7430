//! `specialformer completions` and `specialformer man`: made from the
//! definition of the command line, so that they cannot differ from it.

use std::io::{self, Write as _};
use std::path::Path;

use clap::{Command, CommandFactory as _};
use specialformer::checkpoint::atomic_write;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::failure::Failure;
use crate::output::make_folder;

/// Prints a completion script.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "specialformer", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Prints the manual page, or writes the pages of all commands into a folder.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    // The page is about the program, not about this machine.
    let mut command = Cli::command().long_version(env!("CARGO_PKG_VERSION"));
    command.build();
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(io::stdout().write_all(&page)?);
    };
    make_folder(folder)?;
    let count = write_pages(command, folder)?;
    println!("{count} pages in {}", folder.display());
    Ok(())
}

/// The page of a command, `specialformer-svf-train.1` and the like, and those
/// of its own commands.
fn write_pages(command: Command, folder: &Path) -> Result<usize, Failure> {
    let mut count = 1;
    for inner in command.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
        count += write_pages(inner.clone(), folder)?;
    }
    let man = clap_mangen::Man::new(command);
    let mut page = Vec::new();
    man.render(&mut page)?;
    atomic_write(folder.join(man.get_filename()), |file| file.write_all(&page))
        .map_err(specialformer::Error::from)?;
    Ok(count)
}
