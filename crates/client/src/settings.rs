//! The client's settings: the servers, the default server, and the tokens.
//!
//! The file is `$XDG_CONFIG_HOME/dormer/config.toml`, in the form of Attic's client:
//!
//! ```toml
//! default-server = "lab"
//! [servers.lab]
//! endpoint = "https://cache.example.org/"
//! token = "…"              # or token-file = "/run/secrets/token"
//! ```
//!
//! If there is no such file, the client reads Attic's `$XDG_CONFIG_HOME/attic/config.toml` instead,
//! else the file of the machine, `/etc/dormer/config.toml`. The client never writes to the last
//! two. The first save copies their contents into the user's own file, so that no server is lost.
//!
//! `DORMER_ENDPOINT` names a server without any file: see [`ResolvedServer::at`].
//!
//! Filters and the caches of the queue are optional:
//!
//! ```toml
//! [push]                              # for all caches
//! exclude = ["*-source"]
//! exclude-larger = "2G"
//! [push.caches."lab:team"]            # in addition, for one cache
//! exclude = ["linux-firmware-*"]
//! [queue]
//! caches = ["lab:team"]               # where `dormer hook` and `dormer watch` push
//! ```
//!
//! A token comes from `DORMER_TOKEN_<SERVER>` (the server's name in capitals, with `_` for other
//! signs), else from `DORMER_TOKEN`, else from the file. The variable of a pipeline therefore
//! overrides the settings of the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dormer_api::{CacheName, Secret};
use serde::{Deserialize, Serialize};

use crate::durable_file::replace_file;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::links::link_target;
use crate::push_filter::{ByteSize, NamePattern, PushFilter};

/// Looks up an environment variable. A function, so that tests control the environment.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process. Empty variables count as unset. A service such as the Nix
/// daemon has no `HOME`; then the system's user database names the home.
pub fn process_variables(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if name != "HOME" || value.is_some() {
        return value;
    }
    std::env::home_dir()?.into_os_string().into_string().ok().filter(|home| !home.is_empty())
}

/// The variable with the address of the server, for machines without settings.
pub const ENDPOINT_VARIABLE: &str = "DORMER_ENDPOINT";

/// The settings of the machine, for users without settings of their own, such as services.
pub const MACHINE_SETTINGS: &str = "/etc/dormer/config.toml";

/// The user's name for a server. It has the same characters as the name of a cache.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerName(CacheName);

impl ServerName {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The environment variable with a token for this server only.
    pub fn token_variable(&self) -> String {
        let sign = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        format!("DORMER_TOKEN_{}", self.as_str().chars().map(sign).collect::<String>())
    }

    /// A name for a server that no settings name: its host, with `-` for other signs.
    fn of_host(endpoint: &Endpoint) -> Self {
        /// Longest name of a server.
        const NAME_CHARS_MAX: usize = 50;
        let sign = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = endpoint
            .host()
            .trim_matches(['[', ']', ':', '.'])
            .chars()
            .take(NAME_CHARS_MAX)
            .map(sign)
            .collect();
        name.parse().unwrap_or_else(|_| "server".parse().expect("a valid name"))
    }
}

impl FromStr for ServerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|_| Error::ServerName { text: text.to_owned() })
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A cache as a user names it: `cache` on the default server, or `server:cache`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheRef {
    /// The server; `None` is the default one.
    pub server: Option<ServerName>,
    /// The cache.
    pub cache: CacheName,
}

impl FromStr for CacheRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::CacheRef { text: text.to_owned() };
        let (server, cache) = match text.split_once(':') {
            Some((server, cache)) => (Some(server.parse().map_err(|_| malformed())?), cache),
            None => (None, text),
        };
        Ok(Self { server, cache: cache.parse().map_err(|_| malformed())? })
    }
}

impl TryFrom<String> for CacheRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<CacheRef> for String {
    fn from(cache: CacheRef) -> Self {
        cache.to_string()
    }
}

impl fmt::Display for CacheRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "{server}:{}", self.cache),
            None => self.cache.fmt(f),
        }
    }
}

