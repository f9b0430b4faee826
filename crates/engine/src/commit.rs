//! Makes a stored NAR visible: one short transaction, the last write of an upload.

use dormer_index::{Alias, Cache, CommitOutcome, CommitTarget, NarCommit, NarSource, Object};
use dormer_nix::{NarHash, PublicKey, StorePath, fingerprint};
use tracing::Instrument as _;

use crate::ingest::Ingested;
use crate::narinfo::store_dir;
use crate::{Engine, Error, Result};

impl Engine {
    /// Makes a verified NAR visible as an object of a cache. Where the cache has the path with
    /// another NAR or other references, the first stays ([`CommitOutcome::Kept`]), unless the
    /// cache allows replacement.
    pub async fn commit_object(
        &self,
        cache: &Cache,
        ingested: Ingested,
        mut object: Object,
    ) -> Result<CommitOutcome> {
        let known_keys =
            self.drop_forged_of(cache, &mut object, &ingested.nar_hash, ingested.nar_size).await?;
        let target = if cache.allow_replacement {
            CommitTarget::Object(object)
        } else {
            CommitTarget::ObjectIfSame(object)
        };
        self.commit(cache, ingested.source.clone(), target, known_keys).await
    }

    /// Records a verified NAR under its upload name, until its narinfo arrives.
    pub async fn commit_alias(
        &self,
        cache: &Cache,
        ingested: Ingested,
        file_name: &str,
        compression: &str,
    ) -> Result<()> {
        let target =
            CommitTarget::Alias { file_name: file_name.to_owned(), compression: compression.to_owned() };
        self.commit(cache, ingested.source.clone(), target, Vec::new()).await.map(drop)
    }

    /// Makes an uploaded NAR visible as the object that a narinfo describes. The narinfo must name
    /// an alias of this cache and agree with its NAR ([`Error::NoAlias`], [`Error::NarMismatch`]).
    pub async fn commit_narinfo(
        &self,
        cache: &Cache,
        file_name: &str,
        nar_hash: &NarHash,
        nar_size: u64,
        mut object: Object,
    ) -> Result<CommitOutcome> {
        let alias = self.find_alias(cache, file_name).await?;
        let Some(Alias { nar, .. }) = alias else {
            return Err(Error::NoAlias { file_name: file_name.to_owned() });
        };
        if nar.hash != *nar_hash || nar.size != nar_size {
            return Err(Error::NarMismatch {
                said: format!("{nar_hash} and {nar_size} bytes"),
                has: format!("{} and {} bytes", nar.hash, nar.size),
            });
        }
        let known_keys = self.drop_forged_of(cache, &mut object, nar_hash, nar_size).await?;
        self.commit(cache, NarSource::Known(nar.id), CommitTarget::ObjectIfSame(object), known_keys).await
    }

    /// Finds an upload alias that still resolves to a sound NAR.
    pub async fn find_alias(&self, cache: &Cache, file_name: &str) -> Result<Option<Alias>> {
        let since = self.now() - self.settings().alias_seconds;
        Ok(self.index().find_alias(cache.id, file_name, since).await?.filter(|alias| !alias.nar.damaged))
    }

    async fn commit(
        &self,
        cache: &Cache,
        nar: NarSource,
        target: CommitTarget,
        known_keys: Vec<String>,
    ) -> Result<CommitOutcome> {
        let hash = match &target {
            CommitTarget::Object(object) | CommitTarget::ObjectIfSame(object) => Some(object.path.hash()),
            CommitTarget::Alias { .. } => None,
        };
        let grace_seconds = self.settings().grace_seconds;
        let commit = NarCommit { cache: cache.id, nar, target, at: self.now(), grace_seconds, known_keys };
        let engine = self.clone();
        finish(async move {
            let outcome = engine.index().commit_nar(&commit).await;
            // Also after an error: the commit may have taken effect.
            if let Some(hash) = hash {
                engine.forget_answers(commit.cache, &hash);
                if matches!(outcome, Ok(CommitOutcome::Committed(_))) {
                    engine.inner.activity.note_push(commit.cache);
                }
            }
            Ok(outcome?)
        })
        .await
    }
}

/// The key of the cache that nearly every store path comes from.
const NIXOS_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// Most signatures that a store path or a build trace may come with. The index keeps fewer. Each
/// one in the name of a known key costs a hash of the whole metadata.
pub const SIGNATURES_MAX: usize = 64;

impl Engine {
    /// [`drop_forged`](Self::drop_forged) for an object.
    async fn drop_forged_of(
        &self,
        cache: &Cache,
        object: &mut Object,
        nar_hash: &NarHash,
        nar_size: u64,
    ) -> Result<Vec<String>> {
        let message = fingerprint(&store_dir(cache)?, &object.path, nar_hash, nar_size, &object.references);
        self.drop_forged(cache, &object.path, &mut object.sigs, vec![message]).await
    }

    /// Drops signatures of `path` in the name of a known key that the key did not make for any of
    /// these messages, and returns the names of the known keys: those of the cache, retired ones
    /// too, and that of cache.nixos.org. [`Error::TooManySignatures`] if there are more than
    /// [`SIGNATURES_MAX`].
    pub(crate) async fn drop_forged(
        &self,
        cache: &Cache,
        path: &StorePath,
        sigs: &mut Vec<String>,
        messages: Vec<String>,
    ) -> Result<Vec<String>> {
        let count = sigs.len();
        if count > SIGNATURES_MAX {
            return Err(Error::TooManySignatures { count, max: SIGNATURES_MAX });
        }
        let own = cache.keys.iter().map(|key| key.public_key.as_str());
        let known: Vec<PublicKey> = own.chain([NIXOS_KEY]).filter_map(|key| key.parse().ok()).collect();
        let names = known.iter().map(|key| key.name().to_owned()).collect();
        if sigs.iter().any(|text| known.iter().any(|key| is_in_name_of(key, text))) {
            let texts = std::mem::take(sigs);
            *sigs = self.cpu().run(move || without_forged(texts, &known, &messages)).await;
        }
        if sigs.len() < count {
            let dropped = count - sigs.len();
            tracing::warn!(cache.name, %path, dropped, "dropped signatures that do not verify");
        }
        Ok(names)
    }
}

fn without_forged(mut sigs: Vec<String>, known: &[PublicKey], messages: &[String]) -> Vec<String> {
    sigs.retain(|text| {
        let mut keys = known.iter().filter(|key| is_in_name_of(key, text)).peekable();
        let made = |key: &PublicKey| {
            let verifies = |sig| messages.iter().any(|message| key.verify(message, &sig).is_ok());
            text.parse().is_ok_and(verifies)
        };
        keys.peek().is_none() || keys.any(made)
    });
    sigs
}

fn is_in_name_of(key: &PublicKey, signature: &str) -> bool {
    signature.split_once(':').is_some_and(|(name, _)| name == key.name())
}

/// Runs a change to its end on a task of its own. A caller that leaves would otherwise stop between
/// the change and what follows from it, and old answers would stay remembered.
pub(crate) async fn finish<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(change.in_current_span()).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The run time is shutting down and takes the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}
