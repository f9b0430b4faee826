//! The push itself: reads and cuts NARs, asks what is missing, compresses, sends, commits.
//!
//! ```text
//! cutting threads ─► window ─ ask every target ─► lacked chunks ─ compressing threads ─┐
//!                                                                                       │ once for all targets
//!                    commit ◄─ paths with all chunks ◄─ connections ◄─ parts ◄──────────┘ of one target
//! ```
//!
//! One task owns all state. It starts work, and takes the outcomes one by one.
//!
//! Invariants
//! - Memory: raw chunks take at most [`RAW_BYTES_MAX`], compressed ones [`ENCODED_BYTES_MAX`], and
//!   manifests of paths that are not committed about [`MANIFEST_BYTES_MAX`], whatever the push.
//!   Threads that read hold 2 MiB each, and [`CUTTING_MAX`] limits their number; `encoders` limits
//!   what those that compress hold.
//! - The push never waits for itself. A window or a part that is not full goes as soon as nothing
//!   can add to it, or as soon as it takes the room that others need.
//! - Chunks go into parts in the order of the NARs, so that readers find neighbours together.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormer_api::CacheName;
use dormer_api::v2::{CommitResponse, SessionId};
use dormer_format::{ChunkId, ChunkParams, NarManifest, StoredChunk};
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::cutter::{CutChunk, CutEvent, CutJob};
use super::encoders::{Encoders, LackedChunk, encoding_threads};
use super::numbers::{PathNumber, TargetNumber, TargetSet, contains};
use super::target::{COMMIT_NAR_BYTES, LAST_NAR_BYTES, Need, Target};
use crate::api::ApiClient;
use crate::dump::{CaseHack, DumpError};
use crate::error::{Error, Result};
use crate::path_info::PathInfo;
use crate::reporter::{PushReporter, Retry, UploadReporter};

/// Raw bytes that are asked about at once. With those below, the process takes less than 192 MiB,
/// of which 40 are the program's own and more than as many are lost between allocations.
const WINDOW_BYTES: usize = 24 * 1024 * 1024;
/// Raw bytes in memory: a window, and two thirds of the next one. While the targets are asked about
/// one, which takes as long as the parts that are on the line before the question, chunks of the
/// other are compressed. Two whole windows took 179 MiB of process, and what is known of a large
/// push takes up to 31 MiB more.
pub(super) const RAW_BYTES_MAX: usize = 40 * 1024 * 1024;
/// Compressed bytes in memory: two parts of 8 MiB on the line, and the beginning of a third one.
pub(super) const ENCODED_BYTES_MAX: u64 = 20 * 1024 * 1024;
/// The first window and the first part of a push go earlier, so that no line is idle while a full
/// one gathers. Each early one doubles the size of the next.
const EARLY_WINDOW_BYTES: usize = 4 * 1024 * 1024;
const EARLY_PART_BYTES: u64 = 1024 * 1024;
/// Raw bytes that are asked about at once where the targets have most of them. Then the line has
/// time for more questions, and smaller ones find sooner what is missing.
const KNOWN_WINDOW_BYTES: usize = 12 * 1024 * 1024;
/// Windows that the targets are asked about at once, however few chunks a question may have.
const QUESTIONS_MAX: usize = 8;
/// Bytes of manifests that wait for their commit, before another NAR is begun. A manifest takes
/// about 1/4,000 of its NAR.
const MANIFEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Raw bytes that one thread compresses in a row.
const BATCH_BYTES: usize = 1024 * 1024;
/// Most threads that read. Each takes up to 2 MiB beside the room.
const CUTTING_MAX: usize = 8;
/// Bytes of a chunk's id.
const ID_BYTES: u64 = 32;
/// Chunks between the cutting threads and the task. The room counts their bytes.
const CHUNKS_WAITING: usize = 64;

