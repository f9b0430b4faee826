//! Notices to and from other replicas, by NOTIFY and LISTEN.
//!
//! A notice is sent in the transaction that makes the change, so it comes when the change is
//! visible, and never without it. Commits with notices wait for each other in the server, which is
//! why new objects, the many, send none: no replica remembers that something is missing. A listener
//! that connects is told that everything may have changed meanwhile.
//!
//! Behind a pooler that gives every transaction another connection no process can listen; then what
//! is remembered ages.

use std::time::Duration;

use dormer_nix::StorePathHash;
use sqlx::postgres::{PgListener, PgPool};
use sqlx::query;
use tokio::time::{sleep, timeout};

use crate::changes::{Change, ChangeSender};
use crate::contract::CacheId;
use dormer_nix::{Backoff, with_causes};

pub(super) const CHANNEL: &str = "dormer_changes";

/// A statement that tells other replicas of a change when its transaction commits. `$1` is the
/// [`CHANNEL`], `$2` the change ([`encode`]).
pub(super) const TELL: &str = "SELECT pg_notify($1, $2)";

/// A silent connection is asked for a sign of life this often: no other part would notice that it
/// is gone.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// Longest wait for that sign.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(super) fn encode(change: Change) -> String {
    match change {
        Change::Object(cache, hash) => format!("object {} {}", cache.0, hex::encode(hash.as_bytes())),
        Change::Cache(cache) => format!("cache {}", cache.0),
        Change::Everything => "everything".to_owned(),
    }
}

/// What a newer replica may say and we do not understand counts as everything.
fn decode(text: &str) -> Change {
    let words: Vec<&str> = text.split(' ').collect();
    let known = match words.as_slice() {
        ["object", cache, hash] => cache.parse().ok().and_then(|cache| {
            let mut bytes = [0; 20];
            hex::decode_to_slice(hash, &mut bytes).ok()?;
            Some(Change::Object(CacheId(cache), StorePathHash::from_bytes(bytes)))
        }),
        ["cache", cache] => cache.parse().ok().map(|cache| Change::Cache(CacheId(cache))),
        _ => None,
    };
    known.unwrap_or(Change::Everything)
}

/// Passes notices on for as long as it runs. `pool` is its own, of one connection.
pub(super) async fn listen(pool: PgPool, sender: ChangeSender) {
    let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(10) };
    let mut failed = 0;
    loop {
        let ended = listen_once(&pool, &sender, &mut failed).await;
        failed += 1;
        let pause = backoff.spread_pause(failed, rand::random());
        let error =
            ended.err().map_or_else(|| "the connection ended".to_owned(), |error| with_causes(&error));
        tracing::warn!(
            index.attempt = "listen for changes of other replicas",
            pause_ms = pause.as_millis(),
            error,
            "notices of changes are interrupted"
        );
        // The next round begins by telling that everything may have changed.
        sleep(pause).await;
    }
}

async fn listen_once(pool: &PgPool, sender: &ChangeSender, failed: &mut u32) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    // Reconnecting is done here, with a pause.
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    *failed = 0;
    sender.send(Change::Everything);
    loop {
        match timeout(QUIET_MAX, listener.try_recv()).await {
            Ok(Ok(Some(notice))) => sender.send(decode(notice.payload())),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let sign_of_life = query("SELECT 1").execute(&mut listener);
                let answer = timeout(ANSWER_MAX, sign_of_life).await;
                answer.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_come_back_and_unknown_ones_mean_everything() {
        let hash = StorePathHash::from_bytes([0xa7; 20]);
        for change in [Change::Object(CacheId(7), hash), Change::Cache(CacheId(-1)), Change::Everything] {
            assert_eq!(decode(&encode(change)), change);
        }
        for text in ["", "object", "object 7 zz", "cache x", "nar 7", "cache 1 2"] {
            assert_eq!(decode(text), Change::Everything, "{text}");
        }
    }
}
