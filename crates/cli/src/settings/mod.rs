//! Settings of the server: one table of keys, read in two steps.
//!
//! [`raw`] gathers what was set and where (defaults, variables, file, flags) and checks each value by itself;
//! [`resolve`] turns that into [`Settings`] and checks what belongs together. Secrets stay out of every message.

mod database;
mod edge;
mod error;
pub(crate) mod keys;
mod nearest;
pub(crate) mod raw;
pub(crate) mod reference;
mod resolve;
pub(crate) mod show;
mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod units;

pub(crate) use edge::{EdgePlace, EdgeTarget};
pub(crate) use error::Error;
pub(crate) use raw::{Environment, Flags};
pub(crate) use resolve::{JwtSettings, LogSettings, Settings, SigningKey};
