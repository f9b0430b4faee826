//! What the contract promises, as code: every adapter runs it.
//!
//! Each case gets an empty index of its own and panics with what is wrong.

#[cfg(test)]
pub(crate) mod bulk;
mod caches;
mod chunks;
mod collect;
mod commits;
mod counters;
mod documents;
mod expiry;
mod fixtures;
mod jobs;
mod journal;
mod names;
mod publish;
mod races;
mod replicas;
mod scrub;
mod sessions;

use std::sync::Arc;

use crate::{CollectIndex, Index, JobIndex, JournalIndex, PublishIndex, Result, ScrubIndex};

/// Runs every case; `make` opens an empty index each time it is called.
pub async fn run<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Index>>,
{
    macro_rules! cases {
        ($($topic:ident: $($case:ident),+;)+) => {
            $($(
                let index = make().await;
                check(stringify!($case), || $topic::$case(index)).await;
            )+)+
        };
    }
    cases! {
        caches: a_setting_is_created_once, the_master_keys_proof_is_replaced_once, sealed_keys_are_listed_and_replaced_in_pages, a_cache_comes_back_as_it_was_created, a_name_is_taken_until_its_cache_is_deleted,
            caches_are_listed_by_name, a_list_has_what_its_patterns_allow, a_patch_changes_what_it_names_and_nothing_else, replaced_keys_stay_listed,
            a_cache_with_all_its_keys_forgets_the_oldest,
            a_cache_that_is_gone_takes_no_change, a_cache_with_objects_keeps_its_store_folder, deleting_a_cache_takes_its_contents, a_cache_created_again_is_empty,
            totals_count_the_objects_of_one_cache, visibilities_outlive_their_caches, changes_of_a_cache_are_in_the_outbox;
        chunks: unknown_chunks_are_not_found, chunks_of_a_pack_come_back_as_committed, numbers_follow_the_order_given,
            the_first_pack_of_a_chunk_wins, a_chunk_given_twice_has_one_row, a_repeated_pack_commit_returns_the_same_rows,
            an_empty_pack_has_no_rows, runs_load_in_order, a_missing_number_is_an_error, damaged_chunks_are_not_reused,
            a_damaged_chunk_heals_in_place, large_look_ups_are_one_statement, every_bit_of_a_chunk_row_survives;
        commits: a_commit_makes_the_object_visible, a_nar_is_shared_between_caches, a_known_nar_is_named_without_its_bytes,
            a_nar_that_is_gone_or_damaged_cannot_be_named, a_deleted_cache_takes_no_commit, a_missing_pack_fails_the_commit,
            a_chunk_found_damaged_since_its_look_up_fails_the_commit, a_failed_commit_leaves_nothing, a_sound_row_wins_over_a_second_upload, a_damaged_nar_heals_in_place,
            healing_is_told_to_every_cache, an_object_replaces_what_was_there, a_replaced_nar_stays_readable_for_the_grace_of_the_commit,
            signatures_are_merged_old_ones_first, other_references_drop_old_signatures, the_first_narinfo_stays,
            a_damaged_first_narinfo_gives_way, the_same_narinfo_adds_its_signatures, a_repeated_commit_changes_nothing,
            every_kind_of_listing_comes_back, a_healed_nar_has_the_new_listing,
            a_lost_listing_makes_the_next_push_store_the_nar_again, a_corrected_encoding_is_told_to_every_cache,
            a_commit_costs_at_most_eight_statements;
        names: a_cache_reads_only_what_it_names, a_nar_is_found_by_the_path_that_has_it, an_alias_names_its_nar,
            an_alias_is_replaced_by_a_later_upload, old_aliases_are_not_found, an_alias_writes_no_outbox_row,
            a_removed_object_is_gone_but_its_nar_stays_for_the_grace, removal_for_cause_takes_everything,
            removal_for_cause_ends_a_grace_that_began_before, removal_in_one_cache_leaves_the_others,
            an_object_removed_and_pushed_again_is_there, present_objects_leaves_out_the_damaged_and_the_absent,
            touching_never_goes_back_in_time, what_is_absent_costs_no_statement_or_one, every_field_of_an_object_comes_back,
            the_caches_of_a_nar_are_those_that_name_it, the_outbox_is_ordered_and_resumable, the_index_is_ready;
        documents: a_document_comes_back_and_gives_way_to_the_next,
            a_document_that_is_added_gives_way_to_the_one_that_is_there, a_deleted_cache_has_and_takes_no_document,
            a_trace_gathers_signatures_and_keeps_its_first_path,
            a_trace_to_a_path_that_is_not_here_gives_way_to_one_that_is,
            traces_of_a_path_are_bounded_in_number, signatures_of_racing_traces_are_all_kept,
            a_document_is_told_to_followers_of_what_it_belongs_to, a_log_goes_with_the_last_object_of_its_derivation,
            a_derivation_that_is_removed_takes_its_log_along,
            a_trace_goes_with_its_path, debug_info_is_found_by_its_build_id, a_document_costs_few_statements;
        sessions: a_session_is_its_callers_until_it_ends, a_subject_has_few_sessions_at_once, the_oldest_session_makes_room_after_an_hour,
            a_session_remembers_its_parts_in_pages, the_recipes_of_a_cache_come_by_age,
            chunks_marked_alone_are_stored_again;
        races: racing_packs_agree_on_every_chunk, racing_commits_of_one_nar_agree, racing_objects_leave_one_of_them,
            racing_settings_agree, racing_creations_of_a_cache_leave_one, commits_racing_a_deletion_leave_nothing,
            readers_see_whole_commits_only, a_dropped_call_harms_nobody;
    }
}

