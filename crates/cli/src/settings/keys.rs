//! The table of all settings. Only here are a key, its variable, its default, its range and its
//! meaning written. The reader, `dormer config show` and docs/SETTINGS.md use this table.

/// The form of a value.
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
    /// A path; a relative path starts at the current folder.
    Path,
    /// Bytes, with minimum and maximum (inclusive).
    Size(u64, u64),
    /// Seconds, with minimum and maximum (inclusive).
    Duration(u64, u64),
    /// A number, with minimum and maximum (inclusive).
    Integer(i64, i64),
    /// `true` or `false`.
    Bool,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Texts; a variable separates them by commas.
    List,
}

/// Whether a key has an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyEffect {
    /// The key has an effect.
    Used,
    /// A key of Attic without an effect. It is accepted, and the start prints the reason once.
    Ignored(&'static str),
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Dotted path in the TOML file.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// The default, in the form of a variable.
    pub(crate) default: Option<&'static str>,
    /// Text of the reference for a default that is computed.
    pub(crate) default_note: &'static str,
    /// Attic's variable with the same meaning.
    pub(crate) attic_variable: Option<&'static str>,
    pub(crate) flag: Option<&'static str>,
    pub(crate) secret: bool,
    /// Whether Attic's `server.toml` has the key too.
    pub(crate) attic: bool,
    pub(crate) effect: KeyEffect,
    /// The description in the reference, in full sentences.
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
            effect: KeyEffect::Used,
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
        Self { effect: KeyEffect::Ignored(why), ..self }
    }

    /// The variable of the key: `chunks.zstd-level` is `DORMER_CHUNKS_ZSTD_LEVEL`.
    pub(crate) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.path.replace(['.', '-'], "_").to_ascii_uppercase())
    }

    /// The table of the key, and its name in the table.
    pub(crate) fn section_and_name(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }
}

/// The prefix of all our variables.
pub(crate) const VARIABLE_PREFIX: &str = "DORMER_";
/// A whole settings file in base64: Attic's way to configure a container.
pub(crate) const ATTIC_CONFIG_VARIABLE: &str = "ATTIC_SERVER_CONFIG_BASE64";
/// The path of the settings file.
pub(crate) const CONFIG_VARIABLE: &str = "DORMER_CONFIG";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: u64 = 86_400;
const CHUNKS_ARE_OURS: &str = "Dormer has its own rule for chunks; see [chunks]";
const COMPRESSION_IS_OURS: &str =
    "Dormer stores zstd and serves it unchanged; chunks.zstd-level sets the level";

macro_rules! keys {
    ($all:ident: $($name:ident = $key:expr;)*) => {
        $(pub(crate) const $name: Key = $key;)*
        /// All of them, in the order of the reference.
        pub(crate) static $all: &[Key] = &[$($name),*];
    };
}

