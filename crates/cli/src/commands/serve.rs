//! `dormer serve`.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use dormer_api::RedactedUrl;
use dormer_engine::{ExpirySchedule, JobRunner, JobSettings, Journal, OutboxLimits, SystemClock};
use dormer_http_host::{ListenAddress, Listener};
use dormer_index::CounterIndex;
use dormer_server::{
    Authenticator, Operations, Server, ServerSettings, TokenBounds, TokenKey, TokenVerifier,
};

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::holder::holder;
use crate::installation::{FIRST_CACHE, Installation, Made, prepare};
use crate::listening::{listen, listen_for_clients, listening_line, local_address};
use crate::service_manager::{State, notify, stopping_after};
use crate::settings::{Settings, SigningKey, keys};
use crate::signals::stop_signal;
use crate::{open_files, telemetry};

/// Run the server
///
/// Needs no arguments and no file. The first start makes a data folder with everything in it and
/// says what to do next; later starts use this folder. Listens on 127.0.0.1:8080.
///
/// Settings come from flags, environment variables and a file, in this order; `dormer config show`
/// prints them and docs/SETTINGS.md explains them. Attic's server.toml works as it is.
///
/// SIGTERM, SIGHUP or Ctrl-C lets running requests finish; a second one does not. /metrics has its
/// own address, 127.0.0.1:9464. systemd may pass the socket (LISTEN_FDS) and is told when the
/// server is ready (NOTIFY_SOCKET). The server sends traces if OTEL_EXPORTER_OTLP_ENDPOINT is set.
///
/// Examples:
///   dormer serve
///   dormer serve --listen 0.0.0.0:8080 --data-dir /srv/dormer
///   dormer serve --config /etc/dormer.toml --log-format json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ServeArgs {
    /// Listen address, or unix:/path; port 0 takes a free port [env: DORMER_LISTEN] [default:
    /// 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Format of log lines: text or json [env: DORMER_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Time for the database to end statements of aborted requests. None of these requests was
/// acknowledged.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(args: ServeArgs, context: &Context) -> Result<()> {
    let settings = load_settings(args, context)?;
    let traces = telemetry::start(&settings.log, context)?;
    let messages = OperatorMessages { context, json: settings.log.json };
    for note in &settings.notes {
        messages.warn(note);
    }

    // Stops also while the server waits for another replica that upgrades the schema. As the first
    // process of a container, nothing else would end it.
    let mut shutdown = Box::pin(stop_signal()?);
    let Some((installation, made)) = prepare_until(&mut shutdown, &settings).await? else {
        messages.say("stopped before it was ready");
        return Ok(());
    };
    for warning in &installation.warnings {
        messages.warn(warning);
    }
    let authenticator = authenticator(&settings, &installation.token_key)?;
    let listener = listen_for_clients(&settings.listen).await?;
    let address = local_address(&listener)?;
    let metrics_listener = listen_for_metrics(&settings, &messages).await?;
    let connections_max = connections_within_limit(&settings, &messages);
    introduce(&settings, &installation, &made, &address, &messages);

    let server_settings =
        ServerSettings { connections_max, traces: traces.is_on(), ..server_settings(&settings) };
    let index = Arc::clone(&installation.index);
    let parts = assemble(installation, authenticator, server_settings, job_settings(&settings));
    if let Some(listener) = metrics_listener {
        messages.say(&metrics_line(&local_address(&listener)?));
        tokio::spawn(parts.server.serve_metrics(listener));
    }
    messages.say(&listening_line(&address));
    notify(State::Ready);
    parts.run(listener, shutdown, &messages).await;
    match tokio::time::timeout(CLOSE_TIMEOUT, index.close()).await {
        Ok(closed) => closed?,
        Err(_) => {
            messages.warn("statements of aborted requests still run in the database, which will end them");
        }
    }
    traces.finish().await;
    messages.say("stopped");
    Ok(())
}

