//! `dormer use` and `dormer unuse`: this machine's `nix.conf` and `netrc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dormer_api::Secret;
use dormer_client::{
    CacheRef, Endpoint, NETRC_LINE_BYTES_MAX, NETRC_TOO_LONG, NixConfig, ResolvedServer, ServerName,
    SubstituterUrl, host_of, netrc_password, nix_program, process_variables,
};
use dormer_nix::{CacheInfo, PublicKey};

use super::login::PLAIN_TEXT_TOKEN;
use super::nix_settings::{DETERMINATE_NETRC, EDGE_NETRC, NixFiles};
use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::{Error, Result};
use crate::nix_files::{MarkedFile, netrc_has_machine, nix_list_contains};
use crate::nix_version::parse_version;
use crate::settings::units::parse_duration;

/// Time limit for an edge to answer one small request.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Set up this machine's Nix to fetch from a cache
///
/// Adds the cache and its public key to nix.conf and, for a private cache, the token to the netrc
/// file. The added lines stand between comment lines and appear on standard output. `dormer unuse`
/// removes exactly these lines.
///
/// Examples:
///   dormer use main                       # for this user
///   sudo dormer use lab:main --system     # for everybody on this machine
///   dormer use main --dry-run             # only show what would change
///
/// The command asks the server for the cache's address, and checks that the cache answers there.
///
/// Nix remembers for an hour that a path is missing. For a cache that others fill meanwhile:
///
///   dormer use main --narinfo-cache-negative-ttl 1min
///
/// With --edge, Nix fetches from the copy that `dormer publish` keeps at that address, instead of
/// from the lab. The command asks the lab for the key; without access to the lab, give the key:
///
///   dormer use main --edge https://cache.example.org
///   dormer use main --edge https://cache.example.org --public-key main:…
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct UseArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Accept an address on another host than the server's, or one without TLS
    #[arg(long, conflicts_with = "edge")]
    allow_other_host: bool,
    /// Address of the edge, without the cache's name
    #[arg(long, value_name = "URL")]
    edge: Option<Endpoint>,
    /// The cache's public key, from somebody you trust; then the command does not ask the lab
    #[arg(long, value_name = "KEY", requires = "edge")]
    public_key: Option<PublicKey>,
    /// File with the token for a private cache at the edge, if it differs from the server's token
    #[arg(long, value_name = "FILE", requires = "edge")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    memory: NixMemoryArgs,
    #[command(flatten)]
    nix_files: NixFilesArgs,
    #[command(flatten)]
    pub(crate) server: EndpointArgs,
}

/// What Nix remembers and how often it tries.
#[derive(Debug, Args)]
struct NixMemoryArgs {
    /// How long Nix remembers that a path is missing (Nix: 1 hour); applies to all its caches
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    narinfo_cache_negative_ttl: Option<Duration>,
    /// How long Nix remembers what a cache said about a path (Nix: 30 days); applies to all caches
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    narinfo_cache_positive_ttl: Option<Duration>,
    /// How often Nix tries a request to this cache before it gives up; needs Nix 2.35 or newer
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=100))]
    retry_attempts: Option<u16>,
}

impl NixMemoryArgs {
    /// The address of the cache in nix.conf: with Nix's settings for this cache alone.
    fn with_settings(&self, url: &str) -> String {
        self.retry_attempts
            .map_or_else(|| url.to_owned(), |attempts| format!("{url}?retry-attempts={attempts}"))
    }

    /// The lines for all caches of this Nix.
    fn lines(&self) -> impl Iterator<Item = String> {
        [
            ("narinfo-cache-negative-ttl", self.narinfo_cache_negative_ttl),
            ("narinfo-cache-positive-ttl", self.narinfo_cache_positive_ttl),
        ]
        .into_iter()
        .filter_map(|(name, time)| time.map(|time| format!("{name} = {}", time.as_secs())))
    }

    fn is_empty(&self) -> bool {
        self.retry_attempts.is_none() && self.lines().next().is_none()
    }

