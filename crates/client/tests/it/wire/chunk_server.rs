//! A small server of push by chunks, in memory. It checks what a server has to check, counts what
//! it is sent, and fails as a test wants. It shares the formats with the client, and nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dormer_api::v2::{
    CommitEntry, CommitResponse, CommitResult, SessionId, SessionResponse, encode_missing, read_chunk_ids,
};
use dormer_api::{ErrorBody, ErrorName, UploadPathNarInfo, UploadPathResult, UploadPathResultKind};
use dormer_format::{ChunkId, Decoder, NarManifest, StoredChunk, read_pack};
use dormer_nix::NarHash;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::support::{read_body, read_head};

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An answer without any effect.
    Status(u16),
    /// The connection breaks after this many bytes of the body.
    CutAfter(usize),
    /// The request takes effect, and the answer is lost.
    LoseAnswer,
    /// All sessions end.
    EndSessions,
    /// The request waits until so many requests to routes with this text came, for [`HOLD_MAX`] at
    /// most. Then it takes effect.
    HoldUntil(&'static str, usize),
}

/// Less than a path waits for others to be committed with.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// A request that was answered or broken off.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// `PUT /path`
    pub(crate) line: String,
    /// Bytes of the body that arrived.
    pub(crate) bytes: usize,
    /// `Content-Length`, if it was there.
    pub(crate) length: Option<usize>,
}

/// What the server holds and counted.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) sessions: HashMap<SessionId, HashSet<ChunkId>>,
    /// Sessions in the order in which they were opened first.
    pub(crate) opened: Vec<SessionId>,
    pub(crate) chunks: HashMap<ChunkId, StoredChunk>,
    /// How often each chunk arrived in a part that was taken.
    pub(crate) arrivals: HashMap<ChunkId, usize>,
    /// Paths and NARs in the order of their commits.
    pub(crate) committed: Vec<(String, Vec<u8>)>,
    pub(crate) seen: Vec<Seen>,
    /// Chunks in the order of their arrival.
    pub(crate) arrived: Vec<ChunkId>,
    /// Requests that were held.
    pub(crate) held: usize,
    /// Held requests that waited for [`HOLD_MAX`], and the others did not come.
    pub(crate) held_in_vain: usize,
    asked: HashSet<String>,
    /// What was answered to an entry of a session is answered again.
    answered: HashSet<(SessionId, Vec<u8>)>,
}

impl State {
    /// Number of requests to routes that contain this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.seen.iter().filter(|seen| seen.line.contains(text)).count()
    }

    /// Bytes of all bodies.
    pub(crate) fn bytes(&self) -> usize {
        self.seen.iter().map(|seen| seen.bytes).sum()
    }
}

type FaultPlan = dyn Fn(usize, &str) -> Option<Fault> + Send + Sync;

struct Shared {
    limits: SessionResponse,
    /// The first answer about each path is that it is verified still.
    verifies: bool,
    state: Mutex<State>,
    faults: Mutex<Arc<FaultPlan>>,
}

/// A running server.
#[derive(Clone)]
pub(crate) struct ChunkServer {
    pub(crate) address: String,
    shared: Arc<Shared>,
}

