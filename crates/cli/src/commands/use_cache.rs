//! `dormer use` and `dormer unuse`: this machine's `nix.conf` and `netrc`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use dormer_client::{CacheRef, ServerName};
use dormer_nix::PublicKey;
use serde_json::json;

use super::{Context, EXIT_CODES_OF_CLIENT};
use crate::error::{Error, Result};
use crate::nix_files::{Change, MarkedFile, changes, find_nix_setting, netrc_has_machine, nix_list_contains};

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
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct UseArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
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

pub(super) async fn run_use(args: UseArgs, context: &Context) -> Result<()> {
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

    let mut files = NixFiles::read(context, args.place.system)?;
    let name = block_name(&server.name, &args.cache);
    let mut lines = vec![format!("extra-substituters = {url}"), format!("extra-trusted-public-keys = {key}")];
    if is_public
        && nix_list_contains(&files.conf, "substituters", &url)
        && nix_list_contains(&files.conf, "trusted-public-keys", &key.to_string())
    {
        context.printer.conclude(&format!("{} names {cache} already", files.conf_path.display()));
        return Ok(());
    }
    if !is_public {
        let token = server.token.as_ref().ok_or_else(|| {
            Error::usage(
                format!("{cache} is private and there is no token for {}", server.name),
                "log in with a token first",
            )
        })?;
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
            netrc.set(server.name.as_str(), &[entry]);
        }
    }
    files.conf.set(&name, &lines);
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

/// The files of a user or of the machine, before and after.
pub(super) struct NixFiles {
    pub(super) conf_path: PathBuf,
    conf_before: Option<String>,
    pub(super) conf: MarkedFile,
    pub(super) netrc_path: PathBuf,
    /// Whether `netrc_path` is where Nix looks by itself.
    netrc_is_default: bool,
    netrc_before: Option<String>,
    netrc: Option<MarkedFile>,
}

impl NixFiles {
    pub(super) fn read(context: &Context, system: bool) -> Result<Self> {
        let environment = &context.environment;
        let system_folder = environment.path("NIX_CONF_DIR").unwrap_or(Path::new("/etc/nix")).to_owned();
        let folder = if system {
            system_folder.clone()
        } else {
            let home = || environment.path("HOME").map(|home| home.join(".config"));
            let base =
                environment.path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()).map(Path::to_owned);
            let hint = "set HOME, or use --system";
            base.or_else(home)
                .ok_or_else(|| Error::usage("no folder for nix.conf: HOME is not set", hint))?
                .join("nix")
        };
        // The first of them has the last word.
        let listed = environment.text("NIX_USER_CONF_FILES")?.filter(|_| !system);
        let listed = listed.and_then(|files| files.split(':').find(|file| !file.is_empty()));
        let conf_path = listed.map_or_else(|| folder.join("nix.conf"), PathBuf::from);
        let conf_before = read_if_there(&conf_path)?;
        let conf = MarkedFile::new(conf_before.clone().unwrap_or_default());
        let netrc_default = system_folder.join("netrc");
        let netrc_path = match find_nix_setting(&conf, "netrc-file") {
            Some(path) => PathBuf::from(path),
            None => folder.join("netrc"),
        };
        let netrc_is_default = netrc_path == netrc_default || find_nix_setting(&conf, "netrc-file").is_some();
        Ok(Self {
            conf_path,
            conf_before,
            conf,
            netrc_path,
            netrc_is_default,
            netrc_before: None,
            netrc: None,
        })
    }

    fn netrc_line(&self) -> Option<String> {
        (!self.netrc_is_default).then(|| format!("netrc-file = {}", self.netrc_path.display()))
    }

    fn load_netrc(&mut self) -> Result<()> {
        self.netrc_before = read_if_there(&self.netrc_path)?;
        self.netrc = Some(MarkedFile::new(self.netrc_before.clone().unwrap_or_default()));
        Ok(())
    }

    /// Shows what changes and writes it. The token's file first: Nix must not meet the cache before it knows the token.
    fn finish(&self, context: &Context, dry_run: bool) -> Result<bool> {
        let netrc = self.netrc.as_ref().map(|netrc| (&self.netrc_path, &self.netrc_before, netrc, 0o600));
        let conf = Some((&self.conf_path, &self.conf_before, &self.conf, 0o644));
        let mut changed = false;
        for (path, before, after, mode) in [netrc, conf].into_iter().flatten() {
            let before = before.as_deref().unwrap_or_default();
            if before == after.text() {
                continue;
            }
            changed = true;
            show(context, path, before, after.text())?;
            if !dry_run {
                refuse_managed(path, before, after.text())?;
                write_whole(path, after.text(), mode).map_err(Error::io("write", path))?;
            }
        }
        Ok(changed)
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { attempt: format!("read {}", path.display()), source }),
    }
}

