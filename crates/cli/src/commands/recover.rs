//! `dormer recover`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use dormer_blobs::{Store, StoreBlobs};
use dormer_engine::{
    Clock as _, FULL_PPM, Journal, JournalSettings, Recovered, Recovery, RecoveryEvent, ScrubOptions,
    Scrubber, StoredJournal, SystemClock, keep_journal, release_kept_journals, renew_kept_journals,
    stored_journals,
};
use dormer_index::{MASTER_KEY_PROOF, OpenIndex};
use dormer_nix::with_causes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::{Error, Result};
use crate::holder::holder;
use crate::installation::{
    FIRST_START_SETTING, INSTALLATION_SETTING, RECOVERY_BEGUN, RECOVERY_ENDED, adopt_store, check_master_key,
    for_recovery, is_recovery_unfinished, open_claims, open_for_recovery, open_index_beside,
    open_journal_beside, read_id,
};
use crate::settings::Settings;
use crate::settings::units::ago;

/// Make a lost database anew from the store
///
/// The server writes a journal beside the packs (journal/). This command fills an empty database
/// from both: caches with their signing keys and settings, paths, pins, build logs, build traces
/// and uploads. What changed within the last `journal.interval` before the loss may be missing. The
/// master key must be the one of the lost database. If the command is interrupted, run it again: it
/// goes on.
///
/// No server may run meanwhile, and none may use the lost database again: the new one carries its
/// id. Afterwards each edge target needs one `dormer publish --reconcile`.
///
/// The new database does not know which stored bytes are damaged. So the server begins a scrub of
/// everything when it starts, at 50 MB a second; `dormer jobs` shows it, and `--no-scrub` leaves it
/// out.
///
/// If bytes or files of the journal are missing, each lost path is named, and the journal before
/// the recovery stays in the store for 30 days, as do the packs that it may need. Copy what is
/// missing back within that time, empty the database, and recover again. The same holds for the
/// journal that a restored database has forgotten. If the store has several journals, the command
/// lists them and asks for `--lineage`. With `--accept-loss` none of them stays.
///
/// Examples:
///   dormer recover --from-store --config /etc/dormer.toml
///   dormer recover --from-store --lineage 3f62c1d09a7be845
///   dormer recover --accept-loss    # the kept journals go; a server may run
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, group = ArgGroup::new("what").required(true).multiple(true))]
pub(crate) struct RecoverArgs {
    /// Recover from the packs and the journal in the store of the settings
    #[arg(long, group = "what")]
    from_store: bool,
    /// Recover this one of several journals in the store
    #[arg(long, value_name = "HEX", value_parser = parse_lineage, requires = "from_store")]
    lineage: Option<u64>,
    /// Keep no journal but the one of the database
    #[arg(long, group = "what")]
    accept_loss: bool,
    /// Have the server not read every stored byte again when it starts
    #[arg(long, requires = "from_store")]
    no_scrub: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Stored bytes that the scrub after a recovery reads in a second. A terabyte takes six hours.
const SCRUB_BYTES_PER_SECOND: u64 = 50_000_000;

/// How long a turn of a server is waited for: four leases of one that died.
const OTHER_WRITES_MAX: Duration = Duration::from_mins(2);

/// Between two lines of progress where there is no terminal.
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);

pub(super) async fn run(args: RecoverArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    if !args.from_store {
        return accept_loss(&settings, context).await;
    }
    let printer = &context.printer;
    let (opened, store) = open_for_recovery(&settings).await?;
    let OpenIndex { index, journal, .. } = &opened;
    if !is_recovery_unfinished(&**index).await? && !journal.is_empty().await? {
        return Err(Error::NotEmpty { database: settings.database_name() });
    }
    let lineage = choose_lineage(&store, args.lineage).await?;
    let recovery = Recovery::open_lineage(store.clone(), lineage).await?;
    if recovery.is_empty() {
        return Err(Error::NoJournal { store: store.location().to_owned() });
    }
    check_owner(&settings, &recovery).await?;
    if !recovery.is_snapshot_whole() {
        printer.warn("the journal has no whole snapshot: what changed before its first file is missing");
    }
    warn_of_ignored(recovery.report(), args.lineage.is_some(), context);
    let recovered = RecoveredJournal { lineage: recovery.lineage(), generations: recovery.generations() };
    let is_whole = recovery.is_snapshot_whole();
    check_master_key(&settings, recovery.setting(MASTER_KEY_PROOF))?;
    index.create_setting(RECOVERY_BEGUN, b"yes").await?;
    let progress = RecoverProgress::new(context);
    let report = recovery.run(&for_recovery(&opened), &SystemClock, &|event| progress.tell(event)).await?;
    progress.bar.finish_and_clear();
    let has_losses = report.has_losses() || !is_whole;
    if args.accept_loss {
        release_kept_journals(&store, |_| true).await?;
    } else {
        keep_others(&store, &recovered, has_losses).await?;
    }
    adopt_store(&settings, &**index).await?;
    if !args.no_scrub {
        open_full_scrub(&opened, store.clone()).await?;
    }
    index.create_setting(FIRST_START_SETTING, b"done").await?;
    index.create_setting(RECOVERY_ENDED, b"yes").await?;
    write_snapshot(&opened, store, context).await;
    index.close().await?;
    let mut message = json!(report);
    message["message_type"] = "recovery".into();
    printer.message(&message)?;
    conclude(&report, !args.no_scrub, context);
    if has_losses && !args.accept_loss {
        printer.hint(
            "the journal before this recovery stays for 30 days: copy what is missing back, empty the database, and \
             recover again; `dormer recover --accept-loss` lets it go",
        );
    }
    Ok(())
}

