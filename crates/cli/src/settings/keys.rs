//! The table of all settings: the one place where a key, its variable, its default, its range and its meaning are
//! written. The reader, `dormer config show` and docs/SETTINGS.md all come from it.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// `address:port`.
    Address,
    /// `address:port`, or `off`.
    AddressOrOff,
    /// `http://…` or `https://…`.
    HttpUrl,
    /// A path; a relative one counts from the current folder.
    Path,
    /// Bytes, from and to (inclusive).
    Size(u64, u64),
    /// Seconds, from and to (inclusive).
    Duration(u64, u64),
    /// A number, from and to (inclusive).
    Integer(i64, i64),
    /// `true` or `false`.
    Bool,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Texts; in a variable separated by commas.
    List,
}

/// Whose key it is, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It takes effect.
    Used,
    /// Attic's; read without complaint and without effect, and the reason is said once at start.
    Ignored(&'static str),
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Dotted path in the TOML file.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// As it would be written in a variable.
    pub(crate) default: Option<&'static str>,
    /// Said in the reference where the default is computed.
    pub(crate) default_note: &'static str,
    /// Attic's variable for the same thing.
    pub(crate) attic_variable: Option<&'static str>,
    pub(crate) flag: Option<&'static str>,
    pub(crate) secret: bool,
    /// Whether Attic's `server.toml` has it too.
    pub(crate) attic: bool,
    pub(crate) standing: Standing,
    /// Full sentences for the reference.
    pub(crate) docs: &'static str,
}

impl Key {
    const fn new(path: &'static str, kind: Kind, docs: &'static str) -> Self {
        Self {
            path,
            kind,
            default: None,
            default_note: "",
            attic_variable: None,
            flag: None,
            secret: false,
            attic: false,
            standing: Standing::Used,
            docs,
        }
    }

    const fn default(self, text: &'static str) -> Self {
        Self { default: Some(text), ..self }
    }

    const fn default_note(self, note: &'static str) -> Self {
        Self { default_note: note, ..self }
    }

    const fn attic(self) -> Self {
        Self { attic: true, ..self }
    }

    const fn attic_variable(self, name: &'static str) -> Self {
        Self { attic_variable: Some(name), ..self }
    }

    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn ignored(self, why: &'static str) -> Self {
        Self { standing: Standing::Ignored(why), ..self }
    }

    /// Its variable: `chunks.zstd-level` is `DORMER_CHUNKS_ZSTD_LEVEL`.
    pub(crate) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.path.replace(['.', '-'], "_").to_ascii_uppercase())
    }

    /// The table it stands in, and its name there.
    pub(crate) fn section_and_name(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }
}

/// What every variable of ours begins with.
pub(crate) const VARIABLE_PREFIX: &str = "DORMER_";
/// The whole of a settings file, in base64: Attic's way to configure a container.
pub(crate) const ATTIC_CONFIG_VARIABLE: &str = "ATTIC_SERVER_CONFIG_BASE64";
/// Where the settings file is.
pub(crate) const CONFIG_VARIABLE: &str = "DORMER_CONFIG";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: u64 = 86_400;
const CHUNKS_ARE_OURS: &str = "Dormer cuts by its own rule; see [chunks]";
const COMPRESSION_IS_OURS: &str =
    "Dormer stores zstd, which is served as it is; its level is chunks.zstd-level";
const GC_IS_LATER: &str = "this release does not collect garbage yet; nothing expires";

macro_rules! keys {
    ($all:ident: $($name:ident = $key:expr;)*) => {
        $(pub(crate) const $name: Key = $key;)*
        /// All of them, in the order of the reference.
        pub(crate) static $all: &[Key] = &[$($name),*];
    };
}

