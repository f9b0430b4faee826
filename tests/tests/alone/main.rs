//! End-to-end tests that load the whole machine or kill its services. `stories` has the others.
//!
//! The tests of one file may run side by side. The tests of two files never do: a server that is
//! measured by one file must not share the processor with the clients of another file. Each test
//! therefore begins with `let _turn = crate::turn(file!());`.

mod collector_kills;
mod large;
mod load;
mod outages;
mod publish_reader;

use std::sync::{Condvar, Mutex, PoisonError};

/// The file whose tests run, and how many of its tests run.
static RUNNING: Mutex<(&str, usize)> = Mutex::new(("", 0));
static TEST_ENDED: Condvar = Condvar::new();

/// The right to run, until it is dropped. It is dropped by a failing test too.
struct Turn;

/// Waits until no test of another file runs.
fn turn(file: &'static str) -> Turn {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = TEST_ENDED
        .wait_while(running, |(other, tests)| *tests > 0 && *other != file)
        .unwrap_or_else(PoisonError::into_inner);
    *running = (file, running.1 + 1);
    Turn
}

impl Drop for Turn {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).1 -= 1;
        TEST_ENDED.notify_all();
    }
}
