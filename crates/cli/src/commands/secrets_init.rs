//! `dormer secrets init`.
//!
//! The manifest is for a pipe into a program that encrypts it. So standard output contains nothing
//! else, and nothing is written to a file here.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use dormer_api::Secret;
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result};

const DATABASE_URL: &str = "database-url";
const POSTGRES_PASSWORD: &str = "postgres-password";
const S3_KEY_ID: &str = "s3-access-key-id";
const S3_KEY: &str = "s3-secret-access-key";

/// The keys that `--without` takes: CloudNativePG brings the database's, and roles or a claim the
/// store's.
const OPTIONAL_KEYS: [&str; 4] = [DATABASE_URL, POSTGRES_PASSWORD, S3_KEY_ID, S3_KEY];

/// Print a Kubernetes Secret with new secrets for a server
///
/// The Secret has every key that a server in deploy/kubernetes uses: the master key, the token
/// secret, a password and address for the PostgreSQL of the component `postgres`, and keys for the
/// store of `storage-seaweedfs` or `storage-garage`. A publisher needs the keys of its edge too, by
/// `--from-file`. Each call makes new secrets. Encrypt them before they reach a disk:
///
///   dormer secrets init --namespace dormer-lab | kubeseal --format yaml > sealed-secret.yaml
///   dormer secrets init --namespace dormer-lab |
///     sops encrypt --filename-override secret.sops.yaml > secret.sops.yaml
///
/// Your own database and store, and the keys of an edge:
///
///   dormer secrets init --from-file database-url=url.txt --from-file s3-access-key-id=id.txt
///     --from-file s3-secret-access-key=key.txt --from-file edge-access-key-id=edge-id.txt
///     --from-file edge-secret-access-key=edge-key.txt
///
/// A pod that has a role needs no keys for its store, and keys would take precedence:
///
///   dormer secrets init --from-file database-url=url.txt --without s3-access-key-id
///     --without s3-secret-access-key
///
/// Keep copies of master-key and token-secret in a safe: nothing else can restore the signing keys
/// of the caches.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SecretsInitArgs {
    /// The Secret's name
    #[arg(long, value_name = "NAME", default_value = "dormer", value_parser = parse_name)]
    name: String,
    /// The namespace that the server runs in
    #[arg(long, value_name = "NAMESPACE", default_value = "dormer", value_parser = parse_name)]
    namespace: String,
    /// Take the value of KEY from a file, without its last line end
    #[arg(long, value_name = "KEY=FILE", value_parser = parse_from_file)]
    from_file: Vec<(String, PathBuf)>,
    /// Leave out KEY
    #[arg(long, value_name = "KEY", value_parser = parse_optional_key)]
    without: Vec<String>,
}

/// A name as Kubernetes takes it: no other sign could end up in the YAML.
fn parse_name(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_name { Ok(text.to_owned()) } else { Err("a name has a-z, 0-9 and - only".to_owned()) }
}

fn parse_from_file(text: &str) -> Result<(String, PathBuf), String> {
    let (key, path) = text.split_once('=').ok_or("not of the form KEY=FILE")?;
    Ok((parse_name(key)?, path.into()))
}

/// A key that some server can do without. No server starts without the others.
fn parse_optional_key(text: &str) -> Result<String, String> {
    if OPTIONAL_KEYS.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("a server may do without these: {}", OPTIONAL_KEYS.join(", ")))
}

pub(super) fn run(args: SecretsInitArgs, context: &Context) -> Result<()> {
    let mut values = new_values();
    for (key, path) in args.from_file {
        let failed = |source| Error::Io { attempt: format!("read {}", path.display()), source };
        let text = fs::read_to_string(&path).map_err(failed)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        values.insert(key.clone(), Secret::new(text.strip_suffix('\r').unwrap_or(text)));
        if key == DATABASE_URL {
            // Another database has a password of its own.
            values.remove(POSTGRES_PASSWORD);
        }
    }
    for key in args.without {
        values.remove(&key);
    }
    let printer = &context.printer;
    if printer.json {
        let values: BTreeMap<_, _> = values.iter().map(|(key, value)| (key, value.expose())).collect();
        return printer.message(&json!({
            "message_type": "secrets", "name": args.name, "namespace": args.namespace, "values": values,
        }));
    }
    printer.data_lines(manifest(&args.name, &args.namespace, &values).trim_end())
}

/// Every key of base/secret.template.yaml that a server needs, with a fresh value.
fn new_values() -> BTreeMap<String, Secret> {
    let digits_64 = || format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    let password = digits_64();
    let url = format!("postgresql://dormer:{password}@postgres/dormer?sslmode=disable");
    let token_secret = STANDARD.encode([rand::random::<[u8; 32]>(), rand::random()].concat());
    [
        (DATABASE_URL, url),
        (POSTGRES_PASSWORD, password),
        ("master-key", STANDARD.encode(rand::random::<[u8; 32]>())),
        ("token-secret", token_secret),
        // The form that Garage demands. Other stores take any.
        (S3_KEY_ID, format!("GK{:024x}", rand::random::<u128>() >> 32)),
        (S3_KEY, digits_64()),
    ]
    .map(|(key, value)| (key.to_owned(), Secret::new(value)))
    .into()
}

fn manifest(name: &str, namespace: &str, values: &BTreeMap<String, Secret>) -> String {
    // A text of JSON is one of YAML too.
    let line =
        |(key, value): (&String, &Secret)| format!("  {key}: {}\n", serde_json::Value::from(value.expose()));
    let lines: Vec<String> = values.iter().map(line).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: \"{name}\"\n  namespace: \"{namespace}\"\ntype: \
         Opaque\nstringData:\n{}",
        lines.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_makes_other_secrets_of_the_right_form() {
        let (one, other) = (new_values(), new_values());
        assert!(one.iter().all(|(key, value)| value.expose() != other[key].expose()));
        let bytes = |key: &str| STANDARD.decode(one[key].expose()).unwrap();
        assert_eq!((bytes("master-key").len(), bytes("token-secret").len()), (32, 64));
        assert!(one[DATABASE_URL].expose().contains(&format!(":{}@", one[POSTGRES_PASSWORD].expose())));
        // Garage: GK and 24 digits, and 64.
        assert_eq!(one["s3-access-key-id"].expose().len(), 26);
        assert_eq!(one["s3-secret-access-key"].expose().len(), 64);
    }

    #[test]
    fn only_keys_that_a_server_can_do_without_are_left_out() {
        let values = new_values();
        for key in OPTIONAL_KEYS {
            assert!(values.contains_key(key) && parse_optional_key(key).is_ok(), "{key}");
        }
        for key in ["master-key", "token-secret", "s3-access-key", ""] {
            assert!(parse_optional_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn values_cannot_leave_their_line() {
        let values = BTreeMap::from([("k".to_owned(), Secret::new("a: \"b\"\n  c: d\u{1}"))]);
        let yaml = manifest("dormer", "lab", &values);
        assert_eq!(yaml.lines().last(), Some(r#"  k: "a: \"b\"\n  c: d\u0001""#));
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        assert!(parse_name("dormer-lab").is_ok());
        for wrong in ["", "-a", "a-", "Dormer", "a\nb", "a: b", "a.b"] {
            assert!(parse_name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_from_file("a=b=c"), Ok(("a".to_owned(), "b=c".into())));
        assert!(parse_from_file("ab").is_err());
    }
}
