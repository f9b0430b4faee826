//! `dormer cache …`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use dormer_api::v2::{
    ListObjectsRequest, ObjectResponse, PurgesResponse, RemovePathResponse, SortObjects, name_fits,
};
use dormer_api::{CacheConfig, CreateCacheRequest, Keypair, Quota, RetentionPeriod, Secret};
use dormer_client::{ApiClient, CacheRef, NixStore, PageGuard, ServerName};
use dormer_engine::{Clock as _, SystemClock};
use dormer_nix::{StoreDir, StorePathHash};
use serde_json::json;

use super::publish::ago;
use super::token_create::parse_period;
use crate::chart::Bar;
use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::{Error, Result};
use crate::installation::{DEFAULT_PRIORITY, DEFAULT_UPSTREAM_KEY};
use crate::settings::units;

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

/// Create a cache
///
/// Paths that an upstream key has signed are not pushed, because clients find them there.
///
/// Examples:
///   dormer cache create main --public
///   dormer cache create lab:team --upstream-cache-key-name cache.nixos.org-1
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
struct CreateArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Let anybody read the cache
    #[arg(long)]
    public: bool,
    /// The store folder of the cache's paths
    #[arg(long, value_name = "DIR", default_value_t)]
    store_dir: StoreDir,
    /// Nix asks caches with lower numbers first (cache.nixos.org has 40)
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_PRIORITY)]
    priority: i32,
    /// Name of an upstream key: its paths need not be pushed; may be repeated
    #[arg(long = "upstream-cache-key-name", value_name = "NAME", default_value = DEFAULT_UPSTREAM_KEY)]
    upstream_cache_key_names: Vec<String>,
    /// File with the secret key to sign with (in the form of `nix key generate-secret`), instead of
    /// a new key
    #[arg(long, value_name = "FILE")]
    keypair_file: Option<PathBuf>,
    /// Let a push replace the contents of a path that the cache has; without it, the first stays
    #[arg(long)]
    allow_replacement: bool,
}

/// Show a cache's settings
#[derive(Debug, Args)]
struct InfoArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
}

/// Change a cache's settings; the others stay as they are
///
/// Examples:
///   dormer cache configure main --private
///   dormer cache configure main --retention-period '3 months' --quota 200GB
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of Attic's command line")]
struct ConfigureArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Sign with a new key from now on; every client must learn its public key
    #[arg(long)]
    regenerate_keypair: bool,
    /// Sign with the secret key in this file from now on
    #[arg(long, value_name = "FILE", conflicts_with = "regenerate_keypair")]
    keypair_file: Option<PathBuf>,
    /// Let anybody read the cache
    #[arg(long, conflicts_with = "private")]
    public: bool,
    /// Let only holders of a token read the cache
    #[arg(long)]
    private: bool,
    /// The store folder of the cache's paths
    #[arg(long, value_name = "DIR")]
    store_dir: Option<StoreDir>,
    /// Nix asks caches with lower numbers first
    #[arg(long, value_name = "NUMBER")]
    priority: Option<i32>,
    /// Names of upstream keys: these replace all earlier ones; may be repeated
    #[arg(long = "upstream-cache-key-name", value_name = "NAME")]
    upstream_cache_key_names: Vec<String>,
    /// How long the cache keeps unused objects: `3 months`
    #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
    retention_period: Option<Duration>,
    /// Keep objects as long as the server's default
    #[arg(long, conflicts_with = "retention_period")]
    reset_retention_period: bool,
    /// Most bytes that the cache keeps, as clients download them: `200GB`; 0 for no quota
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    quota: Option<u64>,
    /// Keep as much as the server's default
    #[arg(long, conflicts_with = "quota")]
    reset_quota: bool,
    /// Keep only the newest NUMBER paths of each name; 0 keeps all
    #[arg(long, value_name = "NUMBER")]
    keep_latest: Option<u32>,
    /// Let a push replace the contents of a path that the cache has
    #[arg(long, conflicts_with = "forbid_replacement")]
    allow_replacement: bool,
    /// Keep the contents of a path that came first, whatever is pushed later
    #[arg(long)]
    forbid_replacement: bool,
}

/// List the caches that you may see
#[derive(Debug, Args)]
struct ListArgs {
    /// The server; without it, the default one
    server: Option<ServerName>,
}

