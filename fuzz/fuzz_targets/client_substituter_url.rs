//! Addresses of caches that a server reports.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_client::fuzz_targets::fuzz_substituter_url(data));
