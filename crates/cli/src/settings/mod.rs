//! Settings of the server: one table of keys, read in two steps.
//!
//! [`sources`] gathers the values and their origins (defaults, variables, file, flags), and checks
//! each value by itself. [`resolve`] turns them into [`Settings`], and checks values that depend on
//! each other. No message contains a secret.

mod database;
mod edge;
mod error;
pub(crate) mod keys;
mod nearest;
mod origin;
pub(crate) mod raw;
pub(crate) mod reference;
mod resolve;
pub(crate) mod show;
mod sources;
mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod units;
mod values;

pub(crate) use edge::{EdgePlace, EdgeTarget};
pub(crate) use error::Error;
pub(crate) use raw::Environment;
pub(crate) use resolve::{JwtSettings, LogSettings, Settings, SigningKey};
pub(crate) use sources::Flags;
