//! Names of caches and their patterns.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_api::fuzz_targets::fuzz_cache_name(data));
