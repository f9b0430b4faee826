//! Why an attempt of the client failed. The command line gives advice; the variants are precise
//! enough for that.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormer_api::{CacheName, ErrorName};
use dormer_nix::{StoreDir, StorePath};

use crate::dump::DumpError;
use crate::fetch_error::FetchError;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can fail in the client, and every failure that the server reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Settings
    /// Neither `XDG_CONFIG_HOME` nor `HOME` nor the system's user database gives a place for
    /// settings.
    #[error(
        "neither XDG_CONFIG_HOME nor HOME is set and this user has no home, so there is no place for settings"
    )]
    NoSettingsFolder,
    /// The settings exist but cannot be read.
    #[error("reading settings from {}", path.display())]
    ReadSettings {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The settings are not valid. The error does not repeat their text, because it may contain a
    /// token.
    #[error("reading settings from {}: line {line}: {message}", path.display())]
    ParseSettings {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, counted from 1.
        line: usize,
        /// What is wrong on this line.
        message: String,
    },
    /// The settings cannot be written as TOML.
    #[error("encoding the settings")]
    EncodeSettings(#[source] toml::ser::Error),
    /// The settings could not be written.
    #[error("writing settings to {}", path.display())]
    WriteSettings {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A `token-file` cannot be read.
    #[error("reading the token of server {server} from {}", path.display())]
    ReadTokenFile {
        /// The server.
        server: String,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The token has line breaks or other bytes that no header can hold.
    #[error("the token has characters that no token can have")]
    MalformedToken,
    /// The settings do not have this server.
    #[error("there is no server {name} in the settings")]
    UnknownServer {
        /// The name.
        name: String,
    },
    /// The command named no server, and the settings have no default server.
    #[error("no server is named and no default server is set")]
    NoDefaultServer,
    /// The text is not `cache` or `server:cache`.
    #[error("{text:?} is not a cache: expected its name, or a server's name, a colon and the cache's name")]
    CacheRef {
        /// The text.
        text: String,
    },
    /// The text is not the name of a server.
    #[error(
        "{text:?} is not the name of a server: expected 1 to 50 of A-Z a-z 0-9 - _ +, first a letter or digit"
    )]
    ServerName {
        /// The text.
        text: String,
    },
    /// The text is not the address of a server.
    #[error("{text:?} is not the address of a server: {reason}")]
    Endpoint {
        /// The text, without a password.
        text: String,
        /// Why it is not an address.
        reason: String,
    },
    /// The text is not the address of a cache.
    #[error("{text:?} is not the address of a cache: {reason}")]
    SubstituterUrl {
        /// The text, without secrets.
        text: String,
        /// Why it is not an address.
        reason: String,
    },

    /// The text is not a pattern for names.
    #[error("{text:?} is not a pattern for the names of store paths")]
    NamePattern {
        /// The text.
        text: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },
    /// The text is not a size.
    #[error("{text:?} is not a size such as 2G, 500 MiB or 1000000")]
    Size {
        /// The text.
        text: String,
    },

    // The server
    /// The HTTP client could not be set up, for example because the system's certificates are
    /// unreadable.
    #[error("setting up the HTTP client")]
    HttpClient(#[source] reqwest::Error),
    /// The file with the certificates to trust cannot be read.
    #[error("reading the certificates that {variable} names from {}", path.display())]
    ReadCertificates {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file with the certificates to trust has none.
    #[error("{} holds no certificates, and {variable} names it", path.display())]
    NoCertificates {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The server did not answer in any try.
    #[error("{action}: no answer from {endpoint} after {tries} {}", if *tries == 1 { "try" } else { "tries" })]
    Unreachable {
        /// The attempted action.
        action: String,
        /// The server.
        endpoint: String,
        /// Number of tries.
        tries: u32,
        /// The error of the last try.
        source: reqwest::Error,
    },
    /// Nothing was sent or received for this long.
    #[error("{action}: nothing moved for {seconds} seconds")]
    Stalled {
        /// The attempted action.
        action: String,
        /// The time-out.
        seconds: u64,
    },
    /// 401: no token, an expired or foreign token, or a token without any permission on the cache.
    /// The cache may not even exist.
    #[error(
        "{action}: the server does not accept {}{}: {message}",
        if *with_token { "the token for this" } else { "this without a token" },
        expiry.as_ref().map_or(String::new(), |expiry| format!(" ({expiry})"))
    )]
    Unauthorized {
        /// The attempted action.
        action: String,
        /// Whether a token was sent.
        with_token: bool,
        /// What the token says about its expiry.
        expiry: Option<String>,
        /// The message of the server.
        message: String,
    },
    /// 403: the token lacks a permission.
    #[error("{action}: the token does not permit this: {message}")]
    Forbidden {
        /// The attempted action.
        action: String,
        /// The message of the server.
        message: String,
    },
    /// The server says that the cache does not exist.
    #[error("{action}: {message}")]
    NoSuchCache {
        /// The attempted action.
        action: String,
        /// The message of the server.
        message: String,
    },
    /// A cache of that name exists.
    #[error("{action}: {message}")]
    CacheExists {
        /// The attempted action.
        action: String,
        /// The message of the server.
        message: String,
    },
    /// A redirect that the client does not follow (`redirects`).
    #[error("{action}: the server answered {status}: it redirects to {location}")]
    Redirected {
        /// The attempted action.
        action: String,
        /// The HTTP status.
        status: u16,
        /// Where to: foreign text on one line.
        location: String,
    },
    /// Any other answer that is not a success.
    #[error("{action}: the server answered {status}: {message}")]
    Refused {
        /// The attempted action.
        action: String,
        /// The HTTP status.
        status: u16,
        /// The error's name, if the client knows it.
        name: Option<ErrorName>,
        /// The message of the server.
        message: String,
    },
    /// Every try was answered by 429, 503 or another temporary failure.
    #[error("{action}: the server answered {status} {tries} times: {message}")]
    Unavailable {
        /// The attempted action.
        action: String,
        /// The last HTTP status.
        status: u16,
        /// The error's name, if the client knows it.
        name: Option<ErrorName>,
        /// Number of tries.
        tries: u32,
        /// The last `Retry-After`.
        retry_after: Option<Duration>,
        /// The message of the server.
        message: String,
    },
    /// A success with an unexpected body: another program answers at that address.
    #[error("{action}: the answer does not come from a binary cache server")]
    Answer {
        /// The attempted action.
        action: String,
        /// Why the body cannot be read.
        source: serde_json::Error,
    },
    /// A success with a body that is longer than any such answer.
    #[error("{action}: the answer is longer than {max} bytes")]
    AnswerTooLarge {
        /// The attempted action.
        action: String,
        /// The limit in bytes.
        max: usize,
    },
    /// The pages of a list repeat, or there are too many.
    #[error("{action}: the pages of the server's answer do not end")]
    EndlessList {
        /// The attempted action.
        action: String,
    },

    // The local store
    /// The program `nix` is missing.
    #[error("{program:?} was not found: it is needed to read the local store")]
    NixMissing {
        /// The program.
        program: String,
    },
    /// `nix` could not be run.
    #[error("running {program:?}")]
    NixRun {
        /// The program.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// `nix` ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    NixFailed {
        /// The command.
        command: &'static str,
        /// The exit status.
        status: String,
        /// The end of the error output.
        stderr: String,
    },
    /// `nix` printed something that is not path information.
    #[error("reading the output of `nix path-info`")]
    PathInfoJson(#[source] serde_json::Error),
    /// `nix` printed something that is not its settings.
    #[error("reading the output of `nix config show`")]
    NixConfigJson(#[source] serde_json::Error),
    /// `nix` printed something that is no list of build traces.
    #[error("reading the output of `nix realisation info`")]
    NixTraces(#[source] dormer_nix::Error),
    /// `nix` printed a field of the path information that cannot be read.
    #[error("reading the output of `nix path-info`: {field} of {path}: {reason}")]
    PathInfoField {
        /// The path.
        path: String,
        /// The field.
        field: &'static str,
        /// Why the field cannot be read.
        reason: String,
    },
    /// A path with a valid name that is not in the store.
    #[error("{path} is not valid in the local store")]
    InvalidPath {
        /// The path.
        path: String,
    },
    /// `nix` said nothing about a path that it was asked about.
    #[error("`nix path-info` said nothing about {path}")]
    NotDescribed {
        /// The path.
        path: String,
    },
    /// The files of the store are on another machine.
    #[error("the store {store} is not on this machine")]
    StoreElsewhere {
        /// The setting `store` of Nix.
        store: String,
    },
    /// An argument that does not lead to an existing path.
    #[error("looking up {}", path.display())]
    ResolvePath {
        /// The argument.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// An argument that leads out of the store.
    #[error("{} is not in the store {store_dir}", path.display())]
    NotInStore {
        /// The argument.
        path: PathBuf,
        /// The store.
        store_dir: StoreDir,
    },
    /// A name in the store that is not a store path.
    #[error("{} is not a store path", path.display())]
    NotAStorePath {
        /// The argument.
        path: PathBuf,
        /// Why the name is not a store path.
        source: dormer_nix::Error,
    },
    /// A store path could not be read from the disk, or is damaged.
    #[error("reading {path}")]
    Dump {
        /// The full path.
        path: String,
        /// The reason.
        source: DumpError,
    },

    // Pushing
    /// The cache is for another store.
    #[error("cache {cache} is for the store {cache_store_dir}, but {path} is from {store_dir}")]
    StoreDirMismatch {
        /// The cache.
        cache: CacheName,
        /// The store of the cache.
        cache_store_dir: StoreDir,
        /// The path.
        path: StorePath,
        /// The local store.
        store_dir: StoreDir,
    },

    // Pushing by chunks
    /// The server has no push by chunks, and the user asked for it.
    #[error("{endpoint} has no push by chunks that this client knows")]
    NoChunkApi {
        /// The server.
        endpoint: String,
    },
    /// The session of a push is over, or the server lost it.
    #[error("{action}: the session has ended")]
    SessionEnded {
        /// The attempted action.
        action: String,
    },
    /// The server says of a path what only a later client understands.
    #[error("cache {cache} answers for {path} what this version does not know")]
    CommitState {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: CacheName,
    },
    /// The server lost chunks of a path again and again.
    #[error("cache {cache} lost chunks of {path} again and again")]
    ChunksLost {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: CacheName,
    },
    /// Chunks could not be compressed.
    #[error("compressing chunks")]
    Compress {
        /// The reason.
        source: dormer_format::Error,
    },
    /// One error that several paths have in common.
    #[error(transparent)]
    Shared(Arc<Self>),
    /// A request for the push as a whole failed, such as a commit. Every other path would fail too.
    #[error(transparent)]
    WholePush(Box<Self>),

    // The queue
    /// The folder of the queue could not be used.
    #[error("the queue: failed to {attempt} {}", path.display())]
    Queue {
        /// The attempted action.
        attempt: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The queue has as many entries as it may have.
    #[error("the queue in {} is full", folder.display())]
    QueueFull {
        /// The queue.
        folder: PathBuf,
    },
    /// The text is not the name of an entry.
    #[error("{text:?} is not the name of an entry of the queue")]
    EntryId {
        /// The text.
        text: String,
    },
    /// An entry is larger than any entry that a hook makes.
    #[error("an entry of the queue has more than {max} bytes")]
    EntryTooLarge {
        /// The limit in bytes.
        max: usize,
    },
    /// The bytes of an entry are not an entry.
    #[error("reading an entry of the queue")]
    EntryJson(#[source] serde_json::Error),
    /// A later version of this program wrote the entry.
    #[error("an entry of the queue has version {version}, which this program does not know")]
    EntryVersion {
        /// The version.
        version: u32,
    },
    /// A cache of the queue cannot be reached with the settings of this user.
    #[error("pushing to {cache}")]
    QueueTarget {
        /// The cache as the entry names it.
        cache: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Builds were queued for a server that this user has no login for.
    #[error(
        "builds were queued for {endpoint}, and there is no login for it here{}",
        present.as_ref().map_or(String::new(), |present| format!(" ({cache} is on {present} now)"))
    )]
    OtherServer {
        /// The cache as the user named it.
        cache: String,
        /// The server that the builds are for.
        endpoint: String,
        /// The server that has the name here and now.
        present: Option<String>,
    },
    /// The store cannot be watched.
    #[error("watching {}", folder.display())]
    Watch {
        /// The folder of the store.
        folder: PathBuf,
        /// The error of the system.
        source: notify::Error,
    },

    // Importing
    /// A path of the source could not be fetched.
    #[error(transparent)]
    Fetch {
        /// The reason.
        source: FetchError,
    },
    /// The source could not be listed.
    #[error("listing {location}")]
    List {
        /// The source.
        location: String,
        /// The reason.
        source: FetchError,
    },
    /// The source is no static cache.
    #[error("there is no cache at {location}: it has no nix-cache-info")]
    NoStaticCache {
        /// The source.
        location: String,
    },
    /// `nix-cache-info` could not be read.
    #[error("reading nix-cache-info from {location}")]
    StaticCacheInfo {
        /// The source.
        location: String,
        /// The reason.
        source: FetchError,
    },
    /// The source serves another store folder than the cache.
    #[error("cache {cache} is for the store {cache_store_dir}, but {location} is one of {store_dir}")]
    SourceStoreDir {
        /// The cache.
        cache: CacheName,
        /// The store of the cache.
        cache_store_dir: StoreDir,
        /// The source.
        location: String,
        /// The store of the source.
        store_dir: String,
    },
    /// The source cannot be listed, so the paths have to be named.
    #[error("{location} cannot be listed")]
    NotListed {
        /// The source.
        location: String,
    },
    /// The client cannot send the metadata of a path.
    #[error("describing {path}")]
    Describe {
        /// The path.
        path: StorePath,
        /// The reason.
        source: dormer_api::Error,
    },
}

impl Error {
    /// Whether all further uploads would fail in the same way. Then the client does not try them:
    /// the server is unreachable, or refuses this client.
    pub fn is_fatal_for_push(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NoSuchCache { .. }
            | Self::NoChunkApi { .. }
            | Self::SessionEnded { .. }
            | Self::WholePush(_) => true,
            Self::Shared(error) => error.is_fatal_for_push(),
            // A 500 may concern one path. The other states mean that the server is not working.
            Self::Unavailable { status, .. } => *status != 500,
            _ => false,
        }
    }

    /// Whether the caller has as many sessions as it may have.
    pub(crate) fn is_too_many_sessions(&self) -> bool {
        matches!(self, Self::Unavailable { name: Some(ErrorName::TooManySessions), .. })
    }

    /// Whether the server refuses this client, which no later try of the same client changes.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NoSuchCache { .. }
            | Self::OtherServer { .. } => true,
            _ => self.below().is_some_and(Self::is_refusal),
        }
    }

    /// The error that this one only carries.
    fn below(&self) -> Option<&Self> {
        match self {
            Self::Shared(error) => Some(error),
            Self::WholePush(error) => Some(error),
            Self::QueueTarget { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// The error below all that only carry it.
    pub fn carried(&self) -> &Self {
        self.below().map_or(self, Self::carried)
    }

    /// How long the server asked to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self.carried() {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error of a request for the push as a whole. It is fatal for the push, whatever it would
    /// be for one path.
    pub(crate) fn of_whole_push(self) -> Self {
        if self.is_fatal_for_push() { self } else { Self::WholePush(Box::new(self)) }
    }
}
