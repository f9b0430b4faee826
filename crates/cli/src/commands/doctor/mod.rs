//! `dormer doctor`: one file per subject. A check inspects and advises; it repairs nothing.
//!
//! - Every check ends within [`CHECK_TIMEOUT`]. A check that takes longer is itself a failure.
//! - No check leaves anything behind: a probe has a unique name, and the check removes the probe.
//! - No finding shows a secret.

mod caches;
mod clock;
mod database;
mod endpoint;
mod finding;
mod folder;
mod journal;
mod keys;
mod nix;
mod packs;
mod probe_timeout;
mod store;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use self::finding::{Finding, Status};
use crate::context::{Context, EndpointArgs, SettingsArgs};
use crate::error::{EXIT_FAILURE, Error, Result};
use crate::settings::keys::{CONFIG_VARIABLE, KEYS};
use crate::settings::{Environment, Settings};

/// Time limit of a check. Longer than any single answer of a healthy part takes.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// Check an installation and say what to do
///
/// With the settings of a server, this checks its keys, folders, database, store and clock, whether
/// the store has every pack that the database names, whether the journal in the store is newer than
/// the database, and whether the server answers at its address.
/// If packs are missing, the paths that need them are named. The server may run meanwhile. The
/// check changes nothing, except that it writes and removes a probe in the store.
///
/// With --client, or without the settings of a server, this checks this machine's Nix: whether
/// nix.conf and netrc still have the lines of `dormer use`, and whether each cache answers
/// and signs with the trusted key. --endpoint does the same, and asks this server in place of those
/// of `dormer login`.
///
/// The exit code is 1 if a check failed; warnings do not count.
///
/// Examples:
///   dormer doctor --config /etc/dormer.toml
///   kubectl -n dormer exec deploy/dormer -- /bin/dormer doctor --config /etc/dormer/dormer.toml
///   dormer doctor --client
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DoctorArgs {
    /// Check this machine as a client, even if it has the settings of a server
    #[arg(long, conflicts_with_all = ["config", "data_dir"])]
    client: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
}

pub(super) async fn run(args: DoctorArgs, context: &Context) -> Result<ExitCode> {
    let is_of_client = args.client || args.server.endpoint.is_some();
    if is_of_client && (args.settings.config.is_some() || args.settings.data_dir.is_some()) {
        return Err(Error::usage(
            "--endpoint checks this machine as a client, and --config and --data-dir check a server",
            "leave out --endpoint: the settings of the server name its address",
        ));
    }
    let mut doctor = Doctor::new(context);
    if is_of_client || !has_server(&args.settings, &context.environment) {
        check_client(&mut doctor).await?;
    } else {
        check_server(&mut doctor, &args.settings).await?;
    }
    doctor.conclude()
}

/// Whether this machine has a server: a flag, a variable, or the folder of a first start.
fn has_server(args: &SettingsArgs, environment: &Environment) -> bool {
    if args.config.is_some() || args.data_dir.is_some() || environment.path(CONFIG_VARIABLE).is_some() {
        return true;
    }
    for key in KEYS {
        let attic = key.attic_variable.unwrap_or_default();
        if environment.path(&key.variable()).is_some() || environment.path(attic).is_some() {
            return true;
        }
    }
    // Without a home there is no folder, and so no server.
    Settings::load(environment, &args.to_flags()).is_ok_and(|(settings, _)| settings.data_dir.exists())
}

async fn check_server(doctor: &mut Doctor<'_>, args: &SettingsArgs) -> Result<()> {
    let (settings, _) = Settings::load(&doctor.context.environment, &args.to_flags())?;
    doctor.tell_all(check_settings(&settings))?;
    doctor.within("folders", async { folder::check_all(&settings) }).await?;
    doctor.within("tokens", async { keys::check_token_key(&settings) }).await?;
    let mut clocks = clock::Clocks::default();
    doctor.within("database", database::check(&settings, &mut clocks)).await?;
    doctor.within("store", store::check(&settings, &mut clocks)).await?;
    doctor.within("packs", Box::pin(packs::check(&settings))).await?;
    doctor.within("journal", Box::pin(journal::check(&settings))).await?;
    doctor.within("endpoint", endpoint::check(&settings, &mut clocks)).await?;
    doctor.tell_all(clocks.check())
}

