//! `dormer cache remove-path`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dormer_api::v2::{PurgesResponse, RemovePathResponse};
use dormer_client::{ApiClient, CacheRef, NixStore, PageGuard, ServerName};
use dormer_nix::StorePathHash;
use serde_json::json;

use crate::commands::path_argument::hash_of;
use crate::context::{Context, EXIT_CODES_OF_CLIENT};
use crate::error::{Error, Result};

/// Remove store paths from a cache at once
///
/// Clients that remember a path's narinfo may find the path missing. The bytes stay until garbage
/// collection, and other caches keep the path. Removing a derivation (.drv) also removes the log of
/// its build, even if the cache has only the log.
///
/// With --now, a collection removes the bytes from the store at once, and this command waits for
/// it. Bytes that another path needs stay. Downloads and uploads that use the same packs at this
/// moment break off, and clients repeat them.
///
/// Examples:
///   dormer cache remove-path main /nix/store/3n58xw4373jp0ljirf06d8077j15pc4j-leaked-secret
///   dormer cache remove-path main ./result
///   dormer cache remove-path main ./leaked-secret --with-referrers --now
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(super) struct RemovePathArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Store paths, links to them, or their hashes
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Also remove every path of the cache that refers to them, directly or not
    #[arg(long)]
    with_referrers: bool,
    /// Remove the bytes from the store too, and wait until they are gone
    #[arg(long)]
    now: bool,
}

/// The pauses between two questions whether the bytes are gone.
const PURGE_LOOK: Duration = Duration::from_secs(1);
const PURGE_LOOK_MAX: Duration = Duration::from_secs(15);

/// How long a wait goes on before a hint, and between hints. Most collections end within minutes.
const PURGE_HINT: Duration = Duration::from_mins(10);

pub(super) async fn remove_paths(args: &RemovePathArgs, context: &Context) -> Result<()> {
    let store = NixStore::open_for_names(&dormer_client::process_variables).await?;
    let hashes = args.paths.iter().map(|path| hash_of(&store, path)).collect::<Result<Vec<_>>>()?;
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (mut removed_count, mut referrer_count) = (0, 0_u64);
    let mut unknown = Vec::new();
    for (path, hash) in args.paths.iter().zip(&hashes) {
        let RemovePathResponse { removed, removed_log, purging } =
            api.remove_path(&args.cache.cache, hash, args.now).await?;
        removed_count += usize::from(removed);
        context.printer.message(&json!({
            "message_type": "path_removed", "server": server.name.as_str(), "cache": args.cache.cache.as_str(),
            "path": path.display().to_string(), "store_path_hash": hash.to_string(), "removed": removed,
            "removed_log": removed_log, "purging": purging,
        }))?;
        if removed_log {
            context.printer.say(&format!("removed the build log of {}", path.display()));
        } else if !removed {
            context.printer.warn(&format!("{} was not in {}", path.display(), args.cache));
        }
        // An old server does not tell. A log leaves no bytes in the store.
        if !removed && !removed_log && purging == Some(false) {
            unknown.push(path.clone());
        }
        let mut pages = PageGuard::new(format!("removing what refers to {hash}"));
        let mut more = args.with_referrers;
        while more {
            // Every request removes something, so the count is never the same.
            pages.follow(referrer_count)?;
            let answer = api.remove_referrers(&args.cache.cache, hash, args.now).await?;
            referrer_count = referrer_count.saturating_add(answer.removed);
            more = answer.more;
        }
    }
    if args.with_referrers {
        context.printer.message(&json!({
            "message_type": "referrers_removed", "server": server.name.as_str(),
            "cache": args.cache.cache.as_str(), "removed": referrer_count,
        }))?;
        context.printer.conclude(&format!("removed {referrer_count} paths that refer to them"));
    }
    let all = crate::error::paths(hashes.len());
    context.printer.conclude(&format!("removed {removed_count} of {all} from {}", args.cache));
    if !args.now {
        return Ok(());
    }
    if unknown.len() < hashes.len() || args.with_referrers {
        // Which paths refer to these, nobody can tell once they are removed, perhaps by an earlier
        // try of this command: then all removed paths of the cache count.
        let paths = (!args.with_referrers).then_some(hashes.as_slice());
        wait_for_purges(args, paths, &server.name, &api, context).await?;
    }
    if unknown.is_empty() { Ok(()) } else { Err(Error::BytesUnknown { paths: unknown }) }
}

/// Waits until the bytes of these removed paths, or of all removed paths, are gone from the store,
/// or until a collection had to leave some.
async fn wait_for_purges(
    args: &RemovePathArgs,
    paths: Option<&[StorePathHash]>,
    server: &ServerName,
    api: &ApiClient,
    context: &Context,
) -> Result<()> {
    let mut pause = PURGE_LOOK;
    let mut hint_at = tokio::time::Instant::now() + PURGE_HINT;
    context.printer.say("waiting for a collection to remove the bytes from the store");
    let waiting = loop {
        let PurgesResponse { waiting, untried } = api.count_purges(&args.cache.cache, paths).await?;
        if waiting == 0 || untried == 0 {
            break waiting;
        }
        if tokio::time::Instant::now() >= hint_at {
            hint_at += PURGE_HINT;
            context.printer.say("still waiting; on the server, `dormer jobs` shows why collections fail");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PURGE_LOOK_MAX);
    };
    context.printer.message(&json!({
        "message_type": "bytes_removed", "server": server.as_str(), "cache": args.cache.cache.as_str(),
        "waiting": waiting,
    }))?;
    if waiting > 0 {
        return Err(Error::BytesLeft { waiting });
    }
    context.printer.conclude("the bytes that only these paths needed are gone from the store");
    Ok(())
}