    /// A setting that Nix does not know would have no effect.
    fn check(&self, config: Option<&NixConfig>) -> Result<()> {
        match config.map(NixConfig::version) {
            Some(version) if self.retry_attempts.is_some() && !has_retries_per_cache(version) => {
                Err(Error::usage(
                    format!("{version} has no number of retries for each cache"),
                    "leave --retry-attempts out; download-attempts in nix.conf applies to all caches",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Nix since 2.35, and not Lix, which counts on its own.
fn has_retries_per_cache(version: &str) -> bool {
    !version.contains("Lix") && parse_version(version).is_none_or(|version| version >= (2, 35))
}

fn parse_time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a time such as 60s, 10min or 2h".to_owned())
}

/// Undo `dormer use`
///
/// Works without the server, and changes nothing else in the files.
#[derive(Debug, Args)]
pub(crate) struct UnuseArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    #[command(flatten)]
    nix_files: NixFilesArgs,
}

#[derive(Debug, Args)]
struct NixFilesArgs {
    /// Change /etc/nix instead of ~/.config/nix
    #[arg(long)]
    system: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// A cache, with everything that Nix needs to use and trust it.
struct UsedCache {
    /// Name of the lines in nix.conf.
    name: String,
    url: String,
    key: PublicKey,
    /// The token of a private cache.
    token: Option<Secret>,
    /// Name of the entry in the netrc file.
    netrc_name: String,
}

pub(super) async fn run_use(args: UseArgs, context: &Context) -> Result<()> {
    let source = match &args.edge {
        Some(edge) => at_edge(edge, &args, context).await?,
        None => at_lab(&args, context).await?,
    };
    let UsedCache { name, url, key, token, netrc_name } = source;
    let config = settings_of_nix(args.nix_files.system).await;
    args.memory.check(config.as_ref())?;
    let mut files = NixFiles::read(context, args.nix_files.system, config.as_ref())?;
    let substituter = args.memory.with_settings(&url);
    let mut lines =
        vec![format!("extra-substituters = {substituter}"), format!("extra-trusted-public-keys = {key}")];
    lines.extend(args.memory.lines());
    let is_named = nix_list_contains(&files.conf, "substituters", &url)
        && nix_list_contains(&files.conf, "trusted-public-keys", &key.to_string());
    let is_in_force = !files.conf.names().contains(&name.as_str())
        && config.as_ref().is_some_and(|config| lost_setting(config, &url, &key).is_none());
    if token.is_none() && (is_named || is_in_force) && args.memory.is_empty() {
        let cache = &args.cache.cache;
        context.printer.conclude(&if is_named {
            format!("{} names {cache} already", files.conf_path.display())
        } else {
            format!("Nix uses {url} already")
        });
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
                "{} already has an entry for {host}, which stays as it is",
                files.netrc_path.display()
            ));
        } else {
            // Nix sends the password with Basic. The server ignores the user name.
            let entry = format!("machine {host} login dormer password {}", token.expose());
            if entry.len() > NETRC_LINE_BYTES_MAX {
                context.printer.warn(NETRC_TOO_LONG);
            }
            for other in netrc.names().into_iter().filter(|name| *name != netrc_name) {
                let lines = netrc.lines_of(other).join("\n");
                if netrc_password(&lines, &host).is_some_and(|password| password != token.expose()) {
                    context.printer.warn(&format!(
                        "{other} is on {host} too: netrc files know no ports, and Nix shows both the token of the first; let both \
                         servers accept one token, or give one of them another name"
                    ));
                }
            }
            netrc.set_in_netrc(&netrc_name, &[entry]);
        }
    }
    files.conf.set(&name, &lines);
    files.forget_edges()?;
    let changed = files.finish(context, args.nix_files.dry_run)?;
    let conf = files.conf_path.display();
    context.printer.conclude(&match (changed, args.nix_files.dry_run) {
        (false, _) => format!("nothing to do: {conf} uses {name} already"),
        (true, true) => format!("would let Nix use {name} ({url})"),
        (true, false) => format!("Nix uses {name} ({url}) from now on; undo it with: dormer unuse {name}"),
    });
    if changed && !args.nix_files.dry_run {
        check_effect(&files, args.nix_files.system, &url, &key, context).await;
    }
    if changed && !args.nix_files.system && has_daemon() && !is_root() {
        context.printer.hint("Nix obeys a user's own settings only if the user is in trusted-users; otherwise use --system, as root");
    }
    Ok(())
}

/// What Nix says about itself. A machine whose Nix does not answer is set up by its files alone.
async fn settings_of_nix(system: bool) -> Option<NixConfig> {
    let program = nix_program(&process_variables);
    let read =
        if system { NixConfig::read_of_machine(program).await } else { NixConfig::read(program).await };
    read.ok()
}

/// The setting in which Nix does not have the cache, if any.
pub(super) fn lost_setting(config: &NixConfig, url: &str, key: &PublicKey) -> Option<&'static str> {
    // Nix's settings for the store may follow the address.
    let address = |one: &'_ str| one.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
    if !config.list("substituters").iter().any(|one| address(one) == address(url)) {
        return Some("substituters");
    }
    let has_key = config.list("trusted-public-keys").contains(&key.to_string().as_str());
    (!has_key).then_some("trusted-public-keys")
}

/// Asks Nix whether the lines have the effect that they should have.
async fn check_effect(files: &NixFiles, system: bool, url: &str, key: &PublicKey, context: &Context) {
    let Some(config) = settings_of_nix(system).await else { return };
    let printer = &context.printer;
    if let Some(setting) = lost_setting(&config, url, key) {
        printer.warn(&format!(
            "Nix does not use it yet: something sets {setting} after {}: a later line, an included file or NIX_CONFIG (`nix \
             config show` shows the result)",
            files.conf_path.display()
        ));
    }
    let in_force = config.text("netrc-file").unwrap_or_default();
    let holds_token = files.netrc.as_ref().is_some_and(|netrc| !netrc.names().is_empty());
    if holds_token && in_force != files.netrc_path.as_os_str() {
        let path = files.netrc_path.display();
        printer.warn(&if Path::new(in_force) == Path::new(DETERMINATE_NETRC) {
            format!(
                "Determinate Nix makes {in_force} from other files: add \"{path}\" to additionalNetrcSources under authentication \
                 in /etc/determinate/config.json, and restart it"
            )
        } else {
            format!("Nix reads {in_force}, not {path}: something sets netrc-file after {}", files.conf_path.display())
        });
    }
}

/// The cache as the lab serves it.
async fn at_lab(args: &UseArgs, context: &Context) -> Result<UsedCache> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let cache = &args.cache.cache;
    let config = api.get_cache_config(cache).await?;
    let incomplete = |what| Error::IncompleteAnswer { cache: cache.to_string(), what };
    // The values go into a file that decides what this machine trusts, so no server is trusted.
    let reported = config.substituter_endpoint.ok_or_else(|| incomplete("address"))?;
    let reported = reported_address(&reported, cache.as_str())?;
    let key = usable_key(config.public_key.as_deref()).ok_or_else(|| incomplete("usable public key"))?;
    let is_public = config.is_public.unwrap_or(true);
    let token = if is_public { None } else { Some(token_of(&server, &args.cache)?) };
    let url = match check_address(&reported, &server, token.as_ref(), args).await {
        Ok(()) => reported.to_string(),
        Err(error) => own_address(&server, token.as_ref(), args, error, context).await?,
    };
    let name = block_name(&server.name, &args.cache);
    Ok(UsedCache { name, url, key, token, netrc_name: server.name.to_string() })
}

