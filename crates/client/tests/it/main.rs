//! Every integration test of `dormer-client`: one program, because each program costs a link.

mod fuzz_corpus;
mod wire;
