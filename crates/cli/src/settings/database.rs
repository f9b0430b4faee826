//! The database of the settings, and whether the keys for it fit together.

use std::path::PathBuf;

use dormer_api::Secret;
use dormer_index::{PostgresIndex, PostgresOptions};

use super::error::Result;
use super::keys::{self, Key};
use super::origin::Origin;
use super::raw::Raw;
use super::values::{boolean, duration, integer, text, wrong};

/// A PostgreSQL server.
#[derive(Debug, Clone)]
pub(crate) struct PostgresDatabase {
    /// The address; may hold a password.
    pub(crate) url: Secret,
    /// The address for people: database and host.
    pub(crate) name: String,
    pub(crate) options: PostgresOptions,
}

/// Keys that have no effect on a file.
const SERVER_KEYS: [&Key; 5] = [
    &keys::DATABASE_CONNECTIONS,
    &keys::DATABASE_ACQUIRE_TIMEOUT,
    &keys::DATABASE_STATEMENT_TIMEOUT,
    &keys::DATABASE_LOCK_TIMEOUT,
    &keys::DATABASE_TRANSACTION_POOLER,
];

/// Whether an address is that of a PostgreSQL database.
pub(super) fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// The PostgreSQL database of the settings. `None` if the index is a file.
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
    // The parser's own message may repeat a part of the address.
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

/// The file of the index. Has no meaning if the index is on a server.
pub(super) fn sqlite_path(raw: &Raw) -> Result<PathBuf> {
    let url = text(raw, &keys::DATABASE_URL);
    if is_postgres(url) {
        return Ok(PathBuf::new());
    }
    let rest = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    // Attic's examples end in `?mode=rwc`. Dormer always creates a missing file.
    let file = rest.map(|rest| rest.split('?').next().unwrap_or_default());
    match file {
        Some(file) if !file.is_empty() && file != ":memory:" => Ok(PathBuf::from(file)),
        Some(_) => Err(wrong(raw, &keys::DATABASE_URL, "names no file".to_owned())),
        // Does not show the address, because it may hold a password.
        None => {
            let forms = "is neither \"sqlite:///path/to/index.sqlite\" nor \"postgresql://user:password@host/database\"";
            Err(wrong(raw, &keys::DATABASE_URL, forms.to_owned()))
        }
    }
}
