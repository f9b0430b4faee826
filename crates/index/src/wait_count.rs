//! Counts tasks that wait: for a connection to the database, or for a share of any other budget.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts one waiting task for as long as this value lives, also when the task gives up.
#[derive(Debug)]
pub struct WaitCount<'a>(&'a AtomicUsize);

impl<'a> WaitCount<'a> {
    /// Counts the task here.
    pub fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