fn load_settings(args: ServeArgs, context: &Context) -> Result<Settings> {
    let mut flags = args.settings.to_flags();
    flags.values.extend(args.listen.map(|text| (keys::LISTEN, text)));
    flags.values.extend(args.log_format.map(|text| (keys::LOG_FORMAT, text)));
    Ok(Settings::load(&context.environment, &flags)?.0)
}

/// The installation, and what this start made of it. `None` if `stop` was ready first.
async fn prepare_until(
    stop: &mut (impl Future<Output = ()> + Unpin),
    settings: &Settings,
) -> Result<Option<(Installation, Vec<Made>)>> {
    let mut made = Vec::new();
    let mut observer = |item: &Made| {
        made.push(item.clone());
        Ok(())
    };
    let installation = tokio::select! {
        installation = prepare(settings, &mut observer) => installation?,
        () = stop => return Ok(None),
    };
    Ok(Some((installation, made)))
}

/// As many connections as the settings and the limit of open files allow.
fn connections_within_limit(settings: &Settings, messages: &OperatorMessages<'_>) -> usize {
    let connections_max = open_files::connections_within_limit(settings.connections_max);
    if connections_max < settings.connections_max {
        messages.warn(&format!(
            "limits.connections is {}, but only {connections_max} are taken: the limit of open files (ulimit -n, \
             LimitNOFILE) is too low for more",
            settings.connections_max
        ));
    }
    connections_max
}

fn introduce(
    settings: &Settings,
    installation: &Installation,
    made: &[Made],
    address: &ListenAddress,
    messages: &OperatorMessages<'_>,
) {
    messages.say(&introduction(settings, installation, made, address));
    if !address.is_local()
        && settings.api_endpoint.as_ref().is_none_or(|url| url.expose().starts_with("http:"))
    {
        messages.hint("without TLS, tokens travel unencrypted; put a proxy with TLS in front and set api-endpoint to its https:// address");
    }
}

/// What runs until the server stops.
struct ServerParts {
    server: Server,
    runner: JobRunner,
    journal: Journal,
}

/// Puts the server together, with the work beside it and the metrics of all parts.
fn assemble(
    installation: Installation,
    authenticator: Authenticator,
    server_settings: ServerSettings,
    job_settings: JobSettings,
) -> ServerParts {
    let Installation { engine, index, publish, jobs, collector, scrubber, journal, .. } = installation;
    let activity = engine.activity();
    let server = Server::new(engine, authenticator, server_settings);
    server.watch_publishing(publish).expect("publishing is counted only once");
    server.watch_operations(Operations::new(
        holder(),
        Arc::clone(&jobs),
        collector.clone(),
        scrubber.clone(),
    ));
    let metrics = server.metrics();
    metrics.register(Box::new(collector.metrics())).expect("collections are counted only once");
    metrics.register(Box::new(scrubber.metrics())).expect("scrubs are counted only once");
    metrics.register(Box::new(journal.metrics())).expect("the journal is counted only once");
    let runner = JobRunner::new(jobs, Arc::new(SystemClock), holder(), job_settings)
        .with_collector(collector)
        .with_scrubber(scrubber)
        .with_counters(index as Arc<dyn CounterIndex>)
        .with_history(activity);
    metrics.register(Box::new(runner.metrics())).expect("jobs are counted only once");
    metrics.register(Box::new(runner.stored_metrics())).expect("what is stored is counted only once");
    ServerParts { server, runner, journal }
}

