//! One cache that a push by chunks goes to: what it has, what it is sent, and what it commits.
//!
//! Everything here is bookkeeping without waiting. `pipeline` sends the requests.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormer_api::v2::{CommitEntry, CommitResult, SessionResponse};
use dormer_api::{CacheName, UploadPathNarInfo, UploadPathResult, UploadPathResultKind};
use dormer_format::{ChunkId, NarManifest};
use dormer_nix::Backoff;
use serde::Serialize;
use tokio::time::Instant;

use super::commit_order::{CommitOrder, PathGraph};
use super::known_chunks::{Known, KnownChunks};
use super::numbers::PathNumber;
use super::part_builder::{Part, PartBuilder};
use super::session_file::SessionFile;
use crate::api::{ApiClient, is_passing, path_refusal};
use crate::error::Error;
use crate::path_info::PathInfo;
use crate::push::{FailedPath, NotTriedPath, PushSummary};
use crate::reporter::{PathDone, PushReporter};

/// NAR bytes in a commit that does not wait for more paths. A gigabyte takes some 13 commits. The
/// server keeps what it decodes until the check, up to half of its memory for uploads (96 MiB by
/// default): while these bytes gather, chunks of later paths come.
pub(super) const COMMIT_NAR_BYTES: u64 = 80 * 1024 * 1024;
/// NAR bytes in a commit beside the last parts: the server checks them while these parts are on the
/// line.
pub(super) const LAST_NAR_BYTES: u64 = 16 * 1024 * 1024;
/// Paths in a commit that does not wait for more paths.
const COMMIT_PATHS: usize = 128;
/// Longest time that a path waits for others to be committed with.
const COMMIT_WAIT: Duration = Duration::from_secs(3);
/// Bytes of a commit's body, unless one path alone needs more.
const COMMIT_BODY_BYTES: usize = 4 * 1024 * 1024;
/// First and longest pause before the client asks again for what the server still verifies. The
/// server itself waits some seconds before it answers.
const ASK_AGAIN: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) };
/// Longest time without any progress in what the server verifies. It reads 100 GiB within that.
const COMMIT_PATIENCE: Duration = Duration::from_mins(30);
/// How often a path's chunks may turn out to be missing at the commit.
const ROUNDS_MAX: u8 = 5;

/// Why a target gets nothing more.
#[derive(Debug)]
pub(super) enum Stop {
    /// Every path is committed or lost.
    Done,
    /// An error that would affect every path.
    Failed,
    /// The session is over. A new one may go on.
    SessionEnded,
}

/// A cache that a push goes to.
pub(super) struct Target {
    pub(super) api: ApiClient,
    pub(super) cache: CacheName,
    pub(super) session: SessionFile,
    pub(super) limits: SessionResponse,
    pub(super) order: CommitOrder,
    pub(super) stop: Option<Stop>,
    pub(super) summary: PushSummary,
    paths: Arc<Vec<PathInfo>>,
    reporter: Arc<dyn PushReporter>,
    /// Paths that have to be cut, for the first time or again.
    cut_wanted: Vec<bool>,
    /// Paths whose chunks are all known.
    is_cut: Vec<bool>,
    /// Number of chunks of each path that the target does not have yet.
    awaited: Vec<usize>,
    /// Raw bytes that are sent for each path.
    sent_raw: Vec<u64>,
    rounds: Vec<u8>,
    known: KnownChunks,
    /// Chunks that the target asked for at a commit.
    demanded: HashSet<ChunkId>,
    pub(super) builder: PartBuilder,
    /// Parts that wait for a connection.
    pub(super) parts: VecDeque<Part>,
    pub(super) parts_in_flight: usize,
    /// Bytes of the parts that wait or are in flight.
    pub(super) part_bytes: u64,
    /// Whether the target lacked a chunk at a commit.
    has_lost: bool,
    /// Chunks that arrived in parts since the commit began that is under way, or since that of the
    /// paths that the server verifies. Only of a target that has lost chunks.
    arrived_beside: HashSet<ChunkId>,
    /// When the first path became ready that was not in a commit yet.
    ready_since: Option<Instant>,
    ready_nar_bytes: u64,
    /// Whether something changed since no path could be committed.
    may_commit: bool,
    pub(super) committing: bool,
    /// Paths that the server verifies.
    asked: HashSet<PathNumber>,
    ask_again_at: Option<Instant>,
    /// How often the server was asked since the last progress.
    asked_in_vain: u32,
    last_progress: Instant,
    /// Differs from that of every other push.
    name: String,
}

