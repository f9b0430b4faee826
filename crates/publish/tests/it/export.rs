//! Exports: whole closures at every moment, and no document before its path, after a crash too;
//! nothing is written twice; what is wrong in the place is repaired.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dormer_engine::{KeyChange, UpdateCache};
use dormer_index::PublishIndex;
use dormer_nix::{DocumentName, StorePathHash};
use dormer_publish::{Error, ExportOutcome, ExportSettings, Result, Silent, export};
use dormer_stores::{FileKind, Store};
use dormer_testkit::{Faults, FileEvent, MemoryTarget};

use crate::common::{Lab, check, debug_name, log_name, on_both_databases, path, published_in, trace_name};

impl Lab {
    /// With all kinds of documents.
    async fn export_to(&self, store: &Store) -> Result<ExportOutcome> {
        let settings = ExportSettings { logs: true, debug_info: true, ..ExportSettings::default() };
        self.export_with(store, &settings).await
    }

    async fn export_with(&self, store: &Store, settings: &ExportSettings) -> Result<ExportOutcome> {
        let cache = self.engine.current_cache("main").await?.expect("the lab has it");
        let index: &dyn PublishIndex = &*self.index;
        export(&self.engine, index, store, &cache, settings, &Silent).await
    }
}

/// Files of an export with the names that they would have in a target.
fn as_target(files: &BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    files.iter().map(|(name, content)| (format!("main/{name}"), content.clone())).collect()
}

fn exported(files: &MemoryTarget) -> Vec<u8> {
    published_in(&as_target(&files.files())).keys().map(|hash| hash.as_bytes()[0]).collect()
}

/// The name of a target's file in an export.
fn below(mut name: String) -> String {
    name.split_off("main/".len())
}

/// The documents that lie in an export, logs first.
fn documents(files: &MemoryTarget) -> Vec<String> {
    let mut names: Vec<String> = files.files().into_keys().collect();
    names.retain(|name| DocumentName::is_in_folder(name));
    names.sort_by_key(|name| (!name.starts_with("log/"), name.clone()));
    names
}

/// Fails if a reader could ever have found a part of a closure.
#[track_caller]
fn check_every_moment(files: &MemoryTarget, upstream: &[u8], what: &str) {
    let upstream: BTreeSet<StorePathHash> = upstream.iter().map(|number| path(*number).hash()).collect();
    let mut now = BTreeMap::new();
    for (number, event) in files.events().into_iter().enumerate() {
        let name = match event {
            FileEvent::Put(name, content) => {
                now.insert(name.clone(), content);
                name
            }
            FileEvent::Delete(name) => panic!("{what}: an export deleted {name}"),
        };
        if let Err(why) = check(&as_target(&now), &upstream) {
            panic!("{what}: after event {number} ({name}): {why}");
        }
    }
}

on_both_databases!(
    an_export_is_whole_at_every_moment_and_a_crash_leaves_nothing_to_repair,
    a_second_export_writes_what_is_new_or_wrong_and_nothing_else,
    documents_follow_their_paths_and_are_written_once,
    a_path_that_cannot_be_read_holds_up_its_referrers_alone,
);

async fn an_export_is_whole_at_every_moment_and_a_crash_leaves_nothing_to_repair() {
    for in_parts in [false, true] {
        let lab = Lab::new().await;
        // Referrers first, and a reference that only an upstream has.
        for (number, references) in [(5, vec![4, 5]), (3, vec![2]), (2, vec![1, 9]), (1, vec![]), (4, vec![])]
        {
            lab.push(number, number.into(), &references).await;
        }
        lab.push(6, 1, &[]).await;
        lab.put_log("hello").await;
        lab.put_trace(3).await;
        for effect_kept in [false, true] {
            for step in 0.. {
                let what = format!("crash at step {step}, effect kept: {effect_kept}, in parts: {in_parts}");
                let files = if in_parts { MemoryTarget::in_parts_of(1_000) } else { MemoryTarget::new() };
                let faults = Faults::crash_at(step, effect_kept);
                let outcome = lab.export_to(&files.crashing(&faults)).await;
                let crashed = faults.crashed();
                assert!(crashed || outcome.is_ok(), "{what}: {outcome:?}");
                check_every_moment(&files, &[9], &what);
                let outcome = lab.export_to(&files.store()).await.unwrap();
                assert_eq!((outcome.exported + outcome.unchanged, outcome.failed), (6, 0), "{what}");
                check_every_moment(&files, &[9], &format!("{what}, and a run after it"));
                assert_eq!(exported(&files), [1, 2, 3, 4, 5, 6], "{what}");
                assert_eq!(documents(&files), [log_name(), trace_name(3)].map(below), "{what}");
                assert_eq!(
                    &files.files()["nix-cache-info"][..],
                    b"WantMassQuery: 1\nStoreDir: /nix/store\nPriority: 41\n"
                );
                if !crashed {
                    assert!(step > 15, "only {step} steps: the test no longer sees the writes");
                    break;
                }
            }
        }
    }
}

