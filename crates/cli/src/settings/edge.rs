//! Edge targets: each `[[edge]]` table in the settings file is its own set of settings.
//!
//! Variables can set a target's keys too, with the target's name in the middle:
//! `DORMER_EDGE_R2_CREDENTIALS_SECRET_ACCESS_KEY` sets that key of the target `r2`. Only the file
//! names the targets.

use std::path::PathBuf;

use dormer_api::RedactedUrl;
use dormer_publish::{REVOKED_BYTES_MAX, TargetSettings};
use dormer_stores::{RemoteSettings, RetryPolicy};

use super::error::{Error, Result};
use super::keys::{self, EDGE_KEYS};
use super::origin::Origin;
use super::raw::{Environment, Raw, Value};
use super::storage::{StoreKeys, remote_store};
use super::values::{boolean, count, duration, integer, list, path, size, text, wrong};

/// A target: what to publish, and where.
#[derive(Debug, Clone)]
pub(crate) struct EdgeTarget {
    pub(crate) target: TargetSettings,
    pub(crate) place: EdgePlace,
}

/// The place of a target.
#[derive(Debug, Clone)]
pub(crate) enum EdgePlace {
    Folder(PathBuf),
    Bucket(Box<RemoteSettings>, RetryPolicy),
}

const EDGE: StoreKeys = StoreKeys {
    section: "edge",
    kind: keys::EDGE_TYPE,
    region: keys::EDGE_REGION,
    bucket: keys::EDGE_BUCKET,
    endpoint: keys::EDGE_ENDPOINT,
    prefix: keys::EDGE_PREFIX,
    path_style: keys::EDGE_PATH_STYLE,
    ca_file: keys::EDGE_CA_FILE,
    access_key_id: keys::EDGE_ACCESS_KEY_ID,
    secret_access_key: keys::EDGE_SECRET_ACCESS_KEY,
    connect_timeout: keys::EDGE_CONNECT_TIMEOUT,
    timeout: keys::EDGE_TIMEOUT,
    retry_time: keys::EDGE_RETRY_TIME,
};

