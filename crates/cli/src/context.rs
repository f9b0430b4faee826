//! What every command needs: the printer, the environment, and a client of a server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use dormer_client::queue::QueuedCache;
use dormer_client::{
    ApiClient, CacheRef, ENDPOINT_VARIABLE, Endpoint, Error as ClientError, GENERAL_TOKEN_VARIABLE,
    HttpSettings, LoadedSettings, PushFilter, ResolvedServer, Retry, RetryPolicy, RetryReporter, ServerName,
    SettingsPaths, Variables, process_variables,
};

use crate::error::Result;
use crate::printer::Printer;
use crate::settings::{Environment, Flags, keys};

/// The exit codes in the help of commands that talk to a server.
pub(crate) const EXIT_CODES_OF_CLIENT: &str = "\
Exit codes:
  0  done; 1  failed; 2  wrong usage, nothing was tried
  4  the server refuses the token, or requires one; 5  it does not answer";

/// How long a server may be silent that is asked every few seconds.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The variables for a server of the settings. Beside `DORMER_ENDPOINT`, `DORMER_TOKEN` is the
/// token of that address, and goes nowhere else.
pub(crate) fn variables_of_settings(key: &str) -> Option<String> {
    let belongs_to_address = key == GENERAL_TOKEN_VARIABLE && process_variables(ENDPOINT_VARIABLE).is_some();
    if belongs_to_address { None } else { process_variables(key) }
}

/// What every command needs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) printer: Printer,
    pub(crate) environment: Environment,
    /// The address of `--endpoint`.
    endpoint: Option<Endpoint>,
}

impl Context {
    pub(crate) fn new(printer: Printer, endpoint: Option<Endpoint>) -> Self {
        Self { printer, environment: Environment::of_process(), endpoint }
    }

    /// The client's settings.
    pub(crate) fn client_settings() -> Result<LoadedSettings> {
        Ok(LoadedSettings::load(&SettingsPaths::from_variables(&process_variables))?)
    }

    /// The server of `--endpoint`, if it is given.
    pub(crate) fn server_of_command_line(&self, name: Option<&ServerName>) -> Option<ResolvedServer> {
        Some(ResolvedServer::at(self.endpoint.clone()?, name, &process_variables))
    }

    /// The server of `DORMER_ENDPOINT`, if it is set.
    pub(crate) fn server_of_environment() -> Result<Option<ResolvedServer>> {
        let Some(address) = process_variables(ENDPOINT_VARIABLE) else { return Ok(None) };
        Ok(Some(ResolvedServer::at(address.parse()?, None, &process_variables)))
    }

    /// A server by name, or the default one. An address on the command line comes first, and needs
    /// no settings. `DORMER_ENDPOINT` stands for the default server.
    pub(crate) fn server(&self, name: Option<&ServerName>) -> Result<ResolvedServer> {
        if let Some(server) = self.server_of_command_line(name) {
            return Ok(server);
        }
        if name.is_none()
            && let Some(server) = Self::server_of_environment()?
        {
            return Ok(server);
        }
        Ok(Self::client_settings()?.resolve_server(name, &variables_of_settings)?)
    }

    /// The address of the server that [`Context::server`] finds. Reads no token: a build must not
    /// wait for one.
    fn endpoint_of(&self, name: Option<&ServerName>) -> Result<Endpoint> {
        if let Some(endpoint) = &self.endpoint {
            return Ok(endpoint.clone());
        }
        if name.is_none()
            && let Some(server) = Self::server_of_environment()?
        {
            return Ok(server.endpoint);
        }
        Ok(Self::client_settings()?.endpoint_of(name)?)
    }

    /// Caches with the addresses that they have now, for the queue. A mistyped server is found now,
    /// and not with the first build.
    pub(crate) fn queued_caches(&self, caches: &[CacheRef]) -> Result<Vec<QueuedCache>> {
        let queued = |cache: &CacheRef| {
            let endpoint = self.endpoint_of(cache.server.as_ref())?;
            Ok(QueuedCache { cache: cache.clone(), endpoint: Some(endpoint) })
        };
        caches.iter().map(queued).collect()
    }

    /// A cache with its address, if the command line, these variables or their settings say it.
    /// Reads no token, and nothing is checked.
    pub(crate) fn queued_cache_if_known(
        cache: &CacheRef,
        server: &EndpointArgs,
        variables: Variables<'_>,
    ) -> QueuedCache {
        let of_variables = || match variables(ENDPOINT_VARIABLE).filter(|_| cache.server.is_none()) {
            Some(address) => address.parse().ok(),
            None => LoadedSettings::load(&SettingsPaths::from_variables(variables))
                .and_then(|loaded| loaded.endpoint_of(cache.server.as_ref()))
                .ok(),
        };
        QueuedCache { cache: cache.clone(), endpoint: server.endpoint.clone().or_else(of_variables) }
    }

