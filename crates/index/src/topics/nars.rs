//! NARs: look-ups, listings, and the commit that makes one visible under a name.
//!
//! A commit holds locks for its NAR and its object (on SQLite: the write lock), so what it found is
//! still so when it writes. Known NARs need no stamps: the commit sees the NAR's row in its own
//! transaction, and a collector that wants to remove chunks first has to remove that row, which no
//! object may have by then. On PostgreSQL the object's reference to the NAR's row fails if the row
//! went, and the call is repeated.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::NarHash;

use super::counters::generation;
use super::{chunks, damage, journal_notes, objects, outbox};
use crate::changes::Change;
use crate::columns::{listing_columns, read_listing, signed};
use crate::contract::{
    CacheId, CommitOutcome, CommitTarget, JournalSubject, Nar, NarCommit, NarId, NarIndex, NarQuery,
    NarSource, NarSummary, NewNar, StoredListing, UnixSeconds,
};
use crate::object_conflict::{ObjectChange, change_object};
use crate::publish::records::{Records, records};
use crate::rows::{read_look, read_nar, read_present, read_summary};
use crate::sql::Argument::{Bytes, Number, OptionalBytes, OptionalNumber, Text};
use crate::sql::{Sql, Transaction, both, damaged};
use crate::sql_index::{Lock, SqlIndex, Write, log_key};
use crate::{Error, Result};

// A NAR without its listing counts as damaged for uploads, which can store it again.
pub(crate) const FIND_NAR: Sql = both!(concat!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, CASE WHEN l.nar IS NULL THEN 0 ELSE ",
    damaged!("n"),
    " END
     FROM nars AS n LEFT JOIN listings AS l ON l.nar = n.id
     WHERE n.hash = $1"
));

// One EXISTS, not three: of several that are joined by OR, PostgreSQL would first gather all NARs
// of the cache.
pub(crate) const FIND_NAR_BY_HASH: Sql = both!(concat!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, ",
    damaged!("n"),
    ", n.recipe
     FROM nars AS n
     WHERE n.hash = $2 AND EXISTS (
         SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.cache = $1
         UNION ALL SELECT 1 FROM graces AS g WHERE g.nar = n.id AND g.cache = $1 AND g.ends_at > $3
         UNION ALL SELECT 1 FROM aliases AS a WHERE a.nar = n.id AND a.cache = $1)
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
));

pub(crate) const FIND_NAR_BY_PATH: Sql = both!(concat!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, ",
    damaged!("n"),
    ", n.recipe
     FROM objects AS o JOIN nars AS n ON n.id = o.nar
     WHERE o.cache = $1 AND o.hash = $2
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
));

pub(crate) const FIND_LISTING: Sql = both!("SELECT size, body FROM listings WHERE nar = $1");

/// Everything that a commit has to know first, in one row. `$2` is the NAR's hash. Without its
/// listing a NAR counts as damaged: what was just stored replaces it.
pub(crate) const LOOK_BY_HASH: Sql = both!(concat!(
    "SELECT c.id, n.id, CASE WHEN l.nar IS NULL THEN 0 ELSE ",
    damaged!("n"),
    " END, ",
    damaged!("m"),
    ",
         o.nar, o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system, o.extra
     FROM (SELECT 1) AS one
     LEFT JOIN caches AS c ON c.id = $1 AND c.deleted_at IS NULL
     LEFT JOIN nars AS n ON n.hash = $2
     LEFT JOIN listings AS l ON l.nar = n.id
     LEFT JOIN objects AS o ON o.cache = $1 AND o.hash = $3
     LEFT JOIN nars AS m ON m.id = o.nar"
));

/// The same; `$2` is the NAR's row number, and it can be named without its listing.
pub(crate) const LOOK_BY_ID: Sql = both!(concat!(
    "SELECT c.id, n.id, ",
    damaged!("n"),
    ", ",
    damaged!("m"),
    ", o.nar, o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system, o.extra
     FROM (SELECT 1) AS one
     LEFT JOIN caches AS c ON c.id = $1 AND c.deleted_at IS NULL
     LEFT JOIN nars AS n ON n.id = $2
     LEFT JOIN objects AS o ON o.cache = $1 AND o.hash = $3
     LEFT JOIN nars AS m ON m.id = o.nar"
));