keys! { KEYS:
    LISTEN = Key::new("listen", Kind::Address, "Where to listen. Port 0 takes a free one; the line `listening on …` says which.")
        .default("127.0.0.1:8080").flag("--listen").attic();
    DATA_DIR = Key::new("data-dir", Kind::Path,
        "Folder for everything that `dormer serve` makes and keeps: index, packs, master key, token secret, admin token. \
         Made with mode 0700 if it is not there.")
        .default_note("`$XDG_DATA_HOME/dormer`, or `~/.local/share/dormer`").flag("--data-dir");
    API_ENDPOINT = Key::new("api-endpoint", Kind::HttpUrl,
        "Address of the server as its users see it, when it stands behind a proxy. Without it, the `Host` header of each \
         request is believed.").attic();
    SUBSTITUTER_ENDPOINT = Key::new("substituter-endpoint", Kind::HttpUrl,
        "Address below which Nix finds the caches, if it is another one than `api-endpoint`: a CDN, for example.").attic();
    ALLOWED_HOSTS = Key::new("allowed-hosts", Kind::List,
        "`Host` headers that are answered; empty means all of them.").default("").attic();
    MAX_NAR_INFO_SIZE = Key::new("max-nar-info-size", Kind::Size(4 * KIB, MIB),
        "Longest metadata of one upload.").default("1 MiB").attic();
    MASTER_KEY = Key::new("master-key", Kind::Text,
        "32 bytes in base64 that seal the caches' signing keys in the index. Without it, the key is the content of \
         `master-key-file`. Whoever loses it loses the signing keys: keep a copy apart from the database's backup.").secret();
    MASTER_KEY_FILE = Key::new("master-key-file", Kind::Path,
        "File that holds the master key; made at the first start, with mode 0600.")
        .default_note("`<data-dir>/master-key`");
    STATS = Key::new("stats", Kind::Bool,
        "Whether `/_dormer/stats` is answered: counters for benchmarks, to anybody who asks.").default("false");
    SOFT_DELETE_CACHES = Key::new("soft-delete-caches", Kind::Bool,
        "Attic keeps a destroyed cache's name taken when it is set.")
        .attic().ignored("a destroyed cache's name is free at once, its bytes go later");
    REQUIRE_PROOF_OF_POSSESSION = Key::new("require-proof-of-possession", Kind::Bool,
        "Attic lets a client claim a NAR by its hash alone when it is not set.")
        .attic().ignored("Dormer always wants the whole NAR and verifies it");

    DATABASE_URL = Key::new("database.url", Kind::Text,
        "The index: `sqlite:///absolute/path`, `sqlite://relative/path` or `postgresql://user:password@host:5432/database` \
         (13 or newer; parameters of libpq such as `?sslmode=verify-full&sslrootcert=/path` may follow). A database of its \
         own, not one that Attic filled.")
        .default_note("`sqlite://<data-dir>/index.sqlite`").attic().attic_variable("ATTIC_SERVER_DATABASE_URL");
    DATABASE_HEARTBEAT = Key::new("database.heartbeat", Kind::Bool, "Attic sends a query every few seconds when it is set.")
        .attic().ignored("connections are checked when they are needed");
    DATABASE_CONNECTIONS = Key::new("database.max-connections", Kind::Integer(1, 1_000),
        "Most connections of this process to PostgreSQL; one more listens for changes. The server's `max_connections` must \
         have room for those of all replicas.").default("16");
    DATABASE_ACQUIRE_TIMEOUT = Key::new("database.acquire-timeout", Kind::Duration(1, 600),
        "How long a request waits for a connection to PostgreSQL, also while the server restarts. Then the client is told to \
         come back.").default("10s");
    DATABASE_STATEMENT_TIMEOUT = Key::new("database.statement-timeout", Kind::Duration(1, 3_600),
        "Longest run of a statement on PostgreSQL.").default("30s");
    DATABASE_LOCK_TIMEOUT = Key::new("database.lock-timeout", Kind::Duration(1, 3_600),
        "How long a statement waits for what another one holds.").default("10s");
    DATABASE_TRANSACTION_POOLER = Key::new("database.transaction-pooler", Kind::Bool,
        "Say `true` when PgBouncer or the like stands between, with `pool_mode = transaction`. Then nothing is prepared, every \
         look-up is a transaction, and changes by other replicas show after up to 5 s instead of at once. Such a pooler that this \
         does not speak of is refused.").default("false");

    STORAGE_TYPE = Key::new("storage.type", Kind::Choice(&["local", "s3", "gcs", "azure"]),
        "Where packs are stored: `local`, a folder; `s3`, Amazon S3 or what speaks like it (MinIO, Ceph RGW, SeaweedFS, Garage, \
         R2); `gcs`, Google Cloud Storage; `azure`, Azure Blob Storage.")
        .default("local").attic();
    STORAGE_PATH = Key::new("storage.path", Kind::Path, "Folder of the packs. Not one that Attic filled.")
        .default_note("`<data-dir>/storage`").attic();
    STORAGE_REGION = Key::new("storage.region", Kind::Text, "S3's region.")
        .default_note("`AWS_REGION`, or `us-east-1`").attic();
    STORAGE_BUCKET = Key::new("storage.bucket", Kind::Text,
        "Bucket, or Azure's container. It must exist. Not one that Attic filled.").attic();
    STORAGE_ENDPOINT = Key::new("storage.endpoint", Kind::HttpUrl, "Address of the store.")
        .default_note("`AWS_ENDPOINT_URL` for S3, or the provider's own").attic();
    STORAGE_PREFIX = Key::new("storage.prefix", Kind::Text,
        "Goes before the name of every object, with a `/` between, so that one bucket serves several uses.").default_note("none");
    STORAGE_PATH_STYLE = Key::new("storage.path-style", Kind::Bool,
        "Whether the bucket stands in the path of a request (`https://endpoint/bucket/…`) or in its host name \
         (`https://bucket.endpoint/…`).").default_note("`true` if there is an endpoint");
    STORAGE_CA_FILE = Key::new("storage.ca-file", Kind::Path,
        "PEM file with certificates to trust beside the system's, for stores with a CA of their own.");
    STORAGE_REQUESTS = Key::new("storage.requests", Kind::Integer(1, 10_000),
        "Most requests to the store at once. When it says that it is busy, there are fewer for a while.").default("64");
    STORAGE_CONNECT_TIMEOUT = Key::new("storage.connect-timeout", Kind::Duration(1, 3_600),
        "How long to wait for a connection to the store.").default("5s");
    STORAGE_TIMEOUT = Key::new("storage.timeout", Kind::Duration(1, 3_600),
        "How long a request to the store may take in all: 32 MiB over its slowest link.").default("60s");
    STORAGE_RETRY_TIME = Key::new("storage.retry-time", Kind::Duration(0, 3_600),
        "How long a request is tried again when the store is busy or does not answer; at least once, unless this is 0. Then the client is \
         told to come back.")
        .default("45s");
    STORAGE_ACCESS_KEY_ID = Key::new("storage.credentials.access_key_id", Kind::Text,
        "Access key (S3), or name of the account (Azure).")
        .default_note("the provider's environment variables, such as `AWS_ACCESS_KEY_ID` (not `~/.aws`), Google's files, or the role of the instance \
         or pod").secret().attic();
    STORAGE_SECRET_ACCESS_KEY = Key::new("storage.credentials.secret_access_key", Kind::Text,
        "The key's secret half, or the account's key.")
        .default_note("as above, such as `AWS_SECRET_ACCESS_KEY`").secret().attic();

    CHUNKS_MIN = Key::new("chunks.min", Kind::Size(KIB, 16 * MIB),
        "Smallest chunk. The three sizes decide where NARs are cut: changing them later costs deduplication against what \
         is already stored.").default("32 KiB");
    CHUNKS_AVG = Key::new("chunks.avg", Kind::Size(KIB, 16 * MIB), "Chunks are about this large.").default("128 KiB");
    CHUNKS_MAX = Key::new("chunks.max", Kind::Size(KIB, 16 * MIB), "Largest chunk.").default("512 KiB");
    CHUNKS_ZSTD_LEVEL = Key::new("chunks.zstd-level", Kind::Integer(1, 19),
        "zstd level of new chunks. Costs CPU at pushes only: reading decompresses nothing.").default("6");

    LIMIT_UPLOAD_MEMORY = Key::new("limits.upload-memory", Kind::Size(16 * MIB, 1024 * GIB),
        "Memory for all uploads together. One of a large NAR takes 10 MiB, more if it comes compressed (`xz`: 9 MiB, `xz -9`: \
         65 MiB); when there is not enough, uploads wait their turn, and one that would need more than all of it is refused.")
        .default("80 MiB");
    LIMIT_UPLOAD_WAIT = Key::new("limits.upload-wait", Kind::Duration(0, 3_600),
        "How long an upload waits for its turn before it is told to come back (503, Retry-After).").default("60s");
    LIMIT_NAR_SIZE = Key::new("limits.nar-size", Kind::Size(MIB, 1024 * 1024 * GIB),
        "Largest NAR taken, uncompressed.").default("64 GiB");
    LIMIT_READ_MEMORY = Key::new("limits.read-memory", Kind::Size(8 * MIB, 1024 * GIB),
        "Memory for all NARs and listings being read: many readers at once read in smaller pieces, and wait their turn when \
         there is not enough.").default("64 MiB");
    LIMIT_READS = Key::new("limits.reads", Kind::Integer(1, 100_000), "Most NARs being read at once; more wait.")
        .default("512");
    LIMIT_READ_WAIT = Key::new("limits.read-wait", Kind::Duration(0, 3_600),
        "How long a read waits for its turn before it is told to come back.").default("30s");
    LIMIT_CONNECTIONS = Key::new("limits.connections", Kind::Integer(1, 1_000_000),
        "Most connections at once. Whoever comes then is told to come back (503, Retry-After). The limit of open files \
         (`ulimit -n`) must be twice as high; the soft one is raised to the hard one at start, and when that is too low, so is \
         this number.").default("1024");
    LIMIT_UPLOADS = Key::new("limits.uploads", Kind::Integer(1, 1_000_000),
        "Most uploads at once, those included that wait for memory. More wait as long as `limits.upload-wait` says.")
        .default("256");
    LIMIT_PUSH_REQUESTS = Key::new("limits.push-requests-per-second", Kind::Integer(0, 1_000_000),
        "Pushes (NARs, narinfos, store paths) a second that one token may begin; 0 means as many as it likes. What was not \
         used in the last 10 seconds may come at once; then the answer is 429 with Retry-After. Tokens with the same `sub` \
         count as one. Each replica counts for itself.").default("0");
    LIMIT_PUSH_BYTES = Key::new("limits.push-bytes-per-second", Kind::Size(0, 1024 * GIB),
        "Bytes a second that one token may push, counted in the same way; 0 means as many as it likes. An upload that has \
         begun is not slowed down; the next one waits.").default("0");
    LIMIT_HEADER_SIZE = Key::new("limits.header-size", Kind::Size(8 * KIB, MIB),
        "Longest request line and headers together (431). Attic's clients send up to 4 KiB of metadata in a header, and \
         tokens of OIDC issuers take some KiB.").default("64 KiB");
    LIMIT_JSON_SIZE = Key::new("limits.json-size", Kind::Size(KIB, GIB),
        "Longest JSON body (413). 4 MiB hold a question after 119,000 paths.").default("4 MiB");
    LIMIT_NARINFO_SIZE = Key::new("limits.narinfo-size", Kind::Size(KIB, 64 * MIB),
        "Longest narinfo taken (413). 1 MiB holds some 20,000 references.").default("1 MiB");
    LIMIT_BODY_MEMORY = Key::new("limits.body-memory", Kind::Size(MIB, 1024 * GIB),
        "Memory for all bodies that are read whole before they are acted on: JSON, narinfos, metadata. More wait up to 30 s.")
        .default("16 MiB");
    LIMIT_RETRY_AFTER = Key::new("limits.retry-after", Kind::Duration(1, 3_600),
        "What `Retry-After` says on a 503.").default("5s");
    LIMIT_HEADER_TIMEOUT = Key::new("limits.header-timeout", Kind::Duration(1, 3_600),
        "How long a connection may take to send the head of a request, waiting between two requests included.").default("75s");
    LIMIT_BODY_IDLE_TIMEOUT = Key::new("limits.body-idle-timeout", Kind::Duration(1, 3_600),
        "How long an upload may pause. Waiting for its turn is no pause.").default("60s");
    LIMIT_WRITE_IDLE_TIMEOUT = Key::new("limits.write-idle-timeout", Kind::Duration(1, 3_600),
        "How long a reader may take nothing of an answer.").default("120s");
    LIMIT_UPLOAD_TIMEOUT = Key::new("limits.upload-timeout", Kind::Duration(60, 7 * DAY), "Longest upload.").default("24h");
    LIMIT_DRAIN_DELAY = Key::new("limits.drain-delay", Kind::Duration(0, 3_600),
        "How long the server goes on as before after SIGTERM, but for `/readyz`, which says 503, and connections, which are \
         closed after their next answer. Load balancers need as long to look elsewhere.")
        .default_note("5s, or 0 when it listens on the loopback address only");
    LIMIT_SHUTDOWN_TIMEOUT = Key::new("limits.shutdown-timeout", Kind::Duration(0, 3_600),
        "How long requests in flight may then take to finish: what still runs is cut. Connections without a request are closed \
         at once, those that have sent half a head after 5 s.").default("30s");
    LIMIT_REENCODINGS = Key::new("limits.reencodings", Kind::Integer(1, 1_024),
        "Most NARs being read back at once in the compression that `nix copy` sent them in: the only reads that take CPU. \
         Each takes up to 4 MiB.")
        .default("4");
    LIMIT_CPU_THREADS = Key::new("limits.cpu-threads", Kind::Integer(1, 1_024),
        "Threads that hash and compress at the same time.").default_note("number of CPUs");

    GC_INTERVAL = Key::new("garbage-collection.interval", Kind::Duration(0, 100 * 366 * DAY),
        "How often Attic collects garbage.").attic().ignored(GC_IS_LATER);
    GC_DEFAULT_RETENTION_PERIOD = Key::new("garbage-collection.default-retention-period", Kind::Duration(0, 100 * 366 * DAY),
        "How long an unused object is kept in caches that do not say otherwise; 0 means for ever.")
        .attic().ignored(GC_IS_LATER);

    JWT_BOUND_ISSUER = Key::new("jwt.token-bound-issuer", Kind::Text,
        "Only tokens with this `iss` count; tokens made here carry it.").attic();
    JWT_BOUND_AUDIENCES = Key::new("jwt.token-bound-audiences", Kind::List,
        "Only tokens with one of these in `aud` count; tokens made here carry them.").default("").attic();
    JWT_HS256_SECRET = Key::new("jwt.signing.token-hs256-secret-base64", Kind::Text,
        "Secret that signs and verifies tokens, in base64. At most one of the three `jwt.signing` keys may be set; without \
         any, `<data-dir>/token-secret` is made at the first start.")
        .secret().attic().attic_variable("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64");
    JWT_RS256_SECRET = Key::new("jwt.signing.token-rs256-secret-base64", Kind::Text,
        "RSA private key (PEM, in base64) that signs and verifies tokens.")
        .secret().attic().attic_variable("ATTIC_SERVER_TOKEN_RS256_SECRET_BASE64");
    JWT_RS256_PUBKEY = Key::new("jwt.signing.token-rs256-pubkey-base64", Kind::Text,
        "RSA public key (PEM, in base64) that verifies tokens which are made elsewhere.")
        .attic().attic_variable("ATTIC_SERVER_TOKEN_RS256_PUBKEY_BASE64");

    LOG_FORMAT = Key::new("log.format", Kind::Choice(&["text", "json"]), "How log lines look, on standard error.")
        .default("text").flag("--log-format");
    LOG_FILTER = Key::new("log.filter", Kind::Text,
        "Which log lines are written, as in `RUST_LOG` (which wins): `info`, `warn,dormer_engine=debug`.").default("info");

    METRICS_LISTEN = Key::new("metrics.listen", Kind::AddressOrOff,
        "Where `/metrics` is answered, in Prometheus' format and to anybody who asks: an address of its own, or `off`. If \
         the default one is taken, the server says so and goes on without. docs/METRICS.md explains what is counted.")
        .default("127.0.0.1:9464");

    CHUNKING_THRESHOLD = Key::new("chunking.nar-size-threshold", Kind::Size(0, u64::MAX), "Attic's.")
        .attic().ignored(CHUNKS_ARE_OURS);
    CHUNKING_MIN = Key::new("chunking.min-size", Kind::Size(0, u64::MAX), "Attic's.").attic().ignored(CHUNKS_ARE_OURS);
    CHUNKING_AVG = Key::new("chunking.avg-size", Kind::Size(0, u64::MAX), "Attic's.").attic().ignored(CHUNKS_ARE_OURS);
    CHUNKING_MAX = Key::new("chunking.max-size", Kind::Size(0, u64::MAX), "Attic's.").attic().ignored(CHUNKS_ARE_OURS);
    COMPRESSION_TYPE = Key::new("compression.type", Kind::Text, "Attic's.").attic().ignored(COMPRESSION_IS_OURS);
    COMPRESSION_LEVEL = Key::new("compression.level", Kind::Integer(-1_000, 1_000), "Attic's.")
        .attic().ignored(COMPRESSION_IS_OURS);
}

