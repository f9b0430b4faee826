//! Servers that the tests of this program share, and stores on these servers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, StoreBlobs};
use dormer_format::PackId;
use dormer_stores::{CallPolicy, Credentials, OpenError, RemoteKind, RemoteSettings, RetryPolicy};
use dormer_testkit::services::{CephRgw, S3Access, SeaweedFs};
use rand::random;

/// One server for all tests that do not stop it.
pub(crate) fn seaweedfs() -> &'static SeaweedFs {
    static SERVER: OnceLock<SeaweedFs> = OnceLock::new();
    SERVER.get_or_init(SeaweedFs::start)
}

/// One server for all tests that do not stop it.
pub(crate) fn ceph() -> &'static CephRgw {
    static SERVER: OnceLock<CephRgw> = OnceLock::new();
    SERVER.get_or_init(CephRgw::start)
}

/// How to reach a bucket of a server.
pub(crate) fn settings(access: &S3Access, bucket: &str) -> RemoteSettings {
    RemoteSettings {
        kind: RemoteKind::S3,
        bucket: bucket.to_owned(),
        prefix: String::new(),
        endpoint: Some(access.endpoint.clone()),
        region: Some(access.region.clone()),
        credentials: Some(Credentials {
            access_key_id: access.access_key_id.clone(),
            secret_access_key: access.secret_access_key.clone(),
        }),
        path_style: true,
        ca_file: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_mins(1),
    }
}

/// A store as the server has it, and the same store without retries and limit. Both count together.
pub(crate) fn reliable(settings: &RemoteSettings) -> (Arc<dyn Blobs>, StoreBlobs) {
    let policy = CallPolicy { retries: RetryPolicy::default(), requests_max: Some(64), turn_wait: None };
    let store = StoreBlobs::open(settings, &policy).unwrap();
    let bare = StoreBlobs::new(store.store().bare());
    (Arc::new(store), bare)
}

/// A store without retries and limit.
pub(crate) fn bare(settings: &RemoteSettings) -> StoreBlobs {
    try_open(settings).unwrap()
}

/// A store without retries and limit, if the settings fit together.
pub(crate) fn try_open(settings: &RemoteSettings) -> Result<StoreBlobs, OpenError> {
    StoreBlobs::open(settings, &CallPolicy::once())
}

pub(crate) fn fresh_key() -> BlobKey {
    BlobKey::Pack(PackId::from_bytes(random()))
}

/// Bytes that differ at every place, so that a shifted read shows.
pub(crate) fn pattern(len: usize) -> Bytes {
    (0..len).map(|place| (place.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect()
}
