//! The orders of publishing: whatever a reader finds, at any moment, its closure is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{
    GRACE, Lab, SETTLE, create_cache, log_name, on_both_databases, path, stride, trace_name,
};
use dormer_edge::CacheState;
use dormer_engine::{Clock as _, KeyChange, UpdateCache};
use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{NarHash, NarInfo, StoreDir};
use dormer_publish::{Error, Mode};
use dormer_testkit::{Faults, MemoryTarget, Random, package_nar};

fn numbers(published: impl IntoIterator<Item = u8>) -> Vec<u8> {
    published.into_iter().collect()
}

async fn references_are_published_before_their_referrers_and_nothing_twice() {
    let lab = Lab::new().await;
    // Pushed in the worst order.
    lab.push(3, 3, &[2, 1]).await;
    lab.push(2, 2, &[1, 2]).await;
    lab.push(1, 1, &[]).await;
    let outcome = lab.publish().await.unwrap();
    assert_eq!(outcome.caches[0].published, 3);
    lab.check_every_moment(&[], "a first run");
    assert_eq!(numbers(lab.published()), [1, 2, 3]);
    // Three NARs, three narinfos, nix-cache-info, the catalogue, the state document before and
    // after.
    assert_eq!((outcome.writes, lab.target.events().len()), (10, 10));

    let again = lab.publish().await.unwrap();
    assert_eq!((again.writes, again.caches[0].published), (0, 0));
    // A change costs its NAR, its narinfo and the state document, whatever else there is; nothing
    // is ever listed.
    lab.push(4, 4, &[3]).await;
    let change = lab.publish().await.unwrap();
    assert_eq!((change.writes, change.listings), (3, 0));
    let state = CacheState::parse(&lab.target.files()["main/dormer-state.json"]).unwrap();
    assert_eq!((state.object_count, state.public), (4, true));
    assert_eq!(state.public_keys.len(), 1);
}

#[tokio::test]
async fn publishing_a_path_costs_less_than_a_statement() {
    let lab = Lab::new().await;
    for number in 1..=200 {
        lab.push(number, number.into(), if number > 100 { &[1, 2, 3] } else { &[] }).await;
    }
    let before = lab.index.statement_count();
    assert_eq!(lab.publish().await.unwrap().caches[0].published, 200);
    let first = lab.index.statement_count() - before;
    let before = lab.index.statement_count();
    assert_eq!(lab.publish().await.unwrap().writes, 0);
    let nothing_new = lab.index.statement_count() - before;
    println!("200 paths: {first} statements, and {nothing_new} when nothing is new");
    // The engine sends two to open each NAR, for publishing as for any reader. Publishing itself
    // sent seven for each path before it wrote whole pages at once.
    let publishing = first - 2 * 200;
    assert!(publishing <= 180, "{publishing} statements to publish 200 paths");
    assert!(nothing_new <= 45, "{nothing_new} statements for nothing");
}

async fn a_reference_that_the_cache_lacks_is_waited_for_and_then_upstreams() {
    let lab = Lab::new().await;
    lab.push(2, 2, &[9]).await;
    lab.push(3, 3, &[2]).await;
    lab.clock.advance(SETTLE - 1);
    let early = lab.publish().await.unwrap();
    assert_eq!((early.waiting(), early.caches[0].published), (2, 0));
    let status = dormer_publish::status(&*lab.index, &*lab.index, 10).await.unwrap();
    let reasons: Vec<_> =
        status[0].caches[0].waiting.iter().map(|waiting| waiting.reason.clone().unwrap()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("is not in the cache")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("is not published yet")), "{reasons:?}");
    // It comes after all: no need to wait any longer.
    lab.push(9, 9, &[]).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 0);
    lab.push(4, 4, &[8]).await;
    lab.clock.advance(SETTLE);
    assert_eq!(lab.publish().await.unwrap().waiting(), 0);
    assert_eq!(numbers(lab.published()), [2, 3, 4, 9]);
    lab.check_every_moment(&[8], "after settling");
}

async fn what_is_removed_goes_after_its_referrers_and_its_nar_after_the_grace() {
    let lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2])] {
        lab.push(number, number.into(), &references).await;
    }
    lab.publish().await.unwrap();
    for number in [1, 2, 3] {
        lab.remove(number).await;
    }
    assert_eq!(lab.publish().await.unwrap().caches[0].removed, 3);
    assert_eq!((numbers(lab.published()), lab.nar_count()), (vec![], 3));
    lab.check_every_moment(&[], "a removal");
    lab.clock.advance(GRACE - 1);
    lab.publish().await.unwrap();
    assert_eq!(lab.nar_count(), 3);
    lab.clock.advance(1);
    assert_eq!(lab.publish().await.unwrap().caches[0].nars_deleted, 3);
    assert_eq!(lab.nar_count(), 0);
}