keys! { KEYS:
    LISTEN = Key::new("listen", Kind::Address, "Address to listen on. Port 0 takes a free port; the line `listening on …` shows it.")
        .default("127.0.0.1:8080").flag("--listen").attic();
    DATA_DIR = Key::new("data-dir", Kind::Path,
        "Folder for everything that `dormer serve` makes and keeps: index, packs, master key, token secret, admin token. \
         A missing folder is created with mode 0700.")
        .default_note("`$XDG_DATA_HOME/dormer`, or `~/.local/share/dormer`").flag("--data-dir");
    API_ENDPOINT = Key::new("api-endpoint", Kind::HttpUrl,
        "Address of the server for its users, if the server is behind a proxy. Without this key, the server takes it from \
         `trusted-proxies`, or from the `Host` header of each request.").attic();
    SUBSTITUTER_ENDPOINT = Key::new("substituter-endpoint", Kind::HttpUrl,
        "Base address of the caches for Nix, if it differs from `api-endpoint`: a CDN, for example.").attic();
    ALLOWED_HOSTS = Key::new("allowed-hosts", Kind::List,
        "`Host` headers that the server answers; empty means all.").default("").attic();
    TRUSTED_PROXIES = Key::new("trusted-proxies", Kind::List,
        "Addresses or networks (`10.0.0.0/8`) of the proxies in front of the server. Without `api-endpoint`, the server \
         takes the address that its users see from their `Forwarded` or `X-Forwarded-Proto`, `-Host` and `-Prefix` headers: \
         the first item of each list. A proxy that comes through a Unix socket is always trusted. The server ignores these \
         headers from anybody else.").default("127.0.0.0/8, ::1");
    MAX_NAR_INFO_SIZE = Key::new("max-nar-info-size", Kind::Size(4 * KIB, MIB),
        "Longest metadata of one upload.").default("1 MiB").attic();
    MASTER_KEY = Key::new("master-key", Kind::Text,
        "32 bytes in base64 that seal the caches' signing keys in the index. Without this key, the server reads \
         `master-key-file`. Without the master key, the signing keys are lost: keep a copy apart from the database's backup.").secret();
    MASTER_KEY_FILE = Key::new("master-key-file", Kind::Path,
        "File with the master key. The first start creates it with mode 0600.")
        .default_note("`<data-dir>/master-key`");
    PREVIOUS_MASTER_KEY = Key::new("previous-master-key", Kind::Text,
        "The master key that `master-key` is to replace, 32 bytes in base64. With both, the server opens what either sealed, \
         and goes on sealing with the previous key until `dormer rekey` begins. Remove this key when that is done.").secret();
    PREVIOUS_MASTER_KEY_FILE = Key::new("previous-master-key-file", Kind::Path,
        "File with the previous master key.");
    STATS = Key::new("stats", Kind::Bool,
        "Whether the server answers `/_dormer/stats`: counters for benchmarks, without a token.").default("false");
    PAGES = Key::new("pages", Kind::Bool,
        "Whether the server has pages for people (docs/PAGES.md). If false, `/` is a line of text for everybody, and \
         the addresses of pages are 404.").default("true");
    SOFT_DELETE_CACHES = Key::new("soft-delete-caches", Kind::Bool,
        "If true, Attic keeps the name of a destroyed cache taken.")
        .attic().ignored("the name of a destroyed cache is free at once, and its bytes go later");
    REQUIRE_PROOF_OF_POSSESSION = Key::new("require-proof-of-possession", Kind::Bool,
        "If false, Attic lets a client claim a NAR by its hash alone.")
        .attic().ignored("Dormer always requires the whole NAR and verifies it");

    DATABASE_URL = Key::new("database.url", Kind::Text,
        "The index: `sqlite:///absolute/path`, `sqlite://relative/path` or `postgresql://user:password@host:5432/database` \
         (13 or newer; parameters of libpq such as `?sslmode=verify-full&sslrootcert=/path` may follow). Dormer needs its \
         own database, not one of Attic.")
        .default_note("`sqlite://<data-dir>/index.sqlite`").attic().attic_variable("ATTIC_SERVER_DATABASE_URL");
    DATABASE_HEARTBEAT = Key::new("database.heartbeat", Kind::Bool, "If true, Attic sends a query every few seconds.")
        .attic().ignored("Dormer checks a connection when it needs one");
    DATABASE_CONNECTIONS = Key::new("database.max-connections", Kind::Integer(1, 1_000),
        "Most connections of this process to PostgreSQL; one more listens for changes. PostgreSQL's `max_connections` must \
         be large enough for all replicas.").default("16");
    DATABASE_ACQUIRE_TIMEOUT = Key::new("database.acquire-timeout", Kind::Duration(1, 600),
        "How long a request waits for a connection to PostgreSQL, also while PostgreSQL restarts. After that, the server \
         answers 503 with Retry-After.").default("10s");
    DATABASE_STATEMENT_TIMEOUT = Key::new("database.statement-timeout", Kind::Duration(1, 3_600),
        "Time limit of a statement on PostgreSQL.").default("30s");
    DATABASE_LOCK_TIMEOUT = Key::new("database.lock-timeout", Kind::Duration(1, 3_600),
        "How long a statement waits for a lock of another one.").default("10s");
    DATABASE_TRANSACTION_POOLER = Key::new("database.transaction-pooler", Kind::Bool,
        "Set `true` if PgBouncer or a similar pooler is in front of PostgreSQL, with `pool_mode = transaction`. Then the server \
         prepares no statements, every look-up is a transaction, and changes by other replicas show after up to 5 s instead of at \
         once. With `false`, the server refuses such a pooler.").default("false");

    STORAGE_TYPE = Key::new("storage.type", Kind::Choice(&["local", "s3", "gcs", "azure"]),
        "Where packs are stored: `local`, a folder; `s3`, Amazon S3 or a compatible store (MinIO, Ceph RGW, SeaweedFS, Garage, \
         R2); `gcs`, Google Cloud Storage; `azure`, Azure Blob Storage.")
        .default("local").attic();
    STORAGE_PATH = Key::new("storage.path", Kind::Path, "Folder of the packs. It must not be Attic's.")
        .default_note("`<data-dir>/storage`").attic();
    STORAGE_REGION = Key::new("storage.region", Kind::Text, "S3's region.")
        .default_note("`AWS_REGION`, or `us-east-1`").attic();
    STORAGE_BUCKET = Key::new("storage.bucket", Kind::Text,
        "Bucket, or Azure's container. It must exist, and must not be Attic's.").attic();
    STORAGE_ENDPOINT = Key::new("storage.endpoint", Kind::HttpUrl, "Address of the store.")
        .default_note("`AWS_ENDPOINT_URL` for S3, or the provider's own").attic();
    STORAGE_PREFIX = Key::new("storage.prefix", Kind::Text,
        "Goes before the name of every object, with a `/` between, so that one bucket serves several uses.").default_note("none");
    STORAGE_PATH_STYLE = Key::new("storage.path-style", Kind::Bool,
        "Whether the bucket is in the path of a request (`https://endpoint/bucket/…`) or in its host name \
         (`https://bucket.endpoint/…`).").default_note("`true` if there is an endpoint");
    STORAGE_CA_FILE = Key::new("storage.ca-file", Kind::Path,
        "PEM file with certificates to trust beside the system's, for stores with a CA of their own.");
    STORAGE_REQUESTS = Key::new("storage.requests", Kind::Integer(1, 10_000),
        "Most concurrent requests to the store. After the store reports that it is busy, there are fewer for a while.").default("64");
    STORAGE_CONNECT_TIMEOUT = Key::new("storage.connect-timeout", Kind::Duration(1, 3_600),
        "Time limit for connecting to the store.").default("5s");
    STORAGE_TIMEOUT = Key::new("storage.timeout", Kind::Duration(1, 3_600),
        "Time limit of a request to the store: 32 MiB over its slowest link.").default("60s");
    STORAGE_RETRY_TIME = Key::new("storage.retry-time", Kind::Duration(0, 3_600),
        "How long the server repeats a request when the store is busy or does not answer; at least once, unless this is 0. After \
         that, the server answers 503 with Retry-After.")
        .default("45s");
    STORAGE_ACCESS_KEY_ID = Key::new("storage.credentials.access_key_id", Kind::Text,
        "Access key (S3), or name of the account (Azure).")
        .default_note("the provider's environment variables, such as `AWS_ACCESS_KEY_ID` (not `~/.aws`), Google's files, or the role of the instance \
         or pod").secret().attic();
    STORAGE_SECRET_ACCESS_KEY = Key::new("storage.credentials.secret_access_key", Kind::Text,
        "Secret key (S3), or key of the account (Azure).")
        .default_note("as above, such as `AWS_SECRET_ACCESS_KEY`").secret().attic();

    CHUNKS_MIN = Key::new("chunks.min", Kind::Size(KIB, 16 * MIB),
        "Smallest chunk. The three sizes decide where NARs are cut. Changing them later costs deduplication with \
         existing chunks.").default("32 KiB");
    CHUNKS_AVG = Key::new("chunks.avg", Kind::Size(KIB, 16 * MIB), "Average chunk.").default("128 KiB");
    CHUNKS_MAX = Key::new("chunks.max", Kind::Size(KIB, 16 * MIB), "Largest chunk.").default("512 KiB");
    CHUNKS_ZSTD_LEVEL = Key::new("chunks.zstd-level", Kind::Integer(1, 19),
        "zstd level of new chunks. Costs CPU only during pushes, because reading decompresses nothing.").default("6");

    LIMIT_UPLOAD_MEMORY = Key::new("limits.upload-memory", Kind::Size(16 * MIB, 1024 * GIB),
        "Memory for all uploads together. The upload of a large NAR takes 10 MiB, and more if it is compressed (`xz`: 9 MiB, \
         `xz -9`: 65 MiB, `zstd -22` and `zstd --long`: 129 MiB). If there is not enough, uploads wait for their turn. Uploads that take more than 24 MiB have three \
         quarters, each and together, and the server refuses an upload that would need more. With less than 48 MiB, a quarter holds no large NAR.")
        .default("192 MiB");
    LIMIT_UPLOAD_WAIT = Key::new("limits.upload-wait", Kind::Duration(0, 3_600),
        "How long an upload waits for its turn before the server answers 503 with Retry-After.").default("60s");
    LIMIT_NAR_SIZE = Key::new("limits.nar-size", Kind::Size(MIB, 1024 * 1024 * GIB),
        "Largest accepted NAR, uncompressed.").default("64 GiB");
    LIMIT_READ_MEMORY = Key::new("limits.read-memory", Kind::Size(8 * MIB, 1024 * GIB),
        "Memory for all NARs and listings being read. Many concurrent readers read in smaller pieces, and wait for their turn \
         if there is not enough.").default("64 MiB");
    LIMIT_READS = Key::new("limits.reads", Kind::Integer(1, 100_000), "Most NARs being read at once; further reads wait.")
        .default("512");
    LIMIT_READ_WAIT = Key::new("limits.read-wait", Kind::Duration(0, 3_600),
        "How long a read waits for its turn before the server answers 503 with Retry-After.").default("30s");
    LIMIT_CONNECTIONS = Key::new("limits.connections", Kind::Integer(1, 1_000_000),
        "Most concurrent connections. The server answers further ones with 503 and Retry-After. One address (or network of 64 \
         bits, for IPv6) gets at most three quarters of them, unless it is one of `trusted-proxies`. The limit of open files \
         (`ulimit -n`) must be twice as high. At the start, the server raises the soft limit to the hard limit. If that is too \
         low, the server accepts fewer connections.").default("1024");
    LIMIT_UPLOADS = Key::new("limits.uploads", Kind::Integer(1, 1_000_000),
        "Most concurrent uploads, including those that wait for memory. Further uploads wait up to `limits.upload-wait`.")
        .default("256");
    LIMIT_PUSH_REQUESTS = Key::new("limits.push-requests-per-second", Kind::Integer(0, 1_000_000),
        "Pushes (NARs, narinfos, store paths) a second that one token may begin; 0 means no limit. A token may use the unused \
         pushes of the last 10 seconds at once; after that, the server answers 429 with Retry-After. Tokens with the same `sub` \
         count as one. Each replica counts for itself.").default("0");
    LIMIT_PUSH_BYTES = Key::new("limits.push-bytes-per-second", Kind::Size(0, 1024 * GIB),
        "Bytes a second that one token may push, counted in the same way; 0 means no limit. A running upload is not slowed \
         down; the next one waits.").default("0");
    LIMIT_HEADER_SIZE = Key::new("limits.header-size", Kind::Size(8 * KIB, MIB),
        "Longest request line and headers together (431). Attic's clients send up to 4 KiB of metadata in a header, and \
         tokens of OIDC issuers take some KiB.").default("64 KiB");
    LIMIT_JSON_SIZE = Key::new("limits.json-size", Kind::Size(KIB, GIB),
        "Longest JSON body (413). 4 MiB hold a request about 119,000 paths.").default("4 MiB");
    LIMIT_LOG_SIZE = Key::new("limits.log-size", Kind::Size(KIB, 32 * MIB),
        "Longest build log, uncompressed (413). An upload of a log takes four times its size of `limits.body-memory`, one at a \
         time beside it: 16 MiB need 40 MiB more memory than the default.").default("4 MiB");
    LIMIT_NARINFO_SIZE = Key::new("limits.narinfo-size", Kind::Size(KIB, 4 * MIB),
        "Longest accepted narinfo (413). 1 MiB holds some 20,000 references; no reader takes more than 4 MiB.").default("1 MiB");
    LIMIT_PART_SIZE = Key::new("limits.part-size", Kind::Size(64 * KIB, 8 * MIB),
        "Largest part of a push by chunks (413). Clients learn it from the server. Set it below what a proxy before the server \
         takes, or if slow lines need more than a minute for a part. A part holds one chunk of any size in any case.")
        .default("8 MiB");
    LIMIT_BODY_MEMORY = Key::new("limits.body-memory", Kind::Size(MIB, 1024 * GIB),
        "Memory for all bodies that the server reads completely before it acts: JSON, narinfos, metadata. Further ones wait up to 30 s.")
        .default("16 MiB");
    LIMIT_RETRY_AFTER = Key::new("limits.retry-after", Kind::Duration(1, 3_600),
        "Value of `Retry-After` in a 503.").default("5s");
    LIMIT_HEADER_TIMEOUT = Key::new("limits.header-timeout", Kind::Duration(1, 3_600),
        "How long a connection may take to send the head of a request, including the wait between two requests.").default("75s");
    LIMIT_BODY_IDLE_TIMEOUT = Key::new("limits.body-idle-timeout", Kind::Duration(1, 3_600),
        "How long an upload may pause. Waiting for its turn does not count.").default("60s");
    LIMIT_BODY_RATE = Key::new("limits.body-rate", Kind::Size(0, GIB),
        "Fewest bytes a second of a request body, on average of `limits.body-idle-timeout`; 0 means any number. The server aborts \
         slower uploads (408). Only the time in which the server waits for the client counts.").default("4 KiB");
    LIMIT_WRITE_IDLE_TIMEOUT = Key::new("limits.write-idle-timeout", Kind::Duration(1, 3_600),
        "How long a reader may pause while it receives an answer.").default("120s");
    LIMIT_UPLOAD_TIMEOUT = Key::new("limits.upload-timeout", Kind::Duration(60, 7 * DAY), "Longest upload.").default("24h");
    LIMIT_DRAIN_DELAY = Key::new("limits.drain-delay", Kind::Duration(0, 3_600),
        "How long the server continues after SIGTERM. Meanwhile `/readyz` answers 503, and connections close after their next \
         answer. Load balancers need this time to switch to other replicas.")
        .default_note("5s, or 0 when it listens on the loopback address only");
    LIMIT_SHUTDOWN_TIMEOUT = Key::new("limits.shutdown-timeout", Kind::Duration(0, 3_600),
        "How long running requests may then take to finish; after that, the server aborts them. Connections without a request \
         close at once, and connections with an incomplete head close after 5 s.").default("30s");
    LIMIT_REENCODINGS = Key::new("limits.reencodings", Kind::Integer(1, 1_024),
        "Most NARs being read at once in the compression in which `nix copy` sent them. These are the only reads that take CPU. \
         Each takes up to 4 MiB.")
        .default("4");
    LIMIT_CPU_THREADS = Key::new("limits.cpu-threads", Kind::Integer(1, 1_024),
        "Threads that hash and compress at the same time.").default_note("number of CPUs");

    GC_INTERVAL = Key::new("garbage-collection.interval", Kind::Duration(0, 100 * 366 * DAY),
        "How often the server looks for what a cache keeps no longer and for what nothing needs any more; 0 means only when `dormer gc` asks.")
        .default("1h").attic();
    GC_DEFAULT_RETENTION_PERIOD = Key::new("garbage-collection.default-retention-period", Kind::Duration(0, 100 * 366 * DAY),
        "How long a cache without its own setting keeps an unused object; 0 means for ever.").default("0s").attic();
    GC_DEFAULT_QUOTA = Key::new("garbage-collection.default-quota", Kind::Size(0, 1 << 60),
        "Most bytes that a cache without its own setting keeps, as clients download them; 0 means no quota.").default("0");
    GC_LOG_RETENTION_PERIOD = Key::new("garbage-collection.log-retention-period", Kind::Duration(0, 100 * 366 * DAY),
        "How long a cache keeps a build log after it came; 0 means as long as the paths of the build.").default("0s");
    GC_RECOMPRESS_LEVEL = Key::new("garbage-collection.recompress-level", Kind::Integer(0, 19),
        "zstd level at which collections recompress packs that no push has used for 30 days, once. 0 leaves them as they are. \
         Docs: OPERATING.md, \"Recompression\".").default("0");

    JOURNAL_INTERVAL = Key::new("journal.interval", Kind::Duration(1, 3_600),
        "How often the server writes what changed to the journal beside the packs. A lost database loses what changed since the \
         last time.").default("20s");

    JWT_BOUND_ISSUER = Key::new("jwt.token-bound-issuer", Kind::Text,
        "The server accepts only tokens with this `iss`, and puts it into new tokens.").attic();
    JWT_BOUND_AUDIENCES = Key::new("jwt.token-bound-audiences", Kind::List,
        "The server accepts only tokens with one of these in `aud`, and puts them into new tokens.").default("").attic();
    JWT_HS256_SECRET = Key::new("jwt.signing.token-hs256-secret-base64", Kind::Text,
        "Secret that signs and verifies tokens, in base64, of at least 32 bytes (`openssl rand -base64 64`). At most one of the three `jwt.signing` keys may be set; without \
         any, the first start makes `<data-dir>/token-secret`.")
        .secret().attic().attic_variable("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64");
    JWT_RS256_SECRET = Key::new("jwt.signing.token-rs256-secret-base64", Kind::Text,
        "RSA private key (PEM, in base64) that signs and verifies tokens.")
        .secret().attic().attic_variable("ATTIC_SERVER_TOKEN_RS256_SECRET_BASE64");
    JWT_RS256_PUBKEY = Key::new("jwt.signing.token-rs256-pubkey-base64", Kind::Text,
        "RSA public key (PEM, in base64) that verifies tokens from elsewhere.")
        .attic().attic_variable("ATTIC_SERVER_TOKEN_RS256_PUBKEY_BASE64");

    LOG_FORMAT = Key::new("log.format", Kind::Choice(&["text", "json"]), "Format of log lines on standard error.")
        .default("text").flag("--log-format");
    LOG_FILTER = Key::new("log.filter", Kind::Text,
        "Which log lines the server writes: `info`, `warn,dormer_engine=debug`. `RUST_LOG` overrides this key.").default("info");

    METRICS_LISTEN = Key::new("metrics.listen", Kind::AddressOrOff,
        "Separate address for `/metrics`, in Prometheus' format and without a token, or `off`. If the default address is \
         taken, the server prints a warning and continues without metrics. docs/METRICS.md explains the metrics.")
        .default("127.0.0.1:9464");

    CHUNKING_THRESHOLD = Key::new("chunking.nar-size-threshold", Kind::Size(0, u64::MAX), "A key of Attic.")
        .attic().ignored(CHUNKS_ARE_OURS);
    CHUNKING_MIN = Key::new("chunking.min-size", Kind::Size(0, u64::MAX), "A key of Attic.").attic().ignored(CHUNKS_ARE_OURS);
    CHUNKING_AVG = Key::new("chunking.avg-size", Kind::Size(0, u64::MAX), "A key of Attic.").attic().ignored(CHUNKS_ARE_OURS);
    CHUNKING_MAX = Key::new("chunking.max-size", Kind::Size(0, u64::MAX), "A key of Attic.").attic().ignored(CHUNKS_ARE_OURS);
    COMPRESSION_TYPE = Key::new("compression.type", Kind::Text, "A key of Attic.").attic().ignored(COMPRESSION_IS_OURS);
    COMPRESSION_LEVEL = Key::new("compression.level", Kind::Integer(-1_000, 1_000), "A key of Attic.")
        .attic().ignored(COMPRESSION_IS_OURS);
}

