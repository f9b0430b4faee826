//! Whose place a target is, what lies there already, and what it can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};

use dormer_edge::CacheState;
use dormer_engine::Clock as _;
use dormer_index::{NarRows, PublishIndex};
use dormer_nix::{BuildTrace, TraceKey};
use dormer_publish::{Error, Mode, Publisher};
use dormer_stores::{FileKind, Store};
use dormer_testkit::{Faults, FileEvent, MemoryTarget};

use crate::common::{GRACE, Lab, create_cache, log_name, on_both_databases, path, run_in_thread, stride};

fn kind() -> FileKind {
    FileKind { content_type: "x", cache_control: String::new() }
}

/// Names of the NARs that were written since there were so many events.
fn nars_sent(lab: &Lab, events: usize) -> Vec<String> {
    let sent = lab.target.events().split_off(events).into_iter().filter_map(|event| match event {
        FileEvent::Put(name, _) if name.contains("/nar/") => Some(name),
        _ => None,
    });
    sent.collect()
}

/// After a recovery, or under a new name of the target: what is there is not sent again.
async fn a_target_that_the_database_does_not_know_is_compared_first() {
    let mut lab = Lab::new().await;
    lab.settings.logs = true;
    for (number, references) in [(1, &[][..]), (2, &[1]), (3, &[2])] {
        lab.push(number, number.into(), references).await;
    }
    lab.put_log("built").await;
    lab.publish().await.unwrap();
    let sound = lab.target.files();
    let nars: Vec<&String> = sound.keys().filter(|name| name.contains("/nar/")).collect();
    lab.target.store().put(nars[0], &kind(), vec!["cut".into()]).await.unwrap();
    lab.target.store().delete(nars[1]).await.unwrap();
    "another".clone_into(&mut lab.settings.name);
    let before = lab.target.events().len();
    for _ in 0..2 {
        let refused = lab.publish().await;
        assert!(matches!(refused, Err(Error::Unknown { .. })), "{refused:?}");
        assert_eq!(lab.target.events().len(), before, "nothing is written");
    }
    let outcome = lab.publisher().run(Mode::Reconcile).await.unwrap();
    let mut sent = nars_sent(&lab, before);
    sent.sort_unstable();
    assert_eq!(sent, [nars[0].as_str(), nars[1]], "the others are there");
    assert_eq!((outcome.caches[0].nars_uploaded, outcome.caches[0].published), (2, 3));
    let now = lab.target.files();
    let without_state = |files: &BTreeMap<String, bytes::Bytes>| {
        let mut files = files.clone();
        files.remove("main/dormer-state.json");
        files
    };
    assert_eq!(without_state(&now), without_state(&sound));
    assert!(now.contains_key(&log_name()));
    // From then on, the rows say what is there.
    assert_eq!(lab.publish().await.unwrap().writes, 0);
    assert_eq!(lab.publisher().run(Mode::Reconcile).await.unwrap().caches[0].repaired, 0);
    lab.check_counts("after a comparison").await;
}

async fn an_empty_place_needs_no_comparison() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.target.store().put("index.html", &kind(), vec!["somebody's".into()]).await.unwrap();
    let outcome = lab.publish().await.unwrap();
    assert_eq!((outcome.caches[0].published, outcome.listings), (1, 0));
}

