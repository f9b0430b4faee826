//! Looking a path up in a listing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_nix::fuzz_targets::fuzz_listing(data));
