//! `dormer gc`.

use std::time::Duration;

use clap::Args;
use dormer_engine::{
    Clock as _, CollectionPhase, CollectionPlan, CollectionProgress, CollectionReport, Collector,
    CompactionTotals, ExpiryTotals, PackTotals, SystemClock,
};
use dormer_index::{JobId, JobKind};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::chart::Bar;
use crate::context::{Context, SettingsArgs};
use crate::error::{Error, Result};
use crate::holder::holder;
use crate::installation::{Collection, open_collection};
use crate::settings::{Settings, units::human_size};

/// Free what nothing needs any more
///
/// A collection removes NARs that no path, grace or upload names, and condemns packs that hold
/// nothing else. A condemned pack is deleted by a later collection, after the longest upload that
/// the server allows. A server collects by itself every `garbage-collection.interval`.
///
/// A collection also compacts: it writes what is needed of packs with many dead chunks, and of
/// small packs, into new packs. The old ones are condemned. One collection writes 4 GiB at most.
///
/// On SQLite, a running server does the work and this command waits for it. Without a server, and
/// on PostgreSQL, this command does the work itself. The plan reads only, also beside a server.
///
/// Once a week, and for `dormer cache remove-path --now`, a collection also lists the store. Packs
/// that no row knows are deleted two days later. If they are more than 100, and more than half of
/// the store, they stay: another database may use it, or this database is older than the store and
/// has to be recovered. If neither is so, `--delete-strays` lets them go.
///
/// Examples:
///   dormer gc --dry-run
///   dormer gc --json --config /etc/dormer.toml
///   dormer gc --dry-run --delete-strays
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct GcArgs {
    /// Print what a collection would free, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Let all packs be deleted that no row knows, also if they are most of the store
    #[arg(long)]
    delete_strays: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// How often the command looks whether a server is done.
const LOOK: Duration = Duration::from_millis(500);

/// Between two changes of the line of progress.
const DRAW: Duration = Duration::from_millis(200);

/// How long a lease of this command lasts after its last step, in seconds.
const LEASE_SECONDS: i64 = 30;

pub(super) async fn run(args: GcArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let collection = open_collection(&settings, args.dry_run).await?;
    let printer = &context.printer;
    if args.delete_strays {
        delete_strays(&collection.collector, args.dry_run, context).await?;
    }
    if args.dry_run {
        let collector = &collection.collector;
        let expiry = watched(collector, context, collector.plan_expiry()).await?;
        let plan = watched(collector, context, collector.plan()).await?;
        let mut message = json!(plan);
        message["expire"] = json!(expiry);
        message["message_type"] = "collection_plan".into();
        printer.message(&message)?;
        if !printer.json {
            plan_lines(&plan, &expiry).iter().try_for_each(|line| printer.data(line))?;
        }
        printer.chart(&plan_bars(&plan))?;
    } else {
        let report = Box::pin(collect(&collection, context)).await?;
        let mut message = json!(report);
        message["message_type"] = "collection".into();
        printer.message(&message)?;
        if !printer.json {
            report_lines(&report).iter().try_for_each(|line| printer.data(line))?;
        }
    }
    Ok(collection.opened.index.close().await?)
}

/// Says which packs no row knows, and lets them go unless `is_dry_run`.
async fn delete_strays(collector: &Collector, is_dry_run: bool, context: &Context) -> Result<()> {
    let strays = watched(collector, context, collector.find_strays()).await?;
    let seconds = if is_dry_run { None } else { Some(collector.doom_strays(&strays).await?) };
    let printer = &context.printer;
    let count = strays.new.len() + strays.kept.len();
    printer.message(&json!({
        "message_type": "strays", "packs": count, "listed": strays.listed, "deleted_in_seconds": seconds,
    }))?;
    if !printer.json {
        printer.data(&stray_line(count, strays.listed, seconds))?;
    }
    Ok(())
}

fn stray_line(count: usize, listed: u64, seconds: Option<i64>) -> String {
    let found = format!("packs without a row: {count} of {listed} in the store");
    match seconds {
        Some(seconds) if count > 0 => {
            format!("{found}; the first collection in {} hours or later deletes them", seconds / 3_600)
        }
        _ => found,
    }
}

/// Shows on a terminal where the collector is, while it works.
async fn watched<T>(collector: &Collector, context: &Context, work: impl Future<Output = T>) -> T {
    let bar = progress_bar(context);
    tokio::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(DRAW) => bar.set_message(progress_line(&collector.progress())),
        }
    };
    bar.finish_and_clear();
    done
}

fn progress_bar(context: &Context) -> ProgressBar {
    let target = context.printer.progress_target().unwrap_or_else(ProgressDrawTarget::hidden);
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::with_template("{elapsed_precise}  {msg}").expect("a well-formed template"));
    bar.enable_steady_tick(DRAW);
    bar
}

