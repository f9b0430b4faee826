//! Rows read back, whichever database they come from: both dialects select the same columns in the
//! same order.

use dormer_format::PackId;
use dormer_nix::StorePathHash;
use sqlx::postgres::{PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row as _, Type};

use crate::Result;
use crate::columns::{
    ChunkColumns, array, corrupt, nar_hash, recipe, store_path, tag, unpack_fields, unpack_references,
    unpack_signatures, unsigned,
};
use crate::contract::{
    Alias, Cache, CacheId, CacheKey, CacheTotals, CacheVisibility, ChunkRow, FoundObject, Nar, NarId,
    NarSummary, Object, OutboxPosition, OutboxRow, UnixSeconds,
};
use crate::object_conflict::Present;

/// A value that both databases can give.
pub(crate) trait Value<'r>:
    Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}

impl<'r, T> Value<'r> for T where T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres> {}

/// A row of either database.
#[derive(Debug)]
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// A column's value; [`Error::Corrupt`](crate::Error::Corrupt) names the table if it is of
    /// another kind.
    pub(crate) fn column<'r, T: Value<'r>>(&'r self, column: usize, table: &'static str) -> Result<T> {
        let value = match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        };
        value.map_err(|error| corrupt(table, error))
    }
}

/// What a commit found before it wrote anything.
pub(crate) struct Look {
    pub(crate) cache_exists: bool,
    /// The NAR's row, and whether it has to be stored again.
    pub(crate) nar: Option<(NarId, bool)>,
}

/// Columns: cache, NAR, its damage.
pub(crate) fn read_look(row: &Row) -> Result<Look> {
    let cache: Option<i64> = row.column(0, "caches")?;
    let nar: Option<i64> = row.column(1, "nars")?;
    let damaged_at: Option<i64> = row.column(2, "nars")?;
    Ok(Look { cache_exists: cache.is_some(), nar: nar.map(|id| (NarId(id), damaged_at.is_some())) })
}

/// The object in a row of the commit's first look. Columns from the fourth on: damage of its NAR,
/// its NAR, the object.
pub(crate) fn read_present(row: &Row) -> Result<Option<Present>> {
    let Some(nar) = row.column::<Option<i64>>(4, "objects")? else { return Ok(None) };
    let nar_damaged_at: Option<i64> = row.column(3, "nars")?;
    Ok(Some(Present { object: read_object(row, 5)?, nar: NarId(nar), nar_damaged: nar_damaged_at.is_some() }))
}

/// Columns: those of a summary, last use, those of an object.
pub(crate) fn read_found(row: &Row) -> Result<FoundObject> {
    Ok(FoundObject {
        nar: read_summary(row)?,
        last_used_at: row.column(6, "objects")?,
        object: read_object(row, 7)?,
    })
}

/// The eight columns of an object, from `first` on: hash, name, refs, deriver, ca, sigs, system,
/// extra.
pub(crate) fn read_object(row: &Row, first: usize) -> Result<Object> {
    let table = "objects";
    let path = store_path(row.column(first, table)?, row.column(first + 1, table)?)?;
    Ok(Object {
        references: unpack_references(&path, row.column(first + 2, table)?)?,
        deriver: row.column(first + 3, table)?,
        ca: row.column(first + 4, table)?,
        sigs: unpack_signatures(row.column(first + 5, table)?)?,
        system: row.column(first + 6, table)?,
        extra: unpack_fields(row.column(first + 7, table)?),
        path,
    })
}

/// Columns: hash, last use.
pub(crate) fn read_use(row: &Row) -> Result<(StorePathHash, UnixSeconds)> {
    let table = "objects";
    let hash = StorePathHash::from_bytes(array(table, row.column(0, table)?)?);
    Ok((hash, row.column(1, table)?))
}

/// Columns: those of a summary, compression.
pub(crate) fn read_alias(row: &Row) -> Result<Alias> {
    Ok(Alias { compression: row.column(6, "aliases")?, nar: read_summary(row)? })
}

/// Columns: id, hash, size, file_size, tag, damaged_at.
pub(crate) fn read_summary(row: &Row) -> Result<NarSummary> {
    let table = "nars";
    let damaged_at: Option<i64> = row.column(5, table)?;
    Ok(NarSummary {
        id: NarId(row.column(0, table)?),
        hash: nar_hash(row.column(1, table)?)?,
        size: unsigned(table, row.column(2, table)?)?,
        file_size: unsigned(table, row.column(3, table)?)?,
        tag: tag(row.column(4, table)?)?,
        damaged: damaged_at.is_some(),
    })
}

