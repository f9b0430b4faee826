//! Pins, and removals by hand with what refers to the removed path. What expires by itself is a
//! job.

use std::collections::{HashMap, HashSet};

use dormer_index::{Cache, Pin, RemovedForCause};
use dormer_nix::{StorePath, StorePathHash};

use crate::commit::finish;
use crate::{Engine, Error, Result};

/// Most paths of a closure that adding a pin looks at: more than any system has.
const CLOSURE_PATHS_MAX: usize = 65_536;

/// Paths in one look-up.
const LOOK_PATHS: usize = 4_096;

/// References that one look-up reads, in bytes: those of some thousand paths. Those of one path may
/// have more, up to the MiB of metadata that the server takes.
const LOOK_BYTES: u64 = 1024 * 1024;

/// Memory of one look-up: its rows, which have up to twice [`LOOK_BYTES`], and what is made of
/// them, with the shortest names four times as much.
const LOOK_MEMORY_BYTES: u64 = 10 * LOOK_BYTES;

/// Memory of a path that a walk has seen, with the longest name.
const SEEN_PATH_BYTES: u64 = 320;

/// Most objects that one call of [`Engine::remove_referrers`] removes.
const REFERRERS_MAX: u64 = 1_000;

/// What a cache lacks of the closure of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingPaths {
    /// The paths, by name.
    pub paths: Vec<StorePath>,
    /// Whether the whole closure was looked at.
    pub is_complete: bool,
}

/// What a cache has of the closure of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// How many paths.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
    /// The largest paths, largest first: at most [`LARGEST_PATHS`], with the bytes of their NARs.
    pub largest: Vec<(StorePath, u64)>,
    /// What the cache lacks.
    pub missing: MissingPaths,
}

/// Most look-ups for one closure, of up to [`LOOK_PATHS`] paths each. A chain of paths, each of
/// which refers to the next, takes one for each; real closures are some 30 levels deep.
const LOOKS_MAX: usize = 64;

/// Most paths that [`Closure::largest`] names.
pub const LARGEST_PATHS: usize = 20;

impl Engine {
    /// Adds a pin, or renews it; returns what the cache lacks of its path's closure. The answer is
    /// incomplete if there is no memory to look at the closure: the pin holds all the same.
    pub async fn add_pin(&self, cache: &Cache, pin: &Pin, keep: Option<u32>) -> Result<MissingPaths> {
        self.index().add_pin(cache.id, pin, keep).await?;
        match self.closure(cache, &pin.path, CLOSURE_PATHS_MAX).await {
            Err(Error::Busy { .. }) => Ok(MissingPaths { paths: Vec::new(), is_complete: false }),
            closure => Ok(closure?.missing),
        }
    }