fn check_settings(settings: &Settings) -> Vec<Finding> {
    const SUBJECT: &str = "settings";
    let mut findings: Vec<Finding> =
        settings.notes.iter().map(|note| Finding::warn(SUBJECT, note.clone(), [])).collect();
    let is_plain = settings.api_endpoint.as_ref().is_none_or(|url| url.expose().starts_with("http:"));
    if is_plain && !settings.listen.is_local() {
        findings.push(Finding::warn(
            SUBJECT,
            format!("others reach {} without TLS: tokens travel unencrypted", settings.listen),
            ["put a proxy with TLS in front, and set api-endpoint to its https:// address"],
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(SUBJECT, "all settings are valid"));
    }
    findings
}

async fn check_client(doctor: &mut Doctor<'_>) -> Result<()> {
    let context = doctor.context;
    let mut nix = None;
    doctor.within("nix", nix::check(context, &mut nix)).await?;
    let files = nix::ClientFiles::read(context, nix.as_ref())?;
    doctor.within("netrc", async { files.check_netrc(nix.as_ref()) }).await?;
    for target in caches::check_targets(&files, context)? {
        doctor.within("cache", caches::check(&target, &files, nix.as_ref())).await?;
    }
    Ok(())
}

/// Prints findings as they come, and counts them.
struct Doctor<'a> {
    context: &'a Context,
    ok: usize,
    warnings: usize,
    failures: usize,
}

impl<'a> Doctor<'a> {
    fn new(context: &'a Context) -> Self {
        Self { context, ok: 0, warnings: 0, failures: 0 }
    }

    async fn within(
        &mut self,
        subject: &'static str,
        check: impl Future<Output = Vec<Finding>>,
    ) -> Result<()> {
        let findings = tokio::time::timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(|_| {
            vec![Finding::fail(
                subject,
                format!("no answer within {} s", CHECK_TIMEOUT.as_secs()),
                ["is the other side overloaded, or does a firewall drop what is sent there?"],
            )]
        });
        self.tell_all(findings)
    }

    fn tell_all(&mut self, findings: Vec<Finding>) -> Result<()> {
        findings.into_iter().try_for_each(|finding| self.tell(&finding))
    }

    fn tell(&mut self, finding: &Finding) -> Result<()> {
        match finding.status {
            Status::Ok => self.ok += 1,
            Status::Warn => self.warnings += 1,
            Status::Fail => self.failures += 1,
        }
        let printer = &self.context.printer;
        if printer.json {
            return printer.message(&json!({
                "message_type": "check",
                "subject": finding.subject,
                "status": finding.status.word(),
                "message": finding.message,
                "hints": finding.advice,
            }));
        }
        let colour = match finding.status {
            Status::Ok => "32",
            Status::Warn => "33",
            Status::Fail => "31;1",
        };
        let mark = format!("{:<5}", finding.status.word());
        printer.marked_data(colour, &mark, &format!("{}: {}", finding.subject, finding.message))?;
        finding.advice.iter().try_for_each(|advice| printer.data(&format!("      -> {advice}")))
    }

    fn conclude(self) -> Result<ExitCode> {
        let printer = &self.context.printer;
        printer.message(&json!({
            "message_type": "doctor", "ok": self.ok, "warnings": self.warnings, "failures": self.failures,
        }))?;
        let count =
            |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
        printer.conclude(&format!(
            "{} ok, {}, {}",
            self.ok,
            count(self.warnings, "warning"),
            count(self.failures, "failure")
        ));
        Ok(if self.failures == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) })
    }
}
