//! `dormer scrub`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use dormer_engine::{FULL_PPM, ScrubOptions, ScrubReport, ScrubState};
use dormer_index::JobId;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::{Error, Result};
use crate::holder::holder;
use crate::installation::{OpenScrub, open_scrub};
use crate::settings::Settings;
use crate::settings::units::{human_size, parse_size};

/// Read stored bytes again and check every hash
///
/// A scrub reads packs, compares the hash of each pack and of each chunk in it, and rebuilds NARs.
/// A path that needs damaged bytes counts as missing from then on: its narinfo is a 404, and a push
/// sends it again. One push of any path that shares the damaged bytes heals all of them.
///
/// A scrub that was interrupted goes on where it was when the command is given again. On SQLite, a
/// running server does the work and this command waits for it. Without a server, and on PostgreSQL,
/// this command does the work itself.
///
/// The exit code is 6 if anything is damaged, and 0 if nothing is.
///
/// Examples:
///   dormer scrub
///   dormer scrub --full --limit-rate 20MB
///   dormer scrub --sample 1% --json --config /etc/dormer.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ScrubArgs {
    /// Check so much of the packs and NARs; each run takes others
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse_share)]
    sample: u32,
    /// Check all packs and NARs
    #[arg(long, conflicts_with = "sample")]
    full: bool,
    /// Read at most so many bytes in a second
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    limit_rate: Option<u64>,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl ScrubArgs {
    fn options(&self) -> ScrubOptions {
        let share_ppm = if self.full { FULL_PPM } else { self.sample };
        ScrubOptions { share_ppm, bytes_per_second: self.limit_rate }
    }
}

/// A percentage in millionths.
fn parse_share(text: &str) -> std::result::Result<u32, String> {
    let share: Option<f64> = text.trim().strip_suffix('%').unwrap_or(text).trim().parse().ok();
    match share {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked")]
        Some(percent) if (0.0001..=100.0).contains(&percent) => Ok((percent * 10_000.0).round() as u32),
        _ => Err("expected a percentage from 0.0001% to 100%, such as 5%".to_owned()),
    }
}

fn parse_rate(text: &str) -> std::result::Result<u64, String> {
    parse_size(text)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "expected bytes in a second, such as 20MB or 16MiB".to_owned())
}

/// How long this command works before it shows the progress, and how often it looks what another
/// process did.
const SLICE: Duration = Duration::from_millis(500);

/// How long a lease of this command lasts after its last step, in seconds.
const LEASE_SECONDS: i64 = 30;

/// Damage was found.
const EXIT_DAMAGE: u8 = 6;

pub(super) async fn run(args: ScrubArgs, context: &Context) -> Result<ExitCode> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let scrub = open_scrub(&settings).await?;
    let report = finish(&scrub, args.options(), context).await?;
    let printer = &context.printer;
    let mut message = json!(report);
    message["message_type"] = "scrub".into();
    message["found_damage"] = report.found_damage().into();
    printer.message(&message)?;
    if !printer.json {
        report_lines(&report).iter().try_for_each(|line| printer.data(line))?;
    }
    scrub.opened.index.close().await?;
    Ok(if report.found_damage() { ExitCode::from(EXIT_DAMAGE) } else { ExitCode::SUCCESS })
}

/// Scrubs here, or waits for the process that does.
async fn finish(scrub: &OpenScrub, options: ScrubOptions, context: &Context) -> Result<ScrubReport> {
    let OpenScrub { opened, scrubber, is_served } = scrub;
    let (job, is_new) = scrubber.open(options).await?;
    if !is_new {
        context.printer.say("a scrub is open already; it goes on with the options that it was begun with");
    }
    if *is_served {
        context.printer.say("a server has the database; it does the work");
    }
    let bar = progress(context.printer.progress_target());
    loop {
        let works = !is_served && scrubber.work_now(&*opened.jobs, &holder(), LEASE_SECONDS, SLICE).await?;
        let Some(state) = scrubber.state(job).await? else { break };
        bar.set_message(progress_line(&state));
        if !works {
            stop_if_failed(scrub, job).await?;
            tokio::time::sleep(SLICE).await;
        }
    }
    bar.finish_and_clear();
    let none = || Error::NotScrubbed { reason: "another scrub ended after this one".to_owned() };
    scrubber.report(job).await?.ok_or_else(none)
}

/// Fails if the process that scrubs could not go on: this command could wait for ever.
async fn stop_if_failed(scrub: &OpenScrub, job: JobId) -> Result<()> {
    let after = Some(JobId(job.0 - 1));
    let found = scrub.opened.jobs.list_jobs(after, 1).await?.pop().filter(|found| found.id == job);
    // Asking has forgotten earlier failures, unless a process held the job just then: its next step
    // forgets them.
    let failed = found.filter(|found| found.holder.is_none());
    match failed.and_then(|found| found.error) {
        Some(reason) => Err(Error::NotScrubbed { reason }),
        None => Ok(()),
    }
}

fn progress(target: Option<ProgressDrawTarget>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target.unwrap_or_else(ProgressDrawTarget::hidden));
    bar.set_style(ProgressStyle::with_template("{elapsed_precise}  {msg}").expect("a well-formed template"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn progress_line(state: &ScrubState) -> String {
    let ScrubReport { packs, nars, bytes_read, .. } = &state.report;
    let damage = if state.report.found_damage() { "damage found" } else { "no damage so far" };
    format!("{packs} packs and {nars} NARs checked, {} read, {damage}", human_size(*bytes_read))
}

fn report_lines(report: &ScrubReport) -> Vec<String> {
    let read = human_size(report.bytes_read);
    let mut lines = vec![
        format!(
            "checked: {} packs with {} chunks, {} NARs; {read} read",
            report.packs, report.chunks, report.nars
        ),
        format!(
            "damaged: {} packs, {} chunks, {} NARs; missing: {} packs",
            report.packs_damaged, report.chunks_damaged, report.nars_damaged, report.packs_lost
        ),
    ];
    lines.extend(report.findings.iter().map(|finding| format!("  {finding}")));
    if report.found_damage() {
        lines.push(
            "paths that need these bytes count as missing; push any of them again to heal them".to_owned(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages() {
        for (text, ppm) in
            [("5%", 50_000), ("5", 50_000), ("0.1%", 1_000), ("100%", FULL_PPM), (" 2.5 %", 25_000)]
        {
            assert_eq!(parse_share(text), Ok(ppm), "{text}");
        }
        for text in ["", "%", "0%", "101%", "-1%", "NaN", "five", "inf"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        assert!(parse_rate("0").is_err() && parse_rate("fast").is_err());
        assert_eq!(parse_rate("20MB"), Ok(20_000_000));
    }

    #[test]
    fn a_report_says_what_to_do_only_if_something_is_damaged() {
        let sound = ScrubReport { packs: 2, chunks: 40, nars: 3, bytes_read: 3 << 20, ..Default::default() };
        assert_eq!(
            report_lines(&sound),
            [
                "checked: 2 packs with 40 chunks, 3 NARs; 3.0 MiB read",
                "damaged: 0 packs, 0 chunks, 0 NARs; missing: 0 packs"
            ]
        );
        let findings = vec!["packs/aa/aa.pack: 1 chunks are damaged".to_owned()];
        let damaged = ScrubReport { chunks_damaged: 1, findings, ..sound };
        let lines = report_lines(&damaged);
        assert_eq!(lines.len(), 4);
        assert!(lines[3].contains("push any of them again"), "{lines:?}");
    }
}