/// Destroy a cache: its objects disappear at once and its name becomes free
#[derive(Debug, Args)]
struct DestroyArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Destroy without asking
    #[arg(long)]
    no_confirm: bool,
}

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
struct RemovePathArgs {
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

/// List what is in a cache
///
/// Needs the permission to configure the cache's retention, or to delete.
///
/// Examples:
///   dormer cache ls main --sort size
///   dormer cache ls main --name 'linux-*' --unused-for 30d
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct LsArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Only paths whose name fits; `*` stands for any text
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Only paths that nobody has used for so long: `30d`
    #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
    unused_for: Option<Duration>,
    /// The largest, the oldest or the longest unused first
    #[arg(long, value_name = "ORDER", value_enum, default_value = "used")]
    sort: LsSort,
}

/// Show what a cache has of a path, and how large its closure is there
///
/// Examples:
///   dormer cache show main ./result
///   dormer cache show main 3n58xw4373jp0ljirf06d8077j15pc4j --referrers
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct ShowArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// A store path, a link to one, or its hash
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Also list what refers to it; needs the permission to configure the cache's retention, or to
    /// delete
    #[arg(long)]
    referrers: bool,
}

/// An order of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LsSort {
    Size,
    Age,
    Used,
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

async fn create(args: CreateArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let keypair = match &args.keypair_file {
        Some(file) => read_keypair(file)?,
        None => Keypair::Generate,
    };
    let request = CreateCacheRequest {
        keypair,
        is_public: args.public,
        store_dir: args.store_dir,
        priority: args.priority,
        upstream_cache_key_names: args.upstream_cache_key_names,
        allow_replacement: args.allow_replacement,
    };
    let cache = &args.cache.cache;
    api.create_cache(cache, &request).await?;
    let visibility = if args.public { "public" } else { "private" };
    context.printer.message(&json!({
        "message_type": "cache_created", "server": server.name.as_str(), "cache": cache.as_str(), "is_public": args.public,
    }))?;
    context.printer.conclude(&format!("created the {visibility} cache {cache} on {}", server.name));
    Ok(())
}

async fn info(args: &InfoArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let cache = &args.cache.cache;
    let config = api.get_cache_config(cache).await?;
    if context.printer.json {
        let mut message = serde_json::to_value(&config).expect("settings of a cache have text keys only");
        message["message_type"] = "cache".into();
        message["server"] = server.name.as_str().into();
        message["cache"] = cache.as_str().into();
        return context.printer.message(&message);
    }
    let mut lines = vec![("cache", format!("{}:{cache}", server.name))];
    lines.extend(config.is_public.map(|public| ("visibility", visibility(public).to_owned())));
    lines.extend(config.public_key.map(|key| ("public key", key)));
    lines.extend(config.substituter_endpoint.map(|url| ("substituter", url)));
    lines.extend(config.api_endpoint.map(|url| ("api", url)));
    lines.extend(config.store_dir.map(|dir| ("store folder", dir.to_string())));
    lines.extend(config.priority.map(|priority| ("priority", priority.to_string())));
    lines.extend(config.upstream_cache_key_names.map(|names| ("upstream keys", names.join(" "))));
    lines.extend(config.retention_period.map(|period| ("retention", retention(period))));
    lines.extend(config.quota.map(|quota| ("quota", write_quota(quota))));
    lines.extend(config.keep_latest.map(|count| ("of a name", format!("the newest {count}"))));
    let replacement = |allowed| if allowed { "allowed" } else { "forbidden: the first NAR of a path stays" };
    lines.extend(config.allow_replacement.map(|allowed| ("replacement", replacement(allowed).to_owned())));
    for (label, value) in lines {
        context.printer.data(format!("{label:<14} {value}").trim_end())?;
    }
    Ok(())
}

async fn configure(args: ConfigureArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let keypair = match &args.keypair_file {
        Some(file) => Some(read_keypair(file)?),
        None => args.regenerate_keypair.then_some(Keypair::Generate),
    };
    let retention_period = match args.retention_period {
        Some(period) => Some(RetentionPeriod::Period(u32::try_from(period.as_secs()).map_err(|_| {
            Error::usage(
                "--retention-period is longer than 136 years",
                "--reset-retention-period applies the server's default",
            )
        })?)),
        None => args.reset_retention_period.then_some(RetentionPeriod::Global),
    };
    let patch = CacheConfig {
        keypair,
        is_public: (args.public || args.private).then_some(args.public),
        store_dir: args.store_dir,
        priority: args.priority,
        upstream_cache_key_names: (!args.upstream_cache_key_names.is_empty())
            .then_some(args.upstream_cache_key_names),
        retention_period,
        quota: args.quota.map(Quota::Bytes).or(args.reset_quota.then_some(Quota::Global)),
        keep_latest: args.keep_latest,
        allow_replacement: (args.allow_replacement || args.forbid_replacement)
            .then_some(args.allow_replacement),
        ..CacheConfig::default()
    };
    if patch.is_empty_patch() {
        return Err(Error::usage(
            "nothing to change",
            "`dormer cache configure --help` lists what can be changed",
        ));
    }
    let cache = &args.cache.cache;
    api.configure_cache(cache, &patch).await?;
    context.printer.message(&json!({
        "message_type": "cache_configured", "server": server.name.as_str(), "cache": cache.as_str(),
    }))?;
    context.printer.conclude(&format!("configured the cache {cache} on {}", server.name));
    if patch.keypair.is_some() {
        context.printer.hint(&format!("clients must learn the new key: dormer use {}", args.cache));
    }
    Ok(())
}

