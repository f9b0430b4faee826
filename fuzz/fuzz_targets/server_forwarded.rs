//! What proxies report in headers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_server::fuzz_targets::fuzz_forwarded(data));
