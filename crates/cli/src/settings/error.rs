//! Why settings cannot be used. Every message names the key and the place that set it. No message
//! shows a secret's value.

use std::path::PathBuf;

use super::origin::Origin;

/// Result of reading settings.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to read settings file {}", path.display())]
    ReadFile { path: PathBuf, source: std::io::Error },
    #[error("{variable} is not base64")]
    NotBase64 { variable: &'static str, source: base64::DecodeError },
    #[error("{variable} does not hold text")]
    NotText { variable: String },
    #[error("{place} is not TOML: line {line}: {message}")]
    Syntax { place: String, line: usize, message: String },
    #[error("unknown key '{path}' in {place}")]
    UnknownKey { path: String, place: String, nearest: Option<String> },
    #[error("{key} ({origin}): {problem}")]
    Value { key: &'static str, origin: Origin, problem: String },
    #[error("{first} and {second} are both set ({origin}); only one key can sign tokens")]
    SeveralSigningKeys { first: &'static str, second: &'static str, origin: Origin },
    #[error("edge target '{name}': {source}")]
    EdgeTarget { name: String, source: Box<Error> },
    #[error("no folder for data: neither XDG_DATA_HOME nor HOME is set")]
    NoDataDir,
}

impl Error {
    /// What the user can do about the error.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => Some(format!("did you mean '{nearest}'?")),
            Self::UnknownKey { nearest: None, .. } => {
                Some("`dormer config reference` explains every key".to_owned())
            }
            Self::NoDataDir => Some("say where to keep data: --data-dir DIR".to_owned()),
            Self::EdgeTarget { source, .. } => source.hint(),
            _ => None,
        }
    }
}