/// The `jwt.signing` keys: one layer of settings may set one of them.
pub(crate) const SIGNING_KEYS: [Key; 3] = [JWT_HS256_SECRET, JWT_RS256_SECRET, JWT_RS256_PUBKEY];

keys! { EDGE_KEYS:
    EDGE_NAME = Key::new("edge.name", Kind::Text,
        "Name of the target, for `dormer publish NAME`. The index records publications under this name.");
    EDGE_CACHES = Key::new("edge.caches", Kind::List,
        "The caches to publish: names, or patterns such as `team-*`. A private cache must be named exactly, and is never \
         published to a bucket that anybody can read.");
    EDGE_REVOKED_TOKENS = Key::new("edge.revoked-tokens", Kind::List,
        "Ids (`jti`) of tokens that this edge must refuse. `dormer token create --json` prints the id of a token.").default("");
    EDGE_TYPE = Key::new("edge.type", Kind::Choice(&["local", "s3", "gcs", "azure"]),
        "Kind of the target: `local`, a folder; `s3` (also R2), `gcs` or `azure`, a bucket.").default("s3");
    EDGE_PATH = Key::new("edge.path", Kind::Path, "The folder of a `local` target.");
    EDGE_BUCKET = Key::new("edge.bucket", Kind::Text,
        "Bucket, or Azure's container. It must exist, and should hold nothing else below the prefix.");
    EDGE_PREFIX = Key::new("edge.prefix", Kind::Text, "Goes before the name of every object, with a `/` between.")
        .default_note("none");
    EDGE_REGION = Key::new("edge.region", Kind::Text, "S3's region; `auto` for R2.").default_note("`AWS_REGION`, or `us-east-1`");
    EDGE_ENDPOINT = Key::new("edge.endpoint", Kind::HttpUrl, "Address of the store.").default_note("`AWS_ENDPOINT_URL` for S3, or the provider's own");
    EDGE_PATH_STYLE = Key::new("edge.path-style", Kind::Bool,
        "Whether the bucket is in the path of a request or in its host name.").default_note("`true` if there is an endpoint");
    EDGE_CA_FILE = Key::new("edge.ca-file", Kind::Path, "PEM file with certificates to trust beside the system's.");
    EDGE_ACCESS_KEY_ID = Key::new("edge.credentials.access_key_id", Kind::Text,
        "Access key (S3), or name of the account (Azure). It must be allowed to put, get, list and delete objects.")
        .default_note("the provider's environment variables, such as `AWS_ACCESS_KEY_ID` (not `~/.aws`), Google's files, or the role of the instance \
         or pod").secret();
    EDGE_SECRET_ACCESS_KEY = Key::new("edge.credentials.secret_access_key", Kind::Text, "Secret key (S3), or key of the account (Azure).")
        .default_note("as above, such as `AWS_SECRET_ACCESS_KEY`").secret();
    EDGE_CONNECT_TIMEOUT = Key::new("edge.connect-timeout", Kind::Duration(1, 3_600), "Time limit for connecting.")
        .default("5s");
    EDGE_TIMEOUT = Key::new("edge.timeout", Kind::Duration(1, 3_600),
        "Time limit of a request: 16 MiB over its slowest link. After a killed run, the next run waits this long before it \
         writes.").default("60s");
    EDGE_LEASE = Key::new("edge.lease", Kind::Duration(3, 3_600),
        "How long a killed run blocks the next one. A running one renews its lease three times in that time.").default("30s");
    EDGE_RETRY_TIME = Key::new("edge.retry-time", Kind::Duration(0, 3_600),
        "How long the publisher repeats a request when the store is busy or does not answer.").default("45s");
    EDGE_LISTINGS = Key::new("edge.listings", Kind::Bool,
        "Whether to publish listings (`.ls`) too: one more request for each path.").default("false");
    EDGE_LOGS = Key::new("edge.logs", Kind::Bool,
        "Whether to publish build logs too, for `nix log`: one more request for each.").default("false");
    EDGE_TRACES = Key::new("edge.traces", Kind::Bool,
        "Whether to publish build traces too, with which Nix substitutes content-addressed paths: one more request for each.")
        .default("true");
    EDGE_DEBUG_INFO = Key::new("edge.debug-info", Kind::Bool,
        "Whether to publish links to debug info too, for debuggers: one more request for each debug file.").default("false");
    EDGE_RECOMPRESS_LEVEL = Key::new("edge.recompress-level", Kind::Integer(0, 19),
        "zstd level for recompressing NARs during publishing. Level 19 makes them a tenth smaller than the default of \
         `chunks.zstd-level`, and costs a second of CPU for each 2 MB, once. 0 sends NARs as stored, which costs almost no CPU. A \
         change applies to NARs that are sent afterwards.").default("0");
    EDGE_NAR_GRACE = Key::new("edge.nar-grace", Kind::Duration(DAY, 3_650 * DAY),
        "How long a NAR stays after its last narinfo was removed, for clients that remember the narinfo. Does not apply to a removal for cause.")
        .default("30d");
    EDGE_SETTLE_TIME = Key::new("edge.settle-time", Kind::Duration(0, 30 * DAY),
        "How long a path waits for a reference that the cache lacks, because a push may still bring it. After that, the reference \
         counts as one of another cache, such as cache.nixos.org.").default("5m");
    EDGE_CONCURRENCY = Key::new("edge.concurrency", Kind::Integer(1, 1_000), "Number of files to write at once.").default("8");
    EDGE_BANDWIDTH = Key::new("edge.bandwidth", Kind::Size(0, 1024 * GIB),
        "Most bytes to send per second; 0 means no limit.").default("0");
    EDGE_MEMORY = Key::new("edge.memory", Kind::Size(16 * MIB, 1024 * GIB), "Memory for data being sent.").default("64 MiB");
}
