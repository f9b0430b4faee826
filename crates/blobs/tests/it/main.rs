//! Every integration test of `dormer-blobs`: one program, because each program costs a link.

mod remote;