// New, or healed in place: the commit's look says that a row with this hash may be replaced.
// PostgreSQL writes the listing with it.
const WRITE_NAR: Sql = Sql {
    sqlite: concat!(
        "INSERT INTO nars (hash, size, file_size, tag, recipe, holed_bytes, counted)
        VALUES ($1, $2, $3, $4, $5, $6, ",
        generation!(),
        ")
        ON CONFLICT (hash) DO UPDATE SET size = excluded.size, file_size = excluded.file_size, tag = excluded.tag,
            recipe = excluded.recipe, damaged_at = NULL, holed_bytes = excluded.holed_bytes,
            counted = excluded.counted
        RETURNING id"
    ),
    postgres: concat!(
        "WITH nar AS (
            INSERT INTO nars (hash, size, file_size, tag, recipe, holed_bytes, counted)
            VALUES ($1, $2, $3, $4, $5, $6, ",
        generation!(),
        ")
            ON CONFLICT (hash) DO UPDATE SET size = excluded.size, file_size = excluded.file_size,
                tag = excluded.tag, recipe = excluded.recipe, damaged_at = NULL,
                holed_bytes = excluded.holed_bytes, counted = excluded.counted
            RETURNING id)
        INSERT INTO listings (nar, size, body) SELECT nar.id, $7, $8 FROM nar
        ON CONFLICT (nar) DO UPDATE SET size = excluded.size, body = excluded.body
        RETURNING nar"
    ),
};

const WRITE_LISTING: Sql = Sql {
    sqlite: "
        INSERT INTO listings (nar, size, body) VALUES ($1, $2, $3)
        ON CONFLICT (nar) DO UPDATE SET size = excluded.size, body = excluded.body",
    postgres: Sql::NOTHING,
};

// The same archive has the same debug files.
const WRITE_BUILD_IDS: Sql = records!(
    "INSERT INTO build_ids (build_id, nar) SELECT k.build_id, $1 FROM", 2 { build_id: bytes 0 }, "AS k WHERE true
     ON CONFLICT (build_id, nar) DO NOTHING"
);

const UPDATE_ENCODING: Sql = both!("UPDATE nars SET tag = $2, file_size = $3 WHERE id = $1");

const WRITE_ALIAS: Sql = both!(
    "INSERT INTO aliases (cache, file_name, compression, nar, used_at) VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (cache, file_name) DO UPDATE SET
         compression = excluded.compression, nar = excluded.nar, used_at = excluded.used_at"
);

#[async_trait]
impl NarIndex for SqlIndex {
    async fn find_nar(&self, hash: &NarHash) -> Result<Option<NarSummary>> {
        if !self.known.may_have_nar(hash) {
            return Ok(None);
        }
        self.read("find a NAR", async |mut tx| {
            let row = tx.optional(FIND_NAR, &[Bytes(hash.as_bytes())]).await?;
            row.map(|row| read_summary(&row)).transpose()
        })
        .await
    }

    async fn find_nar_in_cache(
        &self,
        cache: CacheId,
        key: &NarQuery,
        now: UnixSeconds,
    ) -> Result<Option<Nar>> {
        let may_have = match key {
            NarQuery::Hash(hash) => self.known.may_have_nar(hash),
            NarQuery::StorePath(hash) => self.known.may_have_object(cache, hash),
        };
        if !may_have {
            return Ok(None);
        }
        self.read("find a cache's NAR", async |mut tx| {
            let row = match key {
                NarQuery::Hash(hash) => {
                    let key = [Number(cache.0), Bytes(hash.as_bytes()), Number(now)];
                    tx.optional(FIND_NAR_BY_HASH, &key).await?
                }
                NarQuery::StorePath(hash) => {
                    tx.optional(FIND_NAR_BY_PATH, &[Number(cache.0), Bytes(hash.as_bytes())]).await?
                }
            };
            row.map(|row| read_nar(&row)).transpose()
        })
        .await
    }

    async fn find_listing(&self, nar: NarId) -> Result<Option<StoredListing>> {
        self.read("find a listing", async |mut tx| {
            let row = tx.optional(FIND_LISTING, &[Number(nar.0)]).await?;
            row.map(|row| read_listing(row.column(0, "listings")?, row.column(1, "listings")?)).transpose()
        })
        .await
    }

    /// At most 8 statements, transaction control and locks included; up to 10 if an object was
    /// there and changes, and one more if a damaged NAR is healed.
    async fn commit_nar(&self, commit: &NarCommit) -> Result<CommitOutcome> {
        let locks = locks(commit);
        self.write(Write::from("commit a NAR").with_locks(&locks), async |mut tx| {
            let path_hash = commit.target.path_hash();
            let path = OptionalBytes(path_hash.as_ref().map(|hash| hash.as_bytes().as_slice()));
            let row = match &commit.nar {
                NarSource::New(nar) => {
                    tx.one(LOOK_BY_HASH, &[Number(commit.cache.0), Bytes(nar.hash.as_bytes()), path]).await?
                }
                NarSource::Known(id) => {
                    tx.one(LOOK_BY_ID, &[Number(commit.cache.0), Number(id.0), path]).await?
                }
            };
            let look = read_look(&row)?;
            if !look.cache_exists {
                return Err(Error::CacheGone);
            }
            let present = read_present(&row)?;
            let was_there = present.is_some();
            let change =
                change_object(&commit.target, &commit.known_keys, present, look.nar.map(|(id, _)| id));
            if matches!(change, Some(ObjectChange::Keep)) {
                return Ok(CommitOutcome::Kept);
            }

            let (nar, healed) = match (&commit.nar, look.nar) {
                (_, Some((id, false))) => (id, false),
                (NarSource::Known(_), _) => return Err(Error::NarGone),
                (NarSource::New(nar), damaged) => {
                    let id = write_nar(&mut tx, nar, commit.at).await?;
                    self.known.add_nar(&nar.hash);
                    if damaged.is_some() {
                        // The new recipe may need other chunks. None of them is damaged: the stamps
                        // looked.
                        damage::forget_nar(&mut tx, id).await?;
                    }
                    (id, damaged.is_some())
                }
            };
            let mut changed = false;
            if let (Some(hash), Some(change)) = (&path_hash, change) {
                changed = objects::write(&mut tx, commit, nar, change).await?;
                self.known.add_object(commit.cache, hash);
            }
            if let CommitTarget::Alias { file_name, compression } = &commit.target {
                let alias = [
                    Number(commit.cache.0),
                    Text(file_name),
                    Text(compression),
                    Number(nar.0),
                    Number(commit.at),
                ];
                tx.run(WRITE_ALIAS, &alias).await?;
                let alias = JournalSubject::Alias(commit.cache, file_name.clone());
                journal_notes::note(&mut tx, &alias).await?;
            }
            if healed {
                outbox::note_new_tag(&mut tx, nar, commit.at).await?;
                tx.announce(Change::Everything).await?;
            } else if let (true, Some(hash)) = (changed, path_hash) {
                outbox::note_change(&mut tx, commit.cache, Some(&hash), commit.at).await?;
                if was_there {
                    tx.announce(Change::Object(commit.cache, hash)).await?;
                }
            }
            Ok(CommitOutcome::Committed(nar))
        })
        .await
    }

    async fn update_encoding(
        &self,
        nar: NarId,
        tag: &EncodingTag,
        file_size: u64,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write("correct a NAR's encoding", async |mut tx| {
            let encoding = [Number(nar.0), Bytes(tag.as_bytes()), Number(signed(file_size))];
            if tx.run(UPDATE_ENCODING, &encoding).await? == 0 {
                return Err(Error::NarGone);
            }
            outbox::note_new_tag(&mut tx, nar, at).await?;
            tx.announce(Change::Everything).await
        })
        .await
    }
}

fn locks(commit: &NarCommit) -> Vec<Lock> {
    let mut locks = vec![Lock::CacheShared(commit.cache.0)];
    if let NarSource::New(nar) = &commit.nar {
        locks.push(Lock::nar(nar.hash.as_bytes()));
    }
    if let Some(hash) = commit.target.path_hash() {
        locks.push(Lock::object(commit.cache.0, hash.as_bytes()));
    }
    if let CommitTarget::Object(object) | CommitTarget::ObjectIfSame(object) = &commit.target
        && let Some(deriver) = &object.deriver
    {
        locks.push(Lock::LogShared(log_key(commit.cache.0, deriver)));
    }
    locks
}

async fn write_nar(tx: &mut Transaction, nar: &NewNar, at: UnixSeconds) -> Result<NarId> {
    chunks::stamp_packs(tx, nar, at).await?;
    let (recipe, (listing_size, listing)) = (nar.recipe.encode(), listing_columns(&nar.listing));
    let (listing_size, listing) = (OptionalNumber(listing_size), Bytes(&listing));
    let row = [
        Bytes(nar.hash.as_bytes()),
        Number(signed(nar.size)),
        Number(signed(nar.file_size)),
        Bytes(nar.tag.as_bytes()),
        Bytes(&recipe),
        Number(signed(nar.holed_bytes)),
        listing_size,
        listing,
    ];
    let id: i64 = tx.one(WRITE_NAR, &row).await?.column(0, "nars")?;
    tx.run(WRITE_LISTING, &[Number(id), listing_size, listing]).await?;
    if !nar.build_ids.is_empty() {
        let mut records = Records::default();
        for build_id in &nar.build_ids {
            records.row().bytes(build_id.as_bytes());
        }
        tx.run(WRITE_BUILD_IDS, &[Number(id), Text(&records.finish())]).await?;
    }
    Ok(NarId(id))
}
