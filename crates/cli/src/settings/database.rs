//! Which database the settings name, and whether what belongs to it is there.

use std::path::PathBuf;

use dormer_api::Secret;
use dormer_index::{PostgresIndex, PostgresOptions};

use super::error::Result;
use super::keys::{self, Key};
use super::raw::{Origin, Raw};
use super::resolve::{boolean, duration, integer, text, wrong};

/// A PostgreSQL server.
#[derive(Debug, Clone)]
pub(crate) struct PostgresDatabase {
    /// May hold a password.
    pub(crate) url: Secret,
    /// The same for people: database and host.
    pub(crate) name: String,
    pub(crate) options: PostgresOptions,
}

/// Keys that mean nothing for a file.
const SERVER_KEYS: [&Key; 5] = [
    &keys::DATABASE_CONNECTIONS,
    &keys::DATABASE_ACQUIRE_TIMEOUT,
    &keys::DATABASE_STATEMENT_TIMEOUT,
    &keys::DATABASE_LOCK_TIMEOUT,
    &keys::DATABASE_TRANSACTION_POOLER,
];

/// Whether an address is one of PostgreSQL.
pub(super) fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// `None`: the index is a file.
pub(super) fn postgres(raw: &Raw, notes: &mut Vec<String>) -> Result<Option<PostgresDatabase>> {
    let url = text(raw, &keys::DATABASE_URL);
    if !is_postgres(url) {
        let is_set = |key: &&&Key| raw.find(key).is_some_and(|setting| setting.origin != Origin::Default);
        let set: Vec<&str> = SERVER_KEYS.iter().filter(is_set).map(|key| key.path).collect();
        if !set.is_empty() {
            notes.push(format!("without effect: {} (the index is an SQLite file)", set.join(", ")));
        }
        return Ok(None);
    }
    // The parser's own words may repeat a part of it.
    let name = PostgresIndex::name_of(url).map_err(|_| {
        let form = "is not of the form \"postgresql://user:password@host:5432/database\"";
        wrong(raw, &keys::DATABASE_URL, form.to_owned())
    })?;
    let options = PostgresOptions {
        connections_max: u32::try_from(integer(raw, &keys::DATABASE_CONNECTIONS))
            .expect("checked to be small"),
        acquire_timeout: duration(raw, &keys::DATABASE_ACQUIRE_TIMEOUT),
        statement_timeout: duration(raw, &keys::DATABASE_STATEMENT_TIMEOUT),
        lock_timeout: duration(raw, &keys::DATABASE_LOCK_TIMEOUT),
        transaction_pooler: boolean(raw, &keys::DATABASE_TRANSACTION_POOLER),
    };
    Ok(Some(PostgresDatabase { url: Secret::new(url), name, options }))
}

/// The file of the index. Meaningless when the index is on a server.
pub(super) fn sqlite_path(raw: &Raw) -> Result<PathBuf> {
    let url = text(raw, &keys::DATABASE_URL);
    if is_postgres(url) {
        return Ok(PathBuf::new());
    }
    let rest = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    // Attic's examples end in `?mode=rwc`; the file is always made if it is not there.
    let file = rest.map(|rest| rest.split('?').next().unwrap_or_default());
    match file {
        Some(file) if !file.is_empty() && file != ":memory:" => Ok(PathBuf::from(file)),
        Some(_) => Err(wrong(raw, &keys::DATABASE_URL, "names no file".to_owned())),
        // Not shown: it may hold a password.
        None => {
            let forms = "is neither \"sqlite:///path/to/index.sqlite\" nor \"postgresql://user:password@host/database\"";
            Err(wrong(raw, &keys::DATABASE_URL, forms.to_owned()))
        }
    }
}