/// A database that was restored from an older backup: readers of what it has lost still find whole
/// closures, and NARs of narinfos that they remember.
async fn what_a_restored_database_lost_leaves_in_order_and_after_its_grace() {
    let newer = Lab::new().await;
    for (number, references) in [(1, &[][..]), (2, &[1]), (3, &[2]), (4, &[3, 2])] {
        newer.push(number, number.into(), references).await;
    }
    newer.publish().await.unwrap();
    let nars: BTreeSet<String> = nars_sent(&newer, 0).into_iter().collect();
    assert_eq!(nars.len(), 4);
    let mut lab = Lab::new().await;
    lab.target = newer.target.clone();
    lab.push(1, 1, &[]).await;
    // The path has another NAR in the lab than at the edge.
    lab.push(2, 22, &[1]).await;
    lab.publisher().run(Mode::Reconcile).await.unwrap();
    lab.check_every_moment(&[], "while it is compared");
    assert_eq!(lab.published(), [1, 2].into());
    let now: BTreeSet<String> = nars_sent(&lab, 0).into_iter().collect();
    assert_eq!((now.len(), lab.nar_count()), (5, 5), "every NAR is still there");
    lab.check_counts("after the comparison").await;
    let again = lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!((again.caches[0].repaired, lab.nar_count()), (0, 5), "graces go on");
    lab.clock.advance(GRACE - 1);
    lab.publish().await.unwrap();
    assert_eq!(lab.nar_count(), 5);
    lab.clock.advance(2);
    lab.publish().await.unwrap();
    assert_eq!((lab.nar_count(), lab.published()), (2, [1, 2].into()));
    lab.check_every_moment(&[], "in the end");
}

/// What comes back meanwhile is found where it is.
async fn what_is_imported_again_in_time_keeps_its_file() {
    let newer = Lab::new().await;
    newer.push(1, 1, &[]).await;
    newer.publish().await.unwrap();
    let mut lab = Lab::new().await;
    lab.target = newer.target.clone();
    lab.push(1, 1, &[]).await;
    let before = lab.target.events().len();
    lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!(nars_sent(&lab, before), Vec::<String>::new());
    lab.clock.advance(GRACE + 1);
    lab.publish().await.unwrap();
    assert_eq!((lab.nar_count(), lab.published()), (1, [1].into()));
}

/// After a restore, the rows know what was written. A file of the right size that is another one is
/// no file to adopt.
async fn a_file_that_was_found_damaged_is_sent_and_not_adopted() {
    let lab = Lab::new().await;
    for number in [1, 2] {
        lab.push(number, number.into(), &[]).await;
    }
    lab.publish().await.unwrap();
    let sound = lab.target.files();
    let (damaged, content) = sound.iter().find(|(name, _)| name.contains("/nar/")).unwrap();
    lab.target.store().put(damaged, &kind(), vec![vec![0; content.len()].into()]).await.unwrap();
    // As `dormer restore` leaves it.
    let target = lab.index.list_targets().await.unwrap().remove(0);
    let now = lab.clock.now();
    let lease = lab.index.acquire_lease(target.id, "restore", now, now + 60).await.unwrap().unwrap();
    lab.index.move_target(&lease, &target.location, false).await.unwrap();
    lab.index.release_lease(&lease, now, None).await.unwrap();
    let before = lab.target.events().len();
    lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!(nars_sent(&lab, before), [damaged.as_str()]);
    assert_eq!(&lab.target.files()[damaged], content);
}

/// A comparison finds paths that the lab has, and they are removed before they are written again.
async fn what_is_removed_while_a_comparison_runs_is_not_left_behind() {
    for moment in (0..).step_by(3 * stride()) {
        let mut lab = Lab::new().await;
        lab.push(1, 1, &[]).await;
        lab.push(2, 2, &[]).await;
        lab.publish().await.unwrap();
        "another".clone_into(&mut lab.settings.name);
        let lab = Arc::new(lab);
        let busy = Arc::clone(&lab);
        let (publisher, index) = lab.publisher_meanwhile(Box::new(move |call| {
            let lab = Arc::clone(&busy);
            Box::pin(async move {
                if call == moment {
                    lab.remove_for_cause(1).await;
                }
            })
        }));
        publisher.run(Mode::Reconcile).await.unwrap();
        if moment >= index.calls() {
            assert!(moment > 20, "only {moment} calls: the test no longer sees them");
            break;
        }
        lab.publish().await.unwrap();
        assert_eq!((lab.published(), lab.nar_count()), ([2].into(), 1), "before call {moment}");
    }
}

