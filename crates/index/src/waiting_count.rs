//! Counts calls that wait for a connection.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts one waiting call, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct WaitingCall<'a>(&'a AtomicUsize);

impl<'a> WaitingCall<'a> {
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
