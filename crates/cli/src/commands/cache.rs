//! `dormer cache …`.

mod listing;
mod removal;
mod settings;

use clap::{Args, Subcommand};

use self::listing::{LsArgs, ShowArgs, ls, show};
use self::removal::{RemovePathArgs, remove_paths};
use self::settings::{
    ConfigureArgs, CreateArgs, DestroyArgs, InfoArgs, ListArgs, configure, create, destroy, info, list,
};
use crate::context::{Context, EndpointArgs};
use crate::error::Result;

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(flatten)]
    pub(crate) server: EndpointArgs,
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    Create(CreateArgs),
    Info(InfoArgs),
    Configure(ConfigureArgs),
    List(ListArgs),
    Destroy(DestroyArgs),
    Ls(LsArgs),
    Show(ShowArgs),
    RemovePath(RemovePathArgs),
}

pub(super) async fn run(args: CacheArgs, context: &Context) -> Result<()> {
    match args.command {
        CacheCommand::Create(args) => create(args, context).await,
        CacheCommand::Info(args) => info(&args, context).await,
        CacheCommand::Configure(args) => configure(args, context).await,
        CacheCommand::List(args) => list(&args, context).await,
        CacheCommand::Destroy(args) => destroy(&args, context).await,
        CacheCommand::Ls(args) => ls(&args, context).await,
        CacheCommand::Show(args) => show(&args, context).await,
        CacheCommand::RemovePath(args) => remove_paths(&args, context).await,
    }
}