/// The address that the server reports, if it is nothing but an address.
fn reported_address(reported: &str, cache: &str) -> Result<SubstituterUrl> {
    reported.parse().map_err(|error| Error::ReportedAddress {
        cache: cache.to_owned(),
        problem: Error::Client(error).chain(),
        may_allow: false,
    })
}

/// Checks that Nix may use the address, and that the cache answers there.
async fn check_address(
    url: &SubstituterUrl,
    server: &ResolvedServer,
    token: Option<&Secret>,
    args: &UseArgs,
) -> Result<()> {
    let cache = args.cache.cache.as_str();
    let refused = |problem| Error::ReportedAddress { cache: cache.to_owned(), problem, may_allow: true };
    let endpoint = &server.endpoint;
    if url.is_other_host(endpoint) && !args.allow_other_host {
        return Err(refused(format!("{url} is on another host than {endpoint}")));
    }
    if url.is_downgrade(endpoint) && !args.allow_other_host {
        return Err(refused(format!("{url} is without TLS, and {endpoint} has TLS")));
    }
    check_answer(&url.to_string(), token, cache).await
}

/// The address of the cache below the one that the user chose, if the cache answers there. A server
/// behind a proxy that does not report the client's address knows only its own. `error` says why
/// the reported address is not usable.
async fn own_address(
    server: &ResolvedServer,
    token: Option<&Secret>,
    args: &UseArgs,
    error: Error,
    context: &Context,
) -> Result<String> {
    let cache = args.cache.cache.as_str();
    let Ok(url) = server.endpoint.join(cache).parse::<SubstituterUrl>() else {
        return Err(error);
    };
    let url = url.to_string();
    if check_answer(&url, token, cache).await.is_err() {
        return Err(error);
    }
    context.printer.warn(&format!("{}; {cache} also answers at {url}, which is used", error.chain()));
    for hint in error.hints() {
        context.printer.hint(&hint);
    }
    Ok(url)
}