/// After a restore, the files may be of a later time, when the cache had other readers. Listings
/// and tags tell nothing of that.
async fn files_of_another_visibility_are_written_again_after_a_comparison() {
    for is_known in [true, false] {
        let mut lab = Lab::new().await;
        lab.settings.caches = vec!["main".parse().unwrap()];
        lab.push(1, 1, &[]).await;
        lab.set_public(false).await;
        lab.publish().await.unwrap();
        let files = lab.target.files();
        let nar = files.keys().find(|name| name.contains("/nar/")).unwrap();
        let public = FileKind { content_type: "x", cache_control: "public".to_owned() };
        lab.target.store().put(nar, &public, [files[nar].clone()]).await.unwrap();
        if is_known {
            // As `dormer restore` leaves it. The target in memory gives each write its own tag.
            let target = lab.index.list_targets().await.unwrap().remove(0);
            let now = lab.clock.now();
            let lease = lab.index.acquire_lease(target.id, "restore", now, now + 60).await.unwrap().unwrap();
            let page = NarRows::Page { bytes: 0..=255, after: None, limit: 9 };
            let mut rows = lab.index.published_nars(target.id, lab.cache.id, page).await.unwrap();
            rows[0].etag = None;
            lab.index.note_uploaded(&lease, lab.cache.id, &rows).await.unwrap();
            lab.index.move_target(&lease, &target.location, false).await.unwrap();
            lab.index.release_lease(&lease, now, None).await.unwrap();
        } else {
            "another".clone_into(&mut lab.settings.name);
        }
        let before = lab.target.events().len();
        lab.publisher().run(Mode::Reconcile).await.unwrap();
        assert_eq!(nars_sent(&lab, before), [nar.as_str()], "known: {is_known}");
        let control = lab.target.cache_control(nar).await.unwrap();
        assert!(control.contains("private"), "known: {is_known}: {control}");
        assert_eq!(lab.publisher().run(Mode::Reconcile).await.unwrap().caches[0].repaired, 0);
        lab.check_every_moment(&[], "while it is compared");
    }
}

/// A database that was lost published a cache that this lab does not have.
#[tokio::test]
async fn a_cache_that_nobody_knows_is_named_and_removed_on_demand_only() {
    let lost = Lab::new().await;
    lost.push(1, 1, &[]).await;
    lost.put_trace(1).await;
    create_cache(&lost.engine, "other", true).await;
    lost.publish().await.unwrap();
    let mut lab = Lab::new().await;
    lab.target = lost.target.clone();
    let main = std::mem::replace(&mut lab.cache, create_cache(&lab.engine, "team", true).await);
    lab.engine.delete_cache(&main, None).await.unwrap();
    lab.push(2, 2, &[]).await;
    lab.target.store().put("main/readme.txt", &kind(), vec!["somebody's".into()]).await.unwrap();
    lab.target.store().put("photos/cat", &kind(), vec!["somebody's".into()]).await.unwrap();
    let of_main = || -> BTreeMap<String, bytes::Bytes> {
        lab.target.files().into_iter().filter(|(name, _)| name.starts_with("main/")).collect()
    };
    let there = of_main();
    let outcome = lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!(outcome.unknown, ["main".parse().unwrap(), "other".parse().unwrap()]);
    assert_eq!(of_main(), there, "only named");
    assert!(lab.publish().await.unwrap().unknown.is_empty(), "nothing is listed");

    let unwanted = ["main", "team"].map(|name| name.parse().unwrap()).to_vec();
    let outcome = lab.publisher().removing(unwanted).run(Mode::Reconcile).await.unwrap();
    assert_eq!(outcome.unknown, ["other".parse().unwrap()]);
    assert_eq!(of_main().into_keys().collect::<Vec<_>>(), ["main/readme.txt"]);
    let [.., main, team] = &outcome.caches[..] else { panic!("{outcome:?}") };
    assert_eq!((main.removed, main.nars_deleted, &main.error), (1, 1, &None));
    assert!(team.cache == "team" && team.error.is_some(), "{team:?}");
    assert!(lab.target.files().contains_key("photos/cat"));
    assert_eq!(lab.target.files().keys().filter(|name| name.starts_with("team/nar/")).count(), 1);
}

