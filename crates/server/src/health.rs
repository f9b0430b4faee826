//! Asks the database and the object store whether they answer, for `/readyz`.
//!
//! The answer comes within [`CHECK_TIMEOUT`], also when the database or the store hangs.

use std::time::Duration;

use dormer_engine::Engine;
use dormer_http_host::NotReady;
use dormer_index::PING_MAX;

/// How long the store may take to answer, as long as the database.
const STORE_TIMEOUT: Duration = PING_MAX;

/// Longest check of either part, all waiting included. Both run at the same time.
const CHECK_TIMEOUT: Duration = Duration::from_secs(4);

const _: () = assert!(PING_MAX.as_millis() < CHECK_TIMEOUT.as_millis());

/// Why a server is not ready.
const NO_DATABASE: NotReady = NotReady("the database does not answer");
const NO_STORE: NotReady = NotReady("the object store does not answer");
const NEITHER: NotReady = NotReady("neither the database nor the object store answers");

/// Whether the database answered a check that ended so.
pub(crate) fn has_database(reason: &NotReady) -> bool {
    ![NO_DATABASE.0, NEITHER.0].contains(&reason.0)
}

pub(crate) async fn check(engine: Engine) -> Result<(), NotReady> {
    let in_time =
        async |what, check: &mut (dyn Future<Output = dormer_engine::Result<()>> + Send + Unpin)| {
            match tokio::time::timeout(CHECK_TIMEOUT, check).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(error = dormer_nix::with_causes(&error), "the {what} does not answer");
                    false
                }
                Err(_) => {
                    tracing::warn!("the {what} does not answer within {} s", CHECK_TIMEOUT.as_secs());
                    false
                }
            }
        };
    let mut index = Box::pin(engine.check_index());
    let mut store = Box::pin(engine.check_store(STORE_TIMEOUT));
    let (index, store) = tokio::join!(in_time("database", &mut index), in_time("object store", &mut store));
    match (index, store) {
        (true, true) => Ok(()),
        (false, true) => Err(NO_DATABASE),
        (true, false) => Err(NO_STORE),
        (false, false) => Err(NEITHER),
    }
}
