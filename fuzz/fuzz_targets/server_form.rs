//! Forms, and queries of pages.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_server::fuzz_targets::fuzz_form(data));
