//! What an opening would do to a database's schema, for people who want to know first.

use sqlx::migrate::Migrator;

/// A step of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its number.
    pub version: i64,
    /// What it is about, in a few words.
    pub description: String,
}

/// Where a schema stands, and what is still to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationPlan {
    /// The schema's version; 0 for an empty database.
    pub found: i64,
    /// Steps that were not taken, in order.
    pub pending: Vec<Migration>,
}

impl MigrationPlan {
    pub(crate) fn new(found: i64, known: &Migrator) -> Self {
        let pending = known.iter().filter(|migration| migration.version > found).map(|migration| Migration {
            version: migration.version,
            description: migration.description.to_string(),
        });
        Self { found, pending: pending.collect() }
    }
}
