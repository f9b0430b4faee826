//! Why something the client attempted did not work. Advice is the command line's business; the variants tell it what
//! happened precisely enough to give some.

use std::io;
use std::path::PathBuf;

use dormer_api::{CacheName, ErrorName};
use dormer_nix::{StoreDir, StorePath};

use crate::dump::DumpError;
use crate::settings::ServerName;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong on the client's side, and what the server said went wrong on its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Settings
    /// Neither `XDG_CONFIG_HOME` nor `HOME` says where settings live.
    #[error("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for settings")]
    NoSettingsFolder,
    /// The settings exist but cannot be read.
    #[error("reading settings from {}", path.display())]
    ReadSettings {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The settings are not what they should be. The text is not repeated: it may hold a token.
    #[error("reading settings from {}: line {line}: {message}", path.display())]
    ParseSettings {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The settings cannot be written as TOML.
    #[error("putting settings into words")]
    EncodeSettings(#[source] toml::ser::Error),
    /// The settings could not be stored.
    #[error("writing settings to {}", path.display())]
    WriteSettings {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A `token-file` cannot be read.
    #[error("reading the token of server {server} from {}", path.display())]
    ReadTokenFile {
        /// The server.
        server: ServerName,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A token with line breaks or other bytes that no header can hold.
    #[error("the token holds characters that no token has")]
    MalformedToken,
    /// A server that the settings do not know.
    #[error("there is no server {name} in the settings")]
    UnknownServer {
        /// The name.
        name: ServerName,
    },
    /// No server was named, and the settings do not name a default one.
    #[error("no server is named and no default server is set")]
    NoDefaultServer,
    /// Not `cache` or `server:cache`.
    #[error("{text:?} is not a cache: expected its name, or a server's name, a colon and the cache's name")]
    CacheRef {
        /// What was read.
        text: String,
    },
    /// Not a server's name.
    #[error(
        "{text:?} is not the name of a server: expected 1 to 50 of A-Z a-z 0-9 - _ +, first a letter or digit"
    )]
    ServerName {
        /// What was read.
        text: String,
    },
    /// Not the address of a server.
    #[error("{text:?} is not the address of a server: {reason}")]
    Endpoint {
        /// What was read, without a password.
        text: String,
        /// What is wrong with it.
        reason: String,
    },

    // The server
    /// The HTTP client could not be set up, for example because the system's certificates are unreadable.
    #[error("setting up the HTTP client")]
    HttpClient(#[source] reqwest::Error),
    /// No answer, also not after several tries.
    #[error("{action}: no answer from {endpoint} after {tries} {}", if *tries == 1 { "try" } else { "tries" })]
    Unreachable {
        /// What was attempted.
        action: String,
        /// The server.
        endpoint: String,
        /// How many times.
        tries: u32,
        /// What happened the last time.
        source: reqwest::Error,
    },
    /// Neither was anything sent nor did anything come for this long.
    #[error("{action}: nothing moved for {seconds} seconds")]
    Stalled {
        /// What was attempted.
        action: String,
        /// The time-out.
        seconds: u64,
    },
    /// 401: no token, one that is expired or not from here, or one without any permission on the cache, which may not
    /// even exist.
    #[error("{action}: the server does not accept {}: {message}", if *with_token { "the token for this" } else { "this without a token" })]
    Unauthorized {
        /// What was attempted.
        action: String,
        /// Whether a token was sent.
        with_token: bool,
        /// The server's words.
        message: String,
    },
    /// 403: the token lacks a permission.
    #[error("{action}: the token does not permit this: {message}")]
    Forbidden {
        /// What was attempted.
        action: String,
        /// The server's words.
        message: String,
    },
    /// The cache does not exist. The server says so.
    #[error("{action}: {message}")]
    NoSuchCache {
        /// What was attempted.
        action: String,
        /// The server's words.
        message: String,
    },
    /// A cache of that name exists.
    #[error("{action}: {message}")]
    CacheExists {
        /// What was attempted.
        action: String,
        /// The server's words.
        message: String,
    },
    /// Any other answer that is not a success.
    #[error("{action}: the server answered {status}: {message}")]
    Refused {
        /// What was attempted.
        action: String,
        /// The HTTP status.
        status: u16,
        /// The error's name, if it is one we know.
        name: Option<ErrorName>,
        /// The server's words.
        message: String,
    },
    /// 429, 503 and other passing states, to the last try.
    #[error("{action}: the server answered {status} {tries} times: {message}")]
    Unavailable {
        /// What was attempted.
        action: String,
        /// The last HTTP status.
        status: u16,
        /// How many times it was tried.
        tries: u32,
        /// The server's words.
        message: String,
    },
    /// A success whose body is not what it should be: there is another program at that address.
    #[error("{action}: the answer is not what a binary cache server says")]
    Answer {
        /// What was attempted.
        action: String,
        /// What was wrong with it.
        source: serde_json::Error,
    },
    /// A success whose body is longer than any such answer.
    #[error("{action}: the answer is longer than {max} bytes")]
    AnswerTooLarge {
        /// What was attempted.
        action: String,
        /// The limit in bytes.
        max: usize,
    },

    // The local store
    /// There is no `nix` to ask.
    #[error("{program:?} was not found: it is needed to read the local store")]
    NixMissing {
        /// What was run.
        program: String,
    },
    /// `nix` could not be run.
    #[error("running {program:?}")]
    NixRun {
        /// What was run.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// `nix` ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    NixFailed {
        /// What was run.
        command: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// `nix` printed something that is not path information.
    #[error("reading the output of `nix path-info`")]
    PathInfoJson(#[source] serde_json::Error),
    /// `nix` printed something that is not its settings.
    #[error("reading the output of `nix config show`")]
    NixConfigJson(#[source] serde_json::Error),
    /// A field of the path information.
    #[error("reading the output of `nix path-info`: {field} of {path}: {reason}")]
    PathInfoField {
        /// The path it is about.
        path: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A path that is not in the store, though its name looks so.
    #[error("{path} is not valid in the local store")]
    InvalidPath {
        /// The path.
        path: String,
    },
    /// An argument that leads nowhere.
    #[error("looking up {}", path.display())]
    ResolvePath {
        /// The argument.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An argument that leads to something outside of the store.
    #[error("{} is not in the store {store_dir}", path.display())]
    NotInStore {
        /// The argument.
        path: PathBuf,
        /// The store.
        store_dir: StoreDir,
    },
    /// A name in the store that is no store path.
    #[error("{} is not a store path", path.display())]
    NotAStorePath {
        /// The argument.
        path: PathBuf,
        /// What is wrong with it.
        source: dormer_nix::Error,
    },
    /// Reading a store path from the disk failed, or what was read is damaged.
    #[error("reading {path}")]
    Dump {
        /// The full path.
        path: String,
        /// What happened.
        source: DumpError,
    },

    // Pushing
    /// The cache holds paths of another store.
    #[error("cache {cache} is for the store {cache_store_dir}, but {path} is from {store_dir}")]
    StoreDirMismatch {
        /// The cache.
        cache: CacheName,
        /// Its store.
        cache_store_dir: StoreDir,
        /// The path.
        path: StorePath,
        /// The local store.
        store_dir: StoreDir,
    },
    /// The metadata of a path cannot be sent.
    #[error("describing {path}")]
    Describe {
        /// The path.
        path: StorePath,
        /// Why not.
        source: dormer_api::Error,
    },
}

impl Error {
    /// Whether what follows would fail in the same way, so that it is better not tried: the server is not there, or does
    /// not want us.
    pub fn is_fatal_for_push(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NoSuchCache { .. } => true,
            // A 500 may be about one path; the others say that nobody is at home.
            Self::Unavailable { status, .. } => *status != 500,
            _ => false,
        }
    }
}