/// Runs every case of two replicas; `make` opens an empty index twice each time it is called.
pub async fn run_replicas<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = [Arc<dyn Index>; 2]>,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let [a, b] = make().await;
                check(stringify!($case), || replicas::$case(a, b)).await;
            })+
        };
    }
    cases! { changes_are_told_to_the_other, new_objects_are_no_news }
    run_silent_replicas(make).await;
}

/// The same for replicas that cannot tell each other of changes: what one asks the index is right
/// all the same.
pub async fn run_silent_replicas<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = [Arc<dyn Index>; 2]>,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let [a, b] = make().await;
                check(stringify!($case), || replicas::$case(a, b)).await;
            })+
        };
    }
    cases! {
        what_one_writes_the_other_reads_at_once, racing_packs_of_two_replicas_agree,
        racing_commits_of_two_replicas_agree, signatures_of_racing_pushes_are_all_kept, racing_first_starts_agree,
        a_follower_misses_nothing,
    }
}

/// Runs every case of publishing; `make` opens an empty index each time it is called.
pub async fn run_publish<F, Fut, I>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<I>>,
    I: Index + PublishIndex + JobIndex,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let both = publish::Both {
                    index: Arc::clone(&index) as Arc<dyn Index>,
                    publish: Arc::clone(&index) as Arc<dyn PublishIndex>,
                    jobs: index,
                };
                check(stringify!($case), || publish::$case(both)).await;
            })+
        };
    }
    cases! {
        a_target_is_made_once_and_stays_where_it_is, a_lease_is_given_to_one_at_a_time, a_lost_lease_writes_nothing,
        pending_objects_come_oldest_first_and_once, a_whole_cache_can_be_noted, what_was_removed_is_remembered_for_a_while, an_object_is_there_when_it_is_finished,
        a_nar_that_nothing_names_may_go, an_intent_that_came_to_nothing_leaves_nothing,
        referrers_are_removed_first_and_know_what_they_lost, what_an_upstream_key_signed_takes_nothing_along,
        a_circle_can_be_removed, new_references_replace_the_old_ones, drift_is_looked_at_again,
        a_cache_is_remembered_and_forgotten, documents_of_objects_are_found, documents_come_and_go_with_their_objects, what_was_found_leaves_without_haste, a_removal_settles_what_the_cache_lacks, what_waits_is_counted_for_all_targets_at_once,
        every_write_renews_the_lease, rows_come_in_the_order_of_names, the_outbox_is_trimmed_to_what_is_needed, a_grace_lasts_while_the_lab_serves_the_nar,
    }
}

