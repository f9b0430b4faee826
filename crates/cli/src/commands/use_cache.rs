//! `dormer use` and `dormer unuse`: this machine's `nix.conf` and `netrc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dormer_api::Secret;
use dormer_client::{CacheRef, Endpoint, ResolvedServer, ServerName};
use dormer_nix::PublicKey;

use super::nix_settings::{EDGE_NETRC, NixFiles};
use super::{Context, EXIT_CODES_OF_CLIENT};
use crate::error::{Error, Result};
use crate::nix_files::{MarkedFile, netrc_has_machine, netrc_password, nix_list_contains};

/// How long an edge may take to answer one small request.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Let this machine's Nix fetch from a cache
///
/// Adds the cache and its public key to nix.conf and, for a private cache, the token to the netrc
/// file. What is added stands between comment lines, shows on standard output, and is all that
/// `dormer unuse` removes.
///
/// Examples:
///   dormer use main                       # for this user
///   sudo dormer use lab:main --system     # for everybody on this machine
///   dormer use main --dry-run             # only show what would change
///
/// With --edge, Nix fetches from the copy that `dormer publish` keeps at that address, instead of
/// from the lab. The lab is asked for the key; who cannot reach it gives the key himself:
///
///   dormer use main --edge https://cache.example.org
///   dormer use main --edge https://cache.example.org --public-key main:…
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct UseArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Address of the edge, without the cache's name
    #[arg(long, value_name = "URL")]
    edge: Option<Endpoint>,
    /// The cache's public key, from somebody you trust: the lab is not asked
    #[arg(long, value_name = "KEY", requires = "edge")]
    public_key: Option<PublicKey>,
    /// File with the token that a private cache wants at the edge, if not that of the server
    #[arg(long, value_name = "FILE", requires = "edge")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Take back what `dormer use` added
///
/// Works without the server. Nothing else in the files is touched.
#[derive(Debug, Args)]
pub(crate) struct UnuseArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Change /etc/nix instead of ~/.config/nix
    #[arg(long)]
    system: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What Nix is to use, and how it finds and trusts it.
struct Source {
    /// Names the lines in nix.conf.
    name: String,
    url: String,
    key: PublicKey,
    /// For a private cache.
    token: Option<Secret>,
    /// Names the entry in the netrc file.
    netrc_name: String,
}

pub(super) async fn run_use(args: UseArgs, context: &Context) -> Result<()> {
    let source = match &args.edge {
        Some(edge) => at_edge(edge, &args, context).await?,
        None => at_lab(&args, context).await?,
    };
    let Source { name, url, key, token, netrc_name } = source;
    let mut files = NixFiles::read(context, args.place.system)?;
    let mut lines = vec![format!("extra-substituters = {url}"), format!("extra-trusted-public-keys = {key}")];
    if token.is_none()
        && nix_list_contains(&files.conf, "substituters", &url)
        && nix_list_contains(&files.conf, "trusted-public-keys", &key.to_string())
    {
        let cache = &args.cache.cache;
        context.printer.conclude(&format!("{} names {cache} already", files.conf_path.display()));
        return Ok(());
    }
    if let Some(token) = token {
        if let Some(line) = files.netrc_line() {
            lines.push(line);
        }
        let host = host_of(&url).to_owned();
        files.load_netrc()?;
        let netrc = files.netrc.as_mut().expect("just loaded");
        if netrc_has_machine(netrc, &host) {
            context.printer.warn(&format!(
                "{} has an entry for {host} already; it is left as it is",
                files.netrc_path.display()
            ));
        } else {
            // Nix shows the password as Basic; the user name does not matter to the server.
            let entry = format!("machine {host} login dormer password {}", token.expose());
            for other in netrc.names().into_iter().filter(|name| *name != netrc_name) {
                let lines = netrc.lines_of(other).join("\n");
                if netrc_password(&lines, &host).is_some_and(|password| password != token.expose()) {
                    context.printer.warn(&format!(
                        "{other} is on {host} too: netrc files know no ports, and Nix shows both the token of the first; let both \
                         servers accept one token, or give one of them another name"
                    ));
                }
            }
            netrc.set(&netrc_name, &[entry]);
        }
    }
    files.conf.set(&name, &lines);
    files.forget_edges()?;
    let changed = files.finish(context, args.place.dry_run)?;
    let place = files.conf_path.display();
    context.printer.conclude(&match (changed, args.place.dry_run) {
        (false, _) => format!("nothing to do: {place} uses {name} already"),
        (true, true) => format!("would let Nix use {name} ({url})"),
        (true, false) => format!("Nix uses {name} ({url}) from now on; undo it with: dormer unuse {name}"),
    });
    if changed && !args.place.system && has_daemon() && !is_root() {
        context.printer.hint("Nix believes a user's own settings only if he is among trusted-users; else use --system, as root");
    }
    Ok(())
}

