//! Crash at every step of everything that orders writes, with the lost call's effect kept and
//! dropped; and planted defects that these checks are shown to catch.
//!
//! A [`Story`] is what clients do. It is told until the process dies; then the invariants must hold
//! over what is left, what clients were told must be true, and the same story told again must
//! succeed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::common::{
    Installation, create_main, debug_nar, decompress, engine_over, hash_of, ingest, listing, new_database,
    path, push, served, settings,
};
use dormer_engine::{Engine, Result};
use dormer_index::{Cache, CommitOutcome, Index, Inventory, PostgresIndex, PostgresOptions, SqlIndex};
use dormer_nix::nar::{NarLimits, NarReader, Node, encode_tree};
use dormer_nix::{BuildTrace, DocumentName, NarHash, StorePath, TraceKey};
use dormer_testkit::{
    FaultBlobs, FaultIndex, Faults, Lie, Random, Violation, check_invariants, object_for, package_nar,
    rebuilt,
};

/// Of calls after the restart.
const ANSWERS: &str = "nothing is wrong any more";

/// What clients do.
#[derive(Debug, Clone, Copy)]
enum Story {
    /// Pushes as Attic's clients send them: new, sharing chunks, known.
    Objects,
    /// `nix copy`: a NAR under its file's name, then the narinfo that names it, twice.
    Aliases,
    /// Packs were lost, a reader found out, and the paths are pushed again.
    Healing,
    /// Removal for cause, and a path that comes back with other contents.
    Removal,
    /// A path whose listing is too large for a row.
    LargeListing,
    /// Logs and a trace, each again with more; then the path that they belong to is removed.
    Documents,
    /// Paths with debug info: one whose bytes were lost comes again, another is new and removed.
    DebugInfo,
}

/// What a client knows after an answer.
#[derive(Debug)]
enum Told {
    /// The path is there, with this NAR.
    Present(StorePath, Vec<u8>),
    /// The path is not there any more.
    Removed(StorePath),
    /// The upload is there under this name.
    Uploaded(String, Vec<u8>),
    /// The document has this in it; `None`: it is gone.
    Document(DocumentName, Option<String>),
}

/// Plain ones, one that shares chunks with the first, and the first again.
fn nars() -> Vec<Vec<u8>> {
    let mut random = Random::new(42);
    let first = package_nar(&mut random, 90_000, &[path(100)]);
    let second = package_nar(&mut random, 30_000, &[]);
    let third = rebuilt(&first, &path(100), &path(101));
    vec![first.clone(), second, third, first]
}

/// Where debug info is asked for, and what the answer names.
fn debug_link(build_id: &str) -> (DocumentName, String) {
    let name = format!("debuginfo/{build_id}.debug").parse().expect("an address");
    (name, hash_of(&debug_nar(build_id, [])).to_nix32())
}

/// More than a MiB of names.
fn nar_with_large_listing() -> Vec<u8> {
    let file = |n: u32| (format!("{n:0>64}").into_bytes(), Node::file(Vec::new()));
    let entries: BTreeMap<Vec<u8>, Node> = (0..12_000).map(file).collect();
    encode_tree(&Node::Directory(entries))
}

fn listing_of(nar: &[u8]) -> Vec<u8> {
    let mut reader = NarReader::new(NarLimits::default());
    reader.feed(nar).expect("a good NAR");
    reader.finish().expect("a whole NAR").into_json().expect("it is within the limit")
}

impl Story {
    /// What happened before, with no crash in it.
    async fn prepare(self, site: &Site) {
        let engine = site.engine().await;
        let cache = create_main(&engine).await;
        match self {
            Self::Objects | Self::Aliases | Self::LargeListing => {}
            Self::Documents => {
                push(&engine, &cache, &path(0), &nars()[0]).await.expect("nothing crashes yet");
            }
            Self::Removal => {
                for (number, nar) in (0..).zip(nars()) {
                    push(&engine, &cache, &path(number), &nar).await.expect("nothing crashes yet");
                }
            }
            Self::Healing | Self::DebugInfo => {
                let nars = if matches!(self, Self::Healing) { nars() } else { vec![debug_nar("00ab", [])] };
                for (number, nar) in (0..).zip(&nars) {
                    push(&engine, &cache, &path(number), nar).await.expect("nothing crashes yet");
                }
                for pack in site.installation.blobs.list().await.expect("the store answers") {
                    site.installation.blobs.delete(&pack).await.expect("the store answers");
                }
                for nar in &nars {
                    let lost = served(&engine, &cache, nar, None).await;
                    assert!(!lost.is_ok_and(|bytes| bytes.is_some()), "it is found to be lost");
                }
            }
        }
    }

