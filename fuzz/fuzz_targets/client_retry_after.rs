//! `Retry-After`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_client::fuzz_targets::fuzz_retry_after(data));