/// How to read and compress.
pub(super) struct Work {
    pub(super) paths: Arc<Vec<PathInfo>>,
    pub(super) files: Vec<PathBuf>,
    pub(super) case_hack: CaseHack,
    pub(super) params: ChunkParams,
    pub(super) store_dir: String,
    pub(super) level: i32,
    /// Most threads that read, and most that compress.
    pub(super) threads: usize,
    /// Most parts in flight to each target.
    pub(super) jobs: usize,
    pub(super) reporter: Arc<dyn PushReporter>,
}

/// A push to targets that cut alike.
pub(super) struct Pipeline {
    work: Work,
    targets: Vec<Target>,
    manifests: Vec<Option<Arc<NarManifest>>>,
    /// Paths that were given to a thread once, from the first on.
    begun: PathNumber,
    /// Paths that have to be cut again.
    again: VecDeque<PathNumber>,
    /// For each path that is being cut, the targets that want it.
    cut_for: Vec<TargetSet>,
    cutting: usize,
    room: Arc<Semaphore>,
    cut_sender: mpsc::Sender<CutEvent>,
    cut_events: mpsc::Receiver<CutEvent>,
    window: Vec<WindowChunk>,
    window_bytes: usize,
    /// The size of the next window while the targets lack most chunks. It grows to
    /// [`WINDOW_BYTES`].
    lacked_window_bytes: usize,
    /// Whether the targets had most of the last window.
    has_most: bool,
    /// The size of a part that goes although it is not full, if nothing else goes.
    early_part_bytes: u64,
    /// The windows that the targets are asked about, in the order of the NARs.
    questions: FuturesOrdered<BoxFuture<'static, AskedWindow>>,
    lacked: VecDeque<LackedChunk>,
    encoders: Arc<Encoders>,
    /// Most threads that compress.
    encoding_max: usize,
    encodes: FuturesOrdered<JoinHandle<EncodedBatch>>,
    /// Raw bytes that are being compressed, once for each target that gets them.
    encoding_bytes: u64,
    tasks: JoinSet<TaskDone>,
}

/// A chunk that some targets are asked about, and others lack for certain.
struct WindowChunk {
    cut: CutChunk,
    ask: TargetSet,
    send: TargetSet,
}

struct AskedWindow {
    window: Vec<WindowChunk>,
    answers: Vec<Answer>,
}

struct EncodedBatch {
    outcome: Result<Vec<(StoredChunk, TargetSet)>, dormer_format::Error>,
    targets: TargetSet,
    bytes: u64,
}

/// The outcome of a task.
enum TaskDone {
    Cutter(Result<(), JoinError>),
    Part { target: TargetNumber, part_bytes: u64, sent: u64, chunks: Vec<ChunkId>, outcome: Result<()> },
    Commit { target: TargetNumber, batch: Vec<PathNumber>, outcome: Result<CommitResponse> },
}

/// What one target is asked about the chunks at these places of a window.
struct Question {
    target: TargetNumber,
    api: ApiClient,
    cache: CacheName,
    session: SessionId,
    places: Vec<usize>,
    chunks: Vec<ChunkId>,
}

impl Question {
    fn of_window(window: &[WindowChunk], number: TargetNumber, target: &Target) -> Option<Self> {
        let places = window.iter().enumerate().filter(|(_, chunk)| contains(chunk.ask, number));
        let (places, chunks): (Vec<usize>, Vec<ChunkId>) =
            places.map(|(place, chunk)| (place, chunk.cut.id)).unzip();
        (!chunks.is_empty() && target.is_active()).then(|| Self {
            target: number,
            api: target.api.clone(),
            cache: target.cache.clone(),
            session: target.session.id(),
            places,
            chunks,
        })
    }

    async fn ask(self, reporter: Arc<dyn PushReporter>) -> Answer {
        let missing = self.api.missing_chunks(&self.cache, &self.session, &self.chunks).await;
        reporter.sent(ID_BYTES * self.chunks.len() as u64);
        Answer { target: self.target, places: self.places, missing }
    }
}

