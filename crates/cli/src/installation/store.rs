//! Opens the store of the settings. Checks that the store has this database's packs, and no data of
//! another program.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use dormer_blobs::{Blobs, Claim, InstallationId, LocalBlobs, StoreBlobs, StoreClaims, UnprovenBlobs};
use dormer_index::{Index, ObjectOrder};
use dormer_nix::StorePathHash;
use dormer_stores::{CallPolicy, Store};

use crate::error::{Error, Result};
use crate::settings::Settings;

/// Opens the store of the settings. Asks a remote store once, so that a mistyped key shows at the
/// start instead of at the first push. A store that does not answer may answer later, so that does
/// not stop the start.
pub(super) async fn open_store(
    settings: &Settings,
    index: &dyn Index,
    role: StoreRole,
    warnings: &mut Vec<String>,
) -> Result<OpenStore> {
    let was_started = role != StoreRole::FirstStart;
    let own = Ownership::of(index, role).await?;
    let Some(remote) = &settings.remote_storage else {
        let path = &settings.storage_path;
        let store = if was_started { LocalBlobs::open_existing(path) } else { LocalBlobs::open(path) }?;
        let files = Store::folder(path)?;
        own.prove(&StoreClaims::new(files.clone()), &path.display().to_string(), index).await?;
        return Ok(OpenStore { blobs: Arc::new(store), files });
    };
    let policy = CallPolicy {
        retries: remote.retries.clone(),
        requests_max: Some(remote.requests_max),
        turn_wait: None,
    };
    let blobs = StoreBlobs::open(&remote.store, &policy)?;
    let files = blobs.store().clone();
    let mut answers = true;
    // Asked once: a store that does not answer is no reason to wait with the start.
    let store = StoreBlobs::new(blobs.store().bare());
    match store.holds_attic_chunks().await {
        // A server that never ran has stored nothing. If this listing fails, the listing before has
        // already reported it.
        Ok(false) if !was_started && store.holds_packs().await.unwrap_or(false) => {
            warnings.push(packs_without_index(&store.store().location()));
        }
        // The bucket or prefix was mistyped. If the server started, it would mark every requested
        // NAR as damaged, for all replicas.
        Ok(false)
            if was_started && !store.holds_packs().await.unwrap_or(true) && holds_objects(index).await? =>
        {
            return Err(Error::EmptyBucket { store: store.store().location().to_owned() });
        }
        Ok(false) => {}
        Ok(true) => {
            return Err(Error::ForeignBucket { store: store.store().location().to_owned(), owner: "Attic" });
        }
        Err(error @ dormer_blobs::Error::Refused { .. }) => return Err(error.into()),
        Err(error) => {
            answers = false;
            warnings.push(format!(
                "{} does not answer yet ({}); pushes and reads wait for it",
                store.store().location(),
                Error::chain_of(&error)
            ));
        }
    }
    if answers {
        let claims = StoreClaims::new(store.store().clone());
        own.prove(&claims, store.store().location(), index).await?;
        return Ok(OpenStore { blobs: Arc::new(blobs), files });
    }
    // Nothing is known of the store: its first answer has to be about its owner.
    let claims = StoreClaims::new(blobs.store().clone());
    let may_claim = own.may_claim && !own.was_claimed;
    let blobs: Arc<dyn Blobs> = match own.id {
        Some(id) => Arc::new(UnprovenBlobs::new(Arc::new(blobs), claims, id, may_claim)),
        None => Arc::new(blobs),
    };
    Ok(OpenStore { blobs, files })
}

/// A store by both of its contracts.
#[derive(Debug)]
pub(crate) struct OpenStore {
    pub(crate) blobs: Arc<dyn Blobs>,
    /// All objects of the store, for the journal.
    pub(crate) files: Store,
}

/// Opens the store of the settings, whichever database it belongs to.
pub(super) fn open_unproven_store(settings: &Settings) -> Result<Store> {
    let Some(remote) = &settings.remote_storage else {
        return Ok(Store::existing_folder(&settings.storage_path)?);
    };
    let policy = CallPolicy {
        retries: remote.retries.clone(),
        requests_max: Some(remote.requests_max),
        turn_wait: None,
    };
    Ok(Store::open(&remote.store, &policy)?)
}

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreRole {
    /// A server whose first start is not over.
    FirstStart,
    /// A server that was started before.
    Server,
    /// A command beside a server. It claims no store.
    Beside,
}

/// The installation's id, and what the database knows of its store.
struct Ownership {
    /// `None` beside a server of an older version, which gives the database no id.
    id: Option<InstallationId>,
    may_claim: bool,
    /// Whether the database's store once carried the id.
    was_claimed: bool,
}

impl Ownership {
    async fn of(index: &dyn Index, role: StoreRole) -> Result<Self> {
        let may_claim = role != StoreRole::Beside;
        let id = if may_claim {
            Some(installation_id_or_new(index).await?)
        } else {
            installation_id(index).await?
        };
        let was_claimed = index.find_setting(CLAIMED_SETTING).await?.is_some();
        Ok(Self { id, may_claim, was_claimed })
    }