impl ServerParts {
    /// Serves until `shutdown` is ready. The jobs end then, and the journal after the last request,
    /// so that what was acknowledged last is in the journal too.
    async fn run(
        self,
        listener: Listener,
        shutdown: impl Future<Output = ()> + Send + 'static,
        messages: &OperatorMessages<'_>,
    ) {
        let Self { server, runner, journal } = self;
        // The senders are dropped when a stop is asked for, which is the signal.
        let (stop_jobs, jobs_stopped) = tokio::sync::oneshot::channel::<()>();
        let running_jobs = tokio::spawn(async move {
            runner.run(async { drop(jobs_stopped.await) }).await;
            runner
        });
        let shutdown = async move {
            stopping_after(shutdown).await;
            drop(stop_jobs);
        };
        let (stop_journal, journal_stopped) = tokio::sync::oneshot::channel::<()>();
        let running_journal =
            tokio::spawn(async move { journal.run(async { drop(journal_stopped.await) }).await });
        let served = server.run(listener, Box::pin(shutdown)).await;
        drop(stop_journal);
        if let Err(error) = running_journal.await {
            messages.warn(&format!("the journal ended badly: {error}"));
        }
        match running_jobs.await {
            // The jobs ended before the last requests did.
            Ok(runner) => runner.finish().await,
            Err(error) => messages.warn(&format!("the job runner ended badly: {error}")),
        }
        if let Err(error) = served {
            // The end was requested. The aborted requests were not acknowledged.
            messages.warn(&error.to_string());
        }
    }
}

fn metrics_line(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) => format!("metrics on http://{address}/metrics"),
        ListenAddress::Unix(_) => format!("metrics on {address}, /metrics"),
    }
}

/// A default address is not worth failing for: two servers on one machine would compete for it.
async fn listen_for_metrics(
    settings: &Settings,
    messages: &OperatorMessages<'_>,
) -> Result<Option<Listener>> {
    let Some(address) = &settings.metrics_listen else { return Ok(None) };
    match listen(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if settings.metrics_listen_was_set => Err(error),
        Err(error) => {
            messages.warn(&format!(
                "no metrics: {}; metrics.listen takes another address, or off",
                error.chain()
            ));
            Ok(None)
        }
    }
}

/// Counters that somebody changed by hand are right again after a month.
const RECOUNT_SECONDS: i64 = 30 * 86_400;

fn job_settings(settings: &Settings) -> JobSettings {
    let interval = settings.expiry_interval;
    JobSettings {
        expiry: (!interval.is_zero()).then_some(ExpirySchedule { interval }),
        expiry_defaults: settings.expiry_defaults,
        recount_seconds: Some(RECOUNT_SECONDS),
        outbox: Some(OutboxLimits::default()),
        ..JobSettings::default()
    }
}

fn server_settings(settings: &Settings) -> ServerSettings {
    ServerSettings {
        api_endpoint: settings.api_endpoint.as_ref().map(|url| url.expose().to_owned()),
        substituter_endpoint: settings.substituter_endpoint.as_ref().map(|url| url.expose().to_owned()),
        allowed_hosts: settings.allowed_hosts.clone(),
        trusted_proxies: settings.trusted_proxies.clone(),
        nar_info_preamble_bytes_max: settings.max_nar_info_bytes,
        connections_max: settings.connections_max,
        uploads_max: settings.uploads_max,
        push_requests_per_second: settings.push_requests_per_second,
        push_bytes_per_second: settings.push_bytes_per_second,
        header_bytes_max: settings.header_bytes_max,
        json_bytes_max: settings.json_bytes_max,
        log_bytes_max: settings.log_bytes_max,
        narinfo_bytes_max: settings.narinfo_bytes_max,
        part_bytes_max: settings.part_bytes_max,
        buffered_bytes_max: settings.buffered_bytes_max,
        retry_after: settings.retry_after,
        drain_delay: settings.drain_delay,
        header_timeout: settings.header_timeout,
        body_idle_timeout: settings.body_idle_timeout,
        body_bytes_per_second_min: settings.body_bytes_per_second_min,
        write_idle_timeout: settings.write_idle_timeout,
        upload_timeout: settings.upload_timeout,
        shutdown_timeout: settings.shutdown_timeout,
        reencodings_max: settings.reencodings_max,
        stats: settings.stats,
        pages: settings.pages,
        ..ServerSettings::default()
    }
}