async fn what_is_removed_for_cause_goes_at_once_with_its_nar_and_takes_its_referrers_back() {
    let lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2]), (4, vec![])] {
        lab.push(number, number.into(), &references).await;
    }
    lab.publish().await.unwrap();
    lab.remove_for_cause(1).await;
    let outcome = lab.publish().await.unwrap();
    assert_eq!(numbers(lab.published()), [4]);
    assert_eq!(lab.nar_count(), 3, "those of the referrers stay, for readers that remember their narinfos");
    assert_eq!(outcome.waiting(), 2);
    lab.clock.advance(100 * SETTLE);
    assert_eq!(lab.publish().await.unwrap().waiting(), 2, "what was removed never counts as upstream's");
    let status = dormer_publish::status(&*lab.index, &*lab.index, 10).await.unwrap();
    let reason = status[0].caches[0].waiting[0].reason.clone().unwrap();
    assert!(reason.contains("was removed from the cache"), "{reason}");
    lab.check_every_moment(&[], "a removal for cause");
    lab.push(1, 1, &[]).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 0);
    assert_eq!(numbers(lab.published()), [1, 2, 3, 4]);
    lab.check_every_moment(&[], "pushed again");

    // The object went earlier, in an orderly way: its grace ends at once here too.
    lab.remove(4).await;
    lab.publish().await.unwrap();
    let before = lab.nar_count();
    lab.remove_for_cause(4).await;
    lab.publish().await.unwrap();
    assert_eq!(lab.nar_count(), before - 1);
}

async fn what_is_removed_for_cause_goes_at_once_though_it_was_pushed_again_before_anybody_looked() {
    for waits in [false, true] {
        let lab = Lab::new().await;
        lab.push(1, 1, &[]).await;
        lab.push(2, 2, &[1]).await;
        lab.publish().await.unwrap();
        // Its first NAR is in grace, here and in the lab.
        lab.push(1, 11, &[]).await;
        lab.publish().await.unwrap();
        assert_eq!(lab.nar_count(), 3);
        lab.remove_for_cause(1).await;
        lab.push(1, 111, if waits { &[9] } else { &[] }).await;
        lab.publish().await.unwrap();
        let (published, nars): (&[u8], usize) = if waits { (&[], 1) } else { (&[1, 2], 2) };
        assert_eq!((numbers(lab.published()).as_slice(), lab.nar_count()), (published, nars), "{waits}");
        lab.clock.advance(SETTLE);
        lab.publish().await.unwrap();
        assert_eq!((numbers(lab.published()), lab.nar_count()), (vec![1, 2], 2), "{waits}");
        lab.check_every_moment(&[9], "pushed again");
    }
}

async fn what_changed_while_it_waited_waits_for_its_new_references_too() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[1, 9]).await;
    lab.publish().await.unwrap();
    lab.remove_for_cause(1).await;
    lab.publish().await.unwrap();
    lab.clock.advance(10 * SETTLE);
    assert_eq!(lab.publish().await.unwrap().waiting(), 1);
    // Built again, and pushed before what it refers to now.
    lab.push(2, 22, &[3]).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 1);
    lab.push(3, 3, &[]).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 0);
    assert_eq!(numbers(lab.published()), [2, 3]);
    lab.check_every_moment(&[], "built anew");
}

async fn a_reference_that_is_removed_while_its_referrer_waits_never_counts_as_upstreams() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[1, 9]).await;
    // 2 waits for 9; meanwhile 1 goes.
    assert_eq!(lab.publish().await.unwrap().waiting(), 1);
    lab.remove(1).await;
    lab.publish().await.unwrap();
    // 4 came and went before any run looked; the pusher of 3 had still seen it.
    lab.push(4, 4, &[]).await;
    lab.remove(4).await;
    lab.publish().await.unwrap();
    lab.push(3, 3, &[4]).await;
    for days in [1, 29, 31, 400] {
        lab.clock.advance(days * 86_400);
        assert_eq!(lab.publish().await.unwrap().waiting(), 2, "after {days} days");
    }
    assert!(lab.published().is_empty());
    lab.push(1, 1, &[]).await;
    lab.push(4, 4, &[]).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 0);
    assert_eq!(numbers(lab.published()), [1, 2, 3, 4]);
    lab.check_every_moment(&[9], "all of it");
}

async fn what_was_removed_before_a_cache_was_published_is_known_too() {
    for followed_already in [false, true] {
        let mut lab = Lab::new().await;
        lab.push(1, 1, &[]).await;
        lab.push(2, 2, &[1]).await;
        lab.remove(1).await;
        if followed_already {
            let all = std::mem::replace(&mut lab.settings.caches, vec!["none-*".parse().unwrap()]);
            lab.publish().await.unwrap();
            lab.settings.caches = all;
        }
        lab.clock.advance(SETTLE);
        assert_eq!(lab.publish().await.unwrap().waiting(), 1);
        assert!(lab.published().is_empty());
        lab.push(1, 1, &[]).await;
        assert_eq!(lab.publish().await.unwrap().waiting(), 0);
        lab.check_every_moment(&[], "pushed again");
    }
}

