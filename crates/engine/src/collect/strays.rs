//! Packs in the store that no row knows: crashes leave them, and so does another database that uses
//! the same store. A listing finds them.

use std::time::{Duration, Instant};

use dormer_blobs::BlobKey;
use dormer_format::PackId;
use dormer_index::PackFate;
use dormer_nix::with_causes;

use super::collection_run::CollectionRun;
use super::collector::Collector;
use super::plan::stray_seconds;
use super::progress::CollectionPhase;
use super::report::{CollectionReport, EndedCollection};
use crate::Result;
use crate::lease_renewal::Leased as _;
use crate::pace::pause_after;

/// Packs looked up at once after a listing.
const LISTED_PACKS: usize = 1_000;

/// A listing that finds more packs without a row than this, and more than packs with one, is not
/// believed: another installation may share the store.
const STRAYS_BELIEVED: usize = 100;

/// How long a purge waits for the rows of packs that were listed without one. Most uploads commit a
/// row within some 50 ms after they have stored the pack.
const ROWS_FOLLOW: Duration = Duration::from_secs(1);

/// What a collection knows of the objects in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    /// It did not list them.
    Skipped,
    /// All packs without a row are on the list of doomed packs.
    Believed,
    /// They are so many that the store may be another database's.
    Doubted,
}

/// Packs in the store that no row knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strays {
    /// Those of which nothing is noted.
    pub new: Vec<PackId>,
    /// Those that were there before the database.
    pub kept: Vec<PackId>,
    /// Packs in the store.
    pub listed: u64,
}

impl Collector {
    /// Notes packs without a row, if it is time for a listing or one is needed. The first listing
    /// of a database may find packs of another one; these are never deleted.
    pub(super) async fn list_if_due(
        &self,
        collection: &mut CollectionRun<'_>,
        is_needed: bool,
        report: &mut CollectionReport,
    ) -> Result<Listing> {
        let last = self.index.last_collection().await?;
        // What the last listing found counts until the next one.
        report.strays_kept = EndedCollection::read(&last)?.map_or(0, |ended| ended.report.strays_kept);
        let (now, listed_at) = (self.clock.now(), last.listed_at);
        if !is_needed && listed_at.is_some_and(|at| now < at + self.settings.listing_seconds) {
            return Ok(Listing::Skipped);
        }
        collection.renew().await?;
        self.progress.begin(CollectionPhase::Listing);
        // The listing first, the rows second: the listing lacks a pack that is stored meanwhile.
        let listed = match collection.while_renewing(self.blobs.list()).await? {
            Ok(listed) => listed,
            // All else of the run is done, and a later run lists again.
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "the store cannot be listed; a later collection tries again");
                return Ok(Listing::Skipped);
            }
        };
        let Strays { new: strays, kept, listed } = self.strays_among(&listed, Some(collection)).await?;
        if strays.len() > STRAYS_BELIEVED && strays.len() as u64 * 2 > listed && listed_at.is_some() {
            report.strays_kept = (strays.len() + kept.len()) as u64;
            tracing::error!(
                packs = strays.len(),
                listed,
                "most packs in the store have no row, and nothing of them is deleted: another database may use this \
                 store, or this database is older than its store and has to be recovered; only if neither is so, \
                 `dormer gc --delete-strays` lets them go"
            );
            return Ok(Listing::Doubted);
        }
        report.strays_kept = kept.len() as u64;
        let not_before = listed_at.map(|_| now + stray_seconds(self.settings.upload_seconds_max));
        for packs in strays.chunks(LISTED_PACKS) {
            let found = self.index.doom_packs(packs, not_before).await?;
            if not_before.is_some() {
                report.strays_found += found;
            } else if found > 0 {
                report.strays_kept += found;
                tracing::warn!(
                    packs = found,
                    "the store holds packs that this database never knew; they stay until `dormer gc --delete-strays`"
                );
            }
        }
        if is_needed && report.strays_found > 0 {
            // Uploads that run have stored some of them, and bring their rows.
            tokio::time::sleep(ROWS_FOLLOW).await;
        }
        Ok(Listing::Believed)
    }

    /// Lists the store, and finds the packs without a row.
    pub async fn find_strays(&self) -> Result<Strays> {
        self.progress.begin(CollectionPhase::Listing);
        let listed = self.blobs.list().await?;
        self.strays_among(&listed, None).await
    }

    async fn strays_among(
        &self,
        listed: &[BlobKey],
        mut collection: Option<&mut CollectionRun<'_>>,
    ) -> Result<Strays> {
        let listed: Vec<PackId> = listed.iter().map(|BlobKey::Pack(pack)| *pack).collect();
        let mut strays = Strays { new: Vec::new(), kept: Vec::new(), listed: listed.len() as u64 };
        for some in listed.chunks(LISTED_PACKS) {
            let begun = Instant::now();
            for pack in self.index.packs_without_row(some).await? {
                match pack.fate {
                    PackFate::Open => strays.new.push(pack.id),
                    PackFate::Kept => strays.kept.push(pack.id),
                    PackFate::Doomed => {}
                }
            }
            match &mut collection {
                Some(collection) => collection.step(begun, 0).await?,
                None => tokio::time::sleep(pause_after(begun.elapsed())).await,
            }
        }
        Ok(strays)
    }

    /// Lets packs without a row be deleted by a later collection, however many they are, and also
    /// those that were there before the database. Those that uploads may be storing now get their
    /// rows before that, and stay. Returns when that is, in seconds from now.
    pub async fn doom_strays(&self, strays: &Strays) -> Result<i64> {
        let seconds = stray_seconds(self.settings.upload_seconds_max);
        let not_before = self.clock.now() + seconds;
        for packs in strays.new.chunks(LISTED_PACKS) {
            self.index.doom_packs(packs, Some(not_before)).await?;
        }
        for packs in strays.kept.chunks(LISTED_PACKS) {
            self.index.release_packs(packs, not_before).await?;
        }
        // Its report then says what stays.
        self.index.list_next_time().await?;
        Ok(seconds)
    }
}
