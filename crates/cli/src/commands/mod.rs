//! The command line: one file per command.

mod adopt;
mod backup;
mod cache;
mod cat;
mod check;
mod completions;
mod config_show;
mod doctor;
#[cfg(test)]
mod documented;
mod edge_serve;
mod exec;
mod export;
mod foreign_names;
mod gc;
mod hook;
mod import;
mod install_hook;
mod jobs;
mod login;
mod man;
mod migrate;
mod nix_settings;
mod path_argument;
mod pin;
mod publish;
mod push;
mod queue;
mod recover;
#[cfg(test)]
mod reference;
mod rekey;
mod scrub;
mod secrets_init;
mod serve;
mod stats;
mod token_create;
mod top;
mod top_screen;
mod use_cache;
mod watch;
mod watched_server;

use std::process::ExitCode;

use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand};
use dormer_client::Endpoint;

pub(crate) use self::hook::{is_early, run_early};
use crate::context::Context;
use crate::error::Result;
use crate::printer::{Level, Printer};
use crate::settings;

const EXIT_CODES: &str = "\
Exit codes:
  0  success (also when the reader of the output goes away)
  1  something failed
  2  the command line or the settings are wrong; nothing was tried
  3  push, queue, export, import: some paths could not be moved, the others were
  4  the server refuses the token, or requires one
  5  the server does not answer, or stays busy
  6  scrub: stored bytes are damaged
  130  interrupted; acknowledged paths stay in the cache

Environment:
  DORMER_TOKEN, DORMER_TOKEN_<SERVER>  token for the client; overrides its settings
  DORMER_ENDPOINT                      the server's address, for a client without settings
  NIX_SSL_CERT_FILE, SSL_CERT_FILE     certificates to trust, in place of the system's
  DORMER_CONFIG, DORMER_<KEY>          settings of the server; `dormer config show` lists them
  NO_COLOR                             no colours";

const OVERVIEW: &str = "\
Run a Nix binary cache, or use one.

A first cache in two terminals:
  dormer serve                                     # makes everything it needs and prints it
  dormer login lab http://127.0.0.1:8080 --token-file ~/.local/share/dormer/admin-token
  dormer push main ./result                        # push a build with its closure
  dormer use main                                  # let this machine's Nix fetch from it";

