//! How long a process keeps the lease of a job while it waits for one call to its store.
//!
//! A slow call must not cost the lease: another process would begin the same work again, and lose
//! the lease to the same store. A call to a folder may also hang (NFS), and then it never ends and
//! cannot be given up. So a lease is renewed during a call, but not for ever.

use std::time::Duration;

use dormer_blobs::Blobs;
use tokio::time::Instant;

use crate::Result;

/// A folder that has not answered for so long is stuck.
pub(crate) const STUCK_AFTER: Duration = Duration::from_mins(5);

/// A run under a lease.
pub(crate) trait Leased {
    /// Renews the lease.
    fn renew(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// How a lease is renewed while its holder waits for a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseRenewal {
    /// The lease is renewed so often; it lasts several times longer.
    pub(crate) after: Duration,
    /// During a longer call the lease is renewed no more; `None` if all calls end by themselves.
    stuck_after: Option<Duration>,
}

impl LeaseRenewal {
    /// Only calls to a folder can be stuck: those to a remote store end when their time is over.
    pub(crate) fn new(store: &dyn Blobs, after: Duration, stuck_after: Duration) -> Self {
        Self { after, stuck_after: (!store.is_remote()).then_some(stuck_after) }
    }

    /// Waits for a call to the store, and renews the lease meanwhile unless the call is stuck. Then
    /// another process, whose folder may answer, gets the lease. Should the call end after all, the
    /// work goes on if the lease is still its own.
    pub(crate) async fn during<T>(self, call: impl Future<Output = T>, run: &mut impl Leased) -> Result<T> {
        let (begun, mut is_told) = (Instant::now(), false);
        tokio::pin!(call);
        loop {
            tokio::select! {
                biased;
                done = &mut call => return Ok(done),
                () = tokio::time::sleep(self.after) => {}
            }
            if self.stuck_after.is_none_or(|stuck_after| begun.elapsed() < stuck_after) {
                run.renew().await?;
            } else if !is_told {
                tracing::warn!(
                    seconds = begun.elapsed().as_secs(),
                    "a job waits for the store, which does not answer; another process may take the job up now"
                );
                is_told = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::Error;

    const AFTER: Duration = Duration::from_secs(3);
    const FOLDER: LeaseRenewal = LeaseRenewal { after: AFTER, stuck_after: Some(STUCK_AFTER) };
    const REMOTE: LeaseRenewal = LeaseRenewal { after: AFTER, stuck_after: None };

    /// Counts renewals.
    struct Count(u64);

    impl Leased for Count {
        async fn renew(&mut self) -> Result<()> {
            self.0 += 1;
            Ok(())
        }
    }

    /// Another process has taken the lease.
    struct Lost;

    impl Leased for Lost {
        async fn renew(&mut self) -> Result<()> {
            Err(Error::Index(dormer_index::Error::JobLeaseLost))
        }
    }

    /// How often the lease is renewed during a call that takes so long.
    async fn renewals(renewal: LeaseRenewal, took: Duration) -> u64 {
        let mut count = Count(0);
        let call = async {
            tokio::time::sleep(took).await;
            7
        };
        let done = renewal.during(call, &mut count).await;
        assert_eq!(done.unwrap(), 7, "the call ends well after all");
        count.0
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_during_a_slow_call_and_no_longer_during_one_that_is_stuck() {
        assert_eq!(renewals(FOLDER, Duration::from_secs(2)).await, 0);
        assert_eq!(renewals(FOLDER, Duration::from_secs(10)).await, 3);
        let before = STUCK_AFTER.as_secs() / AFTER.as_secs() - 1;
        assert_eq!(renewals(FOLDER, Duration::from_secs(301)).await, before);
        assert_eq!(renewals(FOLDER, Duration::from_hours(9)).await, before, "however long it takes");
        assert_eq!(renewals(REMOTE, Duration::from_secs(3_001)).await, 1_000, "its calls end by themselves");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_done_costs_no_renewal_and_a_lost_lease_ends_the_wait() {
        assert_eq!(FOLDER.during(ready(5), &mut Lost).await.unwrap(), 5);
        let ended = FOLDER.during(pending::<()>(), &mut Lost).await;
        assert!(matches!(ended, Err(Error::Index(dormer_index::Error::JobLeaseLost))), "{ended:?}");
    }
}
