//! What `dormer serve` finds or makes before it listens: data folder, index, store, keys, first
//! cache, first token.
//!
//! Every step is idempotent, and the next start recognises a finished step. A crash between any two
//! steps therefore heals at the next start. The last step records in the index that the first start
//! is over. After that, later starts never recreate a destroyed cache `main` or a deleted admin
//! token.
//!
//! The start refuses data of another program before it makes anything.

mod beside;
mod first_start;
mod folders;
mod index;
mod made;
mod master_key;
mod recovery;
mod store;
#[cfg(test)]
mod tests;
mod work_settings;

use std::sync::Arc;

use dormer_engine::{Collector, Engine, Journal, JournalSettings, Scrubber, SystemClock};
use dormer_index::{Index, JobIndex, OpenIndex, PublishIndex};

pub(crate) use self::beside::{
    Collection, Follower, OpenScrub, open_beside, open_collection, open_journal_beside, open_scrub,
};
pub(crate) use self::first_start::{
    DEFAULT_PRIORITY, DEFAULT_UPSTREAM_KEY, FIRST_CACHE, FIRST_START_SETTING,
};
pub(crate) use self::folders::make_private_folder;
pub(crate) use self::index::{open_index, open_index_beside};
pub(crate) use self::made::{Made, Observer};
pub(crate) use self::master_key::{check_master_key, master_key_beside};
pub(crate) use self::recovery::{
    RECOVERY_BEGUN, RECOVERY_ENDED, for_recovery, is_recovery_unfinished, open_for_recovery,
};
pub(crate) use self::store::{
    INSTALLATION_SETTING, OpenStore, adopt_store, open_claims, open_files, read_id, refuse_foreign_folders,
};

use self::first_start::{make_admin_token, make_first_cache};
use self::folders::{make_folders, warn_if_readable};
use self::index::index_is_new;
use self::master_key::master_key;
use self::store::{StoreRole, open_store, packs_without_index};
use self::work_settings::{collector, journal_settings};
use crate::error::{Error, Result};
use crate::holder::holder;
use crate::settings::{Settings, SigningKey};
use crate::tokens;

/// Everything that a server needs.
#[derive(Debug)]
pub(crate) struct Installation {
    pub(crate) engine: Engine,
    pub(crate) index: Arc<dyn Index>,
    /// The same index, by its other contract.
    pub(crate) publish: Arc<dyn PublishIndex>,
    /// The same index.
    pub(crate) jobs: Arc<dyn JobIndex>,
    pub(crate) collector: Collector,
    pub(crate) scrubber: Scrubber,
    pub(crate) journal: Journal,
    pub(crate) token_key: SigningKey,
    /// Public key of the cache `main`, if the cache exists and is public.
    pub(crate) main_public_key: Option<String>,
    /// What looks wrong but does not stop the start.
    pub(crate) warnings: Vec<String>,
}

/// Finds or makes everything.
pub(crate) async fn prepare(settings: &Settings, observer: Observer<'_>) -> Result<Installation> {
    if settings.postgres.is_some() && settings.master_key.is_none() && !settings.master_key_file.exists() {
        return Err(Error::NoSharedMasterKey { path: settings.master_key_file.clone() });
    }
    if settings.uses_data_dir() {
        refuse_foreign_folders(settings)?;
        make_folders(settings, observer)?;
    }
    let mut warnings = Vec::new();

    let index_is_new = index_is_new(settings).await?;
    let has_packs = settings.remote_storage.is_none() && settings.storage_path.join("packs").exists();
    let OpenIndex { index, publish, jobs, collect, scrub, journal } = open_index(settings).await?;
    if is_recovery_unfinished(&*index).await? {
        return Err(Error::RecoveryUnfinished);
    }
    if index_is_new {
        observer(&match &settings.postgres {
            Some(server) => Made::Schema { database: server.name.clone() },
            None => Made::Index(settings.database_path.clone()),
        })?;
        if has_packs {
            warnings.push(packs_without_index(&settings.storage_path.display()));
        }
    }
    let was_started = index.find_setting(FIRST_START_SETTING).await?.is_some();
    let role = if was_started { StoreRole::Server } else { StoreRole::FirstStart };
    let OpenStore { blobs, files } = open_store(settings, &*index, role, &mut warnings).await?;
    let collector =
        collector(settings, collect, Arc::clone(&blobs)).with_journal(files.clone(), Arc::clone(&journal));
    let scrubber = Scrubber::new(Arc::clone(&index), scrub, Arc::clone(&blobs), Arc::new(SystemClock));
    let journal_settings =
        JournalSettings { interval: settings.journal_interval, ..journal_settings(settings) };
    let journal = Journal::new(
        Arc::clone(&index),
        journal,
        Arc::clone(&blobs),
        files,
        Arc::new(SystemClock),
        holder(),
        journal_settings,
    );
    let master_key = master_key(settings, &*index, observer).await?;
    let (token_key, made) = tokens::signing_key_or_new(settings)?;
    if made {
        observer(&Made::TokenSecret(settings.token_secret_file()))?;
    }
    if settings.jwt.signing.is_none() {
        if settings.postgres.is_some() && settings.remote_storage.is_some() {
            warnings.push(format!(
                "tokens are signed with {}; replicas without the same secret refuse them (set one of jwt.signing)",
                settings.token_secret_file().display()
            ));
        }
        warn_if_readable(&settings.token_secret_file(), &mut warnings);
    }
    if settings.master_key.is_none() {
        warn_if_readable(&settings.master_key_file, &mut warnings);
    }

    let engine =
        Engine::new(Arc::clone(&index), blobs, master_key, settings.engine.clone(), Arc::new(SystemClock));
    if !was_started {
        make_first_cache(&engine, observer).await?;
        make_admin_token(settings, &token_key, observer)?;
        index.create_setting(FIRST_START_SETTING, b"done").await?;
        observer(&Made::FirstStart)?;
    }
    let main = engine.find_cache(FIRST_CACHE).await?.filter(|cache| cache.is_public);
    let main_public_key = main
        .and_then(|cache| cache.keys.iter().rev().find(|key| key.active).map(|key| key.public_key.clone()));
    Ok(Installation {
        engine,
        index,
        publish,
        jobs,
        collector,
        scrubber,
        journal,
        token_key,
        main_public_key,
        warnings,
    })
}
