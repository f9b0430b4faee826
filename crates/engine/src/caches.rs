//! Caches and their signing keys.
//!
//! The engine remembers the settings of a cache for a moment. A change through this engine shows at
//! once. A change through another replica shows when its notice arrives, and within 5 s in any case
//! ([`crate::coherence`]). The engine never remembers that a cache does not exist.

use std::sync::Arc;

use dormer_index::{Cache, CacheKey, CachePatch, CacheSelection, MASTER_KEY_PROOF, NewCache};
use dormer_nix::SecretKey;
use zeroize::Zeroizing;

use crate::commit::finish;
use crate::{Engine, Error, Result};

/// A cache to create.
#[derive(Debug, Clone)]
pub struct CreateCache {
    /// Name; the caller has checked its form.
    pub name: String,
    /// Whether anybody may read it.
    pub is_public: bool,
    /// Store folder, `/nix/store` nearly always.
    pub store_dir: String,
    /// Priority announced in `nix-cache-info`.
    pub priority: i32,
    /// Names of keys: clients need not push the paths that these keys signed.
    pub upstream_cache_key_names: Vec<String>,
    /// The signing key; `None` generates one with the cache's name.
    pub secret_key: Option<SecretKey>,
    /// Whether an upload may give a path another NAR. Off, a leaked token cannot rewrite a path.
    pub allow_replacement: bool,
}

/// A new signing key.
#[derive(Debug, Clone)]
pub enum KeyChange {
    /// The engine generates it.
    Generate,
    /// The caller brings it.
    Given(Box<SecretKey>),
}

/// Changes to a cache; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct UpdateCache {
    /// Visibility.
    pub is_public: Option<bool>,
    /// Store folder.
    pub store_dir: Option<String>,
    /// Priority.
    pub priority: Option<i32>,
    /// Names of upstream keys.
    pub upstream_cache_key_names: Option<Vec<String>>,
    /// Retention in seconds; `Some(None)` goes back to the server's default.
    pub retention_seconds: Option<Option<i64>>,
    /// Quota in bytes; `Some(None)` goes back to the server's default; 0 means no quota.
    pub quota_bytes: Option<Option<u64>>,
    /// How many paths of a name are kept; `Some(None)` keeps all.
    pub keep_latest: Option<Option<u32>>,
    /// A key that replaces the active ones.
    pub new_key: Option<KeyChange>,
    /// Whether an upload may give a path another NAR.
    pub allow_replacement: Option<bool>,
}

impl Engine {
    /// A cache by name, as it was at most 5 s ago.
    pub async fn find_cache(&self, name: &str) -> Result<Option<Arc<Cache>>> {
        match self.remembered_caches().get(name) {
            Some(cache) => Ok(Some(cache)),
            None => self.current_cache(name).await,
        }
    }

    /// A cache by name, as it is now. Callers that change settings, or show the effect of a change,
    /// use this: another replica may have changed the cache a moment ago.
    pub async fn current_cache(&self, name: &str) -> Result<Option<Arc<Cache>>> {
        let look = self.look_at_settings();
        let found = self.index().find_cache(name).await?.map(Arc::new);
        if let Some(cache) = found.as_ref().filter(|_| look.is_fresh(self)) {
            self.remembered_caches().insert(name.to_owned(), Arc::clone(cache));
            if cache.is_public {
                self.remembered_public_caches().insert(name.to_owned(), Arc::clone(cache));
            }
        }
        Ok(found)
    }

    /// A public cache by name, as it was at most 5 s ago, if the engine remembers it.
    pub fn remembered_public_cache(&self, name: &str) -> Option<Arc<Cache>> {
        self.remembered_public_caches().get(name)
    }

    /// A public cache by name, as it is now. For a caller that may know of no other cache: the
    /// steps are the same for a private cache and for one that does not exist, so their time tells
    /// the caller nothing.
    pub async fn current_public_cache(&self, name: &str) -> Result<Option<Arc<Cache>>> {
        let look = self.look_at_settings();
        let found = self.index().find_public_cache(name).await?.map(Arc::new);
        if let Some(cache) = found.as_ref().filter(|_| look.is_fresh(self)) {
            self.remembered_public_caches().insert(name.to_owned(), Arc::clone(cache));
        }
        Ok(found)
    }

    /// The next `limit` caches of a selection by name, after this name.
    pub async fn list_caches_after(
        &self,
        name: &str,
        selection: CacheSelection<'_>,
        limit: u32,
    ) -> Result<Vec<Cache>> {
        Ok(self.index().list_caches_after(name, selection, limit).await?)
    }

