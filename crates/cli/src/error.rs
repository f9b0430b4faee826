//! Why a command failed, its exit code, and what the user can do about it.
//!
//! Only this file gives advice. The other crates say what happened; this file knows the commands
//! that help.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormer_client::MACHINE_SETTINGS;
use dormer_edge_host::KeyError;

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

    /// What the user can do about the error, one line each.
    pub(crate) fn hints(&self) -> Vec<String> {
        let hint = |text: &str| vec![text.to_owned()];
        match self {
            Self::Settings(error) => error.hint().into_iter().collect(),
            Self::Client(error) => client_hints(error),
            Self::QueueNotEmpty { paused_by, .. } => {
                let mut hints = hint(
                    "`dormer queue list` shows them with their reasons; `dormer queue retry` tries them at once",
                );
                let paused_by = paused_by.as_ref().map(|error| error.carried());
                if let Some(error @ dormer_client::Error::OtherServer { .. }) = paused_by {
                    hints.extend(client_hints(error));
                }
                hints
            }
            Self::NotInCache { .. } => hint("`dormer push` pushes it now"),
            Self::OtherHook { .. } => vec![
                "Nix runs one hook. Add a line to that one:".to_owned(),
                "  dormer hook CACHE".to_owned(),
            ],
            Self::Index(error) | Self::Engine(dormer_engine::Error::Index(error)) => index_hints(error),
            Self::Publish(error) => publish_hints(error),
            Self::JournalBusy => hint(
                "a server writes a large snapshot, or its store is slow: `dormer_journal_lag_seconds` falls when it is done; \
                 then run the same command again",
            ),
            Self::BytesLeft { .. } => hint(
                "an upload that began before a compaction may still need their packs (`limits.upload-timeout`, a day by default); or \
                 an interrupted upload left a pack, which waits a day longer; or a live path needs a damaged chunk of their packs, \
                 and until a push of it the bytes stay (`dormer gc` counts such packs); or the store is full of packs \
                 without a row, or does not delete. The server's log says \
                 what failed; later collections go on by themselves, and the same command tells when all is gone",
            ),
            Self::BytesUnknown { .. } => hint(
                "it was never pushed, it expired, or its bytes are gone since a removal; if it may have been there, push it \
                 again, then remove it with --now",
            ),
            Self::NotPublished { .. } => hint(
                "a private cache needs a bucket without a public domain, served by the Worker or `dormer edge serve`, which check tokens",
            ),
            Self::Usage { hint, .. } => hint.iter().cloned().collect(),
            Self::PathsLost { lost, advice, incomplete, .. } => {
                let again = "the pushed paths are in the cache; run the same command again to push the rest";
                let mut hints: Vec<String> = (lost > incomplete).then(|| again.to_owned()).into_iter().collect();
                hints.extend(advice.iter().cloned());
                hints.extend((*incomplete > 0).then(|| INCOMPLETE.to_owned()));
                hints
            }
            Self::NotExported { .. } => hint(
                "what is whole is in the place; push the named paths again, and run the same command again to export the rest",
            ),
            Self::DocumentsNotImported { .. } => hint(
                "the paths are in the cache; a build trace needs the signature of a --trusted-public-key, or --allow-unsigned if you trust everybody that can write to the source",
            ),
            Self::NotImported { unsigned, has_keys, .. } => {
                let mut hints =
                    hint("the imported paths are in the cache; run the same command again to import the rest");
                if *unsigned > 0 {
                    let keys = if *has_keys { "another --trusted-public-key" } else { "--trusted-public-key KEY" };
                    hints.push(format!(
                        "{} by no trusted key: give {keys} (the source's own; its users have it in nix.conf), or --allow-unsigned if you trust everybody that can write to the source",
                        if *unsigned == 1 { "1 path is signed".to_owned() } else { format!("{unsigned} paths are signed") },
                    ));
                }
                hints
            }
            Self::NoCache { .. } => hint("`dormer cache list` lists the caches of a running server"),
            Self::ForeignFolder { .. } => hint(
                "Dormer uses another format and changed nothing there; give Dormer its own folder (--data-dir, or path under \
                 [storage])",
            ),
            Self::ForeignBucket { .. } => hint("Dormer uses another format and changed nothing there; give Dormer its own bucket"),
            Self::EmptyBucket { .. } => hint(
                "correct storage.bucket, storage.prefix or storage.endpoint; to start with an empty store, use a new database too",
            ),
            Self::Blobs(dormer_blobs::Error::ForeignStore { .. }) => vec![
                "nothing was read or written there; correct storage.path, storage.bucket or storage.prefix, or the database".to_owned(),
                "if the database was lost, an empty one can be filled from this store: dormer recover --from-store".to_owned(),
                "if this database and this store do belong together (docs/OPERATING.md, \"One database, one store\"): dormer adopt"
                    .to_owned(),
            ],
            Self::UnclaimedStore { .. } => vec![
                "correct storage.path, storage.bucket or storage.prefix".to_owned(),
                "if the packs were copied there without the folder installation/: dormer adopt".to_owned(),
            ],
            Self::NotEmpty { .. } => hint("name a new database, or remove this one if nothing in it is needed"),
            Self::NoJournal { .. } => hint(
                "is this the right store? Versions before 0.1.0 wrote no journal: restore a backup of the database instead",
            ),
            Self::SeveralJournals { journals } => {
                let how = "docs/OPERATING.md, \"Several journals\", says how to choose";
                journals.iter().cloned().chain([how.to_owned()]).collect()
            }
            Self::RecoveryUnfinished => hint("run `dormer recover --from-store` again: it goes on"),
            Self::NotOverwritten { .. } => hint("choose another name, or move it away first, with the files -wal and -shm beside it"),
            Self::BackupOfPostgres => vec![
                "pg_dump --format=custom --file=dormer.dump \"$DORMER_DATABASE_URL\" backs up while replicas run; pg_restore brings it back"
                    .to_owned(),
                "docs/OPERATING.md, \"Backups\", has the whole procedure".to_owned(),
            ],
            Self::Blobs(dormer_blobs::Error::StoreGone { .. }) => hint(
                "mount it, or correct storage.path; to start with an empty store, remove the index too, because it names packs that are gone",
            ),
            Self::Blobs(dormer_blobs::Error::Refused { .. }) => hint(
                "the keys under [storage] describe the store; the server must be allowed to put, get, list and delete objects",
            ),
            Self::WrongMasterKey { .. } | Self::NoMasterKey { .. } => vec![
                "restore the master key from its backup (file master-key of the data folder, or DORMER_MASTER_KEY); without \
                 it the caches' signing keys cannot be read"
                    .to_owned(),
                "if `dormer rekey` has replaced it, the new one is the key of this database now".to_owned(),
            ],
            Self::RekeyUnfinished | Self::Engine(dormer_engine::Error::RekeyUnfinished) => hint(
                "set previous-master-key too (DORMER_PREVIOUS_MASTER_KEY), or previous-master-key-file, and finish with `dormer rekey`",
            ),
            Self::Engine(dormer_engine::Error::Sealed { .. }) => hint(
                "if `dormer rekey` has replaced the master key, this process needs the new one in master-key; while it replaces \
                 it, processes need both (previous-master-key)",
            ),
            Self::NoSharedMasterKey { .. } => vec![
                "make one, keep a copy apart from the database's backup, and give it to every replica:".to_owned(),
                "  DORMER_MASTER_KEY=$(openssl rand -base64 32)    or the file that master-key-file names".to_owned(),
            ],
            Self::Io { attempt, source }
                if source.kind() == std::io::ErrorKind::AddrInUse && attempt.starts_with("listen") =>
            {
                hint("something else listens there: another `dormer serve`? Choose another address (--listen, metrics.listen)")
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                hint("the disk is full: free some space and run the command again")
            }
            Self::NoInstallation { .. } => {
                hint("start `dormer serve` once with the same settings (--data-dir, --config, DORMER_…)")
            }
            Self::NoTokenSecret { .. } => vec![
                "start `dormer serve` once with the same settings, or set jwt.signing.token-hs256-secret-base64".to_owned(),
                "`dormer token create` runs where the server's settings are, not on its clients".to_owned(),
            ],
            Self::TokenVerifier(KeyError::ShortSecret { .. }) => vec![
                "make one: openssl rand -base64 64 | tr -d '\\n'".to_owned(),
                "set it as jwt.signing.token-hs256-secret-base64 (Attic's variable: \
                 ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64), and make all tokens again: dormer token create"
                    .to_owned(),
            ],
            Self::TokenKey { .. } | Self::TokenVerifier(_) => {
                hint("it must be a PEM file, encoded in base64 as a whole; make a key with: openssl genrsa -traditional 2048 | base64 -w0")
            }
            Self::ReportedAddress { may_allow, .. } => {
                let mut hints = hint(
                    "the server's setting api-endpoint (or substituter-endpoint) must be the address that its users see; a proxy \
                     may report it instead (trusted-proxies)",
                );
                if *may_allow {
                    hints.push("if that address is meant: --allow-other-host; a private cache's token goes there".to_owned());
                }
                hints
            }
            Self::NetrcOfOthers { .. } => hint(
                "run it as root with --system: Nix reads one netrc file only, and one of your own would hide this one",
            ),
            Self::NotAServer { .. } => {
                hint("is there another program at this address, or does the proxy lack the path /_api/ of the server?")
            }
            Self::CannotSignTokens => hint("make tokens on a machine with the RSA private key"),
            Self::ManagedFile { lines, .. } => {
                let mut hints = hint("add these lines to the settings of that tool:");
                hints.extend(lines.iter().map(|line| format!("  {line}")));
                hints
            }
            _ => Vec::new(),
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

const INCOMPLETE: &str = "to push paths whose references the filter keeps out: --allow-incomplete (the cache then has half a closure)";

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

/// What the user may do about errors of single paths, each advice once.
pub(crate) fn advice<'e>(errors: impl Iterator<Item = &'e dormer_client::Error>) -> Vec<String> {
    errors.flat_map(client_hints).collect::<BTreeSet<_>>().into_iter().collect()
}

fn client_hints(error: &dormer_client::Error) -> Vec<String> {
    use dormer_client::Error as Client;
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Client::NoDefaultServer => vec![
            "log in first: dormer login NAME URL --token-file FILE; with several servers write SERVER:CACHE, or set a default with \
             --set-default"
                .to_owned(),
            format!("or, for a service, set DORMER_ENDPOINT and DORMER_TOKEN, or write {MACHINE_SETTINGS} for its user"),
        ],
        Client::NoSettingsFolder => vec![format!(
            "only `dormer login` needs a home: set DORMER_ENDPOINT and DORMER_TOKEN, or write {MACHINE_SETTINGS}"
        )],
        Client::UnknownServer { name } => {
            vec![format!("log in first: dormer login {name} URL --token-file FILE")]
        }
        Client::CacheRef { .. } => hint("caches are named `main` (on the default server) or `lab:main`"),
        Client::Unauthorized { with_token: false, .. } => {
            hint("log in with a token: dormer login NAME URL --token-file FILE; or set DORMER_TOKEN")
        }
        Client::Unauthorized { with_token: true, .. } => hint(
            "the token has no permission on this cache (which may not exist), has expired, or belongs to another server",
        ),
        Client::Forbidden { .. } => {
            hint("ask for a token with this permission: dormer token create, on the server")
        }
        Client::NoSuchCache { .. } => {
            hint("`dormer cache list` lists the caches; `dormer cache create` makes one")
        }
        Client::CacheExists { .. } => hint("`dormer cache configure` changes it"),
        Client::Unreachable { .. } | Client::Stalled { .. } => {
            let mut hints = hint("is the server running, and is its address right?");
            hints.extend(proxy_hint(&|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())));
            hints
        }
        Client::Unavailable { status: 408, .. } => hint(
            "the server gave up on a request that arrived too slowly; uploads share the connection: push with --jobs 1",
        ),
        // Dormer's own answer has a name.
        Client::Refused { status: 413, name: None, .. } => hint(
            "a proxy in front of the server limits the size of requests; let it pass any size (nginx: client_max_body_size 0), or push by chunks in small parts (dormer push --part-size 1M)",
        ),
        Client::Redirected { .. } => hint(
            "Dormer follows redirects only for reading and only on the same server; if the other address is yours, log in there",
        ),
        Client::Answer { .. } | Client::AnswerTooLarge { .. } | Client::EndlessList { .. } => {
            hint("is there another program at this address, or a proxy's login page?")
        }
        Client::NotListed { .. } => hint(
            "a cache on the web has no listing: name the paths, or send them with --stdin (nix-store -qR PATH); their closures are imported",
        ),
        Client::NoStaticCache { .. } => hint(
            "give the folder, prefix or address that has nix-cache-info in it; a published target has one for each cache",
        ),
        Client::StaticCacheInfo {
            source: dormer_client::FetchError::Status { status: 401, .. }, ..
        } => hint("set DORMER_SOURCE_TOKEN to a token for the source"),
        Client::SourceStoreDir { .. } => {
            hint("a cache serves one store folder; make another cache for this one: dormer cache create --help")
        }
        Client::NixMissing { .. } => hint("install Nix, or put it into PATH"),
        Client::InvalidPath { .. } => {
            hint("build or fetch it first: only what is in the local store can be pushed")
        }
        Client::NotInStore { .. } => hint(
            "give a store path, or a link to one such as ./result; `nix copy` and `nix store add-path` add paths to the store",
        ),
        Client::NotDescribed { .. } => hint("this is a fault of Nix or of Dormer; nothing was pushed"),
        Client::StoreElsewhere { .. } => hint(
            "push on the machine that has the files, or name a local store: NIX_REMOTE=local, or NIX_REMOTE=local?root=DIR",
        ),
        Client::StoreDirMismatch { .. } => {
            hint("a cache serves one store folder; make another cache for this one")
        }
        Client::HttpClient(_) => hint(
            "install the system's certificates (ca-certificates), or name a file with them in NIX_SSL_CERT_FILE",
        ),
        Client::ReadCertificates { .. } | Client::NoCertificates { .. } => hint(
            "the variable must name a PEM file with every authority to trust, as for Nix; unset it to trust the system's",
        ),
        Client::Queue { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            hint("the disk of the queue is full: free some space, or keep the queue elsewhere (--queue-dir, DORMER_QUEUE_DIR)")
        }
        Client::Queue { .. } => hint(
            "the queue must be in a folder that this user may write; --queue-dir or DORMER_QUEUE_DIR names another one",
        ),
        Client::QueueFull { .. } => hint(
            "`dormer queue list` says why nothing leaves it; `dormer queue drain` pushes what is there, `dormer queue drop` gives it up",
        ),
        Client::Watch { .. } => hint(
            "Linux has no watch left, or no store is there; raise the limits with `sysctl fs.inotify.max_user_instances=1024 \
             fs.inotify.max_user_watches=524288`, or let Nix call a hook: dormer install-hook, dormer exec --by hook",
        ),
        Client::OtherServer { endpoint, .. } => vec![
            format!("log in to it, under any name: dormer login NAME {endpoint} --token-file FILE"),
            format!("or set DORMER_TOKEN and push: dormer queue drain --endpoint {endpoint}"),
            "if it moved, push to the server that has the name now: dormer queue retry --all --to-present-server; a hook \
             keeps the address that it was installed with: run `dormer install-hook` again"
                .to_owned(),
        ],
        Client::EntryVersion { .. } => hint("a later version of Dormer queued it; its own `dormer queue drain` pushes it"),
        Client::CommitState { .. } => hint("upgrade this client, or push with `--api attic`"),
        Client::NoChunkApi { .. } => hint("leave out `--api v2`: then the NARs are sent whole, by Attic's API"),
        Client::SessionEnded { .. } => hint("run the same command again: it goes on in a new session"),
        Client::ChunksLost { .. } => {
            hint("`dormer scrub` on the server finds damage; or push the path with `--api attic`")
        }
        Client::Shared(error) => client_hints(error),
        Client::WholePush(error) => client_hints(error),
        Client::MalformedToken => hint("check that the token was copied completely, without other text"),
        _ => Vec::new(),
    }
}