/// Runs every case of jobs; `make` opens an empty index each time it is called.
pub async fn run_jobs<F, Fut, I>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<I>>,
    I: Index + JobIndex,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let both = jobs::Both { index: Arc::clone(&index) as Arc<dyn Index>, jobs: index };
                check(stringify!($case), || jobs::$case(both)).await;
            })+
        };
    }
    cases! {
        a_job_is_opened_once, a_job_has_one_holder_at_a_time, racing_processes_never_share_a_lease,
        a_lost_lease_changes_nothing, a_failed_job_waits_for_its_next_try, a_deleted_cache_is_removed_in_steps,
        another_process_continues_at_the_cursor, a_deleted_cache_is_invisible_before_its_job_runs,
        the_rest_of_a_deleted_cache_tells_no_follower, jobs_are_counted_by_kind,
        jobs_that_need_an_operator_come_first,
    }
    macro_rules! session_cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let both = jobs::Both { index: Arc::clone(&index) as Arc<dyn Index>, jobs: index };
                check(stringify!($case), || sessions::$case(both)).await;
            })+
        };
    }
    session_cases! { ended_sessions_are_swept_in_pages, a_deleted_cache_ends_its_sessions }
    macro_rules! expiry_cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let both = jobs::Both { index: Arc::clone(&index) as Arc<dyn Index>, jobs: index };
                check(stringify!($case), || expiry::$case(both)).await;
            })+
        };
    }
    expiry_cases! {
        what_is_unused_expires_with_a_grace, a_cache_that_keeps_everything_has_no_job, what_a_live_object_needs_stays,
        a_removed_referrer_frees_what_it_needed, new_references_replace_those_of_before, a_pull_and_a_push_are_uses,
        the_newest_of_a_name_are_kept, a_quota_takes_the_least_recently_used,
        a_quota_that_is_raised_ends_the_removals, a_quota_counts_logs_and_traces,
        a_quota_cuts_graces_to_a_day_first,
        a_lost_lease_expires_nothing, a_policy_that_changes_counts_at_once, small_steps_remove_the_same,
        a_pin_keeps_its_path_and_closure, pins_come_by_name_and_the_newest_stay,
        references_are_found_in_both_directions, objects_are_listed_in_every_order,
        objects_are_listed_by_the_begin_of_their_name,
        what_keeps_an_object_is_told_as_the_job_decides, a_look_for_keepers_is_bounded,
        a_removal_by_hand_is_in_the_audit, documents_of_no_object_expire,
        logs_of_no_object_stay_where_everything_is_kept, logs_have_a_retention_of_their_own, random_histories_keep_closures_whole,
    }
}

/// Runs every case of the collector; `make` opens an empty index each time it is called.
pub async fn run_collect<F, Fut, I>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<I>>,
    I: Index + CollectIndex + JobIndex,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let three = collect::Three {
                    index: Arc::clone(&index) as Arc<dyn Index>,
                    collect: Arc::clone(&index) as Arc<dyn CollectIndex>,
                    jobs: index,
                };
                check(stringify!($case), || collect::$case(three)).await;
            })+
        };
    }
    cases! {
        collections_are_opened_when_due_and_once, the_first_listing_can_be_a_recoverys,
        an_explicit_ask_for_a_collection_forgets_earlier_failures,
        what_names_a_nar_is_told_with_its_chunks, a_page_of_large_recipes_is_short, old_logs_are_counted, graces_and_aliases_end,
        only_nars_without_a_name_are_deleted, racing_names_and_deletions_agree, a_condemned_pack_is_not_reused,
        removed_packs_are_doomed_and_moved_chunks_stay, packs_without_a_row_are_doomed_later,
        new_packs_without_a_row_may_go_early,
        racing_commits_and_condemnations_agree, chunks_move_only_from_where_they_were_read,
        chunks_get_new_frames_where_they_were_read,
        a_purge_is_noted_with_the_removal_and_kept_until_it_is_done, packs_are_condemned_at_once_whatever_their_stamps,
    }
}

