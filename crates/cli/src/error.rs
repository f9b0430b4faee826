//! Why a command failed, its exit code, and what the user can do about it ([`Error::hints`]).

mod client_hints;
mod hints;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormer_edge_host::KeyError;

pub(crate) use self::client_hints::advice;

use crate::settings;

/// Result of a command.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Success.
pub(crate) const EXIT_OK: u8 = 0;
/// A failure.
pub(crate) const EXIT_FAILURE: u8 = 1;
/// The command line or the settings are wrong. Nothing was tried.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Some paths could not be pushed. The others were pushed.
pub(crate) const EXIT_PATHS_LOST: u8 = 3;
/// The server refuses the token, or there is no token.
pub(crate) const EXIT_UNAUTHORIZED: u8 = 4;
/// The shell's exit code for an interrupted program: 128 + SIGINT.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// The server does not answer, or stays busy. Trying later may help.
pub(crate) const EXIT_UNAVAILABLE: u8 = 5;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Settings(#[from] settings::Error),
    #[error(transparent)]
    Client(#[from] dormer_client::Error),
    #[error(transparent)]
    Engine(#[from] dormer_engine::Error),
    #[error(transparent)]
    Index(#[from] dormer_index::Error),
    #[error(transparent)]
    Blobs(#[from] dormer_blobs::Error),
    #[error(transparent)]
    Publish(#[from] dormer_publish::Error),
    #[error("there is no installation here: no server ever made {}", path.display())]
    NoInstallation { path: PathBuf },
    #[error("{count} build traces could not be pushed; the paths were")]
    TracesLost { count: usize },
    #[error("another process writes the journal, and does not end: no kept journal was let go")]
    JournalBusy,
    #[error("{waiting} removed paths still have bytes in the store")]
    BytesLeft { waiting: u64 },
    #[error("the cache does not know the bytes of {}, so it removed none of them", listed(paths))]
    BytesUnknown { paths: Vec<PathBuf> },
    #[error("the collection failed: {reason}")]
    NotCollected { reason: String },
    #[error("the scrub failed: {reason}")]
    NotScrubbed { reason: String },
    #[error("{caches} of the caches could not be published")]
    NotPublished { caches: usize },
    #[error(transparent)]
    TokenVerifier(#[from] KeyError),
    #[error(transparent)]
    EdgeSource(#[from] dormer_edge_host::SourceError),
    #[error(transparent)]
    EdgeDisk(#[from] dormer_edge_host::DiskCacheError),
    #[error("{problem}")]
    Usage { problem: String, hint: Option<String> },
    #[error("failed to {attempt}")]
    Io { attempt: String, source: io::Error },
    #[error("failed to write to standard output")]
    Output(#[source] io::Error),
    #[error("{} of {} could not be exported", paths(*lost), paths(*tried))]
    NotExported { lost: usize, tried: usize },
    #[error("{} of {} could not be imported", paths(*lost), paths(*tried))]
    NotImported { lost: usize, tried: usize, unsigned: usize, has_keys: bool },
    #[error("{lost} build traces or logs could not be imported")]
    DocumentsNotImported { lost: usize },
    #[error("there is no cache {name}")]
    NoCache { name: String },
    #[error("{} of {} could not be pushed", paths(*lost), paths(*tried))]
    PathsLost { lost: usize, tried: usize, advice: Vec<String>, incomplete: usize },
    #[error("{} is a folder of {owner}", path.display())]
    ForeignFolder { path: PathBuf, owner: &'static str },
    #[error(transparent)]
    OpenStore(#[from] dormer_stores::OpenError),
    #[error("{store} holds chunks of {owner}")]
    ForeignBucket { store: String, owner: &'static str },
    #[error("{store} does not carry the id of this database, and the store that the database used did")]
    UnclaimedStore { store: String },
    #[error("{database} is not empty: only an empty database can be recovered")]
    NotEmpty { database: String },
    #[error("{store} holds no journal")]
    NoJournal { store: String },
    #[error("the store has {} journals: which one is to be recovered?", journals.len())]
    SeveralJournals {
        /// A line for each, the newest first.
        journals: Vec<String>,
    },
    #[error("this database was being recovered from its store, and that was interrupted")]
    RecoveryUnfinished,
    #[error("{} is there already", path.display())]
    NotOverwritten { path: PathBuf },
    #[error("PostgreSQL has its own tools for backups: dormer backup and dormer restore are for SQLite")]
    BackupOfPostgres,
    #[error("{store} holds no packs, and the database names some")]
    EmptyBucket { store: String },
    #[error("the database was made with a different master key than {origin}")]
    WrongMasterKey { origin: String },
    #[error("the master key is being replaced, and the previous one is missing")]
    RekeyUnfinished,
    #[error("the master key of this database is missing: {}", path.display())]
    NoMasterKey { path: PathBuf },
    #[error("there is no master key: PostgreSQL may serve several replicas, which must share one ({} is not there)", path.display())]
    NoSharedMasterKey { path: PathBuf },
    #[error("{} does not hold {what}", path.display())]
    UnreadableSecret { path: PathBuf, what: &'static str },
    #[error("the server has no key to sign tokens with: jwt.signing.token-rs256-pubkey-base64 only verifies")]
    CannotSignTokens,
    #[error("no token secret in {}: the server was never started with these settings", path.display())]
    NoTokenSecret { path: PathBuf },
    #[error("{what} is not usable as a signing key for tokens")]
    TokenKey { what: &'static str, source: jsonwebtoken::errors::Error },
    #[error("failed to sign a token")]
    SignToken(#[source] jsonwebtoken::errors::Error),
    #[error("{}: changing it here would be undone or impossible: {managed} manages it", path.display())]
    ManagedFile { path: PathBuf, managed: &'static str, lines: Vec<String> },
    #[error("the address that the server reports for cache {cache} cannot be used: {problem}")]
    ReportedAddress { cache: String, problem: String, may_allow: bool },
    #[error("cache {cache} of this server has no {what}")]
    IncompleteAnswer { cache: String, what: &'static str },
    #[error("no server of Dormer or Attic answers at {endpoint}: it answers {status}, without their JSON")]
    NotAServer { endpoint: String, status: u16 },
    #[error("the netrc file that Nix reads, {}, belongs to others", path.display())]
    NetrcOfOthers { path: PathBuf, source: io::Error },
    #[error("{waiting} entries of the queue wait, {dead} were given up{}", paused_by.as_ref().map(|error| format!(": {}", Error::chain_of(&**error))).unwrap_or_default())]
    QueueNotEmpty { waiting: usize, dead: usize, paused_by: Option<Arc<dormer_client::Error>> },
    #[error("interrupted: what is queued stays there")]
    QueueInterrupted,
    #[error("{path} is not in cache {cache}{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NotInCache { path: String, cache: String, reason: Option<String> },
    #[error("{} has another post-build-hook: {hook}", path.display())]
    OtherHook { path: PathBuf, hook: String },
    #[error("{} is there already, and `dormer install-hook` did not make it", path.display())]
    NotOurFile { path: PathBuf },
    #[error("aborted: nothing was changed")]
    Aborted,
    #[error("no answer from {address}")]
    NoAnswer { address: String, source: reqwest::Error },
    #[error("{address} answers {status}: {said}")]
    NotReady { address: String, status: u16, said: String },
}

impl Error {
    /// A usage error with advice.
    pub(crate) fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: Some(hint.into()) }
    }

    /// An I/O error about `path`.
    pub(crate) fn io(attempt: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let attempt = format!("{attempt} {}", path.display());
        move |source| Self::Io { attempt, source }
    }

    /// Whether the reader of the output went away, because it had read enough.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The error and its causes in one line. Omits causes that only repeat the line so far.
    pub(crate) fn chain(&self) -> String {
        Self::chain_of(self)
    }

    /// The same line for an error that is reported on the way.
    pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
        dormer_nix::with_causes(error).replace('\n', " ")
    }

    /// The same line for an error of the client.
    pub(crate) fn chain_of_client(error: &dormer_client::Error) -> String {
        Self::chain_of(error)
    }

    /// The exit code for the shell.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) | Self::Usage { .. } => EXIT_USAGE,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_OK,
            Self::QueueInterrupted => EXIT_INTERRUPTED,
            Self::QueueNotEmpty { paused_by: Some(error), .. } => code_of_pause(error),
            Self::PathsLost { .. }
            | Self::NotExported { .. }
            | Self::NotImported { .. }
            | Self::DocumentsNotImported { .. }
            | Self::TracesLost { .. }
            | Self::QueueNotEmpty { .. }
            | Self::NotInCache { .. } => EXIT_PATHS_LOST,
            Self::Client(error) => client_exit_code(error),
            Self::NoAnswer { .. } => EXIT_UNAVAILABLE,
            _ => EXIT_FAILURE,
        }
    }
}

/// The code for what keeps a cache of the queue waiting.
fn code_of_pause(error: &dormer_client::Error) -> u8 {
    use dormer_client::Error as Client;
    match error {
        Client::QueueTarget { source, .. } => match source.downcast_ref::<Client>() {
            Some(error) => client_exit_code(error),
            None => source.downcast_ref::<Error>().map_or(EXIT_FAILURE, Error::exit_code),
        },
        Client::Unauthorized { .. } | Client::Forbidden { .. } => EXIT_UNAUTHORIZED,
        _ if error.is_fatal_for_push() => EXIT_UNAVAILABLE,
        _ => EXIT_FAILURE,
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn client_exit_code(error: &dormer_client::Error) -> u8 {
    use dormer_client::Error as Client;
    match error {
        Client::Unauthorized { .. } | Client::Forbidden { .. } => EXIT_UNAUTHORIZED,
        Client::Unreachable { .. } | Client::Stalled { .. } | Client::Unavailable { .. } => EXIT_UNAVAILABLE,
        Client::CacheRef { .. }
        | Client::ServerName { .. }
        | Client::Endpoint { .. }
        | Client::SubstituterUrl { .. }
        | Client::UnknownServer { .. }
        | Client::NotListed { .. }
        | Client::NoDefaultServer => EXIT_USAGE,
        Client::Shared(error) => client_exit_code(error),
        Client::WholePush(error) => client_exit_code(error),
        _ => EXIT_FAILURE,
    }
}

/// `1 path`, `7 paths`.
pub(crate) fn paths(count: usize) -> String {
    if count == 1 { "1 path".to_owned() } else { format!("{count} paths") }
}

#[cfg(test)]
mod tests {
    use super::client_hints::proxy_hint;
    use super::*;

    #[test]
    fn failures_that_others_cause_say_what_to_do() {
        let refused = |status, name| dormer_client::Error::Refused {
            action: "x".to_owned(),
            status,
            name,
            message: "y".to_owned(),
        };
        let hints = |error: dormer_client::Error| Error::from(error).hints().join(" ");
        assert!(hints(refused(413, None)).contains("client_max_body_size"));
        // The server itself says which limit it is.
        assert!(hints(refused(413, Some(dormer_api::ErrorName::RequestError))).is_empty());
        let redirected = dormer_client::Error::Redirected {
            action: "x".to_owned(),
            status: 307,
            location: "https://y".to_owned(),
        };
        assert!(hints(redirected).contains("redirects"));
        let unavailable = |status| dormer_client::Error::Unavailable {
            action: "x".to_owned(),
            status,
            name: None,
            tries: 4,
            retry_after: None,
            message: "y".to_owned(),
        };
        assert!(hints(unavailable(408)).contains("--jobs 1") && hints(unavailable(503)).is_empty());
        let shared = dormer_client::Error::Shared(std::sync::Arc::new(refused(413, None)));
        let errors = [unavailable(408), shared, unavailable(503), refused(413, None)];
        let advice = advice(errors.iter());
        assert_eq!(advice.len(), 2, "each once: {advice:?}");
        let lost = |advice| Error::PathsLost { lost: 1, tried: 2, advice, incomplete: 0 }.hints().join(" ");
        let said = lost(advice);
        assert!(said.contains("--jobs 1") && said.contains("client_max_body_size"), "{said}");
        assert!(lost(Vec::new()).contains("run the same command again"));
        let endless = dormer_client::Error::EndlessList { action: "x".to_owned() };
        assert!(hints(endless).contains("another program"));
        let full = Error::Io { attempt: "write x".to_owned(), source: io::ErrorKind::StorageFull.into() };
        assert!(full.hints()[0].contains("disk is full"));
        let taken = Error::Io { attempt: "listen on x".to_owned(), source: io::ErrorKind::AddrInUse.into() };
        assert!(taken.hints()[0].contains("--listen"));
        assert_eq!(proxy_hint(&|_| false), None);
        assert!(proxy_hint(&|name| name == "https_proxy").unwrap().contains("https_proxy; no_proxy"));
    }
}
