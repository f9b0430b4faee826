//! NARs: look-ups, listings, and the commit that makes one visible under a name.
//!
//! Known NARs need no stamps: the commit sees the NAR's row in its own transaction, and whoever wants to remove chunks first
//! has to remove that row, which no object may have by then.

use dormer_nix::NarHash;
use sqlx::query;

use super::session::Write;
use super::{SqliteIndex, get, objects, outbox, packs};
use crate::columns::{listing_columns, read_listing, signed};
use crate::contract::{
    CacheId, CommitOutcome, CommitTarget, Nar, NarCommit, NarId, NarKey, NarSource, NarSummary, NewNar,
    StoredListing, UnixSeconds,
};
use crate::key_filter::{id_key, object_key};
use crate::merge::{GRACE_SECONDS, ObjectChange, change_object};
use crate::rows::{read_look, read_nar, read_present, read_summary};
use crate::{Error, Result};

// Without its listing a NAR counts as damaged for those who could store it again.
pub(super) const FIND_NAR: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag,
        CASE WHEN EXISTS (SELECT 1 FROM listings AS l WHERE l.nar = n.id) THEN n.damaged_at ELSE 0 END
    FROM nars AS n WHERE n.hash = $1";

pub(super) const FIND_NAR_BY_HASH: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, n.recipe
    FROM nars AS n
    WHERE n.hash = $2 AND (
        EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.cache = $1)
        OR EXISTS (SELECT 1 FROM graces AS g WHERE g.nar = n.id AND g.cache = $1 AND g.ends_at > $3)
        OR EXISTS (SELECT 1 FROM aliases AS a WHERE a.nar = n.id AND a.cache = $1))";

pub(super) const FIND_NAR_BY_PATH: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, n.recipe
    FROM objects AS o JOIN nars AS n ON n.id = o.nar
    WHERE o.cache = $1 AND o.hash = $2";

const FIND_LISTING: &str = "SELECT size, body FROM listings WHERE nar = $1";

/// Everything that a commit has to know first, in one row. `$2` is the NAR's hash. Without its listing a NAR counts as
/// damaged: what was just stored replaces it.
pub(super) const LOOK_BY_HASH: &str = "
    SELECT c.id, n.id,
        CASE WHEN EXISTS (SELECT 1 FROM listings AS l WHERE l.nar = n.id) THEN n.damaged_at ELSE 0 END,
        m.damaged_at, o.nar, o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system
    FROM (SELECT 1) AS one
    LEFT JOIN caches AS c ON c.id = $1 AND c.deleted_at IS NULL
    LEFT JOIN nars AS n ON n.hash = $2
    LEFT JOIN objects AS o ON o.cache = $1 AND o.hash = $3
    LEFT JOIN nars AS m ON m.id = o.nar";

/// The same; `$2` is the NAR's row number, and it can be named without its listing.
pub(super) const LOOK_BY_ID: &str = "
    SELECT c.id, n.id, n.damaged_at, m.damaged_at, o.nar, o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system
    FROM (SELECT 1) AS one
    LEFT JOIN caches AS c ON c.id = $1 AND c.deleted_at IS NULL
    LEFT JOIN nars AS n ON n.id = $2
    LEFT JOIN objects AS o ON o.cache = $1 AND o.hash = $3
    LEFT JOIN nars AS m ON m.id = o.nar";

const INSERT_NAR: &str = "
    INSERT INTO nars (hash, size, file_size, tag, recipe) VALUES ($1, $2, $3, $4, $5) RETURNING id";

const HEAL_NAR: &str = "
    UPDATE nars SET size = $2, file_size = $3, tag = $4, recipe = $5, damaged_at = NULL WHERE hash = $1 RETURNING id";

const WRITE_LISTING: &str = "
    INSERT INTO listings (nar, size, body) VALUES ($1, $2, $3)
    ON CONFLICT (nar) DO UPDATE SET size = excluded.size, body = excluded.body";