/// The metadata of a path in a commit. A server remembers for some minutes what it answered to an
/// entry of a session. The name of the push tells apart a repeated request and a later push in the
/// same session: what was removed between two pushes comes back with the second.
#[derive(Serialize)]
struct EntryInfo<'a> {
    #[serde(flatten)]
    info: UploadPathNarInfo,
    push: &'a str,
}

/// What to do with a chunk of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: the target has the chunk, or is sent it for another path.
    None,
    /// Ask whether the target has it.
    Ask,
    /// Send it.
    Send,
}

impl Target {
    /// One of `targets` targets that share the memory.
    pub(super) fn new(
        api: ApiClient,
        cache: CacheName,
        session: SessionFile,
        limits: SessionResponse,
        (paths, graph, wants): (Arc<Vec<PathInfo>>, Arc<PathGraph>, Vec<bool>),
        (part_bytes_max, targets): (u64, usize),
        reporter: Arc<dyn PushReporter>,
    ) -> Self {
        let count = paths.len();
        Self {
            api,
            cache,
            session,
            limits,
            order: CommitOrder::new(graph, &wants),
            stop: None,
            summary: PushSummary::default(),
            paths,
            reporter,
            cut_wanted: wants,
            is_cut: vec![false; count],
            awaited: vec![0; count],
            sent_raw: vec![0; count],
            rounds: vec![0; count],
            known: KnownChunks::of_one_of(targets),
            demanded: HashSet::new(),
            builder: PartBuilder::new(part_bytes_max),
            parts: VecDeque::new(),
            parts_in_flight: 0,
            part_bytes: 0,
            has_lost: false,
            arrived_beside: HashSet::new(),
            ready_since: None,
            ready_nar_bytes: 0,
            may_commit: false,
            committing: false,
            asked: HashSet::new(),
            ask_again_at: None,
            asked_in_vain: 0,
            last_progress: Instant::now(),
            name: format!("{:016x}", rand::random::<u64>()),
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.stop.is_none()
    }

    /// Whether the path has to be cut for this target. A cut begins now if so.
    pub(super) fn begin_cut(&mut self, path: PathNumber) -> bool {
        let wanted = self.wants_cut(path);
        self.cut_wanted[path] = false;
        wanted
    }

    pub(super) fn wants_cut(&self, path: PathNumber) -> bool {
        self.is_active() && self.cut_wanted[path] && self.order.is_left(path)
    }

    /// The path has this chunk.
    pub(super) fn see_chunk(&mut self, path: PathNumber, chunk: ChunkId, raw_bytes: u64) -> Need {
        if !self.is_active() || !self.order.is_left(path) {
            return Need::None;
        }
        match self.known.look_up(chunk, path) {
            Known::New => {
                self.awaited[path] += 1;
                if self.demanded.remove(&chunk) {
                    self.sent_raw[path] += raw_bytes;
                    Need::Send
                } else {
                    Need::Ask
                }
            }
            Known::UnderWay => {
                self.awaited[path] += 1;
                self.demanded.remove(&chunk);
                self.reporter.spared(raw_bytes);
                Need::None
            }
            Known::There => {
                self.reporter.spared(raw_bytes);
                Need::None
            }
        }
    }

    /// The target answered for a chunk that it was asked about for `path`. Returns whether to send
    /// it.
    pub(super) fn answered(
        &mut self,
        path: PathNumber,
        chunk: ChunkId,
        raw_bytes: u64,
        missing: bool,
    ) -> bool {
        if !self.is_active() {
            return false;
        }
        if missing {
            self.sent_raw[path] += raw_bytes;
        } else {
            self.reporter.spared(raw_bytes);
            self.arrived(chunk);
        }
        missing
    }

    /// The target has this chunk now.
    pub(super) fn arrived(&mut self, chunk: ChunkId) {
        for path in self.known.arrived(chunk) {
            self.awaited[path] = self.awaited[path].saturating_sub(1);
            self.check_ready(path);
        }
    }

    /// The target took a part with these chunks.
    pub(super) fn part_arrived(&mut self, chunks: Vec<ChunkId>) {
        if self.has_lost && (self.committing || !self.asked.is_empty()) {
            self.arrived_beside.extend(&chunks);
        }
        for chunk in chunks {
            self.arrived(chunk);
        }
    }

    /// All chunks of the path were seen.
    pub(super) fn end_cut(&mut self, path: PathNumber) {
        self.is_cut[path] = true;
        self.check_ready(path);
    }

    fn check_ready(&mut self, path: PathNumber) {
        if self.is_cut[path] && self.awaited[path] == 0 && self.order.is_left(path) {
            if !self.order.ready().contains(&path) {
                self.ready_nar_bytes += self.paths[path].nar_size;
                self.ready_since.get_or_insert_with(Instant::now);
                self.may_commit = true;
            }
            self.order.set_ready(path);
        }
    }

    /// Makes a part of the chunks that are compressed so far.
    pub(super) fn finish_part(&mut self) {
        if let Some(part) = self.builder.finish() {
            self.part_bytes += part.size;
            self.parts.push_back(part);
        }
    }

    /// When a commit becomes due that is not due now.
    pub(super) fn next_commit_at(&self) -> Option<Instant> {
        if self.committing || !self.is_active() || self.order.ready().is_empty() {
            return None;
        }
        // New paths wait until the server is asked about the others again.
        self.ask_again_at.or_else(|| Some(self.ready_since.filter(|_| self.may_commit)? + COMMIT_WAIT))
    }

    /// The paths of the next commit with the request's body, if a commit is due. One of
    /// `nar_bytes_due` NAR bytes waits for no more paths.
    pub(super) fn next_commit(
        &mut self,
        manifests: &[Option<Arc<NarManifest>>],
        nar_bytes_due: u64,
    ) -> Option<(Vec<PathNumber>, Bytes)> {
        if self.committing || !self.is_active() || self.order.ready().is_empty() {
            return None;
        }
        let now = Instant::now();
        let asks_again = self.ask_again_at.is_some_and(|at| at <= now);
        let is_new = self.may_commit
            && (self.ready_nar_bytes >= nar_bytes_due
                || self.order.ready().len() >= COMMIT_PATHS
                || self.ready_since.is_some_and(|since| since + COMMIT_WAIT <= now));
        // What the server verifies goes first, so new paths alone would jump the queue.
        if !asks_again && (!is_new || self.ask_again_at.is_some()) {
            return None;
        }
        let paths_max = usize::try_from(self.limits.commit_paths_max).unwrap_or(usize::MAX).max(1);
        let body_max = usize::try_from(self.limits.commit_bytes_max).unwrap_or(usize::MAX);
        let body_max = body_max.min(COMMIT_BODY_BYTES);
        let mut body = Vec::new();
        let mut count = 0;
        let (cache, paths) = (&self.cache, &self.paths);
        let mut broken = None;
        let batch = self.order.batch(|path| {
            if count == paths_max || broken.is_some() {
                return false;
            }
            let manifest = manifests[path].as_ref().expect("a ready path was cut").encode();
            let info = EntryInfo { info: paths[path].upload_info(cache), push: &self.name };
            let info = serde_json::to_vec(&info).expect("text and numbers only");
            let before = body.len();
            let entry = CommitEntry { info: &info, manifest: &manifest };
            if entry.encode_to(&mut body).is_err() {
                broken = Some(path);
                return false;
            }
            if before > 0 && body.len() > body_max {
                body.truncate(before);
                return false;
            }
            count += 1;
            true
        });
        debug_assert!(broken.is_none(), "paths with such manifests are not pushed by chunks");
        self.may_commit = false;
        self.ready_since = None;
        self.ready_nar_bytes = 0;
        self.ask_again_at = None;
        if batch.is_empty() {
            return None;
        }
        // The server begins with what it was not asked about before.
        if batch.iter().any(|path| !self.asked.contains(path)) {
            self.last_progress = now;
        }
        self.committing = true;
        // What the server verifies, it may have looked at before those chunks came.
        if !batch.iter().any(|path| self.asked.contains(path)) {
            self.arrived_beside = HashSet::new();
        }
        Some((batch, body.into()))
    }

    /// The server answered a commit. Returns the paths that have to be cut again.
    pub(super) fn committed(
        &mut self,
        batch: &[PathNumber],
        results: Vec<CommitResult>,
        manifests: &[Option<Arc<NarManifest>>],
    ) -> Vec<PathNumber> {
        let mut again = Vec::new();
        let mut changed = false;
        let left_before = self.order.left();
        self.asked.clear();
        for (&path, result) in batch.iter().zip(results) {
            if !self.order.is_left(path) {
                continue;
            }
            match result {
                CommitResult::Committed(result) => self.count(path, &result),
                CommitResult::Verifying | CommitResult::Waiting => {
                    self.asked.insert(path);
                }
                CommitResult::Failed { error } if is_passing(&error) => {
                    self.asked.insert(path);
                }
                CommitResult::Failed { error } => {
                    let action = format!("pushing {} to cache {}", self.paths[path].path, self.cache);
                    self.fail(path, path_refusal(action, &error));
                }
                CommitResult::Unknown => {
                    let (path_name, cache) = (self.paths[path].path.clone(), self.cache.clone());
                    self.fail(path, Error::CommitState { path: path_name, cache });
                }
                CommitResult::Missing { chunks } => {
                    self.rounds[path] += 1;
                    self.has_lost = true;
                    changed = true;
                    if self.rounds[path] > ROUNDS_MAX {
                        let (path_name, cache) = (self.paths[path].path.clone(), self.cache.clone());
                        self.fail(path, Error::ChunksLost { path: path_name, cache });
                        continue;
                    }
                    let manifest = manifests[path].as_ref().expect("a path that was asked for was cut");
                    self.demand(path, manifest, &chunks);
                    again.push(path);
                }
            }
        }
        self.committing = false;
        self.may_commit = true;
        changed |= self.order.left() < left_before;
        if changed {
            self.last_progress = Instant::now();
            self.asked_in_vain = 0;
        }
        if self.order.ready().len() > self.asked.len() {
            self.ready_since.get_or_insert_with(Instant::now);
        }
        if !self.asked.is_empty() {
            self.asked_in_vain += 1;
            self.ask_again_at = Some(Instant::now() + ASK_AGAIN.bound(self.asked_in_vain));
            if self.last_progress.elapsed() > COMMIT_PATIENCE {
                let action = format!("committing paths to cache {}", self.cache);
                self.stop_with(Error::Stalled { action, seconds: COMMIT_PATIENCE.as_secs() });
            }
        }
        again
    }

    /// The target lacks chunks of a path at these places, and perhaps others.
    fn demand(&mut self, path: PathNumber, manifest: &NarManifest, places: &[u64]) {
        self.order.set_open(path);
        self.is_cut[path] = false;
        self.cut_wanted[path] = true;
        for chunk in &manifest.chunks {
            self.known.doubt(chunk);
        }
        let chunk = |place: &u64| manifest.chunks.get(usize::try_from(*place).ok()?).copied();
        // Perhaps the target looked before a part brought the chunk again for another path. The
        // target says so when it is asked.
        let is_lost = |chunk: &ChunkId| !self.arrived_beside.contains(chunk);
        self.demanded.extend(places.iter().filter_map(chunk).filter(is_lost));
    }

    fn count(&mut self, path: PathNumber, result: &UploadPathResult) {
        let info = &self.paths[path];
        let spared = info.nar_size.saturating_sub(self.sent_raw[path]);
        let done = PathDone {
            path: info.path.clone(),
            nar_size: info.nar_size,
            kind: result.kind,
            file_size: result.file_size,
            frac_deduplicated: Some(share(spared, info.nar_size)),
            kept: result.kept,
        };
        debug_assert!(result.kind != UploadPathResultKind::Unknown || result.file_size.is_none());
        self.summary.bytes_read += info.nar_size;
        self.summary.bytes_saved += spared;
        self.order.set_committed(path);
        self.reporter.path_done(path, &done);
        if done.kept { self.summary.kept.push(done) } else { self.summary.pushed.push(done) }
    }

    /// The path failed, and with it the paths that refer to it.
    pub(super) fn fail(&mut self, path: PathNumber, error: Error) {
        if !self.is_active() || !self.order.is_left(path) {
            return;
        }
        if error.is_fatal_for_push() {
            self.stop_at(path, error);
            return;
        }
        let lost = self.order.lose(path);
        self.note_failure(path, error);
        let failed_reference = Some(self.paths[path].path.clone());
        self.summary.not_tried.extend(lost.into_iter().map(|path| NotTriedPath {
            path: self.paths[path].path.clone(),
            failed_reference: failed_reference.clone(),
        }));
        self.may_commit = true;
    }

    /// An error that would affect every path.
    pub(super) fn stop_with(&mut self, error: Error) {
        if let Some(path) = self.order.first_left()
            && self.is_active()
        {
            self.stop_at(path, error);
        }
    }

    fn stop_at(&mut self, path: PathNumber, error: Error) {
        if matches!(error, Error::SessionEnded { .. }) {
            self.end(Stop::SessionEnded);
            return;
        }
        self.note_failure(path, error.of_whole_push());
        let rest = (0..self.paths.len()).filter(|other| *other != path && self.order.is_left(*other));
        let not_tried = rest
            .map(|other| NotTriedPath { path: self.paths[other].path.clone(), failed_reference: None })
            .collect::<Vec<_>>();
        self.summary.not_tried.extend(not_tried);
        self.end(Stop::Failed);
    }

    /// A request failed that carried these chunks. The paths that wait for them fail. A path that
    /// is cut later asks about them again.
    pub(super) fn fail_chunks(&mut self, chunks: &[ChunkId], error: Error) {
        if error.is_fatal_for_push() || matches!(error, Error::SessionEnded { .. }) {
            self.stop_with(error);
            return;
        }
        let waiting: std::collections::BTreeSet<PathNumber> =
            chunks.iter().flat_map(|chunk| self.known.lost(chunk)).collect();
        let error = Arc::new(error);
        for path in waiting {
            self.fail(path, Error::Shared(Arc::clone(&error)));
        }
    }

    fn note_failure(&mut self, path: PathNumber, error: Error) {
        let name = self.paths[path].path.clone();
        self.reporter.path_failed(path, &name, &error);
        self.summary.failed.push(FailedPath { path: name, error });
    }

    /// Notes that the target is done, if it is.
    pub(super) fn check_done(&mut self) {
        if self.is_active() && self.order.left() == 0 {
            self.end(Stop::Done);
        }
    }

    fn end(&mut self, stop: Stop) {
        self.stop = Some(stop);
        self.builder = PartBuilder::new(0);
        self.part_bytes -= self.parts.drain(..).map(|part| part.size).sum::<u64>();
    }

    /// The paths that neither ended nor failed.
    pub(super) fn rest(&self) -> Vec<PathInfo> {
        let left = (0..self.paths.len()).filter(|path| self.order.is_left(*path));
        left.map(|path| self.paths[path].clone()).collect()
    }
}

/// `part` of `whole`, in 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use dormer_api::ErrorName;
    use dormer_nix::NarHash;

