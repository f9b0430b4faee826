//! `nix-cache-info`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_nix::fuzz_targets::fuzz_cache_info(data));
