//! What truly differs between the databases: opening, sessions, locks, notices, limits and
//! examination.

pub(crate) mod postgres;
pub(crate) mod sqlite;
