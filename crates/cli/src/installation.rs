//! What `dormer serve` finds or makes before it listens: data folder, index, store, keys, first
//! cache, first token.
//!
//! Every step is idempotent, and the next start recognises a finished step. A crash between any two
//! steps therefore heals at the next start. The last step records in the index that the first start
//! is over. After that, later starts never recreate a destroyed cache `main` or a deleted admin
//! token.
//!
//! The start refuses data of another program before it makes anything.

mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::Permission;
use dormer_blobs::Blobs;
use dormer_engine::{
    CollectSettings, Collector, CreateCache, Engine, Journal, JournalSettings, MasterKey, RecoveryIndex,
    Scrubber, SystemClock,
};
use dormer_index::{
    CollectIndex, Index, JobIndex, MASTER_KEY_PROOF, OpenIndex, PREVIOUS_KEY_PROOF, PostgresIndex,
    PublishIndex, SqliteIndex, SqliteOptions,
};
use dormer_nix::StoreDir;
use dormer_stores::Store;

pub(crate) use self::store::{
    INSTALLATION_SETTING, OpenStore, adopt_store, open_claims, open_files, read_id, refuse_foreign_folders,
};
use self::store::{StoreRole, open_store, open_unproven_store, packs_without_index};
use crate::error::{Error, Result};
use crate::holder::holder;
use crate::settings::{Settings, SigningKey};
use crate::{secret_file, tokens};

/// The cache that the first start makes.
pub(crate) const FIRST_CACHE: &str = "main";
/// Attic announces 41 for a new cache: after cache.nixos.org's 40.
pub(crate) const DEFAULT_PRIORITY: i32 = 41;
/// The upstream key of a new cache: `push` skips paths with its signature.
pub(crate) const DEFAULT_UPSTREAM_KEY: &str = "cache.nixos.org-1";
/// Validity of the admin token, the same as for Attic's first token.
const ADMIN_TOKEN_VALIDITY: Duration = Duration::from_hours(2 * 8_766);

/// The database notes under this name that `dormer recover` began.
pub(crate) const RECOVERY_BEGUN: &str = "recovery-begun";
/// The database notes under this name that `dormer recover` ended.
pub(crate) const RECOVERY_ENDED: &str = "recovery-ended";
pub(crate) const FIRST_START_SETTING: &str = "first-start";

/// Something that a start made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    DataFolder(PathBuf),
    Index(PathBuf),
    /// The tables of the index, in the database of a server.
    Schema {
        database: String,
    },
    Storage(PathBuf),
    MasterKey(PathBuf),
    TokenSecret(PathBuf),
    Cache {
        name: String,
    },
    AdminToken(PathBuf),
    /// The record that the first start is over.
    FirstStart,
}

/// Called with everything that a start makes, immediately afterwards. An error stops the start.
pub(crate) type Observer<'a> = &'a mut (dyn FnMut(&Made) -> Result<()> + Send);

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
    let id = store::installation_id(&*index).await?.map(|id| id.to_string());
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

/// How the journal is written over this store: a turn is stuck if it waits for twice as long as the
/// longest call.
fn journal_settings(settings: &Settings) -> JournalSettings {
    let defaults = JournalSettings::default();
    JournalSettings { stuck_after: defaults.stuck_after.max(2 * longest_call(settings)), ..defaults }
}

/// The longest time that the store's client tries to make a call. A folder's calls have no bound.
fn longest_call(settings: &Settings) -> Duration {
    // The last try may begin when the time for tries is over.
    settings.remote_storage.as_ref().map_or(Duration::ZERO, |remote| {
        remote.retries.time_max + remote.store.connect_timeout + remote.store.request_timeout
    })
}

/// The contracts that a recovery needs.
pub(crate) fn for_recovery(opened: &OpenIndex) -> RecoveryIndex {
    RecoveryIndex {
        index: Arc::clone(&opened.index),
        journal: Arc::clone(&opened.journal),
        collect: Arc::clone(&opened.collect),
    }
}

