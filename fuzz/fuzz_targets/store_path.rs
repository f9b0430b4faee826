//! Store paths, their folder and their hash part.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_nix::fuzz_targets::fuzz_store_path(data));
