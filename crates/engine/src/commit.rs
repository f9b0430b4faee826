//! Makes a stored NAR visible: one short transaction, the last write of an upload.

use dormer_index::{Alias, Cache, CommitOutcome, CommitTarget, NarCommit, NarSource, Object};
use dormer_nix::NarHash;
use tracing::Instrument as _;

use crate::ingest::Ingested;
use crate::{Engine, Error, Result};

impl Engine {
    /// Makes a verified NAR visible as an object of a cache.
    pub async fn commit_object(
        &self,
        cache: &Cache,
        ingested: Ingested,
        object: Object,
    ) -> Result<CommitOutcome> {
        let target = CommitTarget::Object(object);
        self.commit(cache, ingested.source.clone(), target).await
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
        self.commit(cache, ingested.source.clone(), target).await.map(drop)
    }

    /// Makes an uploaded NAR visible as the object that a narinfo describes. The narinfo must name
    /// an alias of this cache and agree with its NAR ([`Error::NoAlias`], [`Error::NarMismatch`]).
    pub async fn commit_narinfo(
        &self,
        cache: &Cache,
        file_name: &str,
        nar_hash: &NarHash,
        nar_size: u64,
        object: Object,
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
        self.commit(cache, NarSource::Known(nar.id), CommitTarget::ObjectIfSame(object)).await
    }

    /// Finds an upload alias that still resolves to a sound NAR.
    pub async fn find_alias(&self, cache: &Cache, file_name: &str) -> Result<Option<Alias>> {
        let since = self.now() - self.settings().alias_seconds;
        Ok(self.index().find_alias(cache.id, file_name, since).await?.filter(|alias| !alias.nar.damaged))
    }

    async fn commit(&self, cache: &Cache, nar: NarSource, target: CommitTarget) -> Result<CommitOutcome> {
        let hash = match &target {
            CommitTarget::Object(object) | CommitTarget::ObjectIfSame(object) => Some(object.path.hash()),
            CommitTarget::Alias { .. } => None,
        };
        let grace_seconds = self.settings().grace_seconds;
        let commit = NarCommit { cache: cache.id, nar, target, at: self.now(), grace_seconds };
        let engine = self.clone();
        finish(async move {
            let outcome = engine.index().commit_nar(&commit).await;
            // Also after an error: the commit may have taken effect.
            if let Some(hash) = hash {
                engine.forget_answers(commit.cache, &hash);
            }
            Ok(outcome?)
        })
        .await
    }
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
