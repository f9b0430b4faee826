//! The client against a server that misbehaves on purpose. What a real server says to it is tested end to end, elsewhere.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

mod http;
#[cfg(unix)]
mod push;
mod support;