    /// The server that builds were queued for. The name may stand for another server by now, which
    /// must not get them: then a login for the right one is looked for.
    pub(crate) fn queued_server(&self, queued: &QueuedCache) -> Result<ResolvedServer> {
        let name = queued.cache.server.as_ref();
        let endpoint = match (&queued.endpoint, &self.endpoint, name) {
            (Some(endpoint), ..) => endpoint.clone(),
            // The command line names a server, and not for this entry: a name means the settings.
            (None, Some(_), Some(_)) => Self::client_settings()?.endpoint_of(name)?,
            (None, ..) => return self.server(name),
        };
        let present = match self.server(name) {
            Ok(server) if server.endpoint == endpoint => return Ok(server),
            // What the name means without the command line: `queue retry` would queue for that.
            Ok(_) if self.endpoint.is_some() && name.is_some() => {
                Self::client_settings()?.endpoint_of(name).ok().map(|present| present.to_string())
            }
            Ok(server) => Some(server.endpoint.to_string()),
            Err(_) => None,
        };
        // The variables hold the token of one server, which is that of the command line.
        let of_environment = if self.endpoint.is_none() { Self::server_of_environment()? } else { None };
        if let Some(server) = of_environment.filter(|server| server.endpoint == endpoint) {
            return Ok(server);
        }
        let found = Self::client_settings()?.server_at(&endpoint, &process_variables)?;
        let (cache, endpoint) = (queued.cache.to_string(), endpoint.to_string());
        Ok(found.ok_or(ClientError::OtherServer { cache, endpoint, present })?)
    }

    /// The filter that the settings have for a cache. An address in place of the settings has none.
    pub(crate) fn push_filter(&self, cache: &CacheRef, server: &ResolvedServer) -> Result<PushFilter> {
        let in_place_of_settings = match &self.endpoint {
            Some(endpoint) => Some(endpoint.clone()),
            None if cache.server.is_some() => None,
            None => Self::server_of_environment()?.map(|server| server.endpoint),
        };
        if in_place_of_settings.is_some_and(|endpoint| endpoint == server.endpoint) {
            return Ok(PushFilter::default());
        }
        Ok(Self::client_settings()?.settings.push.filter_for(&server.name, &cache.cache))
    }

    /// A server by name, or the default one, and a client of this server.
    pub(crate) fn connect(&self, server: Option<&ServerName>) -> Result<(ResolvedServer, ApiClient)> {
        let server = self.server(server)?;
        let api = self.client_for(&server)?;
        Ok((server, api))
    }

    pub(crate) fn connect_to_cache(&self, cache: &CacheRef) -> Result<(ResolvedServer, ApiClient)> {
        self.connect(cache.server.as_ref())
    }

    pub(crate) fn client_for(&self, server: &ResolvedServer) -> Result<ApiClient> {
        self.client_with(server, HttpSettings::default())
    }

    /// A client for the first contact with a server: if the server does not answer, a mistyped
    /// address is likelier than a restart.
    pub(crate) fn impatient_client_for(&self, server: &ResolvedServer) -> Result<ApiClient> {
        let retry = RetryPolicy { tries_max: 2, ..RetryPolicy::default() };
        self.client_with(server, HttpSettings { retry, ..HttpSettings::default() })
    }

    /// A client for the queue, which has its own, longer pauses: three tries, over some seconds.
    pub(crate) fn queue_client_for(&self, server: &ResolvedServer) -> Result<ApiClient> {
        let retry = RetryPolicy { tries_max: 3, ..RetryPolicy::default() };
        self.client_with(server, HttpSettings { retry, ..HttpSettings::default() })
    }

    /// A client that asks again and again by itself: a question without an answer is told, and not
    /// repeated.
    pub(crate) fn watching_client_for(&self, server: &ResolvedServer) -> Result<ApiClient> {
        let retry = RetryPolicy { tries_max: 1, ..RetryPolicy::default() };
        self.client_with(
            server,
            HttpSettings { retry, idle_timeout: WATCH_TIMEOUT, ..HttpSettings::default() },
        )
    }

    fn client_with(&self, server: &ResolvedServer, settings: HttpSettings) -> Result<ApiClient> {
        let api = ApiClient::new(server.endpoint.clone(), server.token.as_ref(), settings)?;
        Ok(api.with_retry_reporter(Arc::new(RetryPrinter(self.printer.clone()))))
    }
}

/// The address of a server without settings, for all commands that talk to a server, or queue
/// builds for one. `login` has it as an argument.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EndpointArgs {
    /// The server's address, in place of the settings; the token comes from DORMER_TOKEN [env:
    /// DORMER_ENDPOINT]
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) endpoint: Option<Endpoint>,
}

struct RetryPrinter(Printer);

impl RetryReporter for RetryPrinter {
    fn retrying(&self, retry: &Retry<'_>) {
        self.0.warn(&retry_line(retry));
    }
}

/// Explains a delay.
pub(crate) fn retry_line(retry: &Retry<'_>) -> String {
    let seconds = retry.wait.as_secs_f64();
    format!("try {} of {} failed, next in {seconds:.1} s: {}", retry.tries, retry.tries_max, retry.error)
}

/// The sources of the server's settings, for all commands that read them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SettingsArgs {
    /// Settings file (TOML; Attic's server.toml works too) [env: DORMER_CONFIG]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder for everything the server keeps [env: DORMER_DATA_DIR] [default:
    /// ~/.local/share/dormer]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl SettingsArgs {
    pub(crate) fn to_flags(&self) -> Flags {
        let data_dir = self.data_dir.iter().map(|path| (keys::DATA_DIR, path.display().to_string()));
        Flags { config: self.config.clone(), values: data_dir.collect() }
    }
}
