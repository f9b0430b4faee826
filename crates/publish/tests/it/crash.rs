//! Crash at every step of a run, with the lost call's effect kept and dropped: a reader sees whole
//! closures all the way, and the next run finishes what was begun and leaves nothing behind.

use std::collections::BTreeSet;

use crate::common::{GRACE, Lab, check, debug_name, log_name, on_both_databases, stride, trace_name};
use dormer_edge::CacheState;
use dormer_engine::{Clock as _, KeyChange, UpdateCache};
use dormer_publish::{Error, Mode};
use dormer_stores::FileKind;
use dormer_testkit::{Faults, Lie, MemoryTarget};

/// A path of the target that neither the rows nor the lab know.
const UNKNOWN: u8 = 9;

/// What the run that crashes finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing is published.
    Nothing,
    /// As before, and every NAR goes in parts.
    NothingInParts,
    /// Much is, and was then changed in every way.
    Changes,
    /// Much is, and a new key signs it.
    NewKey,
    /// Much is, and the cache is private by now and named by a pattern only.
    Private,
    /// Much is, and some of it was lost or damaged in the target; the run compares.
    Damage,
    /// Much is, somewhere else; the run compares with the new place, which is empty.
    AnotherPlace,
}

impl Before {
    async fn prepare(self) -> Lab {
        let mut lab = Lab::new().await;
        lab.settings.logs = true;
        lab.settings.debug_info = true;
        for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2]), (4, vec![])] {
            lab.push(number, number.into(), &references).await;
        }
        lab.push_debug(5, &[4]).await;
        if self == Self::Changes {
            lab.push_debug(8, &[]).await;
        }
        lab.put_log("built").await;
        for number in [3, 4] {
            lab.put_trace(number).await;
        }
        if self == Self::NothingInParts {
            lab.target = MemoryTarget::in_parts_of(1_000);
        }
        if matches!(self, Self::Nothing | Self::NothingInParts) {
            return lab;
        }
        lab.publish().await.expect("nothing is in the way");
        match self {
            Self::Nothing | Self::NothingInParts => {}
            Self::Changes => {
                lab.push(6, 6, &[3]).await;
                lab.put_log("built again").await;
                // Another NAR, other references; an orderly removal; one for cause that takes a
                // referrer along, and one of what was pushed again since.
                lab.push(3, 33, &[1]).await;
                lab.remove(2).await;
                lab.remove_for_cause(4).await;
                lab.remove_for_cause(8).await;
                lab.push(7, 7, &[]).await;
                lab.remove_for_cause(1).await;
                lab.push(1, 11, &[]).await;
            }
            Self::NewKey => {
                let update = UpdateCache { new_key: Some(KeyChange::Generate), ..UpdateCache::default() };
                lab.engine.update_cache(&lab.cache, update).await.expect("a new key");
                lab.push(6, 6, &[3]).await;
            }
            Self::Private => lab.set_public(false).await,
            Self::Damage => {
                let names: Vec<String> = lab.target.files().into_keys().collect();
                let is_nar = |name: &&String| name.contains("/nar/");
                let nars: Vec<&String> = names.iter().filter(is_nar).collect();
                let narinfos: Vec<&String> = names.iter().filter(|name| name.ends_with(".narinfo")).collect();
                let kind = FileKind { content_type: "x", cache_control: String::new() };
                lab.target.store().delete(narinfos[2]).await.expect("memory");
                lab.target.store().delete(nars[1]).await.expect("memory");
                lab.target.store().put(nars[2], &kind, vec!["short".into()]).await.expect("memory");
                let flipped =
                    if nars[0].contains("/nar/0") { ("/nar/0", "/nar/1") } else { ("/nar/1", "/nar/0") };
                let stranger = nars[0].replace(flipped.0, flipped.1);
                lab.target.store().put(&stranger, &kind, vec!["not ours".into()]).await.expect("memory");
                lab.target.store().delete(&trace_name(3)).await.expect("memory");
                lab.target.store().delete(&debug_name(5)).await.expect("memory");
                lab.target.store().put(&log_name(), &kind, vec!["short".into()]).await.expect("memory");
                lab.put_unknown(UNKNOWN).await;
            }
            Self::AnotherPlace => lab.target = MemoryTarget::at("elsewhere"),
        }
        lab
    }

    fn mode(self) -> Mode {
        match self {
            Self::Damage | Self::AnotherPlace => Mode::Reconcile,
            _ => Mode::Follow,
        }
    }

    /// After the crash, until everything is done.
    async fn recover(self, lab: &Lab, what: &str) {
        if self == Self::AnotherPlace {
            // A run that follows counts on what was written down, which may be of the other place.
            lab.push(6, 6, &[3]).await;
            match lab.publish().await {
                Ok(_) | Err(Error::Moved { .. } | Error::Moving { .. }) => {}
                Err(error) => panic!("{what}: {error}"),
            }
            lab.check_every_moment(&[], &format!("{what}, and a run that follows after it"));
        }
        if self == Self::Private {
            // Also if it was changed back before the next run.
            lab.set_public(true).await;
        }
        lab.publisher().run(self.mode()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        if self.mode() == Mode::Reconcile {
            lab.publish().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        if self == Self::Damage {
            // What nobody wrote down goes after its grace.
            assert!(lab.target.files().contains_key(&lab.unknown_nar()), "{what}: its NAR has a grace");
            lab.clock.advance(GRACE);
            lab.publish().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

async fn survives(before: Before, published: &[u8], nars: usize) {
    for effect_kept in [false, true] {
        for step in (0..).step_by(stride()) {
            let lab = before.prepare().await;
            let faults = Faults::crash_at(step, effect_kept);
            let outcome = lab.crashing(&faults).run(before.mode()).await;
            let crashed = faults.crashed();
            assert!(crashed || outcome.is_ok(), "{outcome:?}");
            let what = format!("{before:?}, crash at step {step}, effect kept: {effect_kept}");
            if before != Before::Damage {
                lab.check_every_moment(&[], &what);
            }
            // The lease of the dead has to run out.
            lab.clock.advance(60);
            before.recover(&lab, &what).await;
            if before != Before::Damage {
                lab.check_every_moment(&[], &format!("{what}, and a run after it"));
            }
            lab.check_now(&what);
            lab.check_counts(&what).await;
            assert_eq!(lab.published().into_iter().collect::<Vec<_>>(), published, "{what}");
            assert_eq!(lab.nar_count(), nars, "{what}: NARs");
            let files = lab.target.files();
            let log = if before == Before::Changes { "built again" } else { "built" };
            assert_eq!(files.get(&log_name()).map(AsRef::as_ref), Some(log.as_bytes()), "{what}: the log");
            for number in [3, 4] {
                let is_there = files.contains_key(&trace_name(number));
                assert_eq!(is_there, published.contains(&number), "{what}: the trace of {number}");
            }
            for number in [5, 8] {
                let is_there = files.contains_key(&debug_name(number));
                assert_eq!(is_there, published.contains(&number), "{what}: the debug info of {number}");
            }
            assert!(files.contains_key("main/nix-cache-info"), "{what}");
            let state = CacheState::parse(&files["main/dormer-state.json"]).expect("a good state document");
            assert_eq!(state.object_count, published.len() as u64, "{what}");
            if !crashed {
                assert!(step > 10, "only {step} steps: the test no longer sees the writes");
                break;
            }
        }
    }
}

/// A planted defect is caught by the checks of these tests.
#[tokio::test]
async fn a_target_that_drops_puts_is_caught() {
    let lab = Before::Nothing.prepare().await;
    let faults = Faults::crash_at_with(u64::MAX, false, Lie::PutsDropped);
    lab.crashing(&faults).run(Mode::Follow).await.expect("nobody notices it");
    let caught = check(&lab.target.files(), &BTreeSet::new());
    assert!(caught.is_err(), "a link or a narinfo leads to a NAR that is not there");
}

/// What a planted defect of the lease does, which every other test would notice.
#[tokio::test]
async fn an_index_that_ignores_leases_takes_the_lease_of_a_live_run() {
    let lab = Before::Nothing.prepare().await;
    let target = lab.index.open_target("edge", "memory").await.expect("it answers");
    let now = lab.clock.now();
    let held = lab.index.acquire_lease(target.id, "another", now, now + 3_600).await.expect("it answers");
    let faults = Faults::crash_at_with(u64::MAX, false, Lie::LeaseIgnored);
    // Refused without the defect: `a_run_beside_one_that_lives_is_refused`.
    let both = lab.crashing(&faults).run(Mode::Follow).await;
    assert!(both.is_ok(), "{both:?}");
    let lost = lab.index.renew_lease(&held.expect("nobody has it")).await;
    assert!(matches!(lost, Err(dormer_index::Error::LeaseLost)), "{lost:?}");
}

async fn a_first_run_survives_a_crash_at_any_step() {
    survives(Before::Nothing, &[1, 2, 3, 4, 5], 5).await;
}

async fn nars_in_parts_survive_a_crash_at_any_step() {
    survives(Before::NothingInParts, &[1, 2, 3, 4, 5], 5).await;
}

async fn a_run_that_updates_and_removes_survives_a_crash_at_any_step() {
    // 5 waits for 4, which was removed for cause, as the old 1. In grace: 2, the old 3, and 5.
    survives(Before::Changes, &[1, 3, 6, 7], 4 + 3).await;
}

async fn a_run_with_a_new_key_survives_a_crash_at_any_step() {
    survives(Before::NewKey, &[1, 2, 3, 4, 5, 6], 6).await;
}

async fn taking_a_cache_away_survives_a_crash_at_any_step_and_a_change_of_mind() {
    survives(Before::Private, &[1, 2, 3, 4, 5], 5).await;
}

async fn reconciling_survives_a_crash_at_any_step() {
    survives(Before::Damage, &[1, 2, 3, 4, 5], 5).await;
}

async fn a_move_survives_a_crash_at_any_step() {
    survives(Before::AnotherPlace, &[1, 2, 3, 4, 5, 6], 6).await;
}

on_both_databases! {
    a_first_run_survives_a_crash_at_any_step,
    nars_in_parts_survive_a_crash_at_any_step,
    a_run_that_updates_and_removes_survives_a_crash_at_any_step,
    a_run_with_a_new_key_survives_a_crash_at_any_step,
    taking_a_cache_away_survives_a_crash_at_any_step_and_a_change_of_mind,
    reconciling_survives_a_crash_at_any_step,
    a_move_survives_a_crash_at_any_step,
}