/// What a recovery read.
struct RecoveredJournal {
    lineage: Option<u64>,
    generations: Option<(u64, u64)>,
}

fn parse_lineage(text: &str) -> std::result::Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text, 16)
}

/// The lineage to recover; `None` for the newest. Where a mark keeps a journal beside the newest
/// one, only the operator knows which of them is wanted.
async fn choose_lineage(store: &Store, wanted: Option<u64>) -> Result<Option<u64>> {
    let journals = stored_journals(store).await?;
    let is_there = |wanted| journals.iter().any(|journal| journal.lineage == wanted);
    let is_clear = match wanted {
        Some(wanted) => is_there(wanted),
        None => journals.len() < 2 || journals.iter().all(|journal| journal.kept_since.is_none()),
    };
    if is_clear {
        return Ok(wanted);
    }
    let now = SystemClock.now();
    let line = |journal: &StoredJournal| {
        let kept = if journal.kept_since.is_some() { ", kept from before" } else { "" };
        format!("--lineage {:016x}: written last {}{kept}", journal.lineage, ago(now, journal.written_at))
    };
    Err(Error::SeveralJournals { journals: journals.iter().map(line).collect() })
}

/// Marks what only another journal than that of the new database says: the one that was recovered,
/// if not all of it came back, and those that others wrote.
async fn keep_others(store: &Store, recovered: &RecoveredJournal, has_losses: bool) -> Result<()> {
    let now = SystemClock.now();
    if let (true, Some((first, through))) = (has_losses, recovered.generations) {
        keep_journal(store, first, through, now).await?;
    }
    if let (false, Some((first, _))) = (has_losses, recovered.generations) {
        release_kept_journals(store, |kept| kept.has(first)).await?;
    }
    renew_kept_journals(store, now).await?;
    let newest = stored_journals(store).await?.into_iter().next();
    if let Some(newest) = newest.filter(|newest| Some(newest.lineage) != recovered.lineage) {
        keep_journal(store, newest.first, newest.through, now).await?;
    }
    Ok(())
}

/// Lets the kept journals go, and the packs that only they need.
async fn accept_loss(settings: &Settings, context: &Context) -> Result<()> {
    let opened = open_index_beside(settings).await?;
    let (journal, store) = open_journal_beside(settings, &opened).await?;
    // The first turn of a database that went back marks what it has forgotten. Also if a server has
    // that turn: a mark that came after this would stay.
    if !journal.write_within(OTHER_WRITES_MAX).await? {
        return Err(Error::JournalBusy);
    }
    let released = release_kept_journals(&store, |_| true).await?;
    // A snapshot of the database replaces all files before it.
    opened.journal.ask_for_snapshot().await?;
    let written = journal.write_within(OTHER_WRITES_MAX).await;
    opened.index.close().await?;
    match written {
        Ok(true) => {}
        Ok(false) => {
            context
                .printer
                .say("a server writes the journal now; when its snapshot is whole, the older files go");
        }
        Err(error) => context.printer.warn(&format!(
            "the journal is not written: {}; the server writes it, and then the older files go",
            with_causes(&error)
        )),
    }
    context.printer.message(&json!({ "message_type": "loss_accepted", "journals": released }))?;
    context.printer.conclude(&match released {
        0 => "the store keeps no other journal".to_owned(),
        1 => "1 kept journal goes".to_owned(),
        _ => format!("{released} kept journals go"),
    });
    Ok(())
}

/// Opens the job that a server works on from its start. The journal does not say which bytes are
/// damaged, and until somebody finds out, pushes may use them.
async fn open_full_scrub(opened: &OpenIndex, store: Store) -> Result<()> {
    let (index, scrub) = (Arc::clone(&opened.index), Arc::clone(&opened.scrub));
    let scrubber = Scrubber::new(index, scrub, Arc::new(StoreBlobs::new(store)), Arc::new(SystemClock));
    let options = ScrubOptions { share_ppm: FULL_PPM, bytes_per_second: Some(SCRUB_BYTES_PER_SECOND) };
    scrubber.open(options).await?;
    Ok(())
}

/// The database carries the id that the journal has, and with it the store. A store that another
/// database adopted meanwhile is not taken from it.
async fn check_owner(settings: &Settings, recovery: &Recovery) -> Result<()> {
    let Some(id) = recovery.setting(INSTALLATION_SETTING) else { return Ok(()) };
    let id = read_id(id)?;
    let (claims, store) = open_claims(settings)?;
    let ids = claims.list().await?;
    match ids.iter().find(|other| **other != id) {
        Some(other) if !ids.contains(&id) => {
            Err(dormer_blobs::Error::ForeignStore { store, other: other.to_string() }.into())
        }
        _ => Ok(()),
    }
}

