//! End-to-end tests that may run side by side. One program, because each program costs a link.
//! Tests that load the whole machine are in `alone`.

mod access;
mod alerts;
mod attic_wire;
mod bad_input;
mod book;
mod bucket;
mod ci;
mod dependencies;
mod deploy;
mod disk;
mod doctor;
mod documents;
mod edge_serve;
mod edge_story;
mod examples;
mod faults;
mod fleet;
mod fuzzing;
mod helm;
mod http_caches;
mod http_proxies;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod layers;
mod machines;
mod moving;
mod nix_copy;
mod nix_suite;
mod nixos;
mod pages;
mod pods;
mod pooler;
mod promises;
mod publish;
mod push_chunks;
mod queue;
mod recover;
mod replicas;
mod retention;
mod round_trip;
mod scrub;
mod sops;
mod terminal;
mod worker;
