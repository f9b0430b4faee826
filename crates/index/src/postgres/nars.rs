//! NARs: look-ups, listings, and the commit that makes one visible under a name.
//!
//! A commit holds locks for its NAR and its object, so what it found is still so when it writes. Known NARs need no
//! lock: the object's reference to the NAR's row fails if the row went, and the call is repeated.

use dormer_nix::NarHash;
use sqlx::query;

use super::session::{Lock, Session};
use super::{PostgresIndex, changes, objects, outbox, packs};
use crate::columns::{listing_columns, read_listing, signed};
use crate::contract::{
    CacheId, CommitOutcome, CommitTarget, Nar, NarCommit, NarId, NarKey, NarSource, NarSummary, NewNar,
    StoredListing, UnixSeconds,
};
use crate::merge::{ObjectChange, change_object};
use crate::rows::{Row as _, read_look, read_nar, read_present, read_summary};
use crate::{Change, Error, Result};

// Without its listing a NAR counts as damaged for those who could store it again.
pub(super) const FIND_NAR: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, CASE WHEN l.nar IS NULL THEN 0 ELSE n.damaged_at END
    FROM nars AS n LEFT JOIN listings AS l ON l.nar = n.id
    WHERE n.hash = $1";

// One EXISTS, not three: of several that are joined by OR, the server would first gather all NARs of the cache.
pub(super) const FIND_NAR_BY_HASH: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, n.recipe
    FROM nars AS n
    WHERE n.hash = $2 AND EXISTS (
        SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.cache = $1
        UNION ALL SELECT 1 FROM graces AS g WHERE g.nar = n.id AND g.cache = $1 AND g.ends_at > $3
        UNION ALL SELECT 1 FROM aliases AS a WHERE a.nar = n.id AND a.cache = $1)";

pub(super) const FIND_NAR_BY_PATH: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, n.recipe
    FROM objects AS o JOIN nars AS n ON n.id = o.nar
    WHERE o.cache = $1 AND o.hash = $2";

pub(super) const FIND_LISTING: &str = "SELECT size, body FROM listings WHERE nar = $1";

/// Everything that a commit has to know first, in one row. `$2` is the NAR's hash. Without its listing a NAR counts as
/// damaged: what was just stored replaces it.
pub(super) const LOOK_BY_HASH: &str = "
    SELECT c.id, n.id, CASE WHEN l.nar IS NULL THEN 0 ELSE n.damaged_at END, m.damaged_at,
        o.nar, o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system
    FROM (SELECT 1) AS one
    LEFT JOIN caches AS c ON c.id = $1 AND c.deleted_at IS NULL
    LEFT JOIN nars AS n ON n.hash = $2
    LEFT JOIN listings AS l ON l.nar = n.id
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

// New, or healed in place: the commit's lock and look say that a row with this hash may be replaced.
const WRITE_NAR: &str = "
    WITH nar AS (
        INSERT INTO nars (hash, size, file_size, tag, recipe) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (hash) DO UPDATE SET size = excluded.size, file_size = excluded.file_size, tag = excluded.tag,
            recipe = excluded.recipe, damaged_at = NULL
        RETURNING id)
    INSERT INTO listings (nar, size, body) SELECT nar.id, $6, $7 FROM nar
    ON CONFLICT (nar) DO UPDATE SET size = excluded.size, body = excluded.body
    RETURNING nar";

const WRITE_ALIAS: &str = "
    INSERT INTO aliases (cache, file_name, compression, nar, used_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (cache, file_name) DO UPDATE SET
        compression = excluded.compression, nar = excluded.nar, used_at = excluded.used_at";

impl PostgresIndex {
    pub(super) async fn find_nar_row(&self, hash: &NarHash) -> Result<Option<NarSummary>> {
        let mut read = self.read("find a NAR").await?;
        let row = read.optional(query(FIND_NAR).bind(hash.as_bytes().as_slice())).await?;
        read.end().await?;
        row.map(|row| read_summary(&row)).transpose()
    }

    pub(super) async fn find_nar_row_in_cache(
        &self,
        cache: CacheId,
        key: &NarKey,
        now: UnixSeconds,
    ) -> Result<Option<Nar>> {
        let statement = match key {
            NarKey::Hash(hash) => {
                query(FIND_NAR_BY_HASH).bind(cache.0).bind(hash.as_bytes().as_slice()).bind(now)
            }
            NarKey::StorePath(hash) => query(FIND_NAR_BY_PATH).bind(cache.0).bind(hash.as_bytes().as_slice()),
        };
        let mut read = self.read("find a cache's NAR").await?;
        let row = read.optional(statement).await?;
        read.end().await?;
        row.map(|row| read_nar(&row)).transpose()
    }

    pub(super) async fn find_listing_row(&self, nar: NarId) -> Result<Option<StoredListing>> {
        let mut read = self.read("find a listing").await?;
        let row = read.optional(query(FIND_LISTING).bind(nar.0)).await?;
        read.end().await?;
        row.map(|row| read_listing(row.column(0, "listings")?, row.column(1, "listings")?)).transpose()
    }

    /// At most 8 statements, transaction control and locks included; up to 10 if an object was there and changes.
    pub(super) async fn commit_nar_rows(&self, commit: &NarCommit) -> Result<CommitOutcome> {
        let path_hash = commit.target.path_hash();
        let mut write = self.write("commit a NAR", &locks(commit)).await?;
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
            return Err(write.give_up(Error::CacheGone).await);
        }
        let present = read_present(&row)?;
        let was_there = present.is_some();
        let change = change_object(&commit.target, present, look.nar.map(|(id, _)| id));
        if matches!(change, Some(ObjectChange::Keep)) {
            write.commit().await?;
            return Ok(CommitOutcome::Kept);
        }

        let (nar, healed) = match (&commit.nar, look.nar) {
            (_, Some((id, false))) => (id, false),
            (NarSource::Known(_), _) => return Err(write.give_up(Error::NarGone).await),
            (NarSource::New(nar), damaged) => match write_nar(&mut write, nar, commit.at).await {
                Ok(id) => (id, damaged.is_some()),
                Err(Error::PackGone) => return Err(write.give_up(Error::PackGone).await),
                Err(error) => return Err(error),
            },
        };
        let mut changed = false;
        if let Some(change) = change {
            changed = objects::write(&mut write, commit, nar, change).await?;
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
            write.execute(changes::tell_everything()).await?;
        } else if let (true, Some(hash)) = (changed, path_hash) {
            write.execute(outbox::insert(commit.cache, Some(&hash), commit.at)).await?;
            if was_there {
                write.execute(changes::tell(Change::Object(commit.cache, hash))).await?;
            }
        }
        write.commit().await?;
        Ok(CommitOutcome::Committed(nar))
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
    locks
}

async fn write_nar(write: &mut Session<'_>, nar: &NewNar, at: UnixSeconds) -> Result<NarId> {
    packs::stamp(write, nar, at).await?;
    let (size, body) = listing_columns(&nar.listing);
    let statement = query(WRITE_NAR)
        .bind(nar.hash.as_bytes().as_slice())
        .bind(signed(nar.size))
        .bind(signed(nar.file_size))
        .bind(nar.tag.as_bytes().as_slice())
        .bind(nar.recipe.encode())
        .bind(size)
        .bind(body);
    Ok(NarId(write.one(statement).await?.column(0, "nars")?))
}