fn collector(settings: &Settings, index: Arc<dyn CollectIndex>, blobs: Arc<dyn Blobs>) -> Collector {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let collect_settings = CollectSettings {
        put_seconds_max: seconds(longest_call(settings)),
        interval_seconds: Some(seconds(settings.collect_interval)).filter(|interval| *interval > 0),
        upload_seconds_max: seconds(settings.upload_timeout),
        alias_seconds: settings.engine.alias_seconds,
        expiry_defaults: settings.expiry_defaults,
        recompress_level: settings.recompress_level,
        ..CollectSettings::default()
    };
    Collector::new(index, blobs, Arc::new(SystemClock), collect_settings)
}

/// Whether `dormer recover` was interrupted.
pub(crate) async fn is_recovery_unfinished(index: &dyn Index) -> Result<bool> {
    Ok(index.find_setting(RECOVERY_BEGUN).await?.is_some()
        && index.find_setting(RECOVERY_ENDED).await?.is_none())
}

/// Opens an index and the store that it is recovered from. An index that is not there is made. The
/// store may belong to any database.
pub(crate) async fn open_for_recovery(settings: &Settings) -> Result<(OpenIndex, Store)> {
    if settings.postgres.is_none()
        && let Some(folder) = settings.database_path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        make_private_folder(folder)?;
    }
    let store = open_unproven_store(settings)?;
    Ok((open_index(settings).await?, store))
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

/// Opens the index that the settings name and brings its schema up to date.
pub(crate) async fn open_index(settings: &Settings) -> Result<OpenIndex> {
    Ok(match &settings.postgres {
        Some(server) => PostgresIndex::open(server.url.expose(), server.options.clone()).await?.into(),
        None => SqliteIndex::open(&settings.database_path, SqliteOptions::default()).await?.into(),
    })
}

/// Opens the index beside a server that may have it open. Makes none, and refuses an older schema:
/// only `serve`, `migrate` and what stands in for a server bring it up to date. A command that
/// looks at a database must not keep an older server from starting again.
pub(crate) async fn open_index_beside(settings: &Settings) -> Result<OpenIndex> {
    let path = &settings.database_path;
    let plan = match &settings.postgres {
        Some(server) => PostgresIndex::plan_migration(server.url.expose(), &server.options).await?,
        None => SqliteIndex::plan_migration(path).await?,
    };
    match (plan.pending.last(), &settings.postgres) {
        (None, Some(_)) => open_index(settings).await,
        (None, None) => Ok(SqliteIndex::open_beside(path, SqliteOptions::default()).await?.into()),
        (Some(_), _) if plan.found == 0 => Err(Error::NoInstallation { path: path.clone() }),
        (Some(newest), _) => {
            let (found, known) = (plan.found, newest.version);
            Err(dormer_index::Error::SchemaTooOld { found, known }.into())
        }
    }
}

/// Another replica may make the index at the same time. Then both report that they made it.
async fn index_is_new(settings: &Settings) -> Result<bool> {
    let Some(server) = &settings.postgres else { return Ok(!settings.database_path.exists()) };
    Ok(PostgresIndex::plan_migration(server.url.expose(), &server.options).await?.found == 0)
}

fn make_folders(settings: &Settings, observer: Observer<'_>) -> Result<()> {
    if make_private_folder(&settings.data_dir)? {
        observer(&Made::DataFolder(settings.data_dir.clone()))?;
    }
    let mut files = Vec::new();
    if settings.postgres.is_none() {
        files.push(&settings.database_path);
    }
    if settings.master_key.is_none() {
        files.push(&settings.master_key_file);
    }
    for file in files {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_private_folder(folder)?;
        }
    }
    // A database implies a store. If the store is missing then, the start must not make a new one.
    let is_new = settings.remote_storage.is_none() && !settings.database_path.exists();
    if is_new && make_private_folder(&settings.storage_path)? {
        observer(&Made::Storage(settings.storage_path.clone()))?;
    }
    Ok(())
}