impl ChunkServer {
    pub(crate) async fn start(limits: SessionResponse, verifies: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let faults: Arc<FaultPlan> = Arc::new(|_, _| None);
        let (state, faults) = (Mutex::default(), Mutex::new(faults));
        let shared = Arc::new(Shared { limits, verifies, state, faults });
        let accepted = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&accepted);
                // A client may go away at any time.
                tokio::spawn(async move { shared.serve(stream).await.ok() });
            }
        });
        Self { address, shared }
    }

    /// From now on, the number of the request and its first line decide what goes wrong.
    pub(crate) fn fail(&self, plan: impl Fn(usize, &str) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.faults.lock().unwrap() = Arc::new(plan);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let Some((request, rest)) = read_head(&mut stream).await? else { return Ok(()) };
        let line = request.line.trim_end_matches(" HTTP/1.1").to_owned();
        let length = request.header("content-length").and_then(|length| length.parse().ok());
        let number = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(Seen { line: line.clone(), bytes: 0, length });
            state.seen.len() - 1
        };
        let plan = Arc::clone(&self.faults.lock().unwrap());
        let fault = plan(number, &line);
        let body_max = if let Some(Fault::CutAfter(bytes)) = fault { bytes } else { usize::MAX };
        let (body, is_whole) = read_body(&mut stream, rest, &request, body_max).await;
        self.state.lock().unwrap().seen[number].bytes = body.len();
        if !is_whole {
            return Ok(());
        }
        let (status, answer) = match fault {
            Some(Fault::Status(status)) => (status, Vec::new()),
            Some(Fault::CutAfter(_)) => return Ok(()),
            Some(Fault::EndSessions) => {
                self.state.lock().unwrap().sessions.clear();
                self.answer(&line, &body)
            }
            Some(Fault::HoldUntil(text, count)) => {
                self.hold_until(text, count).await;
                self.answer(&line, &body)
            }
            Some(Fault::LoseAnswer) | None => self.answer(&line, &body),
        };
        if fault == Some(Fault::LoseAnswer) {
            return Ok(());
        }
        let length = answer.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &answer].concat()).await
    }

    async fn hold_until(&self, text: &str, count: usize) {
        self.state.lock().unwrap().held += 1;
        let begun = Instant::now();
        while self.state.lock().unwrap().count(text) < count {
            if begun.elapsed() > HOLD_MAX {
                self.state.lock().unwrap().held_in_vain += 1;
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn answer(&self, line: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        let Some(route) = line.split_once("/sessions/").map(|(_, route)| route) else {
            return (404, Vec::new());
        };
        let (session, action) = route.split_once('/').unwrap_or((route, ""));
        let session: SessionId = session.parse().unwrap();
        if action.is_empty() {
            if !state.opened.contains(&session) {
                state.opened.push(session);
                state.sessions.insert(session, HashSet::new());
            } else if !state.sessions.contains_key(&session) {
                return (404, Vec::new());
            }
            return (200, serde_json::to_vec(&self.limits).unwrap());
        }
        if !state.sessions.contains_key(&session) {
            return (404, Vec::new());
        }
        match action.split_once('/').map_or(action, |(action, _)| action) {
            "missing" => {
                let known = &state.sessions[&session];
                let ids = read_chunk_ids(body).unwrap();
                assert!(ids.len() <= self.limits.missing_chunks_max as usize);
                // A chunk that was lost counts as missing, whatever the session was told.
                let lacks = |id: &ChunkId| !known.contains(id) || !state.chunks.contains_key(id);
                let missing: Vec<bool> = ids.map(|id| lacks(&ChunkId::from_bytes(id))).collect();
                (200, encode_missing(missing))
            }
            "parts" => {
                assert!(body.len() as u64 <= self.limits.part_bytes_max, "{}", body.len());
                let digits = body[body.len() - 40..][..32].iter().map(|byte| format!("{byte:02x}"));
                let digest = digits.collect::<Vec<_>>().concat();
                assert!(action.ends_with(&digest), "the name of a part is its hash");
                take_part(&mut state, session, body);
                (204, Vec::new())
            }
            "commit" => {
                let entries = CommitEntry::decode_all(body, self.limits.commit_paths_max as usize).unwrap();
                // A path waits for what it refers to, as in a real server.
                let mut held_back = HashSet::new();
                let results = entries.iter().map(|entry| {
                    let info = UploadPathNarInfo::parse(entry.info).unwrap();
                    let waits = info.references.iter().any(|reference| held_back.contains(reference));
                    let result =
                        if waits { CommitResult::Waiting } else { self.commit(&mut state, session, entry) };
                    if !matches!(result, CommitResult::Committed(_)) {
                        let base_name = info.store_path.rsplit('/').next().unwrap_or_default();
                        held_back.insert(base_name.to_owned());
                    }
                    result
                });
                let results = results.collect();
                (200, serde_json::to_vec(&CommitResponse { results }).unwrap())
            }
            other => panic!("no such route: {other}"),
        }
    }

    fn commit(&self, state: &mut State, session: SessionId, entry: &CommitEntry<'_>) -> CommitResult {
        let info = UploadPathNarInfo::parse(entry.info).unwrap();
        let manifest = NarManifest::decode(entry.manifest).unwrap();
        if self.verifies && state.asked.insert(info.store_path.clone()) {
            return CommitResult::Verifying;
        }
        let known = &state.sessions[&session];
        let missing = |(place, id): (usize, &ChunkId)| {
            (!known.contains(id) || !state.chunks.contains_key(id)).then_some(place as u64)
        };
        let missing: Vec<u64> = manifest.chunks.iter().enumerate().filter_map(missing).take(2).collect();
        if !missing.is_empty() {
            return CommitResult::Missing { chunks: missing };
        }
        let mut fills = manifest.fills.hole_fills().copied();
        let (mut decoder, mut nar) = (Decoder::new().unwrap(), Vec::new());
        for id in &manifest.chunks {
            let chunk = &state.chunks[id];
            let own: Vec<_> = fills.by_ref().take(chunk.layout.holes.len()).collect();
            nar.extend(decoder.decode(&chunk.bytes, &chunk.layout, &own).unwrap());
        }
        if NarHash::digest(&nar) != info.nar_hash || nar.len() as u64 != info.nar_size {
            let error = ErrorBody::new(ErrorName::RequestError, "the NAR has another hash");
            return CommitResult::Failed { error };
        }
        if !state.answered.insert((session, entry.info.to_vec())) {
            return committed();
        }
        let is_there = state.committed.iter().any(|(path, _)| *path == info.store_path);
        if !is_there {
            state.committed.push((info.store_path, nar));
        }
        committed()
    }
}

fn committed() -> CommitResult {
    CommitResult::Committed(UploadPathResult {
        kind: UploadPathResultKind::Uploaded,
        file_size: None,
        frac_deduplicated: None,
        kept: false,
    })
}

/// What a server checks of a part, and no more.
fn take_part(state: &mut State, session: SessionId, body: &[u8]) {
    let (_, entries) = read_pack(body).unwrap();
    let mut decoder = Decoder::new().unwrap();
    for entry in entries {
        let range = entry.range();
        let stored =
            body[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec();
        let raw = decoder.decode_blanked(&stored, &entry.layout).unwrap();
        assert_eq!(ChunkId::compute(&raw, &entry.layout.holes), entry.id);
        let chunk = StoredChunk {
            id: entry.id,
            layout: entry.layout,
            checksum: entry.checksum,
            bytes: stored.into(),
        };
        state.chunks.insert(entry.id, chunk);
        *state.arrivals.entry(entry.id).or_default() += 1;
        state.arrived.push(entry.id);
        state.sessions.get_mut(&session).unwrap().insert(entry.id);
    }
}