async fn a_target_that_was_away_for_too_long_comes_out_right() {
    let lab = Lab::new().await;
    for number in 1..=6 {
        lab.push(number, number.into(), if number == 2 { &[1] } else { &[] }).await;
    }
    lab.publish().await.unwrap();
    assert_eq!(numbers(lab.published()), [1, 2, 3, 4, 5, 6]);

    // Something comes, something goes, and something is replaced, while nobody publishes. Then the
    // outbox forgets all of it.
    lab.push(7, 7, &[3]).await;
    lab.remove(1).await;
    lab.remove_for_cause(4).await;
    lab.push(5, 55, &[]).await;
    lab.clock.advance(1_000);
    let now = lab.clock.now();
    let trim = async |limit| lab.index.trim_outbox(now, now, limit).await.unwrap();
    let last = lab.index.list_targets().await.unwrap()[0].cursor;
    while !lab.index.outbox_after(last, 1).await.unwrap().is_empty() {
        assert!(trim(2).await <= 2);
    }
    assert!(lab.index.list_targets().await.unwrap()[0].missed_changes);
    let publisher = lab.publisher();
    assert!(publisher.has_work().await.unwrap(), "no row says so any more");

    // Runs die before all is noted and while it is brought; the last one does the rest.
    for step in 2..9 {
        lab.crashing(&Faults::crash_at(step, step % 2 == 0)).run(Mode::Follow).await.unwrap_err();
        lab.clock.advance(SETTLE);
    }
    let outcome = lab.publish().await.unwrap();
    lab.check_every_moment(&[], "after a long time");
    // The second waits for its reference to be pushed again, as after every removal.
    assert_eq!((numbers(lab.published()), outcome.waiting()), (vec![3, 5, 6, 7], 1));
    let archive = package_nar(&mut Random::new(55), 3_000, &[]);
    let narinfo = &crate::common::published_in(&lab.target.files())[&path(5).hash()];
    assert_eq!(narinfo.nar_hash, NarHash::digest(&archive));
    assert!(!lab.index.list_targets().await.unwrap()[0].missed_changes);
    // Nothing is left to do, and the next change costs what a change costs.
    assert!(!publisher.has_work().await.unwrap());
    lab.push(8, 8, &[]).await;
    assert_eq!(lab.publish().await.unwrap().writes, 3);
}

async fn an_upstream_path_that_is_removed_takes_nothing_along() {
    let lab = Lab::new().await;
    let nar = package_nar(&mut Random::new(1), 1_000, &[]);
    lab.push_nar(1, &nar, &[], &["upstream-1:AAAA"]).await;
    lab.push(2, 2, &[1]).await;
    lab.publish().await.unwrap();
    lab.remove_for_cause(1).await;
    lab.publish().await.unwrap();
    assert_eq!(numbers(lab.published()), [2]);

    // Nor anything that was pushed before it went: it is found elsewhere.
    lab.push_nar(1, &nar, &[], &["upstream-1:AAAA"]).await;
    lab.publish().await.unwrap();
    lab.push(3, 3, &[1]).await;
    lab.remove(1).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 1);
    lab.clock.advance(SETTLE);
    assert_eq!(lab.publish().await.unwrap().waiting(), 0);
    assert_eq!(numbers(lab.published()), [2, 3]);
    lab.check_every_moment(&[1], "an upstream path");
}

async fn an_object_with_another_nar_is_updated_in_place() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[1]).await;
    lab.publish().await.unwrap();
    lab.push(3, 3, &[]).await;
    lab.push(2, 22, &[3]).await;
    lab.publish().await.unwrap();
    assert_eq!(lab.nar_count(), 4, "the old one is in grace");
    // Its old reference may go now without taking it along.
    lab.remove_for_cause(1).await;
    lab.publish().await.unwrap();
    assert_eq!(numbers(lab.published()), [2, 3]);
    lab.check_every_moment(&[], "an update");
}

async fn a_new_key_signs_everything_again_and_sends_no_nar() {
    let lab = Lab::new().await;
    for number in 1..=3 {
        lab.push(number, number.into(), &[]).await;
    }
    lab.publish().await.unwrap();
    let update = UpdateCache { new_key: Some(dormer_engine::KeyChange::Generate), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    let outcome = lab.publish().await.unwrap();
    assert_eq!((outcome.caches[0].published, outcome.caches[0].nars_uploaded), (3, 0));
    assert_eq!(lab.publish().await.unwrap().writes, 0);
}

async fn private_caches_are_kept_from_a_readable_target_and_leave_it_when_they_become_private() {
    let mut lab = Lab::new().await;
    lab.settings.caches = vec!["m*".parse().unwrap(), "secret".parse().unwrap()];
    lab.target = MemoryTarget::readable_by_anybody();
    create_cache(&lab.engine, "secret", false).await;
    create_cache(&lab.engine, "mine", false).await;
    lab.push(1, 1, &[]).await;
    let outcome = lab.publish().await.unwrap();
    let names: Vec<_> =
        outcome.caches.iter().map(|cache| (cache.cache.as_str(), cache.error.is_some())).collect();
    assert_eq!(names, [("main", false), ("secret", true)], "a pattern takes no private cache");
    assert!(lab.target.files().keys().all(|name| !name.starts_with("secret/") && !name.starts_with("mine/")));

    let update = UpdateCache { is_public: Some(false), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    let outcome = lab.publish().await.unwrap();
    assert_eq!(outcome.caches[0].removed, 1);
    let left: Vec<String> = lab.target.files().into_keys().collect();
    assert_eq!(left, ["dormer-caches.json"]);
}

async fn a_deleted_cache_leaves_nothing_and_its_name_can_be_used_again() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[1]).await;
    lab.publish().await.unwrap();
    lab.engine.delete_cache(&lab.cache, None).await.unwrap();
    let next = create_cache(&lab.engine, "main", true).await;
    let mut lab = lab;
    lab.cache = next;
    lab.push(3, 3, &[]).await;
    lab.publish().await.unwrap();
    assert_eq!((numbers(lab.published()), lab.nar_count()), (vec![3], 1));
    lab.check_every_moment(&[], "a cache of the same name");
}