on_both_databases!(
    what_is_removed_while_a_comparison_runs_is_not_left_behind,
    files_of_another_visibility_are_written_again_after_a_comparison,
    a_target_that_the_database_does_not_know_is_compared_first,
    a_file_that_was_found_damaged_is_sent_and_not_adopted,
    an_empty_place_needs_no_comparison,
    what_a_restored_database_lost_leaves_in_order_and_after_its_grace,
    what_is_imported_again_in_time_keeps_its_file,
);

fn of(lab: &Lab, id: &str) -> Publisher {
    lab.publisher().of_lab(Some(id.to_owned()))
}

#[tokio::test]
async fn two_labs_do_not_share_a_place() {
    let first = Lab::new().await;
    first.push(1, 1, &[]).await;
    of(&first, "a").run(Mode::Follow).await.unwrap();
    assert_eq!(of(&first, "a").run(Mode::Follow).await.unwrap().writes, 0, "the mark is written once");
    let mut second = Lab::new().await;
    second.target = first.target.clone();
    second.push(2, 2, &[]).await;
    let before = first.target.events().len();
    for mode in [Mode::Follow, Mode::Reconcile] {
        let refused = of(&second, "b").run(mode).await;
        assert!(matches!(&refused, Err(Error::OtherLab { lab, .. }) if lab == "a"), "{refused:?}");
    }
    assert_eq!(first.target.events().len(), before, "nothing is written");
    of(&first, "a").run(Mode::Reconcile).await.unwrap();
    // Taken over on purpose.
    first.target.store().delete("dormer-lab.json").await.unwrap();
    let refused = of(&second, "b").run(Mode::Follow).await;
    assert!(matches!(refused, Err(Error::Unknown { .. })), "{refused:?}");
    of(&second, "b").run(Mode::Reconcile).await.unwrap();
    assert_eq!(second.published(), [2].into());
    let refused = of(&first, "a").run(Mode::Follow).await;
    assert!(matches!(refused, Err(Error::OtherLab { .. })), "{refused:?}");
}

/// The other lab publishes at any moment while the first one begins: one of them has the place, and
/// the other one has written nothing.
#[tokio::test]
async fn of_two_labs_that_meet_in_an_empty_place_one_wins() {
    for (target, moment) in [MemoryTarget::new as fn() -> _, MemoryTarget::without_conditions]
        .into_iter()
        .flat_map(|target| (0..8).map(move |moment| (target, moment)))
    {
        let mut first = Lab::new().await;
        first.target = target();
        first.push(1, 1, &[]).await;
        let mut other = Lab::new().await;
        other.target = first.target.clone();
        other.push(2, 2, &[]).await;
        let met = Arc::new(Mutex::new(None));
        let (other, outcome) = (Arc::new(other), Arc::clone(&met));
        let (publisher, _) = first.publisher_meanwhile(Box::new(move |call| {
            let (other, outcome) = (Arc::clone(&other), Arc::clone(&outcome));
            Box::pin(async move {
                if call == moment {
                    let publisher = of(&other, "b");
                    let came = run_in_thread(publisher, Mode::Follow).await;
                    *outcome.lock().unwrap() = Some(came);
                }
            })
        }));
        let begun = publisher.of_lab(Some("a".to_owned())).run(Mode::Follow).await;
        let came = met.lock().unwrap().take().unwrap();
        let is_refused = |outcome: &_| matches!(outcome, Err(Error::OtherLab { .. }));
        assert!(is_refused(&begun) != is_refused(&came), "before call {moment}: {begun:?}, {came:?}");
        let (winner, path) = if begun.is_ok() { ("a", 1) } else { ("b", 2) };
        assert_eq!(first.published(), [path].into(), "before call {moment}: {begun:?}, {came:?}");
        let mark = String::from_utf8(first.target.files()["dormer-lab.json"].to_vec()).unwrap();
        assert!(mark.contains(&format!("\"{winner}\"")), "before call {moment}: {mark}");
    }
}

