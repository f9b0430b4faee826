//! docs/COMMANDS.md: the help of every command, made from the command line that clap parses.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::CommandLine;

const INTRODUCTION: &str = "\
# Commands

<!-- `DORMER_RENEW=1 cargo test -p dormer commands_reference` makes this from the code. -->

This page has the help of each command, as `dormer COMMAND --help` prints it. The flags under
*Output* belong to every command, and are shown once. [CLI.md](CLI.md) is the contract for scripts:
output, exit codes, files.
";

/// Columns of the help.
const WIDTH: usize = 100;

fn reference() -> String {
    let mut root = CommandLine::command().term_width(WIDTH);
    root.build();
    let mut page = INTRODUCTION.to_owned();
    add(&mut page, &root, true);
    page
}

/// The help of a command, then those of the commands below it.
fn add(page: &mut String, command: &Command, is_root: bool) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let globals = ["verbose", "quiet", "json", "no_progress", "help"];
    let mut shown = command.clone();
    for id in globals.into_iter().filter(|_| !is_root) {
        shown = shown.mut_arg(id, |argument| argument.hide(true));
    }
    let help = shown.render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n"));
    for below in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        add(page, below, false);
    }
}

#[test]
fn commands_reference_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/COMMANDS.md");
    let made = reference();
    if std::env::var_os("DORMER_RENEW").is_some() {
        fs::write(&file, &made).expect("the page can be written");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        made == written,
        "docs/COMMANDS.md is out of date: run `DORMER_RENEW=1 cargo test -p dormer commands_reference`"
    );
}