async fn a_second_export_writes_what_is_new_or_wrong_and_nothing_else() {
    let lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2]), (4, vec![])] {
        lab.push(number, number.into(), &references).await;
    }
    let files = MemoryTarget::new();
    let first = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((first.exported, first.unchanged, first.nars_uploaded), (4, 0, 4));
    let writes = files.events().len();
    let again = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((again.exported, again.unchanged, again.nars_uploaded), (0, 4, 0));
    assert_eq!(files.events().len(), writes, "nothing is written twice");

    // A NAR is cut, another one is lost, a narinfo is lost, and a path is new.
    let kind = FileKind { content_type: "x", cache_control: String::new() };
    let nar_of = |number: u8| published_in(&as_target(&files.files()))[&path(number).hash()].url.clone();
    let (cut, lost) = (nar_of(1), nar_of(4));
    files.store().put(&cut, &kind, vec!["short".into()]).await.unwrap();
    files.store().delete(&lost).await.unwrap();
    files.store().delete(&format!("{}.narinfo", path(3).hash())).await.unwrap();
    lab.push(5, 5, &[3]).await;
    let repaired = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((repaired.exported, repaired.unchanged, repaired.nars_uploaded), (4, 1, 4));
    check(&as_target(&files.files()), &BTreeSet::new()).unwrap();

    // A new key signs every narinfo; no NAR is sent for that.
    let update = UpdateCache { new_key: Some(KeyChange::Generate), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    let signed = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((signed.exported, signed.unchanged, signed.nars_uploaded), (5, 0, 0));
    check(&as_target(&files.files()), &BTreeSet::new()).unwrap();
}

async fn documents_follow_their_paths_and_are_written_once() {
    let lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![])] {
        lab.push(number, number.into(), &references).await;
    }
    lab.push_debug(4, &[]).await;
    for number in [1, 2] {
        lab.put_trace(number).await;
    }
    lab.put_log("first").await;
    let files = MemoryTarget::new();
    // Only traces, unless the caller asks for more.
    let traces = ExportSettings::default();
    let first = lab.export_with(&files.store(), &traces).await.unwrap();
    assert_eq!((first.exported, first.documents), (4, 2));
    assert_eq!(documents(&files), [trace_name(1), trace_name(2)].map(below));
    let writes = files.events().len();
    let again = lab.export_with(&files.store(), &traces).await.unwrap();
    assert_eq!((again.unchanged, again.documents, files.events().len()), (4, 0, writes));

    // All kinds, of paths that are there already. All four share the log.
    let more = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((more.unchanged, more.documents), (4, 2));
    let all = [log_name(), trace_name(1), trace_name(2), debug_name(4)].map(below);
    assert_eq!(documents(&files), all);
    assert_eq!(&files.files()[&all[0]][..], b"first");

    // A log that was replaced, a trace that is new, and another path with the same debug file.
    lab.put_log("second").await;
    lab.put_trace(3).await;
    lab.push_debug_of(5, 4, &[3]).await;
    let third = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((third.failed, third.documents), (0, 2));
    assert_eq!(&files.files()[&all[0]][..], b"second");
    assert!(files.files().contains_key(&below(trace_name(3))));
    let writes = files.events().len();
    assert_eq!(lab.export_to(&files.store()).await.unwrap().documents, 0);
    assert_eq!(files.events().len(), writes, "nothing is written twice");
    check_every_moment(&files, &[], "at the end");

    // Traces are signed as they are served, so a new key signs them again.
    let update = UpdateCache { new_key: Some(KeyChange::Generate), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    assert_eq!(lab.export_to(&files.store()).await.unwrap().documents, 3);
    let cache = lab.engine.current_cache("main").await.unwrap().unwrap();
    let name: DocumentName = below(trace_name(1)).parse().unwrap();
    let served = lab.engine.document(&cache, &name).await.unwrap().unwrap();
    assert_eq!(files.files()[&below(trace_name(1))], served);

    // None at all.
    let none = ExportSettings { traces: false, ..ExportSettings::default() };
    let files = MemoryTarget::new();
    assert_eq!(lab.export_with(&files.store(), &none).await.unwrap().documents, 0);
    assert_eq!(documents(&files), [""; 0]);
}

