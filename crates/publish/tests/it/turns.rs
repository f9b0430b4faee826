//! Caches take turns, a stop ends a run soon, and a run costs what changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Lab, create_cache, on_both_databases, path};
use dormer_engine::{Clock as _, UpdateCache};
use dormer_index::OutboxPosition;
use dormer_publish::Mode;
use dormer_testkit::FileEvent;

/// Where something happened to files, by a part of their names: the first deletion, and the last
/// PUT.
fn first_deletion(lab: &Lab, name: &str) -> Option<usize> {
    let events = lab.target.events();
    events.iter().position(|event| matches!(event, FileEvent::Delete(deleted) if deleted.contains(name)))
}

fn last_put(lab: &Lab, name: &str) -> Option<usize> {
    let events = lab.target.events();
    events.iter().rposition(|event| matches!(event, FileEvent::Put(put, _) if put.contains(name)))
}

/// A large cache is published for the first time. Meanwhile another one loses a path for cause, and
/// a third one becomes private.
async fn a_large_cache_keeps_no_other_waiting() {
    let mut lab = Lab::new().await;
    lab.settings.concurrency = 1;
    lab.settings.turn = Duration::ZERO;
    let team = create_cache(&lab.engine, "team", true).await;
    let zoo = create_cache(&lab.engine, "zoo", true).await;
    let main = std::mem::replace(&mut lab.cache, Arc::clone(&team));
    lab.push(1, 1, &[]).await;
    lab.cache = Arc::clone(&zoo);
    lab.push(2, 2, &[]).await;
    lab.publish().await.unwrap();
    lab.cache = main;
    for number in 11..=20 {
        lab.push(number, number.into(), &[]).await;
    }
    let lab = Arc::new(lab);
    let busy = Arc::clone(&lab);
    let (publisher, index) = lab.publisher_meanwhile(Box::new(move |call| {
        let (lab, team, zoo) = (Arc::clone(&busy), Arc::clone(&team), Arc::clone(&zoo));
        Box::pin(async move {
            if call == 30 {
                lab.engine.remove_object(&team, &path(1).hash(), None).await.expect("a removal");
                let update = UpdateCache { is_public: Some(false), ..UpdateCache::default() };
                lab.engine.update_cache(&zoo, update).await.expect("an update");
            }
        })
    }));
    publisher.run(Mode::Follow).await.unwrap();
    assert!(index.calls() > 60, "only {} calls", index.calls());
    let last = last_put(&lab, "main/nar/").unwrap();
    for gone in ["team/nar/", "zoo/dormer-state.json", "zoo/nar/"] {
        let deletion = first_deletion(&lab, gone);
        assert!(
            deletion.is_some_and(|at| at < last),
            "{gone} went at {deletion:?}, the last NAR came at {last}"
        );
    }
    assert_eq!(lab.target.files().keys().filter(|name| name.starts_with("main/nar/")).count(), 10);
    assert!(lab.target.files().keys().all(|name| !name.contains("zoo/")));
    assert!(!publisher.has_work().await.unwrap());
}

/// A path waits for one that may be upstream's. Its time comes while a large cache is published.
async fn a_path_whose_time_comes_waits_for_no_large_cache() {
    let mut lab = Lab::new().await;
    lab.settings.concurrency = 1;
    lab.settings.turn = Duration::ZERO;
    let team = create_cache(&lab.engine, "team", true).await;
    let main = std::mem::replace(&mut lab.cache, team);
    lab.push(1, 1, &[99]).await;
    assert_eq!(lab.publish().await.unwrap().waiting(), 1);
    lab.cache = main;
    for number in 11..=20 {
        lab.push(number, number.into(), &[]).await;
    }
    let settle = i64::try_from(lab.settings.settle.as_secs()).unwrap();
    let lab = Arc::new(lab);
    let busy = Arc::clone(&lab);
    let (publisher, _) = lab.publisher_meanwhile(Box::new(move |call| {
        if call == 30 {
            busy.clock.advance(settle + 1);
        }
        Box::pin(async {})
    }));
    publisher.run(Mode::Follow).await.unwrap();
    let came = lab.target.events();
    let narinfo = format!("team/{}.narinfo", path(1).hash());
    let came = came.iter().position(|event| matches!(event, FileEvent::Put(put, _) if *put == narinfo));
    let last = last_put(&lab, "main/nar/").unwrap();
    assert!(came.is_some_and(|at| at < last), "it came at {came:?}, the last NAR at {last}");
}

