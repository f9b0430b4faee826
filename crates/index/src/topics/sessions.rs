//! Sessions: pushes by chunks in progress, and what a cache's objects are made of.
//!
//! A session remembers the numbers of the chunks that its parts brought, a few bytes for each part.
//! Nothing says which caches use a chunk: a row for each would be the largest table of all. The
//! recipes of a cache say it, and [`SessionIndex::recipes_after`] reads them in pages.
//!
//! Invariants
//! - A part is written down only while its session lasts, so the chunks of a session are known to
//!   it until its end, and no longer.
//! - The rows of a session go only when [`SWEEP_AFTER_SECONDS`] have passed since its end. No
//!   request lasts that long, so no part appears after its session went.

use async_trait::async_trait;
use dormer_format::{ChunkRun, Recipe};

use super::damage;
use crate::columns::{array, corrupt, recipe, signed};
use crate::contract::{
    CacheId, CacheRecipe, NewSession, ObjectPlace, PackNumber, SessionEnd, SessionId, SessionIndex,
    SessionOpened, SessionPart, UnixSeconds,
};
use crate::rows::Row;
use crate::sql::Argument::{Bytes, Number, Text};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::SqlIndex;
use crate::{Error, Result};

const TABLE: &str = "sessions";
const PARTS: &str = "session_parts";

/// A session of this age ends early when its subject has as many as there may be, and opens one
/// more: most clients have long ended without a word.
const MAKES_ROOM_AFTER_SECONDS: i64 = 3_600;

/// How long the rows of a session stay after its end.
const SWEEP_AFTER_SECONDS: i64 = 3_600;

pub(crate) const FIND: Sql = both!("SELECT cache, subject, ends_at FROM sessions WHERE id = $1");
/// `$6` is the most sessions that the subject may have.
pub(crate) const OPEN: Sql = both!(
    "INSERT INTO sessions (id, cache, subject, created_at, ends_at)
     SELECT $1, c.id, $3, $4, $5 FROM caches AS c
     WHERE c.id = $2 AND c.deleted_at IS NULL
         AND (SELECT count(*) FROM sessions AS s WHERE s.subject = $3 AND s.ends_at > $4) < $6
     ON CONFLICT (id) DO NOTHING"
);
pub(crate) const MAKE_ROOM: Sql = both!(
    "UPDATE sessions SET ends_at = $2 WHERE id = (
         SELECT id FROM sessions WHERE subject = $1 AND ends_at > $2 AND created_at <= $3
         ORDER BY created_at, id LIMIT 1)"
);
const CACHE_EXISTS: Sql = both!("SELECT id FROM caches WHERE id = $1 AND deleted_at IS NULL");
pub(crate) const ADD_PART: Sql = both!(
    "INSERT INTO session_parts (session, digest, chunks)
     SELECT s.id, $2, $3 FROM sessions AS s WHERE s.id = $1 AND s.ends_at > $4
     ON CONFLICT (session, digest) DO UPDATE SET chunks = excluded.chunks"
);
pub(crate) const FIND_PART: Sql =
    both!("SELECT digest, chunks FROM session_parts WHERE session = $1 AND digest = $2");
pub(crate) const PARTS_AFTER: Sql = both!(
    "SELECT digest, chunks FROM session_parts WHERE session = $1 AND digest > $2 ORDER BY digest LIMIT $3"
);
pub(crate) const RECIPES_AFTER: Sql = both!(
    "SELECT o.created_at, o.id, n.recipe FROM objects AS o JOIN nars AS n ON n.id = o.nar
     WHERE o.cache = $1 AND (o.created_at, o.id) > ($2, $3)
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)
     ORDER BY o.created_at, o.id LIMIT $4"
);
pub(crate) const FIRST_ENDED: Sql =
    both!("SELECT id FROM sessions WHERE ends_at <= $1 ORDER BY ends_at LIMIT 1");
pub(crate) const SWEEP_PARTS: Sql = both!(
    "DELETE FROM session_parts WHERE session = $1 AND digest IN (
         SELECT p.digest FROM session_parts AS p WHERE p.session = $1 LIMIT $2)"
);
pub(crate) const SWEEP_SESSION: Sql = both!("DELETE FROM sessions WHERE id = $1");

/// Sessions that go in one sweep: their number bounds its statements.
const SWEPT_SESSIONS_MAX: u32 = 64;

/// Deletes at most so many rows of parts and sessions that ended a while ago
/// ([`JobIndex::sweep_sessions`](crate::JobIndex::sweep_sessions)).
pub(crate) async fn sweep(tx: &mut Transaction, now: UnixSeconds, limit: u32) -> Result<u64> {
    let ended = Number(now.saturating_sub(SWEEP_AFTER_SECONDS));
    let mut left = u64::from(limit);
    for _ in 0..SWEPT_SESSIONS_MAX {
        if left == 0 {
            break;
        }
        let Some(row) = tx.optional(FIRST_ENDED, &[ended]).await? else { break };
        let id: Vec<u8> = row.column(0, TABLE)?;
        left = left.saturating_sub(tx.run(SWEEP_PARTS, &[Bytes(&id), Number(signed(left))]).await?);
        if left > 0 {
            left = left.saturating_sub(tx.run(SWEEP_SESSION, &[Bytes(&id)]).await?);
        }
    }
    Ok(u64::from(limit) - left)
}

