//! `dormer edge serve`.

use std::ffi::OsString;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, Args};
use dormer_edge_host::{
    DiskCache, EdgeServer, EdgeSettings, HS256_SECRET_BYTES_MIN, Source, TokenBounds, TokenKey,
    TokenVerifier, is_plain_origin,
};
use dormer_http_host::ListenAddress;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::listening::{listen_for_clients, listening_line, local_address};
use crate::service_manager::{State, notify, stopping_after};
use crate::settings::units::parse_size;
use crate::signals::stop_signal;

/// Serve published caches, read-only, from a folder or a bucket
///
/// Answers like the Cloudflare Worker, for operators without Cloudflare, and does not depend on the
/// lab. A bucket's credentials come from the usual variables: AWS_ACCESS_KEY_ID,
/// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_….
///
/// Private caches need one of DORMER_EDGE_TOKEN_RS256_PUBKEY_BASE64,
/// DORMER_EDGE_TOKEN_ED25519_PUBKEY_BASE64 and DORMER_EDGE_TOKEN_HS256_SECRET_BASE64: a public key
/// (PEM) or a secret of the edge, in base64. Without any, no token is valid.
/// DORMER_EDGE_TOKEN_ISSUER and DORMER_EDGE_TOKEN_AUDIENCES (separated by commas) accept only
/// tokens with this `iss`, or with one of these in `aud`.
///
/// Examples:
///   dormer edge serve --dir /srv/nix-caches
///   dormer edge serve --bucket s3://nix-cache/edge --cache-dir /var/cache/dormer
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, group(ArgGroup::new("source").required(true)))]
pub(crate) struct EdgeServeArgs {
    /// Folder with the published caches
    #[arg(long, value_name = "FOLDER", group = "source")]
    dir: Option<PathBuf>,
    /// Bucket and prefix with the published caches, such as s3://bucket/prefix
    #[arg(long, value_name = "URL", group = "source")]
    bucket: Option<String>,
    /// Address to listen on, or unix:/path; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: ListenAddress,
    /// Folder for a disk cache of NARs from the bucket; without it, there is no disk cache
    #[arg(long, value_name = "FOLDER", requires = "bucket")]
    cache_dir: Option<PathBuf>,
    /// Largest size of the disk cache
    #[arg(long, value_name = "SIZE", default_value = "10 GiB", value_parser = size)]
    cache_size: u64,
    /// Address that pages show, such as https://cache.example.org; without it, pages show the
    /// address of each request, and no cache may keep them
    #[arg(long, value_name = "URL", value_parser = own_address)]
    address: Option<String>,
    /// Serve no pages to browsers, only what Nix asks for
    #[arg(long)]
    no_pages: bool,
}

fn size(text: &str) -> std::result::Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("'{text}' is not a size such as 500 MiB or 10 GiB"))
}

fn own_address(text: &str) -> std::result::Result<String, String> {
    let address = text.trim_end_matches('/');
    let problem = || format!("'{text}' is not a scheme and a host such as https://cache.example.org");
    if is_plain_origin(address) { Ok(address.to_owned()) } else { Err(problem()) }
}

pub(super) async fn run(args: EdgeServeArgs, context: &Context) -> Result<()> {
    let source = match (&args.dir, &args.bucket) {
        (Some(folder), _) => Source::folder(folder)?,
        (None, Some(url)) => {
            let text = |(name, value): (OsString, OsString)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            };
            Source::bucket(url, std::env::vars_os().filter_map(text))?
        }
        (None, None) => return Err(Error::usage("no source", "give --dir or --bucket")),
    };
    let disk =
        args.cache_dir.as_deref().map(|folder| DiskCache::open(folder, args.cache_size)).transpose()?;
    let settings =
        EdgeSettings { shows_pages: !args.no_pages, address: args.address, ..EdgeSettings::default() };
    let server = EdgeServer::new(source, disk, verifier()?, settings);
    let listener = listen_for_clients(&args.listen).await?;
    let address = local_address(&listener)?;
    let shutdown = stop_signal()?;
    context.printer.say(&listening_line(&address));
    notify(State::Ready);
    if let Err(error) = server.run(listener, Box::pin(stopping_after(shutdown))).await {
        context.printer.warn(&error.to_string());
    }
    context.printer.say("stopped");
    Ok(())
}

fn verifier() -> Result<Option<TokenVerifier>> {
    const HINT: &str = "base64 of a PEM file: base64 -w0 key.pem; of a secret: openssl rand -base64 32";
    type Make = fn(Vec<u8>) -> TokenKey;
    let keys: [(&str, Make); 3] = [
        ("DORMER_EDGE_TOKEN_RS256_PUBKEY_BASE64", TokenKey::Rs256Public),
        ("DORMER_EDGE_TOKEN_ED25519_PUBKEY_BASE64", TokenKey::EdDsaPublic),
        ("DORMER_EDGE_TOKEN_HS256_SECRET_BASE64", TokenKey::Hs256),
    ];
    let setting = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let mut found = None;
    for (name, make) in keys {
        let Some(text) = setting(name) else { continue };
        if found.is_some() {
            return Err(Error::usage(format!("{name} is set beside another key"), "set one of them"));
        }
        let bytes =
            STANDARD.decode(text.trim()).map_err(|_| Error::usage(format!("{name} is not base64"), HINT))?;
        if name.contains("HS256") && bytes.len() < HS256_SECRET_BYTES_MIN {
            let problem = format!("{name} has fewer than {HS256_SECRET_BYTES_MIN} bytes");
            return Err(Error::usage(problem, HINT));
        }
        found = Some(make(bytes));
    }
    let audiences = setting("DORMER_EDGE_TOKEN_AUDIENCES").unwrap_or_default();
    let bounds = TokenBounds {
        issuer: setting("DORMER_EDGE_TOKEN_ISSUER"),
        audiences: audiences
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    Ok(found.map(|key| TokenVerifier::new(&key, bounds)).transpose()?)
}
