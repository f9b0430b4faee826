//! Typed access to checked values, and the error for a value that does not fit the others.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::{RedactedUrl, Secret};

use super::error::{Error, Result};
use super::keys::Key;
use super::origin::Origin;
use super::raw::{Raw, Value};

// The first step checked every value against its key's kind, so a value of another kind is a bug in
// the table.
macro_rules! value_of {
    ($raw:expr, $key:expr, $variant:path) => {
        match $raw.find($key).map(|setting| &setting.value) {
            Some($variant(value)) => value,
            other => unreachable!("{} is {other:?}", $key.path),
        }
    };
}

pub(super) fn origin(raw: &Raw, key: &Key) -> Origin {
    raw.find(key).map_or(Origin::Default, |setting| setting.origin.clone())
}

pub(super) fn wrong(raw: &Raw, key: &Key, problem: String) -> Error {
    Error::Value { key: key.path, origin: origin(raw, key), problem }
}

pub(super) fn base64(raw: &Raw, key: &Key) -> Result<Option<Vec<u8>>> {
    let Some(text) = optional_text(raw, key) else { return Ok(None) };
    // Wrapped secrets are common: `base64` breaks lines after 76 characters.
    let joined = Secret::new(text.split_ascii_whitespace().collect::<String>());
    let bytes = STANDARD.decode(joined.expose());
    bytes.map(Some).map_err(|_| wrong(raw, key, "is not base64".to_owned()))
}

pub(super) fn text<'a>(raw: &'a Raw, key: &Key) -> &'a str {
    value_of!(raw, key, Value::Text)
}

pub(super) fn optional_text(raw: &Raw, key: &Key) -> Option<String> {
    raw.find(key).map(|_| text(raw, key).to_owned())
}

/// An address that names are appended to: it ends with a slash.
pub(super) fn base_url(raw: &Raw, key: &Key) -> Option<RedactedUrl> {
    optional_text(raw, key).map(|url| RedactedUrl::new(format!("{}/", url.trim_end_matches('/'))))
}

pub(super) fn path(raw: &Raw, key: &Key) -> PathBuf {
    PathBuf::from(text(raw, key))
}

pub(super) fn list(raw: &Raw, key: &Key) -> Vec<String> {
    value_of!(raw, key, Value::List).clone()
}

pub(super) fn size(raw: &Raw, key: &Key) -> u64 {
    *value_of!(raw, key, Value::Size)
}

pub(super) fn boolean(raw: &Raw, key: &Key) -> bool {
    *value_of!(raw, key, Value::Bool)
}

pub(super) fn integer(raw: &Raw, key: &Key) -> i64 {
    *value_of!(raw, key, Value::Integer)
}

pub(super) fn duration(raw: &Raw, key: &Key) -> Duration {
    *value_of!(raw, key, Value::Duration)
}

/// Numbers in the table are far below the word size of any supported machine.
pub(super) fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