#[tokio::test]
async fn a_target_of_an_older_version_gets_its_mark() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.publish().await.unwrap();
    assert!(!lab.target.files().contains_key("dormer-lab.json"));
    of(&lab, "a").run(Mode::Follow).await.unwrap();
    assert_eq!(lab.target.files()["dormer-lab.json"], r#"{"version":1,"lab":"a"}"#);
    lab.target.store().put("dormer-lab.json", &kind(), vec!["?".into()]).await.unwrap();
    let unreadable = of(&lab, "a").run(Mode::Reconcile).await;
    assert!(matches!(unreadable, Err(Error::Mark { .. })), "{unreadable:?}");
}

#[tokio::test]
async fn the_headers_of_files_follow_the_visibility_of_the_cache() {
    let mut lab = Lab::new().await;
    lab.settings.caches = vec!["main".parse().unwrap()];
    (lab.settings.listings, lab.settings.logs) = (true, true);
    for (number, references) in [(1, &[][..]), (2, &[1])] {
        lab.push(number, number.into(), references).await;
        lab.put_trace(number).await;
    }
    lab.push(3, 3, &[]).await;
    lab.put_log("built").await;
    lab.publish().await.unwrap();
    // Its NAR has a grace, and would keep its headers.
    lab.remove(3).await;
    lab.publish().await.unwrap();
    assert_eq!(lab.nar_count(), 3);
    for (is_public, said) in [(true, "public"), (false, "private"), (true, "public")] {
        lab.set_public(is_public).await;
        lab.publish().await.unwrap();
        let names: Vec<String> =
            lab.target.files().into_keys().filter(|name| name.starts_with("main/")).collect();
        assert!(names.len() > 8, "{names:?}");
        for name in names.iter().filter(|name| !name.ends_with("dormer-state.json")) {
            let control = lab.target.cache_control(name).await.unwrap_or_default();
            assert!(control.contains(said), "{name} is {said}, and its header says {control}");
        }
        assert_eq!(lab.publish().await.unwrap().writes, 0);
        lab.check_counts(said).await;
    }
    lab.check_every_moment(&[], "while it changes");
}

