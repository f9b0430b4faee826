//! Second step: turns the gathered values into the settings of the server, and checks values that
//! depend on each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormer_api::RedactedUrl;
use dormer_engine::EngineSettings;
use dormer_format::ChunkParams;
use dormer_http_host::ListenAddress;
use dormer_index::ExpiryDefaults;
use dormer_server::{Network, NetworkError};

use super::database::{PostgresDatabase, is_postgres, postgres, sqlite_path};
use super::edge::{EdgeTarget, resolve_targets};
use super::error::{Error, Result};
use super::keys::{self, Key};
use super::origin::Origin;
use super::raw::{Environment, Raw, Value};
use super::sources::{self, Flags};
use super::storage::{RemoteStorage, remote_storage};
use super::values::{
    base_url, base64, boolean, count, duration, integer, list, optional_text, origin, path, size, text, wrong,
};

/// Load balancers notice within this time: most check every second or two, and act at the second
/// refusal.
const DRAIN_DELAY: Duration = Duration::from_secs(5);

/// The checked settings of this process.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) listen: ListenAddress,
    pub(crate) data_dir: PathBuf,
    /// File of the index, unless the index is on a server.
    pub(crate) database_path: PathBuf,
    pub(crate) postgres: Option<PostgresDatabase>,
    /// Folder of the packs, unless they are in a bucket.
    pub(crate) storage_path: PathBuf,
    pub(crate) remote_storage: Option<RemoteStorage>,
    pub(crate) master_key: Option<[u8; 32]>,
    pub(crate) master_key_file: PathBuf,
    /// The key that the master key is to replace, or the file that has it.
    pub(crate) previous_master_key: Option<[u8; 32]>,
    pub(crate) previous_master_key_file: Option<PathBuf>,
    pub(crate) api_endpoint: Option<RedactedUrl>,
    pub(crate) substituter_endpoint: Option<RedactedUrl>,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) trusted_proxies: Vec<Network>,
    pub(crate) max_nar_info_bytes: usize,
    /// `None` turns metrics off.
    pub(crate) metrics_listen: Option<ListenAddress>,
    /// Whether the user chose that address. Then a failure to listen there is an error.
    pub(crate) metrics_listen_was_set: bool,
    pub(crate) connections_max: usize,
    pub(crate) uploads_max: usize,
    pub(crate) push_requests_per_second: u64,
    pub(crate) push_bytes_per_second: u64,
    pub(crate) header_bytes_max: usize,
    pub(crate) json_bytes_max: usize,
    pub(crate) log_bytes_max: usize,
    pub(crate) narinfo_bytes_max: usize,
    pub(crate) part_bytes_max: usize,
    pub(crate) buffered_bytes_max: usize,
    pub(crate) retry_after: Duration,
    pub(crate) drain_delay: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) body_idle_timeout: Duration,
    pub(crate) body_bytes_per_second_min: u32,
    pub(crate) write_idle_timeout: Duration,
    pub(crate) upload_timeout: Duration,
    /// 0 for no collection but those that are asked for.
    pub(crate) collect_interval: Duration,
    /// The level that cold packs are recompressed at.
    pub(crate) recompress_level: Option<u8>,
    pub(crate) journal_interval: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) reencodings_max: usize,
    pub(crate) stats: bool,
    pub(crate) pages: bool,
    /// How often caches are looked through for what they keep no longer; 0 is never.
    pub(crate) expiry_interval: Duration,
    pub(crate) expiry_defaults: ExpiryDefaults,
    pub(crate) engine: EngineSettings,
    pub(crate) edges: Vec<EdgeTarget>,
    pub(crate) jwt: JwtSettings,
    pub(crate) log: LogSettings,
    /// Notes for the user that do not stop the start.
    pub(crate) notes: Vec<String>,
}

/// Tokens: the key that signs them, and the required claims.
#[derive(Debug, Clone)]
pub(crate) struct JwtSettings {
    pub(crate) bound_issuer: Option<String>,
    pub(crate) bound_audiences: Vec<String>,
    /// `None` means the key in the data folder.
    pub(crate) signing: Option<SigningKey>,
}

/// The key that signs or verifies tokens, decoded from base64.
#[derive(Clone)]
pub(crate) enum SigningKey {
    Hs256(Vec<u8>),
    Rs256Secret(Vec<u8>),
    Rs256Public(Vec<u8>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hs256(_) => "Hs256(redacted)",
            Self::Rs256Secret(_) => "Rs256Secret(redacted)",
            Self::Rs256Public(_) => "Rs256Public(…)",
        })
    }
}

