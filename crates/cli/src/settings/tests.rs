//! What users write, and the resulting settings or errors.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::RedactedUrl;
use dormer_engine::EngineSettings;

use super::keys::{self, KEYS};
use super::raw::Environment;
use super::resolve::{Settings, SigningKey};
use super::sources::Flags;
use super::{Error, reference, show};

const HOME: (&str, &str) = ("HOME", "/home/ada");

/// The `server.toml` of Attic's own guide, with every section.
const ATTIC_SERVER_TOML: &str = r#"
listen = "[::]:8080"
allowed-hosts = []
api-endpoint = "https://attic.example.org/"
substituter-endpoint = "https://cdn.example.org/"
max-nar-info-size = 1048576
soft-delete-caches = false
require-proof-of-possession = true

[database]
url = "sqlite:///var/lib/dormer/index.sqlite?mode=rwc"
heartbeat = true

[storage]
type = "local"
path = "/var/lib/dormer/storage"

[chunking]
nar-size-threshold = 65536
min-size = 16384
avg-size = 65536
max-size = 262144

[compression]
type = "zstd"
level = 8

[garbage-collection]
interval = "12 hours"
default-retention-period = "6 months"

[jwt]
token-bound-issuer = "some-issuer"
token-bound-audiences = ["some-audience1", "some-audience2"]

[jwt.signing]
token-hs256-secret-base64 = "aHVudGVyMmh1bnRlcjI="
"#;

fn load(toml: &str, environment: &Environment, flags: &[(keys::Key, &str)]) -> Result<Settings, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dormer.toml");
    std::fs::write(&file, toml).unwrap();
    let values = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
    Settings::load(environment, &Flags { config: Some(file), values }).map(|(settings, _)| settings)
}