/// A private cache that was public for a moment is private again, wherever the run ended that had
/// begun to open it.
#[tokio::test]
async fn a_change_of_visibility_that_is_cut_short_and_taken_back_leaves_the_rules_of_now() {
    for effect_kept in [false, true] {
        for step in (0..).step_by(stride()) {
            let mut lab = Lab::new().await;
            lab.settings.caches = vec!["main".parse().unwrap()];
            lab.push(1, 1, &[]).await;
            lab.set_public(false).await;
            lab.publish().await.unwrap();
            lab.set_public(true).await;
            let faults = Faults::crash_at(step, effect_kept);
            let outcome = lab.crashing(&faults).run(Mode::Follow).await;
            let crashed = faults.crashed();
            assert!(crashed || outcome.is_ok(), "{outcome:?}");
            lab.clock.advance(60);
            lab.set_public(false).await;
            lab.publish().await.unwrap();
            let what = format!("crash at step {step}, effect kept: {effect_kept}");
            let files = lab.target.files();
            let state = CacheState::parse(&files["main/dormer-state.json"]).unwrap();
            assert!(!state.public && !state.store_dir.is_empty(), "{what}: {state:?}");
            for name in files.keys().filter(|name| name.contains(".nar")) {
                let control = lab.target.cache_control(name).await.unwrap_or_default();
                assert!(control.contains("private"), "{what}: {name} has {control}");
            }
            assert_eq!(lab.publish().await.unwrap().writes, 0, "{what}");
            if !crashed {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_name_that_is_too_long_for_a_folder_holds_up_nothing() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.put_trace(1).await;
    // The longest that fits, and one more.
    for length in [174, 175] {
        let key = TraceKey::Hash { hash: "07".repeat(32), output: "o".repeat(length) };
        let (dependents, sigs) = (BTreeMap::new(), Vec::new());
        let trace = BuildTrace { key, out_path: path(1), dependents, sigs, is_keyed: false };
        lab.engine.put_trace(&lab.cache, trace).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path()).unwrap();
    let index = || Arc::clone(&lab.index) as Arc<dyn PublishIndex>;
    let outcome = lab.publisher_of(index(), store.clone()).run(Mode::Follow).await.unwrap();
    let cache = &outcome.caches[0];
    assert_eq!((cache.published, cache.documents, cache.left_out, cache.waiting), (1, 2, 1, 0));
    let again = lab.publisher_of(index(), store).run(Mode::Reconcile).await.unwrap();
    assert_eq!(again.caches[0].repaired, 0);
    assert_eq!(std::fs::read_dir(folder.path().join("main/realisations")).unwrap().count(), 1);
}

#[tokio::test]
async fn the_folder_of_a_private_cache_is_closed_to_other_users() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut lab = Lab::new().await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("www");
    let publish = async |lab: &Lab| {
        let index = Arc::clone(&lab.index) as Arc<dyn PublishIndex>;
        let publisher = lab.publisher_of(index, Store::folder(&root).unwrap());
        publisher.run(Mode::Follow).await.unwrap();
    };
    let mode = |name: &str| std::fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
    let set_mode = |name: &str, mode| {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    lab.settings.caches = vec!["main".parse().unwrap()];
    lab.set_public(false).await;
    lab.push(1, 1, &[]).await;
    publish(&lab).await;
    assert!(root.join("main/nix-cache-info").exists(), "it is published");
    assert_eq!(mode("main"), 0o700);
    // The rights that an operator gave to the group of a server stay. A process that stands in a
    // folder of an open cache could otherwise read on when the cache is closed.
    for (given, kept) in [(0o2750, 0o2750), (0o755, 0o750)] {
        set_mode("main", given);
        set_mode("main/nar", given);
        lab.push(2, u64::from(given), &[]).await;
        publish(&lab).await;
        assert_eq!([mode("main"), mode("main/nar")], [kept, kept], "{given:o}");
    }
    // A public cache is for everybody, once its operator has opened it by the command of the docs.
    lab.set_public(true).await;
    let opened = Command::new("chmod").args(["-R", "o+rX"]).arg(root.join("main")).status().unwrap();
    assert!(opened.success());
    lab.push(3, 1, &[]).await;
    publish(&lab).await;
    let mut names = vec!["main".to_owned()];
    let mut files = 0;
    while let Some(name) = names.pop() {
        let is_folder = root.join(&name).is_dir();
        let needed = if is_folder { 0o005 } else { 0o004 };
        assert_eq!(mode(&name) & needed, needed, "others cannot read {name}: {:o}", mode(&name));
        if is_folder {
            let entries = std::fs::read_dir(root.join(&name)).unwrap();
            let name_of = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
            names.extend(entries.map(|entry| format!("{name}/{}", name_of(entry.unwrap()))));
        } else {
            files += 1;
        }
    }
    assert!(files > 6, "{files} files of three paths");
    // And closed again.
    lab.set_public(false).await;
    publish(&lab).await;
    assert_eq!([mode("main"), mode("main/nar")], [0o750, 0o750]);
    // A run that was interrupted behind the outermost folder is repeated.
    set_mode("main/nar", 0o755);
    lab.push(4, 1, &[]).await;
    publish(&lab).await;
    assert_eq!([mode("main"), mode("main/nar")], [0o750, 0o750]);
}