fn show(context: &Context, path: &Path, before: &str, after: &str) -> Result<()> {
    let changes = changes(before, after);
    let printer = &context.printer;
    if printer.json {
        let lines = |wanted: fn(&Change<'_>) -> bool| -> Vec<String> {
            changes
                .iter()
                .filter(|change| wanted(change))
                .map(|change| without_password(line_of(change)))
                .collect()
        };
        return printer.message(&json!({
            "message_type": "file_change", "path": path.display().to_string(),
            "removed": lines(|change| matches!(change, Change::Removed(_))),
            "added": lines(|change| matches!(change, Change::Added(_))),
        }));
    }
    printer.data(&format!("{}:", path.display()))?;
    for change in &changes {
        let sign = if matches!(change, Change::Removed(_)) { '-' } else { '+' };
        printer.data(&format!("{sign} {}", without_password(line_of(change))))?;
    }
    Ok(())
}

fn line_of<'a>(change: &Change<'a>) -> &'a str {
    match change {
        Change::Removed(line) | Change::Added(line) => line,
    }
}

/// Lines of a netrc file, fit to be shown.
fn without_password(line: &str) -> String {
    match line.split_once(" password ") {
        Some((before, _)) if line.starts_with("machine ") => format!("{before} password [redacted]"),
        _ => line.to_owned(),
    }
}

/// NixOS and home-manager link these files into the store, where they are read-only.
fn refuse_managed(path: &Path, before: &str, after: &str) -> Result<()> {
    let Ok(target) = fs::canonicalize(path) else { return Ok(()) };
    if !target.starts_with("/nix/store") {
        return Ok(());
    }
    let lines = changes(before, after)
        .into_iter()
        .filter_map(|change| match change {
            Change::Added(line) if !line.starts_with('#') => Some(without_password(line)),
            _ => None,
        })
        .collect();
    Err(Error::ManagedFile { path: path.to_owned(), managed: "NixOS or home-manager", lines })
}

/// Replaces a file by a whole one with the same mode, or makes it; a link stays a link. What becomes empty goes.
fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if text.is_empty() && !path.is_symlink() {
        return fs::remove_file(path);
    }
    let path = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".dormer.{:016x}", rand::random::<u64>()));
    let written = write_new(&temporary, text, &path, mode).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(temporary: &Path, text: &str, model: &Path, mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(temporary)?;
    if let Ok(metadata) = fs::metadata(model) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
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

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(
            without_password("machine h login dormer password eyJ"),
            "machine h login dormer password [redacted]"
        );
        assert_eq!(without_password("extra-substituters = x"), "extra-substituters = x");
    }

    #[test]
    fn files_are_replaced_whole_keep_their_mode_and_go_when_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nix/nix.conf");
        write_whole(&path, "a\n", 0o600).unwrap();
        write_whole(&path, "b\n", 0o644).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            write_whole(&link, "c\n", 0o644).unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&path).unwrap(), "c\n");
        }
        write_whole(&path, "", 0o644).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}
