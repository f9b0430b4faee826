//! `dormer man`: the manual pages.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};

use crate::context::Context;
use crate::error::{Error, Result};

/// Write manual pages, one for each command
///
/// Packages install them; archives of releases have them in the folder `man`. The texts are those
/// of --help.
///
/// Examples:
///   dormer man --to ~/.local/share/man/man1
///   man dormer-cache-create
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ManArgs {
    /// Folder for the pages; it is created if it is missing
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

pub(super) fn run(args: &ManArgs, commands: Command, context: &Context) -> Result<()> {
    fs::create_dir_all(&args.to).map_err(Error::io("create", &args.to))?;
    clap_mangen::generate_to(commands, &args.to).map_err(Error::io("write pages to", &args.to))?;
    context.printer.say(&format!("wrote the manual pages to {}", args.to.display()));
    Ok(())
}
