//! Opens an existing installation for one task, beside its server or without one.

use std::sync::Arc;

use dormer_engine::{Collector, Engine, Journal, Scrubber, SystemClock};
use dormer_index::{Index, OpenIndex, PublishIndex};
use dormer_stores::Store;

use super::first_start::FIRST_START_SETTING;
use super::index::{open_index, open_index_beside};
use super::master_key::master_key_beside;
use super::recovery::is_recovery_unfinished;
use super::store::{OpenStore, StoreRole, installation_id, open_store};
use super::work_settings::{collector, journal_settings};
use crate::error::{Error, Result};
use crate::holder::holder;
use crate::settings::Settings;

/// What a follower needs of an installation. Another process may be serving this installation.
pub(crate) struct Follower {
    pub(crate) engine: Engine,
    pub(crate) index: Arc<dyn Index>,
    /// The same index, by its other contract.
    pub(crate) publish: Arc<dyn PublishIndex>,
    /// The id of the installation, if it has one.
    pub(crate) id: Option<String>,
}

/// Opens an existing installation, beside its server or without one. Makes nothing.
pub(crate) async fn open_beside(settings: &Settings) -> Result<Follower> {
    let OpenIndex { index, publish, .. } = open_index_beside(settings).await?;
    let blobs = open_store(settings, &*index, StoreRole::Beside, &mut Vec::new()).await?.blobs;
    let key = master_key_beside(settings, &*index).await?;
    let engine = Engine::new(Arc::clone(&index), blobs, key, settings.engine.clone(), Arc::new(SystemClock));
    let id = installation_id(&*index).await?.map(|id| id.to_string());
    Ok(Follower { engine, index, publish, id })
}

/// The journal of an existing installation, beside its server or without one, and its store.
/// Refuses an empty database and one that is not recovered yet: their first snapshot would replace
/// the journal of the lost one.
pub(crate) async fn open_journal_beside(settings: &Settings, opened: &OpenIndex) -> Result<(Journal, Store)> {
    let index = Arc::clone(&opened.index);
    if is_recovery_unfinished(&*index).await? {
        return Err(Error::RecoveryUnfinished);
    }
    if index.find_setting(FIRST_START_SETTING).await?.is_none() {
        return Err(Error::NoInstallation { path: settings.database_path.clone() });
    }
    let OpenStore { blobs, files } =
        open_store(settings, &*index, StoreRole::Beside, &mut Vec::new()).await?;
    let (memory, clock) = (Arc::clone(&opened.journal), Arc::new(SystemClock));
    let holder = holder();
    let journal =
        Journal::new(index, memory, blobs, files.clone(), clock, holder, journal_settings(settings));
    Ok((journal, files))
}

/// What a command needs to collect, or to have a server collect.
pub(crate) struct Collection {
    pub(crate) opened: OpenIndex,
    pub(crate) collector: Collector,
    /// Whether a server has the database for itself.
    pub(crate) is_served: bool,
}

/// Opens an existing installation to collect in it, beside its server or without one. With
/// `reads_only`, no lock is taken.
pub(crate) async fn open_collection(settings: &Settings, reads_only: bool) -> Result<Collection> {
    let (opened, store, is_served) = open_to_work(settings, reads_only).await?;
    let collector = collector(settings, Arc::clone(&opened.collect), store.blobs)
        .with_journal(store.files, Arc::clone(&opened.journal));
    Ok(Collection { opened, collector, is_served })
}

/// What a command needs to scrub, or to have a server scrub.
pub(crate) struct OpenScrub {
    pub(crate) opened: OpenIndex,
    pub(crate) scrubber: Scrubber,
    /// Whether a server has the database for itself.
    pub(crate) is_served: bool,
}

/// Opens an existing installation to scrub it, beside its server or without one.
pub(crate) async fn open_scrub(settings: &Settings) -> Result<OpenScrub> {
    let (opened, OpenStore { blobs, .. }, is_served) = open_to_work(settings, false).await?;
    let (index, scrub) = (Arc::clone(&opened.index), Arc::clone(&opened.scrub));
    Ok(OpenScrub { opened, scrubber: Scrubber::new(index, scrub, blobs, Arc::new(SystemClock)), is_served })
}

/// Opens index and store of an existing installation. The flag says that a server has the database
/// for itself, so that the server must do the work.
async fn open_to_work(settings: &Settings, reads_only: bool) -> Result<(OpenIndex, OpenStore, bool)> {
    let path = &settings.database_path;
    let (opened, is_served) = if settings.postgres.is_some() || reads_only {
        (open_index_beside(settings).await?, false)
    } else if !path.exists() {
        return Err(Error::NoInstallation { path: path.clone() });
    } else {
        match open_index(settings).await {
            Ok(opened) => (opened, false),
            Err(Error::Index(dormer_index::Error::Locked { .. })) => {
                (open_index_beside(settings).await?, true)
            }
            Err(error) => return Err(error),
        }
    };
    // A collection would take packs for strays that the recovery has yet to read.
    if is_recovery_unfinished(&*opened.index).await? {
        return Err(Error::RecoveryUnfinished);
    }
    let store = open_store(settings, &*opened.index, StoreRole::Beside, &mut Vec::new()).await?;
    Ok((opened, store, is_served))
}