/// The settings file. Writing the file again keeps unknown keys but drops comments.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// The server of commands that name none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub default_server: Option<ServerName>,
    /// The servers by name.
    #[serde(default)]
    pub servers: BTreeMap<ServerName, ServerSettings>,
    /// What pushes leave out.
    #[serde(skip_serializing_if = "is_default", default)]
    pub push: PushSettings,
    /// What goes into the queue by itself.
    #[serde(skip_serializing_if = "is_default", default)]
    pub queue: QueueSettings,
    #[serde(flatten)]
    other: toml::Table,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Filters for all caches and for single ones.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PushSettings {
    /// Patterns of names that stay out.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exclude: Vec<NamePattern>,
    /// NARs that are larger stay out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exclude_larger: Option<ByteSize>,
    /// Also push paths that refer to those that stay out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow_incomplete: Option<bool>,
    /// Filters of single caches: `cache` on any server, or `server:cache`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub caches: BTreeMap<String, CacheFilterSettings>,
    #[serde(flatten)]
    other: toml::Table,
}

/// Filters of one cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheFilterSettings {
    /// Patterns of names that stay out, in addition to those for all caches.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exclude: Vec<NamePattern>,
    /// In place of the limit for all caches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exclude_larger: Option<ByteSize>,
    /// In place of the choice for all caches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow_incomplete: Option<bool>,
    #[serde(flatten)]
    other: toml::Table,
}

impl PushSettings {
    /// The filter for one cache. Patterns add up; the most specific limit and choice count.
    pub fn filter_for(&self, server: &ServerName, cache: &CacheName) -> PushFilter {
        let mut filter = PushFilter {
            exclude: self.exclude.clone(),
            exclude_larger: self.exclude_larger.map(u64::from),
            allow_incomplete: self.allow_incomplete.unwrap_or(false),
        };
        for key in [cache.to_string(), format!("{server}:{cache}")] {
            let Some(of_cache) = self.caches.get(&key) else { continue };
            filter.exclude.extend(of_cache.exclude.iter().cloned());
            filter.exclude_larger = of_cache.exclude_larger.map(u64::from).or(filter.exclude_larger);
            filter.allow_incomplete = of_cache.allow_incomplete.unwrap_or(filter.allow_incomplete);
        }
        filter
    }
}

/// What goes into the queue by itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueSettings {
    /// The caches of `dormer hook`, `dormer watch` and `dormer exec` that name none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub caches: Vec<CacheRef>,
    #[serde(flatten)]
    other: toml::Table,
}

impl Settings {
    /// Makes the paths of token files absolute. They are relative to the file that was read, and
    /// the client may write another file.
    fn find_token_files(&mut self, read_from: &Path) {
        let folder = read_from.parent().unwrap_or(Path::new(""));
        for server in self.servers.values_mut() {
            if let Some(file) = &mut server.token_file {
                *file = folder.join(&*file);
            }
        }
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServerSettings {
    /// The server's address: `https://…`.
    pub endpoint: String,
    /// The token itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Secret>,
    /// A file with the token, set by hand, relative to the folder of the settings. Used when
    /// `token` is not set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_file: Option<PathBuf>,
    #[serde(flatten)]
    other: toml::Table,
}

impl ServerSettings {
    /// A server without a token.
    pub fn new(endpoint: &Endpoint) -> Self {
        Self { endpoint: endpoint.to_string(), token: None, token_file: None, other: toml::Table::new() }
    }
}

/// Where the client looks for settings. The first file that exists counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsPaths {
    /// Dormer's file: read first, and the only file that the client writes. A user without a home
    /// has none.
    pub dormer: Option<PathBuf>,
    /// Attic's file: read if Dormer's file does not exist.
    pub attic: Option<PathBuf>,
    /// The machine's file: read if neither exists.
    pub machine: PathBuf,
}

impl SettingsPaths {
    /// The paths of the XDG base directory specification: `$XDG_CONFIG_HOME`, if it is absolute,
    /// else `$HOME/.config`; then [`MACHINE_SETTINGS`].
    pub fn from_variables(variables: Variables<'_>) -> Self {
        let absolute = |name| variables(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder =
            absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let below = |file| folder.as_ref().map(|folder| folder.join(file));
        Self {
            dormer: below("dormer/config.toml"),
            attic: below("attic/config.toml"),
            machine: MACHINE_SETTINGS.into(),
        }
    }
}

/// Settings, with the file that they came from and the file to write.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedSettings {
    /// The settings; change them and [`LoadedSettings::save`].
    pub settings: Settings,
    /// The file that was read, if any.
    pub read_from: Option<PathBuf>,
    /// The file to write, if the user has a home.
    pub path: Option<PathBuf>,
}

impl LoadedSettings {
    /// Reads Dormer's settings, else Attic's, else the machine's, else starts with none. The
    /// machine's file may be for others only: a user that cannot read it starts with none.
    pub fn load(paths: &SettingsPaths) -> Result<Self> {
        let SettingsPaths { dormer, attic, machine } = paths;
        for path in dormer.iter().chain(attic).chain([machine]) {
            // The text may hold tokens, so its memory is zeroed too.
            match std::fs::read_to_string(path).map(Secret::new) {
                Ok(text) => {
                    let mut settings = parse(path, text.expose())?;
                    settings.find_token_files(path);
                    return Ok(Self { settings, read_from: Some(path.clone()), path: dormer.clone() });
                }
                // A home such as /dev/null is not even a folder.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) if path == machine && error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(source) => return Err(Error::ReadSettings { path: path.clone(), source }),
            }
        }
        Ok(Self { settings: Settings::default(), read_from: None, path: dormer.clone() })
    }