pub(super) fn authenticator(settings: &Settings, key: &SigningKey) -> Result<Authenticator> {
    let key = match key.clone() {
        SigningKey::Hs256(secret) => TokenKey::Hs256(secret),
        SigningKey::Rs256Secret(pem) => TokenKey::Rs256Secret(pem),
        SigningKey::Rs256Public(pem) => TokenKey::Rs256Public(pem),
    };
    let bounds = TokenBounds {
        issuer: settings.jwt.bound_issuer.clone(),
        audiences: settings.jwt.bound_audiences.clone(),
    };
    Ok(Authenticator::new(TokenVerifier::new(&key, bounds)?))
}

/// Messages to people: text beside text log lines, or log lines if those are JSON for a collector.
struct OperatorMessages<'a> {
    context: &'a Context,
    json: bool,
}

impl OperatorMessages<'_> {
    fn say(&self, text: &str) {
        if self.json {
            text.lines().filter(|line| !line.is_empty()).for_each(|line| tracing::info!("{line}"));
        } else {
            text.split('\n').for_each(|line| self.context.printer.say(line));
        }
    }

    fn warn(&self, text: &str) {
        if self.json { tracing::warn!("{text}") } else { self.context.printer.warn(text) }
    }

    fn hint(&self, text: &str) {
        if self.json { tracing::info!("hint: {text}") } else { self.context.printer.hint(text) }
    }
}

/// The command that makes an admin token if there is no folder for one.
const ADMIN_TOKEN_COMMAND: &str = "dormer token create --sub admin --validity 2y --pull '*' --push '*' --delete '*' \
                                   --create-cache '*' --configure-cache '*' --configure-cache-retention '*' \
                                   --destroy-cache '*' --operate";

/// What the first start made, and what to do next. Later starts print one line.
fn introduction(
    settings: &Settings,
    installation: &Installation,
    made: &[Made],
    address: &ListenAddress,
) -> String {
    let data_dir = settings.data_dir.display();
    let uses_data_dir = settings.uses_data_dir();
    if made.is_empty() {
        return match (&settings.postgres, uses_data_dir) {
            (None, _) => format!("using {data_dir}"),
            (Some(server), true) => format!("using {data_dir} and {}", server.name),
            (Some(server), false) => format!("using {}", server.name),
        };
    }
    let mut text = if uses_data_dir { format!("made in {data_dir}:\n") } else { "made:\n".to_owned() };
    let mut made: Vec<&Made> = made.iter().collect();
    // Lists the things with a purpose for the user before those that make them work.
    made.sort_by_key(|item| !matches!(item, Made::Index(_) | Made::Schema { .. }));
    let below = |path: &Path| path.strip_prefix(&settings.data_dir).unwrap_or(path).display().to_string();
    for item in made {
        let (name, what) = match item {
            Made::DataFolder(_) | Made::FirstStart => continue,
            Made::Index(path) => (below(path), "what the caches hold (SQLite)"),
            Made::Schema { database } => {
                let _ = writeln!(text, "  {:<14} what the caches hold: tables in {database}", "the index");
                continue;
            }
            Made::Storage(path) => (format!("{}/", below(path)), "their contents, in packs"),
            Made::MasterKey(path) => (
                below(path),
                "seals the signing keys in the index; keep a copy apart from the index's backup",
            ),
            Made::TokenSecret(path) => (below(path), "signs tokens"),
            Made::AdminToken(path) => (below(path), "a token that may do everything, valid for 2 years"),
            Made::Cache { name } => (format!("cache {name}"), "public, with a signing key of its own"),
        };
        let _ = writeln!(text, "  {name:<14} {what}");
    }
    if let Some(key) = &installation.main_public_key {
        text.push_str(&next_steps(settings, key, address));
    }
    text
}