/// A chain of paths leaves, one path a turn. What is done once for the whole cache is not repeated.
async fn a_withdrawal_of_many_turns_is_noted_once() {
    let mut lab = Lab::new().await;
    lab.settings.turn = Duration::ZERO;
    lab.push(1, 1, &[]).await;
    for number in 2..=6 {
        lab.push(number, number.into(), &[number - 1]).await;
    }
    lab.publish().await.unwrap();
    lab.set_public(false).await;
    let before = lab.target.events().len();
    lab.publish().await.unwrap();
    let events = lab.target.events().split_off(before);
    let is_state =
        |event: &&FileEvent| matches!(event, FileEvent::Delete(name) if name.ends_with("dormer-state.json"));
    assert_eq!(events.iter().filter(is_state).count(), 1, "{events:?}");
    assert!(lab.published().is_empty());
}

/// A database that was recovered, or a target under a new name, knows nothing of what is there.
async fn a_comparison_without_rows_takes_away_only_what_the_lab_has_not() {
    let mut lab = Lab::new().await;
    for (number, references) in [(1, &[][..]), (2, &[1]), (3, &[1, 2]), (4, &[])] {
        lab.push(number, number.into(), references).await;
    }
    lab.put_log("building").await;
    lab.put_trace(1).await;
    lab.publish().await.unwrap();
    lab.remove_for_cause(4).await;
    "another".clone_into(&mut lab.settings.name);
    let before = lab.target.events().len();
    lab.publisher().run(Mode::Reconcile).await.unwrap();
    let deleted = lab.target.events().split_off(before).into_iter().filter_map(|event| match event {
        FileEvent::Delete(name) => Some(name),
        FileEvent::Put(..) => None,
    });
    let deleted: Vec<String> = deleted.collect();
    let narinfo = format!("main/{}.narinfo", path(4).hash());
    assert!(deleted.contains(&narinfo), "{deleted:?}");
    let listing = format!("main/{}.ls", path(4).hash());
    let is_of_it = |name: &String| [&narinfo, &listing].contains(&name) || name.contains("/nar/");
    assert!(deleted.len() == 3 && deleted.iter().all(is_of_it), "{deleted:?}");
    assert_eq!(lab.published(), [1, 2, 3].into());
    lab.check_every_moment(&[], "while it is compared");
    let again = lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!((again.caches[0].repaired, lab.nar_count()), (0, 3));
}

/// A comparison that ends in many turns is one comparison.
async fn a_comparison_goes_on_from_turn_to_turn() {
    let mut lab = Lab::new().await;
    lab.settings.turn = Duration::ZERO;
    for number in 1..=3 {
        lab.push(number, number.into(), &[]).await;
    }
    lab.publish().await.unwrap();
    let narinfo = format!("main/{}.narinfo", path(2).hash());
    lab.target.store().delete(&narinfo).await.unwrap();
    let outcome = lab.publisher().run(Mode::Reconcile).await.unwrap();
    assert_eq!((outcome.caches[0].repaired, outcome.caches[0].published), (1, 1));
    assert!(lab.target.files().contains_key(&narinfo));
}

/// Whenever a run is asked to stop, it ends within a few calls.
async fn a_run_that_is_asked_to_stop_ends_soon() {
    for moment in (0..).step_by(5) {
        let lab = Lab::new().await;
        for number in 1..=5 {
            lab.push(number, number.into(), if number > 1 { &[1] } else { &[] }).await;
        }
        lab.publish().await.unwrap();
        // All of it leaves.
        lab.set_public(false).await;
        let lab = Arc::new(lab);
        let publisher = Arc::new(std::sync::OnceLock::<std::sync::Weak<dormer_publish::Publisher>>::new());
        let asked = Arc::clone(&publisher);
        let (run, index) = lab.publisher_meanwhile(Box::new(move |call| {
            if call == moment {
                asked.get().unwrap().upgrade().unwrap().stop_soon();
            }
            Box::pin(async {})
        }));
        let run = Arc::new(run);
        publisher.set(Arc::downgrade(&run)).unwrap();
        run.run(Mode::Follow).await.unwrap();
        let calls = index.calls();
        if calls <= moment {
            assert!(calls > 15, "only {calls} calls: the test no longer sees them");
            assert!(lab.published().is_empty());
            return;
        }
        assert!(calls - moment <= 10, "{} calls after a stop before call {moment}", calls - moment);
        lab.publish().await.unwrap();
        lab.check_every_moment(&[], &format!("stopped before call {moment}"));
        assert!(lab.published().is_empty());
    }
}