fn progress_line(progress: &CollectionProgress) -> String {
    let CollectionProgress { phase, nars, packs } = progress;
    match phase {
        CollectionPhase::Deleting => "deleting packs that nothing needs".to_owned(),
        CollectionPhase::Expiring => "looking for what is over".to_owned(),
        CollectionPhase::Marking => format!("reading what NARs need: {nars} NARs so far"),
        CollectionPhase::Judging => format!("{nars} NARs read; looking at packs: {packs} so far"),
        CollectionPhase::Purging => "removing the bytes of removed paths".to_owned(),
        CollectionPhase::Listing => "listing the store".to_owned(),
    }
}

/// Collects here, or waits for the process that does.
async fn collect(collection: &Collection, context: &Context) -> Result<CollectionReport> {
    let Collection { opened, collector, is_served } = collection;
    let job = if *is_served {
        opened.collect.open_collection(i64::MAX, SystemClock.now()).await?
    } else {
        let holder = holder();
        let run = collector.run_now(&*opened.jobs, &holder, LEASE_SECONDS);
        match watched(collector, context, run).await? {
            Some(report) => return Ok(report),
            None => opened.collect.open_collection(i64::MAX, SystemClock.now()).await?,
        }
    };
    let job = job.expect("a time in the future makes any collection due");
    context.printer.say("another process collects; waiting for it");
    let bar = progress_bar(context);
    let waited = wait_for(collection, job, &bar).await;
    bar.finish_and_clear();
    waited?;
    let report = opened.collect.last_collection().await?.report;
    serde_json::from_str(&report).map_err(|error| Error::NotCollected { reason: error.to_string() })
}

/// Waits until a server has run the collection. A failure before the command asked does not count:
/// asking forgets it, unless the job was held just then.
async fn wait_for(collection: &Collection, job: JobId, bar: &ProgressBar) -> Result<()> {
    let mut failures_before = None;
    loop {
        let after = Some(JobId(job.0 - 1));
        let found = collection.opened.jobs.list_jobs(after, 1).await?.pop();
        let Some(found) = found.filter(|found| found.id == job && found.kind == JobKind::Collect.as_str())
        else {
            return Ok(());
        };
        let held_with = if found.holder.is_some() { found.failures } else { 0 };
        let before = failures_before.unwrap_or(held_with).min(found.failures);
        failures_before = Some(before);
        if let Some(reason) = found.error.filter(|_| found.failures > before) {
            return Err(Error::NotCollected { reason });
        }
        bar.set_message(format!("{} rows freed or moved so far", found.rows_done));
        tokio::time::sleep(LOOK).await;
    }
}

fn packs(totals: &PackTotals) -> String {
    let PackTotals { packs, bytes, chunks } = totals;
    format!("{packs} packs, {}, {chunks} chunks", human_size(*bytes))
}

fn compaction(totals: &CompactionTotals) -> String {
    format!(
        "{} packs, {}; {} read and {} written into {} packs by {} requests",
        totals.packs,
        human_size(totals.bytes),
        human_size(totals.bytes_read),
        human_size(totals.bytes_written),
        totals.packs_written,
        totals.requests
    )
}

fn plan_lines(plan: &CollectionPlan, expiry: &ExpiryTotals) -> Vec<String> {
    let ExpiryTotals { caches, paths, bytes, caches_left_out, logs } = *expiry;
    let left_out = if caches_left_out > 0 {
        format!("; {caches_left_out} caches are too large to look at")
    } else {
        String::new()
    };
    let mut lines = vec![
        format!("paths that the rules of {caches} caches let go: {paths}, {}{left_out}", human_size(bytes)),
        format!("graces that are over: {}; uploads that are over: {}", plan.graces, plan.aliases),
        format!("NARs to remove: {}, {} uncompressed", plan.nars, human_size(plan.nar_bytes)),
        format!("to condemn: {}", packs(&plan.condemn)),
        format!("condemned, waiting for the longest upload: {}", packs(&plan.wait)),
        format!("to free: {}", packs(&plan.remove)),
        format!("to compact: {}", compaction(&plan.compact)),
    ];
    if logs > 0 {
        lines.push(format!("logs that are older than logs are kept: {logs}"));
    }
    if plan.recompress.packs > 0 {
        let CompactionTotals { packs, bytes, .. } = plan.recompress;
        lines.push(format!(
            "to recompress, in this collection and later ones: {packs} packs, {}",
            human_size(bytes)
        ));
    }
    lines
}

