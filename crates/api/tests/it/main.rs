//! Every integration test of `dormer-api`: one program, because each program costs a link.

mod fuzz;
mod golden;
