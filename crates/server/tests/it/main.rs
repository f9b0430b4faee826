//! Every integration test of `dormer-server`: one program, because each program costs a link.

mod attic;
mod browse;
mod caching;
mod common;
mod documents;
mod fairness;
mod fuzz_corpus;
mod metrics;
mod nix;
mod operating;
mod pages;
mod permissions;
mod routes;
mod sessions;
mod signed_paths;
mod status;
mod tokens;
mod unknown_caches;
