//! Remote stores against real S3 servers: the contract, bad settings, servers that go and come
//! back, and bad days.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

mod addresses;
mod bad_days;
mod conformance;
mod outages;
mod settings;
mod support;