/// What one target said of the chunks at these places of a window.
struct Answer {
    target: TargetNumber,
    places: Vec<usize>,
    missing: Result<Vec<bool>>,
}

impl Pipeline {
    pub(super) fn new(work: Work, targets: Vec<Target>) -> Self {
        let (cut_sender, cut_events) = mpsc::channel(CHUNKS_WAITING);
        let count = work.paths.len();
        let encoders = Arc::new(Encoders::new(work.level));
        let encoding_max = encoding_threads(work.threads, work.level, work.params.max);
        Self {
            work,
            targets,
            manifests: vec![None; count],
            begun: 0,
            again: VecDeque::new(),
            cut_for: vec![0; count],
            cutting: 0,
            room: Arc::new(Semaphore::new(RAW_BYTES_MAX)),
            cut_sender,
            cut_events,
            window: Vec::new(),
            window_bytes: 0,
            lacked_window_bytes: EARLY_WINDOW_BYTES,
            has_most: false,
            early_part_bytes: EARLY_PART_BYTES,
            questions: FuturesOrdered::new(),
            lacked: VecDeque::new(),
            encoders,
            encoding_max,
            encodes: FuturesOrdered::new(),
            encoding_bytes: 0,
            tasks: JoinSet::new(),
        }
    }

    /// Pushes everything, and returns the targets with their summaries.
    pub(super) async fn run(mut self) -> Vec<Target> {
        loop {
            self.start_work();
            self.targets.iter_mut().for_each(Target::check_done);
            if !self.targets.iter().any(Target::is_active) {
                return self.targets;
            }
            let wake_at = self.targets.iter().filter_map(Target::next_commit_at).min();
            let sleeps = wake_at.is_some();
            let wake_at = wake_at.unwrap_or_else(Instant::now);
            // Waiting now would be waiting for ever.
            assert!(
                sleeps
                    || self.cutting > 0
                    || !self.questions.is_empty()
                    || !self.encodes.is_empty()
                    || !self.tasks.is_empty(),
                "a push never waits for itself"
            );
            tokio::select! {
                Some(event) = self.cut_events.recv() => {
                    self.on_cut(event);
                    // Chunks come in bursts.
                    for _ in 0..CHUNKS_WAITING {
                        let Ok(event) = self.cut_events.try_recv() else { break };
                        self.on_cut(event);
                    }
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.on_task(passed_on(done)),
                Some(asked) = self.questions.next(), if !self.questions.is_empty() => self.on_answers(asked),
                Some(batch) = self.encodes.next(), if !self.encodes.is_empty() => self.on_encoded(passed_on(batch)),
                () = tokio::time::sleep_until(wake_at), if sleeps => {}
            }
        }
    }

    fn start_work(&mut self) {
        self.start_cutting();
        self.ask_windows();
        self.start_encoding();
        self.flush_parts();
        self.send_parts();
        self.start_commits();
    }

    /// Whether no thread cuts and none will, until something is committed.
    fn cuts_nothing(&self) -> bool {
        self.cutting == 0
    }

    fn start_cutting(&mut self) {
        while self.cutting < self.work.threads.min(CUTTING_MAX) {
            let Some(path) = self.next_to_cut() else { return };
            let wanting = |(number, target): (TargetNumber, &mut Target)| {
                if target.begin_cut(path) { 1 << number } else { 0 }
            };
            let targets: TargetSet = self.targets.iter_mut().enumerate().map(wanting).sum();
            self.cut_for[path] = targets;
            let info = &self.work.paths[path];
            self.work.reporter.path_started(path, &info.path, info.nar_size);
            let job = CutJob {
                path,
                file: self.work.files[path].clone(),
                case_hack: self.work.case_hack,
                nar_hash: info.nar_hash,
                nar_size: info.nar_size,
                params: self.work.params,
                store_dir: self.work.store_dir.clone(),
            };
            let (room, events) = (Arc::clone(&self.room), self.cut_sender.clone());
            let runtime = Handle::current();
            self.cutting += 1;
            self.tasks.spawn(async move {
                let thread = tokio::task::spawn_blocking(move || job.run(&room, &runtime, &events));
                TaskDone::Cutter(thread.await)
            });
        }
    }

    /// The next path to cut. Paths that no target wants any more are passed over.
    fn next_to_cut(&mut self) -> Option<PathNumber> {
        let wanted = |targets: &[Target], path| targets.iter().any(|target| target.wants_cut(path));
        while let Some(path) = self.again.pop_front() {
            if self.cut_for[path] != 0 {
                // It is being cut for another target. This waits until that is over.
                self.again.push_front(path);
                break;
            }
            if wanted(&self.targets, path) {
                return Some(path);
            }
        }
        while self.begun < self.work.paths.len() {
            let path = self.begun;
            if !wanted(&self.targets, path) {
                self.begun += 1;
                continue;
            }
            // If nothing else goes on, waiting for a commit would be waiting for ever.
            if self.manifest_bytes() >= MANIFEST_BYTES_MAX && !self.is_idle() {
                return None;
            }
            self.begun += 1;
            return Some(path);
        }
        None
    }

    /// Bytes of the manifests that some target still needs.
    fn manifest_bytes(&self) -> usize {
        let bytes = |manifest: &Arc<NarManifest>| 32 * manifest.chunks.len() + 8 * manifest.fills.fills.len();
        let manifests = self.manifests.iter().enumerate();
        let needed = manifests.filter(|(path, manifest)| manifest.is_some() && self.is_needed(*path));
        needed.filter_map(|(_, manifest)| manifest.as_ref()).map(bytes).sum()
    }

    /// Whether some target is not done with this path.
    fn is_needed(&self, path: PathNumber) -> bool {
        self.targets.iter().any(|target| target.is_active() && target.order.is_left(path))
    }

    /// Whether nothing is under way that could end by itself.
    fn is_idle(&self) -> bool {
        self.cutting == 0
            && self.tasks.is_empty()
            && self.questions.is_empty()
            && self.encodes.is_empty()
            && self.window.is_empty()
            && self.lacked.is_empty()
            && self.targets.iter().all(|target| {
                target.builder.bytes() == 0 && target.parts.is_empty() && target.next_commit_at().is_none()
            })
    }

    fn on_cut(&mut self, event: CutEvent) {
        match event {
            CutEvent::Chunk(cut) => self.on_chunk(cut),
            CutEvent::End { path, outcome } => {
                self.cutting -= 1;
                let targets = std::mem::take(&mut self.cut_for[path]);
                match outcome {
                    Ok(manifest) => {
                        self.manifests[path] = Some(Arc::new(manifest));
                        self.each(targets, |target| target.end_cut(path));
                    }
                    Err(source) => self.fail_cut(path, targets, source),
                }
            }
        }
    }

    fn fail_cut(&mut self, path: PathNumber, targets: TargetSet, source: DumpError) {
        let file = self.work.files[path].display().to_string();
        let error = Error::Dump { path: file, source };
        if targets.is_power_of_two() {
            // One target.
            let mut error = Some(error);
            self.each(targets, |target| {
                if let Some(error) = error.take() {
                    target.fail(path, error);
                }
            });
        } else {
            let error = Arc::new(error);
            self.each(targets, |target| target.fail(path, Error::Shared(Arc::clone(&error))));
        }
    }

    fn each(&mut self, targets: TargetSet, mut action: impl FnMut(&mut Target)) {
        for (number, target) in self.targets.iter_mut().enumerate() {
            if contains(targets, number) {
                action(target);
            }
        }
    }

    fn on_chunk(&mut self, cut: CutChunk) {
        let raw_bytes = cut.chunk.bytes.len();
        self.work.reporter.path_progress(cut.path, raw_bytes as u64);
        let (mut ask, mut send) = (0, 0);
        let for_targets = self.cut_for[cut.path];
        for (number, target) in self.targets.iter_mut().enumerate() {
            if contains(for_targets, number) {
                match target.see_chunk(cut.path, cut.id, raw_bytes as u64) {
                    Need::None => {}
                    Need::Ask => ask |= 1 << number,
                    Need::Send => send |= 1 << number,
                }
            }
        }
        if ask | send != 0 {
            self.window_bytes += raw_bytes;
            self.window.push(WindowChunk { cut, ask, send });
        }
    }

    /// Most chunks of a question.
    fn window_chunks_max(&self) -> usize {
        let chunks_max = self.targets.iter().map(|target| target.limits.missing_chunks_max).min();
        chunks_max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX).max(1)
    }