    use super::*;
    use crate::api::HttpSettings;
    use crate::reporter::Silent;

    /// A target that wants `count` paths without references.
    fn target(count: usize) -> Target {
        let info = |number| PathInfo {
            store_dir: "/nix/store".parse().unwrap(),
            path: format!("{number:032}-p").parse().unwrap(),
            nar_hash: NarHash::digest(b""),
            nar_size: 1000,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            system: None,
            extra: Vec::new(),
        };
        let limits = SessionResponse {
            format: 1,
            store_dir: "/nix/store".parse().unwrap(),
            chunk_min: 1024,
            chunk_avg: 4096,
            chunk_max: 16 * 1024,
            level: 1,
            part_chunks_max: 4_096,
            part_bytes_max: 1 << 20,
            missing_chunks_max: 100,
            commit_bytes_max: 1 << 20,
            commit_paths_max: 10,
            ends_at: i64::MAX,
        };
        let endpoint = "http://127.0.0.1:1".parse().unwrap();
        let cache: CacheName = "main".parse().unwrap();
        let session = SessionFile::open(None, &endpoint, &cache);
        let api = ApiClient::new(endpoint, None, HttpSettings::default()).unwrap();
        let graph = Arc::new(PathGraph::new(vec![Vec::new(); count]));
        let work = (Arc::new((0..count).map(info).collect()), graph, vec![true; count]);
        Target::new(api, cache, session, limits, work, (1 << 20, 1), Arc::new(Silent))
    }