async fn list(args: &ListArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect(args.server.as_ref())?;
    let caches = api.list_caches().await?.caches;
    if context.printer.json {
        for cache in caches {
            let mut message = serde_json::to_value(&cache).expect("settings of a cache have text keys only");
            message["message_type"] = "cache".into();
            message["server"] = server.name.as_str().into();
            message["cache"] = cache.name.as_str().into();
            context.printer.message(&message)?;
        }
        return Ok(());
    }
    if caches.is_empty() {
        context.printer.say(&format!("{} shows no caches to you", server.name));
    }
    let width = caches.iter().map(|cache| cache.name.as_str().len()).max().unwrap_or(0);
    for cache in caches {
        let (name, visibility) = (cache.name.as_str(), visibility(cache.is_public));
        let key = cache.public_keys.last().map_or("", String::as_str);
        context
            .printer
            .data(&format!("{name:<width$}  {visibility:<7}  priority {:<3}  {key}", cache.priority))?;
    }
    Ok(())
}

async fn destroy(args: &DestroyArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let cache = &args.cache.cache;
    if !args.no_confirm {
        confirm(context, cache.as_str(), server.name.as_str())?;
    }
    api.destroy_cache(cache).await?;
    context.printer.message(&json!({
        "message_type": "cache_destroyed", "server": server.name.as_str(), "cache": cache.as_str(),
    }))?;
    context.printer.conclude(&format!("destroyed the cache {cache} on {}", server.name));
    Ok(())
}

/// An action that cannot be undone asks for the cache's name.
fn confirm(context: &Context, cache: &str, server: &str) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::usage(
            "there is nobody to ask whether to destroy the cache",
            "--no-confirm destroys it without asking",
        ));
    }
    context
        .printer
        .warn(&format!("all objects of the cache {cache} on {server} will be gone; this cannot be undone"));
    context.printer.ask(&format!("type {cache} to destroy it:"));
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    read.map_err(|source| Error::Io { attempt: "read the answer".to_owned(), source })?;
    if line.trim() == cache { Ok(()) } else { Err(Error::Aborted) }
}

async fn remove_paths(args: &RemovePathArgs, context: &Context) -> Result<()> {
    let store = NixStore::open_for_names(&dormer_client::process_variables).await?;
    let hashes = args.paths.iter().map(|path| hash_of(&store, path)).collect::<Result<Vec<_>>>()?;
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (mut removed_count, mut referrer_count) = (0, 0_u64);
    let mut unknown = Vec::new();
    // The paths whose bytes go. Older servers do not name the referrers.
    let mut going = hashes.clone();
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
            going.extend(answer.paths);
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
    if unknown.len() < hashes.len() || referrer_count > 0 {
        wait_for_purges(args, &going, &server.name, &api, context).await?;
    }
    if unknown.is_empty() { Ok(()) } else { Err(Error::BytesUnknown { paths: unknown }) }
}

/// Waits until the bytes of these removed paths are gone from the store, or until a collection had
/// to leave some. Bytes of other paths that wait, perhaps for days, do not count.
async fn wait_for_purges(
    args: &RemovePathArgs,
    paths: &[StorePathHash],
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

async fn ls(args: &LsArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (now, printer) = (SystemClock.now(), &context.printer);
    let unused_before = args.unused_for.map(|period| now.saturating_sub_unsigned(period.as_secs()));
    let sort = match args.sort {
        LsSort::Size => SortObjects::Size,
        LsSort::Age => SortObjects::Age,
        LsSort::Used => SortObjects::Used,
    };
    let mut request = ListObjectsRequest { sort, after: None };
    let mut pages = PageGuard::new(format!("listing cache {}", args.cache.cache));
    let mut sizes = SizeClasses::default();
    'pages: loop {
        let page = api.list_objects(&args.cache.cache, &request).await?;
        for object in &page.objects {
            if unused_before.is_some_and(|before| object.last_used_at > before) {
                if args.sort == LsSort::Used {
                    break 'pages;
                }
                continue;
            }
            let name = object.store_path.split_once('-').map_or("", |(_, name)| name);
            if args.name.as_ref().is_some_and(|pattern| !name_fits(pattern, name)) {
                continue;
            }
            printer.message(&json!({
                "message_type": "object", "server": server.name.as_str(), "cache": args.cache.cache.as_str(),
                "path": object.store_path, "nar_size": object.nar_size, "created_at": object.created_at,
                "last_used_at": object.last_used_at,
            }))?;
            sizes.add(object.nar_size);
            if !printer.json {
                let size = units::human_size(object.nar_size);
                let used = ago(now, object.last_used_at);
                printer.data(&format!("{size:>10}  used {used:<16}  {}", object.store_path))?;
            }
        }
        match page.next {
            Some(next) => {
                pages.follow(&next)?;
                request.after = Some(next);
            }
            None => break,
        }
    }
    printer.chart(&sizes.bars())
}