/// The error message, without the folder of the test.
fn message(toml: &str) -> String {
    let error = load(toml, &[HOME].into(), &[]).unwrap_err();
    let text = match error.hint() {
        Some(hint) => format!("{error} | {hint}"),
        None => error.to_string(),
    };
    text.split(' ')
        .map(|word| match word.rsplit_once('/') {
            Some((before, file)) if Path::new(before).starts_with(std::env::temp_dir()) => file,
            _ => word,
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn nothing_at_all_is_a_complete_set_of_settings() {
    let (settings, _) = Settings::load(&[HOME].into(), &Flags::default()).unwrap();
    assert_eq!(settings.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(settings.data_dir, Path::new("/home/ada/.local/share/dormer"));
    assert_eq!(settings.database_path, Path::new("/home/ada/.local/share/dormer/index.sqlite"));
    assert_eq!(settings.storage_path, Path::new("/home/ada/.local/share/dormer/storage"));
    assert!(settings.notes.is_empty());
    let xdg = [HOME, ("XDG_DATA_HOME", "/data")].into();
    assert_eq!(Settings::load(&xdg, &Flags::default()).unwrap().0.data_dir, Path::new("/data/dormer"));
    let nowhere = Settings::load(&Environment::default(), &Flags::default()).unwrap_err();
    assert_eq!(nowhere.hint().unwrap(), "say where to keep data: --data-dir DIR");
}

#[test]
fn the_defaults_written_in_the_table_are_those_of_the_engine() {
    let (settings, _) = Settings::load(&[HOME].into(), &Flags::default()).unwrap();
    assert_eq!(format!("{:?}", settings.engine), format!("{:?}", EngineSettings::default()));
}

#[test]
fn a_mistyped_key_is_an_error_that_names_the_nearest() {
    insta::assert_snapshot!(message("lsiten = \"[::]:80\""), @"unknown key 'lsiten' in dormer.toml | did you mean 'listen'?");
    insta::assert_snapshot!(message("[chunk]\navg = 1"), @"unknown key 'chunk.avg' in dormer.toml | did you mean 'chunks.avg'?");
    insta::assert_snapshot!(message("[chunks]\nzstd_level = 1"), @"unknown key 'chunks.zstd_level' in dormer.toml | did you mean 'chunks.zstd-level'?");
    insta::assert_snapshot!(message("[colours]\nred = 1"), @"unknown key 'colours.red' in dormer.toml | `dormer config reference` explains every key");
    insta::assert_snapshot!(message("[databse]"), @"unknown key 'databse' in dormer.toml | `dormer config reference` explains every key");
}

#[test]
fn wrong_values_are_named_with_their_key_and_place() {
    insta::assert_snapshot!(message("listen = 8080"), @r#"listen (file dormer.toml): expects an address such as "127.0.0.1:8080", "[::]:8080" or "unix:/run/dormer/socket", not a integer"#);
    insta::assert_snapshot!(message("listen = \"8080\""), @r#"listen (file dormer.toml): '8080' is not an address such as "127.0.0.1:8080", "[::]:8080" or "unix:/run/dormer/socket""#);
    insta::assert_snapshot!(message("[chunks]\nzstd-level = 40"), @"chunks.zstd-level (file dormer.toml): 40 is out of range, 1 to 19");
    insta::assert_snapshot!(message("[chunks]\nzstd-level = \"5\""), @"chunks.zstd-level (file dormer.toml): expects a number, without quotes");
    insta::assert_snapshot!(message("[chunks]\navg = \"64 kilo\""), @r#"chunks.avg (file dormer.toml): '64 kilo' is not a size such as "64 MiB""#);
    insta::assert_snapshot!(message("[chunks]\nmin = \"1 MiB\""), @"chunks.min (file dormer.toml): chunks.min < chunks.avg < chunks.max must hold, all even, but they are 1048576, 131072, 524288 bytes");
    insta::assert_snapshot!(message("[limits]\nupload-wait = \"2 days\""), @"limits.upload-wait (file dormer.toml): 2 days is out of range, 0s to 1h");
    insta::assert_snapshot!(message("api-endpoint = \"cache.example.org\""), @r#"api-endpoint (file dormer.toml): 'cache.example.org' is not an address such as "https://cache.example.org/""#);
    insta::assert_snapshot!(message("allowed-hosts = \"a\""), @r#"allowed-hosts (file dormer.toml): expects a list of texts, such as ["a", "b"]"#);
    insta::assert_snapshot!(message("soft-delete-caches = \"yes\""), @"soft-delete-caches (file dormer.toml): expects true or false, without quotes");
    insta::assert_snapshot!(message("a = 1\nb = = 2"), @"dormer.toml is not TOML: line 2: extra `=`, expected nothing");
    insta::assert_snapshot!(message("master-key = \"aGk=\""), @"master-key (file dormer.toml): holds 2 bytes, not 32");
}

#[test]
fn a_database_on_a_server_has_a_name_without_its_password() {
    for scheme in ["postgres", "postgresql"] {
        let toml = format!("[database]\nurl = \"{scheme}://ada:hunter2@db.lab:6432/x?sslmode=require\"");
        let settings = load(&toml, &[HOME].into(), &[]).unwrap();
        assert_eq!(settings.database_name(), "PostgreSQL database 'x' on db.lab:6432");
        let server = settings.postgres.as_ref().unwrap();
        assert!(server.url.expose().contains("hunter2"));
        assert_eq!(
            format!("{:?}", server.options),
            format!("{:?}", dormer_index::PostgresOptions::default())
        );
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
    let toml = "[database]\nurl = \"postgres://db/x\"\nmax-connections = 3\ntransaction-pooler = true\nlock-timeout = \"1s\"";
    let options = load(toml, &[HOME].into(), &[]).unwrap().postgres.unwrap().options;
    assert_eq!((options.connections_max, options.transaction_pooler), (3, true));
    assert_eq!(options.lock_timeout, std::time::Duration::from_secs(1));
    insta::assert_snapshot!(message("[database]\nurl = \"postgresql://ada:hunter2@db:x/x\""), @r#"database.url (file dormer.toml): is not of the form "postgresql://user:password@host:5432/database""#);
    insta::assert_snapshot!(message("[database]\nurl = \"mysql://ada:hunter2@db/x\""), @r#"database.url (file dormer.toml): is neither "sqlite:///path/to/index.sqlite" nor "postgresql://user:password@host/database""#);
    let file = load("[database]\nmax-connections = 3\n", &[HOME].into(), &[]).unwrap();
    assert_eq!(file.notes, ["without effect: database.max-connections (the index is an SQLite file)"]);
}

#[test]
fn where_everything_is_elsewhere_no_folder_is_needed() {
    let toml = "master-key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n[database]\nurl = \"postgresql://db/x\"\n\
                [storage]\ntype = \"s3\"\nbucket = \"b\"\n[jwt.signing]\ntoken-hs256-secret-base64 = \"c2VjcmV0\"\n";
    let nowhere = Environment::default();
    assert!(!load(toml, &nowhere, &[]).unwrap().uses_data_dir());
    for part in ["master-key", "url", "type = \"s3\"", "token-hs256"] {
        let less: Vec<&str> = toml.lines().filter(|line| !line.starts_with(part)).collect();
        let less = less.join("\n");
        assert!(load(&less, &[HOME].into(), &[]).unwrap().uses_data_dir(), "{part}");
        let less = load(&less, &nowhere, &[]).unwrap_err();
        assert!(less.hint().unwrap().contains("--data-dir"), "{part}");
    }
}

#[test]
fn a_store_over_a_network_wants_what_it_needs() {
    insta::assert_snapshot!(message("[storage]\ntype = \"s3\""), @"storage.type (file dormer.toml): needs storage.bucket too");
    insta::assert_snapshot!(message("[storage]\ntype = \"s3\"\nbucket = \"b\"\ncredentials = { access_key_id = \"a\" }"), @"storage.credentials.access_key_id (file dormer.toml): needs storage.credentials.secret_access_key too");
    insta::assert_snapshot!(message("[storage]\ntype = \"s3\"\nbucket = \"b\"\nregion = \"auto\""), @"storage.region (file dormer.toml): `auto` is R2's and needs storage.endpoint: https://ACCOUNT.r2.cloudflarestorage.com");
    let toml = "[storage]\ntype = \"s3\"\nbucket = \"b\"\nregion = \"r\"\nendpoint = \"http://minio:9000/\"\n[storage.credentials]\n\
                access_key_id = \"a\"\nsecret_access_key = \"hunter2\"\n";
    let settings = load(toml, &[HOME].into(), &[]).unwrap();
    let store = settings.remote_storage.as_ref().unwrap().store.clone();
    assert_eq!(
        (store.bucket.as_str(), store.endpoint.as_deref(), store.path_style),
        ("b", Some("http://minio:9000"), true)
    );
    assert!(!format!("{settings:?}").contains("hunter2"), "secrets are not printed");
    let aws = load("[storage]\ntype = \"s3\"\nbucket = \"b\"\n", &[HOME].into(), &[]).unwrap();
    assert!(!aws.remote_storage.unwrap().store.path_style);
    let local = load("[storage]\nbucket = \"b\"\n", &[HOME].into(), &[]).unwrap();
    assert!(local.remote_storage.is_none());
    assert_eq!(local.notes, ["without effect: storage.bucket (storage.type is \"local\")"]);
}

#[test]
fn logs_stay_as_long_as_their_paths_unless_a_period_is_set() {
    let seconds = |toml: &str| load(toml, &[HOME].into(), &[]).unwrap().expiry_defaults.log_retention_seconds;
    assert_eq!(seconds(""), 0);
    assert_eq!(seconds("[garbage-collection]\nlog-retention-period = \"2 weeks\"\n"), 14 * 86_400);
}

#[test]
fn attics_server_toml_is_accepted_whole() {
    let settings = load(ATTIC_SERVER_TOML, &[HOME].into(), &[]).unwrap();
    assert_eq!(settings.listen, "[::]:8080".parse().unwrap());
    assert_eq!(settings.api_endpoint.as_ref().map(RedactedUrl::expose), Some("https://attic.example.org/"));
    assert_eq!(
        settings.substituter_endpoint.as_ref().map(RedactedUrl::expose),
        Some("https://cdn.example.org/")
    );
    for base in ["https://lab.example/nix", "https://lab.example/nix/"] {
        let settings = load(&format!("api-endpoint = {base:?}"), &[HOME].into(), &[]).unwrap();
        let base = settings.api_endpoint.as_ref().map(RedactedUrl::expose);
        assert_eq!(base, Some("https://lab.example/nix/"), "names are appended to it");
    }
    assert_eq!(settings.database_path, Path::new("/var/lib/dormer/index.sqlite"));
    assert_eq!(settings.storage_path, Path::new("/var/lib/dormer/storage"));
    assert_eq!(settings.jwt.bound_issuer.as_deref(), Some("some-issuer"));
    assert_eq!(settings.jwt.bound_audiences, ["some-audience1", "some-audience2"]);
    assert!(matches!(&settings.jwt.signing, Some(SigningKey::Hs256(secret)) if secret == b"hunter2hunter2"));
    assert_eq!(settings.expiry_interval, Duration::from_hours(12));
    assert_eq!(settings.expiry_defaults.retention_seconds, 6 * 2_630_016);
    // Attic's chunk sizes do not set ours.
    assert_eq!(settings.engine.chunk_params, EngineSettings::default().chunk_params);
    insta::assert_snapshot!(settings.notes.join("\n"), @r"
    ignored: soft-delete-caches (the name of a destroyed cache is free at once, and its bytes go later)
    ignored: require-proof-of-possession (Dormer always requires the whole NAR and verifies it)
    ignored: database.heartbeat (Dormer checks a connection when it needs one)
    ignored: chunking.nar-size-threshold, chunking.min-size, chunking.avg-size, chunking.max-size (Dormer has its own rule for chunks; see [chunks])
    ignored: compression.type, compression.level (Dormer stores zstd and serves it unchanged; chunks.zstd-level sets the level)
    ");
}

#[test]
fn attics_variables_are_read_where_the_file_is_silent() {
    let variables = [
        HOME,
        ("ATTIC_SERVER_DATABASE_URL", "sqlite:///from/attic"),
        ("ATTIC_SERVER_TOKEN_RS256_PUBKEY_BASE64", "cHVi"),
    ];
    let settings = load("", &variables.into(), &[]).unwrap();
    assert_eq!(settings.database_path, Path::new("/from/attic"));
    assert!(matches!(&settings.jwt.signing, Some(SigningKey::Rs256Public(key)) if key == b"pub"));
    // As in Attic, a signing key in the file replaces all others.
    let settings = load(ATTIC_SERVER_TOML, &variables.into(), &[]).unwrap();
    assert_eq!(settings.database_path, Path::new("/var/lib/dormer/index.sqlite"));
    assert!(matches!(settings.jwt.signing, Some(SigningKey::Hs256(_))));

    let encoded = STANDARD.encode(ATTIC_SERVER_TOML);
    let whole = [HOME, ("ATTIC_SERVER_CONFIG_BASE64", encoded.as_str())].into();
    let (settings, _) = Settings::load(&whole, &Flags::default()).unwrap();
    assert_eq!(settings.listen, "[::]:8080".parse().unwrap());
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let toml = "listen = \"1.1.1.1:1\"\n[chunks]\nzstd-level = 1\n[limits]\nnar-size = \"1 GiB\"";
    let variables = [
        HOME,
        ("DORMER_LISTEN", "2.2.2.2:2"),
        ("DORMER_CHUNKS_ZSTD_LEVEL", "2"),
        ("DORMER_LIMITS_UPLOAD_WAIT", ""),
    ];
    let settings = load(toml, &variables.into(), &[(keys::LISTEN, "localhost:3")]).unwrap();
    assert_eq!(settings.listen, "127.0.0.1:3".parse().unwrap());
    assert_eq!(settings.engine.zstd_level, 2);
    assert_eq!(settings.engine.nar_bytes_max, 1 << 30);
    assert_eq!(settings.engine.upload_wait, Duration::from_mins(1), "an empty variable counts as not set");
}

#[test]
fn every_key_can_be_set_by_its_variable() {
    for key in KEYS {
        let value = key.default.filter(|text| !text.is_empty()).unwrap_or(match key.kind {
            keys::Kind::Integer(..) | keys::Kind::Size(..) | keys::Kind::Duration(..) => "1",
            keys::Kind::Bool => "true",
            keys::Kind::HttpUrl => "https://example.org",
            _ if key.path.ends_with("master-key") => "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            _ if key.path == "database.url" => "sqlite:///x",
            _ => "dGV4dA==",
        });
        let variables = [HOME, (key.variable().as_str(), value)].into();
        match Settings::load(&variables, &Flags::default()) {
            Ok((_, raw)) => {
                assert_eq!(raw.find(key).unwrap().origin.to_string(), format!("env {}", key.variable()));
            }
            Err(error) => panic!("{}: {error}", key.path),
        }
    }
}

#[test]
fn two_signing_keys_in_one_place_are_refused() {
    let toml = "[jwt.signing]\ntoken-hs256-secret-base64 = \"aA==\"\ntoken-rs256-secret-base64 = \"aA==\"";
    insta::assert_snapshot!(message(toml), @"jwt.signing.token-hs256-secret-base64 and jwt.signing.token-rs256-secret-base64 are both set (file dormer.toml); only one key can sign tokens");
}

#[test]
fn a_mistyped_variable_is_reported_but_kubernetes_own_are_not() {
    let variables =
        [HOME, ("DORMER_LSITEN", "x"), ("DORMER_PORT_8080_TCP", "tcp://1"), ("DORMER_SERVICE_HOST", "h")];
    let (settings, _) = Settings::load(&variables.into(), &Flags::default()).unwrap();
    assert_eq!(settings.notes, ["unknown variable DORMER_LSITEN, did you mean DORMER_LISTEN?"]);
}

#[test]
fn the_settings_in_force_are_shown_with_their_origin_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.toml");
    std::fs::write(&file, ATTIC_SERVER_TOML).unwrap();
    let variables = [
        HOME,
        ("DORMER_CHUNKS_ZSTD_LEVEL", "3"),
        ("DORMER_MASTER_KEY", "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="),
        ("DORMER_SUBSTITUTER_ENDPOINT", "https://ada:hunter2@cdn.example.org/x"),
    ];
    let flags = Flags { config: Some(file.clone()), values: vec![(keys::LISTEN, "127.0.0.1:0".to_owned())] };
    let (_, raw) = Settings::load(&variables.into(), &flags).unwrap();
    let shown = show::to_toml(&raw).replace(&file.display().to_string(), "FILE");
    let json = show::to_json(&raw).to_string();
    for secret in ["hunter2", "aHVudGVy", "c2VjcmV0"] {
        assert!(!shown.contains(secret) && !json.contains(secret), "{secret} is shown");
    }
    let threads = EngineSettings::default().cpu_threads.to_string();
    let shown = shown.replace(&format!("cpu-threads = {threads:<42}"), &format!("cpu-threads = {:<42}", "N"));
    insta::assert_snapshot!("config_show", shown);
    // The output can be read again.
    assert!(toml::from_str::<toml::Table>(&shown.replace("= N ", "= 1 ")).is_ok(), "{shown}");
}

/// Update with `DORMER_RENEW=1 cargo test -p dormer settings_reference`.
#[test]
fn settings_reference_is_made_from_the_table() {
    let page = reference::to_markdown();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/SETTINGS.md");
    if std::env::var_os("DORMER_RENEW").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == page,
        "docs/SETTINGS.md is out of date: run `DORMER_RENEW=1 cargo test -p dormer settings_reference`"
    );
}

/// What users put secrets into: the password and the parameters of an address.
const ADDRESSES_WITH_SECRETS: [&str; 4] = [
    "https://ada:MARKER@127.0.0.1:9/x?password=MARKER&token=MARKER#MARKER",
    "postgresql://ada:MARKER@127.0.0.1:9/d?sslmode=disable",
    "postgresql://127.0.0.1:9/d?user=ada&password=MARKER",
    "ftp://MARKER@h",
];

#[test]
fn no_setting_shows_a_secret_that_is_in_it() {
    let is_text = |key: &&keys::Key| !matches!(key.kind, keys::Kind::Path);
    let shown = |environment: &Environment| match Settings::load(environment, &Flags::default()) {
        Ok((settings, raw)) => {
            [show::to_toml(&raw), show::to_json(&raw).to_string(), settings.notes.join("\n")].concat()
        }
        Err(error) => format!("{} {error:?}", dormer_nix::with_causes(&error)),
    };
    let mut seen = 0;
    for key in KEYS.iter().filter(is_text) {
        let bare = key.secret.then_some("MARKER");
        for value in ADDRESSES_WITH_SECRETS.into_iter().chain(bare) {
            let environment = Environment::from([("HOME", "/home/ada"), (&*key.variable(), value)]);
            let shown = shown(&environment);
            assert!(!shown.contains("MARKER"), "{} = {value}:\n{shown}", key.path);
            seen += 1;
        }
    }
    for key in keys::EDGE_KEYS.iter().filter(is_text) {
        let name = key.path.trim_start_matches("edge.");
        let bare = key.secret.then_some("MARKER");
        for value in ADDRESSES_WITH_SECRETS.into_iter().chain(bare) {
            let name_line = if name == "name" { "" } else { "name = 'r2'\n" };
            let file = format!("[[edge]]\n{name_line}{name} = '{value}'\n");
            let file = STANDARD.encode(file);
            let environment =
                Environment::from([("HOME", "/home/ada"), ("ATTIC_SERVER_CONFIG_BASE64", &*file)]);
            let shown = shown(&environment);
            assert!(!shown.contains("MARKER"), "{} = {value}:\n{shown}", key.path);
            seen += 1;
        }
    }
    assert!(seen > 200, "the tables were empty");
}
