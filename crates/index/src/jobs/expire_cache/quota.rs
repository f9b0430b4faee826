//! How much a cache holds, for its quota. Graces are cut before objects go.

use dormer_nix::StorePathHash;

use super::cursor::{Cursor, Phase};
use super::examined::SUM_OBJECTS;
use super::policy::SHORT_GRACE_SECONDS;
use super::step::{Outcome, Step};
use crate::Result;
use crate::columns::{array, unsigned};
use crate::contract::UnixSeconds;
use crate::publish::records::{Records, records};
use crate::sql::Argument::{Bytes, Number, Text};
use crate::sql::{Sql, Transaction, both};

pub(crate) const SUM_GRACES: Sql = both!(
    "SELECT g.hash, g.nar, g.ends_at, n.file_size FROM graces AS g CROSS JOIN nars AS n
     WHERE g.cache = $1 AND (g.hash, g.nar) > ($2, $3) AND n.id = g.nar ORDER BY g.hash, g.nar LIMIT $4"
);
const CUT_GRACES: Sql = records!(
    "UPDATE graces SET ends_at = $2 WHERE cache = $1
         AND (hash, nar) IN (SELECT k.hash, k.nar FROM", 3 { hash: bytes 0, nar: number 1 }, "AS k)"
);

impl Step {
    pub(super) async fn sum_objects(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let page = [Number(self.cache.0), Bytes(cursor.after()), Number(i64::from(self.limit))];
        let page = tx.rows(SUM_OBJECTS, &page).await?;
        let mut next = cursor;
        for row in &page {
            next.hash = Some(StorePathHash::from_bytes(array("objects", row.column(0, "objects")?)?));
            next.bytes = next.bytes.saturating_add(unsigned("nars", row.column(1, "nars")?)?);
        }
        if page.len() < self.limit as usize {
            next = Cursor::at(Phase::SumGraces, next.bytes);
        }
        Ok(Outcome { next: Some(next), rows: 0 })
    }

    /// Adds up the bytes in graces that last longer than a day. When all are added up, only what is
    /// too much is kept.
    pub(super) async fn sum_graces(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let (page, mut next) = self.graces(tx, cursor).await?;
        next.bytes = next.bytes.saturating_add(page.iter().map(|grace| grace.2).sum());
        if next.hash.is_some() {
            return Ok(Outcome { next: Some(next), rows: 0 });
        }
        let next = (self.excess(next.bytes) > 0).then_some(Cursor::at(Phase::CutGraces, next.bytes));
        Ok(Outcome { next, rows: 0 })
    }

    /// Bytes over the quota, if so many are left.
    pub(super) fn excess(&self, left: u64) -> u64 {
        left.saturating_sub(self.policy.quota_bytes.unwrap_or(u64::MAX))
    }

    pub(super) async fn cut_graces(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let (page, mut next) = self.graces(tx, cursor).await?;
        let (mut cut, mut rows) = (Records::default(), 0);
        for (hash, nar, file_size) in page {
            if self.excess(next.bytes) > 0 {
                cut.row().bytes(hash.as_bytes()).number(nar);
                next.bytes = next.bytes.saturating_sub(file_size);
                rows += 1;
            }
        }
        if rows > 0 {
            let ends_at = Number(self.now + SHORT_GRACE_SECONDS);
            tx.run(CUT_GRACES, &[Number(self.cache.0), ends_at, Text(&cut.finish())]).await?;
        }
        let next = match next.hash {
            _ if self.excess(next.bytes) == 0 => None,
            Some(_) => Some(next),
            None => Some(Cursor::at(Phase::Quota, next.bytes)),
        };
        Ok(Outcome { next, rows })
    }

    /// A page of graces: those that last longer than a day, and the cursor behind the page, which
    /// has no hash after the last page.
    async fn graces(
        &self,
        tx: &mut Transaction,
        cursor: Cursor,
    ) -> Result<(Vec<(StorePathHash, i64, u64)>, Cursor)> {
        let table = "graces";
        let page = [
            Number(self.cache.0),
            Bytes(cursor.after()),
            Number(cursor.number),
            Number(i64::from(self.limit)),
        ];
        let (mut long, mut next) = (Vec::new(), cursor);
        let page = tx.rows(SUM_GRACES, &page).await?;
        for row in &page {
            let hash = StorePathHash::from_bytes(array(table, row.column(0, table)?)?);
            (next.hash, next.number) = (Some(hash), row.column(1, table)?);
            let ends_at: UnixSeconds = row.column(2, table)?;
            if ends_at > self.now + SHORT_GRACE_SECONDS {
                long.push((hash, next.number, unsigned("nars", row.column(3, "nars")?)?));
            }
        }
        if page.len() < self.limit as usize {
            next.hash = None;
        }
        Ok((long, next))
    }
}
