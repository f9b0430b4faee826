//! The time until which a process may write to a store.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::{Error, Result};

/// A time until which writes may begin.
///
/// A process that holds a lease moves the end on with each renewal. A process that stood still for
/// too long (a frozen machine, a stopped process) finds the window closed before it sends anything.
#[derive(Debug)]
pub struct WriteWindow(Mutex<Instant>);

impl WriteWindow {
    /// A window that closes at this time.
    pub fn until(end: Instant) -> Self {
        Self(Mutex::new(end))
    }

    /// Moves the end on. A window that has closed stays closed: the lease may have gone to another
    /// process meanwhile.
    pub fn extend(&self, end: Instant) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < *now {
            *now = end.max(*now);
        }
    }

    /// Closes the window now.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether a write may begin.
    pub fn is_open(&self) -> bool {
        Instant::now() < *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn check(&self, attempt: &'static str, key: &str) -> Result<()> {
        if self.is_open() { Ok(()) } else { Err(Error::WindowClosed { attempt, key: key.to_owned() }) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn nothing_is_written_once_the_window_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path()).unwrap();
        let window = Arc::new(WriteWindow::until(Instant::now() + Duration::from_mins(1)));
        let within = store.within(&window).in_parts_of(4);
        within.put("a", None, ["one".into()]).await.unwrap();
        let mut begun = within.begin_upload("b", None, 9).await.unwrap();
        begun.put_part(["1234".into()]).await.unwrap();
        let finished = within.begin_upload("c", None, 9).await.unwrap();
        window.close();
        let outcomes = [
            within.put("a", None, ["two".into()]).await.map(drop),
            within.delete("a").await,
            within.begin_upload("d", None, 9).await.map(drop),
            begun.put_part(["5678".into()]).await,
            begun.finish().await.map(drop),
            finished.finish().await.map(drop),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(Error::WindowClosed { .. })), "{outcome:?}");
        }
        assert_eq!(within.get("a").await.unwrap().as_deref(), Some(b"one".as_slice()), "reads go on");
        assert_eq!(store.list_page("", None, 9).await.unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_has_closed_stays_closed() {
        let end = |seconds| Instant::now() + Duration::from_secs(seconds);
        let window = WriteWindow::until(end(10));
        window.extend(end(20));
        // An older renewal that ends late takes nothing away.
        window.extend(end(5));
        tokio::time::advance(Duration::from_secs(19)).await;
        assert!(window.is_open());
        tokio::time::advance(Duration::from_secs(1)).await;
        window.extend(end(20));
        assert!(!window.is_open());
        let closed = window.check("write", "a");
        assert!(matches!(closed, Err(Error::WindowClosed { attempt: "write", .. })), "{closed:?}");
    }
}