async fn two_runs_do_not_overlap_and_a_dead_ones_lease_runs_out() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    let target = lab.index.open_target("edge", "memory").await.unwrap();
    let now = lab.clock.now();
    lab.index.acquire_lease(target.id, "another", now, now).await.unwrap().expect("free");
    // It ended without a word, just now.
    lab.publish().await.unwrap();
    assert_eq!(numbers(lab.published()), [1]);
    let status = lab.index.list_targets().await.unwrap();
    assert_eq!((status[0].holder.clone(), status[0].ran_at), (None, Some(now)));
}

async fn a_target_that_moved_is_refused_until_it_is_reconciled() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.index.open_target("edge", "elsewhere").await.unwrap();
    assert!(matches!(lab.publish().await, Err(Error::Moved { .. })));
    lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!(numbers(lab.published()), [1]);
    lab.publish().await.unwrap();
}

/// Another program publishes to a new place between the first look at a target and the lease: the
/// rows are about the new place from then on.
async fn a_target_that_moves_before_the_lease_is_taken_is_refused() {
    let lab = Arc::new(Lab::new().await);
    lab.push(1, 1, &[]).await;
    lab.publish().await.unwrap();
    lab.push(2, 2, &[]).await;
    let other = Arc::new(MemoryTarget::at("elsewhere"));
    let (busy, place) = (Arc::clone(&lab), Arc::clone(&other));
    let (first, _) = lab.publisher_meanwhile(Box::new(move |call| {
        let (lab, place) = (Arc::clone(&busy), Arc::clone(&place));
        Box::pin(async move {
            if call == 1 {
                let store = place.store();
                lab.run_beside(store, Mode::Reconcile).await.unwrap();
            }
        })
    }));
    let refused = first.run(Mode::Follow).await;
    assert!(matches!(refused, Err(Error::Moved { .. })), "{refused:?}");
    let target = lab.index.list_targets().await.unwrap().remove(0);
    assert_eq!((target.location.as_str(), target.compared, target.holder), ("elsewhere", true, None));
    assert_eq!(numbers(lab.published()), [1], "nothing came to the old place");
    assert!(other.files().contains_key("main/nix-cache-info"));
}

/// Long enough for a dozen runs on a machine that has other things to do: a run ends when its lease
/// does, by the clock on the wall.
const LEASE: Duration = Duration::from_secs(6);

/// Returns how many calls there were.
async fn overtaken_before(moment: u64) -> u64 {
    let mut lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2])] {
        lab.push(number, number.into(), &references).await;
    }
    lab.publish().await.unwrap();
    lab.push(4, 4, &[3]).await;
    lab.push(3, 33, &[1]).await;
    lab.remove(2).await;
    lab.settings.lease = LEASE;
    let lab = Arc::new(lab);
    let other = Arc::clone(&lab);
    let (first, calls) = lab.publisher_meanwhile(Box::new(move |call| {
        let lab = Arc::clone(&other);
        Box::pin(async move {
            if call == moment {
                lab.clock.advance(60);
                lab.publish_beside().await.unwrap();
                // Far longer than it takes to find out.
                tokio::time::sleep(5 * LEASE).await;
            }
        })
    }));
    let outcome = first.run(Mode::Follow).await;
    lab.check_every_moment(&[], &format!("overtaken before call {moment}"));
    assert_eq!(numbers(lab.published()), [1, 3, 4]);
    if moment >= calls.calls() {
        outcome.unwrap();
    } else {
        // Before it has the lease it waits for it, and has nothing to do then.
        let lost = matches!(outcome, Err(Error::Index(dormer_index::Error::LeaseLost)));
        assert!(lost || moment < 3, "before call {moment}: {outcome:?}");
        assert_eq!(lab.publish().await.unwrap().writes, 0);
    }
    calls.calls()
}