async fn a_path_that_cannot_be_read_holds_up_its_referrers_alone() {
    let lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2]), (4, vec![])] {
        lab.push(number, number.into(), &references).await;
    }
    let found = lab.index.find_object(lab.cache.id, &path(2).hash()).await.unwrap().unwrap();
    lab.index.mark_damaged(found.nar.id, &[], 0).await.unwrap();
    let files = MemoryTarget::new();
    let outcome = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((outcome.exported, outcome.failed), (2, 2));
    let failed: BTreeSet<u8> = outcome.failures.iter().map(|(hash, _)| hash.as_bytes()[0]).collect();
    assert_eq!(failed, BTreeSet::from([2, 3]));
    assert_eq!(exported(&files), [1, 4]);
    // The next push heals it, and the next export brings the rest.
    lab.push(2, 2, &[1]).await;
    let healed = lab.export_to(&files.store()).await.unwrap();
    assert_eq!((healed.exported, healed.unchanged, healed.failed), (2, 2, 0));
    check_every_moment(&files, &[], "after the healing");
}

#[tokio::test]
async fn a_cache_that_is_larger_than_the_memory_is_exported_whole_too() {
    let lab = Lab::new().await;
    // The longest chain that brings its references last, and a circle, which Nix could not read.
    for number in (1..=6).rev() {
        let references = if number == 1 { vec![] } else { vec![number - 1] };
        lab.push(number, number.into(), &references).await;
    }
    lab.push(7, 7, &[8]).await;
    lab.push(8, 8, &[7]).await;
    for (page_objects, planned_max, remembered_max) in [(1, 1, 1), (2, 1, 100), (1, 3, 1), (3, 100, 2)] {
        let what = format!("{page_objects} {planned_max} {remembered_max}");
        let settings =
            ExportSettings { page_objects, planned_max, remembered_max, ..ExportSettings::default() };
        let files = MemoryTarget::new();
        let outcome = lab.export_with(&files.store(), &settings).await.unwrap();
        assert_eq!(exported(&files), [1, 2, 3, 4, 5, 6], "{what}");
        assert_eq!((outcome.exported, outcome.failed), (6, 2), "{what}: {outcome:?}");
        check_every_moment(&files, &[], &what);
    }
}

#[tokio::test]
async fn a_private_cache_is_not_exported_where_anybody_can_read() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.set_public(false).await;
    let files = MemoryTarget::readable_by_anybody();
    let refused = lab.export_to(&files.store()).await;
    assert!(matches!(refused, Err(Error::PublicTarget { .. })), "{refused:?}");
    assert_eq!(files.files().into_keys().collect::<Vec<_>>(), ["nix-cache-info"]);
    assert_eq!(lab.export_to(&MemoryTarget::new().store()).await.unwrap().exported, 1);
}

#[tokio::test]
async fn a_place_of_another_store_folder_is_left_alone() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    let files = MemoryTarget::new();
    let kind = FileKind { content_type: "x", cache_control: String::new() };
    files.store().put("nix-cache-info", &kind, vec!["StoreDir: /gnu/store\n".into()]).await.unwrap();
    let refused = lab.export_to(&files.store()).await;
    assert!(matches!(refused, Err(Error::OtherStoreDir { .. })), "{refused:?}");
    assert_eq!(files.events().len(), 1);
}