    /// Walks through the closure of a path, up to so many paths. [`Error::Busy`] if the wait for
    /// memory times out.
    pub async fn closure(&self, cache: &Cache, path: &StorePath, paths_max: usize) -> Result<Closure> {
        let memory = LOOK_MEMORY_BYTES + SEEN_PATH_BYTES * paths_max as u64;
        let _memory = self.read_memory().take(memory).await?;
        let mut seen = HashSet::from([path.hash()]);
        let mut next = vec![path.clone()];
        // Paths that are there, whose references were not read yet.
        let mut rest: Vec<StorePathHash> = Vec::new();
        let (mut paths, mut is_complete) = (Vec::new(), true);
        let (mut count, mut nar_bytes) = (0, 0);
        let mut largest: Vec<(StorePath, u64)> = Vec::new();
        let mut looks = 0;
        while !next.is_empty() || !rest.is_empty() {
            looks += 1;
            if looks > LOOKS_MAX {
                is_complete = false;
                break;
            }
            let mut hashes: Vec<StorePathHash> =
                rest.drain(rest.len().saturating_sub(LOOK_PATHS)..).collect();
            let again = hashes.len();
            let look: Vec<StorePath> =
                next.drain((next.len() + again).saturating_sub(LOOK_PATHS).min(next.len())..).collect();
            hashes.extend(look.iter().map(StorePath::hash));
            let found = self.index().find_references(cache.id, &hashes, LOOK_BYTES).await?;
            let present: HashMap<StorePathHash, u64> =
                found.iter().map(|found| (found.hash, found.nar_size)).collect();
            for path in look {
                match present.get(&path.hash()) {
                    Some(nar_size) => {
                        count += 1;
                        nar_bytes += nar_size;
                        largest.push((path, *nar_size));
                    }
                    None => paths.push(path),
                }
            }
            largest.sort_unstable_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
            largest.truncate(LARGEST_PATHS);
            for found in found {
                let Some(references) = found.references else {
                    rest.push(found.hash);
                    continue;
                };
                for reference in references {
                    if seen.contains(&reference.hash()) {
                        continue;
                    }
                    if seen.len() == paths_max {
                        is_complete = false;
                        break;
                    }
                    seen.insert(reference.hash());
                    next.push(reference);
                }
            }
        }
        paths.sort_unstable();
        Ok(Closure { paths: count, nar_bytes, largest, missing: MissingPaths { paths, is_complete } })
    }

    /// Removes objects for cause that refer to a path, directly or not; returns how many, and
    /// whether some are left for another call. The path itself need not be there. With `purge`,
    /// their bytes go as [`purge_object`](Self::purge_object) says.
    ///
    /// An object goes after those that refer to it. So a call that breaks off leaves a way from the
    /// path to each object that is left, and the next call finds them.
    pub async fn remove_referrers(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        subject: Option<&str>,
        purge: bool,
    ) -> Result<(u64, bool)> {
        let mut removed = 0;
        // From the path to one that refers to it, and so on. Memory: the longest chain.
        let mut chain = vec![*hash];
        let mut in_chain = HashSet::from([*hash]);
        while let Some(last) = chain.last() {
            if removed == REFERRERS_MAX {
                return Ok((removed, true));
            }
            match self.index().find_referrers(cache.id, last, 1).await?.pop() {
                Some(referrer) if in_chain.insert(referrer) => chain.push(referrer),
                // They refer to each other in a circle.
                Some(referrer) => {
                    let done = self.remove_or_purge(cache, &referrer, subject, purge).await?;
                    removed += u64::from(done.was_there);
                }
                None => {
                    in_chain.remove(last);
                    let done = chain.pop().expect("it is the last one");
                    if !chain.is_empty() {
                        let done = self.remove_or_purge(cache, &done, subject, purge).await?;
                        removed += u64::from(done.was_there);
                    }
                }
            }
        }
        Ok((removed, false))
    }

    /// Removes an object for cause: its narinfo, its NAR in this cache and its alias go at once.
    /// The audit names `subject`, that of the caller's token. If the path is a derivation, the logs
    /// of its builds go too.
    pub async fn remove_object(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        subject: Option<&str>,
    ) -> Result<RemovedForCause> {
        self.remove_or_purge(cache, hash, subject, false).await
    }

    /// The same, and lets a collection remove the bytes that nothing else needs
    /// without their grace. If the object was removed before, its bytes go now.
    pub async fn purge_object(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        subject: Option<&str>,
    ) -> Result<RemovedForCause> {
        self.remove_or_purge(cache, hash, subject, true).await
    }

    async fn remove_or_purge(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        subject: Option<&str>,
        purge: bool,
    ) -> Result<RemovedForCause> {
        let (engine, cache, hash, subject) = (self.clone(), cache.id, *hash, subject.map(str::to_owned));
        finish(async move {
            let now = engine.now();
            let removed = engine.index().remove_for_cause(cache, &hash, subject.as_deref(), purge, now).await;
            engine.forget_answers(cache, &hash);
            engine.readable().note_removal(Some(cache));
            Ok(removed?)
        })
        .await
    }
}