pub(crate) fn make_private_folder(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(Error::io("make the folder", path))?;
    Ok(true)
}

fn warn_if_readable(path: &Path, warnings: &mut Vec<String>) {
    if secret_file::is_readable_by_others(path) {
        warnings.push(format!("{} can be read by other users; chmod 600 it", path.display()));
    }
}

/// The key from the settings or from its file. A key is made only for a database that never had
/// one. The database holds a sealed proof, so a start detects a lost or wrong key, long before the
/// first signature.
async fn master_key(settings: &Settings, index: &dyn Index, observer: Observer<'_>) -> Result<MasterKey> {
    let proof = index.find_setting(MASTER_KEY_PROOF).await?;
    let path = &settings.master_key_file;
    let bytes = match settings.master_key {
        Some(bytes) => bytes,
        None => master_key_from_file(path, proof.is_some(), observer)?,
    };
    let key = with_previous_key(settings, MasterKey::from_bytes(bytes))?;
    let proof = match proof {
        Some(proof) => proof,
        None => index.create_setting(MASTER_KEY_PROOF, &key.proof()).await?,
    };
    verify_master_key(settings, &key, &proof)?;
    verify_previous_key(&key, index).await?;
    Ok(key)
}

/// The master key of an installation that exists. Makes nothing.
pub(crate) async fn master_key_beside(settings: &Settings, index: &dyn Index) -> Result<MasterKey> {
    let Some(proof) = index.find_setting(MASTER_KEY_PROOF).await? else {
        return Err(Error::NoInstallation { path: settings.database_path.clone() });
    };
    let key = read_master_key(settings, Some(&proof))?;
    verify_previous_key(&key, index).await?;
    Ok(key)
}

/// While a key is being replaced, secrets of both keys are there.
async fn verify_previous_key(key: &MasterKey, index: &dyn Index) -> Result<()> {
    match index.find_setting(PREVIOUS_KEY_PROOF).await? {
        Some(proof) if !key.opens_proof(&proof) => Err(Error::RekeyUnfinished),
        _ => Ok(()),
    }
}

fn verify_master_key(settings: &Settings, key: &MasterKey, proof: &[u8]) -> Result<()> {
    if key.opens_proof(proof) {
        return Ok(());
    }
    let origin = match settings.master_key {
        Some(_) => "the one in the settings (master-key)".to_owned(),
        None => settings.master_key_file.display().to_string(),
    };
    Err(Error::WrongMasterKey { origin })
}

/// Checks that the master key exists and matches the database's `proof`. Makes nothing.
pub(crate) fn check_master_key(settings: &Settings, proof: Option<&[u8]>) -> Result<()> {
    read_master_key(settings, proof).map(drop)
}

fn read_master_key(settings: &Settings, proof: Option<&[u8]>) -> Result<MasterKey> {
    let bytes = match settings.master_key {
        Some(bytes) => bytes,
        None => master_key_from_file(&settings.master_key_file, true, &mut |_| Ok(()))?,
    };
    let key = with_previous_key(settings, MasterKey::from_bytes(bytes))?;
    proof.map_or(Ok(()), |proof| verify_master_key(settings, &key, proof))?;
    Ok(key)
}

fn with_previous_key(settings: &Settings, key: MasterKey) -> Result<MasterKey> {
    let previous = match (&settings.previous_master_key, &settings.previous_master_key_file) {
        (Some(bytes), _) => Some(*bytes),
        (None, Some(path)) => Some(master_key_from_file(path, true, &mut |_| Ok(()))?),
        (None, None) => None,
    };
    Ok(key.with_previous(previous))
}