#[async_trait]
impl SessionIndex for SqlIndex {
    async fn open_session(&self, session: &NewSession, sessions_max: u32) -> Result<SessionOpened> {
        self.write("open a session", async |mut tx| {
            let id = Bytes(&session.id.0);
            if let Some(row) = tx.optional(FIND, &[id]).await? {
                return Ok(opened(read_end(&row, session.cache, &session.subject, session.created_at)?));
            }
            let row = [
                id,
                Number(session.cache.0),
                Text(&session.subject),
                Number(session.created_at),
                Number(session.ends_at),
                Number(sessions_max.into()),
            ];
            tx.run(OPEN, &row).await?;
            if let Some(row) = tx.optional(FIND, &[id]).await? {
                return Ok(opened(read_end(&row, session.cache, &session.subject, session.created_at)?));
            }
            if tx.optional(CACHE_EXISTS, &[Number(session.cache.0)]).await?.is_none() {
                return Err(Error::CacheGone);
            }
            let now = session.created_at;
            let old = Number(now.saturating_sub(MAKES_ROOM_AFTER_SECONDS));
            if tx.run(MAKE_ROOM, &[Text(&session.subject), Number(now), old]).await? == 0 {
                return Ok(SessionOpened::TooMany);
            }
            tx.run(OPEN, &row).await?;
            let row = tx.optional(FIND, &[id]).await?;
            // Racing openings may have taken the place.
            let Some(row) = row else { return Ok(SessionOpened::TooMany) };
            Ok(opened(read_end(&row, session.cache, &session.subject, now)?))
        })
        .await
    }

    async fn find_session(
        &self,
        session: &SessionId,
        cache: CacheId,
        subject: &str,
        now: UnixSeconds,
    ) -> Result<Option<SessionEnd>> {
        self.read("find a session", async |mut tx| {
            let Some(row) = tx.optional(FIND, &[Bytes(&session.0)]).await? else { return Ok(None) };
            read_end(&row, cache, subject, now)
        })
        .await
    }

    async fn add_part(&self, session: &SessionId, part: &SessionPart, now: UnixSeconds) -> Result<bool> {
        let chunks = Recipe { runs: part.chunks.clone(), ..Recipe::default() }.encode();
        self.write("note a part of a session", async |mut tx| {
            let row = [Bytes(&session.0), Bytes(&part.digest), Bytes(&chunks), Number(now)];
            Ok(tx.run(ADD_PART, &row).await? > 0)
        })
        .await
    }

    async fn find_part(&self, session: &SessionId, digest: &[u8; 32]) -> Result<Option<SessionPart>> {
        self.read("find a part of a session", async |mut tx| {
            let row = tx.optional(FIND_PART, &[Bytes(&session.0), Bytes(digest)]).await?;
            row.map(|row| read_part(&row)).transpose()
        })
        .await
    }

    async fn parts_after(
        &self,
        session: &SessionId,
        after: Option<&[u8; 32]>,
        limit: u32,
    ) -> Result<Vec<SessionPart>> {
        let after = after.map_or(&[][..], |digest| &digest[..]);
        self.read("list the parts of a session", async |mut tx| {
            let page = [Bytes(&session.0), Bytes(after), Number(limit.into())];
            tx.rows(PARTS_AFTER, &page).await?.iter().map(read_part).collect()
        })
        .await
    }

    async fn recipes_after(
        &self,
        cache: CacheId,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Result<Vec<CacheRecipe>> {
        let after = after.unwrap_or(ObjectPlace { value: i64::MIN, id: 0 });
        self.read("read the recipes of a cache", async |mut tx| {
            let page = [Number(cache.0), Number(after.value), Number(after.id), Number(limit.into())];
            tx.rows(RECIPES_AFTER, &page).await?.iter().map(read_recipe).collect()
        })
        .await
    }

    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
        self.write("mark damaged chunks", async |mut tx| {
            damage::mark_chunks_of_pack(&mut tx, pack, chunks, at).await
        })
        .await
    }
}

fn opened(end: Option<SessionEnd>) -> SessionOpened {
    end.map_or(SessionOpened::NotYours, SessionOpened::Open)
}

/// When a session ends, for the caller that opened it and until then.
fn read_end(row: &Row, cache: CacheId, subject: &str, now: UnixSeconds) -> Result<Option<SessionEnd>> {
    let (owner, of): (i64, &str) = (row.column(0, TABLE)?, row.column(1, TABLE)?);
    let ends_at: UnixSeconds = row.column(2, TABLE)?;
    Ok((owner == cache.0 && of == subject && ends_at > now).then_some(SessionEnd { ends_at }))
}

fn read_part(row: &Row) -> Result<SessionPart> {
    let digest: &[u8] = row.column(0, PARTS)?;
    let chunks: &[u8] = row.column(1, PARTS)?;
    let runs: Vec<ChunkRun> = recipe(PARTS, chunks)?.runs;
    Ok(SessionPart { digest: array(PARTS, digest)?, chunks: runs })
}

fn read_recipe(row: &Row) -> Result<CacheRecipe> {
    let place = ObjectPlace { value: row.column(0, "objects")?, id: row.column(1, "objects")? };
    let bytes: &[u8] = row.column(2, "nars")?;
    let recipe = Recipe::decode(bytes).map_err(|error| corrupt("nars", error))?;
    Ok(CacheRecipe { place, runs: recipe.runs })
}
