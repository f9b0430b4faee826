//! Renders and signs narinfos, and remembers them for a few seconds.
//!
//! The engine remembers only hits: Nix remembers a miss for an hour, so a miss must be true when
//! the server answers.

use std::sync::Arc;

use bytes::Bytes;
use dormer_index::{Cache, FoundObject, UnixSeconds, Use};
use dormer_nix::{NarHash, NarInfo, StoreDir, StorePathHash, fingerprint};

use crate::{Engine, Error, Result};

impl Engine {
    /// The narinfo of a path, as text, with every signature that the path came with and one for
    /// each active key of the cache. `None` when the cache lacks the path, or when its NAR is
    /// damaged. The use of the object is recorded in the background, so a pull never waits for a
    /// database write.
    pub async fn narinfo(&self, cache: &Arc<Cache>, hash: &StorePathHash) -> Result<Option<Bytes>> {
        let key = (cache.id, *hash);
        if let Some(text) = self.remembered_narinfo(cache, hash) {
            return Ok(Some(text));
        }
        let look = self.look_at_objects(cache.id);
        let found = self.index().find_object(cache.id, hash).await?.filter(|found| !found.nar.damaged);
        let Some(found) = found else {
            self.metrics().reads.narinfos.missing.inc();
            return Ok(None);
        };
        self.metrics().reads.narinfos.index.inc();
        if self.is_old(found.last_used_at, self.now()) {
            self.uses().record(cache.id, *hash);
        }
        let text = Bytes::from(self.render_narinfo(cache, found, None)?);
        if look.is_fresh(self) {
            self.remembered_narinfos().insert(key, text.clone());
        }
        Ok(Some(text))
    }

    /// The narinfo, if it is remembered. Answers without waiting: this is the hottest path of the
    /// server.
    fn remembered_narinfo(&self, cache: &Cache, hash: &StorePathHash) -> Option<Bytes> {
        self.remembered_narinfos()
            .get(&(cache.id, *hash))
            .inspect(|_| self.metrics().reads.narinfos.memory.inc())
    }

    /// Which of these paths the cache lacks. The others are recorded as used before this returns,
    /// so that a client can rely on the answer "present". This fails if the database does not take
    /// the write.
    pub async fn missing_paths(&self, cache: &Cache, hashes: &[StorePathHash]) -> Result<Vec<StorePathHash>> {
        let mut present = std::collections::HashSet::new();
        for batch in hashes.chunks(16_384) {
            let found = self.index().present_objects(cache.id, batch).await?;
            let old = self.record_uses(cache, &found).await?;
            present.extend(found.into_iter().map(|(hash, _)| hash));
            if !old.is_empty() {
                // One that expired before its use was written is missing. None expires after that.
                for hash in &old {
                    present.remove(hash);
                }
                let still = self.index().present_objects(cache.id, &old).await?;
                present.extend(still.into_iter().map(|(hash, _)| hash));
            }
        }
        Ok(hashes.iter().filter(|hash| !present.contains(hash)).copied().collect())
    }

    /// Writes the present time as the last push of those objects whose stored time is old, and
    /// returns them.
    async fn record_uses(
        &self,
        cache: &Cache,
        used: &[(StorePathHash, UnixSeconds)],
    ) -> Result<Vec<StorePathHash>> {
        let now = self.now();
        let old: Vec<StorePathHash> =
            used.iter().filter(|(_, last)| self.is_old(*last, now)).map(|(hash, _)| *hash).collect();
        if !old.is_empty() {
            self.index().touch_objects(cache.id, &old, Use::Push, now).await?;
        }
        Ok(old)
    }

    /// Whether a stored time of last use has to be written again.
    fn is_old(&self, last_used_at: UnixSeconds, now: UnixSeconds) -> bool {
        now - last_used_at > self.settings().touch_after_seconds
    }

    /// The narinfo of an object whose served file was written somewhere in full, so that the file's
    /// hash is known.
    pub fn published_narinfo(&self, cache: &Cache, found: FoundObject, file_hash: NarHash) -> Result<String> {
        self.render_narinfo(cache, found, Some(file_hash))
    }

    fn render_narinfo(
        &self,
        cache: &Cache,
        found: FoundObject,
        file_hash: Option<NarHash>,
    ) -> Result<String> {
        let store_dir = store_dir(cache)?;
        let FoundObject { object, nar, .. } = found;
        let message = fingerprint(&store_dir, &object.path, &nar.hash, nar.size, &object.references);
        let mut sigs = object.sigs;
        for key in self.signing_keys(cache)? {
            sigs.push(key.sign(&message).to_string());
        }
        let narinfo = NarInfo {
            store_path: object.path,
            url: format!("nar/{}-{}.nar.zst", nar.hash.to_nix32(), nar.tag),
            compression: "zstd".to_owned(),
            // The server would have to hash the spliced stream for it; clients check the NarHash.
            file_hash,
            file_size: Some(nar.file_size),
            nar_hash: nar.hash,
            nar_size: nar.size,
            references: object.references,
            deriver: object.deriver.and_then(|deriver| deriver.parse().ok()),
            system: object.system,
            ca: object.ca,
            sigs,
            extra: object.extra,
        };
        Ok(narinfo.to_text(&store_dir))
    }
}

/// The store folder of a cache.
pub(crate) fn store_dir(cache: &Cache) -> Result<StoreDir> {
    cache.store_dir.parse().map_err(|_| {
        Error::Index(dormer_index::Error::Corrupt { table: "caches", what: "store folder".to_owned() })
    })
}
