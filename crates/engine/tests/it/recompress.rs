//! Recompression: cold packs take fewer bytes and give the same NARs, once.

use std::sync::Arc;

use crate::collect::{ANSWERS, DAY, Lab, OLD, Process, beginning, nars};
use crate::common::{create_main, hash_of, ingest, path, push};
use dormer_engine::CompactionTotals;
use dormer_index::{NarQuery, PackNumber};
use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{NarHash, StorePath};
use dormer_testkit::{Faults, Random, rebuilt};

/// Cold after so long, and condemned packs of a run before are gone.
const COLD: i64 = 31 * DAY;

/// An archive of words, with references, which a higher level makes smaller.
fn words(seed: u64, count: usize, references: &[StorePath]) -> Vec<u8> {
    let numbers = Random::new(seed).bytes(count);
    let mut text: Vec<u8> = Vec::new();
    for (place, number) in numbers.iter().enumerate() {
        text.extend(format!("word {} of {}; ", u32::from(*number) * 7_919, place / 64).into_bytes());
        if place % 300 == 0
            && let Some(reference) = references.get(place / 300)
        {
            text.extend(format!("/nix/store/{reference}/bin").into_bytes());
        }
    }
    encode_tree(&Node::File { executable: false, contents: text })
}

/// NARs with chunks in common, of words and of noise.
fn archives() -> Vec<Vec<u8>> {
    let first = words(1, 3_000, &[path(100), path(3)]);
    let again = rebuilt(&first, &path(100), &path(101));
    vec![first, again, words(2, 1_500, &[]), beginning()]
}

/// A lab with these NARs, in cold packs.
async fn prepare(lab: &Lab, all: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    lab.collect(&process).await;
    for (number, nar) in (1..).zip(&all) {
        push(&process.engine, &cache, &path(number), nar).await.expect(ANSWERS);
    }
    lab.pass(COLD);
    all
}

async fn stored_bytes(process: &Process) -> u64 {
    let packs = process.contracts.collect.page_packs(PackNumber(0), 1_000).await.expect(ANSWERS);
    packs.iter().filter(|pack| pack.condemned_at.is_none()).map(|pack| pack.size).sum()
}

async fn recompresses_once(on_postgres: bool) {
    let mut lab = Lab::new(on_postgres).await;
    let all = prepare(&lab, archives()).await;
    let process = lab.open().await;
    let cache = process.cache().await;
    let before = stored_bytes(&process).await;
    let untouched = lab.collect(&process).await;
    assert_eq!(untouched.recompressed, CompactionTotals::default(), "no level is set");
    assert_eq!(stored_bytes(&process).await, before);

    lab.recompress_level = Some(19);
    let (index, blobs) = (Arc::clone(&process.contracts.collect), Arc::clone(&lab.installation.blobs));
    let plan = lab.collector(index, blobs).plan().await.expect(ANSWERS);
    assert!(plan.recompress.packs > 0 && plan.compact.packs == 0, "{plan:?}");
    let report = lab.collect(&process).await.recompressed;
    assert_eq!((report.packs, report.bytes), (plan.recompress.packs, plan.recompress.bytes));
    let after = stored_bytes(&process).await;
    assert!(after < before && report.bytes_written < report.bytes, "{before} to {after}: {report:?}");
    for nar in &all {
        process.reads_back(nar, "recompressed").await;
    }
    // Opening a NAR gave it its new tag and size: the narinfo names what is served.
    for nar in &all {
        let key = NarQuery::Hash(hash_of(nar));
        let found = process.contracts.index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS);
        let found = found.expect("it is there");
        let open = process.engine.open_nar(&cache, &key).await.expect(ANSWERS).expect("it is there");
        assert_eq!((found.tag, found.file_size), (open.tag(), open.file_size()));
    }
    // A push of the same finds all of its chunks.
    assert_eq!(ingest(&process.engine, &all[0]).await.expect(ANSWERS).new_chunk_bytes, 0);

    // The old packs go, and nothing is recompressed again: not soon, not when the new ones are
    // cold.
    for _ in 0..3 {
        lab.pass(COLD);
        let again = lab.collect(&process).await;
        assert_eq!(again.recompressed, CompactionTotals::default());
        assert_eq!(stored_bytes(&process).await, after);
    }
    for nar in &all {
        process.reads_back(nar, "the old packs are gone").await;
    }
    let hashes: Vec<NarHash> = all.iter().map(|nar| hash_of(nar)).collect();
    drop((process, cache));
    assert_eq!(lab.violations(&hashes, &[]).await, []);
}

#[tokio::test]
async fn a_cold_pack_is_recompressed_once_on_sqlite() {
    recompresses_once(false).await;
}

#[tokio::test]
async fn a_cold_pack_is_recompressed_once_on_postgresql() {
    recompresses_once(true).await;
}

/// What is hardly smaller stays where it is, and is not tried again.
#[tokio::test]
async fn a_pack_that_gains_nothing_stays_and_is_tried_once() {
    let mut lab = Lab::new(false).await;
    let all = prepare(&lab, nars().into()).await;
    let process = lab.open().await;
    // The level of the engine: every chunk comes out as it is.
    lab.recompress_level = Some(1);
    let before = stored_bytes(&process).await;
    let first = lab.collect(&process).await.recompressed;
    assert!(first.bytes_read > 0, "it was tried");
    assert_eq!((first.packs, first.packs_written, first.chunks), (0, 0, 0), "{first:?}");
    assert_eq!(stored_bytes(&process).await, before);
    lab.pass(COLD);
    assert_eq!(lab.collect(&process).await.recompressed, CompactionTotals::default());
    for nar in &all {
        process.reads_back(nar, "as before").await;
    }
}

/// Every third step in the usual run.
fn stride() -> usize {
    if std::env::var_os("DORMER_TEST_LONG").is_some() { 1 } else { 3 }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_recompression_is_survived() {
    for (round, step) in (0..).step_by(stride()).enumerate() {
        let when = format!("after a crash at step {step}");
        let mut lab = Lab::new(false).await;
        let all = prepare(&lab, archives()).await;
        lab.recompress_level = Some(19);
        let hashes: Vec<NarHash> = all.iter().map(|nar| hash_of(nar)).collect();
        let faults = Faults::crash_at(step, round % 2 == 0);
        {
            let process = lab.open().await;
            let outcome = lab.collect_with(&process, &faults).await;
            assert_eq!(outcome.is_err(), faults.crashed(), "{when}");
        }
        assert_eq!(lab.violations(&hashes, &faults.deleted()).await, [], "{when}");

        let process = lab.open().await;
        for _ in 0..3 {
            lab.pass(OLD);
            lab.collect(&process).await;
        }
        for nar in &all {
            process.reads_back(nar, &when).await;
        }
        assert_eq!(lab.collect(&process).await.recompressed, CompactionTotals::default(), "{when}");
        drop(process);
        assert_eq!(lab.violations(&hashes, &faults.deleted()).await, [], "{when}");
        if !faults.crashed() {
            assert!(step >= 9, "the collection has only {step} steps");
            break;
        }
    }
}
