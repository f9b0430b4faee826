//! What a start makes, and its observer.

use std::path::PathBuf;

use crate::error::Result;

/// Something that a start made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    DataFolder(PathBuf),
    Index(PathBuf),
    /// The tables of the index, in the database of a server.
    Schema {
        database: String,
    },
    Storage(PathBuf),
    MasterKey(PathBuf),
    TokenSecret(PathBuf),
    Cache {
        name: String,
    },
    AdminToken(PathBuf),
    /// The record that the first start is over.
    FirstStart,
}

/// Called with everything that a start makes, immediately afterwards. An error stops the start.
pub(crate) type Observer<'a> = &'a mut (dyn FnMut(&Made) -> Result<()> + Send);
