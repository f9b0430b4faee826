//! Inspects a running server from outside: reads its database and its store directly.
//!
//! Calls block. Use them while the server is idle, because they may see a part of a running change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, LocalBlobs, StoreBlobs};
use dormer_index::{Inventory, PostgresIndex, PostgresOptions, SqliteIndex, SqliteOptions};
use dormer_nix::NarHash;
use dormer_stores::{CallPolicy, Credentials, RemoteKind, RemoteSettings};
use tokio::runtime::Runtime;

use crate::invariants::{Leaks, check_invariants, find_leaks};
use crate::services::S3Access;

/// A database and a store.
#[derive(Debug)]
pub struct Inspection {
    database: Database,
    blobs: Arc<dyn Blobs>,
    runtime: Runtime,
}

#[derive(Debug)]
enum Database {
    Postgres(String),
    Sqlite(PathBuf),
}

impl Inspection {
    /// Inspects an installation on PostgreSQL and S3.
    pub fn of_services(database_url: &str, access: &S3Access, bucket: &str) -> Self {
        let settings = RemoteSettings {
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
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_mins(1),
        };
        let blobs = StoreBlobs::open(&settings, &CallPolicy::once()).expect("the settings are whole");
        Self::new(Database::Postgres(database_url.to_owned()), Arc::new(blobs))
    }

    /// Inspects the embedded default in this data folder.
    pub fn of_folder(data_folder: &Path) -> Self {
        let blobs = LocalBlobs::open_existing(data_folder.join("storage")).expect("there is a store");
        Self::new(Database::Sqlite(data_folder.join("index.sqlite")), Arc::new(blobs))
    }

    fn new(database: Database, blobs: Arc<dyn Blobs>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self { database, blobs, runtime: runtime.expect("a runtime starts") }
    }

    /// Checks invariants 1 to 5 of docs/STORAGE.md over the whole store, reads back and verifies
    /// every NAR, and counts what a crash left. Panics with the broken invariant.
    pub fn check(&self, acknowledged: &[NarHash]) -> Leaks {
        self.runtime.block_on(async {
            let inventory = self.inventory().await;
            let leaks =
                find_leaks(&inventory, &*self.blobs).await.unwrap_or_else(|broken| panic!("{broken}"));
            let broken = check_invariants(inventory, &*self.blobs, acknowledged, &[]).await;
            let lines: Vec<String> = broken.iter().map(ToString::to_string).collect();
            assert!(lines.is_empty(), "{}", lines.join("\n"));
            leaks
        })
    }

    /// Every object in the store, largest first.
    pub fn packs(&self) -> Vec<(BlobKey, u64)> {
        self.runtime.block_on(async {
            let mut packs = Vec::new();
            for key in self.blobs.list().await.expect("the store lists") {
                packs.push((key, self.blobs.head(&key).await.expect("the object exists")));
            }
            packs.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
            packs
        })
    }

    /// The bytes of an object.
    pub fn read(&self, key: &BlobKey) -> Vec<u8> {
        self.runtime.block_on(async {
            let size = self.blobs.head(key).await.expect("the object exists");
            self.blobs.get_range(key, 0..size).await.expect("the object can be read").to_vec()
        })
    }

    /// Replaces the bytes of an object, which no part of Dormer ever does.
    pub fn overwrite(&self, key: &BlobKey, bytes: Vec<u8>) {
        let parts = [Bytes::from(bytes)];
        self.runtime.block_on(self.blobs.put(key, &parts)).expect("the object can be stored");
    }

    /// Deletes an object.
    pub fn delete(&self, key: &BlobKey) {
        self.runtime.block_on(self.blobs.delete(key)).expect("the object can be deleted");
    }

    async fn inventory(&self) -> Inventory {
        match &self.database {
            Database::Postgres(url) => {
                let options = PostgresOptions { connections_max: 2, ..PostgresOptions::default() };
                let index = PostgresIndex::open(url, options).await.expect("the database answers");
                index.inventory().await
            }
            Database::Sqlite(path) => {
                let index = SqliteIndex::open_beside(path, SqliteOptions::default()).await;
                index.expect("the database opens").inventory().await
            }
        }
        .expect("every row can be read")
    }
}