    /// Raw bytes of a window that waits for no more.
    fn window_bytes_due(&self) -> usize {
        if self.has_most { KNOWN_WINDOW_BYTES } else { self.lacked_window_bytes }
    }

    /// Asks about the window if it is large enough, or if nothing adds to it.
    fn ask_windows(&mut self) {
        let chunks_max = self.window_chunks_max();
        while !self.window.is_empty() && self.questions.len() < QUESTIONS_MAX {
            let is_due = self.window_bytes >= self.window_bytes_due() || self.window.len() >= chunks_max;
            if !is_due && !self.cuts_nothing() {
                return;
            }
            // A burst may have gone over the limit of a question.
            let count = self.window.len().min(chunks_max);
            let mut window: Vec<WindowChunk> = self.window.drain(..count).collect();
            self.window_bytes = self.window.iter().map(|chunk| chunk.cut.chunk.bytes.len()).sum();
            if !self.has_most {
                self.lacked_window_bytes = (2 * self.lacked_window_bytes).min(WINDOW_BYTES);
            }
            // Several NARs are cut at once. The chunks of each belong together.
            window.sort_by_key(|chunk| chunk.cut.path);
            let questions: Vec<_> = (0..self.targets.len())
                .filter_map(|number| Question::of_window(&window, number, &self.targets[number]))
                .map(|question| question.ask(Arc::clone(&self.work.reporter)))
                .collect();
            let asked = async move { AskedWindow { window, answers: join_all(questions).await } };
            self.questions.push_back(asked.boxed());
        }
    }