/// The `jwt.signing` keys: one layer of settings may set one of them.
pub(crate) const SIGNING_KEYS: [Key; 3] = [JWT_HS256_SECRET, JWT_RS256_SECRET, JWT_RS256_PUBKEY];

keys! { EDGE_KEYS:
    EDGE_NAME = Key::new("edge.name", Kind::Text,
        "Name of the target, for `dormer publish NAME`. What was published is remembered by it.");
    EDGE_CACHES = Key::new("edge.caches", Kind::List,
        "Which caches are published: names, or patterns such as `team-*`. A private cache is published only if it is named \
         exactly, and never to a bucket that anybody can read.");
    EDGE_REVOKED_TOKENS = Key::new("edge.revoked-tokens", Kind::List,
        "Ids (`jti`) of tokens that count no more at this edge: `dormer token create --json` says a token's.").default("");
    EDGE_TYPE = Key::new("edge.type", Kind::Choice(&["local", "s3", "gcs", "azure"]),
        "Where it is: `local`, a folder; `s3` (also R2), `gcs` or `azure`, a bucket.").default("s3");
    EDGE_PATH = Key::new("edge.path", Kind::Path, "The folder, if it is one.");
    EDGE_BUCKET = Key::new("edge.bucket", Kind::Text,
        "Bucket, or Azure's container. It must exist, and should hold nothing else below the prefix.");
    EDGE_PREFIX = Key::new("edge.prefix", Kind::Text, "Goes before the name of every object, with a `/` between.")
        .default_note("none");
    EDGE_REGION = Key::new("edge.region", Kind::Text, "S3's region; `auto` for R2.").default_note("`AWS_REGION`, or `us-east-1`");
    EDGE_ENDPOINT = Key::new("edge.endpoint", Kind::HttpUrl, "Address of the store.").default_note("`AWS_ENDPOINT_URL` for S3, or the provider's own");
    EDGE_PATH_STYLE = Key::new("edge.path-style", Kind::Bool,
        "Whether the bucket stands in the path of a request or in its host name.").default_note("`true` if there is an endpoint");
    EDGE_CA_FILE = Key::new("edge.ca-file", Kind::Path, "PEM file with certificates to trust beside the system's.");
    EDGE_ACCESS_KEY_ID = Key::new("edge.credentials.access_key_id", Kind::Text,
        "Access key (S3), or name of the account (Azure). It needs to put, get, list and delete objects.")
        .default_note("the provider's environment variables, such as `AWS_ACCESS_KEY_ID` (not `~/.aws`), Google's files, or the role of the instance \
         or pod").secret();
    EDGE_SECRET_ACCESS_KEY = Key::new("edge.credentials.secret_access_key", Kind::Text, "The key's secret half, or the account's key.")
        .default_note("as above, such as `AWS_SECRET_ACCESS_KEY`").secret();
    EDGE_CONNECT_TIMEOUT = Key::new("edge.connect-timeout", Kind::Duration(1, 3_600), "How long to wait for a connection.")
        .default("5s");
    EDGE_TIMEOUT = Key::new("edge.timeout", Kind::Duration(1, 3_600),
        "How long a request may take in all: 16 MiB over its slowest link. A run that follows one which was killed waits as long \
         before it writes.").default("60s");
    EDGE_LEASE = Key::new("edge.lease", Kind::Duration(3, 3_600),
        "How long a run that was killed keeps the next one waiting. A run that lives says so three times in that time.").default("30s");
    EDGE_RETRY_TIME = Key::new("edge.retry-time", Kind::Duration(0, 3_600),
        "How long a request is tried again when the store is busy or does not answer.").default("45s");
    EDGE_LISTINGS = Key::new("edge.listings", Kind::Bool,
        "Whether listings (`.ls`) are published too: one more request for each path.").default("false");
    EDGE_RECOMPRESS_LEVEL = Key::new("edge.recompress-level", Kind::Integer(0, 19),
        "zstd level that NARs are recompressed at on their way: 19 makes them a tenth smaller than the default of `chunks.zstd-level`, for a second of CPU \
         for each 2 MB, once. 0 sends them as they are stored, which costs next to none. A change counts for what is sent from then on.").default("0");
    EDGE_NAR_GRACE = Key::new("edge.nar-grace", Kind::Duration(DAY, 3_650 * DAY),
        "How long a NAR stays after its last narinfo went, for clients that remember the narinfo. Not after a removal for cause.")
        .default("30d");
    EDGE_SETTLE_TIME = Key::new("edge.settle-time", Kind::Duration(0, 30 * DAY),
        "How long a path waits for a reference that the cache lacks: it may be on its way. Then it counts as one that another \
         cache has, such as cache.nixos.org.").default("5m");
    EDGE_CONCURRENCY = Key::new("edge.concurrency", Kind::Integer(1, 1_000), "Files that are written at once.").default("8");
    EDGE_BANDWIDTH = Key::new("edge.bandwidth", Kind::Size(0, 1024 * GIB),
        "Bytes a second that are sent at most; 0 means as many as there may be.").default("0");
    EDGE_MEMORY = Key::new("edge.memory", Kind::Size(16 * MIB, 1024 * GIB), "Memory for what is being sent.").default("64 MiB");
}