const WRITE_ALIAS: &str = "
    INSERT INTO aliases (cache, file_name, compression, nar, used_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (cache, file_name) DO UPDATE SET
        compression = excluded.compression, nar = excluded.nar, used_at = excluded.used_at";

impl SqliteIndex {
    pub(super) async fn find_nar_row(&self, hash: &NarHash) -> Result<Option<NarSummary>> {
        if !self.nar_filter.may_contain(id_key(hash.as_bytes())) {
            return Ok(None);
        }
        let mut read = self.read("find a NAR").await?;
        let row = read.optional(query(FIND_NAR).bind(hash.as_bytes().as_slice())).await?;
        row.map(|row| read_summary(&row)).transpose()
    }

    pub(super) async fn find_nar_row_in_cache(
        &self,
        cache: CacheId,
        key: &NarKey,
        now: UnixSeconds,
    ) -> Result<Option<Nar>> {
        let (known, statement, bytes) = match key {
            NarKey::Hash(hash) => (
                self.nar_filter.may_contain(id_key(hash.as_bytes())),
                FIND_NAR_BY_HASH,
                hash.as_bytes().as_slice(),
            ),
            NarKey::StorePath(hash) => {
                let key = object_key(cache.0, hash.as_bytes());
                (self.object_filter.may_contain(key), FIND_NAR_BY_PATH, hash.as_bytes().as_slice())
            }
        };
        if !known {
            return Ok(None);
        }
        let mut read = self.read("find a cache's NAR").await?;
        let row = read.optional(query(statement).bind(cache.0).bind(bytes).bind(now)).await?;
        row.map(|row| read_nar(&row)).transpose()
    }

    pub(super) async fn find_listing_row(&self, nar: NarId) -> Result<Option<StoredListing>> {
        let mut read = self.read("find a listing").await?;
        let row = read.optional(query(FIND_LISTING).bind(nar.0)).await?;
        row.map(|row| read_listing(get(&row, 0, "listings")?, get(&row, 1, "listings")?)).transpose()
    }

    /// At most 8 statements, transaction control included; 9 if an object changes to another NAR.
    pub(super) async fn commit_nar_rows(&self, commit: &NarCommit) -> Result<CommitOutcome> {
        let mut write = self.write("commit a NAR").await?;
        let mut write = write.begin().await?;
        let path_hash = commit.target.path_hash();
        let look = match &commit.nar {
            NarSource::New(nar) => {
                query(LOOK_BY_HASH).bind(commit.cache.0).bind(nar.hash.as_bytes().as_slice())
            }
            NarSource::Known(id) => query(LOOK_BY_ID).bind(commit.cache.0).bind(id.0),
        };
        let look = look.bind(path_hash.as_ref().map(|hash| hash.as_bytes().as_slice()));
        let row = write.one(look).await?;
        let look = read_look(&row)?;
        if !look.cache_exists {
            return Err(Error::CacheGone);
        }
        let change = change_object(&commit.target, read_present(&row)?, look.nar.map(|(id, _)| id));
        if matches!(change, Some(ObjectChange::Keep)) {
            return Ok(CommitOutcome::Kept);
        }

        let (nar, healed) = match (&commit.nar, look.nar) {
            (_, Some((id, false))) => (id, false),
            (NarSource::Known(_), _) => return Err(Error::NarGone),
            (NarSource::New(nar), damaged) => {
                let id = self.write_nar(&mut write, nar, damaged.is_some(), commit.at).await?;
                (id, damaged.is_some())
            }
        };
        let mut changed = false;
        if let (Some(hash), Some(change)) = (path_hash, change) {
            changed = objects::write(&mut write, commit, nar, change).await?;
            self.object_filter.insert(object_key(commit.cache.0, hash.as_bytes()));
        }
        if let CommitTarget::Alias { file_name, compression } = &commit.target {
            let alias = query(WRITE_ALIAS)
                .bind(commit.cache.0)
                .bind(file_name)
                .bind(compression)
                .bind(nar.0)
                .bind(commit.at);
            write.execute(alias).await?;
        }
        if healed {
            write.execute(outbox::insert_for_nar(nar, commit.at)).await?;
        } else if changed {
            write.execute(outbox::insert(commit.cache, path_hash.as_ref(), commit.at)).await?;
        }
        write.commit().await?;
        Ok(CommitOutcome::Committed(nar))
    }

    async fn write_nar(
        &self,
        write: &mut Write<'_>,
        nar: &NewNar,
        heal: bool,
        at: UnixSeconds,
    ) -> Result<NarId> {
        packs::stamp(write, nar, at).await?;
        let statement = query(if heal { HEAL_NAR } else { INSERT_NAR })
            .bind(nar.hash.as_bytes().as_slice())
            .bind(signed(nar.size))
            .bind(signed(nar.file_size))
            .bind(nar.tag.as_bytes().as_slice())
            .bind(nar.recipe.encode());
        let id: i64 = get(&write.one(statement).await?, 0, "nars")?;
        let (size, body) = listing_columns(&nar.listing);
        write.execute(query(WRITE_LISTING).bind(id).bind(size).bind(body)).await?;
        self.nar_filter.insert(id_key(nar.hash.as_bytes()));
        Ok(NarId(id))
    }
}

/// The end of a grace that begins now.
pub(super) fn grace_end(at: UnixSeconds) -> UnixSeconds {
    at.saturating_add(GRACE_SECONDS)
}