    /// Creates a cache with its first signing key.
    pub async fn create_cache(&self, new: CreateCache) -> Result<Arc<Cache>> {
        let secret = match new.secret_key {
            Some(secret) => secret,
            None => generate_key(&new.name)?,
        };
        let (key, master_key_proof) = self.seal_key(&secret).await?;
        let cache = NewCache {
            key,
            master_key_proof,
            name: new.name.clone(),
            is_public: new.is_public,
            store_dir: new.store_dir,
            priority: new.priority,
            upstream_cache_key_names: new.upstream_cache_key_names,
            created_at: self.now(),
            allow_replacement: new.allow_replacement,
        };
        self.index().create_cache(&cache).await?;
        self.current_cache(&new.name).await?.ok_or(Error::Index(dormer_index::Error::CacheGone))
    }

    /// Changes a cache. A new key replaces the active keys, which stay listed as retired, up to
    /// [`dormer_index::CACHE_KEYS_MAX`] keys in all. The store
    /// folder of a cache that holds objects cannot change ([`Error::StoreDirInUse`]): their names
    /// and their holes belong to the old folder.
    pub async fn update_cache(&self, cache: &Cache, update: UpdateCache) -> Result<()> {
        let secret = match update.new_key {
            None => None,
            Some(KeyChange::Generate) => Some(generate_key(&cache.name)?),
            Some(KeyChange::Given(secret)) => Some(*secret),
        };
        let (replace_keys, master_key_proof) = match secret {
            None => (None, None),
            Some(secret) => {
                let (key, proof) = self.seal_key(&secret).await?;
                (Some(key), proof)
            }
        };
        let patch = CachePatch {
            replace_keys,
            master_key_proof,
            is_public: update.is_public,
            store_dir: update.store_dir,
            priority: update.priority,
            upstream_cache_key_names: update.upstream_cache_key_names,
            retention_seconds: update.retention_seconds,
            quota_bytes: update.quota_bytes,
            keep_latest: update.keep_latest,
            allow_replacement: update.allow_replacement,
        };
        let (engine, cache) = (self.clone(), cache.clone());
        finish(async move {
            let updated = engine.index().update_cache(cache.id, &patch, engine.now()).await;
            engine.forget_cache(&cache);
            match (updated, patch.store_dir) {
                (Err(dormer_index::Error::CacheNotEmpty), Some(wanted)) => Err(Error::StoreDirInUse {
                    cache: cache.name.clone(),
                    store_dir: cache.store_dir.clone(),
                    wanted,
                }),
                (updated, _) => Ok(updated?),
            }
        })
        .await
    }

    /// Deletes a cache with all its objects; the name is free at once. The audit names `subject`,
    /// that of the caller's token.
    pub async fn delete_cache(&self, cache: &Cache, subject: Option<&str>) -> Result<()> {
        let (engine, cache, subject) = (self.clone(), cache.clone(), subject.map(str::to_owned));
        finish(async move {
            let deleted = engine.index().delete_cache(cache.id, subject.as_deref(), engine.now()).await;
            engine.forget_cache(&cache);
            Ok(deleted?)
        })
        .await
    }

    /// The active signing keys of a cache.
    pub(crate) fn signing_keys(&self, cache: &Cache) -> Result<Vec<Arc<SecretKey>>> {
        cache.keys.iter().filter(|key| key.active).map(|key| self.signing_key(cache, key)).collect()
    }

    fn signing_key(&self, cache: &Cache, key: &CacheKey) -> Result<Arc<SecretKey>> {
        if let Some(secret) = self.unsealed_keys().get(&key.public_key) {
            return Ok(secret);
        }
        let unreadable = || Error::SigningKey { cache: cache.name.clone() };
        let text = self.master_key().unseal(&seal_context(&key.public_key), &key.sealed_secret)?;
        let text = std::str::from_utf8(&text).map_err(|_| unreadable())?;
        let secret: Arc<SecretKey> = Arc::new(text.parse().map_err(|_| unreadable())?);
        self.unsealed_keys().insert(key.public_key.clone(), Arc::clone(&secret));
        Ok(secret)
    }

    /// A sealed signing key, and the proof of the master key that sealed it. The transaction that
    /// stores the key compares the proof again.
    async fn seal_key(&self, secret: &SecretKey) -> Result<(CacheKey, Option<Vec<u8>>)> {
        let public_key = secret.public_key().to_string();
        let (context, plain) = (seal_context(&public_key), Zeroizing::new(secret.expose()));
        let proof = self.index().find_setting(MASTER_KEY_PROOF).await?;
        let sealed_secret = match &proof {
            Some(proof) => self.master_key().seal_like(proof, &context, plain.as_bytes())?,
            None => self.master_key().seal(&context, plain.as_bytes()),
        };
        Ok((CacheKey { public_key, sealed_secret, active: true }, proof))
    }
}

pub(crate) fn seal_context(public_key: &str) -> String {
    format!("signing key {public_key}")
}

fn generate_key(name: &str) -> Result<SecretKey> {
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    SecretKey::generate(name, *seed).map_err(|_| Error::SigningKey { cache: name.to_owned() })
}
