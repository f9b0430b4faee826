//! Records and files of the journal.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_format::fuzz_targets::fuzz_journal(data));
