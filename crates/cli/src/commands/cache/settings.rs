//! `dormer cache create`, `info`, `configure`, `list` and `destroy`: a cache and its settings.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dormer_api::{CacheConfig, CreateCacheRequest, Keypair, Quota, RetentionPeriod, Secret};
use dormer_client::{CacheRef, ServerName};
use dormer_nix::StoreDir;
use serde_json::json;

use crate::commands::token_create::parse_period;
use crate::context::{Context, EXIT_CODES_OF_CLIENT};
use crate::error::{Error, Result};
use crate::installation::{DEFAULT_PRIORITY, DEFAULT_UPSTREAM_KEY};
use crate::settings::units;

/// Create a cache
///
/// Paths that an upstream key has signed are not pushed, because clients find them there.
///
/// Examples:
///   dormer cache create main --public
///   dormer cache create lab:team --upstream-cache-key-name cache.nixos.org-1
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(super) struct CreateArgs {
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
pub(super) struct InfoArgs {
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
pub(super) struct ConfigureArgs {
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
pub(super) struct ListArgs {
    /// The server; without it, the default one
    server: Option<ServerName>,
}

/// Destroy a cache: its objects disappear at once and its name becomes free
#[derive(Debug, Args)]
pub(super) struct DestroyArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Destroy without asking
    #[arg(long)]
    no_confirm: bool,
}

pub(super) async fn create(args: CreateArgs, context: &Context) -> Result<()> {
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

pub(super) async fn info(args: &InfoArgs, context: &Context) -> Result<()> {
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

pub(super) async fn configure(args: ConfigureArgs, context: &Context) -> Result<()> {
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

pub(super) async fn list(args: &ListArgs, context: &Context) -> Result<()> {
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

pub(super) async fn destroy(args: &DestroyArgs, context: &Context) -> Result<()> {
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