    /// Does it all, whatever fails, and says what each answer told; `Err` holds what an unanswered
    /// call was about.
    async fn tell(self, engine: &Engine, cache: &Cache) -> Vec<(Told, Result<()>)> {
        let mut told = Vec::new();
        match self {
            Self::Objects | Self::Healing => {
                for (number, nar) in (0..).zip(nars()) {
                    let outcome = push(engine, cache, &path(number), &nar).await;
                    told.push((Told::Present(path(number), nar), outcome));
                }
            }
            Self::Aliases => {
                for (number, nar) in (0..).zip(nars()) {
                    let name = format!("upload-{number}.nar.xz");
                    let outcome = upload(engine, cache, &name, &nar).await;
                    told.push((Told::Uploaded(name.clone(), nar.clone()), outcome));
                    for _ in 0..2 {
                        let outcome = name_upload(engine, cache, &name, &path(number), &nar).await;
                        told.push((Told::Present(path(number), nar.clone()), outcome.map(drop)));
                    }
                }
            }
            Self::Removal => {
                for number in 0..2 {
                    let outcome = engine.remove_object(cache, &path(number).hash(), None).await;
                    told.push((Told::Removed(path(number)), outcome.map(drop)));
                }
                let other = package_nar(&mut Random::new(7), 20_000, &[]);
                let outcome = push(engine, cache, &path(0), &other).await;
                told.push((Told::Present(path(0), other), outcome));
            }
            Self::Documents => {
                let derivation: StorePath = format!("{}.drv", path(9)).parse().expect("a store path");
                let log = DocumentName::Log(derivation.clone());
                for text in ["first", "second"] {
                    let outcome = engine.put_log(cache, derivation.clone(), text.into()).await;
                    told.push((Told::Document(log.clone(), Some(text.to_owned())), outcome));
                }
                let other: StorePath = format!("{}.drv", path(8)).parse().expect("a store path");
                let outcome = engine.add_log(cache, other.clone(), "added".into()).await;
                let log_of_other = DocumentName::Log(other);
                let added = Told::Document(log_of_other.clone(), Some("added".to_owned()));
                told.push((added, outcome.map(drop)));
                let outcome = engine.remove_object(cache, &path(8).hash(), None).await;
                told.push((Told::Document(log_of_other, None), outcome.map(drop)));
                let key = TraceKey::Derivation { derivation, output: "out".to_owned() };
                let name = DocumentName::Trace(key.clone());
                for signer in ["one", "two"] {
                    let trace = BuildTrace {
                        key: key.clone(),
                        out_path: path(0),
                        dependents: BTreeMap::new(),
                        sigs: vec![format!("{signer}:AAAA")],
                        is_keyed: false,
                    };
                    let outcome = engine.put_trace(cache, trace).await;
                    told.push((Told::Document(name.clone(), Some(signer.to_owned())), outcome.map(drop)));
                }
                let outcome = engine.remove_object(cache, &path(0).hash(), None).await;
                told.push((Told::Document(name, None), outcome.map(drop)));
            }
            Self::DebugInfo => {
                for (number, build_id) in [(0, "00ab"), (1, "00cd")] {
                    let outcome = push(engine, cache, &path(number), &debug_nar(build_id, [])).await;
                    let (name, nar) = debug_link(build_id);
                    told.push((Told::Document(name, Some(nar)), outcome));
                }
                let outcome = engine.remove_object(cache, &path(1).hash(), None).await;
                told.push((Told::Document(debug_link("00cd").0, None), outcome.map(drop)));
            }
            Self::LargeListing => {
                let nar = nar_with_large_listing();
                assert!(listing_of(&nar).len() > 1_100_000);
                let outcome = push(engine, cache, &path(1), &nar).await;
                told.push((Told::Present(path(1), nar), outcome));
            }
        }
        told
    }
}

async fn upload(engine: &Engine, cache: &Cache, name: &str, nar: &[u8]) -> Result<()> {
    let ingested = ingest(engine, nar).await?;
    engine.commit_alias(cache, ingested, name, "xz").await
}