/// A second program takes over at any moment of a run, as if that one had been away for longer than
/// its lease. Each moment has a thread: most of the time they wait.
#[test]
fn a_run_that_is_overtaken_ends_and_leaves_the_target_to_the_other() {
    let run = |moment| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(overtaken_before(moment))
    };
    let calls = run(u64::MAX);
    assert!(calls > 20, "only {calls} calls: the test no longer sees them");
    let threads: Vec<_> =
        (0..calls).step_by(6).map(|moment| std::thread::spawn(move || run(moment))).collect();
    for thread in threads {
        thread.join().expect("it leaves the target to the other");
    }
}

#[tokio::test]
async fn a_run_beside_one_that_lives_is_refused() {
    let mut lab = Lab::new().await;
    lab.settings.lease = LEASE;
    lab.push(1, 1, &[]).await;
    let lab = Arc::new(lab);
    let other = Arc::clone(&lab);
    let (first, calls) = lab.publisher_meanwhile(Box::new(move |call| {
        let lab = Arc::clone(&other);
        Box::pin(async move {
            if call == 10 {
                // So the other one waits for a second only.
                lab.clock.advance(5);
                assert!(matches!(lab.publish_beside().await, Err(Error::Busy { .. })));
            }
        })
    }));
    first.run(Mode::Follow).await.unwrap();
    assert!(calls.calls() > 10);
    assert_eq!(numbers(lab.published()), [1]);
}

async fn reconciling_repairs_what_is_missing_damaged_extra_or_unknown() {
    use dormer_stores::FileKind;
    let mut lab = Lab::new().await;
    lab.settings.logs = true;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2])] {
        lab.push(number, number.into(), &references).await;
        lab.put_trace(number).await;
    }
    lab.put_log("built").await;
    lab.publish().await.unwrap();
    let sound = lab.target.files();
    assert!(sound.contains_key(&log_name()) && sound.contains_key(&trace_name(3)));
    let kind = FileKind { content_type: "x", cache_control: String::new() };
    let names: Vec<String> = sound.keys().cloned().collect();
    let nars: Vec<&String> = names.iter().filter(|name| name.contains("/nar/")).collect();
    let narinfos: Vec<&String> = names.iter().filter(|name| name.ends_with(".narinfo")).collect();
    lab.target.store().delete(nars[0]).await.unwrap();
    lab.target.store().put(nars[1], &kind, vec!["short".into()]).await.unwrap();
    lab.target.store().delete(narinfos[0]).await.unwrap();
    lab.target.store().put(narinfos[1], &kind, vec!["StorePath: x\n".into()]).await.unwrap();
    let stranger = format!("main/{}.narinfo", path(77).hash());
    lab.target.store().put(&stranger, &kind, vec!["not ours".into()]).await.unwrap();
    lab.target.store().delete(&trace_name(1)).await.unwrap();
    lab.target.store().put(&trace_name(2), &kind, vec!["{}".into()]).await.unwrap();
    lab.target.store().put(&log_name(), &kind, vec!["not how it was built".into()]).await.unwrap();
    lab.target.store().put(&trace_name(77), &kind, vec!["not ours".into()]).await.unwrap();
    lab.target.store().put("main/README", &kind, vec!["left alone".into()]).await.unwrap();
    lab.target.store().put("main/log/README", &kind, vec!["left alone".into()]).await.unwrap();
    lab.publish().await.unwrap();
    assert_ne!(lab.target.files(), sound, "a run that follows does not look");
    let outcome = lab.publisher().run(Mode::Reconcile).await.unwrap();
    // Of NARs and narinfos two each, and one that is not ours; of documents three, and one.
    assert_eq!(outcome.caches[0].repaired, 5 + 4);
    let mut repaired = lab.target.files();
    assert!(repaired.remove("main/README").is_some() && repaired.remove("main/log/README").is_some());
    let without_time = |files: std::collections::BTreeMap<String, bytes::Bytes>| {
        files.into_iter().filter(|(name, _)| !name.ends_with("state.json")).collect::<Vec<_>>()
    };
    assert_eq!(without_time(repaired), without_time(sound));
    let again = lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!(again.caches[0].repaired, 0);
}

