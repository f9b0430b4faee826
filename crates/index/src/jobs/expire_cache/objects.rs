//! Objects go, and what that frees.

use std::collections::HashSet;

use dormer_nix::StorePathHash;

use super::cursor::{Cursor, Phase};
use super::examined::{EXAMINE_FREED, EXAMINE_PAGE, Examined, read_examined};
use super::policy::{SHORT_GRACE_SECONDS, SPARED_SECONDS};
use super::step::{Outcome, Step};
use crate::Result;
use crate::changes::Change;
use crate::columns::array;
use crate::publish::records::{Records, records};
use crate::sql::Argument::{List, Number, Text};
use crate::sql::{Sql, Transaction};
use crate::topics::{objects, outbox};

/// A step may remove this many times the rows of a page, with what it frees.
const CASCADE_FACTOR: usize = 4;

/// Objects that a step removes at most, with what it frees: each is six rows and more, and other
/// writers wait for the step on SQLite.
const REMOVED_MAX: usize = 512;

// The plus keeps SQLite from reading all objects that are old. On PostgreSQL the rows are locked in
// the order of their hashes, as uses are: neither waits for the other in a circle.
pub(crate) const DELETE_OBJECTS: Sql = Sql {
    sqlite: "DELETE FROM objects WHERE cache = $1 AND +last_used_at < $2
             AND hash IN (SELECT unhex(value) FROM json_each($3)) RETURNING hash",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT o.id FROM objects AS o WHERE o.cache = $1 AND o.last_used_at < $2 AND o.hash = ANY ($3)
            ORDER BY o.hash FOR UPDATE)
        DELETE FROM objects USING held WHERE objects.id = held.id RETURNING objects.hash",
};
const WRITE_GRACES: Sql = records!(
    "INSERT INTO graces (cache, hash, nar, ends_at) SELECT $1, k.hash, k.nar, $2 FROM",
    3 { hash: bytes 0, nar: number 1 }, "AS k WHERE true
     ON CONFLICT (cache, hash, nar) DO UPDATE SET
         ends_at = CASE WHEN graces.ends_at < excluded.ends_at THEN excluded.ends_at ELSE graces.ends_at END"
);

impl Step {
    /// Removes what may go of a page, and what that frees.
    pub(super) async fn remove_page(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let Cursor { phase, mut again, mut bytes, .. } = cursor;
        let has_rules = self.policy.retention_seconds.is_some() || self.policy.keep_latest.is_some();
        if phase == Phase::Rules && !has_rules {
            return Ok(Outcome { next: self.after_rules(), rows: 0 });
        }
        let now = self.now;
        let page = [
            Number(self.cache.0),
            Number(now),
            Number(self.policy.keep_latest.unwrap_or(0)),
            Number(cursor.number),
            Number(cursor.id),
            Number(self.policy.used_before(phase, now)),
            Number(i64::from(self.limit)),
        ];
        let page: Vec<Examined> =
            tx.rows(EXAMINE_PAGE, &page).await?.iter().map(read_examined).collect::<Result<_>>()?;
        let is_last_page = page.len() < self.limit as usize;
        let mut last = page.last().map(|found| (found.last_used_at, found.id));
        let mut is_cut = false;

        let mut rows = 0;
        let mut candidates = page;
        let most = (self.limit as usize).saturating_mul(CASCADE_FACTOR).min(REMOVED_MAX);
        loop {
            let mut going = self.choose(candidates, phase, self.excess(bytes));
            if rows == 0 && going.len() > most {
                // In the order of the page: the next step goes on behind the last one of them.
                going.truncate(most);
                last = going.last().map(|going| (going.last_used_at, going.id));
                is_cut = true;
            }
            let gone = self.remove(tx, going, phase).await?;
            rows += gone.len();
            if phase == Phase::Quota {
                bytes = bytes.saturating_sub(gone.iter().map(|gone| gone.file_size).sum());
            }
            let mut freed: Vec<_> = gone.into_iter().flat_map(|gone| gone.references).collect();
            freed.sort_unstable();
            freed.dedup();
            if freed.is_empty() || phase == Phase::Quota && self.excess(bytes) == 0 {
                break;
            }
            if rows >= most {
                again = true;
                break;
            }
            let rest = freed.len().min(most - rows);
            again |= rest < freed.len();
            let keys: Vec<&[u8]> = freed[..rest].iter().map(|hash| hash.as_bytes().as_slice()).collect();
            let keep_latest = Number(self.policy.keep_latest.unwrap_or(0));
            let look = [Number(self.cache.0), Number(now), keep_latest, List(&keys)];
            candidates =
                tx.rows(EXAMINE_FREED, &look).await?.iter().map(read_examined).collect::<Result<_>>()?;
        }
        if rows > 0 {
            // One notice for all of them: a notice for each would be more than what is remembered.
            tx.announce(Change::Cache(self.cache)).await?;
        }
        let next = match last {
            _ if phase == Phase::Quota && self.excess(bytes) == 0 => None,
            Some((number, id)) if is_cut || !is_last_page => {
                Some(Cursor { phase, again, bytes, number, id, hash: None })
            }
            _ if again => Some(Cursor::at(phase, bytes)),
            _ if phase == Phase::Rules => self.after_rules(),
            _ => None,
        };
        Ok(Outcome { next, rows: rows as u64 })
    }

