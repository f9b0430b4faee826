//! The right to write to a target: taken before anything else, renewed by every write, given back
//! at the end.

use std::time::Duration;

use dormer_index::{Lease, PublishTarget};
use dormer_stores::WriteWindow;
use tokio::time::{Instant, sleep, timeout_at};

use crate::publisher::Publisher;
use crate::settings::seconds;
use crate::{Error, Result};

impl Publisher {
    /// Takes the lease, and returns until when it is good. If the last holder ended without giving
    /// it back, this waits until that lease has run out, and then for the longest request that may
    /// still be under way. A lease that is renewed meanwhile is in use. Returns `None` if the run
    /// is asked to end first; a lease that was taken by then is not given back, because the next
    /// run has to wait as well.
    pub(crate) async fn take_lease(&self, target: &PublishTarget) -> Result<Option<(Lease, Instant)>> {
        let mut known = target.clone();
        for last_try in [false, true] {
            let (now, asked) = (self.engine.now(), Instant::now());
            let ends_at = now + seconds(self.settings.lease);
            if let Some(lease) = self.state.acquire_lease(target.id, &self.holder, now, ends_at).await? {
                let mut good_until = self.good_until(asked);
                if !lease.was_released {
                    match self.wait_out(&lease, good_until).await? {
                        Some(later) => good_until = later,
                        None => return Ok(None),
                    }
                }
                return Ok(Some((lease, good_until)));
            }
            let held = self.state.open_target(&target.name, &target.location).await?;
            let left = (held.lease_ends_at - now).max(0);
            let renewed = held.lease_ends_at > known.lease_ends_at && known.holder.is_some();
            if last_try || renewed {
                let holder = held.holder.unwrap_or_else(|| "another program".to_owned());
                return Err(Error::Busy { target: held.name, holder, seconds: left });
            }
            known = held;
            if !self.pause(Duration::from_secs(left.unsigned_abs() + 1)).await {
                return Ok(None);
            }
        }
        unreachable!("the last try returns")
    }

    /// Waits for the requests of a holder that ended without a word. Returns until when the lease
    /// is good then, or `None` if the run is asked to end.
    async fn wait_out(&self, lease: &Lease, mut good_until: Instant) -> Result<Option<Instant>> {
        tracing::info!(
            target.name = %self.settings.name, wait = ?self.settings.request_timeout,
            "the last run did not give its lease back; waiting for requests that it may have under way"
        );
        let until = Instant::now() + self.settings.request_timeout;
        while Instant::now() < until {
            let left = until - Instant::now();
            if !self.pause(left.min(self.settings.lease / 3)).await {
                return Ok(None);
            }
            let asked = Instant::now();
            self.state.renew_lease(&self.renewed(lease)).await?;
            good_until = self.good_until(asked);
        }
        Ok(Some(good_until))
    }

    /// The same lease, to end as late as it may from now on.
    pub(crate) fn renewed(&self, lease: &Lease) -> Lease {
        Lease { ends_at: self.engine.now() + seconds(self.settings.lease), ..*lease }
    }

    /// Until when writes may begin under a lease that was taken or renewed at this time. A tenth of
    /// the lease is kept back: its end is written down in whole seconds, and clocks differ.
    fn good_until(&self, asked: Instant) -> Instant {
        asked + self.settings.lease - self.settings.lease / 10
    }

    /// Keeps the lease alive while nothing is written to the index, as in a long transfer, and the
    /// window of writes open. Returns only when the lease is lost, or so near to its end that it
    /// counts as lost.
    pub(crate) async fn keep_lease(
        &self,
        lease: &Lease,
        window: &WriteWindow,
        mut good_until: Instant,
    ) -> Error {
        let pause = self.settings.lease / 3;
        loop {
            sleep(pause).await;
            let asked = Instant::now();
            let lease = self.renewed(lease);
            match timeout_at(good_until, self.state.renew_lease(&lease)).await {
                Ok(Ok(())) => {
                    good_until = self.good_until(asked);
                    window.extend(good_until);
                }
                // The database may be away for a moment.
                Ok(Err(dormer_index::Error::Unavailable { .. })) if Instant::now() + pause < good_until => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return dormer_index::Error::LeaseLost.into(),
            }
            // This process stood still.
            if !window.is_open() {
                return dormer_index::Error::LeaseLost.into();
            }
        }
    }
}
