//! Every integration test of `dormer-publish`: one program, because each program costs a link.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

mod common;
mod crash;
mod export;
mod failing;
mod meanwhile;
mod orders;
mod paused;
mod place;
mod turns;
