//! What only the first start makes: a cache and a token.

use std::time::{Duration, SystemTime};

use dormer_api::Permission;
use dormer_engine::{CreateCache, Engine};
use dormer_nix::StoreDir;

use super::made::{Made, Observer};
use crate::error::Result;
use crate::settings::{Settings, SigningKey};
use crate::{secret_file, tokens};

/// The cache that the first start makes.
pub(crate) const FIRST_CACHE: &str = "main";
/// Attic announces 41 for a new cache: after cache.nixos.org's 40.
pub(crate) const DEFAULT_PRIORITY: i32 = 41;
/// The upstream key of a new cache: `push` skips paths with its signature.
pub(crate) const DEFAULT_UPSTREAM_KEY: &str = "cache.nixos.org-1";
/// The database notes under this name that the first start is over.
pub(crate) const FIRST_START_SETTING: &str = "first-start";
/// Validity of the admin token, the same as for Attic's first token.
const ADMIN_TOKEN_VALIDITY: Duration = Duration::from_hours(2 * 8_766);

pub(super) async fn make_first_cache(engine: &Engine, observer: Observer<'_>) -> Result<()> {
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

pub(super) fn make_admin_token(settings: &Settings, key: &SigningKey, observer: Observer<'_>) -> Result<()> {
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