/// The packs that a collection would touch, by what would become of them.
fn plan_bars(plan: &CollectionPlan) -> Vec<Bar> {
    vec![
        Bar::new("to free", plan.remove.bytes),
        Bar::new("condemned, waiting", plan.wait.bytes),
        Bar::new("to condemn", plan.condemn.bytes),
        Bar::new("to compact", plan.compact.bytes),
        Bar::new("to recompress", plan.recompress.bytes),
    ]
}

fn report_lines(report: &CollectionReport) -> Vec<String> {
    let mut lines = vec![
        format!("NARs removed: {}, {} uncompressed", report.nars, human_size(report.nar_bytes)),
        format!("condemned: {}", packs(&report.condemned)),
        format!("condemned before, waiting for the longest upload: {}", packs(&report.waiting)),
        format!("freed: {}", packs(&report.removed)),
        format!("compacted: {}", compaction(&report.compacted)),
    ];
    if report.recompressed.bytes_read > 0 {
        lines.push(format!("recompressed: {}", compaction(&report.recompressed)));
    }
    if report.purged > 0 {
        lines.push(format!("removed paths whose bytes left the store at once: {}", report.purged));
    }
    if report.purges_left > 0 {
        lines.push(format!("removed paths whose bytes have to wait: {}", report.purges_left));
    }
    if report.purge_packs_damaged > 0 {
        lines.push(format!(
            "packs that keep them because a live path needs a damaged chunk there: {} (push what is missing again)",
            report.purge_packs_damaged
        ));
    }
    if report.strays_found > 0 {
        lines.push(format!("packs without a row, to be deleted later: {}", report.strays_found));
    }
    if report.strays_kept > 0 {
        lines.push(format!(
            "packs without a row that stay, by the last listing: {} (--delete-strays lets them go)",
            report.strays_kept
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_and_a_report_are_a_few_lines() {
        let totals = PackTotals { packs: 2, bytes: 3 << 20, chunks: 40 };
        let plan = CollectionPlan { nars: 5, nar_bytes: 1 << 20, condemn: totals, ..Default::default() };
        let expiry = ExpiryTotals { caches: 1, paths: 7, bytes: 2 << 20, caches_left_out: 0, logs: 3 };
        let lines = plan_lines(&plan, &expiry);
        assert_eq!(lines[1], "graces that are over: 0; uploads that are over: 0");
        assert_eq!(lines[2], "NARs to remove: 5, 1.0 MiB uncompressed");
        assert_eq!(lines[3], "to condemn: 2 packs, 3.0 MiB, 40 chunks");
        assert_eq!(lines[0], "paths that the rules of 1 caches let go: 7, 2.0 MiB");
        assert_eq!(lines[7], "logs that are older than logs are kept: 3");
        let compact = CompactionTotals {
            packs: 3,
            bytes: 60 << 20,
            packs_written: 2,
            chunks: 400,
            bytes_read: 30 << 20,
            bytes_written: 24 << 20,
            requests: 11,
        };
        let plan = CollectionPlan { compact, ..plan };
        let lines = plan_lines(&plan, &expiry);
        assert_eq!(
            lines[6],
            "to compact: 3 packs, 60.0 MiB; 30.0 MiB read and 24.0 MiB written into 2 packs by 11 requests"
        );
        insta::assert_snapshot!(crate::chart::lines(&plan_bars(&plan), 60).join("\n"), @r"
        to free                    0 B
        condemned, waiting         0 B
        to condemn             3.0 MiB  █▌
        to compact            60.0 MiB  ████████████████████████████
        to recompress              0 B
        ");
        let report = CollectionReport { removed: totals, strays_found: 1, ..Default::default() };
        let lines = report_lines(&report);
        assert_eq!(lines[3], "freed: 2 packs, 3.0 MiB, 40 chunks");
        assert_eq!(lines[5], "packs without a row, to be deleted later: 1");
        let report = CollectionReport {
            strays_kept: 101,
            purges_left: 2,
            purge_packs_damaged: 1,
            ..Default::default()
        };
        let lines = report_lines(&report);
        assert_eq!(lines[5], "removed paths whose bytes have to wait: 2");
        assert!(lines[6].ends_with("a damaged chunk there: 1 (push what is missing again)"), "{lines:?}");
        assert!(lines[7].contains("101 (--delete-strays"), "{lines:?}");
    }

    #[test]
    fn progress_and_strays_are_one_line() {
        let progress = CollectionProgress { phase: CollectionPhase::Judging, nars: 900, packs: 12 };
        assert_eq!(progress_line(&progress), "900 NARs read; looking at packs: 12 so far");
        assert_eq!(stray_line(3, 9, None), "packs without a row: 3 of 9 in the store");
        assert_eq!(stray_line(0, 9, Some(172_800)), "packs without a row: 0 of 9 in the store");
        assert!(stray_line(3, 9, Some(172_800)).ends_with("in 48 hours or later deletes them"));
    }
}
