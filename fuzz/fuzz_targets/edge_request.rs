//! Requests at the edge.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_edge::fuzz_targets::fuzz_request(data));
