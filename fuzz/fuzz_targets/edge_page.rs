//! Pages at the edge, made of published documents.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormer_edge::fuzz_targets::fuzz_page(data));