    fn after_rules(&self) -> Option<Cursor> {
        self.policy.quota_bytes.map(|_| Cursor::at(Phase::SumObjects, 0))
    }

    /// Those that may go; for the quota only as many as are too much.
    fn choose(&self, found: Vec<Examined>, phase: Phase, bytes: u64) -> Vec<Examined> {
        let mut found: Vec<_> =
            found.into_iter().filter(|found| self.policy.lets_go(found, phase, self.now)).collect();
        if phase == Phase::Quota {
            found.sort_by_key(|found| (found.last_used_at, found.id));
            let mut left = bytes;
            found.retain(|found| {
                let is_needed = left > 0;
                left = left.saturating_sub(found.file_size);
                is_needed
            });
        }
        found
    }

    /// Removes objects, with graces and outbox rows; returns those that went.
    async fn remove(
        &self,
        tx: &mut Transaction,
        mut going: Vec<Examined>,
        phase: Phase,
    ) -> Result<Vec<Examined>> {
        if going.is_empty() {
            return Ok(going);
        }
        let cache = Number(self.cache.0);
        let keys: Vec<&[u8]> = going.iter().map(|going| going.hash.as_bytes().as_slice()).collect();
        let spared = Number(self.now - SPARED_SECONDS);
        let mut gone = HashSet::new();
        for row in &tx.rows(DELETE_OBJECTS, &[cache, spared, List(&keys)]).await? {
            gone.insert(StorePathHash::from_bytes(array("objects", row.column(0, "objects")?)?));
        }
        going.retain(|going| gone.contains(&going.hash));
        if going.is_empty() {
            return Ok(going);
        }
        let grace_seconds = match phase {
            Phase::Quota => self.defaults.grace_seconds.min(SHORT_GRACE_SECONDS),
            _ => self.defaults.grace_seconds,
        };
        let mut graces = Records::default();
        for gone in &going {
            graces.row().bytes(gone.hash.as_bytes()).number(gone.nar);
        }
        let graces = graces.finish();
        let ends_at = Number(self.now.saturating_add(grace_seconds));
        tx.run(WRITE_GRACES, &[cache, ends_at, Text(&graces)]).await?;
        let mut pairs = Vec::new();
        for gone in &going {
            pairs.extend(gone.references.iter().map(|reference| (*reference, gone.hash)));
        }
        objects::drop_refs(tx, self.cache, &pairs).await?;
        let keys: Vec<&[u8]> = going.iter().map(|gone| gone.hash.as_bytes().as_slice()).collect();
        outbox::note_changes(tx, self.cache, &keys, self.now).await?;
        Ok(going)
    }
}