    fn chunk(number: u8) -> ChunkId {
        ChunkId::from_bytes([number; 32])
    }

    fn manifests(count: usize) -> Vec<Option<Arc<NarManifest>>> {
        let fills = dormer_format::RecipeBuilder::new().finish();
        vec![Some(Arc::new(NarManifest { chunks: vec![chunk(1)], fills })); count]
    }

    fn refusal() -> Error {
        let (action, message) = ("sending chunks".to_owned(), "too large".to_owned());
        Error::Refused { action, status: 413, name: Some(ErrorName::RequestError), message }
    }

    fn make_ready(target: &mut Target, path: PathNumber) {
        assert!(target.begin_cut(path));
        target.end_cut(path);
    }

    /// An instant before which the server was silent for too long.
    fn too_long_ago() -> Instant {
        Instant::now().checked_sub(COMMIT_PATIENCE + Duration::from_secs(1)).unwrap()
    }

    #[test]
    fn a_chunk_of_a_part_that_was_refused_is_asked_about_again() {
        let mut target = target(3);
        for path in 0..3 {
            assert!(target.begin_cut(path));
        }
        assert_eq!(target.see_chunk(0, chunk(1), 1000), Need::Ask);
        assert_eq!(target.see_chunk(1, chunk(1), 1000), Need::None);
        assert!(target.answered(0, chunk(1), 1000, true));
        target.fail_chunks(&[chunk(1)], refusal());
        assert_eq!(target.summary.failed.len(), 2, "both waited for it");
        assert_eq!(target.see_chunk(2, chunk(1), 1000), Need::Ask, "nothing brings it to the third path");
        target.end_cut(2);
        assert!(target.order.ready().is_empty());
        target.arrived(chunk(1));
        assert!(target.order.ready().contains(&2));
    }

