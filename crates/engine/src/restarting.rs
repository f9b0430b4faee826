//! Background tasks that go on after a panic: a defect in one step must not end a journal or the
//! jobs of a process whose requests are still answered.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use dormer_nix::Backoff;
use futures::FutureExt as _;
use prometheus::IntCounter;

/// Before a restart.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_mins(1) };

/// Runs a task, and begins it again when it panics. A panic is a defect: it is
/// counted, and an alert tells of it.
pub(crate) async fn restarting<T, F: Future<Output = T>>(
    task: &'static str,
    restarts: &IntCounter,
    mut begin: impl FnMut() -> F,
) -> T {
    let mut panics = 0;
    loop {
        if let Ok(done) = AssertUnwindSafe(begin()).catch_unwind().await {
            return done;
        }
        restarts.inc();
        tracing::error!(task, "a background task panicked; it starts again");
        panics += 1;
        tokio::time::sleep(BACKOFF.bound(panics)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again() {
        let restarts = IntCounter::new("restarts", "restarts").unwrap();
        let mut begun = 0;
        let done = restarting("test", &restarts, || {
            begun += 1;
            let run = begun;
            async move { if run < 3 { panic!("run {run}") } else { run } }
        });
        assert_eq!(done.await, 3);
        assert_eq!(restarts.get(), 2);
    }
}