/// Reads the `[[edge]]` tables and the variables of each.
pub(super) fn read_targets(
    value: &toml::Value,
    origin: &Origin,
    environment: &Environment,
) -> Result<Vec<Raw>> {
    let not_tables = || Error::Value {
        key: "edge",
        origin: origin.clone(),
        problem: "expects tables, each under [[edge]]".to_owned(),
    };
    let tables = value.as_array().ok_or_else(not_tables)?;
    let mut targets: Vec<Raw> = Vec::new();
    for table in tables {
        let table = table.as_table().ok_or_else(not_tables)?;
        let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned();
        let target = read_target(table, &name, origin, environment)
            .map_err(|source| edge_target_error(&name, source))?;
        if targets.iter().any(|other| text(other, &keys::EDGE_NAME) == name) {
            let problem = format!("two targets are named '{name}'");
            return Err(wrong(&target, &keys::EDGE_NAME, problem));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn read_target(table: &toml::Table, name: &str, origin: &Origin, environment: &Environment) -> Result<Raw> {
    let problem = || "expects a name: letters, digits and dashes, 50 at most".to_owned();
    if !is_name(name) {
        return Err(Error::Value { key: keys::EDGE_NAME.path, origin: origin.clone(), problem: problem() });
    }
    let mut target = Raw::with_defaults(EDGE_KEYS)?;
    target.read_section("edge", table, origin, EDGE_KEYS)?;
    for key in EDGE_KEYS {
        let variable = variable(name, key);
        if let Some(value) = environment.text(&variable)? {
            target.set_text(key, value, &Origin::Variable(variable))?;
        }
    }
    // A variable may have replaced it.
    if !is_name(text(&target, &keys::EDGE_NAME)) {
        return Err(wrong(&target, &keys::EDGE_NAME, problem()));
    }
    Ok(target)
}

/// The name of a target may be wrong, and so may hold anything.
fn edge_target_error(name: &str, source: Error) -> Error {
    Error::EdgeTarget { name: RedactedUrl::new(name).to_string(), source: Box::new(source) }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=50).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-')
}

/// The variable for a target's key.
fn variable(name: &str, key: &keys::Key) -> String {
    let rest = key.path.strip_prefix("edge.").unwrap_or(key.path);
    format!("{}EDGE_{name}_{rest}", keys::VARIABLE_PREFIX).replace(['.', '-'], "_").to_ascii_uppercase()
}

/// Names of all variables for these targets.
pub(super) fn variables(targets: &[Raw]) -> Vec<String> {
    let of = |target: &Raw| {
        let name = text(target, &keys::EDGE_NAME).to_owned();
        EDGE_KEYS.iter().map(move |key| variable(&name, key)).collect::<Vec<_>>()
    };
    targets.iter().flat_map(of).collect()
}

/// The keys that say where a target is.
const PLACE_KEYS: [&keys::Key; 5] =
    [&keys::EDGE_TYPE, &keys::EDGE_PATH, &keys::EDGE_BUCKET, &keys::EDGE_PREFIX, &keys::EDGE_ENDPOINT];

/// Checks settings that depend on each other.
pub(super) fn resolve_targets(targets: &[Raw], notes: &mut Vec<String>) -> Result<Vec<EdgeTarget>> {
    let mut resolved = Vec::new();
    for (number, raw) in targets.iter().enumerate() {
        let name = text(raw, &keys::EDGE_NAME).to_owned();
        let is_same = |other: &&Raw| PLACE_KEYS.iter().all(|key| value(raw, key) == value(other, key));
        let target = match targets[..number].iter().find(is_same) {
            // Each would take the other's files for strangers, and delete them.
            Some(other) => {
                let other = text(other, &keys::EDGE_NAME);
                let problem =
                    format!("'{other}' has the same place; give each target its own prefix or path");
                Err(wrong(raw, &keys::EDGE_NAME, problem))
            }
            None => resolve_target(raw, notes),
        };
        resolved.push(target.map_err(|source| edge_target_error(&name, source))?);
    }
    Ok(resolved)
}

fn value<'a>(raw: &'a Raw, key: &keys::Key) -> Option<&'a Value> {
    raw.find(key).map(|setting| &setting.value)
}

