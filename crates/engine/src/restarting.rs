//! Background tasks that go on after a panic: a defect in one step must not end a journal or the
//! jobs of a process whose requests are still answered.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use prometheus::IntCounter;

/// Pause before the first restart; each later one doubles it.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// Runs a task, and begins it again when it panics. A panic is a defect: it is
/// counted, and an alert tells of it.
pub(crate) async fn restarting<T, F: Future<Output = T>>(
    task: &'static str,
    restarts: &IntCounter,
    mut begin: impl FnMut() -> F,
) -> T {
    let mut pause = PAUSE;
    loop {
        if let Ok(done) = AssertUnwindSafe(begin()).catch_unwind().await {
            return done;
        }
        restarts.inc();
        tracing::error!(task, "a background task panicked; it starts again");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
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