/// What was listed, by size: where the bytes of a cache are.
#[derive(Debug, Default)]
struct SizeClasses {
    /// Paths and bytes of each class.
    classes: [(u64, u64); Self::NAMES.len()],
}

impl SizeClasses {
    const NAMES: [&str; 5] = ["up to 1 MiB", "up to 10 MiB", "up to 100 MiB", "up to 1 GiB", "over 1 GiB"];

    fn add(&mut self, bytes: u64) {
        let limits = [1 << 20, 10 << 20, 100 << 20, 1 << 30];
        let class = limits.iter().position(|limit| bytes <= *limit).unwrap_or(limits.len());
        let (paths, sum) = &mut self.classes[class];
        *paths += 1;
        *sum = sum.saturating_add(bytes);
    }

    fn bars(&self) -> Vec<Bar> {
        let rows = Self::NAMES.iter().zip(&self.classes);
        rows.map(|(name, (paths, bytes))| {
            Bar::new(format!("{} {name}", units::counted(*paths, "path", "paths")), *bytes)
        })
        .collect()
    }
}

async fn show(args: &ShowArgs, context: &Context) -> Result<()> {
    let store = NixStore::open_for_names(&dormer_client::process_variables).await?;
    let hash = hash_of(&store, &args.path)?;
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (cache, printer) = (&args.cache.cache, &context.printer);
    let object = api.get_object(cache, &hash).await?;
    if printer.json {
        let mut message = serde_json::to_value(&object).expect("an object has text keys only");
        message["message_type"] = "object_details".into();
        message["server"] = server.name.as_str().into();
        message["cache"] = cache.as_str().into();
        printer.message(&message)?;
    } else {
        for (label, value) in lines_of(&object) {
            printer.data(format!("{label:<14} {value}").trim_end())?;
        }
    }
    if !args.referrers {
        return printer.chart(&object_bars(&object));
    }
    let mut pages = PageGuard::new(format!("listing what refers to {hash}"));
    let mut after = None;
    loop {
        let page = api.list_referrers(cache, &hash, after.as_ref()).await?;
        for path in &page.referrers {
            printer.message(&json!({
                "message_type": "referrer", "server": server.name.as_str(), "cache": cache.as_str(), "path": path,
            }))?;
            if !printer.json {
                printer.data(&format!("{:<14} {path}", "referrer"))?;
            }
        }
        let Some(next) = page.next else { return printer.chart(&object_bars(&object)) };
        pages.follow(next)?;
        after = Some(next);
    }
}

/// What a client fetches and unpacks for the path, and for all that it drags along.
fn object_bars(object: &ObjectResponse) -> Vec<Bar> {
    let download = object.file_size.map(|bytes| Bar::new("download", bytes));
    let sizes = [Bar::new("NAR", object.nar_size), Bar::new("NARs of the closure", object.closure.nar_size)];
    download.into_iter().chain(sizes).collect()
}

fn lines_of(object: &ObjectResponse) -> Vec<(&str, String)> {
    let size = units::human_size;
    let mut lines = vec![("path", object.store_path.clone())];
    lines.push(("NAR", format!("{}, {}", size(object.nar_size), object.nar_hash)));
    let download = object.file_size.map_or_else(String::new, |bytes| format!("{}, ", size(bytes)));
    lines.push(("download", format!("{download}{}", object.url)));
    let closure = &object.closure;
    let more = if closure.complete { "" } else { "more than " };
    let lacking = match closure.missing {
        0 => String::new(),
        count => format!("; {count} not in this cache"),
    };
    let paths = crate::error::paths(usize::try_from(closure.paths).unwrap_or(usize::MAX));
    lines.push(("closure", format!("{more}{paths}, {}{lacking}", size(closure.nar_size))));
    lines.extend(object.deriver.clone().map(|deriver| ("deriver", deriver)));
    lines.extend(object.system.clone().map(|system| ("system", system)));
    lines.extend(object.ca.clone().map(|ca| ("CA", ca)));
    lines.extend(object.references.iter().map(|reference| ("reference", reference.clone())));
    lines.extend(object.signatures.iter().map(|signature| ("signature", signature.clone())));
    lines.extend(object.extra.iter().map(|(name, value)| (name.as_str(), value.clone())));
    lines
}