fn master_key_from_file(path: &Path, was_used: bool, observer: Observer<'_>) -> Result<[u8; 32]> {
    let text = match secret_file::read(path)? {
        Some(text) => text,
        None if was_used => return Err(Error::NoMasterKey { path: path.to_owned() }),
        None => {
            let make = || STANDARD.encode(rand::random::<[u8; 32]>());
            let (text, made) = secret_file::create_or_read(path, make)?;
            if made {
                observer(&Made::MasterKey(path.to_owned()))?;
            }
            text
        }
    };
    let bytes = STANDARD.decode(text.expose()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let what = "a master key: 32 bytes in base64";
    bytes.ok_or_else(|| Error::UnreadableSecret { path: path.to_owned(), what })
}

async fn make_first_cache(engine: &Engine, observer: Observer<'_>) -> Result<()> {
    let new = CreateCache {
        name: FIRST_CACHE.to_owned(),
        is_public: true,
        store_dir: StoreDir::default().to_string(),
        priority: DEFAULT_PRIORITY,
        upstream_cache_key_names: vec![DEFAULT_UPSTREAM_KEY.to_owned()],
        secret_key: None,
        allow_replacement: false,
    };
    match engine.create_cache(new).await {
        Ok(cache) => observer(&Made::Cache { name: cache.name.clone() }),
        // An earlier first start already made the cache.
        Err(dormer_engine::Error::Index(dormer_index::Error::CacheExists { .. })) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn make_admin_token(settings: &Settings, key: &SigningKey, observer: Observer<'_>) -> Result<()> {
    // With only a public key, tokens are made elsewhere. Without a folder, there is no place that
    // other users cannot read.
    if matches!(key, SigningKey::Rs256Public(_)) || !settings.uses_data_dir() {
        return Ok(());
    }
    let everything = "*".parse().expect("a star is a pattern");
    let wish = tokens::Wish {
        subject: "admin".to_owned(),
        validity: ADMIN_TOKEN_VALIDITY,
        grants: Permission::ALL
            .into_iter()
            .map(|permission| (Clone::clone(&everything), permission))
            .collect(),
        operates: true,
    };
    let token = tokens::sign(key, &tokens::claims(&wish, &settings.jwt, SystemTime::now()))?;
    let path = settings.admin_token_file();
    let (_, made) = secret_file::create_or_read(&path, || token.expose().to_owned())?;
    if made { observer(&Made::AdminToken(path)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use dormer_testkit::services::{Postgres, SeaweedFs};

    use crate::settings::{Environment, Flags, keys};

    use super::*;

    /// 32 bytes of text.
    const TOKEN_SECRET: &str = "YSBzZWNyZXQgb2YgdGhlIHRlc3RzLCAzMiBieXRlcy4=";

    /// 32 zero bytes.
    const ZEROS: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn settings(folder: &Path, variables: &[(&str, &str)]) -> Settings {
        let home = folder.display().to_string();
        let variables: Vec<(&str, &str)> =
            variables.iter().copied().chain([("XDG_DATA_HOME", home.as_str())]).collect();
        Settings::load(&Environment::from(variables.as_slice()), &Flags::default()).unwrap().0
    }

    /// Runs a server up to the point where it would listen. `then` runs in it. Its end takes all
    /// tasks with it, like a crash.
    fn start<T>(
        settings: &Settings,
        steps_max: usize,
        then: impl AsyncFnOnce(Installation) -> T,
    ) -> (Result<T>, Vec<Made>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut made = Vec::new();
        let result = runtime.block_on(async {
            let mut observer = |item: &Made| {
                made.push(item.clone());
                if made.len() > steps_max { Err(Error::Aborted) } else { Ok(()) }
            };
            let installation = prepare(settings, &mut observer).await?;
            Ok(then(installation).await)
        });
        (result, made)
    }

    fn key_after_start(settings: &Settings) -> Result<Option<String>> {
        start(settings, usize::MAX, async |installation| installation.main_public_key).0
    }

    /// The contents of the three secret files.
    fn secrets(settings: &Settings) -> Vec<String> {
        ["master-key", "token-secret", "admin-token"]
            .map(|file| fs::read_to_string(settings.data_dir.join(file)).unwrap())
            .to_vec()
    }

    #[test]
    fn the_first_start_makes_everything_and_the_second_finds_it() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path(), &[]);
        let (first, made) =
            start(&settings, usize::MAX, async |first| (first.main_public_key, first.warnings));
        let (key, warnings) = first.unwrap();
        assert_eq!(made.len(), 8, "{made:?}");
        assert!(key.as_ref().unwrap().starts_with("main:"), "{key:?}");
        assert!(warnings.is_empty());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&settings.data_dir).unwrap().permissions().mode() & 0o777, 0o700);
            for file in ["master-key", "token-secret", "admin-token"] {
                let mode = fs::metadata(settings.data_dir.join(file)).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{file}");
            }
        }
        let before = secrets(&settings);
        let (second, made) = start(&settings, usize::MAX, async |second| second.main_public_key);
        assert_eq!(made, []);
        assert_eq!(second.unwrap(), key);
        assert_eq!(secrets(&settings), before);
    }

    #[test]
    fn a_crash_between_any_two_steps_of_the_first_start_heals_at_the_next() {
        let mut steps = 0;
        loop {
            let home = tempfile::tempdir().unwrap();
            let settings = settings(home.path(), &[]);
            let (crashed, seen) = start(&settings, steps, async |_| ());
            let (healed, made) = start(&settings, usize::MAX, async |healed| {
                (
                    healed.engine.find_cache(FIRST_CACHE).await.unwrap(),
                    healed.token_key,
                    healed.main_public_key,
                )
            });
            for item in &made {
                assert!(!seen.contains(item), "{item:?} was made twice");
            }
            let (cache, token_key, public_key) = healed.unwrap();
            assert!(cache.is_some() && public_key.is_some());
            let token = secret_file::read(&settings.admin_token_file()).unwrap().unwrap();
            let SigningKey::Hs256(secret) = &token_key else { panic!("{token_key:?}") };
            let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
            let key = jsonwebtoken::DecodingKey::from_secret(secret);
            jsonwebtoken::decode::<dormer_api::TokenClaims>(token.expose(), &key, &validation).unwrap();
            if crashed.is_ok() {
                break;
            }
            steps += 1;
        }
        assert_eq!(steps, 8, "steps were added or lost");
    }

    #[test]
    fn a_destroyed_first_cache_stays_destroyed() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path(), &[]);
        let destroy = async |first: Installation| {
            let cache = first.engine.find_cache(FIRST_CACHE).await.unwrap().unwrap();
            first.engine.delete_cache(&cache, None).await.unwrap();
        };
        start(&settings, usize::MAX, destroy).0.unwrap();
        assert_eq!(key_after_start(&settings).unwrap(), None);
    }

    #[test]
    fn a_lost_or_wrong_master_key_is_noticed_and_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        let own = settings(home.path(), &[]);
        key_after_start(&own).unwrap();
        let other = settings(home.path(), &[("DORMER_MASTER_KEY", ZEROS)]);
        assert!(matches!(key_after_start(&other), Err(Error::WrongMasterKey { .. })));
        fs::remove_file(&own.master_key_file).unwrap();
        assert!(matches!(key_after_start(&own), Err(Error::NoMasterKey { .. })));
        assert!(!own.master_key_file.exists());
        fs::write(&own.master_key_file, "abc").unwrap();
        assert!(matches!(key_after_start(&own), Err(Error::UnreadableSecret { .. })));
    }

    #[test]
    fn secrets_from_variables_leave_no_files() {
        let home = tempfile::tempdir().unwrap();
        let secret = ("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64", TOKEN_SECRET);
        let settings = settings(home.path(), &[("DORMER_MASTER_KEY", ZEROS), secret]);
        let (key, made) = start(&settings, usize::MAX, async |first| first.token_key);
        assert!(matches!(key.unwrap(), SigningKey::Hs256(key) if key.starts_with(b"a secret of the tests")));
        assert!(!made.iter().any(|made| matches!(made, Made::MasterKey(_) | Made::TokenSecret(_))));
        assert!(
            !settings.data_dir.join("master-key").exists()
                && !settings.data_dir.join("token-secret").exists()
        );
    }

    /// Settings of a replica on a database server, with its own folder and with packs in a shared
    /// one.
    fn replica(folder: &Path, packs: &Path, database: &str) -> Settings {
        let secret = ("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64", TOKEN_SECRET);
        let packs = packs.display().to_string();
        settings(
            folder,
            &[
                ("DORMER_MASTER_KEY", ZEROS),
                secret,
                ("DORMER_DATABASE_URL", database),
                ("DORMER_STORAGE_PATH", &packs),
            ],
        )
    }

    #[test]
    fn replicas_that_start_first_at_once_agree_on_one_cache_and_one_master_key() {
        let database = Postgres::shared().create_database();
        let homes =
            [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let packs = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let starts: Vec<_> = homes
            .iter()
            .map(|home| {
                let settings = replica(home.path(), packs.path(), &database);
                runtime.spawn(async move {
                    let mut made = Vec::new();
                    let mut observer = |item: &Made| {
                        made.push(item.clone());
                        Ok(())
                    };
                    let key = prepare(&settings, &mut observer).await.unwrap().main_public_key;
                    (key, made)
                })
            })
            .collect();
        let mut keys = Vec::new();
        let mut caches = 0;
        for start in starts {
            let (key, made) = runtime.block_on(start).unwrap();
            keys.push(key.expect("the cache main is there"));
            caches += made.iter().filter(|item| matches!(item, Made::Cache { .. })).count();
        }
        assert_eq!(caches, 1);
        keys.dedup();
        assert_eq!(keys.len(), 1, "all sign with the same key");
        let later = replica(homes[0].path(), packs.path(), &database);
        let (again, made) = start(&later, usize::MAX, async |second| second.main_public_key);
        assert_eq!((again.unwrap().as_ref(), made), (keys.first(), vec![]));
        let other = ("DORMER_MASTER_KEY", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        let packs = packs.path().display().to_string();
        let shared = [("DORMER_DATABASE_URL", database.as_str()), ("DORMER_STORAGE_PATH", &packs)];
        let other = settings(homes[0].path(), &[other, shared[0], shared[1]]);
        assert!(matches!(key_after_start(&other), Err(Error::WrongMasterKey { .. })));
    }

    #[test]
    fn a_replica_without_a_master_key_is_refused_before_anything_is_made() {
        let home = tempfile::tempdir().unwrap();
        let database = Postgres::shared().create_database();
        let without = settings(home.path(), &[("DORMER_DATABASE_URL", &database)]);
        let (refused, made) = start(&without, usize::MAX, async |_| ());
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::NoSharedMasterKey { .. }), "{refused}");
        assert!(refused.hints().concat().contains("openssl rand"));
        assert_eq!(made, []);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        assert_eq!(Postgres::shared().sql(&database, tables), "0");

        let file = home.path().join("mounted");
        fs::write(&file, format!("{ZEROS}\n")).unwrap();
        let file = file.display().to_string();
        let mounted = [("DORMER_DATABASE_URL", database.as_str()), ("DORMER_MASTER_KEY_FILE", &file)];
        key_after_start(&settings(home.path(), &mounted)).unwrap();
    }

    #[test]
    fn where_everything_is_elsewhere_nothing_is_made_on_disk() {
        let home = tempfile::tempdir().unwrap();
        let database = Postgres::shared().create_database();
        // Nobody listens at this address: the store may come later.
        let endpoint = format!("http://127.0.0.1:{}", dormer_testkit::services::free_port());
        let settings = settings(
            home.path(),
            &[
                ("DORMER_DATABASE_URL", &database),
                ("DORMER_MASTER_KEY", ZEROS),
                ("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64", TOKEN_SECRET),
                ("DORMER_STORAGE_TYPE", "s3"),
                ("DORMER_STORAGE_BUCKET", "packs"),
                ("DORMER_STORAGE_ENDPOINT", &endpoint),
                ("DORMER_STORAGE_CREDENTIALS_ACCESS_KEY_ID", "a"),
                ("DORMER_STORAGE_CREDENTIALS_SECRET_ACCESS_KEY", "b"),
            ],
        );
        let (key, made) = start(&settings, usize::MAX, async |first| first.main_public_key);
        assert!(key.unwrap().is_some());
        assert!(
            matches!(made.as_slice(), [Made::Schema { .. }, Made::Cache { .. }, Made::FirstStart]),
            "{made:?}"
        );
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "no folder, no token");
    }

    #[test]
    fn packs_without_their_index_are_pointed_out() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path(), &[]);
        fs::create_dir_all(settings.storage_path.join("packs")).unwrap();
        let (warnings, _) = start(&settings, usize::MAX, async |first| first.warnings);
        assert!(warnings.unwrap()[0].contains("was the database lost?"));
    }

    #[test]
    fn packs_in_a_bucket_without_their_index_are_pointed_out() {
        let home = tempfile::tempdir().unwrap();
        let server = SeaweedFs::start();
        let access = server.access();
        let begin = |database: &str, bucket: &str| {
            let settings = settings(
                home.path(),
                &[
                    ("DORMER_DATABASE_URL", database),
                    ("DORMER_MASTER_KEY", ZEROS),
                    ("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64", TOKEN_SECRET),
                    ("DORMER_STORAGE_TYPE", "s3"),
                    ("DORMER_STORAGE_BUCKET", bucket),
                    ("DORMER_STORAGE_PREFIX", "lab"),
                    ("DORMER_STORAGE_ENDPOINT", &access.endpoint),
                    ("DORMER_STORAGE_CREDENTIALS_ACCESS_KEY_ID", &access.access_key_id),
                    ("DORMER_STORAGE_CREDENTIALS_SECRET_ACCESS_KEY", &access.secret_access_key),
                ],
            );
            start(&settings, usize::MAX, async |first| first.warnings).0
        };
        let [lost, used, other] = [(); 3].map(|()| Postgres::shared().create_database());
        let bucket = access.new_bucket();
        // A pack of another installation, beside ours.
        access.put_object(&bucket, "packs/00/00000000000000000000000000000000.pack", &b"x"[..]);
        assert_eq!(begin(&used, &bucket).unwrap(), [""; 0], "an empty prefix");
        access.put_object(&bucket, "lab/packs/00/00000000000000000000000000000000.pack", &b"x"[..]);
        assert_eq!(begin(&used, &bucket).unwrap(), [""; 0], "the database that was there all the time");
        for database in [&lost, &other] {
            let refused = begin(database, &bucket).unwrap_err();
            assert!(matches!(refused, Error::Blobs(dormer_blobs::Error::ForeignStore { .. })), "{refused}");
            assert!(refused.to_string().contains(&bucket), "{refused}");
            assert!(refused.hints().concat().contains("dormer adopt"), "{refused:?}");
        }
        // A bucket from before there were ids.
        let old = access.new_bucket();
        access.put_object(&old, "lab/packs/00/00000000000000000000000000000000.pack", &b"x"[..]);
        let warned = begin(&lost, &old).unwrap();
        assert!(matches!(&warned[..], [one] if one.contains("was the database lost?")), "{warned:?}");
        assert!(warned[0].contains(&old), "{warned:?}");
        let foreign = begin(&lost, &bucket).unwrap_err();
        assert!(matches!(foreign, Error::Blobs(dormer_blobs::Error::ForeignStore { .. })), "{foreign}");
    }

    #[test]
    fn a_store_and_a_database_that_do_not_belong_together_are_refused_until_adopted() {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [first, second] = [&homes[0], &homes[1]].map(|home| settings(home.path(), &[]));
        key_after_start(&first).unwrap();
        key_after_start(&second).unwrap();
        let packs = first.storage_path.display().to_string();
        let mixed = settings(homes[1].path(), &[("DORMER_STORAGE_PATH", &packs)]);
        let refused = key_after_start(&mixed).unwrap_err();
        assert!(matches!(refused, Error::Blobs(dormer_blobs::Error::ForeignStore { .. })), "{refused}");

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let beside = runtime.block_on(open_beside(&mixed)).map(drop).unwrap_err();
        assert!(matches!(beside, Error::Blobs(dormer_blobs::Error::ForeignStore { .. })), "{beside}");
        let collection = runtime.block_on(open_collection(&mixed, false)).map(drop).unwrap_err();
        assert!(matches!(collection, Error::Blobs(dormer_blobs::Error::ForeignStore { .. })), "{collection}");
        runtime.block_on(async {
            let opened = open_index(&mixed).await.unwrap();
            adopt_store(&mixed, &*opened.index).await.unwrap();
            opened.index.close().await.unwrap();
        });
        key_after_start(&mixed).unwrap();
        let refused = key_after_start(&first).unwrap_err();
        assert!(matches!(refused, Error::Blobs(dormer_blobs::Error::ForeignStore { .. })), "{refused}");
    }

    #[test]
    fn a_store_without_the_id_that_it_once_carried_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path(), &[]);
        key_after_start(&settings).unwrap();
        fs::remove_dir_all(settings.storage_path.join("installation")).unwrap();
        let refused = key_after_start(&settings).unwrap_err();
        assert!(matches!(refused, Error::UnclaimedStore { .. }), "{refused}");
        assert!(refused.hints().concat().contains("dormer adopt"));
    }

    #[test]
    fn what_attic_filled_is_refused_and_not_touched() {
        let chunk = "2b9d04a6-9b2b-4a4b-8a3f-0c1d2e3f4a5b.chunk";
        for file in
            ["dormer/server.db", &format!("dormer/storage/{chunk}"), &format!("dormer/storage/a/b/{chunk}")]
        {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "theirs").unwrap();
            let settings = settings(home.path(), &[]);
            let (refused, made) = start(&settings, usize::MAX, async |_| ());
            assert!(matches!(refused, Err(Error::ForeignFolder { .. })), "{file}");
            assert_eq!(made, []);
            assert_eq!(fs::read(&path).unwrap(), b"theirs");
            assert!(!settings.database_path.exists());
        }
        // A server.toml of Attic, used unchanged.
        let theirs = tempfile::tempdir().unwrap();
        fs::write(theirs.path().join(chunk), "theirs").unwrap();
        let home = tempfile::tempdir().unwrap();
        let path = theirs.path().display().to_string();
        let settings = settings(home.path(), &[(keys::STORAGE_PATH.variable().as_str(), &path)]);
        assert!(matches!(key_after_start(&settings), Err(Error::ForeignFolder { .. })));
        assert_eq!(fs::read_dir(theirs.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_database_that_attic_filled_is_refused_and_not_touched() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("theirs.db");
        // A header of SQLite without Dormer's mark is enough.
        let mut theirs = b"SQLite format 3\0".to_vec();
        theirs.resize(4096, 0);
        fs::write(&path, &theirs).unwrap();
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let settings = settings(home.path(), &[("ATTIC_SERVER_DATABASE_URL", &url)]);
        let refused = key_after_start(&settings).unwrap_err();
        assert!(matches!(refused, Error::Index(dormer_index::Error::ForeignDatabase { .. })), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), theirs);
    }
}