/// A public key with a name that Nix accepts and that is one word in nix.conf.
fn usable_key(text: Option<&str>) -> Option<PublicKey> {
    let key: PublicKey = text?.parse().ok()?;
    key.name().bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#').then_some(key)
}

/// Asks the cache at the reported address, as Nix will. Behind a proxy, a server may not know the
/// address that its users see.
async fn check_answer(url: &str, token: Option<&Secret>, cache: &str) -> Result<()> {
    let refused =
        |problem: String| Error::ReportedAddress { cache: cache.to_owned(), problem, may_allow: false };
    let info = format!("{url}/nix-cache-info");
    let seen = dormer_client::probe(&info, token, PROBE_TIMEOUT)
        .await
        .map_err(|error| refused(Error::Client(error).chain()))?;
    match seen.status {
        200 if !CacheInfo::parse(&seen.body).is_empty() => Ok(()),
        200 => Err(refused(format!("the program at {url} is not a binary cache"))),
        status => Err(refused(format!("{info} answers {status}"))),
    }
}

/// The copy at an edge. An edge is only a file host, so the lab or the user decides which key to
/// trust.
async fn at_edge(edge: &Endpoint, args: &UseArgs, context: &Context) -> Result<UsedCache> {
    let cache = &args.cache.cache;
    let base = match edge.split_cache() {
        Some((base, last)) if last == *cache => base,
        _ => edge.clone(),
    };
    let url = base.join(cache.as_str()).parse::<SubstituterUrl>()?.to_string();
    let own_token = args.token_file.as_deref().map(read_token_file).transpose()?;
    let (server, key, token) = if let Some(key) = &args.public_key {
        (args.cache.server.as_ref().map(ToString::to_string), key.clone(), own_token)
    } else {
        let (server, api) = context.connect_to_cache(&args.cache)?;
        let config = api.get_cache_config(cache).await?;
        let incomplete = || Error::IncompleteAnswer { cache: cache.to_string(), what: "usable public key" };
        let key = usable_key(config.public_key.as_deref()).ok_or_else(incomplete)?;
        let token = match (own_token, config.is_public.unwrap_or(true)) {
            (None, false) => Some(token_of(&server, &args.cache)?),
            (own, _) => own,
        };
        (Some(server.name.to_string()), key, token)
    };
    if token.is_some() && edge.is_plain_text() {
        context.printer.warn(PLAIN_TEXT_TOKEN);
    }
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
    Ok(UsedCache { name: format!("{server}:{cache}"), url, key, token, netrc_name })
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
    let text = fs::read_to_string(path).map(Secret::new).map_err(Error::io("read", path))?;
    match text.expose().trim() {
        "" => Err(Error::usage(format!("{} is empty", path.display()), "the file must contain only a token")),
        // The token goes into a file in which a blank would begin another word.
        token if token.bytes().any(|byte| !byte.is_ascii_graphic()) => Err(Error::usage(
            format!("{} contains more than a token", path.display()),
            "one line, without blanks",
        )),
        token => Ok(Secret::new(token)),
    }
}

