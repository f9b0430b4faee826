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
//! overrides the settings of the machine. An address of the command line or of `DORMER_ENDPOINT`
//! gets `DORMER_TOKEN` alone.

mod filters;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use dormer_api::Secret;
use serde::{Deserialize, Serialize};

pub use self::filters::{CacheFilterSettings, PushSettings};
pub use self::names::{CacheRef, ServerName};

use crate::durable_file::replace_file;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::links::link_target;

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

/// The variable with the token of the server that a command talks to.
pub const GENERAL_TOKEN_VARIABLE: &str = "DORMER_TOKEN";

fn token_from(server: &ServerName, variables: Variables<'_>) -> Option<Secret> {
    secret_from(&server.token_variable(), variables)
        .or_else(|| secret_from(GENERAL_TOKEN_VARIABLE, variables))
}

fn secret_from(variable: &str, variables: Variables<'_>) -> Option<Secret> {
    Some(Secret::new(variables(variable)?.trim()))
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
    /// The server at an address that no settings name. The token is that of `DORMER_TOKEN`: one in
    /// a file, or in the variable of a name, belongs to a server of the settings. Without a name,
    /// the host gives one.
    pub fn at(endpoint: Endpoint, name: Option<&ServerName>, variables: Variables<'_>) -> Self {
        let name = name.cloned().unwrap_or_else(|| ServerName::of_host(&endpoint));
        Self { name, endpoint, token: secret_from(GENERAL_TOKEN_VARIABLE, variables) }
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
