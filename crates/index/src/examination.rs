//! What an examination of a database finds. People read it; the server does not.

use std::time::SystemTime;

/// A database as it is now. Looking changes nothing: nothing is made, nothing migrated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examination {
    /// The program and its version: `SQLite 3.50.4`.
    pub program: String,
    /// Version of our schema. `None` if there is none yet: the first start makes it.
    pub schema: Option<i64>,
    /// Newest schema that this binary knows.
    pub schema_known: i64,
    /// Whether a server holds it for itself now (SQLite only).
    pub in_use: bool,
    /// The time on the database's machine, if that may be another one.
    pub time: Option<SystemTime>,
    /// Whether a pooler was seen that gives every transaction another connection. A busy one may
    /// hide.
    pub pooled: bool,
    /// What we are not allowed to do and have to: `CREATE on schema public`.
    pub missing_rights: Vec<String>,
    /// The named value of the installation that was asked for.
    pub setting: Option<Vec<u8>>,
}
