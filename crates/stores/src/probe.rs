//! Tests what a key may do in a bucket. `dormer doctor` uses it; the server does not.

use std::time::SystemTime;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    Error as StoreError, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
};
use rand::random;

use crate::exchange::{Exchange, watched};
use crate::store::Store;
use crate::{Error, Result};

/// Where probes lie, apart from everything else.
const FOLDER: &str = "doctor";

/// Content of a probe.
const CONTENT: &[u8] = b"dormer doctor: an object to try things out with; it may be deleted";

/// What the server does in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Storing an object.
    Put,
    /// Reading a part of an object.
    GetRange,
    /// Finding an object in a listing.
    List,
    /// Deleting an object.
    Delete,
}

impl Right {
    /// A verb.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::GetRange => "get a range",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// What a probe found.
#[derive(Debug)]
pub struct Probe {
    /// What was tried, in this order, and the outcome. Rights that need an object are not tried
    /// without one, and nothing more is tried with a store that does not answer.
    pub rights: Vec<(Right, Result<()>)>,
    /// Whether a PUT on condition that there is no such object is refused when there is one.
    /// Nothing here relies on it.
    pub refuses_conditional_put: Option<bool>,
    /// The store's clock, to the second.
    pub date: Option<SystemTime>,
}

impl Store {
    /// Tries out what the server does in a bucket, each right once. The object has a name of its
    /// own and is deleted again.
    pub async fn probe(&self) -> Probe {
        let folder = self.path(FOLDER);
        let path = folder.clone().join(format!("{:032x}", random::<u128>()));
        let mut probe = Probe { rights: Vec::new(), refuses_conditional_put: None, date: None };
        let stored = self.try_put(&path, &mut probe).await;
        if let [(_, Err(error))] = &probe.rights[..]
            && !matches!(error, Error::Refused { .. })
        {
            return probe;
        }
        if stored {
            self.try_get(&path, &mut probe).await;
        }
        self.try_list(&folder, stored.then_some(&path), &mut probe).await;
        if stored {
            let again = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let again = self.parts().store.put_opts(&path, PutPayload::from_static(CONTENT), again).await;
            probe.refuses_conditional_put = match again {
                Ok(_) => Some(false),
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Some(true),
                Err(_) => None,
            };
            self.try_delete(&path, &mut probe).await;
        }
        probe
    }

    async fn try_put(&self, path: &Path, probe: &mut Probe) -> bool {
        let payload = PutPayload::from_static(CONTENT);
        let (outcome, exchange) =
            watched(self.parts().store.put_opts(path, payload, PutOptions::default())).await;
        probe.date = exchange.date;
        let outcome = outcome.map(drop).map_err(|error| self.probe_failed("write", path, error, &exchange));
        let is_stored = outcome.is_ok();
        probe.rights.push((Right::Put, outcome));
        is_stored
    }

    async fn try_get(&self, path: &Path, probe: &mut Probe) {
        let (read, exchange) = watched(self.parts().store.get_range(path, 7..13)).await;
        let outcome = match read {
            Ok(bytes) if bytes == Bytes::from_static(&CONTENT[7..13]) => Ok(()),
            Ok(_) => Err(Error::Truncated { key: path.to_string() }),
            Err(error) => Err(self.probe_failed("read", path, error, &exchange)),
        };
        probe.rights.push((Right::GetRange, outcome));
    }

    /// Lists the folder of probes only, so that a full bucket costs no more than an empty one.
    async fn try_list(&self, folder: &Path, wanted: Option<&Path>, probe: &mut Probe) {
        let listing = self.parts().store.list(Some(folder)).map_ok(|entry| entry.location);
        let (listed, exchange) = watched(listing.try_collect::<Vec<_>>()).await;
        let outcome = match listed {
            Ok(paths) if wanted.is_none_or(|path| paths.contains(path)) => Ok(()),
            Ok(_) => Err(Error::NotFound { key: folder.to_string() }),
            Err(error) => Err(self.probe_failed("list", folder, error, &exchange)),
        };
        probe.rights.push((Right::List, outcome));
    }

    async fn try_delete(&self, path: &Path, probe: &mut Probe) {
        let (deleted, exchange) = watched(self.parts().store.delete(path)).await;
        let outcome = deleted.map_err(|error| self.probe_failed("delete", path, error, &exchange));
        probe.rights.push((Right::Delete, outcome));
    }

    fn probe_failed(&self, verb: &'static str, path: &Path, error: StoreError, exchange: &Exchange) -> Error {
        self.failed(verb, path.as_ref(), error, exchange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_tries_everything_and_leaves_nothing() {
        let store = Store::in_memory();
        let probe = store.probe().await;
        let tried: Vec<Right> = probe.rights.iter().map(|(right, _)| *right).collect();
        assert_eq!(tried, [Right::Put, Right::GetRange, Right::List, Right::Delete]);
        assert!(probe.rights.iter().all(|(_, outcome)| outcome.is_ok()), "{probe:?}");
        assert_eq!(probe.refuses_conditional_put, Some(true));
        let left: Vec<_> = store.list("").try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}
