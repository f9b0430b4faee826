//! Rows of publishing's tables, and keys as parameters.

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

use super::contract::{PublishState, PublishedNar, PublishedObject};
use super::records::Records;
use crate::Result;
use crate::columns::{array, corrupt, nar_hash, tag, unsigned};
use crate::rows::Row;

/// Greater than every key.
pub(super) const AFTER_ALL_KEYS: &[u8] = &[0xff; 33];

/// A NAR and its encoding.
pub(super) type NarKey = (NarHash, EncodingTag);

/// NARs as rows of a parameter: `nar`, `tag`.
pub(super) fn nar_records(nars: &[NarKey]) -> String {
    let mut records = Records::default();
    for (nar, tag) in nars {
        records.row().bytes(nar.as_bytes()).bytes(tag.as_bytes());
    }
    records.finish()
}

pub(super) fn keys<'a>(hashes: impl IntoIterator<Item = &'a StorePathHash>) -> Vec<&'a [u8]> {
    hashes.into_iter().map(|hash| hash.as_bytes().as_slice()).collect()
}

/// Before all hashes, if there is none.
pub(super) fn after_bytes(after: Option<&StorePathHash>) -> &[u8] {
    after.map_or(&[], |hash| hash.as_bytes().as_slice())
}

pub(super) fn read_hash(row: &Row, column: usize, table: &'static str) -> Result<StorePathHash> {
    Ok(StorePathHash::from_bytes(array(table, row.column(column, table)?)?))
}

pub(super) fn read_nar(row: &Row, first: usize) -> Result<NarKey> {
    let table = "publish_nars";
    Ok((nar_hash(row.column(first, table)?)?, tag(row.column(first + 1, table)?)?))
}

pub(super) fn read_published(row: &Row) -> Result<PublishedObject> {
    let table = "publish_objects";
    let state = match row.column::<i64>(1, table)? {
        0 => PublishState::Writing,
        1 => PublishState::Published,
        2 => PublishState::Removing,
        other => return Err(corrupt(table, format_args!("state {other}"))),
    };
    let upstream: i64 = row.column(6, table)?;
    Ok(PublishedObject {
        hash: read_hash(row, 0, table)?,
        state,
        nar: read_nar(row, 2)?,
        digest: row.column(4, table)?,
        etag: row.column(5, table)?,
        upstream: upstream != 0,
    })
}

pub(super) fn read_published_nar(row: &Row) -> Result<PublishedNar> {
    let table = "publish_nars";
    let uploaded: i64 = row.column(2, table)?;
    let file_hash: Option<&[u8]> = row.column(4, table)?;
    Ok(PublishedNar {
        nar: read_nar(row, 0)?,
        uploaded: uploaded != 0,
        file_size: unsigned(table, row.column(3, table)?)?,
        file_hash: file_hash.map(nar_hash).transpose()?,
        etag: row.column(5, table)?,
        delete_after: row.column(6, table)?,
    })
}
