//! Runs the fuzz targets over their corpora and over mutations of them.

use dormer_client::fuzz_targets;
use dormer_testkit::run_over_corpus;

#[test]
fn path_infos() {
    run_over_corpus("client_path_info", fuzz_targets::fuzz_path_info);
}

#[test]
fn netrc_files() {
    run_over_corpus("client_netrc", fuzz_targets::fuzz_netrc);
}

#[test]
fn addresses_of_caches() {
    run_over_corpus("client_substituter_url", fuzz_targets::fuzz_substituter_url);
}

#[test]
fn entries_of_the_queue() {
    run_over_corpus("client_queue_entry", fuzz_targets::fuzz_queue_entry);
}

#[test]
fn times_to_come_back() {
    run_over_corpus("client_retry_after", fuzz_targets::fuzz_retry_after);
}

#[test]
fn settings_of_nix() {
    run_over_corpus("client_nix_config", fuzz_targets::fuzz_nix_config);
}