/// Runs every case of damage and of the scrub; `make` opens an empty index each time it is called.
pub async fn run_scrub<F, Fut, I>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<I>>,
    I: Index + ScrubIndex + JobIndex,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let three = scrub::Three {
                    index: Arc::clone(&index) as Arc<dyn Index>,
                    scrub: Arc::clone(&index) as Arc<dyn ScrubIndex>,
                    jobs: index,
                };
                check(stringify!($case), || scrub::$case(three)).await;
            })+
        };
    }
    cases! {
        a_damaged_chunk_damages_every_nar_that_needs_it, storing_a_damaged_chunk_again_heals_every_nar,
        chunks_that_are_marked_during_a_pass_get_a_pass_of_their_own,
        a_nar_that_is_stored_again_forgets_the_chunks_that_it_needed,
        followers_are_told_of_a_nar_with_many_objects_in_pages,
        a_listing_that_needs_a_damaged_chunk_is_forgotten, marks_name_the_place_that_was_read,
        a_scrub_is_opened_once_and_any_process_continues_it, damage_costs_sound_paths_no_statement,
    }
}

/// Runs every case of counters; `make` opens an empty index each time it is called.
pub async fn run_counters<F, Fut, I>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<I>>,
    I: Index + CollectIndex + ScrubIndex + JobIndex,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let four = counters::Four {
                    index: Arc::clone(&index) as Arc<dyn Index>,
                    collect: Arc::clone(&index) as Arc<dyn CollectIndex>,
                    scrub: Arc::clone(&index) as Arc<dyn ScrubIndex>,
                    jobs: index,
                };
                check(stringify!($case), || counters::$case(four)).await;
            })+
        };
    }
    cases! {
        an_empty_index_holds_nothing, random_histories_keep_the_counters_right,
        pushes_beside_a_recount_are_counted_once, a_recount_is_opened_when_it_is_due,
        a_healed_nar_is_counted_as_it_is_now, a_history_has_the_days_on_which_something_changed,
    }
}

/// Runs every case of the journal; `make` opens an empty index each time it is called.
pub async fn run_journal<F, Fut, I>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<I>>,
    I: Index + JournalIndex + CollectIndex + JobIndex,
{
    macro_rules! cases {
        ($($case:ident),+ $(,)?) => {
            $({
                let index = make().await;
                let two = journal::Two {
                    index: index.clone(),
                    journal: index.clone(),
                    collect: index.clone(),
                    jobs: index,
                };
                check(stringify!($case), || journal::$case(two)).await;
            })+
        };
    }
    cases! {
        a_lost_lease_saves_nothing, changes_that_the_journal_missed_ask_for_a_snapshot, a_note_stays_until_the_state_that_it_stands_for_is_written,
        a_change_of_pins_notes_the_pins_that_changed,
        a_removal_for_cause_notes_the_aliases_that_it_takes, the_present_state_is_read_by_key_and_in_pages,
        a_cache_is_restored_with_all_its_keys, what_changes_besides_objects_is_noted,
        documents_are_read_in_pages_of_few_bytes,
    }
}

/// Runs a case. Its future is made here and lies on the heap: those of all cases in the frame of
/// one function overflow a test's stack.
async fn check<F: Future<Output = Result<()>>>(case: &str, run: impl FnOnce() -> F) {
    if let Err(error) = Box::pin(run()).await {
        panic!("{}: {error:?}", case.replace('_', " "));
    }
}