/// Random pushes, updates, removals and runs, over graphs of twelve paths. Anything may be removed
/// at any time, in an orderly way or for cause, whether its referrers are published, wait, or were
/// pushed a moment ago.
async fn whatever_happens_in_the_lab_a_reader_always_finds_whole_closures() {
    const UPSTREAM: u8 = 200;
    let rounds = if std::env::var_os("DORMER_TEST_LONG").is_some() { 400 } else { 40 };
    for seed in (0..rounds).step_by(stride()) {
        let mut lab = Lab::new().await;
        if seed % 2 == 1 {
            // Every turn ends as soon as it may.
            lab.settings.turn = Duration::ZERO;
        }
        // One process, which passes over what waits and did not change.
        let publisher = lab.publisher();
        let mut random = Random::new(seed);
        let mut graph: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for _ in 0..40 {
            let number = u8::try_from(random.next_u64() % 12).unwrap();
            match random.next_u64() % 10 {
                0..=4 => {
                    // Only lower numbers, so that there are no circles.
                    let mut references: Vec<u8> =
                        (0..number).filter(|_| random.next_u64().is_multiple_of(4)).collect();
                    // As clients do it: what is not there is pushed before what refers to it,
                    // unless another cache has it.
                    for reference in &references {
                        if !graph.contains_key(reference) {
                            graph.insert(*reference, Vec::new());
                            lab.push(*reference, u64::from(*reference) * 10, &[]).await;
                        }
                    }
                    if random.next_u64().is_multiple_of(8) {
                        references.push(UPSTREAM);
                    }
                    lab.push(number, random.next_u64() % 3 + u64::from(number) * 10, &references).await;
                    graph.insert(number, references);
                }
                5 if graph.remove(&number).is_some() => lab.remove(number).await,
                6 if graph.remove(&number).is_some() => lab.remove_for_cause(number).await,
                5..=7 => lab.clock.advance(SETTLE),
                _ => {
                    publisher.run(Mode::Follow).await.unwrap();
                }
            }
        }
        // What is taken back looks at upstream's paths again.
        publisher.run(Mode::Follow).await.unwrap();
        lab.clock.advance(SETTLE);
        let last = publisher.run(Mode::Follow).await.unwrap();
        lab.check_every_moment(&[UPSTREAM], &format!("seed {seed}"));
        // References are lower numbers, so each is decided before it is asked for.
        let mut whole = BTreeSet::new();
        for (number, references) in &graph {
            if references.iter().all(|reference| *reference == UPSTREAM || whole.contains(reference)) {
                whole.insert(*number);
            }
        }
        // A path that waits in its present form may be there in an earlier one.
        let published = lab.published();
        assert!(whole.is_subset(&published), "seed {seed}: {published:?} lacks some of {whole:?}");
        assert!(published.iter().all(|number| graph.contains_key(number)), "seed {seed}: {published:?}");
        // ... or lean on an earlier form of another one.
        let waiting = usize::try_from(last.waiting()).unwrap();
        assert!(
            (graph.len() - published.len()..=graph.len() - whole.len()).contains(&waiting),
            "seed {seed}"
        );
        // With everything back that was removed, nothing waits any more.
        for references in graph.values() {
            for lost in references.iter().filter(|reference| !graph.contains_key(reference)) {
                if *lost != UPSTREAM {
                    lab.push(*lost, u64::from(*lost) * 10, &[]).await;
                }
            }
        }
        lab.clock.advance(SETTLE);
        assert_eq!(publisher.run(Mode::Follow).await.unwrap().waiting(), 0, "seed {seed}");
        lab.check_every_moment(&[UPSTREAM], &format!("seed {seed}, healed"));
    }
}

async fn recompressed_nars_are_other_files_of_the_same_archives() {
    let mut lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[1]).await;
    lab.publish().await.unwrap();
    let as_stored = lab.target.files();
    lab.settings.recompress_level = Some(19);
    assert_eq!(lab.publish().await.unwrap().writes, 0, "what is there stays as it is");
    lab.push(3, 3, &[2]).await;
    let outcome = lab.publish().await.unwrap();
    assert_eq!((outcome.caches[0].published, outcome.caches[0].nars_uploaded), (1, 1));
    assert_eq!(lab.publish().await.unwrap().writes, 0);
    lab.check_every_moment(&[], "recompressed");

    let files = lab.target.files();
    let narinfo = String::from_utf8(files[&format!("main/{}.narinfo", path(3).hash())].to_vec()).unwrap();
    let narinfo = NarInfo::parse(&narinfo, &StoreDir::default()).unwrap();
    let nar = &files[&format!("main/{}", narinfo.url)];
    assert!(!as_stored.contains_key(&format!("main/{}", narinfo.url)));
    assert_eq!(narinfo.file_size, Some(nar.len() as u64));
    assert_eq!(narinfo.file_hash, Some(NarHash::digest(nar)));
    let archive = zstd::bulk::decompress(nar, 1 << 20).unwrap();
    assert_eq!((NarHash::digest(&archive), archive.len() as u64), (narinfo.nar_hash, narinfo.nar_size));

    // A new key has every narinfo written again, with its NAR as the settings are by now; the one
    // before stays for its grace.
    lab.settings.recompress_level = None;
    let update = UpdateCache { new_key: Some(dormer_engine::KeyChange::Generate), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    let outcome = lab.publish().await.unwrap();
    assert_eq!((outcome.caches[0].published, outcome.caches[0].nars_uploaded), (3, 1));
    lab.check_every_moment(&[], "as stored");
    assert_eq!(lab.nar_count(), 4);
    lab.clock.advance(GRACE);
    lab.publish().await.unwrap();
    assert_eq!(lab.nar_count(), 3);
}

async fn an_emptied_target_is_filled_again_with_everything() {
    let mut lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![])] {
        lab.push(number, number.into(), &references).await;
    }
    lab.publish().await.unwrap();
    // In grace: its NAR is written down, and what nobody sees missing would not be sent again.
    lab.remove(3).await;
    lab.publish().await.unwrap();
    lab.target = MemoryTarget::new();
    lab.publisher().run(Mode::Reconcile).await.unwrap();
    lab.push(3, 3, &[]).await;
    lab.publish().await.unwrap();
    lab.check_every_moment(&[], "filled again");
    assert_eq!(numbers(lab.published()), [1, 2, 3]);
    let files = lab.target.files();
    for name in ["main/nix-cache-info", "main/dormer-state.json", "dormer-caches.json"] {
        assert!(files.contains_key(name), "{name}");
    }
}

