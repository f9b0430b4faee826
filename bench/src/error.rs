//! One error for the whole program. A benchmark that cannot run says where it stopped, and no code
//! handles the error further.

use std::error::Error as StdError;

/// The result of every fallible function here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A failed attempt and its cause.
#[derive(Debug)]
pub(crate) struct Error {
    attempt: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure without a deeper cause.
    pub(crate) fn new(attempt: impl Into<String>) -> Self {
        Self { attempt: attempt.into(), source: None }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.attempt)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Names the attempt when an error passes through.
pub(crate) trait Context<T> {
    fn context(self, attempt: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, attempt: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error { attempt: attempt(), source: Some(Box::new(source)) })
    }
}
