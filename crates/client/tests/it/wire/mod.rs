//! The client against a server that misbehaves on purpose. End-to-end tests check the client
//! against a real server.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

mod by_chunks;
mod chunk_server;
mod http;
#[cfg(unix)]
mod push;
#[cfg(unix)]
mod queue;
mod support;
