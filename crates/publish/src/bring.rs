//! Bringing a page of paths: what is known of them and of their references, the plan, and its
//! execution.

use std::collections::{HashMap, HashSet};

use dormer_api::CacheName;
use dormer_edge::EdgeKey;
use dormer_format::EncodingTag;
use dormer_index::{
    Cache, FoundObject, NarRows, NotedFrom, ObjectRows, PendingObject, PendingVerdicts, PublishDone,
    PublishIntent, PublishState, PublishedNar, PublishedObject,
};
use dormer_nix::{NarHash, StorePath, StorePathHash};

use crate::Result;
use crate::in_flight::Requests;
use crate::plan::{BringPlan, Candidate, Reference, Wait, plan_bringing};
use crate::publisher::Run;
use crate::report::Counts;
use crate::settings::seconds;
use crate::transfer::{FilePlace, NarToSend, Sent, nar_file, put_small};
use crate::turn::Turn;

/// Paths planned together. Each holds its row in memory: about a KiB.
pub(crate) const PAGE_OBJECTS: u32 = 1_024;

/// References looked up together.
const REFERENCES_PAGE: usize = 4_096;

/// NARs recorded together. After a crash, at most so many are sent again.
const NARS_NOTED: usize = 32;

/// The result of a page.
#[derive(Debug, Default)]
pub(crate) struct PageOutcome {
    /// Paths that need not be looked at any more.
    pub(crate) done: u64,
    /// Those of them that are published.
    pub(crate) published: Vec<StorePathHash>,
    /// Paths that wait.
    pub(crate) waiting: u64,
    /// What changed in the target.
    pub(crate) counts: Counts,
    /// Whether the turn of the cache was over before the end of the page.
    pub(crate) is_cut: bool,
}

type NarKey = (NarHash, EncodingTag);

/// What is known of a page.
struct Page {
    candidates: Vec<Candidate>,
    found: Vec<FoundObject>,
    published: HashMap<StorePathHash, PublishedObject>,
    known: HashMap<StorePathHash, Reference>,
    /// The NAR of each that is in the cache.
    present: HashMap<StorePathHash, NarHash>,
    /// Damaged ones, which cannot be sent.
    damaged: Vec<StorePathHash>,
}

/// Paths that wait, and why.
type Waits = Vec<(StorePathHash, Wait)>;

/// The NARs of a page.
struct PageNars {
    /// Those that are in the target.
    there: HashMap<NarKey, PublishedNar>,
    /// Whether the turn of the cache was over before all were sent.
    is_cut: bool,
    /// What was sent.
    counts: Counts,
}