/// The cache as the lab itself serves it.
async fn at_lab(args: &UseArgs, context: &Context) -> Result<Source> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let cache = &args.cache.cache;
    let config = api.get_cache_config(cache).await?;
    let incomplete = |what| Error::IncompleteAnswer { cache: cache.to_string(), what };
    // They go into a file where a line break would be a new setting: believe no server.
    let url = config
        .substituter_endpoint
        .filter(|url| is_plain_url(url))
        .ok_or_else(|| incomplete("usable address"))?;
    let key = config
        .public_key
        .and_then(|key| key.parse::<PublicKey>().ok())
        .ok_or_else(|| incomplete("usable public key"))?;
    let is_public = config.is_public.unwrap_or(true);
    let token = if is_public { None } else { Some(token_of(&server, &args.cache)?) };
    let name = block_name(&server.name, &args.cache);
    Ok(Source { name, url, key, token, netrc_name: server.name.to_string() })
}

/// The copy at an edge. It is only ever a file host, so whom to trust is the lab's or the user's word.
async fn at_edge(edge: &Endpoint, args: &UseArgs, context: &Context) -> Result<Source> {
    let cache = &args.cache.cache;
    let base = edge.to_string();
    let base = base.trim_end_matches('/');
    let url = match base.rsplit_once('/') {
        Some((_, last)) if last == cache.as_str() => base.to_owned(),
        _ => format!("{base}/{cache}"),
    };
    if !is_plain_url(&url) {
        return Err(Error::usage(
            format!("{url} cannot stand in nix.conf"),
            "give the address without spaces and #",
        ));
    }
    let own_token = args.token_file.as_deref().map(read_token_file).transpose()?;
    let (server, key, token) = if let Some(key) = &args.public_key {
        (args.cache.server.as_ref().map(ToString::to_string), key.clone(), own_token)
    } else {
        let (server, api) = context.connect_to_cache(&args.cache)?;
        let config = api.get_cache_config(cache).await?;
        let incomplete = || Error::IncompleteAnswer { cache: cache.to_string(), what: "usable public key" };
        let key = config.public_key.and_then(|key| key.parse().ok()).ok_or_else(incomplete)?;
        let token = match (own_token, config.is_public.unwrap_or(true)) {
            (None, false) => Some(token_of(&server, &args.cache)?),
            (own, _) => own,
        };
        (Some(server.name.to_string()), key, token)
    };
    let info = format!("{url}/nix-cache-info");
    match dormer_client::probe(&info, token.as_ref(), PROBE_TIMEOUT).await {
        Ok(seen) if seen.status == 200 => {}
        Ok(seen) => context.printer.warn(&format!(
            "{info} answers {}: is {cache} published there, and may this token read it?",
            seen.status
        )),
        Err(error) => context.printer.warn(&format!("the edge does not answer yet: {error}")),
    }
    let server = server.unwrap_or_else(|| "edge".to_owned());
    let netrc_name = format!("{EDGE_NETRC}{}", host_of(&url));
    Ok(Source { name: format!("{server}:{cache}"), url, key, token, netrc_name })
}