/// Columns: those of a summary, recipe.
pub(crate) fn read_nar(row: &Row) -> Result<Nar> {
    let NarSummary { id, hash, size, file_size, tag, damaged } = read_summary(row)?;
    let recipe = recipe("nars", row.column(6, "nars")?)?;
    Ok(Nar { id, hash, size, file_size, tag, recipe, damaged })
}

/// The place of a row's key among those asked for.
pub(crate) fn read_position(row: &Row) -> Result<usize> {
    let key: i64 = row.column(0, "chunks")?;
    usize::try_from(key).map_err(|_| corrupt("chunks", "a negative key"))
}

/// Columns: place, number, id, pack, the pack's id, start, checksum, layout.
pub(crate) fn read_chunk(row: &Row) -> Result<ChunkRow> {
    let table = "chunks";
    ChunkColumns {
        number: row.column(1, table)?,
        id: row.column(2, table)?,
        pack: row.column(3, table)?,
        pack_id: row.column(4, table)?,
        start: row.column(5, table)?,
        checksum: row.column(6, table)?,
        layout: row.column(7, table)?,
    }
    .read()
}

/// A pack's id alone.
pub(crate) fn read_pack_id(row: &Row) -> Result<PackId> {
    Ok(PackId::from_bytes(array("packs", row.column(0, "packs")?)?))
}

/// Rows of caches with their keys; those of one cache are neighbours.
pub(crate) fn read_caches(rows: &[Row]) -> Result<Vec<Cache>> {
    let mut caches: Vec<Cache> = Vec::new();
    for row in rows {
        let id = CacheId(row.column(0, "caches")?);
        if caches.last().is_none_or(|last| last.id != id) {
            caches.push(read_cache(id, row)?);
        }
        let public_key: Option<String> = row.column(8, "cache_keys")?;
        if let (Some(public_key), Some(cache)) = (public_key, caches.last_mut()) {
            let sealed_secret = row.column(9, "cache_keys")?;
            cache.keys.push(CacheKey { public_key, sealed_secret, active: row.column(10, "cache_keys")? });
        }
    }
    Ok(caches)
}

fn read_cache(id: CacheId, row: &Row) -> Result<Cache> {
    let table = "caches";
    let names: &str = row.column(5, table)?;
    let quota: Option<i64> = row.column(12, table)?;
    let keep_latest: Option<i64> = row.column(13, table)?;
    Ok(Cache {
        id,
        name: row.column(1, table)?,
        is_public: row.column(2, table)?,
        store_dir: row.column(3, table)?,
        priority: row.column(4, table)?,
        upstream_cache_key_names: serde_json::from_str(names).map_err(|error| corrupt(table, error))?,
        retention_seconds: row.column(6, table)?,
        quota_bytes: quota.map(|bytes| unsigned(table, bytes)).transpose()?,
        keep_latest: keep_latest.map(u32::try_from).transpose().map_err(|error| corrupt(table, error))?,
        keys: Vec::new(),
        created_at: row.column(7, table)?,
        allow_replacement: row.column(11, table)?,
    })
}

/// Columns: name, whether it is public.
pub(crate) fn read_visibilities(rows: &[Row]) -> Result<Vec<CacheVisibility>> {
    let read = |row| -> Result<CacheVisibility> {
        let row: &_ = row;
        Ok(CacheVisibility {
            name: Row::column(row, 0, "caches")?,
            is_public: Row::column(row, 1, "caches")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Columns: count of objects, bytes of NARs.
pub(crate) fn read_totals(row: &Row) -> Result<CacheTotals> {
    Ok(CacheTotals {
        object_count: unsigned("objects", row.column(0, "objects")?)?,
        nar_bytes: unsigned("nars", row.column(1, "nars")?)?,
    })
}

/// Columns: transaction, number, cache, hash, time.
pub(crate) fn read_outbox(row: &Row) -> Result<OutboxRow> {
    let table = "outbox";
    let hash: Option<&[u8]> = row.column(3, table)?;
    Ok(OutboxRow {
        position: OutboxPosition { transaction: row.column(0, table)?, number: row.column(1, table)? },
        cache: CacheId(row.column(2, table)?),
        store_path_hash: hash.map(|hash| array(table, hash).map(StorePathHash::from_bytes)).transpose()?,
        at: row.column(4, table)?,
    })
}

/// A list of names as a column.
pub(crate) fn names_column(names: &[String]) -> String {
    serde_json::to_string(names).expect("strings are JSON")
}