async fn name_upload(
    engine: &Engine,
    cache: &Cache,
    name: &str,
    path: &StorePath,
    nar: &[u8],
) -> Result<CommitOutcome> {
    let size = nar.len() as u64;
    engine.commit_narinfo(cache, name, &hash_of(nar), size, object_for(path, &[])).await
}

/// What outlives the process.
struct Site {
    installation: Installation,
    /// The database's address; SQLite in the installation's folder without it.
    postgres: Option<String>,
}

impl Site {
    async fn new(on_postgres: bool) -> Self {
        let postgres = new_database(on_postgres).await;
        Self { installation: Installation::new(), postgres }
    }

    async fn postgres(url: &str) -> SqlIndex {
        let options = PostgresOptions { connections_max: 2, ..PostgresOptions::default() };
        PostgresIndex::open(url, options).await.expect("the database answers")
    }

    async fn index(&self) -> Arc<dyn Index> {
        match &self.postgres {
            Some(url) => Arc::new(Self::postgres(url).await),
            None => Arc::new(self.installation.index().await),
        }
    }

    async fn inventory(&self) -> Inventory {
        match &self.postgres {
            Some(url) => Self::postgres(url).await.inventory().await,
            None => self.installation.index().await.inventory().await,
        }
        .expect("a reopened index can be read")
    }

    async fn engine(&self) -> Engine {
        engine_over(self.index().await, Arc::clone(&self.installation.blobs), settings())
    }

    /// Tells a story until the crash.
    async fn tell(&self, story: Story, faults: &Arc<Faults>) -> Vec<(Told, Result<()>)> {
        story.prepare(self).await;
        let blobs = FaultBlobs::new(Arc::clone(&self.installation.blobs), Arc::clone(faults));
        let index = FaultIndex::new(self.index().await, Arc::clone(faults));
        let engine = engine_over(Arc::new(index), Arc::new(blobs), settings());
        match engine.find_cache("main").await {
            Ok(Some(cache)) => story.tell(&engine, &cache).await,
            _ => Vec::new(),
        }
    }

    async fn violations(&self, told: &[(Told, Result<()>)], faults: &Faults) -> Vec<Violation> {
        let acknowledged: Vec<NarHash> = told
            .iter()
            .filter(|(_, outcome)| outcome.is_ok())
            .filter_map(|(told, _)| match told {
                Told::Present(_, nar) | Told::Uploaded(_, nar) => Some(hash_of(nar)),
                Told::Removed(_) | Told::Document(..) => None,
            })
            .collect();
        let audit = self.inventory().await;
        check_invariants(audit, &*self.installation.blobs, &acknowledged, &faults.deleted()).await
    }
}

/// Asks for everything that a client was told last; what was not answered may be either way.
async fn is_as_told(engine: &Engine, told: &[(Told, Result<()>)], when: &str) {
    let cache = engine.find_cache("main").await.expect(ANSWERS).expect("it was made before");
    let mut documents: HashMap<&DocumentName, Option<&Option<String>>> = HashMap::new();
    let mut paths: HashMap<&StorePath, Option<Option<&Vec<u8>>>> = HashMap::new();
    for (told, outcome) in told {
        match told {
            Told::Present(path, nar) => {
                paths.insert(path, outcome.is_ok().then_some(Some(nar)));
            }
            Told::Removed(path) => {
                paths.insert(path, outcome.is_ok().then_some(None));
            }
            Told::Uploaded(name, nar) if outcome.is_ok() => {
                let alias = engine.find_alias(&cache, name).await.expect(ANSWERS);
                assert_eq!(alias.map(|alias| alias.nar.hash), Some(hash_of(nar)), "{name} {when}");
            }
            Told::Uploaded(..) => {}
            Told::Document(name, text) => {
                documents.insert(name, outcome.is_ok().then_some(text));
            }
        }
    }
    for (name, known) in documents {
        let document = engine.document(&cache, name).await.expect(ANSWERS);
        let Some(known) = known else { continue };
        let found = document.map(|bytes| String::from_utf8(bytes.to_vec()).expect("text"));
        let is_as_told = match known {
            None => found.is_none(),
            Some(text) => found.as_ref().is_some_and(|found| found.contains(text)),
        };
        assert!(is_as_told, "{name} should have {known:?}, and is {found:?} {when}");
    }
    for (path, known) in paths {
        let narinfo = engine.narinfo(&cache, &path.hash()).await.expect(ANSWERS);
        let Some(known) = known else { continue };
        assert_eq!(narinfo.is_some(), known.is_some(), "{path} {when}");
        if let Some(nar) = known {
            let bytes = served(engine, &cache, nar, None).await.expect(ANSWERS);
            assert!(bytes.is_some_and(|bytes| decompress(&bytes) == *nar), "{path} {when}");
            let has = listing(engine, &cache, path).await.expect(ANSWERS);
            assert!(has.is_some_and(|has| has == listing_of(nar)), "the listing of {path} {when}");
        }
    }
}