async fn listings_go_with_their_paths_whatever_the_settings_are_by_then() {
    let mut lab = Lab::new().await;
    lab.settings.listings = true;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[]).await;
    lab.publish().await.unwrap();
    let listings = |lab: &Lab| {
        lab.target
            .files()
            .keys()
            .filter(|name| name.rsplit_once('.').is_some_and(|(_, end)| end == "ls"))
            .count()
    };
    assert_eq!(listings(&lab), 2);
    lab.settings.listings = false;
    lab.remove(1).await;
    lab.publish().await.unwrap();
    assert_eq!(listings(&lab), 1);
    let update = UpdateCache { is_public: Some(false), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    lab.publish().await.unwrap();
    assert_eq!(listings(&lab), 0, "the names of files are as private as the files");
}

async fn documents_come_after_their_narinfos_and_go_before_them() {
    let mut lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[1]).await;
    lab.put_log("first").await;
    lab.put_trace(1).await;
    lab.put_trace(9).await;
    lab.publish().await.unwrap();
    let has = |lab: &Lab, name: &str| lab.target.files().contains_key(name);
    assert!(has(&lab, &trace_name(1)) && !has(&lab, &log_name()), "logs are published only if wanted");
    assert!(!has(&lab, &trace_name(9)), "its path is not there");

    lab.settings.logs = true;
    lab.put_log("second").await;
    lab.publish().await.unwrap();
    assert_eq!(lab.target.files()[&log_name()].as_ref(), b"second");
    assert_eq!(lab.publish().await.unwrap().writes, 0, "nothing twice");
    lab.put_log("third").await;
    lab.put_trace(1).await;
    lab.publish().await.unwrap();
    assert_eq!(lab.target.files()[&log_name()].as_ref(), b"third");

    let before = lab.target.files()[&trace_name(1)].clone();
    let update = UpdateCache { new_key: Some(KeyChange::Generate), ..UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.unwrap();
    lab.publish().await.unwrap();
    assert_ne!(lab.target.files()[&trace_name(1)], before, "the new key signs it");

    lab.push(9, 9, &[]).await;
    lab.publish().await.unwrap();
    assert!(has(&lab, &trace_name(9)), "its path came later");
    lab.remove(2).await;
    lab.remove_for_cause(1).await;
    lab.publish().await.unwrap();
    assert!(!has(&lab, &trace_name(1)) && has(&lab, &log_name()), "one path names its derivation still");
    // Nothing is pushed meanwhile: the next run sees that the settings are others.
    (lab.settings.logs, lab.settings.traces) = (false, false);
    lab.publish().await.unwrap();
    assert!(!has(&lab, &log_name()) && !has(&lab, &trace_name(9)), "they are not wanted any more");
    (lab.settings.logs, lab.settings.traces) = (true, true);
    lab.publish().await.unwrap();
    assert!(has(&lab, &log_name()) && has(&lab, &trace_name(9)));
    lab.remove(9).await;
    lab.publish().await.unwrap();
    let documents =
        lab.target.files().into_keys().filter(|name| name.contains("/log/") || name.contains(".drv/"));
    assert_eq!(documents.count(), 0);
    lab.check_every_moment(&[], "documents");
}

async fn documents_of_a_private_cache_leave_a_readable_target() {
    let mut lab = Lab::new().await;
    lab.settings.logs = true;
    lab.push(1, 1, &[]).await;
    lab.put_log("secret").await;
    lab.put_trace(1).await;
    lab.publish().await.unwrap();
    assert!(lab.target.files().contains_key(&log_name()));
    lab.set_public(false).await;
    lab.publish().await.unwrap();
    let left: Vec<String> =
        lab.target.files().into_keys().filter(|name| name.starts_with("main/l")).collect();
    assert_eq!(left, Vec::<String>::new());
    assert!(!lab.target.files().contains_key(&trace_name(1)));
    lab.check_every_moment(&[], "a cache that became private");
}