    /// Writes Dormer's settings file: completely or not at all, and readable by its owner only,
    /// because it may contain tokens.
    pub fn save(&self) -> Result<()> {
        // The table's writer puts plain values before tables, as TOML requires.
        let table = toml::Table::try_from(&self.settings).map_err(Error::EncodeSettings)?;
        let text = toml::to_string_pretty(&table).map(Secret::new).map_err(Error::EncodeSettings)?;
        let path = self.path.as_ref().ok_or(Error::NoSettingsFolder)?;
        write_private(path, text.expose().as_bytes())
            .map_err(|source| Error::WriteSettings { path: path.clone(), source })
    }

    /// The server to talk to: the named one, else the default one, else the only one. The result
    /// includes the token that applies.
    pub fn resolve_server(
        &self,
        name: Option<&ServerName>,
        variables: Variables<'_>,
    ) -> Result<ResolvedServer> {
        let (name, server) = self.find_server(name)?;
        let token = match (token_from(name, variables), &server.token, &server.token_file) {
            (Some(token), ..) => Some(token),
            (None, Some(token), _) => Some(token.clone()),
            (None, None, Some(file)) => Some(read_token_file(name, file)?),
            (None, None, None) => None,
        };
        Ok(ResolvedServer { name: name.clone(), endpoint: server.endpoint.parse()?, token })
    }

    /// The address of the server that [`LoadedSettings::resolve_server`] finds. Reads no token.
    pub fn endpoint_of(&self, name: Option<&ServerName>) -> Result<Endpoint> {
        self.find_server(name)?.1.endpoint.parse()
    }