    #[test]
    fn a_chunk_that_came_again_beside_a_commit_is_not_sent_a_third_time() {
        let mut target = target(2);
        let commit = |target: &mut Target, path| {
            let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
            assert_eq!(batch, [path]);
            batch
        };
        let miss = |target: &mut Target, batch: &[PathNumber]| {
            let missing = vec![CommitResult::Missing { chunks: vec![0] }];
            assert_eq!(target.committed(batch, missing, &manifests(2)), batch);
        };
        assert!(target.begin_cut(0));
        assert_eq!(target.see_chunk(0, chunk(1), 1000), Need::Ask);
        assert!(target.answered(0, chunk(1), 1000, true));
        target.part_arrived(vec![chunk(1)]);
        target.end_cut(0);
        let batch = commit(&mut target, 0);
        miss(&mut target, &batch);
        // The chunk is sent again for the first path, and arrives while the server still looks for
        // those of the second one.
        assert!(target.begin_cut(0));
        assert_eq!(target.see_chunk(0, chunk(1), 1000), Need::Send);
        make_ready(&mut target, 1);
        let batch = commit(&mut target, 1);
        target.part_arrived(vec![chunk(1)]);
        miss(&mut target, &batch);
        assert!(target.begin_cut(1));
        assert_eq!(target.see_chunk(1, chunk(1), 1000), Need::Ask, "the server knows");
        // What it then says counts: a chunk that it loses again is sent again.
        target.arrived(chunk(1));
        target.end_cut(1);
        let batch = commit(&mut target, 1);
        miss(&mut target, &batch);
        assert!(target.begin_cut(1));
        assert_eq!(target.see_chunk(1, chunk(1), 1000), Need::Send);
    }