pub(super) async fn run_unuse(args: &UnuseArgs, context: &Context) -> Result<()> {
    let config = settings_of_nix(args.nix_files.system).await;
    let mut files = NixFiles::read(context, args.nix_files.system, config.as_ref())?;
    let (name, server) = match &args.cache.server {
        Some(server) => (args.cache.to_string(), server.as_str().to_owned()),
        None => find_block(context, &files.conf, &args.cache)?,
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
    let changed = files.finish(context, args.nix_files.dry_run)?;
    let conf = files.conf_path.display();
    context.printer.conclude(&match (was_there || changed, args.nix_files.dry_run) {
        (false, _) => format!("nothing to do: {conf} has nothing from `dormer use {name}`"),
        (true, true) => format!("would remove {name} from Nix's settings"),
        (true, false) => format!("Nix does not use {name} any more"),
    });
    Ok(())
}

fn block_name(server: &ServerName, cache: &CacheRef) -> String {
    format!("{server}:{}", cache.cache)
}

/// Finds a cache named without its server: the only one of that name in the file, else that of the
/// default server.
fn find_block(context: &Context, conf: &MarkedFile, cache: &CacheRef) -> Result<(String, String)> {
    let fits: Vec<&str> = conf
        .names()
        .into_iter()
        .filter_map(|name| name.split_once(':'))
        .filter(|(_, other)| *other == cache.cache.as_str())
        .map(|(server, _)| server)
        .collect();
    let server = match fits[..] {
        [only] => only.to_owned(),
        _ => context.server(None)?.name.to_string(),
    };
    Ok((format!("{server}:{}", cache.cache), server))
}

pub(super) fn has_daemon() -> bool {
    Path::new("/nix/var/nix/daemon-socket/socket").exists()
}

pub(super) fn is_root() -> bool {
    // Works without libc: checks the owner of the files that this process makes.
    //
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
    fn only_some_versions_of_nix_count_retries_for_each_cache() {
        for (version, expected) in [
            ("nix (Nix) 2.35.0", true),
            ("nix (Nix) 2.36pre20260101_abc", true),
            ("nix (Determinate Nix 3.21.0) 2.35.1", true),
            ("nix (Nix) 2.34.8", false),
            ("nix (Lix, like Nix) 2.94.0", false),
            ("something else", true),
        ] {
            assert_eq!(has_retries_per_cache(version), expected, "{version}");
        }
    }

    #[test]
    fn only_key_names_that_nix_accepts_are_taken() {
        let key = "A".repeat(43) + "=";
        for (name, is_usable) in [
            ("main", true),
            ("cache.nixos.org-1", true),
            ("a#b", false),
            ("a b", false),
            ("a\nsubstituters = evil", false),
            ("", false),
            ("ä", false),
            ("a\u{202e}b", false),
        ] {
            assert_eq!(usable_key(Some(&format!("{name}:{key}"))).is_some(), is_usable, "{name:?}");
        }
        assert!(usable_key(Some("main:AAAA")).is_none() && usable_key(None).is_none());
    }
}
