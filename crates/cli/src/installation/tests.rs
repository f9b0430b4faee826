use std::fs;
use std::path::Path;

use dormer_testkit::services::{Postgres, SeaweedFs};

use super::*;
use crate::secret_file;
use crate::settings::{Environment, Flags, keys};

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
    let (first, made) = start(&settings, usize::MAX, async |first| (first.main_public_key, first.warnings));
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
            (healed.engine.find_cache(FIRST_CACHE).await.unwrap(), healed.token_key, healed.main_public_key)
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
        !settings.data_dir.join("master-key").exists() && !settings.data_dir.join("token-secret").exists()
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
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
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
