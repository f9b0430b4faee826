//! Build logs, as a page shows them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_server::fuzz_targets::fuzz_log(data));