async fn debug_info_leads_to_a_nar_of_the_target() {
    let mut lab = Lab::new().await;
    lab.settings.debug_info = true;
    let id = "00ab12";
    let debug_nar = |contents: &str| {
        let file = Node::directory([("ab12.debug", Node::file(contents))]);
        let folders = ["lib", "debug", ".build-id", "00"];
        let tree = folders.iter().rev().fold(file, |node, name| Node::directory([(*name, node)]));
        encode_tree(&tree)
    };
    let name = format!("main/debuginfo/{id}.debug");
    let archive = |lab: &Lab| {
        let files = lab.target.files();
        let link: serde_json::Value = serde_json::from_slice(files.get(&name)?).unwrap();
        assert_eq!(link["member"], "lib/debug/.build-id/00/ab12.debug");
        let nar = link["archive"].as_str().unwrap().strip_prefix("../").unwrap().to_owned();
        assert!(files.contains_key(&format!("main/{nar}")), "{nar} is not there");
        Some(nar)
    };
    lab.push_nar(1, &debug_nar("one"), &[], &[]).await;
    lab.push(2, 2, &[]).await;
    lab.publish().await.unwrap();
    let first = archive(&lab).expect("it is published");
    assert_eq!(lab.publish().await.unwrap().writes, 0, "nothing twice");
    // Another path with the same build id, and then without the first.
    lab.push_nar(3, &debug_nar("two"), &[], &[]).await;
    lab.publish().await.unwrap();
    lab.remove_for_cause(1).await;
    lab.publish().await.unwrap();
    let second = archive(&lab).expect("another path has it");
    assert_ne!(first, second);
    lab.remove_for_cause(3).await;
    lab.publish().await.unwrap();
    assert_eq!(archive(&lab), None);
    // As the settings are by then.
    lab.settings.debug_info = false;
    lab.push_nar(4, &debug_nar("three"), &[], &[]).await;
    lab.publish().await.unwrap();
    assert_eq!(archive(&lab), None);
    lab.check_every_moment(&[], "debug info");
}

/// docs/PERFORMANCE.md: what a first run asks of a target for each path, and for each document.
async fn a_path_costs_two_requests_and_a_document_one() {
    const PATHS: u8 = 40;
    let mut requests = Vec::new();
    for traces in [0, PATHS] {
        let lab = Lab::new().await;
        for number in 1..=PATHS {
            lab.push(number, number.into(), &[]).await;
        }
        for number in 1..=traces {
            lab.put_trace(number).await;
        }
        let outcome = lab.publish().await.unwrap();
        assert_eq!(lab.published().len(), usize::from(PATHS));
        // What the target saw, and what the run counted, which has to be no less.
        let seen = lab.target.events().len() as u64;
        assert!(outcome.writes >= seen, "{seen} seen, {} counted", outcome.writes);
        requests.push(outcome.writes + outcome.listings);
    }
    let paths = u64::from(PATHS);
    assert!(requests[0] * 10 <= paths * 22, "{requests:?} for {PATHS} paths");
    assert_eq!(requests[1] - requests[0], paths, "one for each trace");
}

async fn revoked_tokens_are_told_to_the_edge() {
    let mut lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.publish().await.unwrap();
    lab.settings.revoked_tokens = vec!["leaked".to_owned()];
    assert_eq!(lab.publish().await.unwrap().writes, 1);
    let state = CacheState::parse(&lab.target.files()["main/dormer-state.json"]).unwrap();
    assert_eq!(state.revoked, ["leaked"]);
    assert_eq!(lab.publish().await.unwrap().writes, 0);
    lab.push(2, 2, &[]).await;
    lab.publish().await.unwrap();
    let state = CacheState::parse(&lab.target.files()["main/dormer-state.json"]).unwrap();
    assert_eq!(state.revoked, ["leaked"], "also after other changes");
}

on_both_databases! {
    references_are_published_before_their_referrers_and_nothing_twice,
    a_reference_that_the_cache_lacks_is_waited_for_and_then_upstreams,
    what_is_removed_goes_after_its_referrers_and_its_nar_after_the_grace,
    what_is_removed_for_cause_goes_at_once_with_its_nar_and_takes_its_referrers_back,
    what_is_removed_for_cause_goes_at_once_though_it_was_pushed_again_before_anybody_looked,
    what_changed_while_it_waited_waits_for_its_new_references_too,
    a_reference_that_is_removed_while_its_referrer_waits_never_counts_as_upstreams,
    what_was_removed_before_a_cache_was_published_is_known_too,
    a_target_that_was_away_for_too_long_comes_out_right,
    an_upstream_path_that_is_removed_takes_nothing_along,
    an_object_with_another_nar_is_updated_in_place,
    a_new_key_signs_everything_again_and_sends_no_nar,
    private_caches_are_kept_from_a_readable_target_and_leave_it_when_they_become_private,
    a_deleted_cache_leaves_nothing_and_its_name_can_be_used_again,
    two_runs_do_not_overlap_and_a_dead_ones_lease_runs_out,
    a_target_that_moved_is_refused_until_it_is_reconciled,
    a_target_that_moves_before_the_lease_is_taken_is_refused,
    reconciling_repairs_what_is_missing_damaged_extra_or_unknown,
    whatever_happens_in_the_lab_a_reader_always_finds_whole_closures,
    recompressed_nars_are_other_files_of_the_same_archives,
    an_emptied_target_is_filled_again_with_everything,
    listings_go_with_their_paths_whatever_the_settings_are_by_then,
    documents_come_after_their_narinfos_and_go_before_them,
    documents_of_a_private_cache_leave_a_readable_target,
    debug_info_leads_to_a_nar_of_the_target,
    a_path_costs_two_requests_and_a_document_one,
    revoked_tokens_are_told_to_the_edge,
}