impl Run<'_> {
    pub(crate) async fn publish_page(
        &self,
        turn: &mut Turn<'_>,
        cache: &Cache,
        name: &CacheName,
        pending: &[PendingObject],
    ) -> Result<PageOutcome> {
        let mut removed = Counts::default();
        let mut page = self.look_at(cache, pending).await?;
        if self.begin_replacements(turn, cache, &page.present, &page.published).await? {
            let (counts, is_done) = self.remove_all(turn, cache.id, name, Some(cache)).await?;
            if !is_done {
                return Ok(PageOutcome { counts, is_cut: true, ..PageOutcome::default() });
            }
            removed = counts;
            page = self.look_at(cache, pending).await?;
        }
        // What is damaged in the lab stays in the target as it was; when it is healed, the outbox
        // tells.
        let (kept, lost): (Vec<_>, Vec<_>) =
            page.damaged.iter().partition(|hash| is_published(page.published.get(*hash)));
        let kept_count = kept.len() as u64;
        let mut waits: Waits = lost.into_iter().map(|hash| (hash, Wait::Unreadable)).collect();

        let settle = seconds(self.publisher.settings.settle);
        let plan = plan_bringing(&page.candidates, &page.known, self.now(), settle);
        waits.extend(plan.waiting.iter().map(|(place, wait)| (page.candidates[*place].hash, wait.clone())));
        // Recorded with the path that waits, before the removal of the reference is forgotten.
        let lost: Vec<(StorePathHash, StorePathHash)> = plan
            .waiting
            .iter()
            .filter_map(|(place, wait)| match wait {
                Wait::Removed(reference) => Some((&page.candidates[*place], *reference)),
                _ => None,
            })
            .filter(|(candidate, reference)| candidate.lost != Some(*reference))
            .map(|(candidate, reference)| (candidate.hash, reference))
            .collect();
        self.settle(cache.id, &PendingVerdicts { done: kept, lost, ..PendingVerdicts::default() }).await?;
        if !plan.awaited.is_empty() {
            let now = self.now();
            let marks: Vec<_> = plan.awaited.iter().map(|hash| (cache.id, *hash, now)).collect();
            self.state().note_pending(&self.lease(), &marks, NotedFrom::Referrers).await?;
        }
        let (mut outcome, unreadable) = self.execute_plan(turn, cache, name, &page, &plan).await?;
        waits.extend(unreadable);
        outcome.counts += removed;
        outcome.done += kept_count;
        outcome.waiting = waits.len() as u64;
        let before: HashMap<StorePathHash, Option<&str>> =
            pending.iter().map(|pending| (pending.hash, pending.reason.as_deref())).collect();
        let reasons: Vec<(StorePathHash, String)> = waits
            .into_iter()
            .map(|(hash, wait)| (hash, wait.to_string()))
            .filter(|(hash, reason)| before.get(hash).copied().flatten() != Some(reason))
            .collect();
        self.settle(cache.id, &PendingVerdicts { waiting: reasons, ..PendingVerdicts::default() }).await?;
        Ok(outcome)
    }

    /// Loads what the plan needs to know.
    async fn look_at(&self, cache: &Cache, pending: &[PendingObject]) -> Result<Page> {
        let hashes: Vec<StorePathHash> = pending.iter().map(|pending| pending.hash).collect();
        let mut by_hash: HashMap<StorePathHash, FoundObject> = self
            .state()
            .find_objects(cache.id, &hashes)
            .await?
            .into_iter()
            .map(|found| (found.object.path.hash(), found))
            .collect();
        let present = by_hash.iter().map(|(hash, found)| (*hash, found.nar.hash)).collect();
        let (mut candidates, mut found, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        let mut wanted: HashSet<StorePathHash> = HashSet::new();
        // What is not there was taken care of, or will be: see `begin_removals`.
        for pending in pending {
            let Some(object) = by_hash.remove(&pending.hash) else { continue };
            if object.nar.damaged {
                damaged.push(pending.hash);
                continue;
            }
            let own = pending.hash;
            let mut references: Vec<StorePathHash> =
                object.object.references.iter().map(StorePath::hash).filter(|hash| *hash != own).collect();
            references.sort_unstable();
            references.dedup();
            wanted.extend(&references);
            candidates.push(Candidate { hash: own, references, since: pending.since, lost: pending.lost });
            found.push(object);
        }
        let mut published = HashMap::new();
        for page in hashes.chunks(REFERENCES_PAGE) {
            let rows = self.state().published_objects(self.target(), cache.id, ObjectRows::Of(page)).await?;
            published.extend(rows.into_iter().map(|row| (row.hash, row)));
        }
        let mut known = HashMap::new();
        let mut upstream: HashSet<StorePathHash> = HashSet::new();
        let wanted: Vec<StorePathHash> = wanted.into_iter().collect();
        for page in wanted.chunks(REFERENCES_PAGE) {
            for found in self.state().find_objects(cache.id, page).await? {
                let kind = if found.nar.damaged { Reference::Damaged } else { Reference::Present };
                known.insert(found.object.path.hash(), kind);
            }
            for row in self.state().published_objects(self.target(), cache.id, ObjectRows::Of(page)).await? {
                let there = row.state == PublishState::Published;
                match known.get(&row.hash) {
                    Some(_) if there => known.insert(row.hash, Reference::Published),
                    Some(_) => None,
                    // An upstream has it, or it is about to go: either way it is no longer ours.
                    None if row.upstream => {
                        upstream.insert(row.hash);
                        None
                    }
                    None => known.insert(row.hash, Reference::Removed),
                };
            }
            let lacking: Vec<StorePathHash> = page
                .iter()
                .filter(|hash| !known.contains_key(hash) && !upstream.contains(hash))
                .copied()
                .collect();
            if !lacking.is_empty() {
                let removed = self.state().find_removed(self.target(), cache.id, &lacking).await?;
                known.extend(removed.into_iter().map(|hash| (hash, Reference::Removed)));
            }
        }
        Ok(Page { candidates, found, published, known, present, damaged })
    }

    /// Carries a plan out: intents, NARs, narinfos level by level, and what was written. Returns
    /// also which paths wait after all.
    async fn execute_plan(
        &self,
        turn: &mut Turn<'_>,
        cache: &Cache,
        name: &CacheName,
        page: &Page,
        plan: &BringPlan,
    ) -> Result<(PageOutcome, Waits)> {
        let (mut done, mut waits) = (PageOutcome::default(), Waits::new());
        let places: Vec<usize> = plan.levels.concat();
        if places.is_empty() {
            return Ok((done, waits));
        }
        let settings = &self.publisher.settings;
        let to_send = |place: usize| {
            let nar = &page.found[place].nar;
            let published_tag = settings.published_tag(nar.tag);
            NarToSend { nar: (nar.hash, nar.tag), size: nar.size, published_tag }
        };
        let nar_of = |place: usize| -> NarKey { to_send(place).published() };
        let objects: Vec<&FoundObject> = places.iter().map(|place| &page.found[*place]).collect();
        let mut documents = self.plan_documents(cache, name, &objects, &page.published).await?;
        done.counts.left_out += documents.left_out;
        let intents: Vec<PublishIntent> = places
            .iter()
            .map(|place| PublishIntent {
                hash: page.candidates[*place].hash,
                nar: nar_of(*place),
                file_size: page.found[*place].nar.file_size,
                references: page.candidates[*place].references.clone(),
                documents: documents.wanted_of(&page.candidates[*place].hash),
            })
            .collect();
        self.state().begin_publishing(&self.lease(), cache.id, &intents).await?;

        let wanted: Vec<NarToSend> = places.iter().map(|place| to_send(*place)).collect();
        let nars = self.send_nars(turn, cache, name, &wanted).await?;
        done.counts += nars.counts;
        done.is_cut = nars.is_cut;
        let mut gone: HashSet<StorePathHash> = HashSet::new();
        for level in &plan.levels {
            let mut ready = Vec::new();
            for &place in level {
                let candidate = &page.candidates[place];
                let Some(nar) = nars.there.get(&nar_of(place)) else {
                    gone.insert(candidate.hash);
                    // It may only not have had its turn.
                    if !nars.is_cut {
                        waits.push((candidate.hash, Wait::Unreadable));
                    }
                    continue;
                };
                // Only what counts on being published with this page has to wait for it.
                let missing = candidate.references.iter().find(|reference| {
                    gone.contains(reference) && page.known.get(reference) != Some(&Reference::Published)
                });
                if let Some(missing) = missing {
                    gone.insert(candidate.hash);
                    if !nars.is_cut {
                        waits.push((candidate.hash, Wait::Behind(*missing)));
                    }
                    continue;
                }
                ready.push((place, nar));
            }
            if !ready.is_empty() {
                turn.mark_out_of_date().await?;
            }
            let hashes: Vec<StorePathHash> =
                ready.iter().map(|(place, _)| page.candidates[*place].hash).collect();
            let writing = ready.into_iter().map(|(place, nar)| async move {
                let row = page.published.get(&page.candidates[place].hash);
                self.write_narinfo(cache, name, &page.candidates[place], &page.found[place], nar, row).await
            });
            let written: Vec<(PublishDone, bool)> = self.in_flight.all(writing).await?;
            let wrote = written.iter().filter(|(_, wrote)| *wrote).count() as u64;
            done.counts.documents += self.bring_documents(cache, name, &mut documents, &hashes).await?;
            let finished: Vec<PublishDone> =
                written.into_iter().map(|(finished, _)| documents.complete(finished)).collect();
            self.state().finish_publishing(&self.lease(), cache.id, &finished, self.grace_end()).await?;
            done.done += finished.len() as u64;
            done.published.extend(finished.iter().map(|finished| finished.hash));
            done.counts.published += wrote;
            done.counts.unchanged += finished.len() as u64 - wrote;
        }
        Ok((done, waits))
    }

    /// Sends those of these NARs that are not there. A NAR that is not in the answer could not be
    /// read, or the turn of the cache was over before. Each turn sends one.
    async fn send_nars(
        &self,
        turn: &Turn<'_>,
        cache: &Cache,
        name: &CacheName,
        wanted: &[NarToSend],
    ) -> Result<PageNars> {
        let hashes: Vec<NarHash> = wanted.iter().map(|wanted| wanted.nar.0).collect();
        let rows = self.state().published_nars(self.target(), cache.id, NarRows::Of(&hashes)).await?;
        // A file that was written once, and is to be sent again, was found missing or damaged.
        let was_written = |nar: &&PublishedNar| nar.file_hash.is_some() || nar.etag.is_some();
        let written_once: HashSet<NarKey> = rows.iter().filter(was_written).map(|nar| nar.nar).collect();
        let mut there: HashMap<NarKey, PublishedNar> = rows
            .into_iter()
            .filter(|nar| nar.uploaded && nar.file_hash.is_some())
            .map(|nar| (nar.nar, nar))
            .collect();
        let mut asked = HashSet::new();
        let missing: Vec<NarToSend> = wanted
            .iter()
            .filter(|nar| !there.contains_key(&nar.published()) && asked.insert(nar.published()))
            .copied()
            .collect();
        let (publisher, store, adopts) = (self.publisher, self.store(), self.adopts);
        let mut missing = missing.into_iter().peekable();
        let mut has_begun = false;
        let mut requests = Requests::new(self.in_flight);
        let mut counts = Counts::default();
        let mut sent = Vec::new();
        loop {
            // Asked to stop, or to let others have their turn: what is under way is finished,
            // nothing more begins.
            while requests.has_room()
                && !publisher.is_stopping()
                && !(has_begun && turn.has_to_pause())
                && let Some(nar) = missing.next()
            {
                has_begun = true;
                let key = EdgeKey::Nar(name.clone(), nar_file(nar.published()));
                let place = FilePlace::in_target(&key, cache.is_public);
                let adopts = adopts && !written_once.contains(&nar.published());
                requests.begin(async move {
                    publisher.sender.send_nar(&publisher.engine, store, cache, &place, nar, adopts).await
                });
            }
            match requests.next().await {
                None => break,
                Some(Sent::Done(nar)) => {
                    publisher.reporter.nar_uploaded(&cache.name, nar.file_size);
                    counts.nars_uploaded += 1;
                    counts.bytes_uploaded += nar.file_size;
                    sent.push(nar);
                }
                Some(Sent::Found(nar)) => sent.push(nar),
                Some(Sent::Unreadable) => {}
            }
            if sent.len() >= NARS_NOTED {
                let lease = self.lease();
                match requests.meanwhile(self.state().note_uploaded(&lease, cache.id, &sent)).await {
                    Ok(()) => there.extend(sent.drain(..).map(|nar| (nar.nar, nar))),
                    // What is under way is waited for all the same.
                    Err(error) => {
                        requests.fail(error.into());
                        sent.clear();
                    }
                }
            }
        }
        // Also after a failure: what was sent need not be sent again.
        let noted = if sent.is_empty() {
            Ok(())
        } else {
            self.state().note_uploaded(&self.lease(), cache.id, &sent).await
        };
        requests.end()?;
        noted?;
        there.extend(sent.into_iter().map(|nar| (nar.nar, nar)));
        Ok(PageNars { there, is_cut: missing.peek().is_some(), counts })
    }

    /// Writes a narinfo, unless the same one is there. Returns whether it did.
    async fn write_narinfo(
        &self,
        cache: &Cache,
        name: &CacheName,
        candidate: &Candidate,
        found: &FoundObject,
        nar: &PublishedNar,
        row: Option<&PublishedObject>,
    ) -> Result<(PublishDone, bool)> {
        let file_hash = nar.file_hash.expect("an uploaded NAR has one");
        let mut as_published = found.clone();
        (as_published.nar.tag, as_published.nar.file_size) = (nar.nar.1, nar.file_size);
        let text = self.publisher.engine.published_narinfo(cache, as_published, file_hash)?;
        let digest = NarHash::digest(text.as_bytes()).as_bytes().to_vec();
        let upstream = is_signed_upstream(cache, &found.object.sigs);
        let mut done = PublishDone {
            hash: candidate.hash,
            nar: nar.nar,
            digest,
            etag: None,
            upstream,
            references: candidate.references.clone(),
            documents: Vec::new(),
            stale_documents: Vec::new(),
        };
        if let Some(row) = row.filter(|row| row.state == PublishState::Published && row.digest == done.digest)
        {
            done.etag.clone_from(&row.etag);
            return Ok((done, false));
        }
        if self.publisher.settings.listings {
            self.write_listing(cache, name, &candidate.hash).await?;
        }
        let key = EdgeKey::Narinfo(name.clone(), candidate.hash);
        let stored = put_small(self.store(), &key, cache.is_public, text.into_bytes()).await?;
        done.etag = stored.etag;
        self.publisher.reporter.path_published(&cache.name, &found.object.path);
        Ok((done, true))
    }

    /// Writes a listing, before the narinfo, as Nix does.
    async fn write_listing(&self, cache: &Cache, name: &CacheName, hash: &StorePathHash) -> Result<()> {
        let (engine, sender) = (&self.publisher.engine, &self.publisher.sender);
        let place = FilePlace::in_target(&EdgeKey::Listing(name.clone(), *hash), cache.is_public);
        sender.send_listing(engine, self.store(), cache, hash, &place).await
    }
}

/// Whether a key of an upstream signed a path.
pub(crate) fn is_signed_upstream(cache: &Cache, sigs: &[String]) -> bool {
    sigs.iter().any(|sig| {
        let key = sig.split(':').next().unwrap_or_default();
        cache.upstream_cache_key_names.iter().any(|name| name == key)
    })
}

fn is_published(row: Option<&PublishedObject>) -> bool {
    row.is_some_and(|row| row.state == PublishState::Published)
}