async fn a_run_that_waits_for_a_dead_one_stops_at_once() {
    let mut lab = Lab::new().await;
    lab.settings.request_timeout = Duration::from_hours(1);
    lab.push(1, 1, &[]).await;
    let target = lab.index.open_target("edge", "memory").await.unwrap();
    let now = lab.clock.now();
    lab.index.acquire_lease(target.id, "another", now, now).await.unwrap().expect("free");
    let begin = Instant::now();
    let publisher = lab.publisher();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        publisher.stop_soon();
    };
    let (outcome, ()) = tokio::join!(publisher.run(Mode::Follow), stop);
    assert_eq!(outcome.unwrap().writes, 0);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    // The next run has to wait as well, so the lease was not given back.
    assert_eq!(lab.index.list_targets().await.unwrap()[0].holder.as_deref(), Some("test"));
}

/// A cache that the settings no longer name costs nothing, and comes back whole.
async fn a_cache_that_the_settings_no_longer_name_is_set_aside() {
    let mut lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    lab.push(2, 2, &[]).await;
    // This one waits.
    lab.push(3, 3, &[99]).await;
    create_cache(&lab.engine, "other", true).await;
    lab.publish().await.unwrap();
    let all = std::mem::replace(&mut lab.settings.caches, vec!["other".parse().unwrap()]);
    let publisher = lab.publisher();
    let outcome = publisher.run(Mode::Follow).await.unwrap();
    assert!(outcome.caches[0].note.is_some());
    lab.push(4, 4, &[]).await;
    lab.remove(2).await;
    publisher.run(Mode::Follow).await.unwrap();
    let target = lab.index.list_targets().await.unwrap().remove(0);
    assert_ne!(target.cursor, OutboxPosition::START);
    let counts = lab.index.publish_counts(target.id, lab.cache.id).await.unwrap();
    assert_eq!((counts.pending, counts.pending_since), (0, None), "it has no lag");
    assert!(!publisher.has_work().await.unwrap(), "nothing is left to do");
    assert_eq!(lab.published().into_iter().collect::<Vec<_>>(), [1, 2], "it is left as it was");

    lab.settings.caches = all;
    let outcome = lab.publish().await.unwrap();
    assert_eq!((outcome.caches[0].published, outcome.waiting()), (1, 1));
    assert_eq!(lab.published().into_iter().collect::<Vec<_>>(), [1, 4]);
    lab.check_every_moment(&[], "back again");
    lab.check_counts("back again").await;
}

/// Nobody follows a cache that was set aside, but its access rule is not what is left as it is.
async fn a_cache_that_was_set_aside_leaves_when_it_becomes_private() {
    let mut lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    create_cache(&lab.engine, "other", true).await;
    lab.publish().await.unwrap();
    lab.settings.caches = vec!["other".parse().unwrap()];
    lab.publish().await.unwrap();
    assert_eq!(lab.published(), [1].into());
    lab.set_public(false).await;
    lab.publish().await.unwrap();
    let left: Vec<String> = lab.target.files().into_keys().filter(|name| name.starts_with("main/")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// Paths that wait cost a statement for thousands of them, unless what they wait for changes.
async fn a_run_costs_what_changed_and_not_what_waits() {
    let lab = Lab::new().await;
    lab.push(1, 1, &[]).await;
    let (publisher, index) = lab.publisher_meanwhile(Box::new(|_| Box::pin(async {})));
    let run = async || {
        let before = index.calls();
        let outcome = publisher.run(Mode::Follow).await.unwrap();
        (index.calls() - before, outcome)
    };
    run().await;
    lab.push(2, 2, &[]).await;
    let (alone, _) = run().await;
    for number in 10..=20 {
        lab.push(number, number.into(), &[if number == 10 { 99 } else { number - 1 }]).await;
    }
    assert_eq!(run().await.1.waiting(), 11);
    lab.push(3, 3, &[]).await;
    let (beside, outcome) = run().await;
    assert_eq!((outcome.caches[0].published, outcome.waiting()), (1, 11));
    // One more pass, because something may wait for what was published.
    assert!(beside <= alone + 6, "{alone} calls alone, {beside} beside paths that wait");
    // What they wait for comes.
    lab.push(99, 99, &[]).await;
    let (_, outcome) = run().await;
    assert_eq!((outcome.caches[0].published, outcome.waiting()), (12, 0));
    lab.check_every_moment(&[], "all of it");
}

on_both_databases! {
    a_large_cache_keeps_no_other_waiting,
    a_path_whose_time_comes_waits_for_no_large_cache,
    a_withdrawal_of_many_turns_is_noted_once,
    a_comparison_goes_on_from_turn_to_turn,
    a_comparison_without_rows_takes_away_only_what_the_lab_has_not,
    a_run_that_is_asked_to_stop_ends_soon,
    a_run_that_waits_for_a_dead_one_stops_at_once,
    a_cache_that_the_settings_no_longer_name_is_set_aside,
    a_cache_that_was_set_aside_leaves_when_it_becomes_private,
    a_run_costs_what_changed_and_not_what_waits,
}
