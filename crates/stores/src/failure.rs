//! Error classification: what a failure of the library means, with the status that came over the
//! wire.

use std::error::Error as StdError;
use std::io;

use object_store::Error as StoreError;
use object_store::client::{HttpError, HttpErrorKind};

use crate::Error;
use crate::exchange::Exchange;

/// What was tried, for the message of its failure.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    /// A verb.
    pub(crate) verb: &'static str,
    /// Name of the object; empty for a call that concerns no single object.
    pub(crate) key: &'a str,
    /// Which store.
    pub(crate) store: &'a str,
}

impl Attempt<'_> {
    /// Classifies a failure of a bucket.
    ///
    /// Only the store's own words make an object count as missing. A missing bucket, and a 404 of a
    /// proxy without a backend, say nothing of the object.
    pub(crate) fn failed(&self, error: StoreError, exchange: &Exchange) -> Error {
        match exchange.status {
            Some(404) if has_no_bucket(&error) => self.refused(error),
            Some(404) if !self.key.is_empty() && is_missing(&error) => {
                Error::NotFound { key: self.key.to_owned() }
            }
            // The 404 comes from something on the way: a proxy without a backend, or a service that
            // gives credentials.
            Some(404) => self.unavailable(error),
            _ if is_full(exchange.status, &error) => {
                self.no_space(io::Error::new(io::ErrorKind::StorageFull, error))
            }
            // A store that does not answer in time has too much to do, too.
            None if is_timeout(&error) => self.busy(error, exchange),
            Some(429 | 503) => self.busy(error, exchange),
            // A body that came too slowly, or not whole: AWS says so with a 400.
            Some(400) if is_cut(&error) => self.unavailable(error),
            // 408 is a time-out; 409 is a race that the store lost with itself.
            Some(408 | 409) => self.unavailable(error),
            Some(300..=303 | 305..=308 | 400..=499) => self.refused(error),
            _ if is_without_rights(&error) => self.refused(error),
            _ => self.unavailable(error),
        }
    }

    /// Classifies a failure of a folder, or of a store in memory.
    pub(crate) fn failed_locally(&self, error: StoreError) -> Error {
        if matches!(error, StoreError::NotFound { .. }) {
            return Error::NotFound { key: self.key.to_owned() };
        }
        if is_without_rights(&error) {
            return self.refused(error);
        }
        let kind = causes(&error)
            .find_map(|cause| cause.downcast_ref::<io::Error>())
            .map_or(io::ErrorKind::Other, io::Error::kind);
        let source = io::Error::new(kind, error);
        match kind {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero => {
                self.no_space(source)
            }
            _ => Error::Io { attempt: self.verb, key: self.key.to_owned(), source },
        }
    }

    fn refused(&self, error: StoreError) -> Error {
        Error::Refused {
            attempt: self.verb,
            key: self.key.to_owned(),
            store: self.store.to_owned(),
            source: Box::new(error),
        }
    }

    fn busy(&self, error: StoreError, exchange: &Exchange) -> Error {
        Error::Busy {
            attempt: self.verb,
            key: self.key.to_owned(),
            retry_after: exchange.retry_after,
            source: Box::new(error),
        }
    }

    fn unavailable(&self, error: StoreError) -> Error {
        Error::Unavailable { attempt: self.verb, key: self.key.to_owned(), source: Box::new(error) }
    }

    fn no_space(&self, source: io::Error) -> Error {
        Error::NoSpace { attempt: self.verb, key: self.key.to_owned(), source }
    }
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn has_no_bucket(error: &StoreError) -> bool {
    contains(error, &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"])
}

/// Whether the store itself says that the object is not there. Only that may make a pack count as
/// lost.
fn is_missing(error: &StoreError) -> bool {
    // S3 and Google's XML; Azure; Google's JSON.
    matches!(error, StoreError::NotFound { .. })
        && contains(error, &["NoSuchKey", "BlobNotFound", "No such object", "NoSuchObject"])
}

fn is_cut(error: &StoreError) -> bool {
    contains(error, &["<Code>RequestTimeout<", "<Code>IncompleteBody<"])
}

/// A quota or a disk is full, and waiting does not help. Stores disagree on the status, so the code
/// counts.
fn is_full(status: Option<u16>, error: &StoreError) -> bool {
    status == Some(507)
        || (matches!(status, Some(400..=599))
            && contains(error, &["<Code>QuotaExceeded<", "<Code>XMinioStorageFull<"]))
}

fn contains(error: &StoreError, codes: &[&str]) -> bool {
    let text = error.to_string();
    codes.iter().any(|code| text.contains(code))
}

/// There are no credentials, or none that could be read.
fn is_without_rights(error: &StoreError) -> bool {
    matches!(error, StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. })
}

fn is_timeout(error: &StoreError) -> bool {
    causes(error)
        .find_map(|cause| cause.downcast_ref::<HttpError>())
        .is_some_and(|error| error.kind() == HttpErrorKind::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures_of_a_folder() {
        let attempt = Attempt { verb: "write", key: "a", store: "folder /a" };
        let failed = |code| {
            let source = Box::new(io::Error::from_raw_os_error(code));
            attempt.failed_locally(StoreError::Generic { store: "LocalFileSystem", source })
        };
        for code in [28, 122] {
            assert!(matches!(failed(code), Error::NoSpace { attempt: "write", .. }), "{code}");
        }
        for code in [5, 13] {
            assert!(matches!(failed(code), Error::Io { .. }), "{code}");
        }
    }
}
