//! Every integration test of `dormer-format`: one program, because each program costs a link.

mod common;
mod fuzz_corpus;
mod golden;
mod journal;
mod properties;
