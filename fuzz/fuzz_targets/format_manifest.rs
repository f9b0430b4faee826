//! NAR manifests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_format::fuzz_targets::fuzz_manifest(data));
