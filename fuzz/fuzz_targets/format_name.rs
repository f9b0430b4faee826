//! Ids, tags and names of journal files.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_format::fuzz_targets::fuzz_name(data));