    /// A target of two paths that share a chunk. The target has lost the chunk, and it is sent
    /// again for the first path.
    fn target_that_lost_a_chunk() -> Target {
        let mut target = target(2);
        make_ready(&mut target, 0);
        let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
        target.committed(&batch, vec![CommitResult::Missing { chunks: vec![0] }], &manifests(2));
        assert!(target.begin_cut(0));
        assert_eq!(target.see_chunk(0, chunk(1), 1000), Need::Send);
        target.end_cut(0);
        make_ready(&mut target, 1);
        target
    }

    #[test]
    fn a_chunk_that_came_while_the_server_verified_is_not_sent_a_third_time() {
        let mut target = target_that_lost_a_chunk();
        let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
        assert_eq!(batch, [1]);
        target.committed(&batch, vec![CommitResult::Verifying], &manifests(2));
        target.part_arrived(vec![chunk(1)]);
        // The answer is that of the check that began before the chunk came.
        target.ask_again_at = Some(Instant::now());
        let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
        let place = batch.iter().position(|path| *path == 1).unwrap();
        let mut results = vec![CommitResult::Verifying; batch.len()];
        results[place] = CommitResult::Missing { chunks: vec![0] };
        target.committed(&batch, results, &manifests(2));
        assert!(target.begin_cut(1));
        assert_eq!(target.see_chunk(1, chunk(1), 1000), Need::Ask);
    }