/// A self-hosted Nix binary cache.
#[derive(Debug, Parser)]
#[command(name = "dormer", version, about, long_about = OVERVIEW, after_long_help = EXIT_CODES)]
#[command(disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Print what was skipped, and why
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Print data and errors only; twice: nothing at all
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// Print data as JSON lines (docs/CLI.md)
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress
    #[arg(long, global = true)]
    no_progress: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(serve::ServeArgs),
    Login(login::LoginArgs),
    Push(push::PushArgs),
    #[command(alias = "watch-store")]
    Watch(watch::WatchArgs),
    Exec(exec::ExecArgs),
    Hook(hook::HookArgs),
    InstallHook(install_hook::InstallHookArgs),
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    Use(Box<use_cache::UseArgs>),
    Unuse(use_cache::UnuseArgs),
    /// Create, show, change and destroy caches
    Cache(cache::CacheArgs),
    Cat(cat::CatArgs),
    /// Keep paths of a cache, whatever its retention
    Pin(pin::PinArgs),
    /// Make tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// The name of `token create` in Attic's admin tool
    #[command(hide = true)]
    MakeToken(token_create::TokenCreateArgs),
    /// Show the server's settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make the secrets of a server
    #[command(subcommand)]
    Secrets(SecretsCommand),
    Publish(publish::PublishArgs),
    Export(export::ExportArgs),
    Import(Box<import::ImportArgs>),
    /// Serve published caches
    #[command(subcommand)]
    Edge(EdgeCommand),
    Jobs(jobs::JobsArgs),
    Gc(gc::GcArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Recover(recover::RecoverArgs),
    Adopt(adopt::AdoptArgs),
    Scrub(scrub::ScrubArgs),
    Rekey(rekey::RekeyArgs),
    Stats(stats::StatsArgs),
    Top(top::TopArgs),
    Doctor(doctor::DoctorArgs),
    Check(check::CheckArgs),
    Migrate(migrate::MigrateArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum EdgeCommand {
    Serve(edge_serve::EdgeServeArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    Create(token_create::TokenCreateArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    Init(secrets_init::SecretsInitArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    Show(config_show::ConfigShowArgs),
    /// Print every setting with its variable, default and meaning (Markdown)
    Reference,
}

impl Command {
    /// The address of `--endpoint`. Every command must say here whether it talks to a server, or
    /// queues builds for one.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        let server = match self {
            Self::Push(args) => &args.server,
            Self::Watch(args) => &args.server,
            Self::Exec(args) => &args.server,
            Self::Hook(args) => &args.server,
            Self::InstallHook(args) => &args.server,
            Self::Queue(command) => command.server()?,
            Self::Use(args) => &args.server,
            Self::Cache(args) => &args.server,
            Self::Cat(args) => &args.server,
            Self::Import(args) => &args.server,
            Self::Pin(args) => &args.server,
            Self::Stats(args) => &args.endpoint,
            Self::Top(args) => &args.endpoint,
            Self::Doctor(args) => &args.server,
            // `login` has the address as an argument. The others talk to no server, or are parts of
            // one.
            Self::Login(_)
            | Self::Unuse(_)
            | Self::Token(_)
            | Self::MakeToken(_)
            | Self::Config(_)
            | Self::Secrets(_)
            | Self::Serve(_)
            | Self::Publish(_)
            | Self::Export(_)
            | Self::Edge(_)
            | Self::Jobs(_)
            | Self::Gc(_)
            | Self::Backup(_)
            | Self::Restore(_)
            | Self::Recover(_)
            | Self::Adopt(_)
            | Self::Scrub(_)
            | Self::Rekey(_)
            | Self::Migrate(_)
            | Self::Check(_)
            | Self::Completions(_)
            | Self::Man(_) => return None,
        };
        server.endpoint.clone()
    }
}

impl CommandLine {
    /// The command line of this process. A usage error ends the process with exit code 2 and clap's
    /// message.
    pub(crate) fn of_process() -> Self {
        use clap::error::{ContextKind, ContextValue, ErrorKind};
        let error = match Self::try_parse() {
            Ok(line) => return line,
            Err(error) => error,
        };
        // A hint about a closed standard error helps nobody.
        if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(name))) =
            (error.kind(), error.get(ContextKind::InvalidSubcommand))
            && let Some(here) = foreign_names::command_here(name)
        {
            let _ = error.print();
            Printer::new(Level::Default, false, false).hint(&format!("the command here: {here}"));
            std::process::exit(error.exit_code());
        }
        error.exit()
    }

    pub(crate) fn printer(&self) -> Printer {
        let level = match (self.output.quiet, self.output.verbose) {
            (0, false) => Level::Default,
            (0, true) => Level::Verbose,
            (1, _) => Level::Quiet,
            _ => Level::Silent,
        };
        Printer::new(level, self.output.json, !self.output.no_progress)
    }
}

impl Command {
    /// Whether the files that the command makes are for its user alone: the index, packs, keys and
    /// what they hold of private caches. Every command must say so here.
    fn makes_private_files(&self) -> bool {
        match self {
            Self::Serve(_)
            | Self::Edge(_)
            | Self::Jobs(_)
            | Self::Gc(_)
            | Self::Backup(_)
            | Self::Restore(_)
            | Self::Recover(_)
            | Self::Adopt(_)
            | Self::Scrub(_)
            | Self::Rekey(_)
            | Self::Migrate(_) => true,
            // Other users read nix.conf, and other programs serve a folder of published caches.
            // An export of a private cache sets its own mode. Files with tokens have theirs, and so
            // has the queue. A command of the user keeps the user's mask. The rest makes no files.
            Self::Use(_)
            | Self::Unuse(_)
            | Self::Publish(_)
            | Self::Export(_)
            | Self::Import(_)
            | Self::Login(_)
            | Self::Push(_)
            | Self::Watch(_)
            | Self::Exec(_)
            | Self::Hook(_)
            | Self::InstallHook(_)
            | Self::Queue(_)
            | Self::Cache(_)
            | Self::Cat(_)
            | Self::Pin(_)
            | Self::Stats(_)
            | Self::Top(_)
            | Self::Token(_)
            | Self::MakeToken(_)
            | Self::Config(_)
            | Self::Secrets(_)
            | Self::Completions(_)
            | Self::Man(_)
            | Self::Doctor(_)
            | Self::Check(_) => false,
        }
    }
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitCode> {
    if command.makes_private_files() {
        // Also in an existing folder that others may read.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    }
    match command {
        Command::Serve(args) => serve::run(args, context).await?,
        Command::Login(args) => login::run(args, context).await?,
        Command::Push(args) => return push::run(args, context).await,
        Command::Watch(args) => return watch::run(args, context).await,
        Command::Exec(args) => return exec::run(args, context).await,
        Command::Hook(args) => hook::run(&args, &context.printer),
        Command::InstallHook(args) => install_hook::run(&args, context).await?,
        Command::Queue(command) => return queue::run(command, context).await,
        Command::Publish(args) => return publish::run(args, context).await,
        Command::Import(args) => return import::run(*args, context).await,
        Command::Export(args) => return export::run(args, context).await,
        Command::Edge(EdgeCommand::Serve(args)) => edge_serve::run(args, context).await?,
        Command::Doctor(args) => return doctor::run(args, context).await,
        Command::Check(args) => return check::run(args, context).await,
        Command::Jobs(args) => jobs::run(args, context).await?,
        Command::Rekey(args) => Box::pin(rekey::run(args, context)).await?,
        Command::Gc(args) => Box::pin(gc::run(args, context)).await?,
        Command::Backup(args) => backup::run_backup(args, context).await?,
        Command::Restore(args) => backup::run_restore(args, context).await?,
        Command::Recover(args) => Box::pin(recover::run(args, context)).await?,
        Command::Adopt(args) => adopt::run(args, context).await?,
        Command::Stats(args) => stats::run(&args, context).await?,
        Command::Top(args) => top::run(&args, context).await?,
        Command::Scrub(args) => return scrub::run(args, context).await,
        Command::Migrate(args) => migrate::run(args, context).await?,
        Command::Completions(args) => completions::run(&args, CommandLine::command(), context)?,
        Command::Man(args) => man::run(&args, CommandLine::command(), context)?,
        Command::Use(args) => use_cache::run_use(*args, context).await?,
        Command::Unuse(args) => use_cache::run_unuse(&args, context).await?,
        Command::Cache(args) => cache::run(args, context).await?,
        Command::Cat(args) => cat::run(args, context).await?,
        Command::Pin(args) => pin::run(args, context).await?,
        Command::Token(TokenCommand::Create(args)) | Command::MakeToken(args) => {
            token_create::run(args, context)?;
        }
        Command::Secrets(SecretsCommand::Init(args)) => secrets_init::run(args, context)?,
        Command::Config(ConfigCommand::Show(args)) => config_show::run(&args, context)?,
        Command::Config(ConfigCommand::Reference) => {
            context.printer.data_lines(settings::reference::to_markdown().trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn command_lines_written_for_attic_are_understood() {
        for line in [
            "login lab https://example.org eyJ --set-default",
            "use lab:main",
            "push main ./result /nix/store/x -j 5 --no-closure --ignore-upstream-cache-filter",
            "push lab:main --stdin --force-preamble",
            "watch-store lab:main -j 8",
            "cache create main --public --priority 41 --upstream-cache-key-name cache.nixos.org-1",
            "cache configure main --regenerate-keypair --private --priority 30 --upstream-cache-key-name a-1 \
             --upstream-cache-key-name b-1 --retention-period 3months",
            "cache configure main --public --reset-retention-period",
            "cache info main",
            "cache destroy main --no-confirm",
            "make-token --sub ada --validity 2y --pull * --push team-* --delete a --create-cache b --configure-cache c \
             --configure-cache-retention d --destroy-cache e --dump-claims",
            "make-token -f server.toml --sub ada --validity 2y --pull *",
        ] {
            let words = std::iter::once("dormer").chain(line.split_whitespace());
            if let Err(error) = CommandLine::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for line in [
            "cache configure main --public --private",
            "cache configure main --retention-period 1d --reset-retention-period",
            "login lab https://example.org eyJ --token-stdin",
            "push -v -q main x",
        ] {
            let words = std::iter::once("dormer").chain(line.split_whitespace());
            assert!(CommandLine::try_parse_from(words).is_err(), "{line}");
        }
    }
}