/// Names the variables that send requests to a proxy.
fn proxy_hint(is_set: &dyn Fn(&str) -> bool) -> Option<String> {
    const VARIABLES: [&str; 6] =
        ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let set: Vec<&str> = VARIABLES.into_iter().filter(|name| is_set(name)).collect();
    (!set.is_empty()).then(|| {
        format!(
            "requests go through the proxy in {}; no_proxy names the hosts that need none",
            set.join(", ")
        )
    })
}

fn publish_hints(error: &dormer_publish::Error) -> Vec<String> {
    use dormer_publish::Error as Publish;
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Publish::Index(error) | Publish::Engine(dormer_engine::Error::Index(error)) => index_hints(error),
        Publish::Moved { .. } | Publish::Moving { .. } => hint(
            "to continue at the new place: dormer publish TARGET --reconcile; to publish to both, give the new one its own name",
        ),
        Publish::Unknown { .. } => hint(
            "to find out what is there, and send only what is missing: dormer publish TARGET --reconcile; what the lab \
             does not have leaves then, so import it first if it is worth keeping",
        ),
        Publish::OtherLab { .. } => hint(
            "give this target a prefix, bucket or folder of its own; to take over what is there, stop the other lab's \
             publisher, delete dormer-lab.json there, and run: dormer publish TARGET --reconcile",
        ),
        Publish::Target(dormer_blobs::Error::Refused { .. }) => hint(
            "the keys under [[edge]] describe the store; the publisher must be allowed to put, get, list and delete objects",
        ),
        _ => Vec::new(),
    }
}