    #[test]
    fn a_chunk_that_is_under_way_is_demanded_no_more() {
        let mut target = target_that_lost_a_chunk();
        let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
        let missing = || vec![CommitResult::Missing { chunks: vec![0] }];
        target.committed(&batch, missing(), &manifests(2));
        assert!(target.begin_cut(1));
        assert_eq!(target.see_chunk(1, chunk(1), 1000), Need::None, "it is under way");
        assert!(target.demanded.is_empty());
    }

    #[test]
    fn a_state_that_a_later_server_has_concerns_its_path_only() {
        let mut target = target(2);
        make_ready(&mut target, 0);
        make_ready(&mut target, 1);
        let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
        target.committed(&batch, vec![CommitResult::Unknown, CommitResult::Verifying], &manifests(2));
        let [failed] = &target.summary.failed[..] else { panic!("{:?}", target.summary) };
        assert!(matches!(failed.error, Error::CommitState { .. }) && target.is_active());
        assert!(target.order.is_left(1));
    }

    #[test]
    fn nothing_wakes_a_target_that_can_commit_nothing() {
        let mut target = target(3);
        make_ready(&mut target, 0);
        assert!(target.next_commit_at().is_some());
        target.fail(0, refusal());
        assert_eq!(target.next_commit_at(), None, "no path is ready");

        // A path that is ready for long waits for the next question about the others.
        make_ready(&mut target, 1);
        let (batch, _) = target.next_commit(&manifests(3), 0).unwrap();
        target.committed(&batch, vec![CommitResult::Verifying], &manifests(3));
        make_ready(&mut target, 2);
        target.ready_since = Some(too_long_ago());
        let ask_again_at = Some(Instant::now() + Duration::from_mins(1));
        target.ask_again_at = ask_again_at;
        assert!(target.next_commit(&manifests(3), 0).is_none());
        assert_eq!(target.next_commit_at(), ask_again_at);
    }

    #[test]
    fn patience_begins_with_the_commit_and_not_with_the_push() {
        let mut target = target(2);
        let ask = |target: &mut Target| {
            target.ask_again_at = target.ask_again_at.map(|_| Instant::now());
            let (batch, _) = target.next_commit(&manifests(2), 0).unwrap();
            let results = vec![CommitResult::Verifying; batch.len()];
            target.committed(&batch, results, &manifests(2));
        };
        for path in 0..2 {
            // Sending the NAR took long.
            target.last_progress = too_long_ago();
            make_ready(&mut target, path);
            ask(&mut target);
            assert!(target.is_active(), "{:?}", target.summary);
        }
        target.last_progress = too_long_ago();
        ask(&mut target);
        assert!(matches!(target.summary.failed[0].error, Error::Stalled { .. }), "{:?}", target.summary);
    }
}
