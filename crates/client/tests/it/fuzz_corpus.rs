//! Runs the fuzz target over its corpus and over mutations of it.

#[test]
fn path_infos() {
    dormer_testkit::run_over_corpus("client_path_info", dormer_client::fuzz_targets::fuzz_path_info);
}