fn resolve_target(raw: &Raw, notes: &mut Vec<String>) -> Result<EdgeTarget> {
    let place = match remote_store(raw, &EDGE, notes)? {
        Some((store, retries)) => EdgePlace::Bucket(Box::new(store), retries),
        None if raw.find(&keys::EDGE_PATH).is_some() => EdgePlace::Folder(path(raw, &keys::EDGE_PATH)),
        None => return Err(wrong(raw, &keys::EDGE_TYPE, "needs edge.path too".to_owned())),
    };
    let caches = match raw.find(&keys::EDGE_CACHES) {
        Some(_) => list(raw, &keys::EDGE_CACHES),
        None => Vec::new(),
    };
    if caches.is_empty() {
        let problem = "expects the caches to publish, such as [\"main\", \"team-*\"]".to_owned();
        return Err(wrong(raw, &keys::EDGE_CACHES, problem));
    }
    let caches = caches
        .iter()
        .map(|name| {
            name.parse().map_err(|_| {
                wrong(
                    raw,
                    &keys::EDGE_CACHES,
                    format!("'{}' is not the name of a cache or a pattern", RedactedUrl::new(name)),
                )
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let revoked_tokens = list(raw, &keys::EDGE_REVOKED_TOKENS);
    let revoked_bytes: usize = revoked_tokens.iter().map(|id| id.len() + 3).sum();
    if revoked_bytes > REVOKED_BYTES_MAX {
        let problem = format!(
            "has {revoked_bytes} bytes, and an edge reads {REVOKED_BYTES_MAX} at most; change the key instead, or leave \
             out tokens that have ended"
        );
        return Err(wrong(raw, &keys::EDGE_REVOKED_TOKENS, problem));
    }
    let target = TargetSettings {
        name: text(raw, &keys::EDGE_NAME).to_owned(),
        caches,
        listings: boolean(raw, &keys::EDGE_LISTINGS),
        logs: boolean(raw, &keys::EDGE_LOGS),
        traces: boolean(raw, &keys::EDGE_TRACES),
        debug_info: boolean(raw, &keys::EDGE_DEBUG_INFO),
        recompress_level: match integer(raw, &keys::EDGE_RECOMPRESS_LEVEL) {
            0 => None,
            level => Some(i32::try_from(level).expect("at most 19")),
        },
        nar_grace: duration(raw, &keys::EDGE_NAR_GRACE),
        settle: duration(raw, &keys::EDGE_SETTLE_TIME),
        revoked_tokens,
        concurrency: count(integer(raw, &keys::EDGE_CONCURRENCY).unsigned_abs()),
        bandwidth: size(raw, &keys::EDGE_BANDWIDTH),
        memory_bytes: size(raw, &keys::EDGE_MEMORY),
        request_timeout: duration(raw, &keys::EDGE_TIMEOUT),
        lease: duration(raw, &keys::EDGE_LEASE),
        turn: TargetSettings::default().turn,
    };
    Ok(EdgeTarget { target, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_written_in_the_table_are_those_of_the_publisher() {
        let table: toml::Table =
            "name = 'x'\ntype = 'local'\npath = '/x'\ncaches = ['main']".parse().unwrap();
        let raw = read_target(&table, "x", &Origin::Default, &Environment::default()).unwrap();
        let ours = resolve_target(&raw, &mut Vec::new()).unwrap().target;
        let theirs = TargetSettings {
            name: ours.name.clone(),
            caches: ours.caches.clone(),
            ..TargetSettings::default()
        };
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    fn resolved(tables: &str) -> Result<Vec<EdgeTarget>> {
        let tables: toml::Table = tables.parse().unwrap();
        let read = read_targets(&tables["edge"], &Origin::Default, &Environment::default()).unwrap();
        resolve_targets(&read, &mut Vec::new())
    }

    #[test]
    fn two_targets_have_two_places() {
        let folder = |name: &str, path: &str| {
            format!("[[edge]]\nname = '{name}'\ntype = 'local'\npath = '{path}'\ncaches = ['main']\n")
        };
        assert_eq!(resolved(&format!("{}{}", folder("a", "/a"), folder("b", "/b"))).unwrap().len(), 2);
        let refused = resolved(&format!("{}{}", folder("a", "/a"), folder("b", "/a"))).unwrap_err();
        let Error::EdgeTarget { name, source } = refused else { panic!("{refused}") };
        assert!(name == "b" && source.to_string().contains("'a' has the same place"), "{source}");
    }

    #[test]
    fn revoked_tokens_fit_the_document_that_an_edge_reads() {
        let with = |ids: usize| {
            let ids = vec!["'0123456789abcdef0123456789abcdef0123'"; ids].join(", ");
            format!(
                "[[edge]]\nname = 'a'\ntype = 'local'\npath = '/a'\ncaches = ['main']\nrevoked-tokens = [{ids}]"
            )
        };
        assert!(resolved(&with(13_000)).is_ok());
        let refused = resolved(&with(14_000)).unwrap_err();
        let Error::EdgeTarget { source, .. } = refused else { panic!("{refused}") };
        assert!(source.to_string().contains("an edge reads 524288 at most"), "{source}");
    }

    #[test]
    fn a_targets_keys_have_variables_with_its_name() {
        assert_eq!(
            variable("my-r2", &keys::EDGE_SECRET_ACCESS_KEY),
            "DORMER_EDGE_MY_R2_CREDENTIALS_SECRET_ACCESS_KEY"
        );
        assert_eq!(variable("a", &keys::EDGE_NAR_GRACE), "DORMER_EDGE_A_NAR_GRACE");
    }
}
