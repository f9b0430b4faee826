//! Every integration test of `dormer-engine`: one program, because each program costs a link.

mod at_rest;
mod changes;
mod collect;
mod collect_cost;
mod collect_model;
mod common;
mod cost;
mod crash;
mod damage;
mod histories;
mod jobs;
mod journal;
mod known_nars;
mod large;
mod odd_store;
mod purge;
mod push_and_pull;
mod read_only;
mod recompress;
mod rekey;
mod remote;
mod replicas;
mod retention;
mod scrub;
mod sessions;