/// Log lines.
#[derive(Debug, Clone)]
pub(crate) struct LogSettings {
    pub(crate) json: bool,
    pub(crate) filter: String,
}

impl Settings {
    /// Reads and checks everything.
    pub(crate) fn load(environment: &Environment, flags: &Flags) -> Result<(Self, Raw)> {
        let mut raw = sources::read_all(environment, flags)?;
        fill_paths(&mut raw, environment)?;
        let settings = resolve(&raw)?;
        Ok((settings, raw))
    }

    /// Whether this installation keeps anything in the data folder. If not, no folder is made.
    pub(crate) fn uses_data_dir(&self) -> bool {
        self.postgres.is_none()
            || self.remote_storage.is_none()
            || self.jwt.signing.is_none()
            || (self.master_key.is_none() && self.master_key_file.starts_with(&self.data_dir))
    }

    /// The name of the index, for people.
    pub(crate) fn database_name(&self) -> String {
        match &self.postgres {
            Some(server) => server.name.clone(),
            None => self.database_path.display().to_string(),
        }
    }

    /// The file with the token secret, if no setting gives one.
    pub(crate) fn token_secret_file(&self) -> PathBuf {
        self.data_dir.join("token-secret")
    }

    /// The file in which the first start leaves a token with all permissions.
    pub(crate) fn admin_token_file(&self) -> PathBuf {
        self.data_dir.join("admin-token")
    }
}