/// Accepts a bare hash, `<hash>-<name>`, a store path that is no longer valid here, or anything
/// that leads to a valid store path.
pub(super) fn hash_of(store: &NixStore, path: &Path) -> Result<StorePathHash> {
    let text = path.to_str().unwrap_or_default();
    if let Ok(hash) = text.parse() {
        return Ok(hash);
    }
    if let Ok(path) = text.parse::<dormer_nix::StorePath>() {
        return Ok(path.hash());
    }
    if let Ok(path) = dormer_nix::StorePath::parse_absolute(store.store_dir(), text) {
        return Ok(path.hash());
    }
    Ok(store.resolve(path)?.hash())
}

fn read_keypair(file: &Path) -> Result<Keypair> {
    let text = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
    // Parses the key here too: a wrong file must not go to a server.
    match text.trim().parse::<dormer_nix::SecretKey>() {
        Ok(_) => Ok(Keypair::Keypair(Secret::new(text.trim()))),
        Err(_) => Err(Error::UnreadableSecret {
            path: file.to_owned(),
            what: "a secret key in the form of Nix: name:base64",
        }),
    }
}

fn visibility(public: bool) -> &'static str {
    if public { "public" } else { "private" }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    units::parse_size(text).ok_or_else(|| "not a size such as `200GB` or `50 GiB`".to_owned())
}

fn write_quota(quota: Quota) -> String {
    match quota {
        Quota::Global => "the server's default".to_owned(),
        Quota::Bytes(0) => "none".to_owned(),
        Quota::Bytes(bytes) => units::write_size(bytes),
    }
}

fn retention(period: RetentionPeriod) -> String {
    match period {
        RetentionPeriod::Global => "the server's default".to_owned(),
        RetentionPeriod::Period(seconds) => units::write_duration(Duration::from_secs(seconds.into())),
    }
}

#[cfg(test)]
mod tests {
    use dormer_api::v2::{ClosureEntry, ObjectResponse};

    use super::{SizeClasses, name_fits, object_bars};
    use crate::chart::lines;

    #[test]
    fn a_list_ends_with_its_bytes_by_size_and_a_path_with_its_closure() {
        let mut sizes = SizeClasses::default();
        for bytes in [1, 1 << 20, (1 << 20) + 1, 80 << 20, 3 << 30, 1 << 30] {
            sizes.add(bytes);
        }
        insta::assert_snapshot!(lines(&sizes.bars(), 60).join("\n"), @r"
        2 paths up to 1 MiB      1.0 MiB  ▏
        1 path up to 10 MiB      1.0 MiB  ▏
        1 path up to 100 MiB    80.0 MiB  ▊
        1 path up to 1 GiB       1.0 GiB  ████████▊
        1 path over 1 GiB        3.0 GiB  ██████████████████████████
        ");
        let object = ObjectResponse {
            store_path: "x-hello".to_owned(),
            url: "nar/x".to_owned(),
            compression: "zstd".to_owned(),
            file_size: Some(1 << 20),
            nar_hash: "sha256:x".to_owned(),
            nar_size: 3 << 20,
            references: Vec::new(),
            deriver: None,
            system: None,
            ca: None,
            signatures: Vec::new(),
            extra: std::collections::BTreeMap::new(),
            closure: ClosureEntry { paths: 4, nar_size: 12 << 20, missing: 0, complete: true },
            referrers: None,
            next_referrers: None,
        };
        insta::assert_snapshot!(lines(&object_bars(&object), 60).join("\n"), @r"
        download                1.0 MiB  ██▎
        NAR                     3.0 MiB  ██████▊
        NARs of the closure    12.0 MiB  ███████████████████████████
        ");
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, is_fit) in [
            ("hello", "hello", true),
            ("hello", "hello-2", false),
            ("hello*", "hello-2", true),
            ("*", "", true),
            ("*-2", "hello-2", true),
            ("h*l*o", "hello", true),
            ("h*lo*o", "hello", false),
            ("*ab", "ab-ab", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(name_fits(pattern, name), is_fit, "{pattern} and {name}");
        }
    }
}