    fn on_task(&mut self, done: TaskDone) {
        match done {
            TaskDone::Cutter(ended) => passed_on(ended),
            TaskDone::Part { target, part_bytes, sent, chunks, outcome } => {
                let target = &mut self.targets[target];
                target.summary.bytes_sent += sent;
                target.parts_in_flight -= 1;
                target.part_bytes -= part_bytes;
                match outcome {
                    Ok(()) => target.part_arrived(chunks),
                    Err(error) => target.fail_chunks(&chunks, error),
                }
            }
            TaskDone::Commit { target, batch, outcome } => self.on_commit(target, &batch, outcome),
        }
    }

    fn on_answers(&mut self, AskedWindow { window, answers }: AskedWindow) {
        let mut send: Vec<TargetSet> = window.iter().map(|chunk| chunk.send).collect();
        for Answer { target: number, places, missing } in answers {
            let target = &mut self.targets[number];
            target.summary.bytes_sent += ID_BYTES * places.len() as u64;
            match missing {
                Ok(missing) => {
                    for (place, missing) in places.into_iter().zip(missing) {
                        let cut = &window[place].cut;
                        if target.answered(cut.path, cut.id, cut.chunk.bytes.len() as u64, missing) {
                            send[place] |= 1 << number;
                        }
                    }
                }
                // Without an answer nothing can be sent, whatever the error.
                Err(error) => target.stop_with(error),
            }
        }
        let (mut raw_bytes, mut lacked_bytes) = (0, 0);
        for (WindowChunk { cut, .. }, targets) in window.into_iter().zip(send) {
            let CutChunk { id, chunk, room, .. } = cut;
            raw_bytes += chunk.bytes.len();
            if targets != 0 {
                lacked_bytes += chunk.bytes.len();
                self.lacked.push_back(LackedChunk { id, chunk, targets, room });
            }
        }
        self.has_most = lacked_bytes < raw_bytes / 2;
    }

