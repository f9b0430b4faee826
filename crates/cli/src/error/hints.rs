//! What the user can do about an error.
//!
//! Only this folder gives advice. The other crates say what happened; these files know the commands
//! that help.

use std::io;

use dormer_edge_host::KeyError;

use super::Error;
use super::client_hints::client_hints;

/// The hints by topic. Each error belongs to one topic at most.
const TOPICS: [fn(&Error) -> Vec<String>; 7] =
    [queue_hints, path_hints, removal_hints, store_hints, database_hints, key_hints, machine_hints];

impl Error {
    /// What the user can do about the error, one line each.
    pub(crate) fn hints(&self) -> Vec<String> {
        match self {
            Self::Settings(error) => error.hint().into_iter().collect(),
            Self::Client(error) => client_hints(error),
            Self::Index(error) | Self::Engine(dormer_engine::Error::Index(error)) => index_hints(error),
            Self::Publish(error) => publish_hints(error),
            Self::Usage { hint, .. } => hint.iter().cloned().collect(),
            _ => TOPICS.iter().flat_map(|topic| topic(self)).collect(),
        }
    }
}

/// The queue and the hook.
fn queue_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::QueueNotEmpty { paused_by, .. } => {
            let mut hints = hint(
                "`dormer queue list` shows them with their reasons; `dormer queue retry` tries them at once",
            );
            let paused_by = paused_by.as_ref().map(|error| error.carried());
            if let Some(error @ dormer_client::Error::OtherServer { .. }) = paused_by {
                hints.extend(client_hints(error));
            }
            hints
        }
        Error::NotInCache { .. } => hint("`dormer push` pushes it now"),
        Error::OtherHook { .. } => {
            vec!["Nix runs one hook. Add a line to that one:".to_owned(), "  dormer hook CACHE".to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Paths that could not be moved.
fn path_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::PathsLost { lost, advice, incomplete, .. } => {
            let again = "the pushed paths are in the cache; run the same command again to push the rest";
            let mut hints: Vec<String> = (lost > incomplete).then(|| again.to_owned()).into_iter().collect();
            hints.extend(advice.iter().cloned());
            hints.extend((*incomplete > 0).then(|| INCOMPLETE.to_owned()));
            hints
        }
        Error::NotExported { .. } => hint(
            "what is whole is in the place; push the named paths again, and run the same command again to export the rest",
        ),
        Error::NotImported { unsigned, has_keys, .. } => {
            let mut hints =
                hint("the imported paths are in the cache; run the same command again to import the rest");
            if *unsigned > 0 {
                let keys =
                    if *has_keys { "another --trusted-public-key" } else { "--trusted-public-key KEY" };
                hints.push(format!(
                    "{} by no trusted key: give {keys} (the source's own; its users have it in nix.conf), or --allow-unsigned if you trust everybody that can write to the source",
                    if *unsigned == 1 { "1 path is signed".to_owned() } else { format!("{unsigned} paths are signed") },
                ));
            }
            hints
        }
        Error::DocumentsNotImported { .. } => hint(
            "the paths are in the cache; a build trace needs the signature of a --trusted-public-key, or --allow-unsigned if you trust everybody that can write to the source",
        ),
        Error::NotPublished { .. } => hint(
            "a private cache needs a bucket without a public domain, served by the Worker or `dormer edge serve`, which check tokens",
        ),
        _ => Vec::new(),
    }
}

/// Caches, and paths that are removed from them.
fn removal_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::NoCache { .. } => hint("`dormer cache list` lists the caches of a running server"),
        Error::BytesLeft { .. } => hint(
            "an upload that began before a compaction may still need their packs (`limits.upload-timeout`, a day by default); or \
             an interrupted upload left a pack, which waits a day longer; or a live path needs a damaged chunk of their packs, \
             and until a push of it the bytes stay (`dormer gc` counts such packs); or the store is full of packs \
             without a row, or does not delete. The server's log says \
             what failed; later collections go on by themselves, and the same command tells when all is gone",
        ),
        Error::BytesUnknown { .. } => hint(
            "it was never pushed, it expired, or its bytes are gone since a removal; if it may have been there, push it \
             again, then remove it with --now",
        ),
        _ => Vec::new(),
    }
}

/// Where the bytes are.
fn store_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::ForeignFolder { .. } => hint(
            "Dormer uses another format and changed nothing there; give Dormer its own folder (--data-dir, or path under \
             [storage])",
        ),
        Error::ForeignBucket { .. } => hint("Dormer uses another format and changed nothing there; give Dormer its own bucket"),
        Error::EmptyBucket { .. } => hint(
            "correct storage.bucket, storage.prefix or storage.endpoint; to start with an empty store, use a new database too",
        ),
        Error::Blobs(dormer_blobs::Error::ForeignStore { .. }) => vec![
            "nothing was read or written there; correct storage.path, storage.bucket or storage.prefix, or the database".to_owned(),
            "if the database was lost, an empty one can be filled from this store: dormer recover --from-store".to_owned(),
            "if this database and this store do belong together (docs/OPERATING.md, \"One database, one store\"): dormer adopt"
                .to_owned(),
        ],
        Error::Blobs(dormer_blobs::Error::StoreGone { .. }) => hint(
            "mount it, or correct storage.path; to start with an empty store, remove the index too, because it names packs that are gone",
        ),
        Error::Blobs(dormer_blobs::Error::Refused { .. }) => hint(
            "the keys under [storage] describe the store; the server must be allowed to put, get, list and delete objects",
        ),
        Error::UnclaimedStore { .. } => vec![
            "correct storage.path, storage.bucket or storage.prefix".to_owned(),
            "if the packs were copied there without the folder installation/: dormer adopt".to_owned(),
        ],
        _ => Vec::new(),
    }
}

