//! The index: what the cache knows, in SQL. Layer: port.

mod contract;
mod error;

pub use contract::*;
pub use error::{Error, Result};
