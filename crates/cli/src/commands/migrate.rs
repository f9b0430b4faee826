//! `dormer migrate`.

use clap::Args;
use dormer_index::{MigrationPlan, PostgresIndex, SqliteIndex};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::installation::open_index;
use crate::settings::Settings;

/// Upgrade the index's schema without starting the server
///
/// `dormer serve` does the same when it starts. On PostgreSQL, replicas and this command wait for
/// each other, and running replicas continue to work. No server may use an SQLite file meanwhile.
///
/// Examples:
///   dormer migrate --dry-run
///   dormer migrate --config /etc/dormer.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct MigrateArgs {
    /// Print what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) async fn run(args: MigrateArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let plan = plan(&settings).await?;
    let printer = &context.printer;
    if !args.dry_run && !plan.pending.is_empty() {
        open_index(&settings).await?.index.close().await?;
    }
    if printer.json {
        let steps: Vec<_> = plan
            .pending
            .iter()
            .map(|step| json!({ "version": step.version, "description": step.description }))
            .collect();
        let outcome = json!({
            "message_type": "migration", "database": settings.database_name(), "found": plan.found,
            "steps": steps, "dry_run": args.dry_run,
        });
        return printer.message(&outcome);
    }
    let begin = match plan.found {
        0 => "has no schema yet".to_owned(),
        found => format!("has schema {found}"),
    };
    printer.say(&format!("{} {begin}", settings.database_name()));
    for step in &plan.pending {
        let done = if args.dry_run { "would take" } else { "took" };
        printer.data(&format!("{done} step {}: {}", step.version, step.description))?;
    }
    if plan.pending.is_empty() {
        printer.data("nothing to do")?;
    }
    Ok(())
}

async fn plan(settings: &Settings) -> Result<MigrationPlan> {
    Ok(match &settings.postgres {
        Some(server) => PostgresIndex::plan_migration(server.url.expose(), &server.options).await?,
        None => SqliteIndex::plan_migration(&settings.database_path).await?,
    })
}
