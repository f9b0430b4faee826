//! What an opening would do to a database's schema; shown before it happens.

use sqlx::SqlStr;
use sqlx::migrate::{MigrationType, Migrator};

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

/// The steps for SQLite, as build.rs found them in `migrations/sqlite`.
pub(crate) fn sqlite() -> Migrator {
    migrator(&include!(concat!(env!("OUT_DIR"), "/sqlite.rs")))
}

/// The steps for PostgreSQL, as build.rs found them in `migrations/postgres`.
pub(crate) fn postgres() -> Migrator {
    migrator(&include!(concat!(env!("OUT_DIR"), "/postgres.rs")))
}

fn migrator(steps: &[(i64, &'static str, &'static str)]) -> Migrator {
    let steps = steps.iter().map(|&(version, description, sql)| {
        let sql = SqlStr::from_static(sql);
        sqlx::migrate::Migration::new(version, description.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(steps.collect())
}