fn index_hints(error: &dormer_index::Error) -> Vec<String> {
    use dormer_index::Error as Index;
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Index::ForeignDatabase { .. } => hint(
            "Dormer has not touched it; give it a database of its own: DORMER_DATABASE_URL=sqlite:///path/to/index.sqlite, \
             or CREATE DATABASE dormer and DORMER_DATABASE_URL=postgresql://user:password@host/dormer (url under [database])",
        ),
        Index::Locked { .. } => {
            hint("another `dormer serve` is running on this data folder; choose another --data-dir")
        }
        Index::ServerUnfit { .. } => hint(
            "change it in postgresql.conf (or ALTER DATABASE … RESET …) and reload; `dormer doctor` checks it again",
        ),
        Index::UnsaidPooler => hint(
            "say database.transaction-pooler = true (DORMER_DATABASE_TRANSACTION_POOLER=true), or pool_mode = session for this \
             database in the pooler's settings",
        ),
        Index::Untrusted { .. } => hint(
            "sslmode in database.url says what is asked for: verify-full wants a certificate for the very host of the URL from \
             the authority in sslrootcert=/path/to/ca.pem, or from a public one; require wants TLS only",
        ),
        Index::Unavailable { attempt: "connect to the database", .. } => hint(
            "is the server running, and are host, user, password and database of database.url right? `dormer doctor` tries it",
        ),
        Index::SchemaTooOld { .. } => {
            hint("restart the running `dormer serve` with this version first: it upgrades the schema")
        }
        Index::SchemaTooNew { .. } => hint("a newer Dormer has used this database; upgrade this one"),
        _ => Vec::new(),
    }
}

/// `1 path`, `7 paths`.
pub(crate) fn paths(count: usize) -> String {
    if count == 1 { "1 path".to_owned() } else { format!("{count} paths") }
}

#[cfg(test)]
mod tests {
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
