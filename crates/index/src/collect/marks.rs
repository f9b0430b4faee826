//! Marks: the recipes of all NARs in pages, the NARs without a name, and the chunks that moved.

use super::contract::MarkedNar;
use crate::Result;
use crate::columns::{corrupt, recipe, unsigned};
use crate::contract::{NarId, UnixSeconds};
use crate::sql::Argument::Number;
use crate::sql::{Sql, Transaction, both};

/// Bytes of recipes in one page of NARs to mark. A recipe has 1 MiB at most.
const MARK_BYTES_MAX: i64 = 2 << 20;

// A page of NARs to mark is read in ranges of numbers, each table by itself: one look at an index
// for each NAR would cost several times as much as walking through the range, and so would a row
// for each NAR on its way to this process.

/// The last NAR of a page: the one that so many come before, or the last of all.
pub(crate) const MARK_END: Sql = both!(
    "SELECT coalesce((SELECT id FROM nars WHERE id > $1 ORDER BY id LIMIT 1 OFFSET $2),
         (SELECT max(id) FROM nars WHERE id > $1))"
);
/// Bytes of its recipes. Both databases know a length without the bytes. Nearly all listings are in
/// their rows, and have no recipe; `size >= 0` is the condition of the index of the others.
pub(crate) const MARK_BYTES: Sql = both!(
    "SELECT CAST(coalesce((SELECT sum(length(recipe)) FROM nars WHERE id > $1 AND id <= $2), 0)
         + coalesce((SELECT sum(length(body)) FROM listings WHERE size >= 0 AND nar > $1 AND nar <= $2), 0)
         AS BIGINT)"
);
/// The same for each NAR, for a page that is too large.
pub(crate) const MARK_SIZES: Sql = both!(
    "SELECT n.id, CAST(length(n.recipe) + coalesce((SELECT length(l.body) FROM listings AS l
         WHERE l.nar = n.id AND l.size IS NOT NULL), 0) AS BIGINT)
     FROM nars AS n WHERE n.id > $1 ORDER BY n.id LIMIT $2"
);
/// All NARs of a page in one value: [`read_page`] takes it apart.
pub(crate) const MARK_RECIPES: Sql = Sql {
    sqlite: "
        SELECT unhex(group_concat(printf('%016x%016x%08x', id, size, length(recipe)) || hex(recipe), ''))
        FROM nars WHERE id > $1 AND id <= $2",
    postgres: "
        SELECT string_agg(int8send(id) || int8send(size) || int4send(length(recipe)) || recipe, '')
        FROM nars WHERE id > $1 AND id <= $2",
};
pub(crate) const MARK_LISTINGS: Sql =
    both!("SELECT nar, body FROM listings WHERE size >= 0 AND nar > $1 AND nar <= $2 ORDER BY nar");
// The range is said again for PostgreSQL, which does not conclude it from the equation.
pub(crate) const UNNAMED_NARS: Sql = both!(
    "SELECT n.id FROM nars AS n WHERE n.id > $1 AND n.id <= $2
         AND NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.nar > $1 AND o.nar <= $2)
         AND NOT EXISTS (SELECT 1 FROM graces AS g
                         WHERE g.nar = n.id AND g.nar > $1 AND g.nar <= $2 AND g.ends_at > $3)
         AND NOT EXISTS (SELECT 1 FROM aliases AS a
                         WHERE a.nar = n.id AND a.nar > $1 AND a.nar <= $2 AND a.used_at > $4)"
);

/// The NARs that no commit is naming right now.
pub(super) const HOLD_NARS: Sql = Sql {
    sqlite: "SELECT value FROM json_each($1)",
    postgres: "SELECT n.id FROM nars AS n WHERE n.id = ANY ($1) ORDER BY n.id FOR UPDATE SKIP LOCKED",
};
pub(crate) const DELETE_NARS: Sql = Sql {
    sqlite: "
        DELETE FROM nars WHERE id IN (SELECT value FROM json_each($1))
            AND NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = nars.id)
            AND NOT EXISTS (SELECT 1 FROM graces AS g WHERE g.nar = nars.id)
            AND NOT EXISTS (SELECT 1 FROM aliases AS a WHERE a.nar = nars.id)
        RETURNING id",
    postgres: "
        DELETE FROM nars WHERE id = ANY ($1) AND NOT EXISTS (
            SELECT 1 FROM objects AS o WHERE o.nar = nars.id
            UNION ALL SELECT 1 FROM graces AS g WHERE g.nar = nars.id
            UNION ALL SELECT 1 FROM aliases AS a WHERE a.nar = nars.id)
        RETURNING id",
};

