//! Notes for the journal: each says that something besides an object changed. Unlike the outbox
//! they have no order: a row stays until the journal has written the state that it stands for, and
//! a change meanwhile keeps it (`changes`).

use std::borrow::Cow;

use dormer_nix::StorePathHash;

use crate::Result;
use crate::columns::corrupt;
use crate::contract::{CacheId, JournalNote, JournalSubject};
use crate::publish::records::{Records, records};
use crate::rows::Row;
use crate::sql::Argument::{Number, Text};
use crate::sql::{Sql, Transaction, both};

/// Kinds in the table of notes. The statements that note many at once name them too.
const SETTINGS_KIND: i64 = 0;
const CACHE_KIND: i64 = 1;
const ALIAS_KIND: i64 = 2;
const DOCUMENT_KIND: i64 = 3;
const PIN_KIND: i64 = 4;

const NOTE: Sql = both!(
    "INSERT INTO journal_notes (cache, kind, name, changes) VALUES ($1, $2, $3, 1)
     ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1"
);
const NOTE_PINS: Sql = records!(
    "INSERT INTO journal_notes (cache, kind, name, changes) SELECT $1, 4, k.name, 1 FROM",
    2 { name: text 0 },
    "AS k WHERE 1 = 1 ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1"
);
const NOTES: Sql =
    both!("SELECT cache, kind, name, changes FROM journal_notes ORDER BY cache, kind, name LIMIT $1");
const DROP_NOTE: Sql =
    both!("DELETE FROM journal_notes WHERE cache = $1 AND kind = $2 AND name = $3 AND changes = $4");

/// Notes that something besides an object changed.
pub(crate) async fn note(tx: &mut Transaction, subject: &JournalSubject) -> Result<()> {
    let (cache, kind, name) = columns(subject);
    tx.run(NOTE, &[Number(cache), Number(kind), Text(&name)]).await.map(drop)
}

/// Notes that a cache changed.
pub(crate) async fn note_cache(tx: &mut Transaction, cache: CacheId) -> Result<()> {
    note(tx, &JournalSubject::Cache(cache)).await
}

/// Notes that pins of a name changed, by the hashes of their paths: no hash twice.
pub(crate) async fn note_pins(
    tx: &mut Transaction,
    cache: CacheId,
    name: &str,
    hashes: &[StorePathHash],
) -> Result<()> {
    let mut keys: Vec<String> = hashes.iter().map(|hash| pin_key(name, hash)).collect();
    // Rows are locked in this order everywhere.
    keys.sort_unstable();
    let mut pins = Records::default();
    for key in &keys {
        pins.row().text(Some(key));
    }
    tx.run(NOTE_PINS, &[Number(cache.0), Text(&pins.finish())]).await.map(drop)
}

/// What a note calls a pin: the hash of its path, which has one length, and its name.
fn pin_key(name: &str, hash: &StorePathHash) -> String {
    format!("{hash}-{name}")
}

/// Reads back what [`pin_key`] wrote.
fn read_pin_key(key: &str) -> Option<(String, StorePathHash)> {
    let (hash, name) = key.split_once('-')?;
    Some((name.to_owned(), hash.parse().ok()?))
}

/// The first notes.
pub(super) async fn notes(tx: &mut Transaction, limit: u32) -> Result<Vec<JournalNote>> {
    tx.rows(NOTES, &[Number(limit.into())]).await?.iter().map(read_note).collect()
}

/// Forgets a note, unless there was a change meanwhile.
pub(super) async fn drop_note(tx: &mut Transaction, note: &JournalNote) -> Result<()> {
    let (cache, kind, name) = columns(&note.subject);
    tx.run(DROP_NOTE, &[Number(cache), Number(kind), Text(&name), Number(note.changes)]).await.map(drop)
}

/// The key of a note in the table: cache, kind, name.
fn columns(subject: &JournalSubject) -> (i64, i64, Cow<'_, str>) {
    match subject {
        JournalSubject::Settings => (0, SETTINGS_KIND, "".into()),
        JournalSubject::Cache(cache) => (cache.0, CACHE_KIND, "".into()),
        JournalSubject::Alias(cache, name) => (cache.0, ALIAS_KIND, name.into()),
        JournalSubject::Document(cache, name) => (cache.0, DOCUMENT_KIND, name.into()),
        JournalSubject::Pin(cache, name, hash) => (cache.0, PIN_KIND, pin_key(name, hash).into()),
    }
}

/// Columns: cache, kind, name, changes.
fn read_note(row: &Row) -> Result<JournalNote> {
    let table = "journal_notes";
    let (cache, name): (_, String) = (CacheId(row.column(0, table)?), row.column(2, table)?);
    let subject = match row.column::<i64>(1, table)? {
        SETTINGS_KIND => JournalSubject::Settings,
        CACHE_KIND => JournalSubject::Cache(cache),
        ALIAS_KIND => JournalSubject::Alias(cache, name),
        DOCUMENT_KIND => JournalSubject::Document(cache, name),
        PIN_KIND => {
            let pin = read_pin_key(&name).ok_or_else(|| corrupt(table, format_args!("a pin {name:?}")))?;
            JournalSubject::Pin(cache, pin.0, pin.1)
        }
        kind => return Err(corrupt(table, format_args!("a note of kind {kind}"))),
    };
    Ok(JournalNote { subject, changes: row.column(3, table)? })
}