fn next_steps(settings: &Settings, key: &str, address: &ListenAddress) -> String {
    let url = own_url(settings, address);
    let substituter = match &settings.substituter_endpoint {
        Some(base) => format!("{base}{FIRST_CACHE}"),
        None => format!("{url}/{FIRST_CACHE}"),
    };
    let token = shell_word(&settings.admin_token_file().display().to_string());
    let login = if settings.uses_data_dir() && settings.admin_token_file().exists() {
        format!("dormer login lab {url} --token-file {token}")
    } else if settings.uses_data_dir() {
        format!("dormer login lab {url} --token-file FILE")
    } else {
        // Runs with the same settings, so that the command finds the secret.
        format!(
            "{ADMIN_TOKEN_COMMAND}   # where these settings are; prints the token\n  dormer login lab {url} --token-stdin"
        )
    };
    format!(
        "
next, in another terminal:
  {login}
  dormer push {FIRST_CACHE} ./result
  dormer use {FIRST_CACHE}

or without this program, in the nix.conf of each client:
  extra-substituters = {substituter}
  extra-trusted-public-keys = {key}
"
    )
}

/// The address for people on this machine, or the address in the settings. For a Unix socket, only
/// the settings can tell: else the result is a word to replace.
pub(super) fn own_url(settings: &Settings, address: &ListenAddress) -> RedactedUrl {
    if let Some(url) = &settings.api_endpoint {
        return RedactedUrl::new(url.expose().trim_end_matches('/'));
    }
    let ListenAddress::Tcp(mut address) = address.clone() else { return RedactedUrl::new("URL") };
    if address.ip().is_unspecified() {
        // "Everywhere" is not an address that a client can connect to.
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    RedactedUrl::new(format!("http://{address}"))
}

/// Quoted if a shell would split the text.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_written_in_the_table_are_those_of_the_server() {
        let environment = crate::settings::Environment::from([("HOME", "/home/ada")]);
        let (settings, _) = Settings::load(&environment, &crate::settings::Flags::default()).unwrap();
        assert_eq!(format!("{:?}", server_settings(&settings)), format!("{:?}", ServerSettings::default()));
    }

    #[test]
    fn the_limits_add_up_to_the_documented_memory() {
        const MIB: u64 = 1024 * 1024;
        // docs/ARCHITECTURE.md, "Memory", has the same rows. The last row is the process itself.
        let rows = [
            dormer_engine::EngineSettings::default().memory_bytes_max(),
            ServerSettings::default().memory_bytes_max(),
            dormer_blobs::IDLE_BUFFER_BYTES_MAX as u64,
            20 * MIB,
        ];
        assert!(rows.iter().sum::<u64>() <= 448 * MIB, "{rows:?}");
    }

    #[test]
    fn addresses_for_people_are_ones_that_they_can_go_to() {
        let environment = crate::settings::Environment::from([("HOME", "/home/ada")]);
        let (mut settings, _) = Settings::load(&environment, &crate::settings::Flags::default()).unwrap();
        let url =
            |settings: &Settings, address: &str| own_url(settings, &address.parse().unwrap()).to_string();
        assert_eq!(url(&settings, "0.0.0.0:80"), "http://127.0.0.1:80");
        assert_eq!(url(&settings, "[::1]:80"), "http://[::1]:80");
        assert_eq!(url(&settings, "unix:/run/dormer/socket"), "URL");
        settings.api_endpoint = Some(RedactedUrl::new("https://cache.example.org/"));
        assert_eq!(url(&settings, "0.0.0.0:80"), "https://cache.example.org");
    }

    #[test]
    fn a_path_with_a_space_is_one_word_for_a_shell() {
        assert_eq!(shell_word("/home/ada/.local/x"), "/home/ada/.local/x");
        assert_eq!(shell_word("/home/ada b/it's"), r"'/home/ada b/it'\''s'");
    }
}
