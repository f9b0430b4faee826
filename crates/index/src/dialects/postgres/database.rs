//! A PostgreSQL database and the connections to it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::task::AbortHandle;

use super::session::{self, Session, Shared};
use crate::access::{Access, Effect};
use crate::changes::ChangeSender;
use crate::contract::PoolUse;
use crate::{Error, Result};

/// A PostgreSQL database and the connections to it.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(super) pool: PgPool,
    pub(crate) shared: Arc<Shared>,
    pub(crate) changes: ChangeSender,
    pub(super) listener: Option<AbortHandle>,
    /// How long a call may go on trying.
    pub(crate) patience: Duration,
}

impl Postgres {
    fn stop_listening(&self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }

    pub(crate) async fn begin(&self, attempt: &'static str, access: Access<'_>) -> Result<Session> {
        Session::begin(&self.pool, &self.shared, attempt, access).await
    }

    pub(crate) fn effect(&self, error: &Error) -> Effect {
        if session::is_lost(error) {
            self.shared.note_loss();
        }
        session::effect(error)
    }

    /// Running calls end by their own time-outs.
    pub(crate) async fn close(&self) {
        self.stop_listening();
        self.pool.close().await;
    }

    pub(crate) fn pool_use(&self) -> PoolUse {
        let (open, idle) = (self.pool.size() as usize, self.pool.num_idle());
        let max = self.pool.options().get_max_connections() as usize;
        // Two numbers, read one after the other.
        PoolUse { open, idle: idle.min(open), max, waiting: self.shared.waiting() }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_listening();
    }
}