    /// Compressed bytes in memory, and those that may come of what is being compressed. Bytes that
    /// several targets share count for each.
    fn encoded_bytes(&self) -> u64 {
        let of_target = |target: &Target| target.builder.bytes() + target.part_bytes;
        self.encoding_bytes + self.targets.iter().map(of_target).sum::<u64>()
    }

    fn start_encoding(&mut self) {
        while self.encodes.len() < threads_now(self.encoding_max, self.encoded_bytes())
            && !self.lacked.is_empty()
        {
            let (mut batch, mut raw_bytes, mut bytes) = (Vec::new(), 0, 0);
            let mut targets = 0;
            let used = self.encoded_bytes();
            while raw_bytes < BATCH_BYTES
                && let Some(first) = self.lacked.front()
            {
                let added = first.chunk.bytes.len() as u64 * u64::from(first.targets.count_ones());
                // One chunk goes in any case if nothing else takes room.
                if used + bytes + added > ENCODED_BYTES_MAX && used + bytes > 0 {
                    break;
                }
                raw_bytes += first.chunk.bytes.len();
                bytes += added;
                targets |= first.targets;
                batch.extend(self.lacked.pop_front());
            }
            if batch.is_empty() {
                return;
            }
            self.encoding_bytes += bytes;
            let encoders = Arc::clone(&self.encoders);
            self.encodes.push_back(tokio::task::spawn_blocking(move || EncodedBatch {
                outcome: encoders.encode(batch),
                targets,
                bytes,
            }));
        }
    }

    fn on_encoded(&mut self, batch: EncodedBatch) {
        self.encoding_bytes -= batch.bytes;
        let chunks = match batch.outcome {
            Ok(chunks) => chunks,
            Err(error) => {
                let error = Arc::new(Error::Compress { source: error });
                self.each(batch.targets, |target| target.stop_with(Error::Shared(Arc::clone(&error))));
                return;
            }
        };
        for (chunk, targets) in chunks {
            self.each(targets, |target| {
                if target.is_active()
                    && let Some(part) = target.builder.add(chunk.clone())
                {
                    target.part_bytes += part.size;
                    target.parts.push_back(part);
                }
            });
        }
    }

    /// Sends parts that are not full if nothing adds to them, or if they take the room that others
    /// need.
    fn flush_parts(&mut self) {
        let early = self.early_part_bytes;
        for target in &mut self.targets {
            let is_idle = target.is_active() && target.parts.is_empty() && target.parts_in_flight == 0;
            if is_idle && target.builder.bytes() >= early {
                self.early_part_bytes = 2 * early;
                target.finish_part();
            }
        }
        if !self.encodes.is_empty() {
            return;
        }
        let nothing_comes = self.cuts_nothing()
            && self.window.is_empty()
            && self.questions.is_empty()
            && self.lacked.is_empty();
        let nothing_goes =
            self.targets.iter().all(|target| target.parts.is_empty() && target.parts_in_flight == 0);
        let takes_room = !self.lacked.is_empty() && nothing_goes;
        if nothing_comes || takes_room {
            for target in self.targets.iter_mut().filter(|target| target.is_active()) {
                target.finish_part();
            }
        }
    }

