//! `dormer backup` and `dormer restore`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use dormer_index::{DatabaseCopy, SqliteIndex};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::{Error, Result};
use crate::installation::make_private_folder;
use crate::settings::Settings;
use crate::settings::units::{human_duration, human_size};

/// Copy the database to a file, also while a server uses it
///
/// For SQLite. The copy is the database as it was at one moment; it is checked and synced before it
/// gets its name. An existing file is never overwritten. The packs are not in it: they never
/// change, so copy them with any tool, after the database. Keep the master key apart from both.
///
/// For PostgreSQL, use pg_dump (docs/OPERATING.md, "Backups").
///
/// Examples:
///   dormer backup /backups/dormer-$(date +%F).sqlite
///   dormer backup --json --config /etc/dormer.toml /backups/dormer.sqlite
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BackupArgs {
    /// The new file
    file: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Bring the database back from a backup
///
/// For SQLite, while no server runs. The backup is checked first. An existing database is never
/// overwritten: move it away before. The next `dormer publish` of each edge target needs
/// --reconcile, because the edge may hold what the backup does not know.
///
/// If the journal in the store survived, `dormer recover --from-store` brings back all but the last
/// minute, and a backup does not. After a restore, paths that were pushed later are gone from the
/// caches, and paths and caches that were removed later are back: remove a leaked secret again.
/// Packs that were deleted later make the paths in them unreadable until a push. Once a server runs
/// with the restored database, the store keeps the journal before it for 30 days, and `dormer
/// recover --from-store --lineage` reads it; `dormer recover --accept-loss` lets it go.
///
/// Examples:
///   dormer restore /backups/dormer-2026-11-28.sqlite
///   dormer restore --config /etc/dormer.toml /backups/dormer.sqlite
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RestoreArgs {
    /// A file that `dormer backup` wrote
    file: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What follows from a step back in time.
const RESTORED: [&str; 4] = [
    "what was pushed later has to be pushed again, or recovered: if the journal in the store is whole, `dormer recover \
     --from-store` into an empty database brings back all but the last minute",
    "once a server runs with this database, the store keeps the journal before it for 30 days; `dormer recover \
     --accept-loss` lets it go",
    "paths and caches that were removed later are back: remove what must not be there again (`dormer cache remove-path`)",
    "`dormer doctor` names paths whose packs are gone; publish each edge target once with --reconcile",
];

pub(super) async fn run_backup(args: BackupArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let path = sqlite_path(&settings)?;
    if !path.exists() {
        return Err(Error::NoInstallation { path: path.to_owned() });
    }
    context.printer.say(&format!("copying {}", path.display()));
    let copy = SqliteIndex::back_up(path, &args.file).await.map_err(not_overwritten)?;
    context.printer.message(&message("backup", &args.file, &copy))?;
    context.printer.conclude(&format!("{} holds {}", args.file.display(), contents(&copy)));
    Ok(())
}

pub(super) async fn run_restore(args: RestoreArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let path = sqlite_path(&settings)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        make_private_folder(folder)?;
    }
    if path.exists() {
        return Err(Error::NotOverwritten { path: path.to_owned() });
    }
    context.printer.say(&format!("copying {}", args.file.display()));
    let copy = SqliteIndex::restore(&args.file, path).await.map_err(not_overwritten)?;
    context.printer.message(&message("restore", path, &copy))?;
    context.printer.conclude(&format!("{} holds {}", path.display(), contents(&copy)));
    for hint in RESTORED {
        context.printer.hint(hint);
    }
    Ok(())
}

fn sqlite_path(settings: &Settings) -> Result<&Path> {
    if settings.postgres.is_some() { Err(Error::BackupOfPostgres) } else { Ok(&settings.database_path) }
}

fn not_overwritten(error: dormer_index::Error) -> Error {
    match error {
        dormer_index::Error::FileExists { path } => Error::NotOverwritten { path: path.into() },
        error => error.into(),
    }
}

fn message(kind: &str, file: &Path, copy: &DatabaseCopy) -> serde_json::Value {
    json!({
        "message_type": kind, "file": file.display().to_string(), "bytes": copy.bytes, "schema": copy.schema,
        "objects": copy.objects, "newest_change": copy.newest_change,
    })
}

fn contents(copy: &DatabaseCopy) -> String {
    let age = copy.newest_change.map_or(String::new(), |at| {
        let at = UNIX_EPOCH + Duration::from_secs(at.unsigned_abs());
        let age = SystemTime::now().duration_since(at).unwrap_or_default();
        format!(", the newest change {} old", human_duration(age))
    });
    format!("{} objects in {}{age}", copy.objects, human_size(copy.bytes))
}
