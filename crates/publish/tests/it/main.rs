//! Every integration test of `dormer-publish`: one program, because each program costs a link.

mod common;
mod crash;
mod failing;
mod meanwhile;
mod orders;