    fn send_parts(&mut self) {
        for (number, target) in self.targets.iter_mut().enumerate() {
            while target.parts_in_flight < self.work.jobs
                && let Some(part) = target.parts.pop_front()
            {
                target.parts_in_flight += 1;
                let (api, cache, session) = (target.api.clone(), target.cache.clone(), target.session.id());
                let reporter = PartReporter::new(Arc::clone(&self.work.reporter));
                self.tasks.spawn(async move {
                    let outcome = api.put_part(&cache, &session, &part, &reporter).await;
                    let (part_bytes, sent, chunks) = (part.size, reporter.sent.into_inner(), part.chunks);
                    TaskDone::Part { target: number, part_bytes, sent, chunks, outcome }
                });
            }
        }
    }

    fn start_commits(&mut self) {
        let all_is_encoded = self.cuts_nothing()
            && self.window.is_empty()
            && self.questions.is_empty()
            && self.lacked.is_empty()
            && self.encodes.is_empty();
        for (number, target) in self.targets.iter_mut().enumerate() {
            let sends_nothing = target.parts.is_empty() && target.parts_in_flight == 0;
            let nar_bytes_due = match all_is_encoded && target.builder.bytes() == 0 {
                true if sends_nothing => 0,
                true => LAST_NAR_BYTES,
                false => COMMIT_NAR_BYTES,
            };
            let Some((batch, body)) = target.next_commit(&self.manifests, nar_bytes_due) else { continue };
            let (api, cache, session) = (target.api.clone(), target.cache.clone(), target.session.id());
            let reporter = Arc::clone(&self.work.reporter);
            target.summary.bytes_sent += body.len() as u64;
            self.tasks.spawn(async move {
                let body_bytes = body.len() as u64;
                let outcome = api.commit_paths(&cache, &session, body).await;
                reporter.sent(body_bytes);
                TaskDone::Commit { target: number, batch, outcome }
            });
        }
    }

    fn on_commit(&mut self, number: TargetNumber, batch: &[PathNumber], outcome: Result<CommitResponse>) {
        let target = &mut self.targets[number];
        match outcome {
            Ok(CommitResponse { results }) if results.len() == batch.len() => {
                self.again.extend(target.committed(batch, results, &self.manifests));
            }
            Ok(_) => {
                use serde::de::Error as _;
                let action = format!("committing paths to cache {}", target.cache);
                let source = serde_json::Error::custom("the answer has another count of paths");
                target.stop_with(Error::Answer { action, source });
            }
            // The request as a whole was refused, so the next one would be too.
            Err(error) => target.stop_with(error),
        }
        for &path in batch {
            if !self.is_needed(path) {
                self.manifests[path] = None;
            }
        }
    }
}

/// How many of `threads` compress while so many compressed bytes are in memory. When half of the
/// room is taken, the lines have enough to send, and one thread is faster than most lines: several
/// at once would only take the cache from each other.
fn threads_now(threads: usize, encoded_bytes: u64) -> usize {
    if encoded_bytes < ENCODED_BYTES_MAX / 2 { threads } else { 1 }
}

/// Nothing aborts single tasks, so an error is a panic in our code.
fn passed_on<T>(outcome: Result<T, JoinError>) -> T {
    outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Counts and reports what a connection takes of a part, in all tries.
struct PartReporter {
    reporter: Arc<dyn PushReporter>,
    sent: AtomicU64,
}

impl PartReporter {
    fn new(reporter: Arc<dyn PushReporter>) -> Self {
        Self { reporter, sent: AtomicU64::new(0) }
    }
}

impl UploadReporter for PartReporter {
    fn progress(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.reporter.sent(bytes);
    }

    fn retrying(&self, retry: &Retry<'_>) {
        self.reporter.part_retrying(retry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_compresses_while_the_lines_have_enough_to_send() {
        assert_eq!(threads_now(4, 0), 4);
        assert_eq!(threads_now(4, ENCODED_BYTES_MAX / 2 - 1), 4);
        assert_eq!(threads_now(4, ENCODED_BYTES_MAX / 2), 1);
        assert_eq!(threads_now(1, ENCODED_BYTES_MAX), 1);
    }
}
