//! Paths.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_server::fuzz_targets::fuzz_route(data));
