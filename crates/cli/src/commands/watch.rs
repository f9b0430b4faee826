//! `dormer watch`.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use dormer_client::queue::StoreWatch;
use dormer_client::{CacheRef, process_variables};

use super::hook::chosen_caches;
use crate::context::{Context, EndpointArgs};
use crate::error::Result;
use crate::queue_drain::{Queue, QueuePushArgs};
use crate::queue_folder::QueueDirArgs;
use crate::signals::stop_signal;

/// Push every new path of the local store
///
/// What appears in the store and becomes valid goes into the queue, and from there to the caches,
/// with its closure, each path after its references. Derivations (.drv) are left out, and what the
/// filters of the settings exclude ([push]). What an upstream cache has signed, and what the cache
/// has, is not sent. Ends with Ctrl-C or SIGTERM; what is queued stays in the queue.
///
/// A path that appears while no watcher runs is queued by the next one for the same caches, if it
/// is at most a day later.
///
/// Examples:
///   dormer watch main
///   dormer watch lab:team lab2:team -j 8
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct WatchArgs {
    /// [SERVER:]CACHE; without any, the caches of [queue] in the settings
    #[arg(value_name = "CACHE")]
    caches: Vec<CacheRef>,
    #[command(flatten)]
    push: QueuePushArgs,
    #[command(flatten)]
    queue: QueueDirArgs,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
}

pub(super) async fn run(args: WatchArgs, context: &Context) -> Result<ExitCode> {
    let mut stop = Box::pin(stop_signal()?);
    let caches = chosen_caches(&args.caches)?;
    let queued = context.queued_caches(&caches)?;
    let queue = Queue::open(&args.queue.folder(&process_variables)?, &args.push, context).await?;
    let folder = queue.store.real_dir().display().to_string();
    let names: Vec<String> = caches.iter().map(ToString::to_string).collect();
    let mut watch = StoreWatch::start(queue.store.clone(), queue.spool.clone(), queued)?;
    watch.catch_up(SystemTime::now())?;
    context.printer.say(&format!("watching {folder} for {}", names.join(", ")));
    tokio::select! {
        () = watch.run(&*queue.reporter) => {}
        ended = queue.drain_forever() => ended?,
        () = &mut stop => context.printer.conclude("stopped; what is queued stays there"),
    }
    Ok(ExitCode::SUCCESS)
}
