//! Bodies and results of commits.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_api::fuzz_targets::fuzz_commit(data));
