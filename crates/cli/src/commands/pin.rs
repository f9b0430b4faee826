//! `dormer pin`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use dormer_api::PinName;
use dormer_api::v2::{AddPinRequest, AddPinResponse, ListPinsRequest};
use dormer_client::{ApiClient, CacheRef, NixStore, PageGuard};
use dormer_engine::{Clock as _, SystemClock};
use serde_json::json;

use super::path_argument::{hash_of, store_path};
use super::token_create::parse_period;
use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::{Error, Result};
use crate::settings::units::{ago, human_duration};

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    #[command(flatten)]
    pub(crate) server: EndpointArgs,
    #[command(subcommand)]
    command: PinCommand,
}

#[derive(Debug, Subcommand)]
enum PinCommand {
    Add(AddArgs),
    List(ListArgs),
    Remove(RemoveArgs),
}

/// Keep a path and all that it refers to, whatever the cache's retention
///
/// Several paths may have one name: the revisions of a release, for example. Reports which paths of
/// the closure the cache lacks; an upstream cache may have them.
///
/// Examples:
///   dormer pin add main release ./result --keep 3
///   dormer pin add main demo ./result --keep-for 90d
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
struct AddArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// The pin's name
    name: PinName,
    /// A store path, or a link to one
    path: PathBuf,
    /// How long the pin lasts: `90d`; without it, for ever
    #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
    keep_for: Option<Duration>,
    /// Keep only the newest NUMBER paths of the name pinned
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
}

/// List the pins of a cache
#[derive(Debug, Args)]
struct ListArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
}

/// Remove the pins of a name, or that of one path
#[derive(Debug, Args)]
struct RemoveArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// The pin's name
    name: PinName,
    /// A store path, a link to one, or a hash; without it, all paths of the name
    path: Option<PathBuf>,
}

pub(super) async fn run(args: PinArgs, context: &Context) -> Result<()> {
    match args.command {
        PinCommand::Add(args) => add(args, context).await,
        PinCommand::List(args) => list(&args, context).await,
        PinCommand::Remove(args) => remove(&args, context).await,
    }
}

async fn add(args: AddArgs, context: &Context) -> Result<()> {
    let keep_for_seconds = match args.keep_for {
        None => None,
        Some(period) => Some(u32::try_from(period.as_secs()).map_err(|_| {
            Error::usage("--keep-for is longer than 136 years", "without it, the pin lasts for ever")
        })?),
    };
    let store = NixStore::open_for_names(&dormer_client::process_variables).await?;
    let path = store_path(&store, &args.path)?;
    let (_, api) = context.connect_to_cache(&args.cache)?;
    let request = AddPinRequest { store_path: path.to_string(), keep_for_seconds, keep: args.keep };
    pin(&api, &args.cache, &args.name, &request, context).await
}

/// Adds a pin, and says what the cache lacks of its closure.
pub(super) async fn pin(
    api: &ApiClient,
    cache: &CacheRef,
    name: &PinName,
    request: &AddPinRequest,
    context: &Context,
) -> Result<()> {
    let AddPinResponse { missing, complete } = api.add_pin(&cache.cache, name, request).await?;
    let printer = &context.printer;
    printer.message(&json!({
        "message_type": "pin_added", "cache": cache.cache.as_str(), "name": name.as_str(),
        "path": request.store_path, "missing": missing, "complete": complete,
    }))?;
    printer.conclude(&format!("pinned {} as {} in {cache}", request.store_path, name.as_str()));
    for path in &missing {
        printer.warn(&format!("{cache} lacks {path}"));
    }
    if !complete {
        printer.warn("the closure is too large to look at all of it");
    }
    Ok(())
}

async fn list(args: &ListArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (now, printer) = (SystemClock.now(), &context.printer);
    let mut request = ListPinsRequest::default();
    let mut pages = PageGuard::new(format!("listing the pins of cache {}", args.cache.cache));
    loop {
        let page = api.list_pins(&args.cache.cache, &request).await?;
        for pin in &page.pins {
            printer.message(&json!({
                "message_type": "pin", "server": server.name.as_str(), "cache": args.cache.cache.as_str(),
                "name": pin.name, "path": pin.store_path, "created_at": pin.created_at, "ends_at": pin.ends_at,
            }))?;
            if !printer.json {
                let end = pin.ends_at.map_or(String::new(), |ends_at| {
                    let left = u64::try_from(ends_at - now).unwrap_or(0);
                    format!(", for another {}", human_duration(Duration::from_secs(left)))
                });
                let since = ago(now, pin.created_at);
                printer.data(&format!("{}  {}  pinned {since}{end}", pin.name, pin.store_path))?;
            }
        }
        match page.pins.last() {
            Some(last) if page.more => {
                pages.follow((&last.name, &last.store_path))?;
                request.after = Some(last.clone());
            }
            _ => return Ok(()),
        }
    }
}

async fn remove(args: &RemoveArgs, context: &Context) -> Result<()> {
    let hash = match &args.path {
        None => None,
        Some(path) => {
            let store = NixStore::open_for_names(&dormer_client::process_variables).await?;
            Some(hash_of(&store, path)?)
        }
    };
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let removed = api.remove_pins(&args.cache.cache, &args.name, hash.as_ref()).await?.removed;
    context.printer.message(&json!({
        "message_type": "pins_removed", "server": server.name.as_str(), "cache": args.cache.cache.as_str(),
        "name": args.name.as_str(), "removed": removed,
    }))?;
    context.printer.conclude(&format!("removed {removed} pins from {}", args.cache));
    Ok(())
}
