//! The right to write to a target: taken before anything else, renewed by every write, given back
//! at the end.

use std::time::Duration;

use dormer_index::{Lease, PublishTarget};

use crate::publisher::Publisher;
use crate::settings::seconds;
use crate::{Error, Result};

impl Publisher {
    /// Takes the lease. If the last holder ended without giving it back, this waits until that
    /// lease has run out, and then for the longest request that may still be under way. A lease
    /// that is renewed meanwhile is in use.
    pub(crate) async fn take_lease(&self, target: &PublishTarget) -> Result<Lease> {
        let mut known = target.clone();
        for last_try in [false, true] {
            let now = self.engine.now();
            let ends_at = now + seconds(self.settings.lease);
            if let Some(lease) = self.state.acquire_lease(target.id, &self.holder, now, ends_at).await? {
                if !lease.was_released {
                    self.wait_out(&lease).await?;
                }
                return Ok(lease);
            }
            let held = self.state.open_target(&target.name, &target.location).await?;
            let left = (held.lease_ends_at - now).max(0);
            let renewed = held.lease_ends_at > known.lease_ends_at && known.holder.is_some();
            if last_try || renewed {
                let holder = held.holder.unwrap_or_else(|| "another program".to_owned());
                return Err(Error::Busy { target: held.name, holder, seconds: left });
            }
            known = held;
            tokio::time::sleep(Duration::from_secs(left.unsigned_abs() + 1)).await;
        }
        unreachable!("the last try returns")
    }

    async fn wait_out(&self, lease: &Lease) -> Result<()> {
        tracing::info!(
            target.name = %self.settings.name, wait = ?self.settings.request_timeout,
            "the last run did not give its lease back; waiting for requests that it may have under way"
        );
        let until = tokio::time::Instant::now() + self.settings.request_timeout;
        while tokio::time::Instant::now() < until {
            let left = until - tokio::time::Instant::now();
            tokio::time::sleep(left.min(self.settings.lease / 3)).await;
            self.state.renew_lease(&self.renewed(lease)).await?;
        }
        Ok(())
    }

    /// The same lease, to end as late as it may from now on.
    pub(crate) fn renewed(&self, lease: &Lease) -> Lease {
        Lease { ends_at: self.engine.now() + seconds(self.settings.lease), ..*lease }
    }

    /// Keeps the lease alive while nothing is written to the index, as in a long transfer. Returns
    /// only when the lease is lost, or so near to its end that it counts as lost.
    pub(crate) async fn keep_lease(&self, lease: &Lease) -> Error {
        let pause = self.settings.lease / 3;
        let mut good_until = tokio::time::Instant::now() + self.settings.lease;
        loop {
            tokio::time::sleep(pause).await;
            let asked = tokio::time::Instant::now();
            let lease = self.renewed(lease);
            match tokio::time::timeout_at(good_until, self.state.renew_lease(&lease)).await {
                Ok(Ok(())) => good_until = asked + self.settings.lease,
                // The database may be away for a moment.
                Ok(Err(dormer_index::Error::Unavailable { .. }))
                    if tokio::time::Instant::now() + pause < good_until => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return dormer_index::Error::LeaseLost.into(),
            }
        }
    }
}
