//! `dormer completions`: what a shell needs to complete a command line.

use clap::{Args, Command, ValueEnum};
use clap_complete::aot::{Shell, generate};

use crate::context::Context;
use crate::error::Result;

/// Print a script that lets a shell complete commands, flags and their values
///
/// Packages install it; archives of releases have it in the folder `completions`.
///
/// Examples:
///   dormer completions bash > ~/.local/share/bash-completion/completions/dormer
///   dormer completions zsh > ~/.zfunc/_dormer        # .zshrc: fpath+=~/.zfunc before compinit
///   dormer completions fish > ~/.config/fish/completions/dormer.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: CompletedShell,
}

/// The shells that we know the scripts to work in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

impl From<CompletedShell> for Shell {
    fn from(shell: CompletedShell) -> Self {
        match shell {
            CompletedShell::Bash => Self::Bash,
            CompletedShell::Zsh => Self::Zsh,
            CompletedShell::Fish => Self::Fish,
        }
    }
}

pub(super) fn run(args: &CompletionsArgs, mut commands: Command, context: &Context) -> Result<()> {
    let mut script = Vec::new();
    generate(Shell::from(args.shell), &mut commands, "dormer", &mut script);
    // A help text cannot hold anything else: it is a literal of ours.
    let script = String::from_utf8(script).expect("help texts are UTF-8");
    context.printer.data_lines(&script)
}