/// The database, its backups and its journal.
fn database_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::NoInstallation { .. } => {
            hint("start `dormer serve` once with the same settings (--data-dir, --config, DORMER_…)")
        }
        Error::JournalBusy => hint(
            "a server writes a large snapshot, or its store is slow: `dormer_journal_lag_seconds` falls when it is done; \
             then run the same command again",
        ),
        Error::NotEmpty { .. } => hint("name a new database, or remove this one if nothing in it is needed"),
        Error::NoJournal { .. } => hint(
            "is this the right store? Versions before 0.1.0 wrote no journal: restore a backup of the database instead",
        ),
        Error::SeveralJournals { journals } => {
            let how = "docs/OPERATING.md, \"Several journals\", says how to choose";
            journals.iter().cloned().chain([how.to_owned()]).collect()
        }
        Error::RecoveryUnfinished => hint("run `dormer recover --from-store` again: it goes on"),
        Error::NotOverwritten { .. } => hint("choose another name, or move it away first, with the files -wal and -shm beside it"),
        Error::BackupOfPostgres => vec![
            "pg_dump --format=custom --file=dormer.dump \"$DORMER_DATABASE_URL\" backs up while replicas run; pg_restore brings it back"
                .to_owned(),
            "docs/OPERATING.md, \"Backups\", has the whole procedure".to_owned(),
        ],
        _ => Vec::new(),
    }
}

/// The master key, and the keys of tokens.
fn key_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::WrongMasterKey { .. } | Error::NoMasterKey { .. } => vec![
            "restore the master key from its backup (file master-key of the data folder, or DORMER_MASTER_KEY); without \
             it the caches' signing keys cannot be read"
                .to_owned(),
            "if `dormer rekey` has replaced it, the new one is the key of this database now".to_owned(),
        ],
        Error::NoSharedMasterKey { .. } => vec![
            "make one, keep a copy apart from the database's backup, and give it to every replica:".to_owned(),
            "  DORMER_MASTER_KEY=$(openssl rand -base64 32)    or the file that master-key-file names".to_owned(),
        ],
        Error::RekeyUnfinished | Error::Engine(dormer_engine::Error::RekeyUnfinished) => hint(
            "set previous-master-key too (DORMER_PREVIOUS_MASTER_KEY), or previous-master-key-file, and finish with `dormer rekey`",
        ),
        Error::Engine(dormer_engine::Error::Sealed { .. }) => hint(
            "if `dormer rekey` has replaced the master key, this process needs the new one in master-key; while it replaces \
             it, processes need both (previous-master-key)",
        ),
        Error::NoTokenSecret { .. } => vec![
            "start `dormer serve` once with the same settings, or set jwt.signing.token-hs256-secret-base64".to_owned(),
            "`dormer token create` runs where the server's settings are, not on its clients".to_owned(),
        ],
        Error::TokenVerifier(KeyError::ShortSecret { .. }) => vec![
            "make one: openssl rand -base64 64 | tr -d '\\n'".to_owned(),
            "set it as jwt.signing.token-hs256-secret-base64 (Attic's variable: \
             ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64), and make all tokens again: dormer token create"
                .to_owned(),
        ],
        Error::TokenKey { .. } | Error::TokenVerifier(_) => {
            hint("it must be a PEM file, encoded in base64 as a whole; make a key with: openssl genrsa -traditional 2048 | base64 -w0")
        }
        Error::CannotSignTokens => hint("make tokens on a machine with the RSA private key"),
        _ => Vec::new(),
    }
}

/// This machine, its files, and addresses.
fn machine_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::Io { attempt, source }
            if source.kind() == io::ErrorKind::AddrInUse && attempt.starts_with("listen") =>
        {
            hint(
                "something else listens there: another `dormer serve`? Choose another address (--listen, metrics.listen)",
            )
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            hint("the disk is full: free some space and run the command again")
        }
        Error::ReportedAddress { may_allow, .. } => {
            let mut hints = hint(
                "the server's setting api-endpoint (or substituter-endpoint) must be the address that its users see; a proxy \
                 may report it instead (trusted-proxies)",
            );
            if *may_allow {
                hints.push(
                    "if that address is meant: --allow-other-host; a private cache's token goes there"
                        .to_owned(),
                );
            }
            hints
        }
        Error::NotAServer { .. } => hint(
            "is there another program at this address, or does the proxy lack the path /_api/ of the server?",
        ),
        Error::NetrcOfOthers { .. } => hint(
            "run it as root with --system: Nix reads one netrc file only, and one of your own would hide this one",
        ),
        Error::ManagedFile { lines, .. } => {
            let mut hints = hint("add these lines to the settings of that tool:");
            hints.extend(lines.iter().map(|line| format!("  {line}")));
            hints
        }
        _ => Vec::new(),
    }
}

const INCOMPLETE: &str = "to push paths whose references the filter keeps out: --allow-incomplete (the cache then has half a closure)";

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