    /// Refuses a store that is not the database's own.
    async fn prove(&self, claims: &StoreClaims, store: &str, index: &dyn Index) -> Result<()> {
        let Some(own) = self.id else { return Ok(()) };
        let claim = if self.may_claim && !self.was_claimed {
            claims.claim(own).await?
        } else {
            claims.check(own).await?
        };
        match claim {
            Claim::Ours if self.may_claim && !self.was_claimed => {
                index.create_setting(CLAIMED_SETTING, b"done").await?;
                Ok(())
            }
            Claim::Nobody if self.was_claimed => Err(Error::UnclaimedStore { store: store.to_string() }),
            Claim::Ours | Claim::Nobody => Ok(()),
            Claim::Foreign(other) => {
                Err(dormer_blobs::Error::ForeignStore { store: store.to_string(), other: other.to_string() }
                    .into())
            }
        }
    }
}

/// The database's id, which its store carries too.
pub(crate) const INSTALLATION_SETTING: &str = "installation-id";
/// The database notes under this name that a store carried its id.
const CLAIMED_SETTING: &str = "installation-claimed";

/// Reads an installation's id as a database or a journal keeps it.
pub(crate) fn read_id(bytes: &[u8]) -> Result<InstallationId> {
    let what = || dormer_index::Error::Corrupt { table: "settings", what: INSTALLATION_SETTING.to_owned() };
    Ok(InstallationId::from_bytes(bytes.try_into().map_err(|_| what())?))
}

/// The id of an installation; `None` before the first start of a version that knows ids.
pub(super) async fn installation_id(index: &dyn Index) -> Result<Option<InstallationId>> {
    index.find_setting(INSTALLATION_SETTING).await?.map(|bytes| read_id(&bytes)).transpose()
}

/// Replicas that start at once agree on one: the first stays.
async fn installation_id_or_new(index: &dyn Index) -> Result<InstallationId> {
    if let Some(id) = installation_id(index).await? {
        return Ok(id);
    }
    let new = InstallationId::random();
    read_id(&index.create_setting(INSTALLATION_SETTING, new.as_bytes()).await?)
}

/// The store that the settings name, for a person's question: asked once. A folder stays as it is.
pub(crate) fn open_files(settings: &Settings) -> Result<Store> {
    Ok(match &settings.remote_storage {
        Some(remote) => Store::open(&remote.store, &CallPolicy::once())?,
        None => Store::existing_folder(&settings.storage_path)?,
    })
}

/// The claims of the store that the settings name, for a person's question: asked once.
pub(crate) fn open_claims(settings: &Settings) -> Result<(StoreClaims, String)> {
    let store = open_files(settings)?;
    let location = match &settings.remote_storage {
        Some(_) => store.location().to_owned(),
        None => settings.storage_path.display().to_string(),
    };
    Ok((StoreClaims::new(store), location))
}

/// Makes the store of the settings this database's own. Returns where it is, the database's id, and
/// the ids that the store carried before.
pub(crate) async fn adopt_store(
    settings: &Settings,
    index: &dyn Index,
) -> Result<(String, InstallationId, Vec<InstallationId>)> {
    let (claims, location) = open_claims(settings)?;
    let own = installation_id_or_new(index).await?;
    let before = claims.adopt(own).await?;
    index.create_setting(CLAIMED_SETTING, b"done").await?;
    Ok((location, own, before))
}

/// Whether there are sound objects, and therefore packs. Looks at the first thousands of each
/// cache.
async fn holds_objects(index: &dyn Index) -> Result<bool> {
    const PAGES: usize = 10;
    for cache in index.list_caches().await? {
        let mut after = None;
        for _ in 0..PAGES {
            let page = index.list_objects(cache.id, ObjectOrder::Age, after, 1_000).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.place);
            let hashes: Vec<StorePathHash> = page.iter().map(|object| object.path.hash()).collect();
            if !index.present_objects(cache.id, &hashes).await?.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

pub(super) fn packs_without_index(store: &dyn std::fmt::Display) -> String {
    format!("{store} holds packs that the new index does not know; was the database lost?")
}

/// Attic's folders resemble ours: one with a database, one with many files.
pub(crate) fn refuse_foreign_folders(settings: &Settings) -> Result<()> {
    let owner = "Attic";
    // `atticd` makes this file when it runs without settings.
    if settings.data_dir.join("server.db").exists() {
        return Err(Error::ForeignFolder { path: settings.data_dir.clone(), owner });
    }
    // By default, `storage` of a data folder and `storage.path` are the same.
    for path in [settings.storage_path.clone(), settings.data_dir.clone()] {
        if holds_chunk_files(&path, 3).map_err(Error::io("look into", &path))? {
            return Err(Error::ForeignFolder { path, owner });
        }
    }
    Ok(())
}

/// Most entries to inspect. A store of Attic is recognisable early, and a folder of millions of
/// other files must not delay the start.
const ENTRIES_MAX: usize = 1_000;

/// Attic's store has `<uuid>.chunk` files: at its top in older versions, two folders down in newer
/// ones.
fn holds_chunk_files(folder: &Path, depth: usize) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let mut subfolders = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let entry = entry?;
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "chunk") {
            return Ok(true);
        }
        // Skips Dormer's packs: at most 256 folders with nothing but packs.
        let is_ours = entry.file_name() == "packs";
        if !is_ours && depth > 1 && entry.file_type()?.is_dir() {
            subfolders.push(path);
        }
    }
    // Chunks fill all folders of a level evenly, so a few folders are enough.
    for subfolder in subfolders.into_iter().take(16) {
        if holds_chunk_files(&subfolder, depth - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}