/// Tells the story with a crash at each of its steps; there must be some, or the test no longer
/// sees the writes.
async fn holds_at_every_step(story: Story, steps_min: u64, on_postgres: bool) {
    for effect_kept in [false, true] {
        for step in 0.. {
            let site = Site::new(on_postgres).await;
            let faults = Faults::crash_at(step, effect_kept);
            let told = site.tell(story, &faults).await;
            let when = format!("after a crash at step {step}, effect kept: {effect_kept}");
            assert_eq!(site.violations(&told, &faults).await, [], "{when}");
            let engine = site.engine().await;
            is_as_told(&engine, &told, &when).await;

            let cache = engine.find_cache("main").await.expect(ANSWERS).expect("it was made before");
            let again = story.tell(&engine, &cache).await;
            for (told, outcome) in &again {
                assert!(outcome.is_ok(), "{outcome:?} for {told:?} again, {when}");
            }
            is_as_told(&engine, &again, &format!("again, {when}")).await;
            drop((cache, engine));
            assert_eq!(site.violations(&again, &faults).await, [], "again, {when}");
            if !faults.crashed() {
                assert!(step >= steps_min, "{story:?} has only {step} steps");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_push_is_survived() {
    holds_at_every_step(Story::Objects, 8, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_nix_copy_is_survived() {
    holds_at_every_step(Story::Aliases, 16, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_healing_is_survived() {
    holds_at_every_step(Story::Healing, 8, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_removal_is_survived() {
    holds_at_every_step(Story::Removal, 4, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_push_with_a_large_listing_is_survived() {
    holds_at_every_step(Story::LargeListing, 3, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_documents_is_survived() {
    holds_at_every_step(Story::Documents, 5, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_debug_info_is_survived() {
    holds_at_every_step(Story::DebugInfo, 4, false).await;
}

#[tokio::test]
async fn a_crash_at_any_step_is_survived_on_postgresql() {
    holds_at_every_step(Story::Objects, 8, true).await;
    holds_at_every_step(Story::Aliases, 16, true).await;
    // A database for each step takes its time; these order their writes in the engine, as they do
    // over SQLite.
    if std::env::var_os("DORMER_TEST_LONG").is_some() {
        holds_at_every_step(Story::Healing, 8, true).await;
        holds_at_every_step(Story::Removal, 4, true).await;
        holds_at_every_step(Story::LargeListing, 3, true).await;
        holds_at_every_step(Story::DebugInfo, 4, true).await;
    }
}

/// A planted defect is caught, by the invariant that it breaks, at some step.
async fn is_caught(lie: Lie, invariant: u8) {
    let mut caught = Vec::new();
    for effect_kept in [false, true] {
        for step in 0..16 {
            let site = Site::new(false).await;
            let faults = Faults::crash_at_with(step, effect_kept, lie);
            let told = site.tell(Story::Objects, &faults).await;
            caught.extend(site.violations(&told, &faults).await.into_iter().map(|v| v.invariant));
        }
    }
    assert!(caught.contains(&invariant), "{lie:?} should break invariant {invariant}, found {caught:?}");
}

#[tokio::test]
async fn a_store_that_answers_before_it_is_durable_is_caught() {
    is_caught(Lie::PutBeforeDurable, 1).await;
}

#[tokio::test]
async fn chunk_rows_written_after_the_nar_row_are_caught() {
    is_caught(Lie::PackRowsAfterNar, 2).await;
}

#[tokio::test]
async fn a_nar_made_visible_under_an_unverified_hash_is_caught() {
    is_caught(Lie::UnverifiedHash, 3).await;
}

#[tokio::test]
async fn a_pack_deleted_before_its_rows_is_caught() {
    is_caught(Lie::DeleteBeforeUnreference, 4).await;
}

#[tokio::test]
async fn an_acknowledged_commit_that_was_not_made_is_caught() {
    is_caught(Lie::CommitLost, 5).await;
}
