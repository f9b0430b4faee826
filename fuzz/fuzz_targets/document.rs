//! Addresses of documents, and build traces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_nix::fuzz_targets::fuzz_document(data));