/// Fills in defaults that depend on the environment or on other settings.
fn fill_paths(raw: &mut Raw, environment: &Environment) -> Result<()> {
    if raw.find(&keys::DATA_DIR).is_none() {
        let home = || environment.path("HOME").map(|home| home.join(".local/share"));
        // The XDG specification says to ignore a relative path.
        let base = environment.path("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(Path::to_owned);
        let base = match base.or_else(home) {
            Some(base) => base,
            // Never created: see `Settings::uses_data_dir`.
            None if needs_no_folder(raw) => PathBuf::from("/nonexistent"),
            None => return Err(Error::NoDataDir),
        };
        raw.set_default(&keys::DATA_DIR, Value::Text(base.join("dormer").display().to_string()));
    }
    let data_dir = path(raw, &keys::DATA_DIR);
    let below = |name: &str| data_dir.join(name).display().to_string();
    raw.set_default(&keys::MASTER_KEY_FILE, Value::Text(below("master-key")));
    raw.set_default(&keys::DATABASE_URL, Value::Text(format!("sqlite://{}", below("index.sqlite"))));
    raw.set_default(&keys::STORAGE_PATH, Value::Text(below("storage")));
    let threads = EngineSettings::default().cpu_threads;
    let is_loopback = text(raw, &keys::LISTEN).parse().is_ok_and(|address: ListenAddress| address.is_local());
    let drain_delay = if is_loopback { Duration::ZERO } else { DRAIN_DELAY };
    raw.set_default(&keys::LIMIT_DRAIN_DELAY, Value::Duration(drain_delay));
    raw.set_default(&keys::LIMIT_CPU_THREADS, Value::Integer(i64::try_from(threads).unwrap_or(1)));
    Ok(())
}

/// Whether the settings put everything outside of the data folder.
fn needs_no_folder(raw: &Raw) -> bool {
    let set = |key: &Key| raw.find(key).is_some();
    raw.find(&keys::DATABASE_URL).is_some_and(|_| is_postgres(text(raw, &keys::DATABASE_URL)))
        && text(raw, &keys::STORAGE_TYPE) != "local"
        && (set(&keys::MASTER_KEY) || set(&keys::MASTER_KEY_FILE))
        && keys::SIGNING_KEYS.iter().any(set)
}

fn resolve(raw: &Raw) -> Result<Settings> {
    let mut notes = raw.notes.clone();
    let remote_storage = remote_storage(raw, &mut notes)?;
    let postgres = postgres(raw, &mut notes)?;
    let edges = resolve_targets(&raw.edges, &mut notes)?;
    let signing = [
        (&keys::JWT_HS256_SECRET, SigningKey::Hs256 as fn(Vec<u8>) -> SigningKey),
        (&keys::JWT_RS256_SECRET, SigningKey::Rs256Secret),
        (&keys::JWT_RS256_PUBKEY, SigningKey::Rs256Public),
    ];
    let mut jwt_signing = None;
    for (key, make) in signing {
        if let Some(bytes) = base64(raw, key)? {
            jwt_signing = Some(make(bytes));
        }
    }
    if let Some(SigningKey::Hs256(secret)) = &jwt_signing
        && secret.is_empty()
    {
        return Err(wrong(raw, &keys::JWT_HS256_SECRET, "an empty secret would let anybody sign".to_owned()));
    }
    let master_key = key_of_32_bytes(raw, &keys::MASTER_KEY)?;
    let previous_master_key = key_of_32_bytes(raw, &keys::PREVIOUS_MASTER_KEY)?;
    let engine = engine_settings(raw)?;
    Ok(Settings {
        listen: text(raw, &keys::LISTEN).parse().expect("addresses were checked when they were read"),
        data_dir: path(raw, &keys::DATA_DIR),
        database_path: sqlite_path(raw)?,
        postgres,
        storage_path: path(raw, &keys::STORAGE_PATH),
        remote_storage,
        master_key,
        master_key_file: path(raw, &keys::MASTER_KEY_FILE),
        previous_master_key,
        previous_master_key_file: raw
            .find(&keys::PREVIOUS_MASTER_KEY_FILE)
            .map(|_| path(raw, &keys::PREVIOUS_MASTER_KEY_FILE)),
        api_endpoint: base_url(raw, &keys::API_ENDPOINT),
        substituter_endpoint: base_url(raw, &keys::SUBSTITUTER_ENDPOINT),
        allowed_hosts: list(raw, &keys::ALLOWED_HOSTS),
        trusted_proxies: trusted_proxies(raw)?,
        max_nar_info_bytes: count(size(raw, &keys::MAX_NAR_INFO_SIZE)),
        // "off" is not an address.
        metrics_listen: text(raw, &keys::METRICS_LISTEN).parse().ok(),
        metrics_listen_was_set: origin(raw, &keys::METRICS_LISTEN) != Origin::Default,
        connections_max: count(integer(raw, &keys::LIMIT_CONNECTIONS).unsigned_abs()),
        uploads_max: count(integer(raw, &keys::LIMIT_UPLOADS).unsigned_abs()),
        push_requests_per_second: integer(raw, &keys::LIMIT_PUSH_REQUESTS).unsigned_abs(),
        push_bytes_per_second: size(raw, &keys::LIMIT_PUSH_BYTES),
        header_bytes_max: count(size(raw, &keys::LIMIT_HEADER_SIZE)),
        json_bytes_max: count(size(raw, &keys::LIMIT_JSON_SIZE)),
        log_bytes_max: count(size(raw, &keys::LIMIT_LOG_SIZE)),
        narinfo_bytes_max: count(size(raw, &keys::LIMIT_NARINFO_SIZE)),
        part_bytes_max: count(size(raw, &keys::LIMIT_PART_SIZE)),
        buffered_bytes_max: count(size(raw, &keys::LIMIT_BODY_MEMORY)),
        retry_after: duration(raw, &keys::LIMIT_RETRY_AFTER),
        drain_delay: duration(raw, &keys::LIMIT_DRAIN_DELAY),
        header_timeout: duration(raw, &keys::LIMIT_HEADER_TIMEOUT),
        body_idle_timeout: duration(raw, &keys::LIMIT_BODY_IDLE_TIMEOUT),
        body_bytes_per_second_min: u32::try_from(size(raw, &keys::LIMIT_BODY_RATE)).unwrap_or(u32::MAX),
        write_idle_timeout: duration(raw, &keys::LIMIT_WRITE_IDLE_TIMEOUT),
        upload_timeout: duration(raw, &keys::LIMIT_UPLOAD_TIMEOUT),
        collect_interval: duration(raw, &keys::GC_INTERVAL),
        recompress_level: u8::try_from(integer(raw, &keys::GC_RECOMPRESS_LEVEL))
            .ok()
            .filter(|level| *level > 0),
        journal_interval: duration(raw, &keys::JOURNAL_INTERVAL),
        shutdown_timeout: duration(raw, &keys::LIMIT_SHUTDOWN_TIMEOUT),
        reencodings_max: count(integer(raw, &keys::LIMIT_REENCODINGS).unsigned_abs()),
        stats: boolean(raw, &keys::STATS),
        pages: boolean(raw, &keys::PAGES),
        expiry_interval: duration(raw, &keys::GC_INTERVAL),
        expiry_defaults: ExpiryDefaults {
            retention_seconds: i64::try_from(duration(raw, &keys::GC_DEFAULT_RETENTION_PERIOD).as_secs())
                .unwrap_or(i64::MAX),
            quota_bytes: size(raw, &keys::GC_DEFAULT_QUOTA),
            grace_seconds: engine.grace_seconds,
            log_retention_seconds: i64::try_from(duration(raw, &keys::GC_LOG_RETENTION_PERIOD).as_secs())
                .unwrap_or(i64::MAX),
        },
        engine,
        edges,
        jwt: JwtSettings {
            bound_issuer: optional_text(raw, &keys::JWT_BOUND_ISSUER),
            bound_audiences: list(raw, &keys::JWT_BOUND_AUDIENCES),
            signing: jwt_signing,
        },
        log: LogSettings {
            json: text(raw, &keys::LOG_FORMAT) == "json",
            filter: text(raw, &keys::LOG_FILTER).to_owned(),
        },
        notes,
    })
}

fn key_of_32_bytes(raw: &Raw, key: &Key) -> Result<Option<[u8; 32]>> {
    let Some(bytes) = base64(raw, key)? else { return Ok(None) };
    let wrong_length = |_| wrong(raw, key, format!("holds {} bytes, not 32", bytes.len()));
    <[u8; 32]>::try_from(bytes.as_slice()).map(Some).map_err(wrong_length)
}

fn engine_settings(raw: &Raw) -> Result<EngineSettings> {
    let chunk_size = |key| u32::try_from(size(raw, key)).unwrap_or(u32::MAX);
    let (min, avg, max) =
        (chunk_size(&keys::CHUNKS_MIN), chunk_size(&keys::CHUNKS_AVG), chunk_size(&keys::CHUNKS_MAX));
    let chunk_params = ChunkParams::new(min, avg, max).map_err(|_| {
        let problem = format!(
            "chunks.min < chunks.avg < chunks.max must hold, all even, but they are {min}, {avg}, {max} bytes"
        );
        // Names the key that was set, instead of a default that conflicts with it.
        let key = [keys::CHUNKS_MIN, keys::CHUNKS_MAX, keys::CHUNKS_AVG]
            .into_iter()
            .find(|key| raw.find(key).is_some_and(|setting| setting.origin != Origin::Default));
        wrong(raw, &key.unwrap_or(keys::CHUNKS_AVG), problem)
    })?;
    Ok(EngineSettings {
        chunk_params,
        zstd_level: i32::try_from(integer(raw, &keys::CHUNKS_ZSTD_LEVEL)).expect("checked to be 1 to 19"),
        cpu_threads: count(integer(raw, &keys::LIMIT_CPU_THREADS).unsigned_abs()),
        upload_memory_bytes_max: size(raw, &keys::LIMIT_UPLOAD_MEMORY),
        upload_wait: duration(raw, &keys::LIMIT_UPLOAD_WAIT),
        nar_bytes_max: size(raw, &keys::LIMIT_NAR_SIZE),
        read_memory_bytes: size(raw, &keys::LIMIT_READ_MEMORY),
        reads_max: count(integer(raw, &keys::LIMIT_READS).unsigned_abs()),
        read_wait: duration(raw, &keys::LIMIT_READ_WAIT),
        session_seconds: session_seconds(duration(raw, &keys::LIMIT_UPLOAD_TIMEOUT)),
        ..EngineSettings::default()
    })
}

/// A push by chunks lasts a day, but no longer than the longest upload: the collector spares packs
/// of that age.
fn session_seconds(upload_timeout: Duration) -> i64 {
    let default = EngineSettings::default().session_seconds;
    i64::try_from(upload_timeout.as_secs()).unwrap_or(i64::MAX).clamp(1, default)
}

fn trusted_proxies(raw: &Raw) -> Result<Vec<Network>> {
    let parse = |text: &String| {
        text.parse().map_err(|error: NetworkError| {
            let shown = RedactedUrl::new(text);
            wrong(raw, &keys::TRUSTED_PROXIES, format!("'{shown}': {error}"))
        })
    };
    list(raw, &keys::TRUSTED_PROXIES).iter().map(parse).collect()
}