    /// The server at this address, if the settings have it, rather with a token than without. Its
    /// token is its own: `DORMER_TOKEN` is for the server that a command names, or the default one.
    pub fn server_at(&self, endpoint: &Endpoint, variables: Variables<'_>) -> Result<Option<ResolvedServer>> {
        let is_there =
            |server: &ServerSettings| server.endpoint.parse().is_ok_and(|at: Endpoint| at == *endpoint);
        let own = |name: &str| if name == GENERAL_TOKEN_VARIABLE { None } else { variables(name) };
        let (mut found, mut failed) = (None, None);
        for (name, _) in self.settings.servers.iter().filter(|(_, server)| is_there(server)) {
            match self.resolve_server(Some(name), &own) {
                Ok(server) if server.token.is_some() => return Ok(Some(server)),
                Ok(server) => drop(found.get_or_insert(server)),
                // Another login may be for the same address.
                Err(error) => failed = Some(error),
            }
        }
        match (found, failed) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    fn find_server<'a>(
        &'a self,
        name: Option<&'a ServerName>,
    ) -> Result<(&'a ServerName, &'a ServerSettings)> {
        let settings = &self.settings;
        let only = || {
            let mut names = settings.servers.keys();
            names.next().filter(|_| names.next().is_none())
        };
        let name = name.or(settings.default_server.as_ref()).or_else(only).ok_or(Error::NoDefaultServer)?;
        let server = settings.servers.get(name);
        Ok((name, server.ok_or_else(|| Error::UnknownServer { name: name.to_string() })?))
    }
}

/// The variable with the token for the server of a command.
const GENERAL_TOKEN_VARIABLE: &str = "DORMER_TOKEN";

fn token_from(server: &ServerName, variables: Variables<'_>) -> Option<Secret> {
    let text = variables(&server.token_variable()).or_else(|| variables(GENERAL_TOKEN_VARIABLE))?;
    Some(Secret::new(text.trim()))
}

fn read_token_file(server: &ServerName, path: &Path) -> Result<Secret> {
    match std::fs::read_to_string(path).map(Secret::new) {
        Ok(text) => Ok(Secret::new(text.expose().trim())),
        Err(source) => {
            Err(Error::ReadTokenFile { server: server.to_string(), path: path.to_owned(), source })
        }
    }
}

/// A server with everything needed to talk to it.
#[derive(Debug, Clone)]
pub struct ResolvedServer {
    /// The server's name in the settings.
    pub name: ServerName,
    /// The server's address.
    pub endpoint: Endpoint,
    /// The token to send, if any.
    pub token: Option<Secret>,
}

impl ResolvedServer {
    /// The server at an address that no settings name. No file is read: the token comes from a
    /// variable, so a token in the settings never goes to another address. Without a name, the
    /// host gives one.
    pub fn at(endpoint: Endpoint, name: Option<&ServerName>, variables: Variables<'_>) -> Self {
        let name = name.cloned().unwrap_or_else(|| ServerName::of_host(&endpoint));
        let token = token_from(&name, variables);
        Self { name, endpoint, token }
    }
}

fn parse(path: &Path, text: &str) -> Result<Settings> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::ParseSettings { path: path.to_owned(), line, message: error.message().to_owned() }
    })
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A settings file may be a link into a folder of dotfiles. Writing replaces the link's target,
    // not the link.
    let path = link_target(path)?;
    std::fs::create_dir_all(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    replace_file(&path, 0o600, |file| file.write_all(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_for_all_caches_and_for_one_add_up() {
        let text = r#"
            [push]
            exclude = ["*-source"]
            exclude-larger = "2G"
            [push.caches.team]
            exclude = ["vm-*"]
            [push.caches."lab:team"]
            exclude-larger = 1000
            allow-incomplete = true
            [queue]
            caches = ["team", "lab:main"]
        "#;
        let settings = parse(Path::new("x"), text).unwrap();
        let filter = |server: &str, cache: &str| {
            let filter = settings.push.filter_for(&server.parse().unwrap(), &cache.parse().unwrap());
            let patterns: Vec<String> = filter.exclude.iter().map(ToString::to_string).collect();
            (patterns.join(" "), filter.exclude_larger, filter.allow_incomplete)
        };
        assert_eq!(filter("lab", "main"), ("*-source".to_owned(), Some(2 << 30), false));
        assert_eq!(filter("other", "team"), ("*-source vm-*".to_owned(), Some(2 << 30), false));
        assert_eq!(filter("lab", "team"), ("*-source vm-*".to_owned(), Some(1000), true));
        let written = toml::to_string(&toml::Table::try_from(&settings).unwrap()).unwrap();
        assert_eq!(parse(Path::new("x"), &written).unwrap(), settings);
        for wrong in
            ["[push]\nexclude = [\"[\"]", "[push]\nexclude-larger = \"big\"", "[queue]\ncaches = [\"a b\"]"]
        {
            assert!(matches!(parse(Path::new("x"), wrong), Err(Error::ParseSettings { .. })), "{wrong}");
        }
    }

    fn no_variables(_: &str) -> Option<String> {
        None
    }

    /// The files of a user, all of them in one folder.
    struct Files {
        dormer: PathBuf,
        attic: PathBuf,
        paths: SettingsPaths,
    }

    impl std::ops::Deref for Files {
        type Target = SettingsPaths;

        fn deref(&self) -> &SettingsPaths {
            &self.paths
        }
    }

    fn folder() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap().to_owned();
        let found = SettingsPaths::from_variables(&|name| (name == "XDG_CONFIG_HOME").then(|| root.clone()));
        let paths = SettingsPaths { machine: folder.path().join("etc/config.toml"), ..found };
        let (dormer, attic) = (paths.dormer.clone().unwrap(), paths.attic.clone().unwrap());
        (folder, Files { dormer, attic, paths })
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    const ATTIC: &str = concat!(
        "default-server = \"lab\"\n\n[servers.lab]\nendpoint = \"http://localhost:8080\"\ntoken = \"eyJ.a.b\"\n",
        "[servers.other]\nendpoint = \"https://example.org/sub/\"\ntoken-file = \"token\"\n"
    );

    #[test]
    fn settings_live_below_xdg_config_home_or_home_or_in_etc() {
        let paths = |pairs: &'static [(&str, &str)]| {
            SettingsPaths::from_variables(&move |name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        for (pairs, expected) in [
            (&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")][..], Some("/x/dormer/config.toml")),
            (&[("HOME", "/h")], Some("/h/.config/dormer/config.toml")),
            (&[("XDG_CONFIG_HOME", "rel"), ("HOME", "/h")], Some("/h/.config/dormer/config.toml")),
            (&[("HOME", "rel")], None),
            (&[], None),
        ] {
            let paths = paths(pairs);
            assert_eq!(paths.dormer.as_deref(), expected.map(Path::new), "{pairs:?}");
            assert_eq!(paths.dormer.is_some(), paths.attic.is_some());
            assert_eq!(paths.machine, Path::new("/etc/dormer/config.toml"));
        }
    }

    /// Machines as services find them: which files exist, and the server that counts.
    #[test]
    fn the_nearest_settings_count_and_the_machines_are_the_last() {
        let server = |name: &str| format!("[servers.{name}]\nendpoint = \"http://{name}\"\n");
        for (own, attic, machine, expected) in [
            (true, true, true, Some("own")),
            (false, true, true, Some("attic")),
            (false, false, true, Some("machine")),
            (false, false, false, None),
        ] {
            let (_folder, paths) = folder();
            for (is_there, path, name) in [
                (own, &paths.dormer, "own"),
                (attic, &paths.attic, "attic"),
                (machine, &paths.machine, "machine"),
            ] {
                if is_there {
                    write(path, &server(name));
                }
            }
            let mut loaded = LoadedSettings::load(&paths).unwrap();
            let found = loaded.resolve_server(None, &no_variables).ok().map(|server| server.name.to_string());
            assert_eq!(found.as_deref(), expected);
            // A save never touches the files of others.
            loaded.settings.default_server = Some("other".parse().unwrap());
            loaded.save().unwrap();
            for path in [&paths.attic, &paths.machine] {
                assert!(!std::fs::read_to_string(path).unwrap_or_default().contains("other"));
            }
        }
    }

    #[test]
    fn without_a_home_the_machines_settings_are_read_and_nothing_can_be_saved() {
        let (_folder, files) = folder();
        write(&files.machine, "[servers.lab]\nendpoint = \"http://a\"\ntoken-file = \"token\"\n");
        write(&files.machine.with_file_name("token"), "of-the-machine\n");
        let homes = [
            (None, None),
            // The home of users that must not have one.
            (
                Some("/dev/null/.config/dormer/config.toml".into()),
                Some("/dev/null/.config/attic/config.toml".into()),
            ),
            (
                Some("/nowhere/.config/dormer/config.toml".into()),
                Some("/nowhere/.config/attic/config.toml".into()),
            ),
        ];
        for (dormer, attic) in homes {
            let paths = SettingsPaths { dormer: dormer.clone(), attic, machine: files.machine.clone() };
            let loaded = LoadedSettings::load(&paths).unwrap();
            let server = loaded.resolve_server(None, &no_variables).unwrap();
            assert_eq!(server.token.unwrap().expose(), "of-the-machine");
            if dormer.is_none() {
                assert!(matches!(loaded.save(), Err(Error::NoSettingsFolder)));
            }
        }
    }

    #[test]
    fn an_address_needs_no_settings_and_takes_its_token_from_variables() {
        let at = |endpoint: &str, name: Option<&str>, variables: Variables<'_>| {
            let name: Option<ServerName> = name.map(|name| name.parse().unwrap());
            let server = ResolvedServer::at(endpoint.parse().unwrap(), name.as_ref(), variables);
            (server.name.to_string(), server.token.map(|token| token.expose().to_owned()))
        };
        let general = |name: &str| (name == "DORMER_TOKEN").then(|| "general\n".to_owned());
        let named = |name: &str| name.starts_with("DORMER_TOKEN").then(|| name.to_owned());
        assert_eq!(at("https://a.b", None, &no_variables), ("a-b".to_owned(), None));
        assert_eq!(at("https://a.b", None, &general).1.unwrap(), "general");
        assert_eq!(at("https://a.b", None, &named).1.unwrap(), "DORMER_TOKEN_A_B");
        assert_eq!(
            at("https://a.b", Some("lab"), &named),
            ("lab".to_owned(), Some("DORMER_TOKEN_LAB".to_owned()))
        );
        for (endpoint, name) in [
            ("http://127.0.0.1:8080", "127-0-0-1"),
            ("http://[::1]:8080", "1"),
            ("http://[fe80::]/x", "fe80"),
        ] {
            assert_eq!(at(endpoint, None, &no_variables).0, name);
        }
        assert!(at(&format!("http://{}.org", "a".repeat(60)), None, &no_variables).0.len() <= 50);
    }

    #[test]
    fn attics_settings_are_read_when_there_are_none_of_ours_and_never_written() {
        let (_folder, paths) = folder();
        write(&paths.attic, ATTIC);
        write(&paths.attic.with_file_name("token"), "from-file\n");
        let mut loaded = LoadedSettings::load(&paths).unwrap();
        assert_eq!(loaded.read_from.as_ref(), Some(&paths.attic));
        let server = loaded.resolve_server(None, &no_variables).unwrap();
        assert_eq!(
            (server.name.as_str(), server.endpoint.to_string().as_str()),
            ("lab", "http://localhost:8080/")
        );
        assert_eq!(server.token.unwrap().expose(), "eyJ.a.b");
        let other = loaded.resolve_server(Some(&"other".parse().unwrap()), &no_variables).unwrap();
        assert_eq!(other.token.unwrap().expose(), "from-file");

        let added = ServerSettings::new(&"https://new.example.org".parse().unwrap());
        loaded.settings.servers.insert("new".parse().unwrap(), added);
        loaded.save().unwrap();
        assert_eq!(std::fs::read_to_string(&paths.attic).unwrap(), ATTIC);
        let again = LoadedSettings::load(&paths).unwrap();
        assert_eq!(again.read_from.as_ref(), Some(&paths.dormer));
        assert_eq!(again.settings, loaded.settings);
        assert_eq!(again.settings.servers.len(), 3);
        let other = again.resolve_server(Some(&"other".parse().unwrap()), &no_variables).unwrap();
        assert_eq!(other.token.unwrap().expose(), "from-file", "the file is where Attic's settings said");
    }

    #[test]
    fn ours_win_over_attics() {
        let (_folder, paths) = folder();
        write(&paths.attic, ATTIC);
        write(&paths.dormer, "[servers.mine]\nendpoint = \"http://a\"\n");
        let loaded = LoadedSettings::load(&paths).unwrap();
        // The only server is the default server.
        let server = loaded.resolve_server(None, &no_variables).unwrap();
        assert_eq!((server.name.as_str(), server.token), ("mine", None));
    }

    #[test]
    fn variables_beat_the_file_and_the_servers_own_beats_the_general_one() {
        let (_folder, paths) = folder();
        write(&paths.dormer, &ATTIC.replace("lab", "my-lab"));
        let loaded = LoadedSettings::load(&paths).unwrap();
        let token = |variables: Variables<'_>| {
            loaded.resolve_server(None, variables).unwrap().token.unwrap().expose().to_owned()
        };
        assert_eq!(token(&no_variables), "eyJ.a.b");
        assert_eq!(token(&|name| (name == "DORMER_TOKEN").then(|| "general\n".to_owned())), "general");
        assert_eq!(
            token(&|name| name.starts_with("DORMER_TOKEN").then(|| name.to_owned())),
            "DORMER_TOKEN_MY_LAB"
        );
    }

    #[test]
    fn a_server_is_found_by_its_address_with_its_own_token_only() {
        let (_folder, paths) = folder();
        let more = "[servers.bare]\nendpoint = \"http://a\"\n[servers.full]\nendpoint = \"http://a/\"\ntoken = \"own\"\n";
        write(&paths.dormer, &format!("{ATTIC}{more}"));
        let loaded = LoadedSettings::load(&paths).unwrap();
        let at = |endpoint: &str, variables: Variables<'_>| {
            let found = loaded.server_at(&endpoint.parse().unwrap(), variables).unwrap()?;
            Some((found.name.to_string(), found.token.map(|token| token.expose().to_owned())))
        };
        let found = |name: &str, token: &str| Some((name.to_owned(), Some(token.to_owned())));
        let all = |name: &str| name.starts_with("DORMER_TOKEN").then(|| name.to_owned());
        let general = |name: &str| (name == "DORMER_TOKEN").then(|| name.to_owned());
        assert_eq!(at("http://a", &general), found("full", "own"));
        assert_eq!(at("http://a/", &all), found("bare", "DORMER_TOKEN_BARE"));
        assert_eq!(at("http://localhost:8080", &general), found("lab", "eyJ.a.b"));
        assert_eq!(at("https://localhost:8080", &general), None);
        let lab: ServerName = "lab".parse().unwrap();
        for name in [None, Some(&lab)] {
            assert_eq!(loaded.endpoint_of(name).unwrap().to_string(), "http://localhost:8080/");
        }
    }

    #[test]
    fn a_saved_file_is_private_whole_and_keeps_unknown_keys() {
        let (folder, paths) = folder();
        let text =
            "future = 7\n[servers.lab]\nendpoint = \"http://a\"\ncolour = \"red\"\n[watch]\npause = 3\n";
        write(&paths.dormer, text);
        let mut loaded = LoadedSettings::load(&paths).unwrap();
        loaded.settings.default_server = Some("lab".parse().unwrap());
        loaded.save().unwrap();
        let saved: toml::Table = std::fs::read_to_string(&paths.dormer).unwrap().parse().unwrap();
        let mut expected: toml::Table = text.parse().unwrap();
        expected.insert("default-server".to_owned(), "lab".into());
        assert_eq!(saved, expected);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&paths.dormer).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let names = std::fs::read_dir(folder.path().join("dormer")).unwrap();
        assert_eq!(names.count(), 1, "a temporary file was left behind");
    }

    #[cfg(unix)]
    #[test]
    fn a_settings_file_that_is_a_link_stays_one() {
        let (folder, paths) = folder();
        let target = folder.path().join("dotfiles.toml");
        std::fs::write(&target, "[servers.lab]\nendpoint = \"http://a\"\n").unwrap();
        std::fs::create_dir_all(paths.dormer.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&target, &paths.dormer).unwrap();
        let mut loaded = LoadedSettings::load(&paths).unwrap();
        loaded.settings.default_server = Some("lab".parse().unwrap());
        loaded.save().unwrap();
        assert!(paths.dormer.is_symlink());
        assert!(std::fs::read_to_string(&target).unwrap().contains("default-server"));
        // The target may be gone for a while.
        std::fs::remove_file(&target).unwrap();
        loaded.save().unwrap();
        assert!(paths.dormer.is_symlink());
        assert!(std::fs::read_to_string(&target).unwrap().contains("default-server"));
    }

    #[test]
    fn tokens_do_not_show_in_debug_output_or_errors() {
        let (_folder, paths) = folder();
        write(&paths.dormer, ATTIC);
        let loaded = LoadedSettings::load(&paths).unwrap();
        assert!(!format!("{loaded:?}").contains("eyJ"));
        assert!(!format!("{:?}", loaded.resolve_server(None, &no_variables)).contains("eyJ"));
        write(&paths.dormer, "[servers.lab]\nendpoint = 5\ntoken = \"eyJ.a.b\"\n");
        let error = LoadedSettings::load(&paths).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(!format!("{error} {error:?}").contains("eyJ"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (_folder, paths) = folder();
        let loaded = LoadedSettings::load(&paths).unwrap();
        assert!(matches!(loaded.resolve_server(None, &no_variables), Err(Error::NoDefaultServer)));
        let name: ServerName = "lab".parse().unwrap();
        assert!(matches!(
            loaded.resolve_server(Some(&name), &no_variables),
            Err(Error::UnknownServer { .. })
        ));
        write(&paths.dormer, "[servers.lab]\nendpoint = \"http://a\"\ntoken-file = \"/nowhere/token\"\n");
        let loaded = LoadedSettings::load(&paths).unwrap();
        assert!(matches!(loaded.resolve_server(None, &no_variables), Err(Error::ReadTokenFile { .. })));
    }

    #[test]
    fn cache_references_may_name_a_server() {
        let read =
            |text: &str| text.parse::<CacheRef>().map(|cache| (cache.to_string(), cache.server.is_some()));
        assert_eq!(read("main").unwrap(), ("main".to_owned(), false));
        assert_eq!(read("lab:main").unwrap(), ("lab:main".to_owned(), true));
        for text in ["", ":", "lab:", ":main", "a:b:c", "http://a", "lab: main", "-x"] {
            assert!(matches!(read(text), Err(Error::CacheRef { .. })), "{text:?}");
        }
    }
}