pub(crate) const MOVED_CHUNKS: Sql = both!(
    "SELECT number, pack FROM chunks WHERE pack <> number / 65536 AND number > $1 ORDER BY number LIMIT $2"
);

/// A page of NARs, with their chunks and whether something names them
/// ([`CollectIndex::mark_nars`](super::CollectIndex::mark_nars)).
pub(super) async fn mark_page(
    tx: &mut Transaction,
    after: NarId,
    limit: u32,
    now: UnixSeconds,
    aliases_since: UnixSeconds,
) -> Result<Vec<MarkedNar>> {
    let mut after = after.0;
    while let Some(last) = page_end(tx, after, limit).await? {
        let range = [Number(after), Number(last)];
        let packed = tx.one(MARK_RECIPES, &range).await?;
        let mut page = packed.column::<Option<&[u8]>>(0, "nars")?.map_or(Ok(Vec::new()), read_page)?;
        for row in tx.rows(MARK_LISTINGS, &range).await? {
            let nar = NarId(row.column(0, "listings")?);
            if let Ok(place) = page.binary_search_by_key(&nar, |nar| nar.id) {
                page[place].runs.extend(recipe("listings", row.column(1, "listings")?)?.runs);
            }
        }
        // Last: a name that a commit gave meanwhile counts.
        let range = [range[0], range[1], Number(now), Number(aliases_since)];
        for row in tx.rows(UNNAMED_NARS, &range).await? {
            let nar = NarId(row.column(0, "nars")?);
            if let Ok(place) = page.binary_search_by_key(&nar, |nar| nar.id) {
                page[place].is_named = false;
            }
        }
        if !page.is_empty() {
            return Ok(page);
        }
        // All of them were removed meanwhile, which is not the end.
        after = last;
    }
    Ok(Vec::new())
}

/// The last NAR of the page after one: of at most `limit` NARs, or fewer if their recipes are
/// large. `None` at the end.
pub(crate) async fn page_end(tx: &mut Transaction, after: i64, limit: u32) -> Result<Option<i64>> {
    let end = tx.one(MARK_END, &[Number(after), Number(i64::from(limit) - 1)]).await?;
    let Some(last) = end.column::<Option<i64>>(0, "nars")? else { return Ok(None) };
    let bytes: i64 = tx.one(MARK_BYTES, &[Number(after), Number(last)]).await?.column(0, "nars")?;
    if bytes <= MARK_BYTES_MAX {
        return Ok(Some(last));
    }
    let page = [Number(after), Number(limit.into())];
    let (mut end, mut bytes) = (None, 0);
    for row in tx.rows(MARK_SIZES, &page).await? {
        bytes += row.column::<i64>(1, "nars")?;
        // The first one always fits.
        if bytes > MARK_BYTES_MAX && end.is_some() {
            break;
        }
        end = Some(row.column(0, "nars")?);
    }
    Ok(end)
}

/// The NARs of a page, by number. For each, in any order, the value has the id, the size and the
/// length of the recipe, all big-endian, and then the recipe. All NARs count as named until another
/// statement tells otherwise.
fn read_page(packed: &[u8]) -> Result<Vec<MarkedNar>> {
    let cut = || corrupt("nars", "a page of recipes is cut");
    let mut page = Vec::new();
    let mut rest = packed;
    while !rest.is_empty() {
        let (id, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let (size, after) = after.split_first_chunk().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("32 bits fit");
        let (bytes, after) = after.split_at_checked(length).ok_or_else(cut)?;
        page.push(MarkedNar {
            id: NarId(i64::from_be_bytes(*id)),
            size: unsigned("nars", i64::from_be_bytes(*size))?,
            is_named: true,
            runs: recipe("nars", bytes)?.runs,
        });
        rest = after;
    }
    page.sort_unstable_by_key(|nar| nar.id);
    Ok(page)
}