fn token_of(server: &ResolvedServer, cache: &CacheRef) -> Result<Secret> {
    server.token.clone().ok_or_else(|| {
        Error::usage(
            format!("{} is private and there is no token for {}", cache.cache, server.name),
            "log in with a token first",
        )
    })
}

fn read_token_file(path: &Path) -> Result<Secret> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    match text.trim() {
        "" => Err(Error::usage(
            format!("{} is empty", path.display()),
            "it should hold a token and nothing else",
        )),
        // It goes into a file where a blank would begin another word.
        token if token.bytes().any(|byte| !byte.is_ascii_graphic()) => Err(Error::usage(
            format!("{} holds more than a token", path.display()),
            "one line, without blanks",
        )),
        token => Ok(Secret::new(token)),
    }
}

pub(super) fn run_unuse(args: &UnuseArgs, context: &Context) -> Result<()> {
    let mut files = NixFiles::read(context, args.place.system)?;
    let (name, server) = match &args.cache.server {
        Some(server) => (args.cache.to_string(), server.as_str().to_owned()),
        None => find_block(&files.conf, &args.cache)?,
    };
    let was_there = files.conf.remove(&name);
    // The entry in the netrc file serves all caches of the server.
    let prefix = format!("{server}:");
    if !files.conf.names().iter().any(|other| other.starts_with(&prefix)) {
        files.load_netrc()?;
        if let Some(netrc) = &mut files.netrc {
            netrc.remove(&server);
        }
    }
    files.forget_edges()?;
    let changed = files.finish(context, args.place.dry_run)?;
    let place = files.conf_path.display();
    context.printer.conclude(&match (was_there || changed, args.place.dry_run) {
        (false, _) => format!("nothing to do: {place} has nothing from `dormer use {name}`"),
        (true, true) => format!("would take {name} out of Nix's settings"),
        (true, false) => format!("Nix does not use {name} any more"),
    });
    Ok(())
}

fn block_name(server: &ServerName, cache: &CacheRef) -> String {
    format!("{server}:{}", cache.cache)
}

/// A cache without its server: the only one of that name in the file, else that of the default server.
fn find_block(conf: &MarkedFile, cache: &CacheRef) -> Result<(String, String)> {
    let fits: Vec<&str> = conf
        .names()
        .into_iter()
        .filter_map(|name| name.split_once(':'))
        .filter(|(_, other)| *other == cache.cache.as_str())
        .map(|(server, _)| server)
        .collect();
    let server = match fits[..] {
        [only] => only.to_owned(),
        _ => Context::client_settings()?
            .resolve_server(None, &dormer_client::process_variables)?
            .name
            .to_string(),
    };
    Ok((format!("{server}:{}", cache.cache), server))
}

/// An address that is one word, so that it is one item in `nix.conf`.
fn is_plain_url(url: &str) -> bool {
    (url.starts_with("http://") || url.starts_with("https://"))
        && url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// The host as netrc files name it: without user, port and brackets.
pub(super) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(host, _)| host),
    }
}

pub(super) fn has_daemon() -> bool {
    Path::new("/nix/var/nix/daemon-socket/socket").exists()
}

pub(super) fn is_root() -> bool {
    // Without libc: whose are the files that this process makes?
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        std::env::var_os("USER").is_some_and(|user| user == "root")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_netrc_files_name_them() {
        for (url, host) in [
            ("https://cache.example.org/main", "cache.example.org"),
            ("http://127.0.0.1:8080/main", "127.0.0.1"),
            ("http://[::1]:8080/main", "::1"),
            ("https://ada:x@example.org", "example.org"),
        ] {
            assert_eq!(host_of(url), host);
        }
    }

    #[test]
    fn addresses_that_would_be_several_settings_are_refused() {
        assert!(is_plain_url("https://cache.example.org/main"));
        for url in ["https://a b", "https://a\nextra-x = y", "ftp://a", "https://a#b", "https://ä"] {
            assert!(!is_plain_url(url), "{url}");
        }
    }
}