/// What was pushed between an earlier recovery and its first snapshot is missing.
fn warn_of_ignored(report: &Recovered, is_chosen: bool, context: &Context) {
    if report.ignored_journal_files == 0 {
        return;
    }
    let lineages: Vec<&str> = report.ignored_lineages.iter().map(String::as_str).collect();
    if is_chosen {
        return context.printer.warn(&format!(
            "{} newer files of the journal do not count, as you chose: what was pushed to lineage {} is missing",
            report.ignored_journal_files,
            lineages.join(", "),
        ));
    }
    context.printer.warn(&format!(
        "{} newer files of the journal do not count: a database that was recovered or restored wrote them (lineage {}), \
         and was lost before its first snapshot was whole; what was pushed to it is missing",
        report.ignored_journal_files,
        lineages.join(", "),
    ));
}

/// Writes the first snapshot of the new database, so that another loss finds all of it. Without it
/// the recovery is whole too, and the server writes the snapshot.
async fn write_snapshot(opened: &OpenIndex, store: Store, context: &Context) {
    let journal = Journal::new(
        Arc::clone(&opened.index),
        Arc::clone(&opened.journal),
        Arc::new(StoreBlobs::new(store.clone())),
        store,
        Arc::new(SystemClock),
        holder(),
        JournalSettings::default(),
    )
    .of_recovered();
    context.printer.say("writing the first snapshot of the new database");
    let failure = match journal.write_within(OTHER_WRITES_MAX).await {
        Ok(true) => return,
        Ok(false) => "another process writes the journal".to_owned(),
        Err(error) => with_causes(&error),
    };
    context.printer.warn(&format!(
        "the first snapshot of the new database is not written: {failure}; the server writes it, and keeps \
         the recovered journal and its packs for 30 days: `dormer recover --accept-loss` ends that"
    ));
}

fn conclude(report: &Recovered, is_scrubbed: bool, context: &Context) {
    let printer = &context.printer;
    let Recovered { caches, paths, aliases, pins, documents, lost, .. } = report;
    printer.conclude(&format!(
        "recovered {caches} caches, {paths} paths, {pins} pins, {documents} logs and traces, {aliases} uploads; {lost} lost"
    ));
    if report.cut_journal_files > 0 {
        printer.warn(&format!(
            "{} files of the journal are damaged or not there; what they said is missing",
            report.cut_journal_files
        ));
    }
    if report.unreadable_packs > 0 {
        printer.warn(&format!(
            "the tables of {} packs cannot be read; paths that need them are lost",
            report.unreadable_packs
        ));
    }
    printer.hint("start the server; then publish each edge target once with --reconcile");
    printer.hint(if is_scrubbed {
        "which bytes are damaged is not known: the server reads all of them, and `dormer jobs` shows how far it is"
    } else {
        "which bytes are damaged is not known: run `dormer scrub --full`"
    });
}

/// A line that changes on a terminal, and one now and then elsewhere.
struct RecoverProgress<'a> {
    context: &'a Context,
    bar: ProgressBar,
    has_terminal: bool,
    said_at: Mutex<Instant>,
}

impl<'a> RecoverProgress<'a> {
    fn new(context: &'a Context) -> Self {
        let target = context.printer.progress_target();
        let has_terminal = target.is_some();
        let bar = ProgressBar::with_draw_target(None, target.unwrap_or_else(ProgressDrawTarget::hidden));
        let style = ProgressStyle::with_template("{elapsed_precise}  {msg}").expect("a well-formed template");
        bar.set_style(style);
        Self { context, bar, has_terminal, said_at: Mutex::new(Instant::now()) }
    }

    fn tell(&self, event: RecoveryEvent<'_>) {
        let report = match event {
            RecoveryEvent::Progress(report) => report,
            RecoveryEvent::Lost(path) => {
                let lost = || {
                    let printer = &self.context.printer;
                    printer.warn(&format!("{path} is lost: the store lacks bytes of it"));
                    // A reader that is gone is told nothing more; the recovery goes on.
                    drop(printer.message(&json!({ "message_type": "lost", "path": path })));
                };
                return self.bar.suspend(lost);
            }
        };
        if self.has_terminal {
            self.bar.set_message(progress_line(report));
            self.bar.tick();
            return;
        }
        let mut said_at = self.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if said_at.elapsed() >= PROGRESS_PAUSE {
            *said_at = Instant::now();
            self.context.printer.say(&progress_line(report));
        }
    }
}

fn progress_line(report: &Recovered) -> String {
    let Recovered { packs, packs_found, chunks, paths, .. } = report;
    format!("{packs} of {packs_found} packs, {chunks} chunks, {paths} paths")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_one_line() {
        let report = Recovered { packs: 3, packs_found: 9, chunks: 400, paths: 12, ..Recovered::default() };
        assert_eq!(progress_line(&report), "3 of 9 packs, 400 chunks, 12 paths");
    }
}
