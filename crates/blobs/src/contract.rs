//! What every object store must do, and nothing more.
//!
//! - `put` is atomic and durable: after `Ok` the whole object survives a crash; after `Err` or a
//!   crash there is the whole object or none, never a part. Names are never used twice, so nothing
//!   is ever overwritten with other bytes.
//! - No method relies on conditional requests: S3 servers differ too much in them.
//! - Convenience and retries live in wrappers.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_format::PackId;

use crate::{Counters, Error, Result};

/// Every kind of object that Dormer stores. Nobody else formats a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlobKey {
    /// A pack: `packs/<2 hex>/<32 hex>.pack`.
    Pack(PackId),
}

impl BlobKey {
    /// Reads a name back; `None` for what is no name of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let hex = name.rsplit('/').next()?.strip_suffix(".pack")?;
        let key = Self::Pack(hex.parse().ok()?);
        (key.to_string() == name).then_some(key)
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlobKey::Pack(id) => {
                let hex = id.to_string();
                write!(f, "packs/{}/{hex}.pack", &hex[..2])
            }
        }
    }
}

/// An object store.
#[async_trait]
pub trait Blobs: Send + Sync + fmt::Debug + 'static {
    /// Stores an object made of these parts, one after the other.
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()>;
    /// Reads a non-empty range, exactly. `NotFound` without the object, `Truncated` if it ends
    /// before the range does.
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes>;
    /// Reads a non-empty range, or what there is of it: less if the object ends before the range
    /// does. `NotFound` without the object, `Truncated` if it ends before the range begins.
    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let size = self.head(key).await?;
        if size <= range.start {
            return Err(Error::Truncated { key: key.to_string() });
        }
        self.get_range(key, range.start..range.end.min(size)).await
    }
    /// Size of an object. `NotFound` without it.
    async fn head(&self, key: &BlobKey) -> Result<u64>;
    /// Deletes an object. Deleting what is not there is `Ok`.
    async fn delete(&self, key: &BlobKey) -> Result<()>;
    /// Names of all objects, in no order. For checks and repairs only: nothing on a hot path lists.
    async fn list(&self) -> Result<Vec<BlobKey>>;

    /// Whether a call is a request over a network. Then few large reads are better than many small
    /// ones, even if nobody needs some of the bytes.
    fn is_remote(&self) -> bool {
        false
    }

    /// What was asked of it so far, if calls are requests over a network.
    fn counters(&self) -> Option<&Counters> {
        None
    }
}
